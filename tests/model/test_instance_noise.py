"""Noise that is added to the data once.

Oracles: the moments of the noise; the MLE of PPCA on data of a plane, whose noise is all that was added.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Cli
from torch import Tensor
from torch.utils.data import TensorDataset

from sdeflow import Model, Save, mpgd, pgd, simulate
from sdeflow.config.build import build
from sdeflow.config.fingerprint import fingerprint
from sdeflow.config.schema import load_config, override
from sdeflow.data import flip, read
from sdeflow.errors import SdeflowError
from sdeflow.model.instance_noise import with_instance_noise
from sdeflow.problems.density import Density
from sdeflow.problems.factor_analysis import FactorAnalysis, LinearGaussian
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.ppca import PPCA
from sdeflow.problems.two_modes import TwoModes


def plane(data: int) -> Tensor:
    """Waves in a plane of R^4, without noise."""
    i = torch.arange(data, dtype=torch.float64)
    z = torch.stack([2 * (0.9 * i).sin(), (2.3 * i).sin()], 1)
    return z @ torch.tensor([[1.0, 0.5, -0.5, 0.2], [0.0, 1.0, 1.0, -0.5]]).double()


class Bare(PPCA):
    """PPCA that does not look whether there is noise to learn."""

    init_theta = LinearGaussian.init_theta


def test_the_noise_has_its_law_and_its_seed() -> None:
    """20,000 normals of deviation 0.3: mean and variance within 4.5 standard errors, of two parts apart."""
    model = Hierarchical(data=20_000)
    model.held_out = torch.zeros(20_000, 1)
    found = with_instance_noise(model, 0.3)
    unseen = found.held_out
    assert unseen.dtype == torch.float32
    noise = found.data - model.data
    for xi in (noise / 0.3, unseen.double() / 0.3):
        assert abs(float(xi.mean())) < 4.5 / 20_000**0.5
        assert abs(float(xi.var()) - 1) < 4.5 * (2 / 20_000) ** 0.5
    assert abs(float((noise * unseen).mean()) / 0.09) < 4.5 / 20_000**0.5
    assert torch.equal(found.data, with_instance_noise(model, 0.3).data)
    torch.testing.assert_close(with_instance_noise(model, 0.6).data - model.data, 2 * noise)
    assert not torch.equal(found.data, with_instance_noise(model, 0.3, seed=1).data)


@pytest.mark.parametrize("model", [PPCA(), FactorAnalysis(), TwoModes()], ids=lambda m: type(m).__name__)
def test_an_mle_is_that_of_the_noisy_data(model: Any) -> None:
    before = fingerprint_of(model)
    noisy = with_instance_noise(model, 1.0)
    if isinstance(model, TwoModes):
        torch.testing.assert_close(noisy.mle, noisy.data.mean(0))
        return
    theta = {name: v.clone().requires_grad_() for name, v in noisy.mle.items()}
    slopes = torch.autograd.grad(noisy.log_likelihood(theta), list(theta.values()))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-8
    assert float(noisy.mle["log_noise"].exp().mean() - model.mle["log_noise"].exp().mean()) > 0.5
    assert fingerprint_of(model) == before != fingerprint_of(noisy)


def fingerprint_of(model: Model) -> str:
    return fingerprint(mpgd(model, particles=1))


@pytest.mark.parametrize("tau", [0.1, 0.3, 1.0])
def test_the_noise_of_ppca_is_what_was_added(tau: float) -> None:
    """Of 3,000 data in a plane: tau^2 (1 - 3/D) within 4 standard errors sqrt(2/(2 D)) of it."""
    model = with_instance_noise(PPCA(plane(3000)), tau)
    error = tau**2 / 3000**0.5
    assert abs(float(model.mle["log_noise"].exp()) - tau**2 * (1 - 3 / 3000)) < 4 * error


def test_without_noise_there_is_none_to_learn() -> None:
    with pytest.raises(
        SdeflowError, match=r"leave no noise to learn: take fewer latents, or give model\.inst"
    ):
        mpgd(PPCA(plane(200)), particles=2)


def test_a_run_learns_the_noise_that_was_added() -> None:
    """Within 4% of the MLE, for 20 particles and the scheme's steps."""
    model = with_instance_noise(PPCA(plane(200)), 0.3)
    system = mpgd(model, particles=20)
    run = simulate(system, steps=300, save=Save(every=100), dtype="float64", seed=0)
    assert run.noise.values[2:] == pytest.approx(float(model.mle["log_noise"].exp()), rel=0.04)


def test_without_noise_the_likelihood_grows_as_that_of_the_model_falls() -> None:
    """By (p - k)/2 nats a datum for every unit of log s2, to the end."""
    model = Bare(plane(200))
    theta = [model.mle | {"log_noise": torch.tensor(s).double()} for s in (-8.0, -12.0, -16.0)]
    values = [float(model.log_likelihood(t)) for t in theta]
    assert np.diff(values) / 4 == pytest.approx([200, 200], rel=1e-3)


@pytest.mark.slow
def test_without_noise_a_run_learns_that_of_its_steps() -> None:
    """Half as long ones, half the noise, and none in the limit."""
    found = []
    for h in (0.02, 0.01):
        system = pgd(Bare(plane(200)), particles=20, theta={"h": h / 100}, x={"h": h})
        run = simulate(system, "euler_maruyama", steps=4000, save=Save(every=100), dtype="float64", seed=0)
        found.append(run.noise.values[20:].mean())
    assert found[0] / found[1] == pytest.approx(2, rel=0.1)


def test_from_toml(tmp_path: Path, cli: Cli) -> None:
    """The seed of a run and its replicas leave the data as they are; `data_seed` is the noise's."""
    np.savetxt(tmp_path / "plane.csv", plane(40), delimiter=",")
    file = tmp_path / "plane.toml"
    file.write_text(
        'model = { use = "ppca", data = "plane.csv", held_out = 0.2, instance_noise = 0.3 }\n'
        'system = { use = "pgd", particles = 2, theta = { h = 1e-3 }, x = { h = 1e-2 } }\n'
        "run = { steps = 3 }\n"
    )

    def built(*settings: str) -> Any:
        config = load_config(file, overrides=[override(s) for s in settings])
        return build(config).system.model_forces.model

    plain = PPCA(str(tmp_path / "plane.csv"), held_out=0.2)
    assert torch.equal(built().data, with_instance_noise(plain, 0.3).data)
    assert torch.equal(built().held_out, with_instance_noise(plain, 0.3).held_out)
    assert torch.equal(built("run.seed=5", "run.replicas=2").data, built().data)
    assert not torch.equal(built("model.data_seed=5").data, built().data)
    assert cli("run", str(file), "--out", str(tmp_path / "run")).code == 0
    assert "with noise of standard deviation 0.3 added to its data" in cli("show", str(file)).out
    for setting, message in (
        ("model.instance_noise=0", "'model.instance_noise'"),
        ("model.instance_noise='x'", "'model.instance_noise'"),
        ("model.instance_nose=1", "did you mean 'instance_noise'?"),
    ):
        found = cli("run", str(file), "--set", setting)
        assert found.code == 2
        assert message in found.err


def made_anew() -> Model:
    model = Density(data=20, test=20, hidden=[2])
    model.at_access = flip((1, 1, 1))
    return model


def with_data(data: Any) -> Model:
    model = Hierarchical(data=3)
    model.data = data
    return model


@pytest.mark.parametrize(
    ("model", "tau", "message"),
    [
        (Hierarchical(data=3), 0.0, "must be positive, given 0"),
        (Hierarchical(data=3), float("nan"), "must be positive, given nan"),
        (made_anew(), 1.0, r"Density makes its data anew at each visit \(at_access\)"),
        (with_data(torch.ones(3, 1).long()), 1.0, r"Hierarchical\.data is a tensor of torch\.int64"),
        (with_data((torch.ones(3, 1),)), 1.0, r"Hierarchical\.data is tuple"),
        (with_data(read(TensorDataset(torch.ones(3, 1)), in_memory=False)), 1.0, r"\.data is Rows"),
    ],
)
def test_what_no_noise_is_added_to(model: Model, tau: float, message: str) -> None:
    with pytest.raises(SdeflowError, match=message):
        with_instance_noise(model, tau)

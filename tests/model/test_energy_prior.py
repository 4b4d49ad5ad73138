"""A neural energy in place of the prior of a model.

Oracles: the plain model's own log-joint, finite differences, the closed-form evidence of a linear-Gaussian
model, mpgd's start.
"""

from __future__ import annotations

import re
from math import log, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import FLOAT64, LIGHT
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

import sdeflow
from sdeflow import Model, simulate
from sdeflow.analysis.energy_evidence import energy_evidence
from sdeflow.analysis.evidence import annealed, standard
from sdeflow.config.catalogue import find
from sdeflow.errors import SdeflowError
from sdeflow.model.energy_prior import EnergyPrior
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.density import Density
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.linear_energy import LinearEnergy
from sdeflow.seeds import generator

KINETIC = find("systems", "kinetic_ebipla")


class Linear(Model):
    """x_i ~ N(0, I),  y_i | x_i ~ N(W x_i + b, s^2 I) with latents [2, 1] and y in R^3."""

    latent_shape = (2, 1)

    def __init__(self, data: int = 4, noise: float = 0.7) -> None:
        self.data = torch.linspace(-1, 2, 3 * data, dtype=torch.float64).view(data, 3).sin()
        self.noise = noise

    def init_theta(self, generator: torch.Generator) -> Any:
        return torch.nn.Linear(2, 3)

    def log_prior(self, theta: Any, x: Tensor) -> Tensor:
        return Normal(0, 1).log_prob(x.flatten(1)).sum(-1)

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        x = x.flatten(2)
        mean = torch.nn.functional.linear(x, theta["weight"], theta["bias"])
        seen = Normal(mean, self.noise).log_prob(y[:, None]).sum(-1)
        return Normal(0, 1).log_prob(x).sum(-1) + seen


def theta_of(model: EnergyPrior) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: value.detach().double() for name, value in model.init_theta(generator(0)).items()}


def of(theta: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): v for name, v in theta.items() if name.startswith(prefix)}


def latents(model: Model, data: int, particles: int) -> Tensor:
    return torch.randn(data, particles, *model.latent_shape, generator=generator(1), dtype=torch.float64)


@pytest.mark.parametrize("plain", [Linear(), Decoder(latent=3, hidden=(5,), images=4)])
@pytest.mark.parametrize("hidden", [[], [6, 5]])
def test_where_f_is_zero_the_log_joint_is_the_plain_one(plain: Model, hidden: list[int]) -> None:
    """Without hidden layers, and with the last of f's weights at 0: to rounding."""
    model = EnergyPrior(plain, hidden).to(**FLOAT64)
    theta, x = theta_of(model), latents(plain, 4, 3)
    if hidden:
        theta["alpha.4.weight"].zero_()
    expected = model.plain.log_joint(of(theta, "beta."), x, model.data)
    torch.testing.assert_close(model.log_joint(theta, x, model.data), expected, rtol=1e-13, atol=1e-12)


def test_the_energy_is_the_formula_and_its_gradients_are_differences() -> None:
    """U = |x|^2/2 + d log(2 pi)/2 - f with f written out; central differences of the log-joint, 1e-7."""
    model = EnergyPrior(Linear(), [6, 5], gain=1.7).to(**FLOAT64)
    theta, x = theta_of(model), latents(model, 4, 3)
    alpha, silu = of(theta, "alpha."), torch.nn.functional.silu
    flat = x.flatten(0, 1).flatten(1)
    f = silu(silu(flat @ alpha["0.weight"].T + alpha["0.bias"]) @ alpha["2.weight"].T + alpha["2.bias"])
    f = (f @ alpha["4.weight"].T).squeeze(-1)
    expected = flat.square().sum(-1) / 2 + log(2 * pi) - f
    torch.testing.assert_close(model.energy(alpha, x.flatten(0, 1)), expected, rtol=1e-13, atol=1e-13)

    def total(theta: dict[str, Tensor], x: Tensor) -> Tensor:
        return model.log_joint(theta, x, model.data).sum()

    by_theta, by_x = torch.func.grad(total, (0, 1))(theta, x)
    g = generator(2)
    for _ in range(5):
        to = {n: torch.randn(v.shape, generator=g, dtype=v.dtype) for n, v in (theta | {"x": x}).items()}
        shifted = [{n: v + e * to[n] for n, v in theta.items()} for e in (1e-5, -1e-5)]
        up, down = (total(at, x + e * to["x"]) for at, e in zip(shifted, (1e-5, -1e-5), strict=True))
        slope = sum((by_theta[n] * to[n]).sum() for n in theta) + (by_x * to["x"]).sum()
        assert float(slope) == pytest.approx(float(up - down) / 2e-5, rel=1e-7)


def test_the_gain_is_a_factor_on_the_first_layer_at_the_start() -> None:
    one, other = (theta_of(EnergyPrior(Linear(), [6], gain)) for gain in (1.0, 3.0))
    for name in one:
        factor = 3 if name.startswith("alpha.0.") else 1
        torch.testing.assert_close(other[name], factor * one[name], rtol=1e-6, atol=0)


def test_the_evidence_without_an_energy_is_the_closed_form() -> None:
    """log N(y; b, W W^T + s^2 I), and log Z = 0: within 4 of the estimates' standard errors."""
    model = EnergyPrior(Linear(), []).to(**FLOAT64)
    theta = theta_of(model)
    weight, bias = theta["beta.weight"], theta["beta.bias"]
    law = MultivariateNormal(bias, weight @ weight.T + 0.7**2 * torch.eye(3))
    truth = law.log_prob(model.data).numpy()
    found = annealed(model, theta, standard(4, 2), chains=500, temperatures=30)
    assert (np.abs(found.value - truth) < 4 * found.error).all()
    assert found.error.max() < 0.05


def test_the_evidence_of_an_energy_is_the_quadrature() -> None:
    """log Z and log p(y) on a fine grid of the plane: within 4 of the estimates' standard errors."""
    model = EnergyPrior(Linear(), [8], gain=3.0).to(**FLOAT64)
    theta = theta_of(model)
    theta["alpha.2.weight"] *= 8  # an energy that is felt
    axis = torch.linspace(-7, 7, 281, dtype=torch.float64)
    grid, area = torch.cartesian_prod(axis, axis)[..., None], 2 * log(14 / 280)
    log_z = float(torch.logsumexp(-model.energy(of(theta, "alpha."), grid), 0)) + area
    joint = model.log_joint(theta, grid.expand(4, *grid.shape), model.data)
    truth = (torch.logsumexp(joint, 1) + area - log_z).numpy()
    found = energy_evidence(model, theta, standard(4, 2), standard(1, 2), chains=500, temperatures=40)
    assert abs(log_z) > 0.3
    assert abs(found.log_z.value - log_z) < 4 * found.log_z.error
    error = np.hypot(found.joint.error, found.log_z.error)
    assert (np.abs(found.value - truth) < 4 * error).all()
    assert error.max() < 0.1


def test_decoder_and_particles_start_as_without_an_energy() -> None:
    plain = Decoder(latent=2, hidden=(4,), images=5)
    wrapped = KINETIC(EnergyPrior(plain, [6]), particles=2, prior_particles=3).start(7)
    alone = sdeflow.mpgd(plain, particles=2).start(7)
    assert torch.equal(wrapped["beta"], alone["theta"])
    assert torch.equal(wrapped["X"], alone["X"])


def test_what_the_plain_model_can_do_it_can_do_in_any_dtype() -> None:
    plain = Decoder(latent=2, hidden=(4,), images=5, held_out=3)
    model = EnergyPrior(plain, [6])
    other = model.to(**FLOAT64)
    assert other.plain is not plain
    assert next(plain.network.parameters()).dtype == torch.float32
    assert (other.image_shape, other.joint_maximum) == (plain.image_shape, plain.joint_maximum)
    assert other.held_out is not None
    theta, x = theta_of(other), latents(plain, 5, 3)
    beta = of(theta, "beta.")
    image = other.plain.decode(beta, x[:, 0])
    assert torch.equal(other.decode(theta, x[:, 0]), image)
    drawn = [m.sample_data(t, x[:, 0], generator(3)) for m, t in ((other, theta), (other.plain, beta))]
    assert torch.equal(*drawn)
    assert other.observables(theta, x, other.data) == other.plain.observables(beta, x, other.data)
    linear = EnergyPrior(Linear(), [6])
    assert (linear.decode, linear.sample_data, linear.real_images) == (None, None, None)


def test_numbers_of_theta_are_left_aside() -> None:
    model = EnergyPrior(Linear(), [6])
    blocks: dict[str, Any] = {"alpha": LIGHT, "beta": LIGHT, "x": LIGHT}
    system = KINETIC(model, particles=2, prior_particles=3, theta={"h": 1.0}, inner_steps=3, **blocks)
    plain = KINETIC(model, particles=2, prior_particles=3, **blocks)
    assert list(system.blocks) == list(plain.blocks)
    assert simulate(system, steps=3).attrs["retcode"] == "success"


@pytest.mark.parametrize("name", ["vi", "kinetic_ebipla"])
def test_a_run_is_not_resumed_with_another_model_inside(name: str, tmp_path: Path) -> None:
    """What a model around a model was made of counts, too."""

    def run(sigma: float) -> None:
        plain = Decoder(latent=2, hidden=(4,), images=5, sigma=sigma)
        blocks: dict[str, Any] = {"alpha": LIGHT, "beta": LIGHT, "x": LIGHT, "prior_particles": 3}
        model, numbers = (plain, {"theta": {"h": 1e-4}}) if name == "vi" else (EnergyPrior(plain), blocks)
        system = find("systems", name)(model, particles=2, **numbers)
        simulate(system, steps=2, out=tmp_path / "run", resume=True)

    run(0.3)
    run(0.3)
    with pytest.raises(SdeflowError, match="model"):
        run(0.4)


def test_what_does_not_fit_is_refused() -> None:
    mixture = Density(pseudo_points=3, data=5, hidden=[4], test=5)
    for make, sentence in (
        (lambda: EnergyPrior(mixture), "that of Density is learned"),
        (lambda: EnergyPrior(Hierarchical(data=3)), "that of Hierarchical is learned"),
        (lambda: EnergyPrior(LinearEnergy()), "that of LinearEnergy is an energy already"),
        (lambda: EnergyPrior(Linear(), [4, 0]), "width of at least 1"),
        (lambda: EnergyPrior(Linear(), gain=0.0), "its gain be positive"),
    ):
        with pytest.raises(SdeflowError, match=sentence):
            make()

    class Wide(Linear):
        def log_prior(self, theta: Any, x: Tensor) -> Tensor:
            return Normal(0, 2).log_prob(x.flatten(1)).sum(-1)

    class Silent(Linear):
        log_prior: Any = None

    for plain, sentence in ((Wide(), "that of Wide is another"), (Silent(), "is not stated by a log_prior")):
        with pytest.raises(SdeflowError, match=sentence):
            EnergyPrior(plain)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model.energy_prior.hiden=[4]", "unknown key 'model.energy_prior.hiden': did you mean 'hidden'?"),
        ("model.energy_prior.gain='x'", "'model.energy_prior.gain'"),
        ("model.energy_prior=3", "'model.energy_prior'"),
        ("model.energy_prier={}", "unknown key 'model.energy_prier': did you mean 'energy_prior'?"),
        ("model.energy_prior={}", "cannot learn the energy of EnergyPrior's prior"),
    ],
)
def test_mistakes_in_toml_are_a_sentence(refused: Any, setting: str, says: str) -> None:
    assert says in refused("--set", setting, problem="digits")


def test_a_run_of_digits_is_sampled_evaluated_and_cited(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    size = [f"--set={s}" for s in ("model.images=40", "model.held_out=6", "system.prior_particles=50")]
    assert cli("run", "digits", "--variant", "energy", *size, "--steps=6", "--quiet", "--out=run").code == 0
    with sdeflow.open_run("run") as run:
        assert np.isfinite(run.loss).all()
        assert run.loss[-1] < run.loss[0]
        assert run.reconstruction_error[-1] < run.reconstruction_error[0]
    told = cli("sample", "run", "--n", "4", "--steps", "3")
    assert (told.code, "samples.png" in told.out) == (0, True), told.err
    brief = ["--data=3", "--chains=2", "--temperatures=3", "--langevin-steps=3", "--no-pictures"]
    told = cli("evaluate", "run", *brief)
    assert told.code == 0, told.err
    for score in ("log-evidence", "log Z of the energy", "reconstruction, held-out data"):
        assert score in told.out
    assert {"pang2020learning", "marks2025learning"} <= {*re.findall(r"@\w+{(\w+),", cli("cite", "run").out)}
    assert "a neural energy" in cli("show", "digits", "--variant", "energy", *size).out

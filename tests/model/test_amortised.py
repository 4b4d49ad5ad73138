"""Amortised variational inference.

Oracles: torch.distributions for the ELBO's integrand; the exact posterior and evidence of a linear-Gaussian
model, where a linear encoder is enough; the closed-form gradient of the ELBO there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import Net, assert_same
from support import SE, declared
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import sdeflow
from sdeflow import Batch, Evaluate, Save, simulate
from sdeflow.config.catalogue import find
from sdeflow.errors import SdeflowError
from sdeflow.model.amortised import LEAST, Amortised
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.ill_conditioned import IllConditioned
from sdeflow.problems.linear_energy import LinearEnergy
from sdeflow.seeds import generator
from sdeflow.system.system import BlockSystem

ALL = Save(every=1, data="all", particles="all")


def theta_of(model: Amortised) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: value.detach().double() for name, value in model.init_theta(generator(0)).items()}


def exact(model: IllConditioned) -> tuple[Amortised, dict[str, Tensor]]:
    """A linear encoder that is the posterior at the MLE: mean (y + theta*)/2, variance s^2/2."""
    wrapped = Amortised(model, hidden=()).to(torch.float64, torch.device("cpu"))
    best, p = model.data.mean(0), len(model.scale)
    raw = torch.log(torch.expm1(model.scale / 2**0.5 - LEAST))
    weight = torch.cat([torch.eye(p) / 2, torch.zeros(p, p)]).double()
    theta = {"theta": best, "encoder.1.weight": weight, "encoder.1.bias": torch.cat([best / 2, raw])}
    assert theta.keys() == theta_of(wrapped).keys()
    return wrapped, theta


@pytest.mark.parametrize("plain", [Decoder(latent=3, hidden=(5,), images=4), Net()])
def test_the_log_joint_is_the_integrand_of_the_elbo(plain: sdeflow.Model) -> None:
    """l(theta, x) - log q(x | y) at x = mu + s xi, with torch's own normals."""
    model = Amortised(plain, hidden=[6]).to(torch.float64, torch.device("cpu"))
    theta, y = theta_of(model), model.data
    xi = torch.randn(len(y), 3, *model.latent_shape, generator=generator(1), dtype=torch.float64)
    mean, scale = model.law(theta, y)
    q = Independent(Normal(mean[:, None], scale[:, None]), len(model.latent_shape))
    x = model.latents(theta, xi, y)
    expected = model.plain.log_joint(model.own(theta), x, y) - q.log_prob(x)
    torch.testing.assert_close(model.log_joint(theta, xi, y), expected, rtol=1e-12, atol=1e-10)


def test_the_exact_posterior_gives_the_evidence_whatever_the_normals() -> None:
    """At the MLE and with q the posterior each value is log p(y_i): their sum is minus E*."""
    plain = IllConditioned(data=6, condition=100.0)
    model, theta = exact(plain)
    xi = torch.randn(6, 5, 4, generator=generator(1), dtype=torch.float64)
    value = model.log_joint(theta, xi, model.data)
    torch.testing.assert_close(value, value[:, :1].expand(-1, 5), rtol=1e-10, atol=1e-10)
    assert -float(value[:, 0].sum()) == pytest.approx(plain.minimum, rel=1e-10)


def test_the_force_is_the_gradient_of_the_elbo() -> None:
    """Of a linear-Gaussian model and a linear encoder, against the closed form; 4.5 standard errors.

    ELBO = sum_ic log s + (1 - log 2 pi)/2 - 2 log s_c - ((mu - theta)^2 + (y - mu)^2 + 2 s^2)/(2 s_c^2)
    """
    plain = IllConditioned(data=5, condition=10.0, distance=1.0)
    wrapped = Amortised(plain, hidden=()).to(torch.float64, torch.device("cpu"))
    theta = {name: value.requires_grad_() for name, value in theta_of(wrapped).items()}
    mean, scale = wrapped.law(theta, plain.data)
    squares = (mean - theta["theta"]).square() + (plain.data - mean).square() + 2 * scale.square()
    constant = (1 - np.log(2 * np.pi)) / 2 - 2 * plain.scale.log()
    elbo = (scale.log() + constant - squares / (2 * plain.scale**2)).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(elbo, list(theta.values()))])

    n, draws = 200, []
    system = find("systems", "vi")(plain, particles=n, theta={"h": 0.1}, encoder_hidden=[])
    forces = system.to(torch.float64, torch.device("cpu")).force_field
    flat = torch.cat([value.detach().flatten() for value in theta.values()])[None]
    for seed in range(200):
        xi = torch.randn(1, 5, n, 4, generator=generator(seed), dtype=torch.float64)
        draws.append(forces(0.0, {"theta": flat, "X": xi}, ["theta"])["theta"][0])
    force = torch.stack(draws)
    error = force.std(0) / len(draws) ** 0.5
    assert bool(((force.mean(0) - expected).abs() < SE * error + 1e-12).all())


@pytest.mark.slow
def test_a_linear_encoder_reaches_the_mle_and_the_evidence() -> None:
    """theta within 4.5 standard errors over replicas and 1e-3; minus the ELBO there, with other normals,
    above -log p(y) by no more than 2e-3 nats a datum, within 4.5 of its own.

    Not the recorded loss: its normals are those of the last step, which theta has just followed.
    """
    plain = IllConditioned(data=8, condition=4.0, distance=1.0)
    system = find("systems", "vi")(plain, particles=50, theta={"h": 2e-3}, encoder_hidden=[])
    run = simulate(system, steps=3000, replicas=4, save=Save(every=10, data=1, particles=1), dtype="float64")
    theta = run.theta.isel(time=slice(150, None)).mean("time").values
    error = theta.std(0, ddof=1) / 4**0.5
    assert (np.abs(theta.mean(0)[:4] - plain.data.mean(0).numpy()) < SE * error[:4] + 1e-3).all()
    xi = torch.randn(1, 8, 2000, 4, generator=generator(5), dtype=torch.float64)
    forces = system.to(torch.float64, torch.device("cpu")).force_field
    model, views = forces.model, forces.parameters.views(torch.from_numpy(theta.mean(0)))
    integrand = -model.log_joint(views, xi[0], model.data)
    gap = float(integrand.mean()) - plain.minimum / 8
    noise = float((integrand.var(1).mean() / integrand.numel()) ** 0.5)
    assert -SE * noise < gap < SE * noise + 2e-3
    assert noise < 1e-3


def vi(model: sdeflow.Model | None = None, **options: Any) -> BlockSystem:
    model = model or Decoder(latent=2, hidden=(6,), images=20, held_out=5)
    options = {"encoder_hidden": [6], "theta": {"h": 1e-3, "precondition": "rmsprop"}} | options
    return find("systems", "vi")(model, particles=2, **options)


def test_a_run_draws_by_step_and_resumes_to_the_bit(stop_before: Any, tmp_path: Path) -> None:
    """X are new normals at each step, of a minibatch's data alone; a run in pieces is the run."""
    options: dict[str, Any] = {
        "steps": 11,
        "dtype": "float64",
        "replicas": 2,
        "save": Save(3, "all", "all", 0),
    }
    options |= {"batch": Batch(4), "evaluate": Evaluate(6, 2), "save": Save(every=3, checkpoint=0.0)}
    whole = simulate(vi(), **options)
    for n in (2, 5, 9):
        stop_before(n)
        with pytest.raises(KeyboardInterrupt):
            simulate(vi(), out=tmp_path / "run", resume=True, **options)
    stop_before(None)
    assert_same(simulate(vi(), out=tmp_path / "run", resume=True, **options), whole)
    assert whole.attrs["gradient_evaluations_per_step"] == 2
    assert float(whole.loss[-1].mean()) < float(whole.loss[0].mean())
    assert float(whole.held_out_loss[-1].mean()) < float(whole.held_out_loss[0].mean())
    full = simulate(vi(), steps=40, dtype="float64", save=ALL)
    x = full.X.values[1:].reshape(40, -1)
    assert abs(x.mean()) < SE / x.size**0.5
    assert abs((x**2).mean() - 1) < SE * (2 / x.size) ** 0.5
    assert np.abs(np.corrcoef(x) - np.eye(40)).max() < 6 / x.shape[1] ** 0.5


def test_numbers_may_be_left_to_the_run() -> None:
    run = simulate(vi(Hierarchical(data=6), theta={}, encoder_hidden=[]), steps=100, dtype="float64")
    assert float(run.loss[-1]) < float(run.loss[0])
    assert run.attrs["retcode"] == "success"


def test_a_convolutional_encoder_takes_images() -> None:
    model = vi(encoder="convolutional", encoder_width=1).model_forces.model
    assert isinstance(model, Amortised)
    shapes = [tuple(v.shape) for n, v in model.encoder.named_parameters() if n.endswith("weight")]
    assert shapes == [(2, 1, 3, 3), (4, 2, 4, 4), (8, 4, 4, 4), (4, 32)]
    assert simulate(vi(encoder="convolutional", encoder_width=1), steps=2).attrs["retcode"] == "success"


def test_other_systems_numbers_are_left_aside() -> None:
    system = vi(x={"h": 0.3, "eta": 2.0, "gamma": 1.0}, inner_steps=7)
    assert declared(system, "auto").gradient_evaluations == 2
    assert "X" in system.axes
    assert "U" not in system.axes


def test_what_does_not_fit_is_refused() -> None:
    class Pair(Hierarchical):
        def __init__(self) -> None:
            super().__init__(data=3)
            self.data = (self.data, self.data)

    class Taken(Hierarchical):
        def init_theta(self, generator: Any) -> Any:
            return {"encoder.weight": torch.zeros(())}

    for make, sentence in (
        (lambda: vi(Pair()), "data that are one tensor, and Pair has another kind"),
        (lambda: vi(Taken(data=3)), "Taken has a parameter 'encoder.weight'"),
        (
            lambda: vi(Hierarchical(data=3), encoder="convolutional"),
            "halves images twice, and Hierarchical has none",
        ),
        (lambda: vi(encoder_hidden=[0]), "at least 1"),
        (lambda: vi(encoder="lstm"), "'mlp' or 'convolutional'"),
        (lambda: vi(LinearEnergy()), "not an energy"),
    ):
        with pytest.raises(SdeflowError, match=sentence):
            make()


PROBLEM = """
[model]
use = "decoder"
latent = 2
hidden = [6]
images = 30
held_out = 5
[system]
use = "vi"
particles = 2
encoder_hidden = [6]
theta = { h = 1e-3, precondition = "rmsprop" }
[run]
steps = 20
"""


def test_what_a_run_learned_is_the_model_without_its_encoder(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents are mu + s xi; pictures and the evidence are of the decoder alone."""
    from sdeflow.analysis.samples import learned

    monkeypatch.chdir(tmp_path)
    Path("vi.toml").write_text(PROBLEM)
    assert cli("run", "vi.toml", "--quiet", "--out", "run") == (0, "", "")
    found = learned(Path("run"))
    assert isinstance(found.model, Decoder)
    assert not [name for name in found.theta if name.startswith("encoder.")]
    assert {"0.weight", "2.bias"} <= found.theta.keys()
    with sdeflow.open_run("run") as run:
        xi = run.X.isel(time=-1).values
    assert found.state["X"].shape == (30, 2, 2)
    assert not np.allclose(found.state["X"].numpy()[: len(xi)], xi)
    assert cli("sample", "run", "--n", "4").code == 0
    assert cli("sample", "run", "--n", "4", "--prior", "gmm:2").code == 0
    told = cli("evaluate", "run", "--data", "3", "--chains", "4", "--temperatures", "20")
    assert (told.code, "evidence" in told.out) == (0, True), told.err
    shown = cli("show", "vi.toml")
    assert "x takes a fresh draw a step of theta\n" in shown.out
    assert "all data, 2 gradient evaluation(s)" in shown.out


def test_networks_stay_apart() -> None:
    """A model in float32 and its copy in float64 share no tensor, and neither does their model."""
    model = Amortised(Decoder(latent=2, hidden=(3,), images=3))
    other = model.to(torch.float64, torch.device("cpu"))
    assert other.plain is not model.plain
    assert next(other.plain.network.parameters()).dtype == torch.float64
    assert isinstance(other.encoder, nn.Module)
    assert next(model.encoder.parameters()).dtype == torch.float32

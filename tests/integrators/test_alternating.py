"""Inner steps: short-run inference, alternating back-propagation and SOUL, by the scheme `alternating`.

Oracles: loops in numpy written from the published algorithms, on the same normals; another scheme's orbit;
closed forms of K steps of the unadjusted Langevin algorithm on Gaussians; runs in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from commands import Cli
from small import Autograd, assert_same
from support import SE, AffineMap, affine_map, declared, doubles, needs_kernel, places
from torch import Tensor

import sdeflow
from sdeflow import Batch, Evaluate, Save, simulate
from sdeflow.config.catalogue import find, integrator_named
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.errors import SdeflowError
from sdeflow.model.forces import ModelForces
from sdeflow.noise.source import TorchNoise
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.ill_conditioned import IllConditioned
from sdeflow.state import State
from sdeflow.system import Inner, kinetic, overdamped
from sdeflow.system.system import BlockSystem, initial_state

D, N, SCALE, H_THETA, H_X = 6, 3, 1.5, 0.02, 0.1
METHODS = ("short_run", "abp", "soul")
ALL = Save(every=1, data="all", particles="all")


def toy(name: str, steps: int, model: type[Hierarchical] = Hierarchical, **theta: Any) -> BlockSystem:
    made = model(data=D, scale=SCALE, theta_true=2.0)
    made.held_out = torch.linspace(-1, 1, 4)[:, None]
    theta = {"h": H_THETA, **theta}
    return find("systems", name)(made, particles=N, theta=theta, x={"h": H_X}, inner_steps=steps)


def normals(system: BlockSystem, n: int, parts: int) -> np.ndarray:
    """What the source draws for step n of two replicas, [parts, R, D, N, 1]."""
    scheme = integrator_named("alternating").fitted(system)
    noise = TorchNoise(system.channels, scheme.noise_spec(system.h), doubles(range(2)))
    ((_, xi),) = noise.normals(n)
    assert xi.shape[1:3] == (parts, 1)
    return xi[0, :, 0].numpy().copy()


# The published algorithms --------------------------------------------------------------------------


@pytest.mark.parametrize("precondition", [None, "rmsprop"])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_the_published_loop(name: str, precondition: Any) -> None:
    """Seven steps of two replicas against loops in numpy, to roundoff; RMSProp sees what moves theta.

    score (theta - x)/s^2 + y - x,  grad_theta log p(x, y) = (x - theta)/s^2
    """
    steps = 4
    system = toy(name, steps, precondition=precondition)
    y = system.model_forces.model.data.numpy()[:, None]
    z = initial_state(system, doubles(range(2)))
    theta, X = z["theta"].numpy().copy(), z["X"].numpy().copy()
    v, found = np.ones((2, 1)), []
    for n in range(7):
        xi = normals(system, n, steps + (name == "short_run"))
        if name == "short_run":
            X = theta[:, None, None] + SCALE * xi[steps]
        gradients = []
        for k in range(steps):
            X = X + H_X * ((theta[:, None, None] - X) / SCALE**2 + y - X) + np.sqrt(2 * H_X) * xi[k]
            gradients.append((X - theta[:, None, None]).sum((1, 2)) / SCALE**2 / N)
        gradient = np.mean(gradients, axis=0) if name == "soul" else gradients[-1]
        if precondition:
            v = 0.99 * v + 0.01 * gradient**2
            gradient = gradient / np.sqrt(v + 1e-8)
        theta = theta + H_THETA * gradient
        found.append((theta, X))
    options = {"steps": 7, "replicas": 2, "dtype": "float64", "noise": "torch", "save": ALL}
    for model in (Hierarchical, Autograd):
        run = simulate(toy(name, steps, model, precondition=precondition), **options)
        for n, (theta, X) in enumerate(found, start=1):
            np.testing.assert_allclose(run.theta[n], theta, rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(run.X[n], X, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_an_optimizer_may_move_theta(name: str) -> None:
    """Gradient descent by name is that of the system to the bit; adam is another."""
    runs = [
        simulate(toy(name, 3, **theta), "alternating", steps=5, dtype="float64", save=ALL)
        for theta in ({}, {"optimizer": "sgd"}, {"optimizer": "adam"})
    ]
    np.testing.assert_array_equal(runs[1].theta, runs[0].theta)
    np.testing.assert_array_equal(runs[1].X, runs[0].X)
    assert abs(runs[2].theta[-1] - runs[0].theta[-1]).max() > 1e-3


@pytest.mark.parametrize("source", ["torch", pytest.param("philox", marks=needs_kernel)])
def test_one_inner_step_of_a_persistent_chain_is_pgd(source: Any) -> None:
    """To the bit, from pgd's state after its first step of theta: theta and X take turns in both.

    abp moves X first, pgd under expint_nc theta first, so that theta of abp is one step ahead.
    """
    options = {"dtype": "float64", "noise": source, "engine": "eager", "save": ALL}
    pgd = simulate(toy("pgd", 1), "expint_nc", steps=9, **options)
    system = toy("abp", 1)
    start = {"theta": torch.from_numpy(pgd.theta[1].values), "X": system.force_field.start(0)["X"]}
    ahead = BlockSystem(system.blocks, system.force_field, h=system.h, start=start)
    abp = simulate(ahead, steps=8, **options)
    np.testing.assert_array_equal(abp.X, pgd.X[:-1])
    np.testing.assert_array_equal(abp.theta, pgd.theta[1:])


@pytest.mark.parametrize("name", ["soul", "abp"])
def test_one_inner_step_is_both(name: str) -> None:
    """With K = 1 there is nothing to average."""
    runs = [simulate(toy(one, 1), steps=5, dtype="float64", save=ALL) for one in (name, "abp")]
    assert_same(*(run.drop_attrs() for run in runs))


# Where they rest -----------------------------------------------------------------------------------


def mapped(name: str, steps: int) -> tuple[AffineMap, dict[str, slice], np.ndarray]:
    """The affine map of a step, where its variables lie, and y."""
    system = toy(name, steps)
    scheme = integrator_named("alternating").fitted(system)
    return affine_map(system, scheme), places(system), system.model_forces.model.data.numpy()


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("name", METHODS)
def test_means_rest_at_the_mle_and_the_means_of_the_chain(name: str, steps: int) -> None:
    """theta* = mean y; a persistent chain has the posterior means m, K steps from the prior
    m + (1 - h/v)^K (theta* - m)."""
    probed, at, y = mapped(name, steps)
    v = 1 / (1 + 1 / SCALE**2)
    means = v * (y + y.mean() / SCALE**2)
    left = (1 - H_X / v) ** steps if name == "short_run" else 0.0
    rest = probed.fixed_point
    assert rest[at["theta"]] == pytest.approx(y.mean(), abs=1e-11)
    assert rest[at["X"]] == pytest.approx(np.repeat(means + left * (y.mean() - means), N), abs=1e-11)


@pytest.mark.parametrize("name", METHODS)
def test_the_particles_spread(name: str) -> None:
    """Half the variance of x_ij - x_ij': with r = 1 - h/v, of a persistent chain 2 h / (1 - r^2) for all K;
    of K steps from N(theta, s^2) that plus r^2K (s^2 - the same)."""
    v, steps = 1 / (1 + 1 / SCALE**2), 3
    probed, at, _ = mapped(name, steps)
    law, first = probed.stationary, at["X"].start
    pair = law[first : first + 2, first : first + 2]
    r = 1 - H_X / v
    expected = 2 * H_X / (1 - r**2)
    if name == "short_run":
        expected += r ** (2 * steps) * (SCALE**2 - expected)
    assert (pair[0, 0] + pair[1, 1] - 2 * pair[0, 1]) / 2 == pytest.approx(expected, rel=1e-11)


class Slope(sdeflow.Model):
    """x ~ N(0, 1), y | x ~ N(w x, 1): what K steps leave of the prior biases w."""

    latent_shape = (1,)

    def __init__(self) -> None:
        self.data = 2.0 * torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]

    def init_theta(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"w": torch.ones(())}

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return -(x.square() + (y[:, None] - theta["w"] * x).square()).sum(-1) / 2

    def log_prior(self, theta: Any, x: Tensor) -> Tensor:
        return -(x.square() + np.log(2 * np.pi)).sum(-1) / 2


def root(steps: float, h: float) -> float:
    """w where sum_i E[(y_i - w x) x] = 0 under K steps of ULA from N(0, 1), whose law is Gaussian."""
    y = Slope().data.numpy()

    def force(w: float) -> float:
        left = (1 - h * (1 + w**2)) ** steps
        mean = (1 - left) * w * y / (1 + w**2)
        settled = 2 * h / (1 - (1 - h * (1 + w**2)) ** 2)
        return float((y * mean - w * (mean**2 + settled + left**2 * (1 - settled))).sum())

    return float(scipy.optimize.brentq(force, 0.5, 5.0, xtol=1e-13))


def learned(name: str, steps: int, h: float, seeds: int = 8) -> tuple[float, float]:
    """w over the second half of a run, and its standard error over replicas."""
    system = find("systems", name)(Slope(), particles=200, theta={"h": 0.02}, x={"h": h}, inner_steps=steps)
    scheme = "expint_nc" if name == "pgd" else "auto"
    run = simulate(system, scheme, steps=300, replicas=seeds, save=Save(every=1, data=1, particles=1))
    w = run.theta[150:].mean("time").values.ravel()
    return float(w.mean()), float(w.std(ddof=1) / np.sqrt(seeds))


@pytest.mark.slow
def test_short_run_tends_to_what_pgd_learns() -> None:
    """Each K is within 4.5 standard errors of its closed form, whose limit is pgd's; few steps bias w.

    N = 200 particles and 40 data leave a bias of order 1/N in a nonlinear equation: 1e-3 is allowed for it.
    """
    h, limit = 0.05, root(np.inf, 0.05)
    for name, steps, expected in (
        ("pgd", 1, limit),
        ("abp", 4, limit),
        ("soul", 4, limit),
        ("short_run", 5, root(5, h)),
        ("short_run", 12, root(12, h)),
        ("short_run", 30, root(30, h)),
    ):
        w, error = learned(name, steps, h)
        assert abs(w - expected) < SE * error + 1e-3, (name, steps)
    distances = [root(k, h) - limit for k in (5, 12, 30)]
    assert distances == pytest.approx([0.3814, 0.0831, 0.0007], abs=1e-4)


# Cost, clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_step_takes_as_many_gradients_as_it_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """K + 1 calls of the model's forces, in a run of 9 steps less one of 4, which start and save alike."""
    evaluate, count, calls = ModelForces.__call__, 0, {}

    def counted(forces: ModelForces, t: float, z: State, names: Sequence[str]) -> State:
        nonlocal count
        count += 1
        return evaluate(forces, t, z, names)

    monkeypatch.setattr(ModelForces, "__call__", counted)
    for steps in (4, 9):
        count = 0
        options = {"engine": "eager", "noise": "torch", "batch": Batch(3), "save": Save(every=100)}
        run = simulate(toy(name, 5), steps=steps, **options)
        calls[steps] = count
    assert calls[9] - calls[4] == 5 * 6
    assert run.attrs["gradient_evaluations_per_step"] == 6
    assert declared(toy(name, 5), "auto").gradient_evaluations == 6


def test_particles_have_a_clock_of_k_steps() -> None:
    run = simulate(toy("abp", 5), steps=3, save=ALL)
    np.testing.assert_allclose(run.time_x, 5 * H_X * np.arange(4), rtol=1e-12)
    np.testing.assert_allclose(run.time_theta, H_THETA * np.arange(4), rtol=1e-12)


TOML = """
[model]
use = "hierarchical"
data = 6
[system]
use = "soul"
particles = 2
inner_steps = 7
theta = { h = 1e-2 }
x = { h = 1e-1 }
[run]
steps = 3
"""


def test_a_file_declares_it(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inner.toml").write_text(TOML)
    shown = cli("show", "inner.toml")
    assert "all data, 8 gradient evaluation(s)" in shown.out
    assert "x takes 7 steps a step of theta, forces averaged\n" in shown.out
    assert cli("show", "inner.toml", "--system", "short_run").out.count("8 gradient evaluation(s)") == 1
    assert cli("run", "inner.toml", "--quiet") == (0, "", "")
    assert cli("run", "inner.toml", "--quiet", "--system", "pgd") == (0, "", "")
    with sdeflow.open_run("runs/inner-alternating-s0") as run:
        assert run.attrs["gradient_evaluations_per_step"] == 8
    code, _, err = cli("run", "inner.toml", "--set", "system.inner_steps=0")
    assert (code, err.count("\n")) == (2, 1)
    assert "inner_steps" in err


# Pieces, minibatches, replicas, engines ------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, Batch(2)])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_resumes_to_the_bit(stop_before: Any, tmp_path: Path, name: str, batch: Any) -> None:
    options: dict[str, Any] = {"steps": 11, "dtype": "float64", "batch": batch, "replicas": 2}
    options |= {"save": Save(every=3, checkpoint=0.0), "evaluate": Evaluate(6, 2)}
    whole = simulate(toy(name, 3, precondition="rmsprop"), **options)
    for n in (2, 5, 9):
        stop_before(n)
        with pytest.raises(KeyboardInterrupt):
            simulate(toy(name, 3, precondition="rmsprop"), out=tmp_path / "run", resume=True, **options)
    stop_before(None)
    again = simulate(toy(name, 3, precondition="rmsprop"), out=tmp_path / "run", resume=True, **options)
    assert_same(again, whole)
    with pytest.raises(SdeflowError, match="system was"):
        simulate(toy(name, 4, precondition="rmsprop"), out=tmp_path / "run", resume=True, **options)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_all_data_is_no_batch(name: str) -> None:
    options: dict[str, Any] = {"steps": 5, "dtype": "float64", "replicas": 2, "save": ALL}
    full, batch = (simulate(toy(name, 3), batch=b, **options) for b in (None, Batch(D)))
    for variable in ("theta", "X"):
        np.testing.assert_array_equal(batch[variable], full[variable])


@pytest.mark.parametrize("batch", [None, Batch(2)])
@pytest.mark.parametrize("name", METHODS)
def test_a_replica_is_a_run(name: str, batch: Any) -> None:
    options: dict[str, Any] = {"steps": 5, "dtype": "float64", "batch": batch, "save": ALL}
    both = simulate(toy(name, 3), seed=3, replicas=2, **options)
    second = simulate(toy(name, 3), seed=4, **options)
    for variable in ("theta", "X"):
        np.testing.assert_allclose(both[variable].isel(replica=1), second[variable], rtol=1e-12, atol=1e-13)


@needs_kernel
@pytest.mark.parametrize("batch", [None, Batch(2)])
@pytest.mark.parametrize("engine", ["fused", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", METHODS)
def test_engines_agree(name: str, engine: Any, batch: Any) -> None:
    options: dict[str, Any] = {"steps": 6, "dtype": "float64", "noise": "philox", "batch": batch, "save": ALL}
    eager, other = (simulate(toy(name, 3), engine=e, **options) for e in ("eager", engine))
    for variable in ("theta", "X"):
        np.testing.assert_allclose(other[variable], eager[variable], rtol=1e-11, atol=1e-12)


def test_the_chains_share_their_noise() -> None:
    """Short runs draw their start last, so that its K steps have the normals of a persistent chain."""
    first, second = (normals(toy(name, 3), 5, parts) for name, parts in (("abp", 3), ("short_run", 4)))
    np.testing.assert_array_equal(first, second[:3])


def test_numbers_may_be_left_to_the_run() -> None:
    """By curvature: at most twice over it, the limit of a step of gradient descent, in both blocks."""
    for name in METHODS:
        model = Hierarchical(data=D, scale=SCALE, theta_true=2.0)
        run = simulate(find("systems", name)(model, particles=50), steps=60, replicas=2)
        assert 0.1 < float(run.h_x[-1].max()) * (1 + 1 / SCALE**2) < 2
        assert 0.1 < float(run.h_theta[-1].max()) * D / SCALE**2 < 2
        error = np.sqrt((1 + SCALE**2) / (D * 50))
        assert np.abs(run.theta[-1].values - model.data.mean().item()).max() < SE * error


def test_held_out_particles_take_plain_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of X by the unadjusted Langevin algorithm from where they are, whatever the run's own do."""
    losses = [
        simulate(toy(name, 3), steps=0, evaluate=Evaluate(10, 4), dtype="float64").held_out_loss.values
        for name in METHODS
    ]
    assert losses[0] == losses[1] == losses[2]


# The prior -----------------------------------------------------------------------------------------


class Shifted(Slope):
    """The same with a prior that is not N(0, 1)."""

    def log_prior(self, theta: Any, x: Tensor) -> Tensor:
        return -((x - 1).square() + np.log(2 * np.pi)).sum(-1) / 2


class Told(Shifted):
    def draw_prior(self, theta: Any, xi: Tensor) -> Tensor:
        return 1 + xi


class Wrong(Shifted):
    def draw_prior(self, theta: Any, xi: Tensor) -> Tensor:
        return xi.sum(-1)


def test_a_prior_that_is_not_known_to_draw_from_is_refused() -> None:
    def start(model: sdeflow.Model, name: str = "short_run") -> Any:
        return simulate(find("systems", name)(model, particles=2, theta={"h": 0.1}, x={"h": 0.1}), steps=1)

    with pytest.raises(SdeflowError, match=r"that of Shifted is not N\(0, I\): give the model draw_prior"):
        start(Shifted())
    with pytest.raises(SdeflowError, match=r"Wrong.draw_prior"):
        start(Wrong())
    start(Shifted(), "abp")
    start(Told())
    start(Slope())


@pytest.mark.parametrize("model", [Hierarchical(data=2, scale=0.5), IllConditioned(data=2)])
def test_what_is_made_of_normals_has_the_prior_s_density(model: sdeflow.Model) -> None:
    """log p(x(xi)) + log |dx/dxi| = log N(xi; 0, I), at random xi."""
    theta = model.init_theta(torch.Generator())
    xi = torch.randn(5, *model.latent_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = model.draw_prior(theta, xi)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: model.draw_prior(theta, one)))(xi)
    normal = -(xi.square() + np.log(2 * np.pi)).sum(-1) / 2
    torch.testing.assert_close(model.log_prior(theta, x) + torch.linalg.slogdet(jacobian).logabsdet, normal)


# Refusals ------------------------------------------------------------------------------------------


def test_what_does_not_go_together() -> None:
    for scheme in ("expint", "euler_maruyama", "torchsde:euler"):
        with pytest.raises(
            SdeflowError, match=r"no inner steps, and those of x are\. These can: alternating$"
        ):
            simulate(toy("abp", 2), scheme, steps=1)
    with pytest.raises(SdeflowError, match="inner steps move them at each visit anyway"):
        simulate(toy("abp", 2), steps=1, batch=Batch(2, "one_step"))
    for steps in (0, -1, 2.5, "many"):
        with pytest.raises(SdeflowError, match="inner_steps"):
            toy("soul", steps)  # type: ignore[arg-type]
    fresh = sdeflow.SystemDeclaration("own", overdamped("0"), kinetic("1"), "", Inner(3, fresh=True))
    with pytest.raises(SdeflowError, match="with a momentum do not start at the prior anew"):
        fresh(Hierarchical(data=2), particles=1)
    with pytest.raises(SdeflowError, match="only particles take inner steps"):
        sdeflow.Block("theta", "theta", (1,), ("param",), role="parameters", inner=Inner(2))


def test_own_systems_may_have_momenta() -> None:
    """K steps of kinetic particles, then theta with a momentum, against the maps of one step each."""
    declaration = sdeflow.SystemDeclaration("own", kinetic("0"), kinetic("1"), "", Inner(3))
    motion = {"eta": 2.0, "gamma": 0.7}
    system = declaration(
        Hierarchical(data=2), particles=2, theta={"h": 0.01, **motion}, x={"h": 0.1, **motion}
    )
    scheme = integrator_named("alternating").fitted(system)
    z = initial_state(system, doubles())
    noise = TorchNoise(system.channels, scheme.noise_spec(system.h), doubles())
    after = advance(EagerSteps(system, scheme, noise), z, 0, 1)
    expint = integrator_named("expint")
    held = BlockSystem(system.particles, system.force_field, h=system.h)
    at = z | {"theta": z["theta"] + system.blocks[0].flow(system.h).free * z["m"]}
    for part in noise(0):
        at = expint.step(held, 0.0, at, system.h, (part,))
    alone = BlockSystem(system.parameters, system.force_field, h=system.h)
    expected = expint.step(alone, 0.0, at | {"theta": z["theta"]}, system.h, ({},))
    for variable in ("theta", "m", "X", "U"):
        torch.testing.assert_close(after[variable], expected[variable], rtol=1e-12, atol=1e-13)

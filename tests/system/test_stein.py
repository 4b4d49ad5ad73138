"""SVGD-EM and coin-EM: theta and particles that a kernel moves together.

Oracles: the closed recursion of means and variances under the linear kernel; loops in numpy, from sums over
pairs; gradient ascent for one particle; numbers of an independent computation; a run in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from commands import Cli
from numpy.typing import NDArray
from pieces import WHOLE
from small import LIGHT, Autograd, Net, Precision, assert_same
from support import doubles
from torch import Tensor

import sdeflow
from sdeflow import Batch, Evaluate, Save, simulate
from sdeflow.analysis.stability import linearised
from sdeflow.config.catalogue import integrator_named
from sdeflow.config.run import Run
from sdeflow.config.schema import RunSection
from sdeflow.engine.engine import Engine
from sdeflow.engine.minibatch import MiniBatches
from sdeflow.errors import SdeflowError, StabilityWarning
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.system import BlockSystem, initial_state

Array = NDArray[np.float64]
EVERY: dict[str, Any] = {"dtype": "float64", "save": Save(every=1, data="all", particles="all")}
NUMBERS: dict[str, Any] = {"theta": {"h": 0.02}, "x": {"h": 0.05}}
KINETIC = {"h": 0.02, "eta": 3.0, "gamma": 0.7}
DECLARATIONS: dict[str, Any] = {
    "svgd_em": lambda model, **more: sdeflow.svgd_em(model, **(NUMBERS | more)),
    "momentum_svgd_em": lambda model, **more: sdeflow.momentum_svgd_em(
        model, theta=KINETIC, x=NUMBERS["x"], **more
    ),
    "coin_em": lambda model, **more: sdeflow.coin_em(model, **more),
}
every_system = pytest.mark.parametrize("name", DECLARATIONS)


def model(data: int = 6, latent: int = 1) -> Hierarchical:
    found = Hierarchical(data=data, latent=latent, theta_true=2.0)
    found.held_out = torch.linspace(-1, 1, 4 * latent, dtype=torch.float64).view(4, latent)
    return found


def phi(x: Array, s: Array) -> Array:
    """Of a datum's particles [N, d] by the rbf kernel of median bandwidth, pair by pair."""
    n = len(x)
    apart = ((x[:, None] - x) ** 2).sum(-1)
    l2 = np.median(apart) / (2 * log(n + 1))
    force = np.zeros_like(x)
    for to in range(n):
        for j in range(n):
            k = np.exp(-apart[j, to] / (2 * l2))
            force[to] += (k * s[j] - (x[j] - x[to]) / l2 * k) / n
    return force


class Coins:
    """Coordinates that bet, in numpy."""

    def __init__(self, q: Array, a: float = 0.0) -> None:
        self.start, self.q, self.a = q, q, a
        self.largest, self.net, self.total, self.reward = (np.zeros_like(q) for _ in range(4))

    def bet(self, c: Array) -> None:
        self.largest = np.maximum(self.largest, abs(c))
        self.net, self.total = self.net + c, self.total + abs(c)
        self.reward = np.maximum(self.reward + (self.q - self.start) * c, 0)
        stake = self.net / (self.largest * np.maximum(self.total + self.largest, self.a * self.largest))
        self.q = self.start + stake * (self.largest + self.reward)


def scores_of(y: Array, theta: float, x: Array) -> Array:
    """Of the toy model with s = 1, x [D, N, d]."""
    return (theta - x) + (y[:, None] - x)


# Equations -------------------------------------------------------------------------------------------------


def means_and_variances(y: Array, m: Array, c: Array, steps: int) -> list[Array]:
    """Of the toy model under k = 1 + x y: theta, m and C after each step, closed in these."""
    v, h, h_theta, theta = 0.5, 0.05, 0.02, 0.0
    found = [np.array([theta, *m, *c])]
    for _ in range(steps):
        b = v * (y + theta)
        a = 1 - (c + m * (m - b)) / v
        theta, m, c = (
            theta + h_theta * (m - theta).sum(),
            m + h * (-(m - b) / v + m * a),
            c * (1 + h * a) ** 2,
        )
        found.append(np.array([theta, *m, *c]))
    return found


def test_the_linear_kernel_has_a_closed_recursion() -> None:
    """Over 100 steps to rounding, and to its fixed point: the posterior's mean and variance, and the MLE."""
    toy = Hierarchical(data=5)
    toy.data = torch.tensor([[-1.0], [0.5], [2.0], [3.0], [0.5]], dtype=torch.float64)
    system = sdeflow.svgd_em(toy, particles=7, kernel="linear", **NUMBERS)
    run = simulate(system, "expint_nc2", steps=100, **EVERY)
    x, y = run.X.values[..., 0], toy.data[:, 0].numpy()
    found = np.concatenate([run.theta.values, x.mean(2), x.var(2)], 1)
    expected = means_and_variances(y, x[0].mean(1), x[0].var(1), 100)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-15)
    save = Save(every=2000, data="all", particles="all")
    last = simulate(system, "expint_nc2", steps=2000, dtype="float64", save=save).isel(time=-1)
    np.testing.assert_allclose(last.theta, y.mean(), rtol=1e-13)
    np.testing.assert_allclose(last.X.mean("particle")[:, 0], (y + y.mean()) / 2, atol=1e-13)
    np.testing.assert_allclose(last.X.var("particle"), 0.5, rtol=1e-13)


@pytest.mark.parametrize("scheme", ["expint_nc2", "euler_maruyama"])
def test_svgd_em_is_a_loop_over_pairs(scheme: str) -> None:
    """theta's gradient is at the old X: all forces are at the old state."""
    toy = model(4, 2)
    run = simulate(sdeflow.svgd_em(toy, particles=5, **NUMBERS), scheme, steps=6, **EVERY)
    y, theta, x = toy.data.numpy(), run.theta[0].item(), run.X.values[0]
    for n in range(1, 7):
        force = (x - theta).sum() / 5
        x = x + 0.05 * np.stack([phi(of, s) for of, s in zip(x, scores_of(y, theta, x), strict=True)])
        theta += 0.02 * force
        np.testing.assert_allclose(run.theta[n].item(), theta, rtol=1e-13)
        np.testing.assert_allclose(run.X[n], x, rtol=1e-12, atol=1e-13)


def test_theta_has_a_momentum() -> None:
    """p' = w p + (1-w)/k f, theta' = theta + (1-w)/gamma p + (h - (1-w)/k)/gamma f, and X as without."""
    toy = model(4, 2)
    run = simulate(DECLARATIONS["momentum_svgd_em"](toy, particles=5), "expint_nc2", steps=6, **EVERY)
    y, theta, x, p = toy.data.numpy(), run.theta[0].item(), run.X.values[0], 0.0
    h, eta, gamma = KINETIC["h"], KINETIC["eta"], KINETIC["gamma"]
    w, k = np.exp(-gamma * eta * h), gamma * eta
    for n in range(1, 7):
        force = (x - theta).sum() / 5
        x = x + 0.05 * np.stack([phi(of, s) for of, s in zip(x, scores_of(y, theta, x), strict=True)])
        theta += (1 - w) / gamma * p + (h - (1 - w) / k) / gamma * force
        p = w * p + (1 - w) / k * force
        np.testing.assert_allclose(run.theta[n].item(), theta, rtol=1e-12)
        np.testing.assert_allclose(run.X[n], x, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("a", [0.0, 3.0])
def test_coin_em_is_a_loop_over_pairs(a: float) -> None:
    """Rounding grows along such a run, some hundred times in ten steps."""
    toy, by = model(4, 2), {"optimizer": {"name": "coin", "a": a}}
    run = simulate(sdeflow.coin_em(toy, particles=5, theta=by, x=by), "expint_nc2", steps=10, **EVERY)
    y, theta, x = toy.data.numpy(), Coins(run.theta.values[0], a), Coins(run.X.values[0], a)
    for n in range(1, 11):
        force = np.array([(x.q - theta.q).sum() / 5])
        x.bet(np.stack([phi(of, s) for of, s in zip(x.q, scores_of(y, theta.q.item(), x.q), strict=True)]))
        theta.bet(force)
        np.testing.assert_allclose(run.theta[n], theta.q, rtol=1e-9)
        np.testing.assert_allclose(run.X[n], x.q, rtol=1e-9, atol=1e-9)


def test_one_particle_climbs_to_the_joint_maximum() -> None:
    """MAP: of the toy model theta = x_i = mean(y) in the mean; phi is the score, to the bit."""
    toy = model(6)
    run = simulate(sdeflow.svgd_em(toy, particles=1, **NUMBERS), "expint_nc2", steps=40, **EVERY)
    y, theta, x = toy.data[:, 0].numpy(), 0.0, run.X.values[0, :, 0, 0]
    for n in range(41):
        np.testing.assert_allclose(run.X[n, :, 0, 0], x, rtol=1e-13)
        np.testing.assert_allclose(run.theta[n].item(), theta, rtol=1e-13)
        theta, x = theta + 0.02 * (x - theta).sum(), x + 0.05 * ((theta - x) + (y - x))


# Numbers of an independent computation ---------------------------------------------------------------------

TOLD = {0.0: {10: 9.18, 100: 100.008, 1500: 100.03}, 100.0: {10: 0.035, 100: 96.3, 1500: 100.106}}
"""theta of coin-EM by a, and step; D = 100, N = 20, mean(y) = 100.11, from 0."""


def against_the_numbers(a: float, steps: int, replicas: int) -> None:
    """A number is of one set of data and one start: within 4.5 standard deviations of those here."""
    by = {"optimizer": {"name": "coin", "a": a}}
    system = sdeflow.coin_em(Hierarchical(data=100, mle=100.11), particles=20, theta=by, x=by)
    save = Save(every=10, data=1, particles=1)
    run = simulate(system, steps=steps, dtype="float64", replicas=replicas, save=save)
    for step, told in TOLD[a].items():
        if step <= steps:
            theta = run.theta.sel(time=float(step)).values.ravel()
            assert abs(theta.mean() - told) < 4.5 * theta.std(ddof=1), (step, theta, told)
            assert theta.std(ddof=1) < 0.15 * theta.mean() or step == 10


@pytest.mark.parametrize("a", TOLD)
def test_coin_em_goes_as_fast_as_it_is_told_to(a: float) -> None:
    against_the_numbers(a, 100, 4)


@pytest.mark.slow  # 10 s each
@pytest.mark.parametrize("a", TOLD)
def test_coin_em_ends_where_it_is_told_to(a: float) -> None:
    against_the_numbers(a, 1500, 3)


# Runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"batch": Batch(3), "replicas": 2}], ids=["all data", "minibatches"])
@pytest.mark.parametrize("name", ["svgd_em", "coin_em"])
def test_a_run_in_pieces_is_the_run(
    stop_before: Any, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    def go(folder: str, **more: Any) -> xr.Dataset:
        system = DECLARATIONS[name](model(), particles=3)
        out, evaluate = tmp_path / folder, Evaluate(every=6, steps=2)
        return simulate(system, "expint", out=out, evaluate=evaluate, **WHOLE, **options, **more)

    whole = go("whole")
    for n in (1, 4, 9):
        stop_before(n)
        with pytest.raises(KeyboardInterrupt):
            go("run", resume=True)
    stop_before(None)
    assert_same(go("run", resume=True), whole)
    assert np.isfinite(whole.held_out_loss.values[::2]).all()


@every_system
def test_a_replica_is_a_run_with_its_seed(name: str) -> None:
    both = simulate(DECLARATIONS[name](model(6, 3), particles=5), "expint", seed=5, replicas=3, **WHOLE)
    one = simulate(DECLARATIONS[name](model(6, 3), particles=5), "expint", seed=7, **WHOLE)
    for variable in ("theta", "X"):
        np.testing.assert_array_equal(both[variable].isel(replica=2), one[variable])


@every_system
def test_a_batch_of_all_data_is_no_batch(name: str) -> None:
    system = DECLARATIONS[name](model(), particles=3)
    plain = simulate(system, "expint_nc2", replicas=2, **WHOLE)
    assert_same(simulate(system, "expint_nc2", replicas=2, batch=Batch(6), **WHOLE), plain)


@pytest.mark.parametrize("batch", [Batch(4), Batch(4, "substeps", 2)], ids=["off", "substeps"])
def test_particles_bet_with_the_memory_of_their_datum(batch: Batch) -> None:
    """By minibatches each datum's coins go on from its last visit; theta's see D/b of a part."""
    toy, replicas = model(6, 2), doubles((0, 1))
    system = sdeflow.coin_em(toy, particles=5)
    batches = MiniBatches(system, integrator_named("expint_nc2"), batch, replicas, Engine())
    start = initial_state(system, replicas)
    z, y = batches.start(start), toy.data.numpy()
    theta = [Coins(start["theta"][r].numpy()) for r in range(2)]
    x = [[Coins(start["X"][r, i].numpy()) for i in range(6)] for r in range(2)]
    with torch.no_grad():
        for n in range(5):
            z = batches(z, n)
            for r in range(2):
                seen, at = batches.index(n)[r].tolist(), theta[r].q.item()
                force = np.array([6 / 4 * sum((x[r][i].q - at).sum() for i in seen) / 5])
                for i in seen:
                    coins = x[r][i]
                    coins.bet(phi(coins.q, scores_of(y[i : i + 1], at, coins.q[None])[0]))
                theta[r].bet(force)
    for r in range(2):
        np.testing.assert_allclose(z["theta"][r], theta[r].q, rtol=1e-9)
        for i in range(6):
            np.testing.assert_allclose(z["X"][r, i], x[r][i].q, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(z["X_total"][r, i], x[r][i].total, rtol=1e-9)


def test_particles_catch_up_under_their_kernel() -> None:
    """The steps that a datum missed, three at most, with theta held; then one beside theta's."""
    toy, replicas = model(6, 2), doubles()
    system = sdeflow.svgd_em(toy, particles=5, **NUMBERS)
    scheme = integrator_named("expint_nc2")
    batches = MiniBatches(system, scheme, Batch(2, "substeps", 3), replicas, Engine())
    start = initial_state(system, replicas)
    z, y, x = batches.start(start), toy.data.numpy(), start["X"][0].numpy()
    theta, visited = 0.0, np.zeros(6, dtype=int)
    for n in range(8):
        with torch.no_grad():
            z = batches(z, n)
        seen = batches.index(n)[0].tolist()
        for i in seen:
            for _ in range(min(n - visited[i], 3)):
                x[i] += 0.05 * phi(x[i], scores_of(y[i : i + 1], theta, x[None, i])[0])
        force = 6 / 2 * sum((x[i] - theta).sum() for i in seen) / 5
        for i in seen:
            x[i] += 0.05 * phi(x[i], scores_of(y[i : i + 1], theta, x[None, i])[0])
            visited[i] = n + 1
        theta += 0.02 * force
    np.testing.assert_allclose(z["theta"].item(), theta, rtol=1e-12)
    np.testing.assert_allclose(z["X"][0], x, rtol=1e-11, atol=1e-12)


@every_system
def test_held_out_particles_feel_each_other_too(name: str) -> None:
    """With data of their own, theta as it is, and a memory of their own."""
    toy = model()
    options = EVERY | {"steps": 2, "evaluate": Evaluate(every=1, steps=3)}
    run = simulate(DECLARATIONS[name](toy, particles=5), "expint_nc2", **options)
    held_out = model()
    held_out.data = toy.held_out
    x = initial_state(DECLARATIONS[name](held_out, particles=5), doubles())["X"][0].numpy()
    coins = Coins(x)
    for n in range(3):
        theta = run.theta[n].item()
        for _ in range(3):
            force = np.stack(
                [phi(of, s) for of, s in zip(x, scores_of(toy.held_out.numpy(), theta, x), strict=True)]
            )
            coins.bet(force)
            x = coins.q if name == "coin_em" else x + 0.05 * force
        square = (x - theta) ** 2 + (toy.held_out.numpy()[:, None] - x) ** 2
        loss = square.sum(-1).mean() / 2 + log(2 * np.pi)
        np.testing.assert_allclose(run.held_out_loss[n].item(), loss, rtol=1e-9)


@pytest.mark.parametrize("of", [Autograd, Hierarchical])
@every_system
def test_fused_steps_are_the_same(name: str, of: type[Hierarchical]) -> None:
    options = {"steps": 6, "replicas": 2, "dtype": "float64", "noise": "philox"}
    eager, fused = (
        simulate(DECLARATIONS[name](of(data=6), particles=5), "expint", engine=engine, **options)
        for engine in ("eager", "fused")
    )
    np.testing.assert_allclose(fused.X, eager.X, rtol=1e-10, atol=1e-12)


@pytest.mark.slow  # torch compiles for some 10 s
@pytest.mark.parametrize(("name", "batch"), [("svgd_em", None), ("coin_em", Batch(3))])
def test_compiled_steps_are_the_same(name: str, batch: Batch | None) -> None:
    options: dict[str, Any] = {"steps": 3, "replicas": 2, "dtype": "float64", "noise": "philox"}
    eager, compiled = (
        simulate(
            DECLARATIONS[name](model(6, 2), particles=5), "expint_nc2", engine=engine, batch=batch, **options
        )
        for engine in ("eager", "compiled")
    )
    np.testing.assert_allclose(compiled.theta, eager.theta, rtol=1e-10)
    np.testing.assert_allclose(compiled.X, eager.X, rtol=1e-8, atol=1e-9)


def test_particles_may_have_an_optimizer_of_their_own() -> None:
    """Adagrad, which SVGD was published with: its first step has the size of h."""
    by = {"h": 0.05, "optimizer": "adagrad"}
    system = sdeflow.svgd_em(Net(), particles=7, theta={"h": 1e-3, "optimizer": "adam"}, x=by)
    run = simulate(system, "expint_nc2", steps=1, **EVERY)
    np.testing.assert_allclose(np.abs(run.X[1] - run.X[0]), 0.05, rtol=1e-6)


def test_the_observed_force_vanishes_where_particles_rest() -> None:
    """|phi| is recorded, not the size of scores: these are of the posterior's spread."""
    run = simulate(sdeflow.svgd_em(model(), particles=5, **NUMBERS), steps=1500, dtype="float64")
    assert run.force_x[-1].item() < 1e-6
    assert run.force_x[0].item() > 0.1
    assert run.force_theta[-1].item() < 1e-6


# What is told, and refused ---------------------------------------------------------------------------------


def test_a_collapse_is_told(tmp_path: Path) -> None:
    system = sdeflow.svgd_em(model(6, 5), particles=3, **NUMBERS)
    with pytest.warns(
        StabilityWarning, match=r"N = 3 particles .* collapse in d = 5 dimensions: .* 0\.22 of"
    ):
        run = simulate(system, steps=1, out=tmp_path / "run")
    assert "collapse in d = 5" in run.attrs["warnings"]
    assert "warning: N = 3 particles" in (tmp_path / "run" / "run.log").read_text()


def test_a_system_says_its_kernel() -> None:
    """So a run is not resumed under another."""
    told = {
        str(sdeflow.svgd_em(model(), particles=3, **NUMBERS, **more))
        for more in ({}, {"bandwidth": 2.0}, {"bandwidth": 0.5}, {"kernel": "linear"})
    }
    assert len(told) == 4
    assert any(words.endswith("by the rbf kernel with l = 2.0") for words in told)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            lambda: sdeflow.svgd_em(model(), particles=3, theta={"h": 0.1}),
            "system 'svgd_em' needs h of block 'x', which a run chooses by the curvature of a potential",
        ),
        (
            lambda: sdeflow.momentum_svgd_em(model(), particles=3, theta={"h": 0.1}, x={"h": 0.1}),
            "system 'momentum_svgd_em' needs eta, gamma of block 'theta'",
        ),
        (
            lambda: sdeflow.coin_em(model(), particles=3, x={"h": 0.1, "optimizer": "adam"}),
            "system 'coin_em' moves x by 'coin', given 'adam': take svgd_em",
        ),
        (
            lambda: sdeflow.coin_em(model(), particles=3, theta={"precondition": "rmsprop"}),
            "the optimizer 'coin' moves this one: leave either out",
        ),
        (
            lambda: sdeflow.svgd_em(Precision(), particles=9, **NUMBERS),
            "system 'svgd_em' cannot learn the energy of Precision's prior",
        ),
        (
            lambda: sdeflow.svgd_em(model(), particles=3, theta={"h": 0.1}, x={"h": 0.1, "temperature": 2.0}),
            "block 'x' has the temperature 0",
        ),
        (
            lambda: simulate(sdeflow.svgd_em(model(), particles=3, **NUMBERS), "baoab", steps=1),
            "it needs a momentum in every block; without one: theta, x",
        ),
        (
            lambda: linearised(
                Run.declare(sdeflow.svgd_em(model(), particles=3, **NUMBERS), "expint", RunSection(steps=1))
            ),
            "particles that feel each other by a kernel do not rest at a maximum",
        ),
    ],
)
def test_what_a_kernel_does_not_go_with(made: Callable[[], BlockSystem], words: str) -> None:
    with pytest.raises(SdeflowError) as found:
        made()
    assert words in str(found.value)
    assert "\n" not in str(found.value)


def test_systems_can_be_exchanged() -> None:
    """What a system does not use it leaves aside."""
    for declaration in (sdeflow.svgd_em, sdeflow.momentum_svgd_em, sdeflow.coin_em):
        system = declaration(model(), particles=3, theta=LIGHT, x=LIGHT, inner_steps=4, h=1e-3)
        assert simulate(system, "expint", steps=2).attrs["retcode"] == "success"


TOML = """
model = { use = "hierarchical", data = 4, latent = 2 }
system = { use = "svgd_em", particles = 5, bandwidth = 0.7, theta = { h = 0.02 }, x = { h = 0.05 } }
run = { steps = 3, dtype = "float64" }
"""


def test_a_kernel_in_toml(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    Path("own.toml").write_text(TOML)
    assert cli("run", "own.toml", "-q", "--out", "a").code == 0
    assert cli("run", "own.toml", "-q", "--out", "b", "--set", "system.bandwidth='median'").code == 0
    with xr.open_dataset("a/trajectory.nc") as a, xr.open_dataset("b/trajectory.nc") as b:
        assert "by the rbf kernel with l = 0.7" in a.attrs["system"]
        assert "by the rbf kernel with median bandwidth" in b.attrs["system"]
        assert not np.allclose(a.X[-1], b.X[-1])
    out = " ".join(cli("show", "own.toml", "--set", "model.latent=50").out.split())
    assert "f_x combines the scores of a datum's particles by the rbf kernel with l = 0.7" in out
    assert "warning: N = 5 particles under the rbf kernel with l = 0.7 collapse in d = 50 dimensions" in out
    assert "X ← q₀ + G" not in out
    out = cli("show", "own.toml", "--system", "coin_em").out
    assert "X ← q₀ + G / max(A + L, a L) (1 + R / L)" in out
    assert "collapse" not in out
    out = cli("list", "coin_em", "svgd_em").out
    assert "X: coin, by a kernel" in out
    assert "X: overdamped, T = 0, by a kernel" in out
    cited = cli("cite", "svgd_em").out
    assert all(f"@inproceedings{{{key}," in cited for key in ("sharrock2024tuning", "liu2016stein"))
    for given, words in (
        ("kernel='rfb'", "'system.kernel'"),
        ("bandwidth='mean'", "'system.bandwidth"),
        ("bandwith=1.0", "did you mean 'bandwidth'"),
    ):
        code, _, err = cli("run", "own.toml", "-q", "--out", "c", "--set", f"system.{given}")
        assert code == 2
        assert words in err
        assert err.count("\n") == 1


def test_no_work_is_added_where_there_is_no_kernel() -> None:
    """The forces of other systems are the class that they were."""
    system = sdeflow.pgd(model(), particles=3, **NUMBERS)
    assert type(system.force_field).__name__ == "ModelForces"
    assert system.force_field.about == system.force_field.warning == ""


def test_a_score_is_that_of_the_model() -> None:
    """The forces of svgd_em without a kernel's part are those of pgd, on theta to the bit."""
    z = initial_state(sdeflow.pgd(model(), particles=5, **NUMBERS), doubles())
    names = ["theta", "x"]
    plain = sdeflow.pgd(model(), particles=5, **NUMBERS).force_field(0.0, z, names)
    found: dict[str, Tensor] = sdeflow.svgd_em(model(), particles=5, **NUMBERS).force_field(0.0, z, names)
    assert found["theta"].equal(plain["theta"])
    assert not found["x"].allclose(plain["x"])

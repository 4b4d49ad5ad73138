"""Runs in which h, friction and temperature change from step to step.

Oracles: runs of numbers that stay, one after the other; recursions of means and variances; torch's Adam under
torch's schedulers; a run in one piece. The exact maps are in tests/integrators/test_affine_maps.py.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Cli
from pieces import WHOLE
from small import assert_same
from support import KAPPA, SE, T, accepted_pairs, declared, doubles, harmonic_well, needs_kernel
from torch import Tensor

import sdeflow
from sdeflow import Average, Batch, Evaluate, Grid, Save, SdeflowError, Tune, simulate
from sdeflow.config.catalogue import find, integrator_named
from sdeflow.engine.cuda_graph import GraphedSteps
from sdeflow.engine.engine import Engine
from sdeflow.engine.minibatch import MiniBatches
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.prepare import prepare
from sdeflow.system.scheduled import scheduled
from sdeflow.system.system import BlockSystem, initial_state

THETA = {"h": 1e-3, "eta": 20.0, "gamma": 0.5}
X = {"h": 1e-2, "eta": 20.0, "gamma": 0.25}
ENGINES = [("eager", "torch"), pytest.param("fused", "philox", marks=needs_kernel)]
DECAY = {"kind": "exponential", "from": 1e-2, "to": 1e-3}


def toy(name: str = "mpgd", theta: Any = THETA, x: Any = X, h: float | None = None) -> BlockSystem:
    model = Hierarchical(data=6, theta_true=2.0)
    model.held_out = torch.linspace(-1, 1, 4)[:, None]
    return find("systems", name)(model, particles=3, theta=theta, x=x, h=h)


# Against numbers that stay -----------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "noise"), ENGINES)
@pytest.mark.parametrize(("integrator", "name"), accepted_pairs())
def test_a_schedule_that_stays_is_the_number_to_the_bit(
    integrator: str, name: str, engine: str, noise: str
) -> None:
    def staying(numbers: dict[str, float], **more: Any) -> dict[str, Any]:
        kinds = {"kind": "cosine", "from": numbers["h"], "to": numbers["h"]}
        return numbers | {"h": kinds, "gamma": lambda n: numbers["gamma"]} | more

    options: dict[str, Any] = {"steps": 5, "save": Save(every=1), "engine": engine, "noise": noise}
    plain = simulate(toy(name), integrator, **options)
    changed = toy(name, staying(THETA), staying(X, temperature=lambda n: 1.0))
    assert all(b.schedules for b in changed.blocks)
    run = simulate(changed, integrator, **options)
    for variable in plain.data_vars:
        np.testing.assert_array_equal(run[variable], plain[variable])
    for clock in ("time", "time_theta", "time_x"):
        np.testing.assert_allclose(run[clock], plain[clock], rtol=1e-14)


AFTER = {"h": 0.25, "gamma": 4.0}
"""Factors from step 4 on; those of h are powers of 2, so that steps are the same to the bit."""


def in_two(numbers: dict[str, float]) -> tuple[dict[str, Any], dict[str, float]]:
    """A block's numbers as schedules that change at step 4, and as numbers from there on."""
    after = numbers | {key: numbers[key] * factor for key, factor in AFTER.items()}
    pieces = {"kind": "piecewise", "at": [4]}
    return numbers | {key: pieces | {"values": [numbers[key], after[key]]} for key in AFTER}, after


@pytest.mark.parametrize("batch", [None, Batch(4)], ids=str)
@pytest.mark.parametrize(("engine", "noise"), ENGINES)
@pytest.mark.parametrize(
    ("integrator", "name"),
    [
        *((scheme, "mpgd") for scheme, name in accepted_pairs() if name == "mpgd"),
        *((scheme, "pgd") for scheme, name in accepted_pairs() if name == "pgd"),
        ("alternating", "soul"),
        ("alternating", "short_run"),
    ],
)
def test_two_pieces_are_two_runs(
    integrator: str, name: str, engine: str, noise: str, batch: Batch | None
) -> None:
    """The second goes on from the state of the first, on the same noise; to the bit."""
    (theta, theta_after), (x, x_after) = in_two(THETA), in_two(X)
    changing = toy(name, theta, x, h=1e-3)
    first, second = toy(name, h=1e-3), toy(name, theta_after, x_after, h=1e-3)
    scheme, taken = integrator_named(integrator).fitted(first), Engine(engine, noise)

    def stepper(system: BlockSystem) -> Any:
        if batch is not None:
            return MiniBatches(system, scheme, batch, doubles(), taken)
        source = taken.source(system.channels, scheme.noise_spec(system.h), doubles())
        return taken.stepper(system, scheme, source)

    def start(system: BlockSystem) -> Any:
        z = initial_state(system, doubles())
        with torch.no_grad():
            return stepper(system).start(z) if batch is not None else z | scheme.init(system, z)

    whole = advance(stepper(changing), start(changing), 0, 9)
    expected = advance(stepper(second), advance(stepper(first), start(first), 0, 4), 4, 5)
    assert whole.keys() == expected.keys()
    assert all(torch.equal(whole[variable], expected[variable]) for variable in whole)
    assert not torch.equal(whole["X"], advance(stepper(first), start(first), 0, 9)["X"])


# Against recursions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["euler_maruyama", "baoab"])
def test_annealing_in_a_well(scheme: str) -> None:
    """20,000 coordinates under a temperature that falls from 10 T to T: their mean square at the end.

    Euler-Maruyama: S' = (1 - h kappa)^2 S + 2 h T_n. baoab at a friction that leaves nothing of a momentum:
    q' = (1 - h^2 eta kappa / 2) q + h/2 (p + p_n), in numpy by its own letters.
    """
    h, steps, size = 0.2, 30, 20_000
    momentum = None if scheme == "euler_maruyama" else "p"
    well = harmonic_well(h, momentum=momentum, size=size)
    (block,) = well.blocks
    falling = scheduled(block, temperature={"kind": "exponential", "from": 10.0, "to": 1.0, "steps": 20})
    system = BlockSystem([falling], well.force_field, h=h, start=well.given_start)
    run = simulate(system, scheme, steps=steps, save=Save(every=steps), dtype="float64", noise="torch")

    temperatures = [T * 10 ** (1 - min(n / 20, 1)) for n in range(steps)]
    if momentum is None:
        S = 0.0
        for temperature in temperatures:
            S = (1 - h * KAPPA) ** 2 * S + 2 * h * temperature
    else:
        eta, w = block.eta, np.exp(-block.gamma * block.eta * h)
        kick, flight = np.array([[1, 0], [-h / 2 * KAPPA, 1]]), np.array([[1, h / 2 * eta], [0, 1]])
        rest, left = np.diag([1.0, w]), flight @ kick
        covariance = np.diag([0.0, 10 * T / eta])  # the start: q = 0, p at the temperature of step 0
        for temperature in temperatures:
            noise = np.diag([0.0, (1 - w**2) * temperature / eta])
            half = rest @ left @ covariance @ left.T @ rest + noise
            covariance = kick @ flight @ half @ flight.T @ kick.T
        S = float(covariance[0, 0])
    found = float((run["q"][-1] ** 2).mean())
    assert found == pytest.approx(S, abs=SE * S * np.sqrt(2 / size))
    constant = T * 10 / KAPPA if momentum is None else np.inf  # where it would be without annealing
    assert found < 0.3 * constant


class Mean(sdeflow.Model):
    """l = -(y - theta)^2/2 - x^2/2: theta's force is sum_i (y_i - theta), whatever the particles do."""

    latent_shape = (1,)

    def __init__(self) -> None:
        self.data = torch.randn(24, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def init_theta(self, generator: torch.Generator) -> Any:
        return {"mean": torch.tensor(3.0)}

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return -((y[:, None] - theta["mean"]) ** 2 + x**2).sum(-1) / 2


def test_a_step_that_falls_settles_where_a_constant_one_does_not() -> None:
    """pgd by minibatches of 2 of 24 data, h_n = 1/(D (n + 1)): Robbins and Monro's steps.

    theta' = theta + h_n D/b sum_i (y_i - theta), by batches as `MiniBatches` names them. With those h_n
    theta_n is the mean of what was seen, and after each epoch that of all data, to rounding; at a constant h
    it is not.
    """
    model, data, steps = Mean(), 24, 120
    y, truth = model.data[:, 0].numpy(), float(model.data.mean())
    system = sdeflow.pgd(model, particles=1, theta={"h": 0.1}, x={"h": 0.1})
    batches = MiniBatches(system, integrator_named("euler_maruyama"), Batch(2), doubles(), Engine())

    def run(h: Any) -> Any:
        system = sdeflow.pgd(model, particles=1, theta={"h": h}, x={"h": 0.1})
        options: dict[str, Any] = {"steps": steps, "save": Save(every=1), "dtype": "float64"}
        return simulate(system, "euler_maruyama", batch=Batch(2), **options).theta[:, 0].to_numpy()

    def recursion(h: Any) -> list[float]:
        found = [3.0]
        for n in range(steps):
            seen = y[batches.index(n)[0].numpy()]
            found.append(found[-1] + h(n) * data / 2 * float((seen - found[-1]).sum()))
        return found

    falling, constant = run(lambda n: 1 / (data * (n + 1))), run(1 / (data * 4))
    np.testing.assert_allclose(falling, recursion(lambda n: 1 / (data * (n + 1))), rtol=0, atol=1e-12)
    np.testing.assert_allclose(constant, recursion(lambda n: 1 / (data * 4)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(falling[12::12], truth, rtol=0, atol=1e-12)
    assert np.abs(constant[12::12] - truth).min() > 0.01


@pytest.mark.parametrize("name", ["adam", "torch:adam"])
def test_the_learning_rate_of_an_optimizer(name: str) -> None:
    """Adam under a cosine is torch's under torch's; theta's force does not see the particles."""
    model, steps = Mean(), 20
    h = {"kind": "cosine", "from": 0.3, "to": 0.01}
    system = sdeflow.pgd(model, particles=1, theta={"h": h, "optimizer": name}, x={"h": 0.1})
    run = simulate(system, "euler_maruyama", steps=steps, save=Save(every=1), dtype="float64")
    theta = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 0.01)
    expected = [3.0]
    for _ in range(steps):
        theta.grad = (theta.detach() - model.data[:, 0]).sum()[None]
        optimizer.step()
        scheduler.step()
        expected.append(theta.item())
    np.testing.assert_allclose(run.theta[:, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(
        run.h_theta[1:], 0.01 + 0.29 * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    )


# What a run says and keeps -------------------------------------------------------------------------------


def test_own_times_and_numbers_are_recorded() -> None:
    """time ticks by the reference step, h of theta's step 0; a block's own time is the sum of its steps."""
    theta = THETA | {"h": {"kind": "linear", "from": 1e-3, "to": 2e-4}}
    x = X | {
        "gamma": {"kind": "piecewise", "at": [4], "values": [0.5, 0.25]},
        "temperature": lambda n: 1 / (n + 1),
    }
    run = simulate(toy(theta=theta, x=x), steps=8, save=Save(every=2))
    steps = 1e-3 - 8e-4 * np.arange(8) / 8
    np.testing.assert_allclose(run.time, 1e-3 * run.step, rtol=1e-14)
    np.testing.assert_allclose(run.time_theta, np.concatenate([[0], np.cumsum(steps)])[::2], rtol=1e-14)
    np.testing.assert_allclose(run.time_x, 1e-2 * run.step, rtol=1e-14)
    np.testing.assert_allclose(run.h_theta, steps[[0, 1, 3, 5, 7]])
    np.testing.assert_array_equal(run.gamma_x, [0.5, 0.5, 0.5, 0.25, 0.25])
    np.testing.assert_allclose(run.temperature_x, 1 / np.array([1, 2, 4, 6, 8]))
    assert "h_x" not in run
    assert "h=linear from 0.001 to 0.0002 over 8 steps" in run.attrs["system"]
    assert "gamma=0.5, from step 4 on 0.25" in run.attrs["system"]
    assert "T=1 times <lambda> (a function, " in run.attrs["system"]


CHANGING = THETA | {"h": {"kind": "cosine", "from": 1e-3, "to": 1e-4}, "gamma": lambda n: 0.5 + n % 3}
HEATED = X | {
    "h": {"kind": "warm-up", "to": 1e-2, "steps": 4},
    "temperature": {"kind": "linear", "from": 5, "to": 1},
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch": Batch(2, "substeps", 3), "evaluate": Evaluate(6, 2), "replicas": 2},
        {"average": Average(0.9), "batch": Batch(4), "evaluate": Evaluate(3)},
    ],
    ids=str,
)
@pytest.mark.parametrize("scheme", ["baoab", "expint"])
def test_a_run_in_pieces(stop_before: Any, tmp_path: Path, scheme: str, options: dict[str, Any]) -> None:
    """Stopped and resumed, then resumed to go further: schedules over the run's steps stay as they were."""
    out, options = tmp_path / "run", WHOLE | options
    whole = simulate(toy(theta=CHANGING, x=HEATED), scheme, **options)
    for n in (1, 5, 9):
        stop_before(n)
        with pytest.raises(KeyboardInterrupt, match="sdeflow resume"):
            simulate(toy(theta=CHANGING, x=HEATED), scheme, out=out, resume=True, **options)
    stop_before(None)
    assert_same(simulate(toy(theta=CHANGING, x=HEATED), scheme, out=out, resume=True, **options), whole)

    further = options | {"steps": 17}
    fixed = {"h": CHANGING["h"] | {"steps": WHOLE["steps"]}}
    heated = {"temperature": HEATED["temperature"] | {"steps": WHOLE["steps"]}}
    expected = simulate(toy(theta=CHANGING | fixed, x=HEATED | heated), scheme, **further)
    longer = simulate(toy(theta=CHANGING, x=HEATED), scheme, out=out, resume=True, **further)
    assert_same(longer, expected)
    assert float(longer.h_theta[-1].max()) == 1e-4


def test_another_function_is_another_run(tmp_path: Path) -> None:
    simulate(toy(theta=CHANGING), "baoab", out=tmp_path / "run", **WHOLE)
    other = CHANGING | {"gamma": lambda n: 0.5 + n % 2}
    with pytest.raises(SdeflowError, match="is of another run: system was"):
        simulate(toy(theta=other), "baoab", out=tmp_path / "run", resume=True, **(WHOLE | {"steps": 15}))


@pytest.mark.parametrize(("engine", "noise"), ENGINES)
def test_held_out_particles_have_the_numbers_of_the_last_step(engine: str, noise: str) -> None:
    """After step 3 they move by what a run of those numbers alone moves them by."""
    steps = 3
    x = X | {"h": lambda n: 1e-2 / 2**n, "gamma": lambda n: 0.25 + n, "temperature": lambda n: 4.0**-n}
    last = {"h": 1e-2 / 4, "eta": 20.0, "gamma": 2.25, "temperature": 1 / 16}
    options = {"evaluate": Evaluate(steps, 2), "save": Save(every=steps), "engine": engine, "noise": noise}

    def moved(numbers: Any) -> Tensor:
        run = declared(toy(x=numbers, h=1e-3), "expint", steps=steps, dtype="float64", **options)
        ready = prepare(run)
        z = ready.state | {
            name: ready.state[name].clone().fill_(0.5) for name in ("held_out.X", "held_out.U")
        }
        assert ready.held_out is not None
        return ready.held_out.move(z, steps)["held_out.X"]

    assert torch.equal(moved(x), moved(last))
    assert not torch.equal(moved(x), moved(X))


def test_other_blocks_may_leave_theirs_to_the_run(stop_before: Any, tmp_path: Path) -> None:
    """theta's h falls while x's is chosen; to the bit in pieces, and chosen as it is beside a number."""

    def system(h: Any) -> BlockSystem:
        return sdeflow.pgd(Hierarchical(data=6), particles=3, theta={"h": h, "optimizer": "adam"})

    options: dict[str, Any] = {"steps": 30, "save": Save(every=5, checkpoint=0.0), "tune": Tune(20)}
    falling = {"kind": "linear", "from": 0.1, "to": 0.01}
    whole = simulate(system(falling), **options)
    stop_before(22)
    with pytest.raises(KeyboardInterrupt):
        simulate(system(falling), out=tmp_path / "run", **options)
    stop_before(None)
    assert_same(simulate(system(falling), out=tmp_path / "run", resume=True, **options), whole)
    assert float(whole.h_x[0]) == float(simulate(system(0.1), **options).h_x[0])
    np.testing.assert_allclose(whole.h_theta[1:], 0.1 - 0.09 * np.arange(4, 30, 5) / 30)
    np.testing.assert_allclose(whole.time_theta[-1], (0.1 - 0.09 * np.arange(30) / 30).sum())


# What does not go together -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theta", "x", "options", "sentence"),
    [
        (
            THETA | {"h": DECAY},
            X,
            {"integrator": "torchsde:heun"},
            "and h of theta is a schedule. These can: ",
        ),
        (THETA | {"h": DECAY}, X, {"grid": Grid(gamma=[0.1])}, "a grid is of numbers that stay"),
        (
            THETA,
            X | {"h": DECAY},
            {"engine": "compiled", "batch": Batch(2, "substeps")},
            "h of block 'x', which catches up, is a schedule: give engine 'auto', 'fused' or 'eager'",
        ),
        (
            THETA,
            X | {"gamma": DECAY},
            {"batch": Batch(2, "one_step")},
            "give batch.catch_up = 'substeps' or 'off'",
        ),
        (
            THETA,
            X | {"h": DECAY},
            {"batch": Batch(2, "srock")},
            "'srock' takes several steps as one, and h of block 'x' is a schedule",
        ),
        (
            {"h": DECAY},
            X,
            {},
            "block 'theta' has a schedule of h, and leaves eta, gamma to the run's warm-up",
        ),
        (THETA | {"temperature": 2.0}, X, {}, "'theta' has the temperature 0"),
        (THETA | {"temperature": DECAY}, X, {}, "'theta' has the temperature 0"),
        (THETA | {"eta": DECAY}, X, {}, "block 'theta': eta must be a number"),
        (THETA, X | {"temperature": -1.0}, {}, "temperature must not be negative, given -1.0"),
        (THETA, X | {"temperature": "hot"}, {}, "temperature must be a number, given 'hot'"),
        (THETA | {"h": lambda n: 1e-3 - 5e-4 * n}, X, {}, "gives 0 at step 2"),
        (THETA | {"h": lambda n: 1e-3 if n < 4 else None}, X, {}, "the schedule at step 4 must be a number"),
        (THETA | {"h": lambda n: [1e-3][n]}, X, {}, "the schedule fails with IndexError"),
        (THETA | {"gamma": lambda n: 0.5 - n}, X, {}, "gamma must be at least 0 and finite in every step"),
        (THETA | {"h": DECAY | {"to": float("inf")}}, X, {"steps": 9}, "h must be positive and finite"),
        (
            THETA | {"h": {"kind": "cosine", "from": 1e-3, "to": 0, "steps": 5}},
            X,
            {"steps": 6},
            "h must be positive and finite in every step, and its schedule gives 0 at step 5",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(theta: Any, x: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SdeflowError) as told:
        simulate(toy(theta=theta, x=x), **({"integrator": "baoab", "steps": 6} | options))
    assert sentence in str(told.value)


def test_a_learning_rate_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name it is refused; 'auto' takes another engine."""
    monkeypatch.setattr("sdeflow.engine.engine.LONG", 3)
    numbers: dict[str, Any] = {"theta": {"h": DECAY, "optimizer": "adam"}, "x": {"h": 1e-2}}
    with pytest.raises(SdeflowError, match="for the learning rate h of block 'theta' is a schedule: give"):
        simulate(toy("pgd", **numbers), steps=3, engine="compiled")
    assert simulate(toy("pgd", **numbers), steps=3).attrs["engine"] != "compiled"


@needs_kernel
def test_steps_by_schedules_are_not_captured() -> None:
    """A graph would repeat the numbers of the steps that it was made of."""
    for x, kind in ((X, GraphedSteps), (X | {"h": DECAY}, EagerSteps)):
        system, scheme, engine = toy(x=x), integrator_named("expint"), Engine("fused", "philox")
        noise: Any = engine.source(system.channels, scheme.noise_spec(system.h), doubles())
        noise.counter = torch.zeros(1, dtype=torch.int64)
        assert type(engine.stepper(system, scheme, noise)) is kind


def test_a_step_may_fall_to_0_at_the_end() -> None:
    theta = THETA | {"h": {"kind": "cosine", "from": 1e-3, "to": 0.0}}
    assert simulate(toy(theta=theta), "baoab", steps=6).attrs["retcode"] == "success"


# In a file -----------------------------------------------------------------------------------------------

PROBLEM = """
[model]
use = "hierarchical"
data = 4
[system]
use = "mpgd"
particles = 2
theta = { h = { kind = "cosine", from = 1e-3, to = 1e-4 }, eta = 20.0, gamma = 0.5 }
[system.x]
h = 1e-2
eta = 20.0
gamma = 0.5
temperature = { kind = "exponential", from = 10, to = 1, steps = 6 }
[run]
steps = 8
[save]
every = 2
"""


def test_a_file_with_schedules(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder's config.toml says over how many steps they go, and running that gives the same numbers."""
    monkeypatch.chdir(tmp_path)
    Path("problem.toml").write_text(PROBLEM)
    shown = cli("show", "problem.toml").out
    assert "h of theta: cosine from 0.001 to 0.0001 over 8 steps" in shown
    assert "temperature of x: 1 times exponential from 10 to 1 over 6 steps" in shown
    assert cli("run", "problem.toml", "-q", "--out", "run").code == 0
    written = tomllib.loads(Path("run/config.toml").read_text())
    assert written["system"]["theta"]["h"] == {"kind": "cosine", "from": 1e-3, "to": 1e-4, "steps": 8}
    assert cli("resume", "run", "-q", "--steps", 4).code == 0
    assert cli("run", "run/config.toml", "-q", "--out", "again").code == 0
    assert_same(sdeflow.open_run("again"), sdeflow.open_run("run"))
    assert cli("run", "problem.toml", "-q", "--out", "third").code == 0
    assert cli("run", "problem.toml", "-q", "--out", "third", "--resume", "--steps", 12).code == 0
    assert_same(sdeflow.open_run("third"), sdeflow.open_run("run"))
    assert float(sdeflow.open_run("third").h_theta[-1]) == 1e-4


def test_tune_leaves_a_schedule(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes the numbers of the other block beside it."""
    monkeypatch.chdir(tmp_path)
    theta = """h = { kind = "linear", from = 0.1, to = 0.01 }, optimizer = "adam" """
    model = 'model = { use = "hierarchical", data = 4 }\n'
    Path("problem.toml").write_text(
        f'{model}[system]\nuse = "pgd"\nparticles = 2\ntheta = {{ {theta} }}\n[run]\nsteps = 9\n'
    )
    told = cli("tune", "problem.toml", "--steps", 2, "--out", "tuned.toml")
    assert told.code == 0
    assert "a schedule" in told.out
    written = tomllib.loads(Path("tuned.toml").read_text())["system"]
    assert written["theta"] == {"h": {"kind": "linear", "from": 0.1, "to": 0.01}, "optimizer": "adam"}
    assert 0 < written["x"]["h"] < 1


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("system.theta.h={kind='cosin', from=1, to=2}", "block 'theta': h: unknown kind of schedule 'cosin'"),
        ("system.theta.h='fast'", "'system.theta.h"),
        ("system.theta.eta={kind='linear', from=1, to=2}", "'system.theta.eta"),
        ("system.theta.gamma={kind='linear', from=0, to=-2}", "gamma must be at least 0"),
    ],
)
def test_mistakes_in_a_file(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("problem.toml").write_text(PROBLEM)
    code, _, err = cli("run", "problem.toml", "--set", setting)
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err

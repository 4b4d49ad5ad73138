"""What a step costs, told before a run, of models whose cost is known.

A clock of our own goes on by a + b B seconds when a log-joint is called with B data. So the law that is
assumed holds, and what is told of it is exact to roundoff, but where the docstring says that it cannot be.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sdeflow import Batch, Model, SDESystem, mpgd
from sdeflow.config.run import Run
from sdeflow.config.schema import RunSection
from sdeflow.problems.generic import OrnsteinUhlenbeck
from sdeflow.simulation.timing import seconds_a_step

now = 0.0
seen: list[int] = []
"""Of how many data each call was."""


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdeflow.simulation.timing.time", SimpleNamespace(perf_counter=lambda: now))
    seen.clear()


class Slow(Model):
    """x_i ~ N(theta, 1), y_i | x_i ~ N(x_i, 1)."""

    latent_shape = (1,)

    def __init__(self, data: int, a: float, b: float) -> None:
        self.data, self.a, self.b = torch.zeros(data, 1), a, b

    def init_theta(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"theta": torch.zeros(())}

    def log_joint(self, theta, x, y):  # type: ignore[no-untyped-def]
        global now
        now += self.a + self.b * len(x)
        seen.append(len(x))
        return -((x - theta["theta"]) ** 2 + (y[:, None] - x) ** 2).sum(-1) / 2


def declared(
    model: Model, scheme: str = "expint_shared", batch: Batch | None = None, engine: str = "eager"
) -> Run:
    motion = {"h": 0.01, "eta": 1.0, "gamma": 1.0}
    system = mpgd(model, particles=2, theta=motion, x=motion)
    options = RunSection(device="cpu", steps=200_000, engine=engine)  # type: ignore[arg-type]
    return Run.declare(system, scheme, options, batch=batch)


@pytest.mark.parametrize(
    ("data", "scheme", "batch", "size", "evaluations"),
    [
        (200, "expint_shared", None, 200, 1),
        (200, "expint", None, 200, 2),
        (200, "baoab", None, 200, 1),
        (2000, "expint_shared", Batch(150), 150, 1),
        (2000, "baoab", Batch(150), 150, 2),
        (2000, "expint", Batch(150, "one_step"), 150, 3),
        (2000, "expint", Batch(150, "substeps", 4), 150, 6),
    ],
)
@pytest.mark.parametrize(("a", "b"), [(0.02, 0.001), (0.0, 0.01), (1e-4, 1e-6)])
def test_a_step_of_many_data_is_told_from_steps_of_few(
    data: int, scheme: str, batch: Batch | None, size: int, evaluations: int, a: float, b: float
) -> None:
    told = seconds_a_step(declared(Slow(data, a, b), scheme, batch))
    assert told == pytest.approx(evaluations * (a + b * size), rel=1e-9)
    assert (
        max(seen) == next((k for k in (1, 2, 4, 8, 16, 32, 64, 128) if a + b * k >= 2 * (a + b)), 0) or size
    )


@pytest.mark.parametrize("size", [1, 2, 24])
def test_few_data_are_timed_all(size: int) -> None:
    """Where the fixed cost is nearly all of it."""
    assert seconds_a_step(declared(Slow(size, 0.02, 1e-5))) == pytest.approx(0.02 + 1e-5 * size, rel=1e-9)
    assert max(seen) == size


@pytest.mark.parametrize("share", [0.5, 0.75, 1.0])
def test_one_long_step_is_enough(share: float) -> None:
    """Eight seconds with one datum, of which the data take a share that is not known: within half."""
    model = Slow(100, 8 - 8 * share, 8 * share)
    told = seconds_a_step(declared(model))
    assert seen == [1]
    assert told == pytest.approx(8 + 99 * 6, rel=1e-9)
    assert told == pytest.approx(model.a + 100 * model.b, rel=0.5)


def test_a_time_that_jumps_about_gives_no_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two data took less time than one, or far more than twice as much."""
    run = declared(Slow(100, 1.0, 0.0))
    for two, told in ((2.5, 2.5 + 98 * 2.5 / 4), (30.0, 30 + 98 * 15)):
        monkeypatch.setattr("sdeflow.simulation.timing._seconds", lambda _, __, b, t=two: {1: 3.0, 2: t}[b])
        assert seconds_a_step(run) == told


def test_timing_draws_nothing_and_leaves_the_threads() -> None:
    run = declared(Slow(20, 0.1, 0.0), batch=Batch(5, "one_step"))
    before = torch.get_rng_state(), torch.get_num_threads()
    seconds_a_step(run)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == torch.get_num_threads()


@pytest.mark.parametrize("engine", ["compiled", "auto"])
def test_a_compiled_run_is_timed_without_compiling(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = declared(Slow(20, 0.1, 0.0), batch=Batch(5), engine=engine)
    assert run.engine.name == "compiled"
    monkeypatch.setattr("torch.compile", None)
    assert seconds_a_step(run) == pytest.approx(0.1, rel=1e-9)


def test_what_cannot_be_timed() -> None:
    sde = SDESystem(OrnsteinUhlenbeck(), h=0.01, paths=3)
    assert seconds_a_step(Run.declare(sde, "euler_maruyama", RunSection(device="cpu"))) is None
    model = Slow(3, 0.1, 0.1)
    run = declared(model)
    model.a = None  # type: ignore[assignment]  # so that the log-joint fails
    assert seconds_a_step(run) is None

"""A step written down as operations: replayed it is the step, and what it depends on is in its text."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from light import cooled, decoder, energy, scheduled, toy
from small import LIGHT
from torch import Tensor

from sdeflow import Batch, Grid, mpgd
from sdeflow.config.run import Run
from sdeflow.config.schema import RunSection
from sdeflow.engine.compiled import CompiledSteps
from sdeflow.engine.tape import Tape, Unkeepable, graph_of, record
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.prepare import prepare
from sdeflow.state import State


def compiled(system: Any, integrator: str = "expint", **options: Any) -> tuple[CompiledSteps, State]:
    """What takes the steps of a run, before any is compiled, and the start."""
    own = {name: options.pop(name) for name in ("batch", "grid") if name in options}
    section = RunSection(**{"steps": 12, "device": "cpu", "engine": "compiled", "dtype": "float64"} | options)
    prepared = prepare(Run.declare(system, integrator, section, **own))
    steps: Any = prepared.stepper
    steps = steps if isinstance(steps, CompiledSteps) else steps.compiled
    return steps, steps._begun(prepared.state)


def tape(system: Any, integrator: str = "expint", **options: Any) -> Tape:
    steps, z = compiled(system, integrator, **options)
    return record(steps._transition, z, [x[0] for x in steps._draw(0, 1)])


@pytest.mark.parametrize(
    ("system", "integrator", "options"),
    [
        (toy, "expint", {"noise": "torch"}),
        *((scheduled, name, {}) for name in ("alternating", "euler_maruyama", "nag", "quicsort", "ubu")),
        (scheduled, "baoab", {"batch": Batch(4), "replicas": 2}),
        (cooled, "expint", {"batch": Batch(4, "one_step", cap=3)}),
        (decoder, "expint_shared", {"replicas": 3}),
        (decoder, "ubu", {"batch": Batch(4, "substeps", cap=2)}),
        (decoder, "expint_shared", {"batch": Batch(4, "srock", cap=3), "replicas": 2}),
        (energy, "expint", {}),
        (toy, "ubu", {"grid": Grid(gamma=(0.5, 1.0))}),
        (toy, "expint", {"grid": Grid(h=(1e-3, 2e-3), temperature=(0.5, 2.0)), "batch": Batch(2)}),
    ],
)
def test_steps_are_those_of_their_tape(system: Any, integrator: str, options: dict[str, Any]) -> None:
    """Three steps by what its text says, to 1e-14 of each variable: a + alpha b rounds twice, not once."""
    steps, z = compiled(system(), integrator, **options)
    draws = steps._draw(0, 3)
    found = record(steps._transition, z, [x[0] for x in draws])
    assert record(steps._transition, z, [x[2] for x in draws]).text() == found.text()  # of no one step
    with torch.no_grad():
        after = graph_of(json.loads(found.text()), 3)(*z.values(), *draws, *found.constants)
        for i in range(3):
            z = steps._transition(z, [x[i] for x in draws])
    for one, expected in zip(after, z.values(), strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-14 * float(expected.abs().max()))


class Wider(Hierarchical):
    """Another model by one operation in its score."""

    def score_x(self, theta: Any, x: Tensor, y: Any) -> Tensor:
        return super().score_x(theta, x, y) * 2 / 2


def test_a_text_is_of_the_operations() -> None:
    """It is the same for other seeds, data and numbers of blocks, and another for another model or scheme."""

    def of(model: Any, gamma: float = 0.7, **options: Any) -> str:
        motion = LIGHT | {"gamma": gamma}
        return tape(mpgd(model, particles=4, theta=LIGHT, x=motion), **options).text()

    same = of(Hierarchical(data=6))
    assert of(Hierarchical(data=6, data_seed=3), gamma=0.9, seed=4) == same
    others = (
        of(Wider(data=6)),
        of(Hierarchical(data=7)),
        of(Hierarchical(data=6), dtype="float32"),
        of(Hierarchical(data=6), integrator="ubu"),
        of(Hierarchical(data=6), replicas=2),
        of(Hierarchical(data=6), batch=Batch(3)),
    )
    assert len({same, *others}) == 7


def step_of(change: Any) -> Any:
    return lambda z, draws: {"x": change(z["x"], draws[0])}


KEPT = torch.ones(3)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x, xi: x if float(x.sum()) > 0 else -x, "looks at values"),
        (lambda x, xi: x if bool((x > 0).any()) else -x, "looks at values"),
        (lambda x, xi: x * x.numpy().max(), "looks at values .Tensor.numpy"),
        (lambda x, xi: x * max(x.tolist()), "looks at values .Tensor.tolist"),
        (lambda x, xi: x if torch.equal(x, xi) else xi, "looks at values"),
        (lambda x, xi: x + x[x > 0].sum(), "shape depends on values"),
        (lambda x, xi: x + torch.randn(3), "draws random numbers itself"),
        (lambda x, xi: x.add_(xi), "changes a tensor in place that it was given"),
        (lambda x, xi: KEPT.view(3).mul_(2) + x, "changes a tensor in place that it was given"),
        (lambda x, xi: torch.add(x, xi, out=KEPT) + x, "changes a tensor in place that it was given"),
    ],
)
def test_what_is_no_list_of_operations(change: Any, why: str) -> None:
    with pytest.raises(Unkeepable, match=why):
        record(step_of(change), {"x": torch.ones(3)}, [torch.ones(3)])


def test_a_step_that_catches_the_refusal_is_refused() -> None:
    def caught(x: Tensor, xi: Tensor) -> Tensor:
        try:
            return x * float(x.sum())
        except Exception:
            return x * 2

    with pytest.raises(Unkeepable, match="looks at values"):
        record(step_of(caught), {"x": torch.ones(3)}, [torch.ones(3)])


def test_variables_may_be_one_tensor() -> None:
    one = torch.ones(3)

    def step(z: State, draws: Any) -> State:
        return {"a": z["a"] + 0.5 * draws[0], "b": z["b"], "c": z["a"] * 2}

    found = record(step, {"a": one, "b": one, "c": one}, [one])
    after = graph_of(json.loads(found.text()), 2)(one, 3 * one, one, torch.ones(2, 3), *found.constants)
    for value, expected in zip(after, (2.0, 3.0, 3.0), strict=True):
        assert torch.equal(value, expected * one)


@pytest.mark.parametrize(("after", "other"), [(("x", "before"), "before"), ((), "x")])
def test_a_step_that_changes_which_variables_there_are(after: tuple[str, ...], other: str) -> None:
    with pytest.raises(Unkeepable, match=f"changes which variables the state has .{other}"):
        record(lambda z, draws: dict.fromkeys(after, 2 * z["x"]), {"x": torch.ones(3)}, [torch.ones(3)])


def test_an_error_of_the_step_is_its_own() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        record(step_of(lambda x, xi: x + torch.ones(2)), {"x": torch.ones(3)}, [torch.ones(3)])

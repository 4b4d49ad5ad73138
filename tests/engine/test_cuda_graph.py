"""Steps of a graph, with a stand-in for what is captured: tests/device has what a device does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from device.stand_in import CountingKernel, again
from small import MOTION, tiny
from support import doubles, needs_kernel

from sdeflow import Batch, Save, kiplmc, simulate
from sdeflow.config.catalogue import find, integrator_named
from sdeflow.engine.cuda_graph import MOST, GraphedSteps
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.errors import Uncompilable
from sdeflow.integrators.expint import ExpInt
from sdeflow.noise import philox_source
from sdeflow.noise.philox_source import PhiloxNoise
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.state import State
from sdeflow.system.increments import Noise
from sdeflow.system.system import BlockSystem, initial_state

pytestmark = needs_kernel

Capture = Callable[[Callable[[], None]], Callable[[], None]]


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(philox_source, "find_kernel", lambda device: CountingKernel())


def steps_of(
    system: BlockSystem, scheme: str, every: int = 16, capture: Capture = again
) -> tuple[EagerSteps, GraphedSteps, State]:
    """Steps one by one and of a graph, and a state in two replicas that they start from."""
    integrator, replicas = integrator_named(scheme), doubles([3, 2**40])
    noise = PhiloxNoise(system.channels, integrator.noise_spec(system.h), replicas, fused=True)
    step, z = EagerSteps(system, integrator, noise), initial_state(system, replicas)
    assert noise.counter is not None
    counters = [noise.counter]
    graphed = GraphedSteps(
        lambda z, k, _: step(z, k), counters, lambda n, count: [], every=every, capture=capture
    )
    return step, graphed, z | integrator.init(system, z)


def stein() -> BlockSystem:
    return find("systems", "svgd_em")(Hierarchical(data=3), particles=2, theta=MOTION, x=MOTION)


@pytest.mark.parametrize("scheme", ["expint", "ghvb"])
@pytest.mark.parametrize("every", [16, 7, 1])
def test_steps_of_a_graph_are_those_one_by_one(scheme: str, every: int) -> None:
    """Over a step that no 32 bits hold, and where a scheme keeps the state before."""
    motion = {"h": 1e-2, "eta": 30.0, "gamma": 1.0}
    system = (
        stein() if scheme == "ghvb" else kiplmc(Hierarchical(data=3), particles=2, theta=motion, x=motion)
    )
    step, graphed, z = steps_of(system, scheme, every)
    start, first = {name: value.clone() for name, value in z.items()}, 2**32 - 16
    with torch.no_grad():
        end, alone = z, z
        for n in range(first, first + 40):
            alone = step(alone, n) if scheme == "ghvb" else one_by_one(step, graphed, alone, n)
    end = advance(graphed, z, first, 40)
    assert all(torch.equal(z[name], start[name]) for name in z)
    assert all(not torch.equal(end[name], z[name]) for name in system.axes)
    for name, value in end.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-12, atol=1e-12)


def one_by_one(step: EagerSteps, graphed: GraphedSteps, z: State, n: int) -> State:
    """A step whose noise does not look at what the graph has left in its counter."""
    (counter,) = graphed._counters
    counter.zero_()
    return step(z, n)


def test_a_state_that_comes_from_elsewhere_is_taken() -> None:
    """Not only the one that the graph gave last."""
    _, graphed, z = steps_of(tiny(), "expint")
    end = advance(graphed, z, 0, 32)
    middle = advance(graphed, z, 0, 16)
    again_ = advance(graphed, middle, 16, 16)
    assert all(torch.equal(end[name], again_[name]) for name in end)


def test_a_stride_fills_the_way_to_a_snapshot() -> None:
    strides = {every: steps_of(tiny(), "expint", every)[1].stride for every in (1, 10, 64, 97, 200)}
    assert strides == {1: 1, 10: 10, 64: MOST, 97: 1, 200: 50}


class Damped(ExpInt):
    """A scheme that looks at the time, and a number of its own: theta moves by exp(-t) of what it would."""

    name = "damped"

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        new = super().step(system, t, z, h, noise)
        weight = torch.exp(-torch.as_tensor(t, dtype=z["theta"].dtype))
        return new | {"theta": z["theta"] + weight * (new["theta"] - z["theta"])}


class Adding(ExpInt):
    """A scheme that adds to the state what its `init` does not give."""

    name = "adding"

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        return super().step(system, t, z, h, noise) | {"before": z["theta"]}


@pytest.mark.parametrize("batch", [None, Batch(2)])
def test_a_scheme_that_looks_at_the_time_sees_that_of_its_step(
    batch: Batch | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through `simulate`, all data and by minibatches, against the eager engine."""
    monkeypatch.setattr("sdeflow.engine.cuda_graph.cuda_graph", again)
    options: dict[str, Any] = {"steps": 130, "noise": "philox", "dtype": "float64", "batch": batch}
    save = Save(every=64, data="all", particles="all")
    eager, fused = (
        simulate(tiny(), Damped(), engine=engine, save=save, device="cpu", **options)
        for engine in ("eager", "fused")
    )
    np.testing.assert_allclose(fused.theta, eager.theta, rtol=1e-12)
    np.testing.assert_allclose(fused.X, eager.X, rtol=1e-12, atol=1e-12)


def test_a_variable_that_is_added_on_the_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdeflow.engine.cuda_graph.cuda_graph", again)
    with pytest.raises(Uncompilable, match=r"adds before to the state.*init"):
        simulate(tiny(), Adding(), steps=20, engine="fused", device="cpu")


def test_a_step_that_cannot_be_captured_says_so() -> None:
    def refuse(run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    _, graphed, z = steps_of(tiny(), "expint", capture=refuse)
    with pytest.raises(Uncompilable, match=r"a CUDA graph \(operation not permitted .*'eager'"):
        graphed(z, 0)

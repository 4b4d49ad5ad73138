"""The time of a step reaches forces and drift, whatever computes the step.

Oracles: a force that is the time alone moves a block by sums of times, at T = 0 to rounding; a minibatch of
all data is no minibatch, with forces that are scaled by the time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support import declared, doubles, needs_kernel
from torch import Tensor

from sdeflow import Batch, Integrator, Save, SDESystem, SystemDeclaration, mpgd, simulate
from sdeflow.config.catalogue import integrator_named
from sdeflow.engine.cuda_graph import GraphedSteps
from sdeflow.engine.engine import Engine
from sdeflow.engine.step import EagerSteps
from sdeflow.errors import SdeflowError
from sdeflow.model.forces import ModelForces
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.prepare import prepare
from sdeflow.state import State
from sdeflow.system.published import overdamped
from sdeflow.system.system import BlockSystem

Change = Callable[[Any, Tensor], Tensor]


class Timed(ModelForces):
    """The forces of a model, changed by a function of the time."""

    timed = True

    def __init__(self, model: Any, particles: int, change: Change, **more: Any) -> None:
        super().__init__(model, particles, **more)
        self.change = change

    def to(self, dtype: torch.dtype, device: torch.device) -> Timed:
        return Timed(self.model.to(dtype, device), self.n_particles, self.change, _layout=self.parameters)

    def __call__(self, t: float, z: State, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: self.change(t, f) for name, f in super().__call__(t, z, names).items()}


def alone(t: Any, f: Tensor) -> Tensor:
    """The time in place of a force."""
    return 0 * f + t


def scaled(t: Any, f: Tensor) -> Tensor:
    return f * (1 + 5 * t)


def system(
    change: Change, declaration: SystemDeclaration = mpgd, data: int = 6, **motion: Any
) -> BlockSystem:
    model = Hierarchical(data=data, theta_true=1.0, x_start=1.0)
    motion = {"h": 0.1} | motion
    found = declaration(model, particles=2, theta=motion, x=motion)
    return BlockSystem(found.blocks, Timed(model, 2, change), h=found.h)


cold = SystemDeclaration("cold", overdamped("0"), overdamped("0"), "")
COMPILER = shutil.which("g++") or shutil.which("c++")
ENGINES = [
    "eager",
    "fused",
    pytest.param(
        "compiled",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler"),
        ],
    ),
]
H, STEPS = 0.1, 6


def end(system: Any, scheme: Any = "euler_maruyama", *, engine: str = "eager", **options: Any) -> Any:
    """A run in float64 to its end, by Philox."""
    save = Save(every=STEPS, data="all", particles="all")
    own = {"steps": STEPS, "dtype": "float64", "noise": "philox", "save": save}
    return simulate(system, scheme, engine=engine, **own | options)


def visits(batch: Batch) -> list[list[int]]:
    """By step, the data of a run's minibatches."""
    run = declared(system(alone, cold), "euler_maruyama", steps=STEPS, batch=batch)
    stepper: Any = prepare(run).stepper
    return [stepper.index(n)[0].tolist() for n in range(STEPS)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [None, 4])
def test_forces_see_the_time(engine: str, size: int | None) -> None:
    """q' = t by Euler's method: h times the sum of the times at which a block was moved."""
    batch = None if size is None else Batch(size)
    found = end(system(alone, cold), engine=engine, batch=batch)
    seen = [range(6)] * STEPS if batch is None else visits(batch)
    moved = [H * sum(H * n for n in range(STEPS) if i in seen[n]) for i in range(6)]
    np.testing.assert_allclose(
        found.X[-1] - found.X[0], np.tile(np.reshape(moved, (6, 1, 1)), (1, 2, 1)), atol=1e-15
    )
    np.testing.assert_allclose(found.theta[-1], H * H * 15, rtol=1e-14)


@pytest.mark.parametrize("catch_up", ["one_step", "substeps", "srock"])
def test_catching_up_holds_the_time(catch_up: Any) -> None:
    """Of a force that does not change over it, k missed steps of h are k h t whatever takes them."""
    batch = Batch(2, catch_up, cap=4)
    found = end(system(alone, cold), batch=batch)
    seen, moved = visits(batch), np.zeros(6)
    for i in range(6):
        last = 0
        for n in range(STEPS):
            if i in seen[n]:
                moved[i] += H * (min(n - last, 4) + 1) * (H * n)
                last = n + 1
    np.testing.assert_allclose((found.X[-1] - found.X[0])[:, 0, 0], moved, atol=1e-14)


@pytest.mark.parametrize("scheme", ["baoab", "obabo", "ubu", "quicsort", "expint", "alternating", "nag"])
def test_a_minibatch_of_all_data_keeps_the_time(scheme: str) -> None:
    """To the bit. baoab and obabo keep forces, which a minibatch asks for anew, at its own time."""
    whole = end(system(scaled, eta=1.0, gamma=1.0), scheme)
    batch = end(system(scaled, eta=1.0, gamma=1.0), scheme, batch=Batch(6))
    timeless = end(system(lambda t, f: f, eta=1.0, gamma=1.0), scheme)
    np.testing.assert_array_equal(batch.theta, whole.theta)
    np.testing.assert_array_equal(batch.X, whole.X)
    assert abs(timeless.theta[-1] - whole.theta[-1]) > 1e-2


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 4])
def test_a_compiled_splitting_sees_the_time(size: int | None) -> None:
    """Within its steps too, and where forces that it kept are of another batch."""
    options = {"batch": None if size is None else Batch(size)}
    found, eager = (
        end(system(scaled, eta=1.0, gamma=1.0), "baoab", engine=engine, **options)
        for engine in ("compiled", "eager")
    )
    np.testing.assert_allclose(found.X, eager.X, rtol=1e-12)
    np.testing.assert_allclose(found.theta, eager.theta, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_the_drift_of_a_plain_sde_sees_the_time(engine: str) -> None:
    class Clock:
        def drift(self, t: float, x: Tensor) -> Tensor:
            return torch.full_like(x, t)

        def diffusion(self, t: float, x: Tensor) -> float:
            return t * 0.0

    found = end(SDESystem(Clock(), h=H, paths=2), engine=engine)
    np.testing.assert_allclose(found.X[-1], H * H * 15, rtol=1e-14)


class OfOld(Integrator[BlockSystem]):
    """A scheme whose init was written before it could be told the time."""

    needs_momenta = True

    def init(self, system: BlockSystem, z: State) -> State:  # type: ignore[override]
        return {"kept": system.forces(0.0, z, system.blocks)["theta"]}

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: Any) -> State:
        return z | {"theta": z["theta"] + h * z["kept"]}


def test_what_is_kept_without_a_time_is_refused_where_forces_depend_on_it() -> None:
    model = Hierarchical(data=6)
    motion = {"h": H, "eta": 1.0, "gamma": 1.0}
    simulate(mpgd(model, particles=2, theta=motion, x=motion), OfOld(), steps=2, batch=Batch(4))
    with pytest.raises(
        SdeflowError, match=r"integrator 'ofold' keeps.*give its init\(system, z\) an argument t"
    ):
        end(system(scaled, eta=1.0, gamma=1.0), OfOld(), batch=Batch(4))


@needs_kernel
def test_steps_under_forces_that_depend_on_time_are_no_graph() -> None:
    """Whose times would be those of its capture."""
    for timed, kind in ((False, GraphedSteps), (True, EagerSteps)):
        own, scheme, engine = (
            system(scaled, cold),
            integrator_named("euler_maruyama"),
            Engine("fused", "philox"),
        )
        own.force_field.timed = timed
        noise: Any = engine.source(own.channels, scheme.noise_spec(own.h), doubles())
        noise.counter = torch.zeros(1, dtype=torch.int64)
        assert type(engine.stepper(own, scheme, noise)) is kind

"""What an integrator is, and what it declares of itself."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from sdeflow.errors import SdeflowError
from sdeflow.options import Batch
from sdeflow.state import State
from sdeflow.system.increments import NoiseSpec

if TYPE_CHECKING:
    from torch import Tensor

    from sdeflow.system.increments import Kind, Noise
    from sdeflow.system.system import System


S = TypeVar("S", bound="System")


class Integrator(ABC, Generic[S]):
    """One numerical scheme for systems of type S.

    `step` is a pure function: it draws nothing, never looks at a value on the host and changes nothing
    in place that a caller can see, so it runs on any device and can be differentiated.

    name                       the class's in lower case unless given
    strong_order, weak_order   in the step size, for the additive noise of our systems; NaN if not stated
    evaluations                evaluations of theta's gradient or of the score a step, at most
    increments, substeps       which increments a step needs over each of its `substeps` equal parts
    minibatches                whether a step may see another batch than the last: what `init` gives is then a
                               cache, made anew for each batch. A scheme that has memory in it says False
    schedules                  whether a step may have other numbers than the last
    needs                      in words, what `refuses` checks
    needs_momenta              whether every block must have one, and forces be as they are (no RMSProp)
    inner_steps                whether it takes inner steps of particles, where a block has them
    restarts                   whether a step heeds a block's `restart`, as the maps `B` and `exponential` do
    optimizes                  whether a step moves a block by its optimizer, as the map `exponential` does
    captured                   whether a CUDA graph can be made of its steps: none reads a value on the host
    source                     where the scheme comes from
    """

    name: ClassVar[str]
    strong_order: float = math.nan
    weak_order: float = math.nan
    evaluations: int = 1
    increments: ClassVar[Kind] = "W"
    noise: ClassVar[Kind]  # what `increments` was called before, and heeded where it alone is set
    _declared: ClassVar[Kind]
    substeps: int = 1
    needs: ClassVar[str] = "blocks"
    needs_momenta: ClassVar[bool] = False
    restarts: ClassVar[bool] = False
    inner_steps: ClassVar[bool] = False
    optimizes: ClassVar[bool] = False
    minibatches: ClassVar[bool] = True
    schedules: ClassVar[bool] = True
    captured: ClassVar[bool] = True
    source: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()
        first = next(vars(c) for c in cls.__mro__ if {"increments", "noise"} & vars(c).keys())
        cls.increments = cls.noise = cls._declared = first.get("increments", first.get("noise"))

    def __str__(self) -> str:
        """The scheme in words: its name, with options where it has any."""
        return self.name

    def noise_spec(self, h: float) -> NoiseSpec:
        """The noise of a step of length h."""
        kind = self.increments if self.noise == self._declared else self.noise
        return NoiseSpec(kind, self.substeps, h)

    def refuses(self, system: System) -> str | None:
        """Why this scheme cannot take `system`; None where it can."""
        if not system.blocks:
            return "it needs a system made of blocks"
        bare = [b.name for b in system.blocks if not b.kinetic]
        if self.needs_momenta and bare:
            return f"it needs a momentum in every block; without one: {', '.join(bare)}"
        if not self.restarts and (refusal := refuses_restart(system)):
            return refusal
        if not self.optimizes and (refusal := refuses_optimizer(system)):
            return refusal
        return refuses_memory(system) if self.needs_momenta else None

    def fitted(self, system: System) -> Self:
        """The scheme as it takes `system`, where its parts and its cost depend on that; itself for most."""
        return self

    def init(self, system: S, z: State, t: float = 0.0) -> State:
        """Extra tensors that the scheme keeps in the state z, at time t, between steps; none for most.

        In minibatches it is asked for them before every step: what it kept is of another batch.
        """
        return {}

    @abstractmethod
    def step(self, system: S, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        """The state at t + h on the reference clock. `noise` has one mapping a substep, by noisy variable.

        t is a tensor, float64 without axes, where steps are compiled.
        """


def why_not(integrator: Integrator[Any], system: System) -> str | None:
    """Why a scheme cannot take a system, by what it declares and by what it says; None where it can."""
    inner = [b.name for b in system.blocks if b.inner is not None]
    if inner and not integrator.inner_steps:
        return f"it takes no inner steps, and those of {', '.join(inner)} are"
    changing = [f"{key} of {b.name}" for b in system.blocks for key in b.schedules]
    if changing and not integrator.schedules:
        return f"it takes numbers that stay as they are, and {', '.join(changing)} is a schedule"
    return integrator.refuses(system)


def refuses_memory(system: System, *, optimizes: bool = False) -> str | None:
    """The refusal of schemes that cannot update a preconditioner, or an optimizer unless it `optimizes`."""
    for b in system.blocks:
        if b.preconditioner is not None:
            return f"it takes no preconditioned force, and that on {b.name} is"
    return None if optimizes else refuses_optimizer(system)


def refuses_optimizer(system: System) -> str | None:
    """The refusal of schemes that move blocks by nothing but their SDE."""
    for b in system.blocks:
        if b.optimizer is not None:
            return f"it moves blocks by their SDE, and {b.name} moves by the optimizer '{b.optimizer.name}'"
    return None


def refuses_restart(system: System) -> str | None:
    """The refusal of schemes that do not set a momentum to zero where it points against the force."""
    for b in system.blocks:
        if b.restart:
            return f"it restarts no momenta, and that of {b.name} is to: leave 'restart' out"
    return None


KEPT = "force:"
"""Prefix of forces that a splitting keeps in the state from one step to the next."""


def kept_forces(forces: dict[str, Tensor]) -> State:
    """Forces under the names by which the state carries them."""
    return {KEPT + name: f for name, f in forces.items()}


def recall_forces(z: State) -> dict[str, Tensor]:
    """The kept forces by block name."""
    return {name.removeprefix(KEPT): f for name, f in z.items() if name.startswith(KEPT)}


def init_at(integrator: Integrator[Any], *, timed: bool) -> Callable[..., State]:
    """`init(system, z, t)` of a scheme, of one too whose own takes no t; raises SdeflowError for such a one
    where forces are `timed`, as it would see those of time 0.
    """
    if "t" in inspect.signature(integrator.init).parameters:
        return integrator.init
    if timed:
        raise SdeflowError(
            f"integrator '{integrator.name}' keeps something from step to step, and forces depend on the "
            "time here: give its init(system, z) an argument t"
        )
    return lambda system, z, t: integrator.init(system, z)


def evaluations(integrator: Integrator[Any], batch: Batch | None) -> int:
    """Gradient evaluations a step, with catching up and with forces that another batch makes invalid."""
    if batch is None:
        return integrator.evaluations
    keeps_forces = type(integrator).init is not Integrator.init
    return integrator.evaluations + batch.extra_evaluations + int(keeps_forces)

"""A block: one position, possibly with a momentum, moving on its own clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sdeflow.errors import SdeflowError, expect_count, expect_number, expect_positive
from sdeflow.state import NUMBER
from sdeflow.system.flow import Flow, kinetic_flow
from sdeflow.system.rule import Memory, Optimizer, Preconditioner, Rule

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from sdeflow.state import State
    from sdeflow.system.schedule import Schedule

Role = Literal["parameters", "particles"]
AUTO = "auto"
"""What stands for a number that a warm-up is to choose."""


def span(values: Sequence[float]) -> str:
    """Numbers in words: one where they are the same, else the least and the most."""
    least, most = min(values), max(values)
    return f"{least:g}" if least == most or least != least else f"{least:g}..{most:g}"


@dataclass(frozen=True)
class Inner:
    """Steps that particles take one after the other in each step of a run, with the parameters held.

    steps     K; 0 for fresh draws that move no further
    fresh     whether they begin at a draw of the prior each time; else where they were
    average   whether the parameters' force is the mean of those after each of the K; else that after the last
    """

    steps: int
    fresh: bool = False
    average: bool = False

    def __post_init__(self) -> None:
        if not (self.fresh and self.steps == 0):
            object.__setattr__(self, "steps", expect_count("inner_steps", self.steps))

    @property
    def short(self) -> str:
        """In a few words."""
        return f"K = {self.steps}" + (", fresh" if self.fresh else "") + (", mean" if self.average else "")

    def __str__(self) -> str:
        if not self.steps:
            return "a fresh draw a step of theta"
        start, mean = " from the prior" if self.fresh else "", ", forces averaged" if self.average else ""
        return f"{self.steps} steps{start} a step of theta{mean}"


@dataclass(frozen=True)
class Block:
    """A position q under a force f at temperature T, on a clock that runs at `rate` times the reference.

        overdamped   dq = f dt + sqrt(2 T) dW
        kinetic      dq = eta p dt,   dp = (-gamma eta p + f) dt + sqrt(2 gamma T) dW

    name       the block's name in configuration and in the noise key
    position   name of q in the state; tensors are [R, *shape] with R replicas
    shape      shape of q for one replica, its axes named by `dims`
    momentum   name of p in the state; None means overdamped
    eta        inverse mass (p has stationary law N(0, T/eta)); gamma: friction, k = gamma eta per unit time
    rate       r = h_block / h: the drift is multiplied by r, the diffusion by sqrt(r)
    rule       a preconditioner of the force, or an optimizer that moves a block without momentum in place of
               its SDE (sdeflow.system.rule); None is neither. Noise beside such a force would have another
               stationary law, so T = 0
    restart    whether a momentum that points against the force is set to zero, for parameters at T = 0
    role       'parameters' are moved before 'particles' by the schemes that tell them apart
    inner      the steps of h that particles take while the parameters take one; None is one, with them
    auto       which of 'h', 'eta', 'gamma' a warm-up is to choose (sdeflow.tuning); until then they are 1
    first      which number of a replica of q is the first here, where this is a part of the data's particles:
               noise is drawn by that

    Raises SdeflowError for a negative or missing constant.
    """

    name: str
    position: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    momentum: str | None = None
    eta: float = math.nan
    gamma: float = math.nan
    temperature: float = 1.0
    rate: float = 1.0
    role: Role = "particles"
    rule: Rule | None = None
    restart: bool = False
    inner: Inner | None = None
    auto: tuple[str, ...] = ()
    first: int = 0

    def __post_init__(self) -> None:
        def require(condition: bool, what: str, value: object) -> None:
            if not condition:
                raise SdeflowError(f"block '{self.name}': {what}, given {value!r}")

        for name in ("eta", "gamma", "temperature", "rate"):
            number = expect_number(f"block '{self.name}': {name}", getattr(self, name))
            object.__setattr__(self, name, number)
        require(len(self.shape) == len(self.dims), "dims must name each axis of shape", self.dims)
        expect_positive(f"block '{self.name}': the step size", self.rate)
        require(0 <= self.temperature < math.inf, "temperature must not be negative", self.temperature)
        if self.preconditioner is not None:
            require(self.temperature == 0, "RMSProp needs T = 0", self.temperature)
        if self.optimizer is not None:
            taken = f"optimizer '{self.optimizer.name}' moves parameters without"
            known = "take a system such as pgd or mpgd-x"
            require(self.temperature == 0, f"{taken} noise, at T = 0: {known}", f"T = {self.temperature:g}")
            parameters = self.optimizer.traced or self.role == "parameters"
            require(parameters, f"optimizer '{self.optimizer.name}' moves parameters alone", self.role)
            require(not self.kinetic, f"{taken} a momentum: {known}", self.momentum)
        restarts = not self.restart or (self.kinetic and self.temperature == 0 and self.role == "parameters")
        require(restarts, "only parameters with a momentum and T = 0 restart", self.restart)
        if self.inner is not None:
            require(self.role == "particles", "only particles take inner steps", self.role)
            started = not (self.inner.fresh and self.kinetic)
            require(started, "particles with a momentum do not start at the prior anew", self.inner)
        if self.kinetic:
            require(0 < self.eta < math.inf, "a kinetic block needs eta > 0 (its inverse mass)", self.eta)
            require(0 <= self.gamma < math.inf, "a kinetic block needs gamma >= 0 (its friction)", self.gamma)

    @property
    def kinetic(self) -> bool:
        return self.momentum is not None

    @property
    def steps(self) -> int:
        """How many of its steps it takes in a step of a run."""
        return 1 if self.inner is None else self.inner.steps

    @property
    def clock(self) -> float | NDArray[np.float64]:
        """How fast its own time goes, all its steps counted; [R] where replicas differ in that."""
        return self.rate * self.steps

    @property
    def preconditioner(self) -> Preconditioner | None:
        return self.rule if isinstance(self.rule, Preconditioner) else None

    @property
    def optimizer(self) -> Optimizer | None:
        return self.rule if isinstance(self.rule, Optimizer) else None

    @property
    def kept(self) -> dict[str, str]:
        """Names in the state of what its rule keeps, by slot."""
        slots = () if self.rule is None else self.rule.slots(self)
        return {slot: f"{self.position}_{slot}" for slot in slots}

    def memory(self, z: State) -> Memory:
        """What its rule has in a state."""
        return {slot: z[name] for slot, name in self.kept.items()}

    def remember(self, memory: Memory) -> State:
        """A memory under its names in the state."""
        return {name: memory[slot] for slot, name in self.kept.items()}

    @property
    def of_data(self) -> bool:
        """Whether the block has a row for each datum, of which a minibatch takes some."""
        return self.dims[:1] == ("datum",)

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of its random variables in the state: the position, and the momentum where there is one."""
        return (self.position,) if self.momentum is None else (self.position, self.momentum)

    @property
    def noisy(self) -> str:
        """The variable that the Brownian motion drives."""
        return self.position if self.momentum is None else self.momentum

    @property
    def diffusion(self) -> float:
        """Diffusion coefficient on the reference clock: sqrt(2 T r), or sqrt(2 gamma T r) with a momentum."""
        friction = self.gamma if self.kinetic else 1.0
        return math.sqrt(2 * friction * self.temperature * self.rate)

    @property
    def root_temperature(self) -> Any:
        """sqrt(T), of the noise P and Q; a tensor where T differs by datum or is read in a traced step."""
        return math.sqrt(self.temperature)

    @property
    def heated(self) -> bool:
        """Whether the block has noise, T > 0."""
        return self.temperature > 0

    @property
    def momentum_std(self) -> float:
        """sqrt(T/eta), the standard deviation of a momentum coordinate at stationarity."""
        return math.sqrt(self.temperature / self.eta)

    @property
    def replicas(self) -> tuple[Block, ...]:
        """The blocks of the replicas where they differ (sdeflow.system.varying), else this one."""
        return (self,)

    def of(self, replica: int) -> Block:
        """The block of one replica."""
        return self.replicas[replica % len(self.replicas)]

    def to(self, dtype: torch.dtype, device: torch.device) -> Block:
        """The block with its numbers, where they are tensors, on another device or in another precision."""
        return self

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        """Its numbers that change from step to step, by name (sdeflow.system.scheduled); none here."""
        return {}

    def at(self, n: int) -> Block:
        """The block with its numbers in step n."""
        return self

    def in_run(self, steps: int, begun: int) -> Block:
        """The block in a run of so many steps that was begun with `begun`.

        Raises SdeflowError where a schedule leaves the range of its number in one of them, which `at` does
        not look at.
        """
        return self

    def number(self, name: str) -> str:
        """eta, gamma or another number in words, the least and the most where replicas differ."""
        if name in self.auto:
            return AUTO
        return span([getattr(b, name) for b in self.replicas])

    def flow(self, h: float | Tensor) -> Flow:
        """The exact flow over a reference step h, that is over r h of this block's own time."""
        assert isinstance(h, NUMBER), "steps that differ by datum need a FlowTable"
        return kinetic_flow(self.gamma, self.eta, self.rate * h)

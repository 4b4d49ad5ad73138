"""The options of a run, in Python and in TOML: each is declared here once, with its default and range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, isqrt
from numbers import Integral, Real
from types import NoneType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from sdeflow.errors import SdeflowError, did_you_mean, is_number, numbers, plain

EngineName = Literal["auto", "eager", "compiled", "fused"]
NoiseName = Literal["auto", "torch", "philox"]
CatchUpName = Literal["off", "one_step", "substeps", "srock"]
ReductionName = Literal["sum", "fixed"]
PrecisionName = Literal["full", "tf32", "bf16"]

KINDS = {Integral: "whole number", Real: "number"}
Count = Annotated[int, Ge(1)]
Index = Annotated[int, Ge(0)]
Choice = Literal["all"] | Count | Sequence[Index]


class Options:
    """The options of one TOML table. Read from TOML, there may be no unknown key and no other type.

    Numbers of NumPy and torch become Python's. Raises SdeflowError in Python too for a number of another
    kind, or out of the range of its annotation.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}
    table: ClassVar[str]

    def __post_init__(self) -> None:
        for name, (kind, bounds) in _numbers(type(self)).items():
            value = plain(getattr(self, name))
            if value is None and getattr(type(self), name, 0) is None:
                continue
            object.__setattr__(self, name, value)
            key, right = f"{self.table}.{name}", is_number(value, kind)
            given = f"given {value!r}" + ("" if right else f": a {KINDS[kind]} was expected")
            for bound in bounds:
                if isinstance(bound, Ge) and not (right and value >= bound.ge):
                    raise SdeflowError(f"{key} must be at least {bound.ge}, {given}")
                if isinstance(bound, Gt) and not (right and value > bound.gt):
                    raise SdeflowError(f"{key} must be positive, {given}")
                if isinstance(bound, Le) and not value <= bound.le:
                    raise SdeflowError(f"{key} must be at most {bound.le:,}, given {value:,}")


def _numbers(options: type[Options]) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The fields that have a range: the kind of number, and the bounds. A subclass adds none of its own."""
    declared = next(c for c in options.__mro__ if "table" in vars(c))
    kinds, found = {int: Integral, float: Real}, {}
    for name, hint in get_type_hints(declared, include_extras=True).items():
        own = [part for part in get_args(hint) if part is not NoneType]
        if NoneType in get_args(hint) and len(own) == 1:
            (hint,) = own
        if get_origin(hint) is Annotated:
            kind, *bounds = get_args(hint)
            found[name] = kinds[kind], tuple(bounds)
    return found


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """How many steps, from which seeds, by how precise forces.

    steps      [steps] of the reference clock
    seed       of the start and of the noise; replica i of a run with seed s is the run of one with seed s + i
    replicas   independent copies that move together
    bound      a loss or kinetic energy past it counts as diverged
    precision  of matrix products and convolutions within a model, for its forces and losses: 'full' is that
               of `dtype`; 'bf16' is bfloat16, 'tf32' TF32 on CUDA, with all else in float32
    """

    table: ClassVar = "run"

    steps: Annotated[int, Ge(0), Le(10**15)] = 1000
    seed: Annotated[int, Ge(0), Le(2**62 - 1)] = 0
    replicas: Annotated[int, Ge(1), Le(10**9)] = 1
    bound: Annotated[float, Gt(0)] = 1e12
    precision: PrecisionName = "full"


@dataclass(frozen=True)
class Steps(Sequence[int]):
    """The steps of a grid, and the last one where it is not on it; as many as you like take no memory."""

    grid: range
    last: int

    def __len__(self) -> int:
        return len(self.grid) + (self.grid[-1] != self.last)

    @overload
    def __getitem__(self, i: int) -> int: ...

    @overload
    def __getitem__(self, i: slice) -> list[int]: ...

    def __getitem__(self, i: int | slice) -> int | list[int]:
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        k = range(len(self))[i]
        return self.grid[k] if k < len(self.grid) else self.last

    def after(self, count: int) -> Iterator[int]:
        """Those after the first `count`."""
        return (self[k] for k in range(count, len(self)))


@dataclass(frozen=True)
class Save(Options):
    """What to save.

    every       [steps] between snapshots; the start and the last step are always among them
    data        [data] whose particles are saved: 'all', that many spread evenly, or a list of indices
    particles   [particles] saved of each, likewise
    theta_max   [coordinates] of the longest parameter vector that is saved whole; of a longer one only the
                norm is
    checkpoint  [seconds] at least between checkpoints of a run with a folder; more where that keeps them to
                5% of its time, and in a long run, of which 0.5% (at most 5 minutes) may be lost; 0 for one
                after every chunk of steps
    keep        [moments] of the run whose parameters are kept in a file each, whatever their length, for
                `sdeflow evaluate --along`: at snapshots, spread evenly up to the last step; 0 for none
    """

    table: ClassVar = "save"

    every: Count = 10
    data: Choice = 16
    particles: Choice = 16
    theta_max: Annotated[int, Ge(0)] = 10_000
    checkpoint: Annotated[float, Ge(0)] = 15.0
    keep: Annotated[int, Ge(0)] = field(default=0, repr=False)  # no number depends on it: see Run.settings

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("data", "particles"):
            given = plain(getattr(self, name))
            alone = is_number(given, Integral) or (isinstance(given, str) and given == "all")
            choice = given if alone else numbers(given, Integral)
            if choice is None:
                raise SdeflowError(
                    f"save.{name}: 'all', a whole number or a list of them was expected, given {given!r}"
                )
            # a list stays one: a run that goes on compares its settings as text
            object.__setattr__(self, name, list(choice) if isinstance(given, list) else choice)

    def steps(self, last: int) -> Steps:
        """The steps at which snapshots are taken in a run of `last` steps."""
        return Steps(range(0, last + 1, self.every), last)

    def moments(self, last: int) -> set[int]:
        """The steps at which parameters are kept in a run of `last` steps."""
        near = (round(k * last / self.keep / self.every) * self.every for k in range(1, self.keep))
        return {step for step in near if 0 < step < last} | ({last} if self.keep and last else set())

    def indices(self, dim: str, size: int) -> NDArray[np.int64]:
        """The positions saved along an axis of the given name; raises SdeflowError for one out of range."""
        choice: Choice = {"datum": self.data, "particle": self.particles}.get(dim, "all")
        if isinstance(choice, str):
            return np.arange(size)
        if isinstance(choice, int):
            if choice < 1:
                raise SdeflowError(f"save: at least one {dim} must be saved, given {choice}")
            return np.unique(np.linspace(0, size - 1, min(choice, size)).round().astype(np.int64))
        chosen = np.asarray(choice, dtype=np.int64)
        if chosen.size == 0 or chosen.min() < 0 or chosen.max() >= size:
            raise SdeflowError(f"save: {dim} indices must lie in 0..{size - 1}, given {list(choice)}")
        if len(set(chosen.tolist())) < chosen.size:
            raise SdeflowError(f"save: {dim} indices must be different, given {list(choice)}")
        return chosen


@dataclass(frozen=True)
class Batch(Options):
    """How data are subsampled.

    size       b, [data] a step; D // b steps are an epoch, in each of which a datum is seen at most once
    catch_up   what is done for a datum that was missed k times, before its step, with k at most `cap`:
               'off': nothing; 'one_step': one step of size k h; 'substeps': k steps of size h; 'srock': one
               stabilised step of size k h, in `stages` (sdeflow.engine.stabilised).
               theta is held, and each (sub)step and stage costs one more evaluation of the score
    cap        [steps] that are made up for at most
    stages     of 'srock'; the curvature that they bear grows with their square. Where it is not given it is
               1 and twice the root of `cap`: enough where Euler-Maruyama's own steps of size h are stable
    """

    table: ClassVar = "batch"

    size: Count
    catch_up: CatchUpName = "off"
    cap: Count = 10
    stages: Annotated[int, Ge(2)] | None = field(
        default=None, repr=False
    )  # settings have it where it is given: see Run

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.catch_up not in get_args(CatchUpName):
            raise SdeflowError(
                f"unknown batch.catch_up '{self.catch_up}': "
                f"{did_you_mean(str(self.catch_up), get_args(CatchUpName))}"
            )

    @property
    def extra_evaluations(self) -> int:
        """Evaluations of the score a step beyond the integrator's own."""
        return {"off": 0, "one_step": 1, "substeps": self.cap, "srock": self.used_stages}[self.catch_up]

    @property
    def used_stages(self) -> int:
        """The stages of 'srock'."""
        return 2 + isqrt(4 * self.cap - 1) if self.stages is None else self.stages


@dataclass(frozen=True)
class Parallel(Options):
    """How processes that torchrun starts share the data of a run (sdeflow.parallel).

    strata      V; the data are as many stretches of the same length, of which each process has as many, and a
                minibatch has as many data of each. Where it is not given there is one a process, and
                minibatches depend on how many those are
    reduction   how forces on parameters are added up: 'sum' as is fastest, and then what comes of other
                numbers of processes differs by rounding; 'fixed' in the order of the strata, which are each
                computed by themselves: then it is the same to the bit
    """

    table: ClassVar = "parallel"

    strata: Count | None = None
    reduction: ReductionName = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction not in get_args(ReductionName):
            raise SdeflowError(
                f"unknown parallel.reduction '{self.reduction}': "
                f"{did_you_mean(str(self.reduction), get_args(ReductionName))}"
            )
        if self.fixed and self.strata is None:
            raise SdeflowError(
                "parallel.reduction = 'fixed' adds up strata in their order: give parallel.strata, a number "
                "that the numbers of processes divide"
            )

    @property
    def fixed(self) -> bool:
        return self.reduction == "fixed"


@dataclass(frozen=True)
class Evaluate(Options):
    """When the loss on held-out data is measured.

    every   [steps] of the run between evaluations; the start and the last step are always among them
    steps   [steps] that held-out particles take at each, from where the last evaluation left them
    """

    table: ClassVar = "evaluate"

    every: Count
    steps: Count = 10

    def cost(self, last: int, n_data: int, n_particles: int) -> str:
        """What it costs in a run of `last` steps, in words."""
        times = 1 + -(-last // self.every)
        return (
            f"{times} times {self.steps} steps of {n_data:,} held-out data x {n_particles} particles: "
            f"{times * self.steps:,} evaluations of their scores, {times} of their loss"
        )


@dataclass(frozen=True)
class Tune(Options):
    """How numbers that are 'auto' are chosen (sdeflow.tuning).

    until   [steps] after which adaptation ends; 0 for the start alone. Where it is not given it is half of
            the run; for parameters that prior particles oppose, whose curvature keeps growing, there is none
    share   of the largest stable step that is taken. Where it is not given it is 0.65 while curvature may
            still grow, and 0.8 when it is steady
    """

    table: ClassVar = "tune"

    until: Annotated[int, Ge(0)] | None = None
    share: Annotated[float, Gt(0), Le(1)] | None = None

    @property
    def first_share(self) -> float:
        return self.share or 0.65

    @property
    def last_share(self) -> float:
        return self.share or 0.8

    def last(self, steps: int, *, opposed: bool = False) -> float:
        """The step at which adaptation ends in a run of so many; inf for never."""
        if self.until is None:
            return inf if opposed else steps // 2
        return self.until


@dataclass(frozen=True)
class Average(Options):
    """An exponential moving average of the parameters over all steps, kept beside them.

    decay   d; theta after k more steps has the weight d^k. It is an average of some 1/(1 - d) steps, at 0
            the last theta, at 1 the mean of all
    """

    table: ClassVar = "average"

    decay: Annotated[float, Ge(0), Le(1)] = 0.999

    def __str__(self) -> str:
        steps = "all steps" if self.decay == 1 else f"about {1 / (1 - self.decay):,.4g} steps"
        return f"decay {self.decay}, over {steps}"

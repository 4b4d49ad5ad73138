"""Blocks whose numbers differ by replica or by datum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.system.block import Block
from sdeflow.system.flow import Flow, kinetic_flow
from sdeflow.system.grid import Axis, Grid
from sdeflow.system.system import BlockSystem, System


@dataclass(frozen=True)
class Spread(Block):
    """A block of several replicas. A number in which they differ is a tensor [R, 1, ...], broadcast with it.

    each   the blocks of the replicas, which differ in `VARYING` alone
    """

    each: tuple[Block, ...] = ()
    dtype: torch.dtype = torch.float64
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        for name in VARYING:
            object.__setattr__(self, name, self._shared([getattr(b, name) for b in self.each]))

    @property
    def diffusion(self) -> Any:
        return _diffusion(self)

    @property
    def root_temperature(self) -> Any:
        return _root_temperature(self)

    @property
    def heated(self) -> bool:
        return any(b.heated for b in self.each)

    @property
    def clock(self) -> Any:
        clocks = [b.rate * b.steps for b in self.each]
        return np.array(clocks) if isinstance(self.rate, Tensor) else clocks[0]

    def flow(self, h: float | Tensor) -> Flow:
        return _flow(self, h)

    @property
    def replicas(self) -> tuple[Block, ...]:
        return self.each

    def to(self, dtype: torch.dtype, device: torch.device) -> Block:
        return replace(self, dtype=dtype, device=device)

    @cached_property
    def _same(self) -> int:
        return hash((self.name, self.each, self.shape, self.dtype, self.device))

    def __hash__(self) -> int:
        return self._same

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spread) and self._same == other._same

    def _shared(self, values: list[float]) -> Any:
        """A number that is all replicas', or their column."""
        same = len(set(values)) == 1 or any(v != v for v in values)  # NaN of a block without a momentum
        return values[0] if same else self._column(values)

    def _column(self, values: list[float]) -> Tensor:
        column = torch.tensor(values, dtype=torch.float64).to(self.device, self.dtype)
        return column.view(-1, *(1 for _ in self.shape))


VARYING = ("eta", "gamma", "temperature", "rate")


def spread(system: System, grid: Grid, replicas: int) -> BlockSystem:
    """The system with one block for all replicas, so many at each point of a grid, for each that it changes.

    Raises SdeflowError where a block has no such number, or a grid of it cannot be.
    """
    for b in system.blocks:
        for name in b.schedules:
            raise SdeflowError(
                f"a grid is of numbers that stay as they are, and {name} of block '{b.name}' is a schedule: "
                "give a number, or drop [grid] and take its points by 'sdeflow sweep'"
            )
    names, auto = [b.name for b in system.blocks], [b.name for b in system.blocks if b.auto]
    for axis in grid.axes:
        if axis.block is not None and axis.block not in names:
            raise SdeflowError(f"grid.system has no block '{axis.block}': {did_you_mean(axis.block, names)}")
        if not any(_takes(axis, b) for b in system.blocks):
            what = f"a grid of {axis.label}"
            raise SdeflowError(
                {
                    "h": f"{what} needs a block that no optimizer moves, and there is none",
                    "temperature": f"{what} needs a block with noise, and there is none",
                }.get(axis.number, f"{what} needs a block with a momentum, and there is none")
                if axis.block is None
                else f"{what}: block '{axis.block}' has no {axis.number}"
            )
        if auto and axis.number in ("h", "temperature"):
            raise SdeflowError(
                f"a grid of {axis.label} is of numbers that are given, and block '{auto[0]}' leaves some to "
                "the run's warm-up, which chooses one pace for all: give h, eta and gamma"
            )
    assert isinstance(system, BlockSystem)
    points = [point for point in grid.points for _ in range(replicas)]
    blocks = [_spread(b, grid, points, system.h) for b in system.blocks]
    return BlockSystem(blocks, system.force_field, h=system.h, start=system.given_start)


def _takes(axis: Axis, b: Block) -> bool:
    """Whether an axis is of a block's number."""
    has = {"h": b.optimizer is None, "temperature": b.heated}.get(axis.number, b.kinetic)
    return axis.block in (None, b.name) and has


def _spread(b: Block, grid: Grid, points: Sequence[Mapping[str, float]], h: float) -> Block:
    axes = [axis for axis in grid.axes if _takes(axis, b)]
    if not axes:
        return b
    own: dict[str, Any] = {f.name: getattr(b, f.name) for f in fields(Block)}
    own["auto"] = tuple(name for name in b.auto if name not in [axis.number for axis in axes])

    def at(point: Mapping[str, float]) -> Block:
        given = {axis.number: point[axis.label] for axis in axes}
        if "h" in given:
            given["rate"] = given.pop("h") / h
        if "temperature" in given:
            given["temperature"] *= b.temperature
        return Block(**(own | given))

    return Spread(**own, each=tuple(at(point) for point in points))


@lru_cache(maxsize=64)
def _diffusion(b: Spread) -> Any:
    return b._shared([one.diffusion for one in b.each])


@lru_cache(maxsize=64)
def _root_temperature(b: Spread) -> Any:
    return b._shared([one.root_temperature for one in b.each])


@lru_cache(maxsize=64)
def _flow(b: Spread, h: float) -> Flow:
    """Coefficients computed in float64 and then cast, a column over replicas each."""
    return Flow(*(b._column(list(values)) for values in zip(*(one.flow(h) for one in b.each), strict=True)))


class FlowTable:
    """The exact flow of a block over stretches of its own time, looked up by datum.

    stretches   each the block's numbers in it, and how long it is on the block's own clock; of a block whose
                replicas differ, as many for each of these
    """

    def __init__(
        self, block: Block, stretches: Sequence[Sequence[tuple[Block, float]]], device: torch.device
    ) -> None:
        self._values = {f.name: getattr(block, f.name) for f in fields(Block)}

        def columns(row: Callable[[Block, float], Sequence[Any]]) -> list[Tensor]:
            rows = [[row(b, time) for b, time in of] for of in stretches]
            return list(torch.tensor(rows, dtype=torch.float64, device=device).unbind(-1))

        self._flows = columns(lambda b, time: kinetic_flow(b.gamma, b.eta, time)) if block.kinetic else []
        self._numbers = columns(lambda b, _: (b.rate, b.temperature)) if block.schedules else []

    def block_over(self, which: Tensor, dtype: torch.dtype) -> Block:
        """The block whose flow takes datum (r, i) over stretch which[r, i] at once."""

        def chosen(columns: Sequence[Tensor]) -> list[Tensor]:  # [1 or R, stretches] each
            return [c.expand(len(which), -1).gather(1, which).to(dtype)[..., None, None] for c in columns]

        own = self._values | dict(zip(("rate", "temperature"), chosen(self._numbers), strict=False))
        return _OverSteps(**own, over=Flow(*chosen(self._flows)) if self._flows else None)


@dataclass(frozen=True)
class _OverSteps(Block):
    """A block with a flow of its own for every datum, [R, b, 1, 1]; so are rate and T where these change."""

    over: Flow | None = None

    def __post_init__(self) -> None:
        """Nothing to check: its numbers are those of a block that has been."""

    def flow(self, h: float | Tensor) -> Flow:
        assert self.over is not None
        return self.over

    @property
    def diffusion(self) -> Any:
        return _root(2 * (self.gamma if self.kinetic else 1.0) * self.temperature * self.rate)

    @property
    def root_temperature(self) -> Any:
        return _root(self.temperature)


def _root(x: Any) -> Any:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)

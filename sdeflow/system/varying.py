"""Blocks whose numbers differ by replica or by datum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.options import Grid
from sdeflow.system.block import Block
from sdeflow.system.flow import Flow, kinetic_flow
from sdeflow.system.system import BlockSystem, System


@dataclass(frozen=True)
class Spread(Block):
    """A kinetic block of several replicas: eta and gamma are tensors [R, 1, ...] that broadcast with it.

    each   the blocks of the replicas, which differ in these alone
    """

    each: tuple[Block, ...] = ()
    dtype: torch.dtype = torch.float64
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        for name in ("eta", "gamma"):
            object.__setattr__(self, name, self._column([getattr(b, name) for b in self.each]))

    @property
    def diffusion(self) -> Any:
        return _diffusion(self)

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

    def _column(self, values: list[float]) -> Tensor:
        column = torch.tensor(values, dtype=torch.float64).to(self.device, self.dtype)
        return column.view(-1, *(1 for _ in self.shape))


def spread(system: System, grid: Grid, replicas: int) -> BlockSystem:
    """The system with one block for all replicas, so many at each point of a grid, for each kinetic one.

    Raises SdeflowError where there is none, and where numbers are schedules.
    """
    for b in system.blocks:
        for name in b.schedules:
            raise SdeflowError(
                f"a grid is of numbers that stay as they are, and {name} of block '{b.name}' is a schedule: "
                "drop [grid] and run its points one by one, or give a number"
            )
    if not any(b.kinetic for b in system.blocks):
        raise SdeflowError("a grid of gamma and eta needs a block with a momentum, and there is none")
    assert isinstance(system, BlockSystem)
    points = [point for point in grid.points for _ in range(replicas)]
    blocks = [b if b.momentum is None else _spread(b, points) for b in system.blocks]
    return BlockSystem(blocks, system.force_field, h=system.h, start=system.given_start)


def _spread(b: Block, points: Sequence[Mapping[str, Any]]) -> Spread:
    own: dict[str, Any] = {f.name: getattr(b.of(0), f.name) for f in fields(Block)}
    own["auto"] = tuple(name for name in b.auto if name not in points[0])
    return Spread(**own, each=tuple(Block(**{**own, **point}) for point in points))


@lru_cache(maxsize=64)
def _diffusion(b: Spread) -> Tensor:
    return b._column([one.diffusion for one in b.each])


@lru_cache(maxsize=64)
def _flow(b: Spread, h: float) -> Flow:
    """Coefficients computed in float64 and then cast, a column over replicas each."""
    return Flow(*(b._column(list(values)) for values in zip(*(one.flow(h) for one in b.each), strict=True)))


class FlowTable:
    """The exact flow of a block over stretches of its own time, looked up by datum.

    stretches   each the block's numbers in it, and how long it is on the block's own clock
    """

    def __init__(self, block: Block, stretches: Sequence[tuple[Block, float]], device: torch.device) -> None:
        self._values = {f.name: getattr(block, f.name) for f in fields(Block)}
        flows = [kinetic_flow(b.gamma, b.eta, time) for b, time in stretches] if block.kinetic else []
        numbers = [(b.rate, b.temperature) for b, _ in stretches] if block.schedules else []
        self._flows, self._numbers = (
            [torch.tensor(column, dtype=torch.float64, device=device) for column in zip(*rows, strict=True)]
            for rows in (flows, numbers)
        )

    def block_over(self, which: Tensor, dtype: torch.dtype) -> Block:
        """The block whose flow takes datum (r, i) over stretch which[r, i] at once."""
        flow, numbers = (
            [c[which].to(dtype)[..., None, None] for c in columns] for columns in (self._flows, self._numbers)
        )
        own = self._values | dict(zip(("rate", "temperature"), numbers, strict=False))
        return _OverSteps(**own, over=Flow(*flow) if flow else None)


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

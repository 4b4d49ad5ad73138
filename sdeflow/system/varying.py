"""Blocks whose numbers differ by replica or by datum."""

from __future__ import annotations

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

    Raises SdeflowError where there is none.
    """
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
    """The exact flow of a block over 0, 1, ..., cap steps, looked up by datum."""

    def __init__(self, block: Block, h: float, cap: int, device: torch.device) -> None:
        self._values = {f.name: getattr(block, f.name) for f in fields(Block)}
        flows = (
            [kinetic_flow(block.gamma, block.eta, block.rate * h * k) for k in range(cap + 1)]
            if block.kinetic
            else []
        )
        self._columns = [
            torch.tensor(column, dtype=torch.float64, device=device) for column in zip(*flows, strict=True)
        ]

    def block_over(self, times: Tensor, dtype: torch.dtype) -> Block:
        """The block whose flow takes datum (r, i) over times[r, i] steps at once."""
        over = Flow(*(c[times].to(dtype)[..., None, None] for c in self._columns)) if self._columns else None
        return _OverSteps(**self._values, over=over)


@dataclass(frozen=True)
class _OverSteps(Block):
    """A block with a flow of its own for every datum, [R, b, 1, 1]."""

    over: Flow | None = None

    def flow(self, h: float | Tensor) -> Flow:
        assert self.over is not None
        return self.over

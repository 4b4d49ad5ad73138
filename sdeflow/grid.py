"""Replicas of one run that differ in friction and inverse mass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import product
from math import inf
from typing import Any

import torch
from torch import Tensor

from sdeflow.block import Block
from sdeflow.errors import SdeflowError
from sdeflow.flow import Flow
from sdeflow.system import BlockSystem


@dataclass(frozen=True)
class Grid:
    """Values of gamma and of eta, each for all blocks with a momentum; none leaves the blocks' own.

    Every pair is a point, and a run has its replicas at each, from the same seeds. In a dataset gamma and eta
    are coordinates along `replica`, which `run.set_index(replica=["gamma", "eta"]).unstack("replica")` makes
    dimensions.

    Raises SdeflowError for values that are no frictions or inverse masses.
    """

    gamma: tuple[float, ...] = ()
    eta: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for values in (self.gamma, self.eta):
            if not isinstance(values, tuple) or not all(isinstance(v, int | float) for v in values):
                raise SdeflowError(f"a grid takes tuples of numbers, given {values!r}")
        for name, values, least in (("gamma", self.gamma, "at least 0"), ("eta", self.eta, "positive")):
            good = all(0 <= v < inf if name == "gamma" else 0 < v < inf for v in values)
            if not good or len(set(values)) < len(values):
                raise SdeflowError(
                    f"grid.{name}: different finite numbers, {least}, were expected; given {list(values)}"
                )
        if not self.gamma and not self.eta:
            raise SdeflowError("a grid needs values of gamma or of eta, given neither")

    @property
    def points(self) -> list[dict[str, float]]:
        """What a kinetic block has at each point, in place of its own."""
        axes = {name: values for name, values in (("gamma", self.gamma), ("eta", self.eta)) if values}
        return [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]

    def coordinates(self, replicas: int) -> dict[str, list[float]]:
        """gamma and eta of every replica, so many at each point."""
        rows = [point for point in self.points for _ in range(replicas)]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def told(self, replica: int, replicas: int) -> str:
        """Where a replica is, so many at each point: 'gamma=0.1, eta=2000'."""
        return ", ".join(f"{name}={value:g}" for name, value in self.points[replica // replicas].items())

    def spread(self, system: object, replicas: int) -> BlockSystem:
        """The system with one block for all replicas, so many at each point, in place of each kinetic one.

        Raises SdeflowError where there is none.
        """
        if not isinstance(system, BlockSystem) or not any(b.kinetic for b in system.blocks):
            raise SdeflowError("a grid of gamma and eta needs a block with a momentum, and there is none")
        points = [point for point in self.points for _ in range(replicas)]
        blocks = [b if b.momentum is None else _spread(b, points) for b in system.blocks]
        return BlockSystem(blocks, system.force_field, h=system.h, start=system.given_start)


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
        return self._column([b.diffusion for b in self.each])

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


def _spread(b: Block, points: Sequence[Mapping[str, Any]]) -> Spread:
    own: dict[str, Any] = {f.name: getattr(b.of(0), f.name) for f in fields(Block)}
    return Spread(**own, each=tuple(Block(**{**own, **point}) for point in points))


@lru_cache(maxsize=64)
def _flow(b: Spread, h: float) -> Flow:
    """Coefficients computed in float64 and then cast, a column over replicas each."""
    return Flow(*(b._column(list(values)) for values in zip(*(one.flow(h) for one in b.each), strict=True)))

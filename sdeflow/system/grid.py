"""A grid: values of blocks' numbers, every combination of which is a point of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import inf
from typing import ClassVar, NamedTuple

from sdeflow.errors import SdeflowError, did_you_mean, numbers
from sdeflow.options import Options

Values = Sequence[float] | None


class Axis(NamedTuple):
    """Values of a number of one block, or for None of all blocks that have such a number."""

    label: str
    block: str | None
    number: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Grid(Options):
    """Values of blocks' numbers. A run has its replicas at every combination of them, from the same seeds.

    gamma         frictions of all blocks with a momentum
    eta           inverse masses of all blocks with a momentum
    h             steps of all blocks, each on its own clock
    temperature   factors on the temperature of all blocks that have noise
    system        values for one block, in place of those: {"x": {"h": [1e-3, 1e-2]}}, in TOML
                  grid.system.x.h = [...]

    In a dataset each is a coordinate along `replica`, by the names `gamma`, `h_x` and so on, and
    `run.set_index(replica=["gamma", "h_x"]).unstack("replica")` makes them dimensions.

    Raises SdeflowError for values that such a number cannot have.
    """

    table: ClassVar = "grid"

    gamma: Values = None
    eta: Values = None
    h: Values = None
    temperature: Values = None
    system: Mapping[str, Mapping[str, Sequence[float]]] | None = None

    def __post_init__(self) -> None:
        for name in GRID_NUMBERS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _grid_values(name, name, getattr(self, name)))
        if self.system is not None:
            object.__setattr__(
                self, "system", {b: _of_block(b, of) for b, of in _blocks(self.system).items()}
            )
        if not self.axes:
            raise SdeflowError(
                "a grid needs values of gamma, eta, h or temperature, of all blocks or as system.BLOCK.h of "
                "one; given none"
            )

    def __str__(self) -> str:
        return "; ".join(f"{axis.label} = {', '.join(f'{v:g}' for v in axis.values)}" for axis in self.axes)

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """Those of all blocks first; a block's own take the place of these."""
        of_all = [Axis(name, None, name, values) for name in GRID_NUMBERS if (values := getattr(self, name))]
        own = [
            Axis(f"{name}_{block}", block, name, tuple(values))
            for block, numbers in (self.system or {}).items()
            for name, values in numbers.items()
        ]
        return (*of_all, *own)

    @property
    def points(self) -> list[dict[str, float]]:
        """The values of all axes at each point, by label."""
        labels = [axis.label for axis in self.axes]
        return [
            dict(zip(labels, point, strict=True)) for point in product(*(axis.values for axis in self.axes))
        ]

    def coordinates(self, replicas: int) -> dict[str, list[float]]:
        """The values of every replica by label, so many replicas at each point."""
        rows = [point for point in self.points for _ in range(replicas)]
        return {axis.label: [row[axis.label] for row in rows] for axis in self.axes}

    def label(self, replica: int, replicas: int) -> str:
        """Where a replica is, so many at each point: 'gamma=0.1, eta=2000'."""
        return ", ".join(f"{name}={value:g}" for name, value in self.points[replica // replicas].items())


GRID_NUMBERS = {"gamma": 0.0, "eta": None, "h": None, "temperature": 0.0}
"""What a grid may be of, and the least value; None for more than 0."""


def _grid_values(name: str, key: str, given: object) -> tuple[float, ...]:
    if (values := numbers(given)) is None:
        raise SdeflowError(f"grid.{key} takes a list of numbers, given {given!r}")
    least = GRID_NUMBERS[name]
    good = all((v > 0 if least is None else v >= least) and v < inf for v in values)
    if not good or len(set(values)) < len(values):
        kind = "positive" if least is None else f"at least {least:g}"
        raise SdeflowError(
            f"grid.{key}: different finite numbers, {kind}, were expected; given {list(values)}"
        )
    return values


def _blocks(given: object) -> Mapping[str, object]:
    if not isinstance(given, Mapping):
        raise SdeflowError(f"grid.system takes blocks, {{'x': {{'h': [0.1, 0.2]}}}}; given {given!r}")
    return given


def _of_block(block: str, given: object) -> dict[str, tuple[float, ...]]:
    key = f"system.{block}"
    if not isinstance(given, Mapping):
        raise SdeflowError(f"grid.{key} takes a table, {{'h': [0.1, 0.2]}}; given {given!r}")
    for name in given:
        if name not in GRID_NUMBERS:
            raise SdeflowError(f"grid.{key} has no '{name}': {did_you_mean(name, GRID_NUMBERS)}")
    return {name: _grid_values(name, f"{key}.{name}", values) for name, values in given.items()}

"""Quartic wells, V(q) = q^4/4 - q^2/2, on which orders are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdeflow.analysis.convergence_orders import MakeSystem
from sdeflow.system.block import Block
from sdeflow.system.system import BlockSystem

if TYPE_CHECKING:
    from torch import Tensor

    from sdeflow.state import State


def well(h: float, paths: int) -> BlockSystem:
    """One kinetic well."""
    block = Block("x", "X", *_axes(paths), "U", eta=1.0, gamma=1.0, temperature=0.5)
    return BlockSystem([block], lambda t, z, names: {"x": z["X"] - z["X"] ** 3}, h=h)


def overdamped(h: float, paths: int) -> BlockSystem:
    """One well without momentum: the noise enters the variable that the force depends on."""
    block = Block("x", "X", *_axes(paths), temperature=0.5, rate=0.4)
    return BlockSystem([block], lambda t, z, names: {"x": z["X"] - z["X"] ** 3}, h=h)


def coupled(h: float, paths: int, temperature: float = 0.5) -> BlockSystem:
    """Two wells pulled together, the first as parameters on a slower clock and under another friction."""

    def forces(t: float, z: State, names: Sequence[str]) -> dict[str, Tensor]:
        theta, x = z["theta"], z["X"]
        both = {"theta": theta - theta**3 + x / 2, "x": x - x**3 + theta / 2}
        return {name: both[name] for name in names}

    axes = _axes(paths)
    theta = Block("theta", "theta", *axes, "m", 1.5, 0.8, temperature, rate=0.7, role="parameters")
    return BlockSystem([theta, Block("x", "X", *axes, "U", 1.0, 1.0, temperature=0.5)], forces, h=h)


def _axes(paths: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    return (paths, 1), ("path", "coordinate")


WELLS: dict[str, MakeSystem] = {
    "well": well,
    "overdamped well": overdamped,
    "coupled wells": coupled,
    "coupled, parameters without noise": lambda h, paths: coupled(h, paths, temperature=0.0),
}

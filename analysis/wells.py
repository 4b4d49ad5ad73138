"""Quartic wells, V(q) = q^4/4 - q^2/2, for measuring orders, and a reference scheme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sdeflow.system.block import Block
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import BlockSystem, System

if TYPE_CHECKING:
    from torch import Tensor

    from sdeflow.state import State
    from sdeflow.system.increments import Noise

MakeSystem = Callable[[float, int], System]
"""A system of so many independent paths, from the reference step h and their number."""


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


class SRA1(Integrator[System]):
    """Roessler's stochastic Runge-Kutta scheme for additive noise, the reference where momenta lack.

        z' = z + h (b(z)/3 + 2 b(z + 3h/4 b(z) + 3/2 sigma (W/2 + H))/3) + sigma W

    Strong order 1.5, weak order 2.
    """

    name = "sra1"
    strong_order, weak_order, evaluations = 1.5, 2.0, 2
    noise, needs = "WH", "any SDE with additive noise"
    source = "Roessler 2010"

    def refuses(self, system: System) -> str | None:
        return None

    def step(self, system: System, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        (dW,) = noise
        sigma, first = system.diffusion(t, z), system.drift(t, z)
        inner = z | {name: z[name] + 0.75 * h * b for name, b in first.items()}
        inner |= {n: inner[n] + 1.5 * s * (dW[n]["W"] / 2 + dW[n]["H"]) for n, s in sigma.items()}
        second = system.drift(t + 0.75 * h, inner)
        new = z | {name: z[name] + h * (b + 2 * second[name]) / 3 for name, b in first.items()}
        return new | {name: new[name] + s * dW[name]["W"] for name, s in sigma.items()}

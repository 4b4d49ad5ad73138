from __future__ import annotations

from typing import TYPE_CHECKING

from sdeflow.system.integrator import Integrator, refuses_without_momenta
from sdeflow.system.maps import B, U
from sdeflow.system.system import BlockSystem, System

if TYPE_CHECKING:
    from sdeflow.state import State
    from sdeflow.system.increments import Noise


class UBU(Integrator[BlockSystem]):
    """The splitting U B U, on all blocks jointly, U being the exact force-free flow.

        U(h/2)  new forces  B(h)  U(h/2)

    Strong and weak order 2 with one gradient evaluation a step, where the force has a Lipschitz
    derivative. Every block needs a momentum.
    """

    name = "ubu"
    strong_order, weak_order, evaluations = 2.0, 2.0, 1
    increments, substeps = "PQ", 2
    needs = "blocks, all with momentum"
    source = "Sanz-Serna, Zygalakis 2021"

    def refuses(self, system: System) -> str | None:
        return refuses_without_momenta(system)

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        first, second = noise
        blocks = system.blocks
        z = z | U(blocks, z, h / 2, first)
        f = system.forces(t + h / 2, z, blocks)
        z = z | B(blocks, z, f, h)
        return z | U(blocks, z, h / 2, second)

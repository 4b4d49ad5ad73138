from __future__ import annotations

from sdeflow.system import B, BlockSystem, Integrator, Noise, State, U


class UBU(Integrator[BlockSystem]):
    """The splitting U B U, on all blocks jointly, U being the exact force-free flow.

        U(h/2)  new forces  B(h)  U(h/2)

    Strong and weak order 2 with one gradient evaluation a step, where the force has a Lipschitz
    derivative. Every block needs a momentum.
    """

    name = "ubu"
    strong_order, weak_order, evaluations = 2.0, 2.0, 1
    increments, substeps = "PQ", 2
    restarts = True
    needs, needs_momenta = "blocks, all with momentum", True
    source = "Sanz-Serna, Zygalakis 2021"

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        first, second = noise
        blocks = system.blocks
        z = z | U(blocks, z, h / 2, first)
        f = system.forces(t + h / 2, z, blocks)
        z = z | B(blocks, z, f, h)
        return z | U(blocks, z, h / 2, second)

from __future__ import annotations

from sdeflow.system import A, B, BlockSystem, Integrator, Noise, O, State, kept_forces, recall_forces


class OBABO(Integrator[BlockSystem]):
    """The splitting O B A B O, on all blocks jointly.

        O(h/2)  B(h/2)  A(h)  new forces  B(h/2)  O(h/2)

    with A: q += h eta p, B: p += h f, O: p = w p + sqrt(T) P. The last forces are kept, so a step costs
    one gradient evaluation. Strong order 1, weak order 2. Every block needs a momentum.
    """

    name = "obabo"
    strong_order, weak_order, evaluations = 1.0, 2.0, 1
    increments, substeps = "P", 2
    restarts = True
    needs, needs_momenta = "blocks, all with momentum", True
    source = "Bussi, Parrinello 2007"

    def init(self, system: BlockSystem, z: State, t: float = 0.0) -> State:
        return kept_forces(system.forces(t, z, system.blocks))

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        first, second = noise
        blocks = system.blocks
        z = z | O(blocks, z, h / 2, first)
        z = z | B(blocks, z, recall_forces(z), h / 2)
        z = z | A(blocks, z, h)
        f = system.forces(t + h, z, blocks)
        z = z | B(blocks, z, f, h / 2)
        return z | O(blocks, z, h / 2, second) | kept_forces(f)

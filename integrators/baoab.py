from __future__ import annotations

from sdeflow.system import A, B, BlockSystem, Integrator, Noise, O, State, kept_forces, recall_forces


class BAOAB(Integrator[BlockSystem]):
    """The splitting B A O A B, on all blocks jointly.

        B(h/2)  A(h/2)  O(h)  A(h/2)  new forces  B(h/2)

    with A: q += h eta p, B: p += h f, O: p = w p + sqrt(T) P. On a harmonic well the stationary variance
    of the position is exact. The last forces are kept, so a step costs one gradient evaluation. Strong
    order 1, weak order 2. Every block needs a momentum.
    """

    name = "baoab"
    strong_order, weak_order, evaluations = 1.0, 2.0, 1
    increments = "P"
    restarts = True
    needs, needs_momenta = "blocks, all with momentum", True
    source = "Leimkuhler, Matthews 2013"

    def init(self, system: BlockSystem, z: State, t: float = 0.0) -> State:
        return kept_forces(system.forces(t, z, system.blocks))

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        (dW,) = noise
        blocks = system.blocks
        z = z | B(blocks, z, recall_forces(z), h / 2)
        z = z | A(blocks, z, h / 2)
        z = z | O(blocks, z, h, dW)
        z = z | A(blocks, z, h / 2)
        f = system.forces(t + h, z, blocks)
        return z | B(blocks, z, f, h / 2) | kept_forces(f)

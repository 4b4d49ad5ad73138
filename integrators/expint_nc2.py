from __future__ import annotations

from sdeflow.system import BlockSystem, Integrator, Noise, State, exponential


class ExpIntNC2(Integrator[BlockSystem]):
    """The exponential integrator with every force at the old state (theta, X).

    No block sees another's new position, so the order of the blocks does not matter and one backward
    pass gives all the forces. Strong and weak order 1; one gradient evaluation a step.
    """

    name = "expint_nc2"
    strong_order, weak_order, evaluations = 1.0, 1.0, 1
    increments = "PQ"
    restarts = optimizes = True
    source = "Lim, Kuntz, Power, Johansen 2024, arXiv:2312.07335 (ablation)"

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        (dW,) = noise
        f = system.forces(t, z, system.blocks)
        return z | exponential(system.blocks, z, f, h, dW)

from __future__ import annotations

from sdeflow.system import BlockSystem, Integrator, Noise, State, exponential


class ExpIntNC(Integrator[BlockSystem]):
    """The exponential integrator without gradient correction, theta first.

        1.  theta, m by the exponential integrator, with the force at (theta, X)
        2.  X, U by the exponential integrator, with the score at (theta', X)

    The ablation of `expint`. Strong and weak order 1; two gradient evaluations a step.
    """

    name = "expint_nc"
    strong_order, weak_order, evaluations = 1.0, 1.0, 2
    increments = "PQ"
    restarts = optimizes = True
    source = "Lim, Kuntz, Power, Johansen 2024, arXiv:2312.07335 (ablation)"

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        (dW,) = noise
        for blocks in (system.parameters, system.particles):
            f = system.forces(t, z, blocks)
            z = z | exponential(blocks, z, f, h, dW)
        return z

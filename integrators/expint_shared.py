from __future__ import annotations

from sdeflow.system import BlockSystem, Integrator, Noise, State, exponential, free_flight


class ExpIntShared(Integrator[BlockSystem]):
    """The gradient-corrected exponential integrator with one backward pass for both gradients.

        1.  theta_bar = theta + (1-w)/gamma m
        2.  f_theta and the score of X, both at (theta_bar, X)
        3.  theta, m and X, U by the exponential integrator

    Half the evaluations of `expint` at nearly its stability and rate for ten data or more; worse only
    under strong damping with few data, where it is a Jacobi step beside a Gauss-Seidel one. Strong and
    weak order 1; one gradient evaluation a step.
    """

    name = "expint_shared"
    strong_order, weak_order, evaluations = 1.0, 1.0, 1
    increments = "PQ"
    restarts = optimizes = True
    source = "sdeflow; after Lim et al. 2024, arXiv:2312.07335"

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        (dW,) = noise
        f = system.forces(t, z | free_flight(system.parameters, z, h), system.blocks)
        return z | exponential(system.blocks, z, f, h, dW)

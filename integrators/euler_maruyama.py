from __future__ import annotations

from sdeflow.system import (
    BlockSystem,
    Integrator,
    Noise,
    State,
    System,
    exponential,
    plus,
    refuses_memory,
    refuses_restart,
)


class EulerMaruyama(Integrator[System]):
    """Euler-Maruyama, on the generic drift and diffusion of any system.

        z' = z + h b(t, z) + sigma(t, z) W

    The cheapest and the least stable scheme here, and the only one that a plain SDE needs. Strong order
    1 for additive noise (1/2 otherwise), weak order 1; one gradient evaluation a step.
    """

    name = "euler_maruyama"
    strong_order, weak_order, evaluations = 1.0, 1.0, 1
    increments = "W"
    optimizes = True
    needs = "any SDE"
    source = "Maruyama 1955; Kloeden, Platen 1992"

    def refuses(self, system: System) -> str | None:
        return refuses_memory(system, optimizes=True) or refuses_restart(system)

    def step(self, system: System, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        (dW,) = noise
        moved: State = {}
        optimized = [b for b in system.blocks if b.optimizer is not None]
        if optimized and isinstance(system, BlockSystem):
            f = system.forces(t, z, system.blocks)
            drift, moved = system.drift_under(f, z), exponential(optimized, z, f, h, dW)
        else:
            drift = system.drift(t, z)
        diffusion = system.diffusion(t, z)
        new = z | moved | {name: plus(z[name], (h, b)) for name, b in drift.items()}
        return new | {name: new[name] + sigma * dW[name]["W"] for name, sigma in diffusion.items()}

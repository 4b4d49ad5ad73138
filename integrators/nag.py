from __future__ import annotations

from sdeflow.system import (
    BlockSystem,
    Integrator,
    Noise,
    State,
    System,
    exponential,
    plus,
    remembered,
    restarted,
)


class NAG(Integrator[BlockSystem]):
    """Nesterov's accelerated gradient for theta, the exponential integrator for the particles.

    With v = h eta m and the momentum coefficient mu = 1 - h gamma eta:

        v' = mu v + h^2 eta f(theta + mu v, X),   theta' = theta + v',   m' = v' / (h eta)

    then X, U with the score at (theta', X). It is the form of Sutskever et al., consistent with the
    kinetic block; the research code of arXiv:2312.07335 uses another one, without the factor eta and
    with theta' = theta + (1 + mu) v, so its Nesterov curves are not reproduced by this scheme. Order 1;
    two gradient evaluations a step. Parameters need momentum and no noise.
    """

    name = "nag"
    strong_order, weak_order, evaluations = 1.0, 1.0, 2
    increments = "PQ"
    restarts = True
    needs = "theta with momentum, T = 0"
    source = "Sutskever, Martens, Dahl, Hinton 2013"

    def refuses(self, system: System) -> str | None:
        if refusal := super().refuses(system):
            return refusal
        parameters = [b for b in system.blocks if b.role == "parameters"]
        for b in parameters:
            if not b.kinetic:
                return f"it needs a momentum in {b.name}"
            if b.heated:
                return f"it takes no noise in {b.name}, whose temperature is {b.number('temperature')}"
        return None if parameters else "it moves parameters, and the system has none"

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        (dW,) = noise
        theta, x = system.parameters, system.particles
        mu = {b.name: 1 - b.rate * h * b.gamma * b.eta for b in theta}
        v = {b.name: b.rate * h * b.eta * z[b.noisy] for b in theta}
        f = system.forces(
            t, z | {b.position: plus(z[b.position], (mu[b.name], v[b.name])) for b in theta}, theta
        )
        for b in theta:
            v_new = plus(mu[b.name] * v[b.name], ((b.rate * h) ** 2 * b.eta, f[b.name]))
            m = restarted(b, v_new / (b.rate * h * b.eta), f[b.name])
            z = z | {b.position: z[b.position] + v_new, b.noisy: m}
        z = z | remembered(theta, f)
        f = system.forces(t, z, x)
        return z | exponential(x, z, f, h, dW)

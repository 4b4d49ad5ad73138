from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from sdeflow.system import (
    BlockSystem,
    Inner,
    Integrator,
    Noise,
    NoiseSpec,
    State,
    System,
    exponential,
    free_flight,
)

if TYPE_CHECKING:
    from torch import Tensor


class Alternating(Integrator[BlockSystem]):
    """K steps of the particles by turns with one of the parameters, all by the exponential integrator.

        0.  X from the prior, where the system's inner steps begin afresh
        1.  X, U with the score at (theta_bar, X), K times
        2.  f = -grad_theta E at (theta_bar, X), or its mean over the K clouds of particles
        3.  theta, m with f

    where theta_bar = theta + (1-w)/gamma m, theta itself for one without a momentum. K and what is done with
    the clouds are the system's (`short_run`, `abp`, `soul`); for other systems K = 1. For blocks without a
    momentum 1 is K steps of the unadjusted Langevin algorithm. Each K takes K + 1 gradient evaluations: the
    forces that are averaged come from the passes that give the next score. K = 0 is for draws of an encoder
    (`vi`), whose own pass makes it two. Strong and weak order 1 at K = 1.
    """

    name = "alternating"
    strong_order, weak_order, evaluations = 1.0, 1.0, 2
    increments = "PQ"
    restarts = True
    inner_steps, optimizes = True, True
    source = "Han, Lu, Zhu, Wu 2017, arXiv:1606.08571"

    inner = Inner(1)

    def fitted(self, system: System) -> Self:
        own = copy(self)
        own.inner = next((b.inner for b in system.blocks if b.inner is not None), Inner(1))
        own.substeps = own.inner.steps + own.inner.fresh
        own.evaluations = own.inner.steps + 1 if own.inner.steps else 2
        return own

    def noise_spec(self, h: float) -> NoiseSpec:
        """Each of the parts of a step is one of length h."""
        return replace(super().noise_spec(h), h=self.substeps * h)

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        theta, x = system.parameters, system.particles
        z = z | self._start(system, z, h, noise[-1])
        dW = noise[: self.inner.steps]
        at, clouds = free_flight(theta, z, h), []
        for k, increments in enumerate(dW):
            shared = theta if self.inner.average and k > 0 else ()
            f = system.force_field(t, z | at, [b.name for b in (*shared, *x)])
            clouds += [f] if shared else []
            z = z | exponential(x, z, f, h, increments)
        clouds.append(system.force_field(t, z | at, [b.name for b in theta]) if theta else {})
        mean = {b.name: _mean([f[b.name] for f in clouds]) for b in theta}
        return z | exponential(theta, z, system.preconditioned(mean, z, theta), h, noise[max(len(dW), 1) - 1])

    def _start(self, system: BlockSystem, z: State, h: float, noise: Noise) -> State:
        """The particles from the prior, made of the last part's normals; where there are none they stay."""
        if not self.inner.fresh:
            return {}
        return {
            b.position: system.force_field.from_prior(z, noise[b.noisy]["W"] / h**0.5)
            for b in system.particles
            if b.noisy in noise
        }


def _mean(forces: list[Tensor]) -> Tensor:
    first, *others = forces
    return sum(others, start=first) / len(forces) if others else first

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING

from sdeflow.system import B, Block, BlockSystem, Integrator, Noise, State, U, exponential, plus

if TYPE_CHECKING:
    from torch import Tensor

LEFT, BETWEEN, RIGHT = (3 - sqrt(3)) / 6, 1 / sqrt(3), (3 + sqrt(3)) / 6
"""The nodes of Gauss' rule of two points on [0, 1], and what lies between them."""


class QUICSORT(Integrator[BlockSystem]):
    """The shifted ODE method with Gauss' two nodes, on all blocks jointly; QUICSORT.

    In place of the Brownian path stands one with the same W, H and K that jumps, runs straight and jumps:

        p + s (H + 6 K),    dq = eta p dt,  dp = (-gamma eta p + f + g) dt,    p - s (H - 6 K)

    with s = sqrt(2 gamma T) and a constant force g = s (W - 12 K)/h. Let F(t) be the exact flow over t
    under g alone, and l, r = (3 -+ sqrt 3)/6. The ODE is solved by

        F(l h)  f1 = f(q)  B(h/2 f1)  F((r-l) h)  f2 = f(q + d)  B(h/2 f2)  F(l h)

    d puts h f1, flown for h/3, in the place of h/2 f1, flown for (r-l) h: so the inner point is one of a
    third-order Runge-Kutta scheme. Strong and weak order 3 with two gradient evaluations a step, where the
    force has Lipschitz derivatives up to the second. Every block needs a momentum.
    """

    name = "quicsort"
    strong_order, weak_order, evaluations = 3.0, 3.0, 2
    increments = "WHK"
    restarts = True
    needs, needs_momenta = "blocks, all with momentum", True
    source = "Foster, Lyons, Oberhauser 2021; Scott et al. 2025, arXiv:2508.16485"

    def step(self, system: BlockSystem, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        (dW,) = noise
        blocks, g = system.blocks, _mean_force(system.blocks, h, dW)
        z = z | _jump(blocks, z, dW, 1)
        z = z | _flow(blocks, z, g, LEFT * h)
        f = system.forces(t + LEFT * h, z, blocks)
        z = z | B(blocks, z, f, h / 2)
        z = z | _flow(blocks, z, g, BETWEEN * h)
        f = system.forces(t + RIGHT * h, z | _inner(blocks, z, f, h), blocks)
        z = z | B(blocks, z, f, h / 2)
        z = z | _flow(blocks, z, g, LEFT * h)
        return z | _jump(blocks, z, dW, -1)


def _mean_force(blocks: Sequence[Block], h: float, noise: Noise) -> dict[str, Tensor]:
    """g by block name, s (W - 12 K)/h; none at zero temperature."""
    return {
        b.name: b.diffusion / (b.rate * h) * plus(noise[b.noisy]["W"], (-12, noise[b.noisy]["K"]))
        for b in blocks
        if b.noisy in noise
    }


def _jump(blocks: Sequence[Block], z: State, noise: Noise, sign: int) -> State:
    """p + s (H + 6 K), or with the sign -1 p - s (H - 6 K)."""
    s = {b.noisy: b.diffusion for b in blocks if b.noisy in noise}
    return {p: plus(z[p], (sign * c, noise[p]["H"]), (6 * c, noise[p]["K"])) for p, c in s.items()}


def _flow(blocks: Sequence[Block], z: State, g: Mapping[str, Tensor], h: float) -> State:
    """The exact flow under the force g, where there is one."""
    pushed, free = [b for b in blocks if b.name in g], [b for b in blocks if b.name not in g]
    return exponential(pushed, z, g, h, {}) | U(free, z, h, {})


def _inner(blocks: Sequence[Block], z: State, f: Mapping[str, Tensor], h: float) -> State:
    """q + d, with d = h ((1-w(h/3))/gamma - 1/2 (1-w((r-l) h))/gamma) f."""
    return {
        b.position: plus(
            z[b.position], (b.rate * h * (b.flow(h / 3).free - b.flow(BETWEEN * h).free / 2), f[b.name])
        )
        for b in blocks
    }

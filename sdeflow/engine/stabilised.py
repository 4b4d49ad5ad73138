"""One long step of particles that stages keep stable, as Chebyshev methods do, with friction for damping."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdeflow.state import State, plus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdeflow.system.block import Block
    from sdeflow.system.system import BlockSystem

FRICTIONS = 6.0
"""Most frictions in a step: of stiff modes exp(-3) = 5% is left. More would take more stages.

Far from its posterior a particle is carried off by the momentum that friction leaves it. With 0, 2, 4, 6 and
8 of them, in 12 to 17 stages, fashion14 with cap = 20 had a loss of 196, 336, 16, 11 and 8 at step 300; by
substeps 2.
"""


class StabilisedStep:
    """Takes particles over 0, 1, ..., cap steps of size h at once, each datum as many as it is told.

    One of k steps in s stages is m = s - 1 steps of BAOAB, with tau for their length and w = exp(-x/m),

        p += tau/2 f(q)
        m times:  q += tau eta/2 p,  p = w p + sqrt((1 - w^2) T/eta) xi,  q += tau eta/2 p,  p += tau f(q)
        p -= tau/2 f(q), of the last force

    With a momentum and over at most FRICTIONS these are the block's own dynamics: x = gamma eta r k h and
    tau = r k h/m. Over more, and without a momentum, they are dynamics of as many frictions, x = FRICTIONS,
    with tau such that a held force f moves q by g f, as the block's own dynamics do: g is `Flow.push`, about
    r k h/gamma, or r k h without a momentum, where eta = 1 and p begins at a draw of N(0, T). So stages grow
    with the root of the stiffness, where substeps grow with the stiffness. In a well of curvature c

    - it is stable for c eta tau^2 < 4: for c g < 0.56 m^2 at FRICTIONS, and c g < 2 m^2 without friction,
      where q' = T_m(1 - c g/m^2) q + ... by Chebyshev's polynomial, as in SK-ROCK;
    - stationary are q ~ N(0, T/c) and p ~ N(0, T/eta (1 - c eta tau^2/4)), independent, whatever k; without a
      momentum q is so to 1% at 3/4 of the stable range (m >= 4), for its p begins at N(0, T);
    - SK-ROCK's damping, by a shift of the polynomial's argument, contracts q also where no noise gets in, and
      so loses the variance. Friction comes with its noise.

    Weak order 1 in h without a momentum; 2 with one. Over no steps nothing moves, to the bit.

    Source: Abdulle, Almuslimani, Vilmart 2018, doi:10.1137/17M1145859 (SK-ROCK); Leimkuhler, Matthews 2013
    (BAOAB). That few frictions stand for many is ours.
    """

    def __init__(self, block: Block, h: float, cap: int, stages: int, device: torch.device) -> None:
        self.block = block
        rows = [[_numbers(one, k * h, stages) for k in range(cap + 1)] for one in block.replicas]
        self._rows = torch.tensor(rows, dtype=torch.float64, device=device)

    def numbers(self, times: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """tau, tau eta/2, w and the noise's sqrt((1 - w^2) T/eta), [R, b, 1, 1] each, over times [R, b]."""
        rows = self._rows.expand(len(times), -1, -1)
        found = rows.gather(1, times[..., None].expand(-1, -1, rows.shape[-1])).to(dtype)
        return [column[..., None, None] for column in found.unbind(-1)]


def stabilised(
    system: BlockSystem,
    steps: Sequence[StabilisedStep],
    z: State,
    times: Tensor,
    normals: dict[str, Tensor],
    stages: int,
    t: Any = 0.0,
) -> State:
    """What the blocks' stabilised steps change in z; theta is held, and the time at t.

    times     [R, b], over how many steps each datum is taken
    normals   [stages, R, *shape] by noisy variable, none at T = 0; without a momentum the first draw p
    """
    new: State = {}
    p: State = {}
    blocks = [step.block for step in steps]
    numbers = [step.numbers(times, z[step.block.position].dtype) for step in steps]
    for b in blocks:
        q = z[b.position]
        new[b.position] = q
        if b.momentum is not None:
            p[b.name] = z[b.momentum]
        else:
            p[b.name] = b.root_temperature * normals[b.noisy][0] if b.noisy in normals else q * 0
    f = system.forces(t, z, blocks)
    for i in range(1, stages):
        for b, (tau, drift, w, noise) in zip(blocks, numbers, strict=True):
            kick = tau / 2 if i == 1 else tau
            moving = plus(p[b.name], (kick, f[b.name]))
            q = plus(new[b.position], (drift, moving))
            moving = w * moving
            if b.noisy in normals:
                moving = plus(moving, (noise, normals[b.noisy][i]))
            new[b.position], p[b.name] = plus(q, (drift, moving)), moving
        f = system.forces(t, z | new, blocks)
    for b, (tau, *_) in zip(blocks, numbers, strict=True):
        if b.momentum is not None:
            new[b.momentum] = plus(p[b.name], (tau / 2, f[b.name]))
    return new


def _numbers(block: Block, h: float, stages: int) -> tuple[float, float, float, float]:
    m, eta = stages - 1, block.eta if block.kinetic else 1.0
    own = block.gamma * eta * block.rate * h if block.kinetic else math.inf
    w = math.exp(-min(own, FRICTIONS) / m)
    if own <= FRICTIONS:
        tau = block.rate * h / m
    else:
        push = float(block.flow(h).push) if block.kinetic else block.rate * h
        tau = math.sqrt(push / (eta * _response(w, m)))
    return tau, eta * tau / 2, w, math.sqrt((1 - w**2) * block.temperature / eta)


@cache
def _response(w: float, m: int) -> float:
    """How far m steps of tau = eta = 1 move q from rest under a force of 1."""
    q, p = 0.0, 0.5
    for _ in range(m):
        q, p = q + (1 + w) / 2 * p, w * p + 1
    return q


def is_stable(block: Block, h: float, curvature: float, stages: int) -> bool:
    """Whether a step h is stable on a well of that curvature."""
    tau, drift, _, _ = _numbers(block, h, stages)
    return 2 * tau * drift * curvature <= 4


def least_stages(block: Block, h: float, curvature: float) -> int:
    """How many stages keep a step h stable on a well of that curvature; 1,000 stands for more, too."""
    return next((s for s in range(2, 1000) if is_stable(block, h, curvature, s)), 1000)

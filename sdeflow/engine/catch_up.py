"""Catching up: particles of data that minibatches missed move on before their step, with theta held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdeflow.options import Batch
from sdeflow.seeds import generator
from sdeflow.state import Replicas, State, plus
from sdeflow.system.increments import Channel, NoiseSpec
from sdeflow.system.maps import U, exponential
from sdeflow.system.varying import FlowTable

if TYPE_CHECKING:
    from sdeflow.engine.engine import Engine
    from sdeflow.state import Coefficient
    from sdeflow.system.block import Block
    from sdeflow.system.increments import Noise
    from sdeflow.system.system import BlockSystem


class CatchUp:
    """Moves the particles of a minibatch by the time that they missed, as `Batch.catch_up` says.

    What an optimizer moves has no time to catch up on.

    system   the minibatch's system, whose forces have been shown its data
    noise    its noise source, with channels of its own
    """

    def __init__(self, system: BlockSystem, batch: Batch, engine: Engine, replicas: Replicas) -> None:
        self._system, self._batch = system, batch
        self._blocks = [b for b in system.blocks if b.of_data and b.optimizer is None]
        longest = 1 if batch.catch_up == "substeps" else batch.cap
        self._flows = [FlowTable(b, system.h, longest, replicas.device) for b in self._blocks]
        self._channels = [
            replace(c, key=f"{c.key}/catch-up")
            for c in system.channels
            if c.block is not None and c.block.of_data and batch.extra_evaluations
        ]
        self._substeps = batch.cap if batch.catch_up == "substeps" else 1
        self.noise = engine.source(self._channels, NoiseSpec("PQ", self._substeps, system.h), replicas)

    def __call__(self, z: State, missed: Tensor, normals: Sequence[Tensor]) -> State:
        """The state after data (r, i) took missed[r, i] steps, at most `cap`.

        normals   of the noise by channel, [substep, normal, R, *shape]
        """
        if self._batch.catch_up == "off" or not self._blocks:
            return z
        dtype, h = z[self._blocks[0].position].dtype, self._system.h
        missed = missed.clamp(max=self._batch.cap)
        for i in range(self._substeps):
            times = (missed > i).long() if self._batch.catch_up == "substeps" else missed
            late = [flows.block_over(times, dtype) for flows in self._flows]
            taken = h * times.to(dtype)[..., None, None]
            noise = {
                c.variable: Channel(c.key, c.variable, c.shape, block).increment(xi[i].unbind(), taken, "PQ")
                for block in late
                for c, xi in zip(self._channels, normals, strict=True)
                if c.variable == block.noisy
            }
            if self._batch.catch_up == "srock":
                z = z | stabilised(self._system, late, z, taken, noise, self._batch.used_stages)
            else:
                z = z | exponential(late, z, self._system.forces(0.0, z, late), taken, noise)
        return z

    def warning(self, z: State) -> str:
        """What to know of catching up by one long step, or ''.

        The largest curvature of -l_i at z comes from 8 power iterations on differences of the score; a step
        of size k h is stable at curvature c where its map contracts.
        """
        cap, h, catch_up = self._batch.cap, self._system.h, self._batch.catch_up
        if catch_up not in ("one_step", "srock"):
            return ""
        stages, mend = self._batch.used_stages, "Lower batch.cap or take catch_up = 'srock' or 'substeps'"
        for b in self._blocks:
            c = _curvature(self._system, b, z)
            if catch_up == "srock":
                stable = [k for k in range(1, cap + 1) if _least_stages(b, k * h, c) <= stages]
                enough = _least_stages(b, cap * h, c)
                mend = f"Give batch.stages = {enough} in place of {stages}, or lower batch.cap"
            else:
                stable = [k for k in range(1, cap + 1) if _contraction(b, k * h, c) <= 1]
            if len(stable) < cap:
                return (
                    f"a catch-up step of {cap} h can leave the stable range of {b.position}: the largest "
                    f"curvature at the start is about {c:.3g}, for which steps up to "
                    f"{max(stable, default=0)} h are stable. {mend}"
                )
        return ""


def stabilised(
    system: BlockSystem, blocks: Sequence[Block], z: State, h: Coefficient, noise: Noise, stages: int
) -> State:
    """One long step h, kept stable by s stages: evaluations of the forces. h may differ by datum.

    With q* and p* where a block would be without a force (the map U, noise included), and with what a held
    force f moves q by, g f: g = (h - (1-w)/k)/gamma, or r h without a momentum,

        v_0 = (q* - q)/s
        y_i = q_i + v_i/2,    v_{i+1} = v_i + 2 g/s^2 f(y_i),    q_{i+1} = y_i + v_{i+1}/2,    i = 0, ..., s-1
        q' = q_s,    p' = p* + (1-w)/k mean_i f(y_i)

    These are s leapfrog steps; before and after them noise renews the momentum, in part where there is one
    and as a whole where there is none. In a well of curvature c at temperature T, whatever h,

    - it is stable for c g < 2 s^2: to c h = 2 s^2 without a momentum, to c h = 2 gamma s^2 over many
      frictions, and to sqrt(eta c) h = 2 s over few, the stable range of s leapfrog steps;
    - stationary are q ~ N(0, T/c (1 - c g/(2 s^2))) and p ~ N(0, T/eta), independent;
    - q' = T_s(x) q + U_{s-1}(x) (1 + x)/(2 s) (q* - q) with Chebyshev's polynomials and x = 1 - c g/s^2. This is
      SK-ROCK without its damping, which would contract q also where U_{s-1} lets no noise in, and so lose
      the variance; beside a momentum it can diverge.

    Weak order 1 without a momentum, 2 with one. Where h = 0 nothing moves, to the bit.

    Source: Abdulle, Almuslimani, Vilmart 2018, doi:10.1137/17M1145859 (SK-ROCK); Horowitz 1991 (leapfrog steps
    between partly renewed momenta). How the two make one step with friction is ours.
    """
    new = U(blocks, z, h, noise)
    v = {b.position: (new[b.position] - z[b.position]) / stages for b in blocks}
    new |= {name: z[name] for name in v}
    for _ in range(stages):
        new |= {name: plus(new[name], (0.5, v[name])) for name in v}
        f = system.forces(0.0, z | new, blocks)
        for b in blocks:
            push = b.rate * h if b.momentum is None else b.flow(h).push
            v[b.position] = plus(v[b.position], (2 * push / stages**2, f[b.name]))
            if b.momentum is not None:
                new[b.momentum] = plus(new[b.momentum], (b.flow(h).kick / stages, f[b.name]))
        new |= {name: plus(new[name], (0.5, v[name])) for name in v}
    return new


def _curvature(system: BlockSystem, block: Block, z: State) -> float:
    """The largest curvature that a particle sees, by power iteration for each of them."""
    x = z[block.position]
    score = system.forces(0.0, z, [block])[block.name]
    direction = torch.randn(x.shape, generator=generator(0, "curvature"), dtype=torch.float64).to(x)
    largest, length = 0.0, 1e-2 * x.shape[-1] ** 0.5
    for _ in range(8):
        direction = direction * (length / direction.norm(dim=-1, keepdim=True))
        moved = z | {block.position: x + direction}
        change = score - system.forces(0.0, moved, [block])[block.name]
        curved = change.norm(dim=-1, keepdim=True)
        largest = float(curved.max()) / length
        direction = torch.where(curved > 0, change, direction)
    return largest


def _contraction(block: Block, h: float, curvature: float) -> float:
    """Spectral radius of the exponential integrator's step on a well of that curvature."""
    if not block.kinetic:
        return abs(1 - block.rate * h * curvature)
    c = block.flow(h)
    step = torch.tensor([[1 - c.push * curvature, c.free], [-c.kick * curvature, c.w]], dtype=torch.float64)
    return float(torch.linalg.eigvals(step).abs().max())


def _least_stages(block: Block, h: float, curvature: float) -> int:
    """How many stages keep a step h stable on a well of that curvature."""
    push = block.flow(h).push if block.kinetic else block.rate * h
    return max(1, math.ceil(math.sqrt(curvature * push / 2)))

"""Catching up: particles of data that minibatches missed move on before their step, with theta held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdeflow.options import Batch
from sdeflow.seeds import generator
from sdeflow.state import Replicas, State
from sdeflow.system.increments import Channel, NoiseSpec
from sdeflow.system.maps import exponential
from sdeflow.system.varying import FlowTable

if TYPE_CHECKING:
    from sdeflow.engine.engine import Engine
    from sdeflow.system.block import Block
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
        spec = NoiseSpec("PQ", max(1, batch.extra_evaluations), system.h)
        self.noise = engine.source(self._channels, spec, replicas)

    def __call__(self, z: State, missed: Tensor, normals: Sequence[Tensor]) -> State:
        """The state after data (r, i) took missed[r, i] steps, at most `cap`.

        normals   of the noise by channel, [substep, normal, R, *shape]
        """
        if self._batch.catch_up == "off" or not self._blocks:
            return z
        dtype, h = z[self._blocks[0].position].dtype, self._system.h
        missed = missed.clamp(max=self._batch.cap)
        for i in range(self._batch.extra_evaluations):
            times = missed if self._batch.catch_up == "one_step" else (missed > i).long()
            late = [flows.block_over(times, dtype) for flows in self._flows]
            taken = h * times.to(dtype)[..., None, None]
            noise = {
                c.variable: Channel(c.key, c.variable, c.shape, block).increment(xi[i].unbind(), taken, "PQ")
                for block in late
                for c, xi in zip(self._channels, normals, strict=True)
                if c.variable == block.noisy
            }
            z = z | exponential(late, z, self._system.forces(0.0, z, self._blocks), taken, noise)
        return z

    def warning(self, z: State) -> str:
        """What to know of catching up by one long step, or ''.

        The largest curvature of -l_i at z comes from 8 power iterations on differences of the score; a step
        of size k h is stable at curvature c where its one-step map contracts.
        """
        if self._batch.catch_up != "one_step":
            return ""
        for b in self._blocks:
            c = _curvature(self._system, b, z)
            steps = range(1, self._batch.cap + 1)
            stable = [k for k in steps if _contraction(b, k * self._system.h, c) <= 1]
            if len(stable) < self._batch.cap:
                return (
                    f"a catch-up step of {self._batch.cap} h can leave the stable range of {b.position}: the "
                    f"largest curvature at the start is about {c:.3g}, for which steps up to "
                    f"{max(stable, default=0)} h are stable. Lower batch.cap or take catch_up = 'substeps'"
                )
        return ""


def _curvature(system: BlockSystem, block: Block, z: State) -> float:
    """The largest curvature that a particle block sees, by power iteration."""
    x = z[block.position]
    score = system.forces(0.0, z, [block])[block.name]
    direction = torch.randn(x.shape, generator=generator(0, "curvature"), dtype=torch.float64).to(x)
    largest = 0.0
    for _ in range(8):
        direction = direction * (1e-2 * x.numel() ** 0.5 / direction.norm())
        moved = z | {block.position: x + direction}
        change = score - system.forces(0.0, moved, [block])[block.name]
        largest = float(change.norm() / direction.norm())
        if largest == 0:
            break
        direction = change
    return largest


def _contraction(block: Block, h: float, curvature: float) -> float:
    """Spectral radius of the exponential integrator's step on a well of that curvature."""
    if not block.kinetic:
        return abs(1 - block.rate * h * curvature)
    c = block.flow(h)
    step = torch.tensor([[1 - c.push * curvature, c.free], [-c.kick * curvature, c.w]], dtype=torch.float64)
    return float(torch.linalg.eigvals(step).abs().max())

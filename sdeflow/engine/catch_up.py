"""Catching up: particles of data that minibatches missed move on before their step, with theta held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdeflow.engine.stabilised import StabilisedStep, is_stable, least_stages, stabilised
from sdeflow.options import Batch
from sdeflow.seeds import generator
from sdeflow.state import Replicas, State
from sdeflow.system.increments import Channel, Kind, NoiseSpec
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
        self._scheduled, self._device = any(b.schedules for b in self._blocks), replicas.device
        self._steady = [] if self._scheduled else self._tables(0)
        staged = self._blocks if batch.catch_up == "srock" else []
        self._staged = [
            StabilisedStep(b, system.h, batch.cap, batch.used_stages, replicas.device) for b in staged
        ]
        self._channels = [
            replace(c, key=f"{c.key}/catch-up")
            for c in system.channels
            if c.block is not None and c.block.of_data and batch.extra_evaluations
        ]
        kind: Kind = "P" if batch.catch_up == "srock" else "PQ"
        spec = NoiseSpec(kind, max(1, batch.extra_evaluations), system.h)
        self.noise = engine.source(self._channels, spec, replicas)

    def __call__(
        self, z: State, missed: Tensor, normals: Sequence[Tensor], n: int | Tensor = 0, t: Any = 0.0
    ) -> State:
        """The state before step n after data (r, i) took missed[r, i] steps, at most `cap`: the last ones.

        normals   of the noise by channel, [substep, normal, R, *shape]
        t         the time of step n, at which forces are held as theta is
        """
        if self._batch.catch_up == "off" or not self._blocks:
            return z
        dtype, h = z[self._blocks[0].position].dtype, self._system.h
        missed = missed.clamp(max=self._batch.cap)
        if self._batch.catch_up == "srock":
            xi = {c.variable: of[:, 0] for c, of in zip(self._channels, normals, strict=True)}
            return z | stabilised(self._system, self._staged, z, missed, xi, self._batch.used_stages, t)
        tables = self._tables(int(n)) if self._scheduled else self._steady
        for i in range(self._batch.extra_evaluations):
            times = missed if self._batch.catch_up == "one_step" else (missed > i).long()
            own = times
            if self._scheduled and self._batch.catch_up == "substeps":  # each datum's own last steps
                own = times * (1 + self._batch.cap - missed + i)
            late = [
                table.block_over(own if b.schedules else times, dtype)
                for b, table in zip(self._blocks, tables, strict=True)
            ]
            taken = h * times.to(dtype)[..., None, None]
            noise = {
                c.variable: Channel(c.key, c.variable, c.shape, block).increment(xi[i].unbind(), taken, "PQ")
                for block in late
                for c, xi in zip(self._channels, normals, strict=True)
                if c.variable == block.noisy
            }
            z = z | exponential(late, z, self._system.forces(t, z, self._blocks), taken, noise)
        return z

    def _tables(self, n: int) -> list[FlowTable]:
        """By block: no step, and for one_step the last 1, 2, ..., cap before step n as one; for substeps one
        step, or where numbers are scheduled each of the last cap, from the earliest on.
        """
        cap, one_step = self._batch.cap, self._batch.catch_up == "one_step"

        def stretches(b: Block, h: float) -> list[tuple[Block, float]]:
            none = [(b.at(0), 0.0)]
            if not b.schedules:
                return none + [(b, b.rate * h * k) for k in range(1, cap + 1 if one_step else 2)]
            last = [b.at(max(n - k, 0)) for k in range(1, cap + 1)]
            own = [one.rate * h for one in last]
            if not one_step:
                return [*none, *zip(reversed(last), reversed(own), strict=True)]
            sums = [sum(own[:k]) for k in range(1, cap + 1)]
            last = [replace(last[0], rate=time / (h * k)) for k, time in enumerate(sums, 1)]
            return [*none, *zip(last, sums, strict=True)]

        return [
            FlowTable(b, [stretches(one, self._system.h) for one in b.replicas], self._device)
            for b in self._blocks
        ]

    def warning(self, z: State) -> str:
        """What to know of catching up by one long step, or ''.

        The largest curvature of -l_i at z comes from 8 power iterations on differences of the score; a step
        of size k h is stable at curvature c where its map contracts.
        """
        cap, h, stages = self._batch.cap, self._system.h, self._batch.used_stages
        staged = self._batch.catch_up == "srock"
        if self._batch.catch_up != "one_step" and not staged:
            return ""
        for b in self._blocks:
            c = _curvature(self._system, b, z)
            stable = [
                k
                for k in range(1, cap + 1)
                if all(
                    is_stable(one, k * h, c, stages) if staged else _contraction(one, k * h, c) <= 1
                    for one in b.replicas
                )
            ]
            if len(stable) < cap:
                instead = "catch_up = 'srock' or 'substeps'"
                if staged:
                    enough = max(least_stages(one, cap * h, c) for one in b.replicas)
                    instead = f"batch.stages = {enough}, not {stages}"
                return (
                    f"a catch-up step of {cap} h can leave the stable range of {b.position}: the largest "
                    f"curvature at the start is about {c:.3g}, for which steps up to "
                    f"{max(stable, default=0)} h are stable. Lower batch.cap or take {instead}"
                )
        return ""


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

"""Minibatches over data: which data a step sees, and how particles that were missed catch up.

A step gathers the particles of its batch, steps them, and scatters them back; other particles stay. The
gradient in theta is scaled by D/b and nothing else is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdeflow.engine.compiled import CompiledSteps
from sdeflow.engine.engine import Engine
from sdeflow.errors import SdeflowError
from sdeflow.options import Batch
from sdeflow.seeds import generator
from sdeflow.state import State
from sdeflow.system.block import Block
from sdeflow.system.increments import Channel, Noise, noise_of
from sdeflow.system.integrator import Integrator, evaluations
from sdeflow.system.maps import exponential
from sdeflow.system.system import BlockSystem
from sdeflow.system.varying import _Table

VISITED = "visited"
"""State variable [R, D]: the number of steps that had been taken when a datum was last in a batch, or 0."""


class MiniBatches:
    """Advances a model's system by minibatches: `z = batches(z, n)` is step n (see sdeflow.engine.Step).

    The order of the data depends on (seed, epoch) only. Raises SdeflowError for a batch larger than the
    data and for a system without data.
    """

    def __init__(
        self,
        system: BlockSystem,
        integrator: Integrator[BlockSystem],
        batch: Batch,
        *,
        seeds: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        engine: Engine = Engine(),  # noqa: B008 (it cannot change)
        every: int = 1,
    ) -> None:
        if system.model_forces is None:
            raise SdeflowError("minibatches need a model's forces, and this system's are a function")
        self.system, self.integrator, self.batch = system, integrator, batch
        self.data, self.device = system.model_forces.n_data, device
        if not integrator.minibatches:
            raise SdeflowError(
                f"integrator '{integrator.name}' takes no minibatches: it is a reference for whole data"
            )
        if batch.size > self.data:
            raise SdeflowError(f"a batch of {batch.size} is larger than the data, D = {self.data}")
        self.seeds = seeds
        self._replica = torch.arange(len(seeds), device=device)[:, None]
        self._epoch, self._order = -1, torch.empty(0)
        of_data = [b for b in system.blocks if b.dims[0] == "datum"]
        self._variables = [name for b in of_data for name in b.variables]
        # One system for all steps, whose forces are shown the data of each: a compiled step is of one system.
        self._part = system.on(torch.zeros(len(seeds), batch.size, dtype=torch.long, device=device))
        self._channels = list(self._part.channels)
        self._how: dict[str, Any] = {"kind": integrator.noise, "substeps": integrator.substeps, "h": system.h}
        common: dict[str, Any] = {"seeds": seeds, "dtype": dtype, "device": device}
        self._noise = engine.source(self._channels, **self._how, **common)
        longest = 1 if batch.catch_up == "substeps" else batch.cap
        self._late = [_Table(b, system.h, longest, device) for b in of_data]
        self._late_channels = [
            replace(c, key=f"{c.key}/catch-up")
            for c in self._channels
            if c.block is not None and c.block.dims[0] == "datum" and batch.extra_evaluations
        ]
        substeps = max(1, batch.extra_evaluations)
        self._late_noise = engine.source(
            self._late_channels, kind="PQ", substeps=substeps, h=system.h, **common
        )
        self._compiled = (
            CompiledSteps(self._transition, self._draw, evaluations(integrator, batch), every)
            if engine.name == "compiled"
            else None
        )
        self.stride = 1 if self._compiled is None else self._compiled.stride

    def start(self, z: State) -> State:
        """The state with what minibatches keep in it."""
        return z | {VISITED: torch.zeros(len(self.seeds), self.data, dtype=torch.long, device=self.device)}

    def index(self, n: int) -> Tensor:
        """The data of step n, [R, b], ascending."""
        per_epoch = self.data // self.batch.size
        epoch, position = divmod(n, per_epoch)
        if epoch != self._epoch:
            orders = [torch.randperm(self.data, generator=generator(s, "epoch", epoch)) for s in self.seeds]
            used = torch.stack(orders)[:, : per_epoch * self.batch.size]
            # ascending within a batch: memory is read in order, and a batch of all data is the data
            self._order = used.view(len(orders), per_epoch, -1).sort(-1).values.to(self.device)
            self._epoch = epoch
        return self._order[:, position]

    def check(self, z: State) -> None:
        """Tries the system on the first batch; raises SdeflowError for what does not fit."""
        index = self.index(0)
        self._part.see(index)
        self._part.check(self._gather(z, index))

    def warning(self, z: State) -> str:
        """What to know of catching up by one long step, or ''.

        The largest curvature of -l_i on the first batch comes from 8 power iterations on differences of the
        score; a step of size k h is stable at curvature c where its one-step map contracts.
        """
        if self.batch.catch_up != "one_step":
            return ""
        index = self.index(0)
        part, system = self._gather(z, index), self._part
        system.see(index)
        for b in system.particles:
            if b.dims[0] != "datum":
                continue
            c = _curvature(system, b, part)
            stable = [k for k in range(1, self.batch.cap + 1) if _contraction(b, k * system.h, c) <= 1]
            if len(stable) < self.batch.cap:
                return (
                    f"a catch-up step of {self.batch.cap} h can leave the stable range of {b.position}: the "
                    f"largest curvature at the start is about {c:.3g}, for which steps up to "
                    f"{max(stable, default=0)} h are stable. Lower batch.cap or take catch_up = 'substeps'"
                )
        return ""

    def __call__(self, z: State, n: int, count: int = 1) -> State:
        if self._compiled is not None:
            return self._compiled(z, n, count)
        for k in range(n, n + count):
            late = [xi[0] for _, xi in self._late_noise.normals(k)]
            z = self._step(z, k, self.index(k), self._noise(k), late)
        return z

    def _draw(self, n: int, count: int) -> list[Tensor]:
        """What steps need besides the state: n, data, normals, and those for catching up; [count, ...]."""
        steps = range(n, n + count)
        return [
            torch.tensor(steps, device=self.device),
            torch.stack([self.index(k) for k in steps]),
            *(xi for source in (self._noise, self._late_noise) for _, xi in source.normals(n, count)),
        ]

    def _transition(self, z: State, draws: Sequence[Tensor]) -> State:
        n, index, *normals = draws
        own = zip(self._channels, normals, strict=False)
        return self._step(z, n, index, noise_of(own, **self._how), normals[len(self._channels) :])

    def _step(
        self, z: State, n: int | Tensor, index: Tensor, noise: tuple[Noise, ...], late: Sequence[Tensor]
    ) -> State:
        """Step n on data `index` [R, b]; `late` are normals by channel [substep, normal, R, *shape]."""
        system, part = self._part, self._gather(z, index)
        system.see(index)
        part = self._catch_up(system, part, n - part.pop(VISITED), late)
        part |= self.integrator.init(system, part)  # forces kept from another batch are of no use
        # a model's forces do not depend on time
        part = self.integrator.step(system, 0.0, part, system.h, noise)
        part[VISITED] = torch.zeros_like(index) + (n + 1)
        # a new tensor rather than a change in place, so that a step cut short leaves the old state whole;
        # what the integrator keeps for the same data is let go
        at, scattered = (self._replica, index), (*self._variables, VISITED)
        return {k: v.index_put(at, part[k]) if k in scattered else part[k] for k, v in z.items()}

    def _gather(self, z: State, index: Tensor) -> State:
        """The state with the particles of data `index` [R, b] alone."""
        of_data = (*self._variables, VISITED)
        return {k: v[self._replica, index] if k in of_data else v for k, v in z.items()}

    def observe(self, t: float, z: State) -> dict[str, Tensor]:
        """The system's observables on as many data as a batch has, spread evenly and the same every time."""
        index = torch.linspace(0, self.data - 1, self.batch.size, device=self.device).round().long()
        index = index.expand(len(self.seeds), -1)
        self._part.see(index)
        return self._part.observe(t, self._gather(z, index))

    def _catch_up(self, system: BlockSystem, z: State, missed: Tensor, normals: Sequence[Tensor]) -> State:
        if self.batch.catch_up == "off":
            return z
        blocks = [b for b in system.blocks if b.dims[0] == "datum"]
        for i in range(self.batch.extra_evaluations):
            one = self.batch.catch_up == "one_step"
            times = missed.clamp(max=self.batch.cap) if one else (missed.clamp(max=self.batch.cap) > i).long()
            dtype = z[blocks[0].position].dtype
            late = [table.late(times, dtype) for table in self._late]
            h = system.h * times.to(dtype)[..., None, None]
            noise = {
                c.variable: Channel(c.key, c.variable, c.shape, block).increment(xi[i].unbind(), h, "PQ")
                for block in late
                for c, xi in zip(self._late_channels, normals, strict=True)
                if c.variable == block.noisy
            }
            z = z | exponential(late, z, system.forces(0.0, z, blocks), h, noise)
        return z


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

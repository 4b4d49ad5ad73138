"""Minibatches over data: which data a step sees.

A step gathers the particles of its batch, steps them, and scatters them back; other particles stay. The
gradient in theta is scaled by D/b and nothing else is. A model may make of its data what a step sees of them,
by uniform numbers that depend on the seed, the epoch and the datum alone (`Model.at_access`). Of data that
are not in memory those of a step are read while the one before it is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdeflow.engine.catch_up import CatchUp
from sdeflow.engine.compiled import CompiledSteps
from sdeflow.engine.cuda_graph import GraphedSteps
from sdeflow.engine.read_ahead import ReadAhead
from sdeflow.errors import SdeflowError, attempt
from sdeflow.noise.uniform import uniform_of
from sdeflow.options import Batch
from sdeflow.parallel.shard import Shard
from sdeflow.seeds import generator
from sdeflow.state import Replicas, State, sent
from sdeflow.system.increments import Channel, Noise, noise_of
from sdeflow.system.integrator import Integrator, evaluations, init_at
from sdeflow.system.traced import StepNumbers

if TYPE_CHECKING:
    from sdeflow.engine.engine import Engine
    from sdeflow.system.system import BlockSystem

VISITED = "visited"
"""State variable [R, D]: the number of steps that had been taken when a datum was last in a batch, or 0."""


class MiniBatches:
    """Advances a model's system by minibatches: `z = batches(z, n)` is step n, a `Stepper`.

    The order of the data depends on (seed, epoch) only, and so do uniform numbers for a datum.
    Raises SdeflowError for a batch larger than the data and for a system without data.

    compiled   what takes its steps, where they are compiled

    every   steps from one snapshot to the next
    shard   the data that the system has, where others have the rest; its part of each minibatch is taken
    """

    def __init__(
        self,
        system: BlockSystem,
        integrator: Integrator[BlockSystem],
        batch: Batch,
        replicas: Replicas,
        engine: Engine,
        *,
        every: int = 1,
        shard: Shard | None = None,
    ) -> None:
        if system.model_forces is None:
            raise SdeflowError("minibatches need a model's forces, and this system's are a function")
        if not integrator.minibatches:
            raise SdeflowError(
                f"integrator '{integrator.name}' takes no minibatches: its steps are of all data"
            )
        self.n_data, model = system.model_forces.n_data, system.model_forces.model
        self._transforms = len(system.model_forces.transforms)
        self._redrawn = model.data if self._transforms else None
        self._shard = shard = shard or Shard.of(self.n_data)
        if batch.size > shard.data:
            raise SdeflowError(f"a batch of {batch.size} is larger than the data, D = {shard.data}")
        self.integrator, self.batch, self.replicas = integrator, batch, replicas
        self.per_epoch = shard.data // batch.size
        self._replica = torch.arange(replicas.count, device=replicas.device)[:, None]
        # two epochs, as data may be read ahead into the next
        self._order = order = lru_cache(maxsize=2)(partial(_order, replicas, shard, batch.size))
        self._placed = lru_cache(maxsize=2)(lambda epoch: sent(order(epoch), replicas.device))
        self._of_data = (
            VISITED,
            *(name for b in system.blocks if b.of_data for name in (*b.variables, *b.kept.values())),
        )
        # One system for all steps, whose forces are shown the data of each: a compiled step is of one system.
        self._even = evenly_of(shard, batch.size).to(replicas.device).expand(replicas.count, -1)
        first = torch.cat([torch.full((batch.size // shard.strata,), p.start) for p in shard.pieces])
        first = first.to(replicas.device).expand(replicas.count, -1)
        self._part = system.minibatch(first, shard.of_batch(batch.size).start)
        forces = self._part.force_field
        self._init = init_at(integrator, timed=forces.timed)
        self._ahead = ReadAhead(forces.fetch) if forces.stored else None
        self._spec = integrator.noise_spec(system.h)
        self._noise = engine.source(self._part.channels, self._spec, replicas)
        self._catch_up = CatchUp(self._part, batch, engine, replicas)
        self._numbers = StepNumbers(self._part)
        cost, keeps = evaluations(integrator, batch), not forces.shared
        self.compiled = (
            CompiledSteps(self._transition, self._draw, cost, every, self._ask, keeps=keeps)
            if engine.name == "compiled"
            else None
        )
        numbers = sum(prod(axes.shape) for axes in system.axes.values())
        self._graphed = (
            GraphedSteps(self._replayed, counters, self._shown, every, numbers)
            if (counters := engine.counters(self._part, integrator, self._noise, self._catch_up.noise))
            else None
        )
        steps = self.compiled or self._graphed
        self.stride = 1 if steps is None else steps.stride

    def start(self, z: State) -> State:
        """The state with what minibatches keep in it."""
        shape, device = (self.replicas.count, self.n_data), self.replicas.device
        return z | {VISITED: torch.zeros(shape, dtype=torch.long, device=device)}

    def index(self, n: int) -> Tensor:
        """The data of step n, [R, b], ascending."""
        epoch, position = divmod(n, self.per_epoch)
        return self._placed(epoch)[:, position]

    def _fetched(self, n: int) -> Sequence[Any] | None:
        """What is read for step n of data that are not in memory; None where all are."""

        def on_host(n: int) -> Tensor:
            epoch, position = divmod(n, self.per_epoch)
            return self._order(epoch)[:, position]

        return None if self._ahead is None else self._ahead(n, on_host)

    def uniform(self, n: int) -> Tensor | None:
        """Numbers on [0, 1) for what step n makes of its data, [R, b, transforms, ...]; None without any."""
        if self._redrawn is None:
            return None
        shape, of = self._redrawn.shape[1:], self.replicas
        data = self.index(n) + self._shard.first
        return uniform_of(of.seeds, n // self.per_epoch, data, shape, of.dtype, self._transforms)

    def check(self, z: State) -> None:
        """Tries the system on the first batch; raises SdeflowError for what does not fit."""
        what = f"{type(self._part.definition).__name__}.at_access"
        self._part.check(attempt(what, self._show, z, self.index(0), self.uniform(0)))

    def part(self, system: BlockSystem, z: State, n: int) -> tuple[BlockSystem, State]:
        """The system and the state of the data of step n."""
        index = self.index(n)
        part = {k: v[self._replica, index] if k in self._of_data else v for k, v in z.items()}
        return system.minibatch(index), part

    def warning(self, z: State) -> str:
        """What to know of catching up by one long step, or ''."""
        return self._catch_up.warning(self._show(z, self.index(0)))

    def observe(self, t: float, z: State) -> dict[str, Tensor]:
        """The system's observables on as many data as a batch has, spread evenly and the same every time."""
        return self._part.observe(t, self._show(z, self._even))

    def __call__(self, z: State, n: int, count: int = 1) -> State:
        steps = self.compiled or self._graphed or self._one_by_one
        return steps(z, n, count)

    def _one_by_one(self, z: State, n: int, count: int = 1) -> State:
        for k in range(n, n + count):
            late = [xi[0] for _, xi in self._catch_up.noise.normals(k)]
            system, uniform = self._part.at(k), self.uniform(k)
            fetched = self._fetched(k)
            z = self._step(system, z, k, self.index(k), uniform, self._noise(k), late, fetched)
        return z

    def _ask(self, z: State) -> None:
        """Lets a step tell what is to be drawn for it of numbers that are scheduled."""
        draws = [x[0] for x in self._draw(0, 1)]
        self._numbers.ask(lambda system, channels: self._taken(system, channels, z, draws), z[VISITED].device)

    def _draw(self, n: int, count: int) -> list[Tensor]:
        """What steps need besides the state: n, data, uniform numbers where there are any, normals, and those
        for catching up; [count, ...]."""
        return [
            *self._shown(n, count),
            *(xi for source in (self._noise, self._catch_up.noise) for _, xi in source.normals(n, count)),
            *self._numbers.rows(n, count),
        ]

    def _shown(self, n: int, count: int) -> list[Tensor]:
        """What steps that draw their normals themselves need besides: n, data, and uniform numbers."""
        steps = range(n, n + count)
        uniform = [u for k in steps if (u := self.uniform(k)) is not None]
        return [
            torch.arange(n, n + count, device=self.replicas.device),
            torch.stack([self.index(k) for k in steps]),
            *([torch.stack(uniform)] if uniform else []),
        ]

    def _replayed(self, z: State, k: int, draws: Sequence[Tensor]) -> State:
        """A step of which a graph is made; its noise is of k steps after what the counters say."""
        n, index, *uniform = draws
        late = [xi[0] for _, xi in self._catch_up.noise.normals(k)]
        return self._step(self._part, z, n, index, uniform[0] if uniform else None, self._noise(k), late)

    def _transition(self, z: State, draws: Sequence[Tensor]) -> State:
        return self._taken(self._numbers.system, self._numbers.channels, z, self._numbers.show(draws))

    def _taken(
        self, system: BlockSystem, channels: Sequence[Channel], z: State, draws: Sequence[Tensor]
    ) -> State:
        """A step of a system by what was drawn for it, but for its numbers."""
        n, index, *normals = draws
        uniform = None if self._redrawn is None else normals.pop(0)
        own, late = normals[: len(channels)], normals[len(channels) :]
        noise = noise_of(zip(channels, own, strict=True), self._spec)
        return self._step(system, z, n, index, uniform, noise, late)

    def _step(
        self,
        system: BlockSystem,
        z: State,
        n: int | Tensor,
        index: Tensor,
        uniform: Tensor | None,
        noise: tuple[Noise, ...],
        late: Sequence[Tensor],
        fetched: Sequence[Any] | None = None,
    ) -> State:
        """Step n of a system on data `index` [R, b]; `late` are the normals for catching up."""
        part = self._show(z, index, uniform, fetched)
        t: Any = (n.double() if isinstance(n, Tensor) else n) * system.h  # a tensor where it is compiled
        part = self._catch_up(part, n - part.pop(VISITED), late, n, t)
        part |= self._init(system, part, t)  # forces kept from another batch are of no use
        part = self.integrator.step(system, t, part, system.h, noise)
        part[VISITED] = torch.zeros_like(index) + (n + 1)
        # a new tensor rather than a change in place, so that a step cut short leaves the old state whole;
        # what the integrator keeps for the same data is let go
        at = (self._replica, index)
        return {k: v.index_put(at, part[k]) if k in self._of_data else part[k] for k, v in z.items()}

    def _show(
        self,
        z: State,
        index: Tensor,
        uniform: Tensor | None = None,
        fetched: Sequence[Any] | None = None,
    ) -> State:
        """Shows the forces data `index` [R, b]; gives the state with the particles of these alone."""
        self._part.see(index, uniform, fetched)
        return {k: v[self._replica, index] if k in self._of_data else v for k, v in z.items()}


def _order(replicas: Replicas, shard: Shard, size: int, epoch: int) -> Tensor:
    """A shard's data of the steps of an epoch, [R, steps, b], ascending in each; the rest of D/size has none.

    Each stratum has an order of its own, and as many data in a step.
    """
    steps, each = shard.data // size, size // shard.strata
    found = []
    for v, piece in zip(shard.own, shard.pieces, strict=True):
        name = ("epoch", epoch) if shard.strata == 1 else ("epoch", epoch, v)
        count = piece.stop - piece.start
        orders = [torch.randperm(count, generator=generator(seed, *name)) for seed in replicas.seeds]
        used = torch.stack(orders)[:, : steps * each]
        # ascending within a batch: memory is read in order, and a batch of all data is the data
        found.append(used.view(len(orders), steps, each).sort(-1).values + piece.start)
    return torch.cat(found, -1)


def evenly_of(shard: Shard, size: int) -> Tensor:
    """A shard's part of `size` data that are spread evenly over each stratum."""
    each = size // shard.strata
    return torch.cat([evenly(p.stop - p.start, each) + p.start for p in shard.pieces])


def evenly(n: int, most: int) -> Tensor:
    """Indices of at most so many of n data, spread evenly and the same every time."""
    return torch.linspace(0, n - 1, min(n, most)).round().long()

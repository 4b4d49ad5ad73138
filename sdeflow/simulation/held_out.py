"""The loss on data that the parameters never see, whose particles move with theta held fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdeflow.model.forces import ModelForces, held_out_forces
from sdeflow.noise.source import NormalSource, TorchNoise
from sdeflow.options import Evaluate
from sdeflow.parallel.ranks import ALONE, Ranks
from sdeflow.parallel.shard import Shard
from sdeflow.state import Replicas, State
from sdeflow.system.increments import Channel, NoiseSpec
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import BlockSystem, System, initial_state

PREFIX = "held_out."
LOSS = "held_out_loss"

AT_ONCE = 1000
"""Held-out data that are read at once where they are not in memory, and nothing else says how many."""


class HeldOut:
    """Moves the particles of a model's held-out data and measures their loss.

    Held-out particles start like the others and follow the dynamics of the system's particle blocks, by the
    run's scheme and numbers, on noise of their own: what is stable for the run is so for them. Where others
    take inner steps they take one, from where they are; draws of an encoder are drawn anew. They are part of
    the state, as 'held_out.X' [R, D', N, d], 'held_out.U' and what a rule keeps, and change no other number.
    Several processes share them where each gets one datum at least; else each has all.

    scheme    what moves them; forces that it keeps are computed anew at the start of each evaluation
    at_once   data whose forces are taken together, which bounds the memory

    Raises SdeflowError for a system without a model, or a model without held-out data of the right kind.
    """

    def __init__(
        self,
        system: System,
        scheme: Integrator[Any],
        evaluate: Evaluate,
        replicas: Replicas,
        *,
        at_once: int | None = None,
        ranks: Ranks = ALONE,
        source: Callable[[Sequence[Channel], NoiseSpec, Replicas], NormalSource] = TorchNoise,
    ) -> None:
        whole = held_out_forces(system.model_forces)
        self.n_data, self.n_particles = whole.n_data, whole.n_particles
        self._ranks = ranks if self.n_data >= ranks.size else ALONE
        self.shard = Shard.of(self.n_data, self._ranks.rank, self._ranks.size)
        forces = whole.part(self.shard.rows) if self._ranks.several else whole
        blocks = [
            replace(b, shape=(self.n_data, *b.shape[1:]), first=0, inner=None if b.steps else b.inner)
            for b in system.blocks
            if b.role == "particles"
        ]
        self._whole = BlockSystem(blocks, whole, h=system.h)
        self.system = self._whole.on_data(forces, self.shard.count, self.shard.first)
        self._variables = [name for b in blocks for name in (*b.variables, *b.kept.values())]
        self._moved = BlockSystem(self.system.blocks, self._forces, h=system.h)
        self._scheme = scheme = scheme.fitted(self._moved)
        self.evaluate, self._replicas = evaluate, replicas
        size = min(at_once or (AT_ONCE if forces.stored else forces.n_data), forces.n_data)
        self._index = torch.arange(forces.n_data, device=replicas.device).expand(replicas.count, -1)
        self._slices = [slice(i, i + size) for i in range(0, forces.n_data, size)]
        # of data that are not in memory each piece is read when it is looked at
        self._kept = None if forces.stored else [*self._pieces_of(forces)]
        self._all = forces
        channels = [replace(c, key=f"{c.key}/held-out") for c in self.system.channels]
        self._noise = source(channels, scheme.noise_spec(system.h), replicas)

    def start(self) -> State:
        """The particles at the start of a run; raises SdeflowError where the model cannot take the data."""
        z = initial_state(self._whole, self._replicas)
        own = {name: z[name][:, self.shard.rows].clone() for name in self._variables}
        piece, forces = next(iter(self._pieces))
        forces.check({"theta": z["theta"], "X": own["X"][:, piece]})
        return {PREFIX + name: value for name, value in own.items()}

    @property
    def shared(self) -> list[str]:
        """Names in the state of what processes have parts of."""
        return [PREFIX + name for name in self._variables] if self._ranks.several else []

    @property
    def _pieces(self) -> Iterable[tuple[slice, ModelForces]]:
        """The forces of one piece of the data after the other."""
        return self._pieces_of(self._all) if self._kept is None else self._kept

    def _pieces_of(self, forces: ModelForces) -> Iterator[tuple[slice, ModelForces]]:
        return ((piece, forces.minibatch(self._index[:, piece])) for piece in self._slices)

    def cost(self, last: int) -> str:
        """What the evaluations of a run of `last` steps cost, in words."""
        return self.evaluate.cost(last, self.n_data, self.n_particles)

    def look(self, z: State, n: int, last: int) -> tuple[State, dict[str, Tensor]]:
        """What a snapshot after step n of `last` finds: the state, and the loss, NaN where none is due.

        Where only the end of the run makes it due the particles go back to where they were, so that a longer
        run is the same up to here.
        """
        if n % self.evaluate.every and n != last:
            return z, {LOSS: z["theta"].new_full((self._replicas.count,), torch.nan)}
        moved = self.move(z, n)
        return (z if n % self.evaluate.every else moved), {LOSS: self.loss(moved)}

    def move(self, z: State, n: int) -> State:
        """The state after step n with its held-out particles moved, the rest as it was.

        Where numbers are scheduled these are those of the last step.
        """
        part = {"theta": z["theta"]} | {name: z[PREFIX + name] for name in self._variables}
        steps, last = self.evaluate.steps, max(n - 1, 0)
        moved = self._moved.at(last)
        with torch.no_grad():
            part |= self._scheme.init(moved, part)
            for i in range(n * steps, (n + 1) * steps):
                part = self._scheme.step(moved, i * moved.h, part, moved.h, self._noise(i, last))
        return z | {PREFIX + name: part[name] for name in self._variables}

    def loss(self, z: State) -> Tensor:
        """Mean over held-out data and particles of -log p_theta(x, y), [R]."""
        part = {"theta": z["theta"], "X": z[PREFIX + "X"]}
        with torch.no_grad():
            losses = self._in_pieces(part, lambda f, z: f.loss(z)[:, None] * z["X"].shape[1])
        return self._ranks.sum([losses.sum(1)])[0] / self.n_data

    def _forces(self, t: float, z: State, names: Sequence[str]) -> dict[str, Tensor]:
        """The scores of the particles of all data: no other block moves here."""
        scores = self._in_pieces(z, lambda forces, part: forces(t, part, ["x"])["x"])
        return dict.fromkeys(names, scores)

    def _in_pieces(self, z: State, one: Callable[[ModelForces, State], Tensor]) -> Tensor:
        """`one(forces, state)` on one piece of the data after the other, joined along axis 1."""
        return torch.cat([one(forces, z | {"X": z["X"][:, piece]}) for piece, forces in self._pieces], 1)

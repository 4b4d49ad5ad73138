"""The forces of a model whose data several processes share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.model.force_field import ModelField
from sdeflow.model.model import observes
from sdeflow.parallel.ranks import Ranks
from sdeflow.parallel.shard import Shard
from sdeflow.state import State
from sdeflow.system.system import BlockSystem, System

if TYPE_CHECKING:
    from sdeflow.model.model import ParameterLayout


class ShardedField(ModelField):
    """The forces on the particles of a process's data, and on the parameters the sum over all processes.

        force on theta   sum_r f_r,   f_r = (1/N) sum_{i in r} sum_j grad_theta l_i(theta, x_ij)
        force on x_ij    the model's own

    One reduction an evaluation of theta's force, none where particles alone are asked for. What particles of
    a prior feel is the same in every process.

    whole        the forces of all data
    parameters   the blocks whose forces are summed
    fixed        whether the sum is over strata, each computed by itself and added in their order: then it has
                 the same bits whatever the number of processes
    """

    def __init__(
        self, whole: ModelField, shard: Shard, ranks: Ranks, parameters: Collection[str], *, fixed: bool
    ) -> None:
        self._shard, self._ranks, self._parameters, self._fixed = shard, ranks, tuple(parameters), fixed
        self.shared = ranks.several
        pieces = [slice(p.start + shard.first, p.stop + shard.first) for p in shard.pieces]
        self._parts = [whole.part(rows) for rows in (pieces if fixed else [shard.rows])]
        self._adopt(whole, shard.data)
        self._index: Tensor | None = None  # of a minibatch, [R, b], among all data

    def _adopt(self, whole: ModelField, of: int) -> None:
        """Takes over what the whole says of itself; `of` data count in all processes."""
        self.whole, self.model, self.n_particles = whole, whole.model, whole.n_particles
        self.opposed, self.stored, self.timed = whole.opposed, whole.stored, whole.timed
        self.bf16 = whole.bf16
        self.n_data, self.scale = sum(part.n_data for part in self._parts), self._parts[0].scale
        self._all = of

    @property
    def n_all(self) -> int:
        return self._all

    @property
    def layouts(self) -> Mapping[str, ParameterLayout]:
        return self.whole.layouts

    def to(self, dtype: torch.dtype, device: torch.device) -> ShardedField:
        """The same; all data are moved only where observables need them."""
        other = copy(self)
        other._parts = [part.to(dtype, device) for part in self._parts]
        other._adopt(self.whole.to(dtype, device) if observes(self.model) else self.whole, self._shard.data)
        return other

    def part(self, data: slice) -> ModelField:
        first = self._shard.first
        return self.whole.part(slice(first + data.start, first + data.stop))

    def observing(self, functions: Mapping[str, Callable[..., Any]]) -> ShardedField:
        whole = self.whole.observing(functions)
        return ShardedField(whole, self._shard, self._ranks, self._parameters, fixed=self._fixed)

    def in_bf16(self, on: bool) -> ShardedField:
        whole = self.whole.in_bf16(on)
        return ShardedField(whole, self._shard, self._ranks, self._parameters, fixed=self._fixed)

    def start(self, seed: int) -> State:
        z = self.whole.start(seed)
        return z | {"X": z["X"][self._shard.rows]}

    # Minibatches -----------------------------------------------------------------------------------

    def minibatch(self, index: Tensor) -> ShardedField:
        other = copy(self)
        other._parts = [part.minibatch(i) for part, i in zip(self._parts, self._own(index), strict=True)]
        other._adopt(self.whole, index.shape[1] * self._ranks.size)
        other._index = index + self._shard.first
        return other

    def fetch(self, index: Tensor) -> Sequence[Any]:
        return [part.fetch(i) for part, i in zip(self._parts, self._own(index), strict=True)]

    def see(self, index: Tensor, uniform: Tensor | None = None, fetched: Sequence[Any] | None = None) -> None:
        pieces = self._own(index)
        drawn = [None] * len(pieces) if uniform is None else uniform.chunk(len(pieces), 1)
        read = [None] * len(pieces) if fetched is None else fetched
        for part, one, u, found in zip(self._parts, pieces, drawn, read, strict=True):
            part.see(one, u, found)
        self._index = index + self._shard.first

    def _own(self, index: Tensor) -> list[Tensor]:
        """Data [R, b] of this process by part, counted from the first of each."""
        if len(self._parts) == 1:
            return [index]
        chunks = index.chunk(len(self._parts), 1)
        return [one - piece.start for one, piece in zip(chunks, self._shard.pieces, strict=True)]

    # Forces ----------------------------------------------------------------------------------------

    def __call__(self, t: float, z: State, names: Sequence[str]) -> dict[str, Tensor]:
        found = [part(t, own, names) for part, own in self._split(z)]
        forces = found[0]
        if self._fixed and "x" in forces:
            forces["x"] = torch.cat([f["x"] for f in found], 1)
        if summed := [name for name in names if name in self._parameters]:
            forces |= zip(summed, self._sum([[f[name] for f in found] for name in summed]), strict=True)
        return forces

    def _sum(self, forces: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The sums over all processes, by block, of forces by part."""
        if not self._fixed:
            return self._ranks.sum([own for (own,) in forces])
        own = torch.stack([torch.cat(list(of_part), -1) for of_part in zip(*forces, strict=True)])
        whole = self._ranks.stacked(own).sum(0)
        return list(whole.split([of[0].shape[-1] for of in forces], -1))

    def from_prior(self, z: State, xi: Tensor) -> Tensor:
        whole = z | {"X": xi}
        return torch.cat([part.from_prior(own, own["X"]) for part, own in self._split(whole)], 1)

    def check_prior(self, z: State) -> None:
        part, own = self._split(z)[0]
        part.check_prior(own)

    def check(self, z: State) -> None:
        for part, own in self._split(z):
            part.check(own)

    def _split(self, z: State) -> list[tuple[ModelField, State]]:
        """The parts, and the state with the particles of each.

        In memory of their own, since a product rounds by how its factors lie there.
        """
        if len(self._parts) == 1:
            return [(self._parts[0], z)]
        sizes = [part.n_data for part in self._parts]
        return [
            (part, z | {"X": x.clone()}) for part, x in zip(self._parts, z["X"].split(sizes, 1), strict=True)
        ]

    # Observables -----------------------------------------------------------------------------------

    def over_data(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not means:
            return {}
        own = torch.stack([value * (self.n_data / self._all) for value in means.values()], -1)
        return dict(zip(means, self._ranks.sum([own])[0].unbind(-1), strict=True))

    def means(self, z: State) -> dict[str, Tensor]:
        """Of each process's data, put together."""
        by_part = [
            {name: v * (part.n_data / self.n_data) for name, v in part.means(own).items()}
            for part, own in self._split(z)
        ]
        return self.over_data({name: torch.stack([of[name] for of in by_part]).sum(0) for name in by_part[0]})

    def others(self, z: State) -> dict[str, Tensor]:
        """Of all data and particles, which every process gets for that where the model observes anything."""
        if not observes(self.model):
            part, own = self._split(z)[0]
            return part.others(own)
        whole = self.whole
        if self._index is not None:
            whole = whole.minibatch(self._ranks.joined(self._index))
        return whole.others(z | {"X": self._ranks.joined(z["X"])})


def sharded(system: BlockSystem, shard: Shard, ranks: Ranks, *, fixed: bool) -> BlockSystem:
    """The part of a system that a process moves: its parameters, and the particles of a shard of the data."""
    forces = system.model_forces
    assert forces is not None  # as `shareable` has found
    names = [b.name for b in system.parameters]
    return system.on_data(ShardedField(forces, shard, ranks, names, fixed=fixed), shard.count, shard.first)


def shareable(system: System) -> BlockSystem:
    """A system that several processes can share; raises SdeflowError with the reason for another."""
    if not isinstance(system, BlockSystem) or system.model_forces is None:
        raise SdeflowError(
            "several processes share the data of a model, and this system has none: start one process, or "
            "`sdeflow sweep` for several runs"
        )
    if auto := [b for b in system.blocks if b.auto]:
        raise SdeflowError(
            f"'auto' for {', '.join(auto[0].auto)} of block '{auto[0].name}' takes one process that adds up "
            "forces on all data at once: give numbers, which `sdeflow tune` without [parallel] chooses"
        )
    return system

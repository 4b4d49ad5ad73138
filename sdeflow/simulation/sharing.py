"""The state of a run that several processes share: each has the rows of its own data, and all the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdeflow.engine.minibatch import VISITED
from sdeflow.parallel.ranks import Ranks
from sdeflow.parallel.shard import Shard
from sdeflow.state import State
from sdeflow.system.integrator import KEPT
from sdeflow.trajectory.checkpoint import Metadata
from sdeflow.trajectory.layout import CHECKPOINT
from sdeflow.trajectory.shards import load

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sdeflow.system.system import System


@dataclass(frozen=True)
class Sharing:
    """Cuts a state into the parts of processes, and puts it together.

    shards   which data of variables [R, D, ...], by name, this process has
    shard    which of the model's data
    """

    shards: Mapping[str, Shard]
    shard: Shard
    ranks: Ranks

    @classmethod
    def of(cls, system: System, shard: Shard, ranks: Ranks) -> Sharing:
        names = {VISITED}
        for b in system.blocks:
            if b.of_data:
                names |= {*b.variables, *b.kept.values(), KEPT + b.name}
        return cls(dict.fromkeys(names, shard), shard, ranks)

    def also(self, names: Iterable[str], shard: Shard) -> Sharing:
        """The same with variables of other data."""
        return replace(self, shards={**self.shards, **dict.fromkeys(names, shard)})

    def cut(self, z: State, device: torch.device) -> State:
        """This process's part of a whole state, on a device; what all have is as the leading one has it."""
        rows = self.shard.rows
        return {
            k: (v[:, rows].clone() if k in self.shards else self.ranks.of_first(v)).to(device)
            for k, v in sorted(z.items())
        }

    def own(self, z: State) -> State:
        """What this process alone has, on the host."""
        return {k: v.cpu() for k, v in z.items() if k in self.shards}

    def common(self, z: State) -> State:
        """What all processes have; of one process all."""
        return {k: v for k, v in z.items() if k not in self.shards} if self.ranks.several else z

    def stored(self, folder: Path, meta: Metadata) -> State:
        """This process's part of the state in the checkpoint of a run folder; it reads no more.

        Raises RunError where it does not see the folder.
        """
        return load(folder / CHECKPOINT, meta, {name: shard.rows for name, shard in self.shards.items()})

    def everywhere(self, z: State) -> State:
        """The whole state, for each process."""
        return {k: self.ranks.joined(z[k]) if k in self.shards else z[k] for k in sorted(z)}

    def rows(self, value: Tensor, index: NDArray) -> Tensor:
        """Rows of a variable [R, own, ...] by their place among all data [k], for each process."""
        place = torch.from_numpy(index).to(value.device) - self.shard.first
        own = (place >= 0) & (place < self.shard.count)
        found = value.new_zeros((len(value), len(index), *value.shape[2:]))
        found[:, own] = value[:, place[own]]
        return self.ranks.sum([found])[0]

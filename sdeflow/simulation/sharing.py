"""The state of a run that several processes share: each has the rows of its own data, and all the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from sdeflow.engine.minibatch import VISITED
from sdeflow.parallel.ranks import Ranks
from sdeflow.parallel.shard import Shard
from sdeflow.state import State
from sdeflow.system.integrator import KEPT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sdeflow.system.system import System


@dataclass(frozen=True)
class Sharing:
    """Cuts a state into the parts of processes, and puts it together.

    of_data   names of variables [R, D, ...] with a row for each datum
    """

    of_data: frozenset[str]
    shard: Shard
    ranks: Ranks

    @classmethod
    def of(cls, system: System, shard: Shard, ranks: Ranks) -> Sharing:
        names = {VISITED}
        for b in system.blocks:
            if b.of_data:
                names |= {*b.variables, *b.kept.values(), KEPT + b.name}
        return cls(frozenset(names), shard, ranks)

    def cut(self, z: State, device: torch.device) -> State:
        """This process's part of a whole state, on a device; what all have is as the leading one has it."""
        rows = self.shard.rows
        return {
            k: (v[:, rows].clone() if k in self.of_data else self.ranks.of_first(v)).to(device)
            for k, v in sorted(z.items())
        }

    def whole(self, z: State) -> State:
        """The whole state, on the host of the process that leads; {} for the others."""
        if not self.ranks.several:
            return z
        found = {}
        for name in sorted(z):  # in the same order in every process
            value = self.ranks.gathered(z[name].cpu()) if name in self.of_data else z[name].cpu()
            if value is not None and self.ranks.leads:
                found[name] = value
        return found

    def everywhere(self, z: State) -> State:
        """The whole state, for each process."""
        return {k: self.ranks.joined(z[k]) if k in self.of_data else z[k] for k in sorted(z)}

    def handed_out(self, z: Mapping[str, Tensor] | None) -> State:
        """This process's part of a whole state that the process that leads has."""
        ranks = self.ranks
        if z is not None and not ranks.several:
            return dict(z)
        found: State = {}
        for name in ranks.of_first(None if z is None else sorted(z)) or []:
            whole = None if z is None else z[name]
            found[name] = (
                ranks.scattered(whole, self.shard.rows)
                if name in self.of_data
                else cast(Tensor, ranks.of_first(whole))
            )
        return found

    def rows(self, value: Tensor, index: NDArray) -> Tensor:
        """Rows of a variable [R, own, ...] by their place among all data [k], for each process."""
        place = torch.from_numpy(index).to(value.device) - self.shard.first
        own = (place >= 0) & (place < self.shard.count)
        found = value.new_zeros((len(value), len(index), *value.shape[2:]))
        found[:, own] = value[:, place[own]]
        return self.ranks.sum([found])[0]

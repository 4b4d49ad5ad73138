"""Which data a process of a run has."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from sdeflow.errors import SdeflowError


@dataclass(frozen=True)
class Shard:
    """Consecutive strata of D data: stratum v of V is the data v D // V up to (v + 1) D // V.

    Minibatches have as many data of each stratum, so which those are depends on V and not on how many
    processes share the strata.

    data     D, of all processes
    strata   V
    own      those of this process
    """

    data: int
    strata: int
    own: range

    @classmethod
    def of(cls, data: int, rank: int = 0, size: int = 1, strata: int | None = None) -> Shard:
        """That of one process of so many, by default with one stratum each.

        Raises SdeflowError where a process would have no data, or strata are not shared evenly.
        """
        strata = size if strata is None else strata
        if strata % size:
            raise SdeflowError(
                f"{size} processes cannot share parallel.strata = {strata} evenly: start a number of them "
                "that divides it"
            )
        if strata > data:
            what = f"{size} processes" if strata == size else f"parallel.strata = {strata}"
            raise SdeflowError(f"{what} cannot share {data} data, of which each needs one at least")
        each = strata // size
        return cls(data, strata, range(rank * each, (rank + 1) * each))

    @property
    def first(self) -> int:
        return self._begin(self.own.start)

    @property
    def count(self) -> int:
        return self._begin(self.own.stop) - self.first

    @property
    def rows(self) -> slice:
        """Where its data lie among all."""
        return slice(self.first, self.first + self.count)

    @property
    def pieces(self) -> list[slice]:
        """Where its strata lie among its own data."""
        at = [self._begin(v) - self.first for v in (*self.own, self.own.stop)]
        return [slice(a, b) for a, b in pairwise(at)]

    def of_batch(self, size: int) -> slice:
        """Where its data lie in a minibatch of all processes, ascending.

        Raises SdeflowError where strata differ in size, or would in what they give.
        """
        for what, number in (("the data, D", self.data), ("batch.size", size)):
            if number % self.strata:
                raise SdeflowError(
                    f"minibatches have as many data of each of {self.strata} strata, one a process unless "
                    f"parallel.strata says how many: {what} = {number}, is no multiple of that"
                )
        each = size // self.strata
        return slice(self.own.start * each, self.own.stop * each)

    def _begin(self, stratum: int) -> int:
        return stratum * self.data // self.strata

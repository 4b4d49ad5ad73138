"""Which data are learned, which are to choose by, and which are to report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdeflow.errors import SdeflowError, did_you_mean, is_number, plain

Indices = NDArray[np.int64]

FOLDS = ("validation", "test")
"""The halves of a model's held-out data: those to choose by, and those to report."""


class Split(NamedTuple):
    """Indices of data, ascending; no datum is in two of them, and all are in one."""

    train: Indices
    validation: Indices
    test: Indices

    @property
    def held_out(self) -> Indices:
        """Validation and test in turns, so that `fold` of these data gives each of them back.

        Raises SdeflowError where they are not as many, or one more for validation.
        """
        data = np.empty(len(self.validation) + len(self.test), dtype=np.int64)
        if len(self.validation) - len(self.test) not in (0, 1):
            raise SdeflowError(
                f"held-out data are validation and test in turns, given {len(self.validation)} and "
                f"{len(self.test)}: split off as many, or hold out one of them alone"
            )
        for name, own in zip(FOLDS, (self.validation, self.test), strict=True):
            data[fold(len(data), name)] = own
        return data


def split(data: Any, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> Split:
    """Splits data at random, by the seed and their number alone: the same on any machine.

    data               how many there are, or what has a length; of a tuple or dict its parts have
    validation, test   of the data a share below 1, rounded, or how many; 0 for none

    The data are put in the order of 64-bit numbers of PCG64, whose streams NumPy keeps as they are; the first
    are to validate, the next to test, the rest to learn. Raises SdeflowError where none is left to learn, or
    a share of the data comes to none.
    """
    from sdeflow.seeds import derive_key

    n = _length(data)
    sizes = [_size(name, given, n) for name, given in (("validation", validation), ("test", test))]
    if sum(sizes) >= n:
        raise SdeflowError(
            f"of {n} data {sizes[0]} to validate and {sizes[1]} to test leave none to learn: take fewer"
        )
    if not is_number(seed := plain(seed)) or seed < 0 or seed != int(seed):
        raise SdeflowError(f"seed must be a whole number of at least 0, given {seed!r}")
    drawn = np.random.PCG64(derive_key(int(seed), "split")).random_raw(n)
    order = np.argsort(drawn, kind="stable")
    first, last = np.cumsum(sizes)
    return Split(np.sort(order[last:]), np.sort(order[:first]), np.sort(order[first:last]))


def fold(n: int, name: str) -> Indices:
    """Of n held-out data the half of that name, every other one: 'validation' or 'test'."""
    if name not in FOLDS:
        raise SdeflowError(f"fold cannot be '{name}': {did_you_mean(name, FOLDS)}")
    return np.arange(n)[FOLDS.index(name) :: len(FOLDS)]


def _length(data: Any) -> int:
    while isinstance(data, Mapping | tuple) and data:
        data = next(iter(data.values() if isinstance(data, Mapping) else data))
    n = plain(data) if is_number(plain(data)) else len(data) if hasattr(data, "__len__") else 0
    if n != int(n) or n < 1:
        raise SdeflowError(f"data, or how many there are, were expected, given {data!r}")
    return int(n)


def _size(name: str, given: Any, n: int) -> int:
    value = plain(given)
    if not is_number(value) or value < 0 or (value >= 1 and value != int(value)):
        raise SdeflowError(f"{name} must be a share below 1 or a whole number, given {given!r}")
    size = int(value) if value >= 1 else round(value * n)
    if value and not size:
        raise SdeflowError(f"{name} = {given} of {n} data are none: take a larger share, or 0 for none")
    return size

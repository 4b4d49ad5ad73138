"""The segments of a run as one xarray Dataset, whose values are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from sdeflow.trajectory.segments import TIME, Counted


def open_joined(counted: Counted, whole: Path) -> xr.Dataset:
    """The snapshots of all files as one dataset whose values are read when they are asked for.

    whole   the file that they are joined into in the end, from which is read what they hold no longer
    """
    files = [_Lazy(path) for path, _ in counted]
    ends = np.cumsum([count for _, count in counted])

    def joined(name: Any, variable: xr.Variable) -> xr.Variable:
        if TIME not in variable.dims:
            return variable
        readers = [file.reader(name) for file in files]
        array = _Joined(readers, ends, variable.shape[1:], variable.dtype, _Lazy(whole).reader(name))
        return xr.Variable(variable.dims, indexing.LazilyIndexedArray(array), variable.attrs)

    first = files[0].dataset
    return xr.Dataset(
        {name: joined(name, first.variables[name]) for name in first.data_vars},
        {name: joined(name, first.variables[name]) for name in first.coords},
        first.attrs,
    )


class _Lazy:
    """A netCDF file that is opened when something of it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def dataset(self) -> xr.Dataset:
        return xr.open_dataset(self.path, engine="netcdf4")

    def reader(self, name: str) -> Callable[[Any], NDArray[Any]]:
        return lambda key: self.dataset.variables[name][key].values


class _Joined(BackendArray):
    """One variable of several files along their first axis; `ends` are where the files end in it."""

    def __init__(
        self,
        readers: Sequence[Callable[[Any], NDArray[Any]]],
        ends: NDArray[np.int64],
        rest: tuple[int, ...],
        dtype: np.dtype[Any],
        whole: Callable[[Any], NDArray[Any]],
    ) -> None:
        self._readers, self._ends, self._whole = readers, ends, whole
        self.shape, self.dtype = (int(ends[-1]), *rest), dtype

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        try:
            return self._read_files(key)
        except FileNotFoundError:  # the run has ended since, and its segments are joined
            time = range(self.shape[0])[key[0]]
            at = time if isinstance(time, int) else slice(time.start, time.stop, time.step)
            return self._whole((at, *key[1:]))

    def _read_files(self, key: tuple[Any, ...]) -> NDArray[Any]:
        time, *rest = key
        wanted = np.arange(self.shape[0])[time]
        file = np.searchsorted(self._ends, wanted, side="right")
        begins = np.concatenate([[0], self._ends[:-1]])
        if wanted.ndim == 0:
            return self._readers[file]((int(wanted - begins[file]), *rest))
        pieces = []
        for p in np.unique(file):
            local = wanted[file == p] - begins[p]
            at = slice(int(local[0]), int(local[-1]) + 1, int(local[1] - local[0]) if len(local) > 1 else 1)
            pieces.append(self._readers[p]((at, *rest)))
        return np.concatenate(pieces) if pieces else self._readers[0]((slice(0, 0), *rest))

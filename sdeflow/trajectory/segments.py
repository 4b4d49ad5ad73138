"""A trajectory in several netCDF files, one after the other in time: written, joined, opened lazily."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import netCDF4
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray, NetCDF4DataStore
from xarray.core import indexing

from sdeflow.errors import RunError

TIME = "time"
_SLAB = 1 << 26
"""Bytes of a variable that are held in memory while files are joined."""

Counted = Sequence[tuple[Path, int]]
"""Files, and how many of its first snapshots count in each."""


class Piece(NamedTuple):
    """The bytes of a netCDF file, and how many snapshots it has."""

    data: memoryview
    snapshots: int

    @classmethod
    def of(cls, dataset: xr.Dataset) -> Piece:
        return cls(encode(dataset), dataset.sizes[TIME])


def encode(dataset: xr.Dataset) -> memoryview:
    """The dataset as the bytes of a netCDF file, made in memory: HDF5 never meets a full disk.

    HDF5 is not made for threads, and a user's callback may read files by it: call this in the run's own.
    Text is kept as characters, not as strings: with these, opening a file that is open already can crash
    (Unidata/netcdf4-python#1444). It is text again when xarray opens it.
    """
    text = [str(name) for name, values in dataset.variables.items() if values.dtype.kind in "OU"]
    file = netCDF4.Dataset("segment.nc", "w", memory=1)
    dataset.dump_to_store(NetCDF4DataStore(file), encoding={name: {"dtype": "S1"} for name in text})
    return memoryview(file.close())


def join(files: Counted, path: Path, attrs: Mapping[str, Any]) -> None:
    """Writes one netCDF file with the snapshots of all files, and compares every value of it with theirs.

    Raises OSError or RuntimeError as netCDF4 does, RunError where the file does not hold what it should.
    """
    with netCDF4.Dataset(path, "w") as out:
        _lay_out(out, files)
        out.setncatts(dict(attrs))
        for name, at, values in _slabs(files):
            out[name].set_auto_maskandscale(False)
            out[name][at] = values
    with netCDF4.Dataset(path) as written:
        for name, at, values in _slabs(files):
            written[name].set_auto_maskandscale(False)
            if not _identical(np.asarray(written[name][at]), values):
                raise RunError(f"{path} does not hold the {name} that was written to it")


def observed(files: Counted) -> dict[str, NDArray[Any]]:
    """The numbers of each snapshot in the files by name, [T], of several replicas [T, R]; read at once."""
    pieces: dict[str, list[NDArray[Any]]] = {}
    for path, count in files:
        with netCDF4.Dataset(path) as file:
            file.set_auto_maskandscale(False)
            for name, variable in file.variables.items():
                if variable.dimensions in ((TIME,), (TIME, "replica")):
                    pieces.setdefault(name, []).append(np.asarray(variable[:count]))
    return {name: np.concatenate(parts) for name, parts in pieces.items()}


def _lay_out(out: netCDF4.Dataset, files: Counted) -> None:
    """Gives a new file the dimensions and variables of the files, with room for all their snapshots."""
    with netCDF4.Dataset(files[0][0]) as first:
        for name, dim in first.dimensions.items():
            out.createDimension(name, sum(count for _, count in files) if name == TIME else len(dim))
        for name, variable in first.variables.items():
            about = {key: variable.getncattr(key) for key in variable.ncattrs()}
            fill = about.pop("_FillValue", None)
            new = out.createVariable(name, variable.dtype, variable.dimensions, fill_value=fill)
            new.setncatts(about)


def _slabs(files: Counted) -> Iterator[tuple[str, Any, NDArray[Any]]]:
    """Every variable in pieces, with where in the whole each belongs."""
    begin = 0
    for number, (path, count) in enumerate(files):
        with netCDF4.Dataset(path) as file:
            file.set_auto_maskandscale(False)
            for name, variable in file.variables.items():
                if TIME not in variable.dimensions:
                    if number == 0:
                        yield name, ..., np.asarray(variable[...])
                    continue
                rows = max(1, _SLAB // max(1, variable.dtype.itemsize * int(np.prod(variable.shape[1:]))))
                for i in range(0, count, rows):
                    j = min(i + rows, count)
                    yield name, slice(begin + i, begin + j), np.asarray(variable[i:j])
        begin += count


def _identical(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.dtype == object:
        return a.shape == b.shape and bool((a == b).all())
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


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


def free_space(folder: Path) -> int:
    """Bytes that may still be written in the file system of a folder that may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    if not hasattr(os, "statvfs"):
        return 1 << 62
    at = os.statvfs(folder)
    return at.f_bavail * at.f_frsize

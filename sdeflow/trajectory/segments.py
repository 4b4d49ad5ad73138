"""A trajectory in several netCDF files, one after the other in time: written and joined."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import netCDF4
import numpy as np
from numpy.typing import NDArray

from sdeflow.errors import RunError

if TYPE_CHECKING:
    import xarray as xr

    from sdeflow.trajectory.dataset import Contents

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
    def of(cls, contents: Contents) -> Piece:
        return cls(encode(contents), len(contents.coords[TIME][1]))


def encode(contents: Contents) -> memoryview:
    """The contents as the bytes of a netCDF file, made in memory: HDF5 never meets a full disk.

    It is the file that xarray would write, by its conventions, without the time that importing xarray takes.
    HDF5 is not made for threads, and a user's callback may read files by it: call this in the run's own.
    Text is kept as characters, not as strings: with these, opening a file that is open already can crash
    (Unidata/netcdf4-python#1444). It is text again when xarray opens it.
    """
    file = netCDF4.Dataset("segment.nc", "w", memory=1)
    file.setncatts(dict(contents.attrs))
    other = {name: dims for name, (dims, _, _) in contents.coords.items() if dims != (name,)}
    for name, (dims, given, about) in {**contents.variables, **contents.coords}.items():
        values, about = np.asarray(given), dict(about)
        if values.dtype.kind == "U":
            dims, values = _characters(dims, values)
            about["_Encoding"] = "utf-8"
        elif values.dtype.kind == "b":
            values = values.astype(np.int8)
            about["dtype"] = "bool"
        for dim, size in zip(dims, values.shape, strict=True):
            if dim not in file.dimensions:
                file.createDimension(dim, size)
        # Coordinates that no dimension has its name of are told by those that lie along them.
        if name in contents.variables and (along := [c for c, of in other.items() if {*of} <= {*dims}]):
            about["coordinates"] = " ".join(sorted(along))
        fill = np.nan if values.dtype.kind == "f" else None
        variable = file.createVariable(name, values.dtype, dims, fill_value=fill)
        variable.set_auto_maskandscale(False)
        variable.setncatts(about)
        variable[...] = values
    return memoryview(file.close())


def encode_dataset(dataset: xr.Dataset) -> memoryview:
    """A dataset likewise, by xarray."""
    from xarray.backends import NetCDF4DataStore

    text = [str(name) for name, values in dataset.variables.items() if values.dtype.kind in "OU"]
    file = netCDF4.Dataset("dataset.nc", "w", memory=1)
    dataset.dump_to_store(NetCDF4DataStore(file), encoding={name: {"dtype": "S1"} for name in text})
    return memoryview(file.close())


def _characters(dims: tuple[str, ...], text: NDArray[np.str_]) -> tuple[tuple[str, ...], NDArray[np.bytes_]]:
    """Text as characters in UTF-8, with their axis as the last."""
    coded = np.char.encode(text, "utf-8")
    length = coded.dtype.itemsize
    return (*dims, f"string{length}"), coded.view("S1").reshape(*coded.shape, length)


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


def of_replicas(files: Counted) -> dict[str, NDArray[Any]]:
    """The numbers in which the replicas of a grid differ, by name, [R]; none where it is no grid."""
    with netCDF4.Dataset(files[0][0]) as file:
        grid = getattr(file, "grid", "")  # which files of earlier versions have not
        names = [axis.partition(" = ")[0] for axis in grid.split("; ")] if grid else []
        return {name: np.asarray(file[name][...]) for name in names}


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


def free_space(folder: Path) -> int:
    """Bytes that may still be written in the file system of a folder that may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    if not hasattr(os, "statvfs"):
        return 1 << 62
    at = os.statvfs(folder)
    return at.f_bavail * at.f_frsize

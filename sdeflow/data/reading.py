"""Data of the kinds that people have, as the tensors that a model takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sdeflow.data.csv_table import FINITE, csv_table
from sdeflow.entries import DATA_FILES, data_file
from sdeflow.errors import SdeflowError, attempt, did_you_mean
from sdeflow.machine import free_memory
from sdeflow.terminal import human

if TYPE_CHECKING:
    from torch import Tensor

    from sdeflow.model.model import Data
    from sdeflow.model.rows import Rows

Array = NDArray[Any]
AT_ONCE = 1000
"""Items of a dataset that are joined at once."""


def read(source: Any, *, in_memory: bool = True, header: bool | None = None, finite: bool = True) -> Data:
    """Numbers as a tensor with the data along its first axis; of a tuple or a dict a tensor of each.

    source      a path to a .npy or .csv, or to 'file.npz:KEY', where the key may be left out if there is a
                single array; a tensor; an array of NumPy or a list; a pandas DataFrame [rows, columns] or
                Series [rows], or what else has `to_numpy`; a map-style dataset of torch, whose items are
                tensors, arrays, numbers, or tuples or dicts of these; or a tuple or dict of sources
    in_memory   False leaves a .npy, a dataset and an array that is read when it is indexed where they are, as
                `Rows`, of which minibatches read what they need; so does True an array that is memory-mapped
    header      whether line 1 of a CSV holds names; None where it does if no cell of it is a number
    finite      refuses NaN and infinity; False is for a model that knows of missing values

    Numbers keep their type: reals of 16 to 64 bits, whole numbers (but for unsigned ones of 16 and 32 bits,
    which become int64) and truth values. A CSV gives float64, [rows, columns], split at commas, or where line
    1 has none at semicolons or tabs. An array in memory is shared with the tensor and not copied, where torch
    can. Raises SdeflowError for what is no array of numbers, saying where.
    """
    data = _read(source, "data", in_memory, header, finite)
    _refuse_other_lengths(data)
    return data


def _read(source: Any, what: str, in_memory: bool, header: bool | None, finite: bool) -> Data:
    if isinstance(source, str | Path):
        return _file(source, in_memory, header, finite)
    how = (in_memory, header, finite)
    if isinstance(source, Mapping):
        return {key: _read(part, f"{what}[{key!r}]", *how) for key, part in source.items()}
    if isinstance(source, tuple):
        return tuple(_read(part, f"{what}[{i}]", *how) for i, part in enumerate(source))
    if isinstance(source, np.memmap) or (not in_memory and _is_array_elsewhere(source)):
        return _mapped(source, what, finite)
    if hasattr(source, "to_numpy"):
        return _tensor(_of_table(source, what), what, finite, names=getattr(source, "columns", None))
    if hasattr(source, "requires_grad"):  # a tensor
        return _checked(source.detach(), what, finite)
    if isinstance(source, list) or hasattr(source, "__array__"):
        return _tensor(_array(source, what), what, finite)
    from sdeflow.model.rows import Rows

    return source if isinstance(source, Rows) else _dataset(source, what, in_memory, finite)


def _array(source: Any, what: str) -> Array:
    if isinstance(source, np.ma.MaskedArray) and np.ma.is_masked(source):
        raise SdeflowError(f"{what} has masked entries, which are no numbers: fill them, or drop their rows")
    try:
        return np.asarray(source)
    except (ValueError, TypeError) as error:
        raise SdeflowError(f"{what} is a {type(source).__name__} of no array's shape: {error}") from None


def _of_table(source: Any, what: str) -> Array:
    """The array of a DataFrame or the like; of columns of several kinds it is of reals."""
    array = np.asarray(source.to_numpy())
    if array.dtype != object or not hasattr(source, "columns"):
        return array
    columns = []
    for i, name in enumerate(source.columns):
        try:
            columns.append(array[:, i].astype(np.float64))
        except (ValueError, TypeError):
            raise SdeflowError(
                f"{what}: column {str(name)!r} holds what are no numbers, and numbers were expected: leave "
                "it out, or code it as numbers"
            ) from None
    return np.column_stack(columns)


def _tensor(array: Array, what: str, finite: bool, names: Any = None) -> Tensor:
    import torch

    if array.dtype.kind not in "fiub" or (array.dtype.kind == "u" and array.dtype.itemsize == 8):
        kind = {"O": "Python objects", "U": "text", "S": "text", "c": "complex numbers"}.get(array.dtype.kind)
        raise SdeflowError(f"{what} holds {kind or array.dtype}, and real numbers were expected: convert it")
    kind = {"f16": "f8", "u2": "i8", "u4": "i8"}.get(array.dtype.str[1:], array.dtype.str[1:])
    native = array.astype(np.dtype(kind), copy=False)
    right = native.flags.writeable and all(s >= 0 and not s % native.itemsize for s in native.strides)
    return _checked(torch.from_numpy(native if right else native.copy()), what, finite, names)


def _checked(tensor: Tensor, what: str, finite: bool, names: Any = None) -> Tensor:
    """The tensor; raises SdeflowError where it has no data, or an entry that is no number."""
    if tensor.is_complex() or str(tensor.layout) != "torch.strided":
        raise SdeflowError(f"{what} is a {tensor.layout} tensor of {tensor.dtype}: dense reals were expected")
    if not tensor.ndim or not len(tensor):
        shape = tuple(tensor.shape)
        raise SdeflowError(
            f"{what} has the shape {shape}: at least one datum along a first axis was expected"
        )
    if finite and tensor.is_floating_point() and not tensor.is_meta and not (good := tensor.isfinite()).all():
        first = (~good).nonzero()[0].tolist()
        column = "" if names is None else f" (column {str(names[first[-1]])!r})"
        raise SdeflowError(
            f"{what} holds {int((~good).sum())} entries that are NaN or infinite, the first at {first}"
            f"{column}: {FINITE}"
        )
    return tensor


def _refuse_other_lengths(data: Data) -> None:
    from torch.utils._pytree import tree_leaves

    lengths = [len(leaf) for leaf in tree_leaves(data)]  # of tensors and of Rows
    if len(set(lengths)) != 1:
        raise SdeflowError(
            f"the parts of the data have lengths {lengths}, and one entry a datum was expected"
        )


# Files ---------------------------------------------------------------------------------------------


def _file(source: str | Path, in_memory: bool, header: bool | None, finite: bool) -> Data:
    spec = data_file(str(source))
    if spec is None:
        raise SdeflowError(
            f"{source} is no path that ends in {', '.join(DATA_FILES)}: read it by its own package, and give "
            "what that gives, an array or a DataFrame"
        )
    path, key = Path(spec[0]).expanduser(), spec[1]
    if not path.is_file():
        raise SdeflowError(f"there is no file {path}")
    if not in_memory and path.suffix != ".npy":
        raise SdeflowError(
            f"{path} can be read whole alone: save its array by numpy.save, and give that .npy"
        )
    if in_memory and path.suffix == ".npy" and (size := path.stat().st_size) > (free := free_memory()):
        raise SdeflowError(
            f"{path} takes {human(size)}, and {human(free)} of memory are free: read it by batches, "
            "read(..., in_memory=False)"
        )
    try:
        if path.suffix == ".csv":
            return _tensor(csv_table(path, header, finite), str(path), finite)
        if in_memory:
            return _tensor(_stored(path, key), str(source), finite)
        return _mapped(_stored(path, key, in_memory=False), str(path), finite)
    except MemoryError:
        raise SdeflowError(f"{path} does not fit in memory: a .npy can be read by batches") from None


def _is_array_elsewhere(source: Any) -> bool:
    """Whether it is an array of another kind, which is read when it is indexed."""
    here = isinstance(source, np.ndarray) or hasattr(source, "requires_grad") or hasattr(source, "to_numpy")
    return not here and hasattr(source, "shape") and hasattr(source, "dtype")


def _mapped(array: Any, what: str, finite: bool) -> Rows:
    """The rows of an array that is memory-mapped, or read when it is indexed."""
    from sdeflow.model.rows import Rows

    if not len(array.shape) or not array.shape[0]:
        raise SdeflowError(f"{what} has the shape {array.shape}: at least one datum was expected")

    def some(index: Array) -> Tensor:
        return _tensor(np.asarray(array[index]), what, finite=False)

    return Rows(some, len(array), what, finite=finite)


def _stored(path: Path, key: str, in_memory: bool = True) -> Array:
    """The array of an .npy, which may be memory-mapped, or one of an .npz."""
    try:
        if not in_memory:
            mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped
        with path.open("rb") as file:  # which np.load leaves open where it fails
            found = np.load(file, allow_pickle=False)
            if path.suffix == ".npy":
                return np.asarray(found)
            if not key and len(found.files) != 1:
                keys = ", ".join(found.files) or "nothing"
                raise SdeflowError(f"{path} holds {keys}: give one of them, as '{path.name}:KEY'")
            if key and key not in found.files:
                raise SdeflowError(f"{path} holds no '{key}': {did_you_mean(key, found.files)}")
            return np.asarray(found[key or found.files[0]])
    except (ValueError, EOFError, OSError, BadZipFile) as error:
        if "allow_pickle" in str(error):
            error = ValueError("it holds Python objects, or is of another format")
        raise SdeflowError(f"{path} cannot be read as {path.suffix}: {error}") from None


# Datasets of torch ---------------------------------------------------------------------------------


def _dataset(source: Any, what: str, in_memory: bool, finite: bool) -> Data:
    """The items of a map-style dataset, joined along a new first axis."""
    name = type(source).__name__
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise SdeflowError(
            f"{what} is a {name}, and an array, a table, a path or a dataset with len and [i] was expected"
        )
    import torch
    from torch.utils._pytree import tree_map

    if not len(source):
        raise SdeflowError(f"{what}, a {name}, is empty: at least one datum was expected")
    if not in_memory:
        return _items(source, name, finite)
    parts = [
        items_of(source, range(i, min(i + AT_ONCE, len(source)))) for i in range(0, len(source), AT_ONCE)
    ]
    joined = tree_map(lambda *leaves: torch.cat(leaves), *parts) if len(parts) > 1 else parts[0]
    return tree_map(lambda leaf: _checked(leaf, f"{what}, of {name},", finite), joined)


def _items(source: Any, name: str, finite: bool) -> Rows:
    """The items of a dataset, to be read by batches; raises SdeflowError where they change."""
    import torch
    from torch.utils._pytree import tree_leaves

    from sdeflow.model.rows import Rows

    rows = Rows(lambda index: items_of(source, index.tolist()), len(source), name, finite=finite)
    once, again = (tree_leaves(rows[[0]]) for _ in range(2))
    if not all(torch.equal(a, b) or (a != a).any() for a, b in zip(once, again, strict=True)):
        raise SdeflowError(
            f"{name}[0] gives other values when it is asked again: leave what is random out, and give it to "
            "the model as at_access, whose numbers a run that is resumed has again"
        )
    return rows


def items_of(source: Any, index: Any) -> Data:
    """Items of a dataset by their indices, joined along a new first axis; tuples and dicts of tensors."""
    from torch.utils.data import default_collate

    name = type(source).__name__
    items = [attempt(f"{name}[{i}]", source.__getitem__, i) for i in index]
    return _only_tensors(attempt(f"joining items of {name}", default_collate, items), name)


def _only_tensors(joined: Any, name: str) -> Data:
    if isinstance(joined, Mapping):
        return {key: _only_tensors(part, name) for key, part in joined.items()}
    if isinstance(joined, tuple | list):
        return tuple(_only_tensors(part, name) for part in joined)
    if not hasattr(joined, "requires_grad"):
        raise SdeflowError(
            f"items of {name} hold {type(joined).__name__}, and tensors, arrays or numbers were expected: "
            "give it a transform that makes them"
        )
    return joined

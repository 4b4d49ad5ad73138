"""Data that are not in memory: where they are, and reading those of a batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from sdeflow.errors import SdeflowError

_READING = threading.RLock()
"""Held while data are read: what they come from may be behind several `Rows`, and not made for threads."""

SEEN = 16
"""Rows that tell data from others, for a run that is resumed."""


class Rows:
    """D data of which `rows[index]` reads some, as a tensor [*index, ...] or a tuple or dict of tensors.

    They stand where a model's `data` or `held_out` are tensors, and only minibatches can take them.

    read     gives the data of ascending indices [k], joined along a first axis, as tensors; not called by two
             threads at once
    what     names them in errors
    finite   refuses NaN and infinity where they are read
    """

    def __init__(
        self, read: Callable[[NDArray[np.int64]], Any], count: int, what: str, *, finite: bool = True
    ) -> None:
        self._read, self._what, self._finite = read, what, finite
        self._count = count
        self._chosen: NDArray[np.int64] | None = None  # of what `read` knows; None for all
        self._dtype: torch.dtype | None = None
        self._device = torch.device("cpu")
        first = self.fetch(torch.zeros(1, dtype=torch.long))
        self._kind = tree_map(lambda v: torch.empty_like(v[0], device="meta"), first)

    def __len__(self) -> int:
        return self._count

    @property
    def meta(self) -> Any:
        """What all of them would be in memory, without numbers: tensors on device 'meta'."""
        return tree_map(lambda v: v.expand(len(self), *v.shape), self._kind)

    @property
    def shape(self) -> torch.Size:
        """Of data that are one tensor, [D, ...]."""
        return torch.Size(self.meta.shape)

    def to(self, dtype: torch.dtype, device: torch.device) -> Rows:
        """The same, read to a device, real numbers as `dtype`."""
        other = copy(self)
        other._dtype, other._device = dtype, device
        return other

    def select(self, index: Any) -> Rows:
        """Those of some indices, as data of their own; nothing is read."""
        chosen = self._at(index)
        if chosen.ndim != 1 or not len(chosen):
            raise SdeflowError(f"indices of some of the data were expected, given the shape {chosen.shape}")
        other = copy(self)
        other._chosen, other._count = chosen, len(chosen)
        return other

    def _at(self, index: Any) -> NDArray[np.int64]:
        """Indices as `read` takes them, of a slice, of numbers as a list has them, or of truth values."""
        if isinstance(index, slice):
            at = np.arange(*index.indices(self._count))
        else:
            at = np.asarray(index.cpu() if isinstance(index, Tensor) else index)
            at = at.nonzero()[0] if at.dtype == bool else at.astype(np.int64)
        if at.size and not (-self._count <= at.min() and at.max() < self._count):
            raise IndexError(f"{self._what} has {self._count} data, asked for {at.min()} to {at.max()}")
        at = np.where(at < 0, at + self._count, at)
        return at if self._chosen is None else self._chosen[at]

    def __getitem__(self, index: Any) -> Any:
        return self.place(self.fetch(index))

    def fetch(self, index: Any) -> Any:
        """Reads data on the host, in page-locked memory where they go on to CUDA; in any thread."""
        at = self._at(index)
        rows, place = np.unique(at, return_inverse=True)
        with _READING, torch.no_grad():
            found = self._read(rows)
        every = at.size == len(rows) and bool((np.diff(at.reshape(-1)) > 0).all())
        where = None if every else torch.from_numpy(place.reshape(-1))
        return tree_map(lambda v: self._on_host(v, rows, where, at.shape), found)

    def _on_host(
        self, values: Tensor, rows: NDArray[np.int64], where: Tensor | None, shape: tuple[int, ...]
    ) -> Tensor:
        values = values.detach()
        if self._finite and values.is_floating_point() and not values.isfinite().all():
            first = int((~values.isfinite()).nonzero()[0, 0])
            raise SdeflowError(
                f"{self._what} holds NaN or infinity in datum {rows[first]}: leave such data out, or give "
                "read finite=False for a model that knows missing values"
            )
        values = (values if where is None else values[where]).reshape(*shape, *values.shape[1:])
        if self._device.type == "cuda":
            return values.pin_memory()
        return values.to(self._dtype) if self._dtype and values.is_floating_point() else values

    def place(self, found: Any) -> Any:
        """What `fetch` has read, on the device; a copy to CUDA goes on while the host does."""

        def placed(v: Tensor) -> Tensor:
            v = v.to(self._device, non_blocking=True)
            return v.to(self._dtype) if self._dtype and v.is_floating_point() else v

        return tree_map(placed, found)

    def seen(self) -> bytes:
        """What tells these data from others, by their kind and a few of them."""
        few = np.unique(self._at(np.linspace(0, len(self) - 1, SEEN).astype(np.int64)))
        with _READING:
            leaves = tree_leaves(self._read(few))
        return b"".join([str(self.meta).encode(), *(v.numpy().tobytes() for v in leaves)])


def stored(data: Any) -> list[Rows]:
    """The parts of data that are not in memory."""
    return [leaf for leaf in tree_leaves(data) if isinstance(leaf, Rows)]


def one_tensor(data: Any) -> bool:
    """Whether data are, or of those not in memory give, one tensor."""
    return isinstance(data.meta if isinstance(data, Rows) else data, Tensor)

"""Recording a run: snapshots and observables, gathered on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.options import Save
from sdeflow.state import PARAMETERS, Axes, State
from sdeflow.system.system import System

BUFFER = 1 << 26
"""Bytes of snapshots that a run with a folder holds in memory before it writes a segment."""


class Recorder:
    """Snapshots and observables of a run, gathered on the host until they are cleared.

    axes     the variables of the state (default: the system's)
    buffer   bytes of snapshots to hold (default: all of them)
    taken    snapshots that were taken before this recorder began
    rows     rows of data out of a variable [R, ...] by their place among all, where it has not all of them

    Of long parameters it takes the norm alone: `norms` has their sizes.
    """

    def __init__(
        self,
        system: System,
        save: Save,
        *,
        replicas: int,
        steps: int,
        axes: Mapping[str, Axes] | None = None,
        observe: Callable[[float, State], dict[str, Tensor]] | None = None,
        buffer: int | None = None,
        taken: int = 0,
        rows: Callable[[Tensor, NDArray[np.int64]], Tensor] | None = None,
    ) -> None:
        self.system, self.save = system, save
        self._observe, self._rows = observe or system.observe, rows
        self.steps: list[int] = []
        self.times: list[Mapping[str, float]] = []
        self.replicas = replicas
        self.whole: dict[str, Axes] = {}
        self.norms: dict[str, int] = {}
        self.index: dict[str, NDArray[np.int64]] = {}
        for name, own in (axes or system.axes).items():
            if own.named and prod(own.shape) > save.theta_max:
                self.norms[name] = prod(own.shape)
                continue
            for dim, size in zip(own.dims, own.shape, strict=True):
                index = save.indices(dim, size)
                if len(self.index.setdefault(dim, index)) != len(index):
                    raise SdeflowError(
                        f"the axis '{dim}' has different lengths in different blocks: rename one"
                    )
            self.whole[name] = Axes(own.dims, tuple(len(self.index[dim]) for dim in own.dims))
        self.when = save.steps(steps)
        self.taken = taken
        left = len(self.when) - taken
        size = 8 * max(1, self.numbers_per_snapshot)
        self._capacity = left if buffer is None else max(1, min(left, buffer // size))
        self._buffers: dict[str, NDArray[np.floating]] = {}

    @property
    def numbers_per_snapshot(self) -> int:
        """Floating-point numbers that a snapshot of all replicas holds, observables aside."""
        return self.replicas * (sum(prod(axes.shape) for axes in self.whole.values()) + len(self.norms))

    def take(
        self, step: int, times: Mapping[str, float], z: State, more: dict[str, Tensor] | None = None
    ) -> dict[str, NDArray[np.floating]]:
        """Stores a snapshot of the state after `step` steps; gives its observables and `more`, each [R].

        times   on the reference clock, '', and on those of the blocks, by name
        """
        with torch.no_grad():
            scalars = dict(more or {})
            scalars |= {f"{name}_norm": z[name].flatten(1).norm(dim=1) for name in self.norms}
            host = self.observed(times[""], z) | {
                name: value.cpu().numpy() for name, value in scalars.items()
            }
            chosen = {
                name: self._chosen(z[name], axes.dims).cpu().numpy() for name, axes in self.whole.items()
            }
        if self._buffers and self._buffers.keys() != (host | chosen).keys():
            changed = sorted(self._buffers.keys() ^ (host | chosen).keys())
            raise SdeflowError(f"observables must be the same in every snapshot; {', '.join(changed)} is not")
        for name, value in (host | chosen).items():
            if name not in self._buffers:
                self._buffers[name] = np.empty((self._capacity, *value.shape), dtype=value.dtype)
            self._buffers[name][len(self.steps)] = value
        self.steps.append(step)
        self.times.append(times)
        self.taken += 1
        return host

    def observed(self, t: float, z: State) -> dict[str, NDArray[np.floating]]:
        """The system's observables at a state, each [R]."""
        with torch.no_grad():
            return {name: value.cpu().numpy() for name, value in self._observe(t, z).items()}

    @property
    def not_whole(self) -> list[str]:
        """What to know of parameters that are too long to be saved whole, a sentence for each."""
        return [
            f"{name} has {size:,} numbers, more than save.theta_max = {self.save.theta_max:,}: snapshots "
            f"have its norm alone, and all of it with --set save.theta_max={size}"
            for name, size in self.norms.items()
            if name in PARAMETERS
        ]

    @property
    def bytes_left(self) -> int:
        """About how many bytes the snapshots take that are still to come."""
        return 4 * self.numbers_per_snapshot * (len(self.when) - self.taken)

    @property
    def full(self) -> bool:
        """Whether there is no room for another snapshot before `clear`."""
        return len(self.steps) == self._capacity

    def clear(self) -> None:
        """Forgets the snapshots it holds, which have been stored."""
        self.steps.clear()
        self.times.clear()

    def values(self) -> dict[str, NDArray[np.floating]]:
        """The snapshots it holds, by name, with snapshots and replicas as the first two axes."""
        return {name: buffer[: len(self.steps)] for name, buffer in self._buffers.items()}

    def _chosen(self, value: Tensor, dims: tuple[str, ...]) -> Tensor:
        for axis, dim in enumerate(dims, start=1):
            if dim == "datum" and self._rows is not None:
                value = self._rows(value, self.index[dim])
            elif len(self.index[dim]) < value.shape[axis]:
                value = value.index_select(axis, torch.from_numpy(self.index[dim]).to(value.device))
        return value

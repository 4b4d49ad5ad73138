"""How a run can end: a request to stop, numbers that run away, and what is said of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.terminal import STOP_SIGNALS
from sdeflow.trajectory.layout import resuming

if TYPE_CHECKING:
    import xarray as xr

    from sdeflow.config.run import Run
    from sdeflow.simulation.onlookers import Stopped
    from sdeflow.state import State
    from sdeflow.system.system import System
    from sdeflow.trajectory.checkpoint import Metadata
    from sdeflow.trajectory.folder import RunFolder

PATIENCE = 2.0
"""Seconds that a chunk of steps has to finish after a request to stop."""


class Stop:
    """Ctrl-C, SIGTERM and SIGHUP as a request that is looked at between chunks; in the main thread only.

    A chunk that does not finish within PATIENCE is cut short by KeyboardInterrupt; its steps are lost,
    the state before it is not. Where nothing is being stepped or joined a request waits.

    whole   whether chunks are not cut short now: other processes would wait for the rest of them
    """

    def __init__(self) -> None:
        self.asked = self.whole = False
        self._interruptible = False
        self._impatient = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._request)
            if hasattr(signal, "setitimer"):
                self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._cut_short)
        return self

    def __exit__(self, *_: object) -> None:
        if signal.SIGINT in self._before and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """While steps are taken: a request lets the chunk finish, for as long as PATIENCE."""
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    @contextmanager
    def joining(self) -> Iterator[None]:
        """While files are joined, which can be done later: a new request stops it at once."""
        self._interruptible = self._impatient = True
        try:
            yield
        finally:
            self._interruptible = self._impatient = False

    def _request(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if self.whole:
            return
        if self._impatient or (again and self._interruptible):
            raise KeyboardInterrupt
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)

    def _cut_short(self, number: int, frame: FrameType | None) -> None:
        if self._interruptible and not self._impatient:
            raise KeyboardInterrupt


def not_finite(z: Mapping[str, Tensor]) -> dict[int, str]:
    """The variables that are not finite, by replica; one synchronisation."""
    import torch

    names = [name for name, value in z.items() if value.is_floating_point()]
    finite = torch.stack([z[name].flatten(1).isfinite().all(1) for name in names]).cpu()
    found = {}
    for replica in (~finite.all(0)).nonzero().flatten().tolist():
        first, *others = [name for name, good in zip(names, finite[:, replica], strict=True) if not good]
        found[replica] = f"{first} is not finite" + (f" (nor {', '.join(others)})" if others else "")
    return found


def past_bound(observed: Mapping[str, NDArray[np.floating]], bound: float) -> dict[int, str]:
    """The first of the loss and the energies that is past the bound or not a number, by replica."""
    found: dict[int, str] = {}
    for name, values in observed.items():
        if name == "loss" or name.startswith(("kinetic_", "energy_")):
            for replica in np.flatnonzero(~(np.abs(values.astype(np.float64)) <= bound)).tolist():
                found.setdefault(
                    replica, f"{name} is {values[replica]:.3g}, past the bound of {bound:g} (run.bound)"
                )
    return found


def refuse_no_number(observed: Mapping[str, NDArray[np.floating]], system: System) -> None:
    """Raises SdeflowError where the loss at the start is not finite, naming data that are not."""
    from torch.utils._pytree import tree_leaves

    loss = observed.get("loss")
    if loss is None or np.isfinite(loss).all():
        return
    data = [] if system.model_forces is None else tree_leaves(system.model_forces.model.data)
    real = (x for x in data if isinstance(x, Tensor) and x.is_floating_point())
    wrong = sum(int((~x.isfinite()).sum()) for x in real)
    why = (
        f"the data hold {wrong:,} values that are NaN or infinite"
        if wrong
        else "look at init_theta and init_x"
    )
    raise SdeflowError(f"the loss at the start is {loss[~np.isfinite(loss)][0]:g}: {why}")


NAMED = 8
"""Diverged replicas that a message names."""


@dataclass(frozen=True)
class Solution:
    """A finished run: the trajectory, the full last state, and how it ended.

    opened    gives the trajectory, which is opened where somebody asks for `dataset`
    retcode   'success', 'stopped' by a callback, 'diverged' or 'interrupted'; `message` tells more
    diverged  the replicas that did
    """

    opened: Callable[[], xr.Dataset]
    state: State
    retcode: str
    message: str
    diverged: frozenset[int] = frozenset()

    @cached_property
    def dataset(self) -> xr.Dataset:
        return self.opened()


def ending_message(
    meta: Metadata, run: Run, error: Exception | None, folder: RunFolder | None, stopped: Stopped | None
) -> str:
    """How a run ended, in a sentence, and what can be done."""
    if meta.retcode == "stopped":
        return f"after {meta.step} of {run.steps} steps by {stopped}"
    if meta.retcode == "interrupted":
        again = "" if folder is None else f"; to go on: {resuming(folder.path)}"
        return f"stopped after {meta.step} of {run.steps} steps{again}"
    if error is not None:
        kind = "" if isinstance(error, SdeflowError) else f" with {type(error).__name__}"
        return f"the run failed after {meta.step} of {run.steps} steps{kind}: {error}"
    if meta.retcode == "diverged":
        good = "" if folder is None or folder.new else f" The last checkpoint is of step {folder.meta.step}."
        fix = f"Likely fix: a smaller step h, or a more stable integrator than {run.integrator.name}."
        early = stopped is not None and not meta.all_diverged(run.replica_count)
        others = f" Stopped after {meta.step} of {run.steps} steps by {stopped}." if early else ""
        return f"{diverged_where(meta, run)}. {fix}{good}{others}"
    return f"{meta.step} steps"


def diverged_where(meta: Metadata, run: Run) -> str:
    """Which replicas diverged, and of a grid at which points; the first NAMED of them."""

    def name(replica: int) -> str:
        at = "" if run.grid is None else f" ({run.grid.label(replica, run.replicas)})"
        return f"replica {replica}{at}"

    lost = list(meta.diverged.items())
    more = len(lost) - NAMED
    return "; ".join(f"{name(r)}: {what}" for r, what in lost[:NAMED]) + (
        f"; and {more} more of {run.replica_count} replicas" if more > 0 else ""
    )

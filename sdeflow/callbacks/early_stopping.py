"""Stopping a run whose observable improves no more."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal, get_args

import numpy as np

from sdeflow.callbacks.callback import About, Callback, Snapshot
from sdeflow.errors import SdeflowError, expect_count, expect_number

Mode = Literal["min", "max"]


@dataclass(eq=False)
class EarlyStopping(Callback):
    """Stops a run once an observable improves no more.

    That is, once it has not improved in `patience` measurements one after the other. It has improved where it
    is less (`mode` "max": more) than its best by more than `min_delta`; the first measurement is one. A
    snapshot at which it was not measured, where it is NaN, does not count. Of several replicas each has a
    best of its own, and the run stops when all have waited; a replica that has diverged improves no more.

    observable   one that the run records, such as 'loss' or 'held_out_loss'
    """

    observable: str
    patience: int = 10
    min_delta: float = 0.0
    mode: Mode = "min"
    replays = True

    def __post_init__(self) -> None:
        self.patience = expect_count("EarlyStopping: patience", self.patience)
        self.min_delta = float(expect_number("EarlyStopping: min_delta", self.min_delta))
        if not (isfinite(self.min_delta) and self.min_delta >= 0):
            raise SdeflowError(
                f"EarlyStopping: min_delta must be at least 0 and finite, given {self.min_delta}"
            )
        if self.mode not in get_args(Mode):
            raise SdeflowError(f"EarlyStopping: mode must be 'min' or 'max', given {self.mode!r}")

    def begin(self, run: About) -> None:
        self._best, self._at, self._waited = np.array(inf), np.array(0), np.array(0)

    def __call__(self, snapshot: Snapshot) -> str | None:
        value = np.asarray(snapshot[self.observable], dtype=np.float64)
        if np.isnan(value).all():
            return None
        cost = value if self.mode == "min" else -value
        better = cost < self._best - self.min_delta
        self._best = np.where(better, cost, self._best)
        self._at = np.where(better, snapshot.step, self._at)
        self._waited = np.where(better, 0, self._waited + 1)
        return self._why() if (self._waited >= self.patience).all() else None

    def _why(self) -> str:
        r = int(self._best.argmin())
        best = self._best.flat[r] if self.mode == "min" else -self._best.flat[r]
        where = f"{best:.6g} at step {self._at.flat[r]:,}"
        where += f" in replica {r}, the best of {self._best.size}" if self._best.ndim else ""
        more = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.observable} has not improved{more} in {self.patience} measurements; it was {where}"

"""A log of what a run observes: rows that wait until there is a place for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdeflow.callbacks.callback import About, Callback, Snapshot
from sdeflow.errors import SdeflowError


class Row(NamedTuple):
    """What was observed at a snapshot; a value is a number, or of several replicas an array [R]."""

    step: int
    time: float
    observables: Mapping[str, Any]


class Log(Callback):
    """Rows wait until the run has taken a step, and for a log in its folder until that is there.

    So a run whose first step fails leaves nothing behind. On resuming, the log is written anew from the
    record: no row is there twice, and none is lost.
    """

    replays = True

    def begin(self, run: About) -> None:
        self._run, self._waiting, self._step = run, list[Row](), run.step

    def __call__(self, snapshot: Snapshot) -> None:
        self._waiting.append(Row(snapshot.step, snapshot.time, snapshot.observables))
        self._step = max(self._step, snapshot.step)
        if self._ready:
            self._flush()

    def end(self, retcode: str) -> None:
        if self._waiting and (self._ready or retcode != "failed"):
            self._flush()

    @property
    def _ready(self) -> bool:
        return self._step > 0

    def _flush(self) -> None:
        rows, self._waiting = self._waiting, []  # first: what cannot be written is not tried again
        self.write(rows)

    @abstractmethod
    def write(self, rows: Sequence[Row]) -> None:
        """Adds rows; the first call since `begin` makes the log, in place of what is there."""


class PlacedLog(Log):
    """A log in a file or folder of its own: at `path`, or without one in the run folder under `usual`."""

    path: str | Path | None
    usual: str

    def begin(self, run: About) -> None:
        super().begin(run)
        if self.path is None and run.folder is None:
            name = type(self).__name__
            raise SdeflowError(
                f"{name}() writes {self.usual} into the run folder, and this run has none: give the run "
                f"out=..., or a place to the log, {name}('{self.usual}')"
            )

    @property
    def place(self) -> Path:
        if self.path is not None:
            return Path(self.path).expanduser()
        assert self._run.folder is not None
        return self._run.folder / self.usual

    @property
    def _ready(self) -> bool:
        return super()._ready if self.path is not None else self._run.there()


def scalars(row: Row) -> Iterator[tuple[str, float]]:
    """The numbers of a row by name, of several replicas 'loss/0', 'loss/1', ...; what is NaN is left out."""
    for name, value in row.observables.items():
        several = getattr(value, "ndim", 0) == 1
        for replica, one in enumerate(value if several else [value]):
            if one == one:
                yield f"{name}/{replica}" if several else name, float(one)

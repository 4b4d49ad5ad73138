"""A CSV file of what a run observes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdeflow.callbacks.callback import About
from sdeflow.callbacks.log import PlacedLog, Row
from sdeflow.trajectory import durable


@dataclass(eq=False)
class CSV(PlacedLog):
    """A CSV file of what is observed, a line a snapshot.

    Its columns are step, time and the observables, as recorded; of several replicas each has a line, and
    `replica` is a column. Where a run is resumed the file is written anew from the record, and is that of a
    run in one piece.

    path   the file, which is replaced; without one log.csv in the run folder
    """

    path: str | Path | None = None
    usual = "log.csv"

    def begin(self, run: About) -> None:
        super().begin(run)
        self._begun = False

    def write(self, rows: Sequence[Row]) -> None:
        text = "".join(line for row in rows for line in _lines(row))
        try:
            if self._begun:
                with self.place.open("a", encoding="utf-8") as file:
                    file.write(text)
            else:
                self.place.parent.mkdir(parents=True, exist_ok=True)
                durable.write(self.place, (_header(rows[0]) + text).encode())
                self._begun = True
        except OSError as error:
            raise durable.refusal(self.place, error) from error


def _header(row: Row) -> str:
    return ",".join(["step", "time", *["replica"] * _several(row), *row.observables]) + "\n"


def _lines(row: Row) -> list[str]:
    """Numbers in as few digits as give them back."""
    if not _several(row):
        return [",".join(map(str, (row.step, row.time, *row.observables.values()))) + "\n"]
    columns = zip(*row.observables.values(), strict=True)
    return [",".join(map(str, (row.step, row.time, r, *values))) + "\n" for r, values in enumerate(columns)]


def _several(row: Row) -> bool:
    return any(getattr(value, "ndim", 0) == 1 for value in row.observables.values())

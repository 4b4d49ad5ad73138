"""What a sweep is: every combination of values of configuration keys, each a run in a folder of its own, or
points that a search chooses.

sweep.toml    the keys with their values, and the configuration that all runs share
journal.log   of a search, what was chosen and what came of it
points/       of each run its configuration, and what its process said
cluster/      of a sweep whose runs are jobs of a cluster, their ids, and the scheduler's own files
NAME/         the run folders, named by what they differ in, such as gamma_theta=0.1,seed=3; or trial=7
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import product
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import tomli_w

from sdeflow.config.schema import Config, load_config, nested, parse_config
from sdeflow.errors import SdeflowError
from sdeflow.sweep.axes import Axis, word
from sdeflow.trajectory import durable
from sdeflow.trajectory.checkpoint import Damaged
from sdeflow.trajectory.layout import LOCK
from sdeflow.trajectory.opening import newest

SWEEP, POINTS = "sweep.toml", "points"
TRIAL, EVIDENCE, FOLD = "trial", "evidence", "validation"

ENDED = ("success", "stopped", "diverged")
"""States of runs that are not begun again."""


class Search(NamedTuple):
    """What the points of a sweep are chosen for.

    score    'evidence', to be large, as `sdeflow evaluate` has it on the validation fold; or what a run
             records under that name, to be small at its end
    trials   how many points are chosen
    """

    score: str
    trials: int

    @property
    def maximised(self) -> bool:
        return self.score == EVIDENCE


@dataclass(frozen=True)
class Point:
    """One run of a sweep: the value of each axis by name, its folder, its configuration."""

    at: Mapping[str, Any]
    folder: Path
    config: Config

    @property
    def state(self) -> str:
        """'waiting', 'running', 'interrupted', or how it ended."""
        try:
            meta = newest(self.folder)
        except FileNotFoundError:
            return "waiting"
        except Damaged:
            return "damaged"
        if meta.whole:
            return meta.retcode
        return "running" if busy(self.folder) else "interrupted"


class Sweep:
    """A sweep in its folder.

    base     the configuration that all runs share, as TOML
    axes     in the order of the dimensions; of the points the last varies fastest
    search   where the points are no grid, but chosen one after the other

    Raises SdeflowError where a point's configuration has something wrong.
    """

    def __init__(self, folder: Path, base: str, axes: Sequence[Axis], search: Search | None = None) -> None:
        self.folder, self.base, self.axes, self.search = folder, base, tuple(axes), search
        names = self.names
        if len(set(names)) < len(names):
            raise SdeflowError(f"the keys of a sweep must have names of their own, given {', '.join(names)}")

    @property
    def names(self) -> list[str]:
        """What a point is at, by name: its number in a search, and the value of each key."""
        return [*[TRIAL] * (self.search is not None), *(axis.name for axis in self.axes)]

    @classmethod
    def open(cls, folder: Path) -> Sweep:
        """The sweep in a folder; raises SdeflowError where there is none."""
        try:
            tables = tomllib.loads((folder / SWEEP).read_text(encoding="utf-8"))
            axes = [Axis.of(table) for table in tables["axes"]]
            search = Search(**tables["search"]) if "search" in tables else None
            return cls(folder, tomli_w.dumps(tables["base"]), axes, search)
        except FileNotFoundError:
            raise SdeflowError(f"{folder} is no sweep: it has no {SWEEP}") from None
        except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
            raise SdeflowError(f"{folder / SWEEP} cannot be read: {error}") from error

    def begin(self) -> Sweep:
        """The sweep with its folder made; one that is there may get more values, and keeps those that it has.

        Of a search the number of trials may be another. Raises SdeflowError where there is another sweep.
        """
        found = self
        if self.folder.exists():
            if not (self.folder / SWEEP).exists() and any(self.folder.iterdir()):
                raise SdeflowError(f"{self.folder} exists and is no sweep: give another --out")
            if (self.folder / SWEEP).exists():
                found = self._after(Sweep.open(self.folder))
        found.check()
        (self.folder / POINTS).mkdir(parents=True, exist_ok=True)
        tables: dict[str, Any] = {"axes": [axis.table() for axis in found.axes]}
        tables |= {} if found.search is None else {"search": found.search._asdict()}
        text = tomli_w.dumps(tables | {"base": tomllib.loads(found.base)})
        durable.write(self.folder / SWEEP, text.encode())
        return found

    def _after(self, there: Sweep) -> Sweep:
        keys, theirs = ([axis.key for axis in one.axes] for one in (self, there))
        if keys != theirs:
            raise SdeflowError(
                f"{self.folder} is a sweep over {', '.join(theirs)}, given {', '.join(keys) or 'none'}: give "
                "another --out"
            )
        if tomllib.loads(self.base) != tomllib.loads(there.base):
            raise SdeflowError(
                f"{self.folder} is a sweep of another problem, or with other settings than those it is over: "
                "give another --out"
            )
        if self._sought() != there._sought():
            raise SdeflowError(
                f"{self.folder} has runs of another search, or of none: give the same --search and ranges, "
                "or another --out"
            )
        both = [old.with_more(new) for old, new in zip(there.axes, self.axes, strict=True)]
        return Sweep(self.folder, self.base, both, self.search)

    def _sought(self) -> object:
        """What must not change in a search; None where there is none."""
        return None if self.search is None else (self.search.score, self.axes)

    def check(self) -> None:
        """Raises SdeflowError where a point has something wrong, or two would write to one file.

        Of a search the points are not known: each end of an interval is tried, and each choice.
        """
        points = self.points if self.search is None else self._samples()
        if self.search is None and len({point.folder for point in points}) < len(points):
            raise SdeflowError(
                "values of a sweep must differ in their letters and digits, which name its folders"
            )
        written: set[object] = set()
        for point in points:
            for name, given in (point.config.callbacks or {}).items():
                if (path := given.get("path")) in written:
                    raise SdeflowError(
                        f"callbacks.{name}.path is {path} in several runs of a sweep, which would write over "
                        "each other: leave it out, and each has a file in its folder"
                    )
                written |= set() if path is None else {path}

    @property
    def points(self) -> list[Point]:
        """All runs; of a search those that were begun."""
        return self._grid if self.search is None else self._trials()

    @cached_property
    def _grid(self) -> list[Point]:
        found = []
        for values in product(*(axis.values for axis in self.axes)):
            at = dict(zip(self.names, values, strict=True))
            name = ",".join(f"{name}={word(value)}" for name, value in at.items())
            found.append(Point(at, self.folder / name, self._config(values)))
        return found

    def trial(self, number: int, values: Sequence[Any]) -> Point:
        """A point of a search."""
        at = dict(zip(self.names, (number, *values), strict=True))
        return Point(at, self.folder / f"{TRIAL}={number}", self._config(values))

    def _trials(self) -> list[Point]:
        """Those whose configuration was written, which holds their values."""
        written = {int(path.stem[len(TRIAL) + 1 :]): path for path in (self.folder / POINTS).glob("*.toml")}
        found = []
        for number, path in sorted(written.items()):
            config = load_config(path)
            tables = config.tables()
            values = [reduce(getitem, axis.key.split("."), tables) for axis in self.axes]
            at = dict(zip(self.names, (number, *values), strict=True))
            found.append(Point(at, self.folder / path.stem, config))
        return found

    def _samples(self) -> list[Point]:
        most = max(len(axis.ends) for axis in self.axes)
        return [
            self.trial(i, [axis.ends[min(i, len(axis.ends) - 1)] for axis in self.axes]) for i in range(most)
        ]

    def _config(self, values: Sequence[Any]) -> Config:
        over = [nested(axis.key, value) for axis, value in zip(self.axes, values, strict=True)]
        return parse_config(self.base, self.folder / SWEEP, overrides=over)


def busy(folder: Path) -> bool:
    """Whether a process is writing a run folder."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        with lock.acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True


@contextmanager
def alone(sweep: Sweep) -> Iterator[None]:
    """A context in which no other sweep is at work in the folder; raises SdeflowError where one is."""
    lock = filelock.FileLock(sweep.folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise SdeflowError(
            f"another sweep is at work in {sweep.folder}: wait for it, or give another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()

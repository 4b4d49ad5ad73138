"""What a sweep is: every combination of values of configuration keys, each a run in a folder of its own.

sweep.toml    the keys with their values, and the configuration that all runs share
points/       of each run its configuration, and what its process said
cluster/      of a sweep whose runs are jobs of a cluster, their ids, and the scheduler's own files
NAME/         the run folders, named by what they differ in, such as gamma_theta=0.1,seed=3
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import filelock
import tomli_w

from sdeflow.config.schema import Config, assigned, nested, parse_config
from sdeflow.errors import SdeflowError
from sdeflow.trajectory import durable
from sdeflow.trajectory.checkpoint import Damaged
from sdeflow.trajectory.layout import LOCK, safe_name
from sdeflow.trajectory.opening import newest

SWEEP, POINTS = "sweep.toml", "points"
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MOST = 10_000

ENDED = ("success", "stopped", "diverged")
"""States of runs that are not begun again."""


@dataclass(frozen=True)
class Axis:
    """A configuration key, and the values that it takes in turn."""

    key: str
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Of the dimension: gamma_theta of system.theta.gamma, seed of run.seed, batch_size of batch.size."""
        table, *rest = self.key.split(".")
        if rest in ([], ["use"]):
            return table
        if table == "system":
            block, *number = rest
            return "_".join([*number, block])
        return "_".join(rest if table in ("run", "model") else [table, *rest])


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

    base   the configuration that all runs share, as TOML
    axes   in the order of the dimensions; of the points the last varies fastest

    Raises SdeflowError where a point's configuration has something wrong.
    """

    def __init__(self, folder: Path, base: str, axes: Sequence[Axis]) -> None:
        self.folder, self.base, self.axes = folder, base, tuple(axes)
        names = [axis.name for axis in axes]
        if len(set(names)) < len(names):
            raise SdeflowError(f"the keys of a sweep must have names of their own, given {', '.join(names)}")

    @classmethod
    def open(cls, folder: Path) -> Sweep:
        """The sweep in a folder; raises SdeflowError where there is none."""
        try:
            tables = tomllib.loads((folder / SWEEP).read_text(encoding="utf-8"))
            axes = [Axis(axis["key"], tuple(axis["values"])) for axis in tables["axes"]]
            return cls(folder, tomli_w.dumps(tables["base"]), axes)
        except FileNotFoundError:
            raise SdeflowError(f"{folder} is no sweep: it has no {SWEEP}") from None
        except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
            raise SdeflowError(f"{folder / SWEEP} cannot be read: {error}") from error

    def begin(self) -> Sweep:
        """The sweep with its folder made; one that is there may get more values, and keeps those that it has.

        Raises SdeflowError where there is another.
        """
        found = self
        if self.folder.exists():
            if not (self.folder / SWEEP).exists() and any(self.folder.iterdir()):
                raise SdeflowError(f"{self.folder} exists and is no sweep: give another --out")
            if (self.folder / SWEEP).exists():
                found = self._after(Sweep.open(self.folder))
        _ = found.points  # checks them
        (self.folder / POINTS).mkdir(parents=True, exist_ok=True)
        axes = [{"key": axis.key, "values": list(axis.values)} for axis in found.axes]
        text = tomli_w.dumps({"axes": axes, "base": tomllib.loads(found.base)})
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
        both = [
            Axis(old.key, (*old.values, *(v for v in new.values if v not in old.values)))
            for old, new in zip(there.axes, self.axes, strict=True)
        ]
        return Sweep(self.folder, self.base, both)

    @cached_property
    def points(self) -> list[Point]:
        """All runs."""
        found = [self._point(values) for values in product(*(axis.values for axis in self.axes))]
        if len({point.folder for point in found}) < len(found):
            raise SdeflowError(
                "values of a sweep must differ in their letters and digits, which name its folders"
            )
        written: set[object] = set()
        for point in found:
            for name, given in (point.config.callbacks or {}).items():
                if (path := given.get("path")) in written:
                    raise SdeflowError(
                        f"callbacks.{name}.path is {path} in several runs of a sweep, which would write over "
                        "each other: leave it out, and each has a file in its folder"
                    )
                written |= set() if path is None else {path}
        return found

    def _point(self, values: Sequence[Any]) -> Point:
        at = {axis.name: value for axis, value in zip(self.axes, values, strict=True)}
        over = [nested(axis.key, value) for axis, value in zip(self.axes, values, strict=True)]
        config = parse_config(self.base, self.folder / SWEEP, overrides=over)
        name = ",".join(f"{name}={word(value)}" for name, value in at.items())
        return Point(at, self.folder / name, config)


def word(value: object) -> str:
    """A value in the name of a folder, and as a label."""
    if isinstance(value, bool):
        return str(value).lower()
    return "-".join(map(word, value)) if isinstance(value, list | tuple) else safe_name(str(value))


def parted(assignments: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """The axes among assignments 'key=value', and the others, which all runs share.

    An axis is a list of values, or whole numbers as 0..4, both ends included. Lists in [grid] are the grid's
    own; a key whose values are lists takes a list of lists. Raises SdeflowError for a list without values.
    """
    axes, rest = [], []
    for assignment in assignments:
        key, value = assigned(assignment)
        if isinstance(value, str) and (ends := _RANGE.fullmatch(value)):
            first, last = map(int, ends.groups())
            if last - first >= _MOST:
                raise SdeflowError(
                    f"--set {assignment}: at most {_MOST:,} values were expected to sweep over"
                )
            value = list(range(first, last + 1))
        elif not isinstance(value, list) or key.startswith("grid."):
            rest.append(assignment)
            continue
        if not value or any(v in value[:i] for i, v in enumerate(value)):
            raise SdeflowError(f"--set {assignment}: different values were expected to sweep over")
        axes.append(Axis(key, tuple(value)))
    return axes, rest


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

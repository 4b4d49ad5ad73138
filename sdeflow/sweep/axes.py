"""What is swept: configuration keys, and the values that each takes, or the interval to search in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sdeflow.config.schema import assigned
from sdeflow.errors import SdeflowError
from sdeflow.trajectory.layout import safe_name

_MOST = 10_000
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")
_WORDS = re.compile(r"\[([^\[\]]*)\]")
"""A list that TOML does not take, as its words have no quotation marks, which a shell would eat."""


@dataclass(frozen=True)
class Interval:
    """Numbers that a search chooses from, whole ones where both ends are.

    log   whether they are chosen evenly by their logarithm
    """

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Axis:
    """A configuration key, and the values that it takes in turn, or that a search chooses from.

    interval   takes the place of `values` in a search
    """

    key: str
    values: tuple[Any, ...] = ()
    interval: Interval | None = None

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

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Axis:
        """As `table` has it."""
        rest = {name: value for name, value in table.items() if name != "key"}
        if "values" in rest:
            return cls(table["key"], tuple(rest["values"]))
        return cls(table["key"], interval=Interval(**rest))

    def table(self) -> dict[str, Any]:
        """As a table of TOML."""
        if self.interval is None:
            return {"key": self.key, "values": list(self.values)}
        return {"key": self.key} | asdict(self.interval)

    def with_more(self, other: Axis) -> Axis:
        """With the values that another has besides."""
        more = (value for value in other.values if value not in self.values)
        return replace(self, values=(*self.values, *more))

    @property
    def ends(self) -> list[Any]:
        """All values, or the ends of the interval."""
        return [*self.values] if self.interval is None else [self.interval.low, self.interval.high]


def parted(assignments: Sequence[str], *, searching: bool = False) -> tuple[list[Axis], list[str]]:
    """The axes among assignments 'key=value', and the others, which all runs share.

    An axis is a list of values, or whole numbers as 0..4, both ends included. To a search a list is choices,
    and it chooses between any two numbers, as 0.1..0.9, or 1e-4..1e-1:log, evenly by their logarithm. Lists
    in [grid] are the grid's own; a key whose values are lists takes a list of lists. Raises SdeflowError for
    a list without values, and for what only a search takes or cannot.
    """
    axes, rest = [], []
    for assignment in assignments:
        key, value = assigned(assignment)
        if isinstance(value, str) and (words := _WORDS.fullmatch(value)):
            value = [assigned(f"{key}={word}")[1] for word in words[1].split(",")]
        if isinstance(value, str) and (given := _RANGE.fullmatch(value)):
            axes.append(_ranged(key, given, searching, assignment))
        elif not isinstance(value, list) or key.startswith("grid."):
            rest.append(assignment)
        elif not value or any(v in value[:i] for i, v in enumerate(value)):
            raise _no_values(assignment)
        else:
            axes.append(Axis(key, tuple(value)))
    if searching and any(axis.key == "run.seed" for axis in axes):
        raise SdeflowError(
            "a search over run.seed would find the luckiest: give run.replicas, whose scores are averaged"
        )
    return axes, rest


def _ranged(key: str, given: re.Match[str], searching: bool, assignment: str) -> Axis:
    low, high, log = given.groups()
    whole = re.fullmatch(r"-?\d+", low) and re.fullmatch(r"-?\d+", high)
    first, last = (int(low), int(high)) if whole else (float(low), float(high))
    if searching:
        if first >= last or (log and first <= 0):
            expected = "positive numbers, the lesser" if log else "the lesser number"
            raise SdeflowError(f"--set {assignment}: {expected} first, was expected to search between")
        return Axis(key, interval=Interval(first, last, bool(log)))
    if log or not whole:
        raise SdeflowError(
            f"--set {assignment}: a range is for --search to choose from; give a list to sweep over"
        )
    if last - first >= _MOST:
        raise SdeflowError(f"--set {assignment}: at most {_MOST:,} values were expected to sweep over")
    if last < first:
        raise _no_values(assignment)
    return Axis(key, tuple(range(int(first), int(last) + 1)))


def _no_values(assignment: str) -> SdeflowError:
    return SdeflowError(f"--set {assignment}: different values were expected to sweep over")


def word(value: object) -> str:
    """A value in the name of a folder, and as a label."""
    if isinstance(value, bool):
        return str(value).lower()
    return "-".join(map(word, value)) if isinstance(value, list | tuple) else safe_name(str(value))

"""Schedules: a step size, a friction or a temperature as a function of the step."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, cast

from sdeflow.errors import SdeflowError, attempt, did_you_mean, expect_count, expect_number, numbers

SCHEDULED = ("h", "gamma", "temperature")
"""The numbers of a block that may be schedules. eta may not: a momentum's law would change under it."""

KEYS = {
    "constant": ("value",),
    "linear": ("from", "to", "steps"),
    "exponential": ("from", "to", "steps"),
    "cosine": ("from", "to", "steps"),
    "warm-up": ("to", "steps", "then"),
    "piecewise": ("at", "values"),
    "function": ("function",),
}
"""What a schedule of each kind takes."""

FALLING = ("linear", "exponential", "cosine")
"""The kinds that go from one value to another over so many steps, where nothing is said those of the run."""

LOOKED_AT = 1000
"""Values by which functions are told apart, spread evenly over a run."""

TRIED = 1_000_000
"""Values of a function that are looked at before a run, at most."""


@dataclass(frozen=True)
class Schedule:
    """A number as a function of the step: `schedule(n)` is that of step n = 0, 1, ..., in float64.

        constant      value
        linear        from + u (to - from)
        exponential   from (to / from)^u
        cosine        to + (from - to) (1 + cos(pi u)) / 2
        warm-up       to (n + 1) / steps for n < steps; then `to`, or `then(n - steps)` where that is given
        piecewise     values[i], with i the number of steps in `at` that are n at most
        function      function(n)

    with u = min(n / steps, 1): step 0 has `from`, and from step `steps` on it is `to`. These three go over
    the steps of the run where `steps` is not given; of one that is resumed to go further, over those that it
    was begun with, after which it is `to`. A table of TOML has the same keys, `from` too.

    kind      constant, linear, exponential, cosine, warm-up or piecewise; a function in Python alone
    from      the value at step 0
    to        the value at the end, of a warm-up where it has come to; its default is then that of `then` at 0
    steps     [steps] that it goes over
    value     the one value of a constant
    at        [steps] at which the next piece begins, rising
    values    those of the pieces, one more than there are in `at`
    then      of a warm-up, a table: the schedule that follows it, from its own step 0
    horizon   the steps that the run was begun with, as `over` sets them

    Raises SdeflowError for an unknown kind, a key that is missing or is not of that kind, and no number.
    """

    kind: str
    from_: float | None = None
    to: float | None = None
    steps: int | None = None
    value: float | None = None
    at: tuple[int, ...] | None = None
    values: tuple[float, ...] | None = None
    then: Schedule | None = None
    function: Callable[[int], float] | None = None
    horizon: int = 0

    @classmethod
    def of(cls, given: Any) -> Schedule:
        """The schedule of a table as TOML has it, or of a function of the step; one that is made as it is."""
        if isinstance(given, Schedule):
            return given
        if callable(given):
            return cls("function", function=given)
        if not isinstance(given, Mapping) or "kind" not in given:
            raise SdeflowError(
                "a schedule is a table as {kind = 'cosine', from = 1e-2, to = 1e-4} or a function of the "
                f"step, given {given!r}"
            )
        kind, table = given["kind"], {key: value for key, value in given.items() if key != "kind"}
        for key in table:
            if key not in _keys(kind):
                raise SdeflowError(_unknown(kind, key))
        return cls(kind, **{f"{key}_" if key == "from" else key: value for key, value in table.items()})

    def __post_init__(self) -> None:
        known, about = _keys(self.kind), f"a schedule of kind '{self.kind}'"
        given = {f.name: getattr(self, f.name) for f in fields(self)[1:-1]}
        given = {name.rstrip("_"): value for name, value in given.items() if value is not None}
        for key in given:
            if key not in known:
                raise SdeflowError(_unknown(self.kind, key))
        optional = ["then", *["to"] * (self.then is not None), *["steps"] * (self.kind in FALLING)]
        for key in known:
            if key not in given and key not in optional:
                raise SdeflowError(f"{about} needs '{key}', one of {', '.join(known)}")
        checked: dict[str, Any] = {
            f"{key}_" if key == "from" else key: float(expect_number(f"{about}: {key}", given[key]))
            for key in ("value", "from", "to")
            if key in given
        }
        if "steps" in given:
            checked["steps"] = expect_count(f"{about}: steps", given["steps"])
        if "then" in given:
            checked["then"] = Schedule.of(given["then"])
        if self.kind == "piecewise":
            checked |= self._pieces(given["at"], given["values"])
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.kind == "warm-up" and self.to is None:
            object.__setattr__(self, "to", cast(Schedule, self.then)(0))
        if self.kind == "exponential" and not (cast(float, self.from_) > 0 and cast(float, self.to) > 0):
            raise SdeflowError(f"{about} goes between positive numbers, given {self.from_} and {self.to}")

    def _pieces(self, at: Any, values: Any) -> dict[str, Any]:
        steps, own = numbers(at, Integral), numbers(values)
        ordered = steps is not None and all(a < b for a, b in zip((0, *steps), steps, strict=False))
        if steps is None or own is None or not ordered or len(own) != len(steps) + 1:
            raise SdeflowError(
                "a schedule of kind 'piecewise' takes rising steps and one value more, as "
                f"at = [1000], values = [1e-2, 1e-3]; given at = {at!r}, values = {values!r}"
            )
        return {"at": steps, "values": own}

    def __call__(self, n: int) -> float:
        """The value at step n."""
        if self.kind == "function":
            given = attempt("the schedule", cast(Any, self.function), n)
            return float(expect_number(f"the schedule at step {n}", given))
        if self.kind == "piecewise":
            return float(cast(Any, self.values)[bisect_right(cast(Any, self.at), n)])
        if self.kind == "constant":
            return cast(float, self.value)
        if self.kind == "warm-up":
            steps, to = cast(int, self.steps), cast(float, self.to)
            if n < steps:
                return to * ((n + 1) / steps)
            return to if self.then is None else self.then(n - steps)
        steps, first, last = self.steps or self.horizon, cast(float, self.from_), cast(float, self.to)
        u = n / steps if steps else 0.0
        if u == 0 or u >= 1:
            return last if u else first
        if self.kind == "linear":
            return first + u * (last - first)
        if self.kind == "exponential":
            return cast(float, first * (last / first) ** u)
        return last + (first - last) * ((1 + math.cos(math.pi * u)) / 2)

    def over(self, steps: int) -> Schedule:
        """The schedule in a run that was begun with so many steps."""
        then = self.then
        if then is not None:
            then = then.over(max(1, steps - cast(int, self.steps)))
        return replace(self, horizon=steps, then=then)

    def turns(self, steps: int) -> Iterable[int]:
        """Steps among the first so many that have its least and its largest value, in order.

        Of a function all; in a run of more than TRIED so many of them, spread evenly.
        """
        if self.kind == "function":
            return range(0, steps, 1 + max(0, steps - 1) // TRIED)
        found = {0, *(self.at or ())}
        if self.kind == "warm-up":
            begun = cast(int, self.steps)
            later = () if self.then is None else self.then.turns(max(0, steps - begun))
            found |= {begun - 1, begun, *(begun + n for n in later)}
        return sorted(n for n in found | {steps - 1} if 0 <= n < steps)

    def __str__(self) -> str:
        over = self.steps or self.horizon
        if self.kind == "function":
            return f"{getattr(self.function, '__name__', 'a function')} (a function, {self._digest()})"
        if self.kind == "piecewise":
            first, *others = cast(Any, self.values)
            pieces = zip(cast(Any, self.at), others, strict=True)
            return ", ".join([f"{first:.10g}", *(f"from step {n:,} on {v:.10g}" for n, v in pieces)])
        if self.kind == "constant":
            return f"{self.value:.10g}"
        if self.kind == "warm-up":
            words = f"warm-up to {self.to:.10g} over {over:,} steps"
            return words if self.then is None else f"{words}, then {self.then}"
        steps = f"{over:,} steps" if over else "the run"
        return f"{self.kind} from {self.from_:.10g} to {self.to:.10g} over {steps}"

    def _digest(self) -> str:
        """What tells functions apart, by their values over the run."""
        steps = range(0, max(1, self.horizon), max(1, self.horizon // LOOKED_AT))
        return hashlib.sha256(repr([self(n) for n in steps]).encode()).hexdigest()[:12]


def _keys(kind: Any) -> tuple[str, ...]:
    if not isinstance(kind, str) or kind not in KEYS:
        raise SdeflowError(f"unknown kind of schedule '{kind}': {did_you_mean(str(kind), KEYS)}")
    return KEYS[kind]


def _unknown(kind: str, key: str) -> str:
    return f"a schedule of kind '{kind}' takes no '{key}': {did_you_mean(key, KEYS[kind])}"


def written_out(table: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """A schedule's table of TOML with the steps that it goes over, also where those are the run's."""
    own = dict(table)
    if own.get("kind") in FALLING:
        own.setdefault("steps", steps)
    if isinstance(own.get("then"), Mapping):
        own["then"] = written_out(own["then"], max(1, steps - own["steps"]))
    return own

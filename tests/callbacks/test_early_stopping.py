"""When early stopping stops: another way to say it, and cases by hand."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdeflow import EarlyStopping, Snapshot
from sdeflow.callbacks import About
from sdeflow.errors import SdeflowError

ABOUT = About(0, {}, "", Path("run"), lambda: True)


def stops(values: Sequence[Any], **options: Any) -> tuple[int | None, str]:
    """At which of the values of 'a' it stops a run, and why."""
    stopping = EarlyStopping("a", **options)
    for _ in range(2):  # what is begun anew remembers nothing
        stopping.begin(ABOUT)
        found: tuple[int | None, str] = None, ""
        for k, value in enumerate(values):
            if why := stopping(Snapshot(10 * k, 1000, 0.0, 0.0, {"a": value}, {})):
                found = k, why
                break
    return found


@pytest.mark.parametrize("patience", [1, 2, 5])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_it_stops_when_the_best_is_so_long_ago(patience: int, mode: str, replicas: int) -> None:
    """The best of all values so far, its first occurrence, in every replica."""
    rng = np.random.default_rng(patience)
    for _ in range(50):
        values = rng.integers(0, 30, (40, replicas)) - np.arange(40)[:, None] / 2
        sign = 1 if mode == "min" else -1
        since = [k - np.argmin(sign * values[: k + 1], 0) for k in range(40)]
        expected = next((k for k, ago in enumerate(since) if (ago >= patience).all()), None)
        given = values if replicas > 1 else values[:, 0]
        assert stops(given, patience=patience, mode=mode)[0] == expected


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([5, 4, 3, 2, 1], {"patience": 1}, None),
        ([5, 4.9, 4.7, 4.6, 4.4], {"patience": 2, "min_delta": 0.25}, None),  # the sum of small gains is one
        ([5, 4.9, 4.8], {"patience": 2, "min_delta": 0.25}, 2),
        ([1, 1.0, 1.0], {"patience": 2}, 2),
        ([1, nan, nan, nan, 0.5, nan, 2, 2], {"patience": 2}, 7),  # what was not measured does not count
        ([nan, nan, 3, 4], {"patience": 1}, 3),
        ([[1, 1], [nan, 0], [nan, 0], [nan, -1]], {"patience": 2}, None),  # one of two has diverged
        ([[1, 1], [nan, 0], [nan, 0], [nan, 0]], {"patience": 2}, 3),
        ([[1, 5], [2, 4], [2, 3], [0, 4], [1, 4], [1, 4]], {"patience": 2}, 5),
        ([[1, 5], [2, 4], [3, 3], [4, 2]], {"patience": 1}, None),
        ([1, 2, 3, 3, 3], {"patience": 2, "mode": "max"}, 4),
    ],
)
def test_cases(values: list[Any], options: dict[str, Any], expected: int | None) -> None:
    assert stops([np.asarray(value, dtype=float) for value in values], **options)[0] == expected


def test_it_says_why() -> None:
    assert stops([3, 2, 2.5, 2.5], patience=2)[1] == (
        "a has not improved in 2 measurements; it was 2 at step 10"
    )
    assert stops([3, 4, 3], patience=1, mode="max", min_delta=0.5)[1] == (
        "a has not improved by more than 0.5 in 1 measurements; it was 4 at step 10"
    )
    two = [np.array([3.0, 2.0]), np.array([4.0, 2.5])]
    assert stops(two, patience=1)[1].endswith("it was 2 at step 0 in replica 1, the best of 2")
    assert stops(two[::-1], patience=1, mode="max")[1].endswith("4 at step 0 in replica 0, the best of 2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patience": 0}, "patience must be at least 1, given 0"),
        ({"patience": 1.5}, "a whole number was expected"),
        ({"min_delta": -1}, "min_delta must be at least 0 and finite"),
        ({"min_delta": "a"}, "min_delta must be a number"),
        ({"mode": "least"}, "mode must be 'min' or 'max', given 'least'"),
    ],
)
def test_other_numbers_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SdeflowError, match=words):
        EarlyStopping("loss", **options)

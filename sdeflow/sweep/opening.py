"""The trajectories of a sweep as one dataset."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sdeflow.errors import SdeflowError
from sdeflow.sweep.axes import Axis, word
from sdeflow.sweep.cluster import states
from sdeflow.sweep.plan import ENDED, TRIAL, Point, Sweep
from sdeflow.sweep.score import score_of
from sdeflow.trajectory.opening import open_run


def open_sweep(folder: str | Path) -> xr.Dataset:
    """The trajectories of all runs of a sweep, with its keys as the first dimensions, by name.

    Of a search the first dimension is `trial`, along which are the values of the keys, and `score`. Runs that
    have not begun, and times that a run has not come to, are NaN; `state` says how each run stands. Where
    runs differ in their times, by h say, `step` takes the place of `time` as dimension and index. With dask
    installed values are read when they are asked for. Raises SdeflowError for what is no sweep, and for one
    of which no run has begun.
    """
    sweep = Sweep.open(Path(folder))
    points = sweep.points
    found = {i: open_run(point.folder) for i, point in enumerate(points) if point.folder.exists()}
    if not found:
        raise SdeflowError(f"no run of the sweep {sweep.folder} has begun yet")
    longest = max(found.values(), key=lambda run: run.sizes["time"])
    times = longest.time.to_numpy()
    if not all(np.array_equal(run.time, times[: run.sizes["time"]]) for run in found.values()):
        found = {i: run.swap_dims(time="step") for i, run in found.items()}
        longest = max(found.values(), key=lambda run: run.sizes["step"])
    lazy = find_spec("dask") is not None
    missing = xr.full_like(longest, np.nan, dtype=float)
    taken = {*sweep.names, *["score"] * (sweep.search is not None)}
    runs = [
        _without(found.get(i, missing), taken).assign(state=state) for i, state in enumerate(states(sweep))
    ]
    runs = [run.chunk() if lazy else run for run in runs]
    whole = _joined(runs, sweep.axes) if sweep.search is None else _in_a_row(runs, sweep)
    return whole.assign_attrs(longest.attrs | {"sweep": str(sweep.folder), "config": sweep.base})


def _without(run: xr.Dataset, names: set[str]) -> xr.Dataset:
    """A run without what the sweep has names for."""
    return run.drop_vars(names & {str(name) for name in run.variables}).drop_attrs(deep=False)


_RULE: dict[str, Any] = {"data_vars": "all", "coords": "different", "compat": "equals", "join": "outer"}


def _joined(runs: Sequence[xr.Dataset], axes: Sequence[Axis]) -> xr.Dataset:
    """Runs in the order of a sweep's points along its axes."""
    if not axes:
        return runs[0]
    axis, size = axes[0], len(runs) // len(axes[0].values)
    parts = [_joined(runs[i : i + size], axes[1:]) for i in range(0, len(runs), size)]
    along = xr.Variable(axis.name, _labels(axis.values), {"long_name": axis.key})
    return xr.concat(parts, along, **_RULE)


def _in_a_row(runs: Sequence[xr.Dataset], sweep: Sweep) -> xr.Dataset:
    """The runs of a search along its trials."""
    assert sweep.search is not None
    points = sweep.points
    whole = xr.concat(runs, xr.Variable(TRIAL, [point.at[TRIAL] for point in points]), **_RULE)
    values = {
        axis.name: (TRIAL, _labels([point.at[axis.name] for point in points]), {"long_name": axis.key})
        for axis in sweep.axes
    }
    scores = [score(sweep, point) for point in points]
    return whole.assign_coords(values).assign(score=(TRIAL, scores, {"long_name": sweep.search.score}))


def _labels(values: Sequence[Any]) -> list[Any]:
    """As coordinates: numbers and texts as they are, else words."""
    plain = all(isinstance(v, int | float | str) for v in values)
    return [v if plain else word(v) for v in values]


def score(sweep: Sweep, point: Point) -> float:
    """Of a run of a search; NaN where it has none yet."""
    assert sweep.search is not None
    try:
        return score_of(point.folder, sweep.search.score) if point.state in ENDED else nan
    except SdeflowError:
        return nan


def best(sweep: Sweep) -> tuple[Point, float] | None:
    """The run of a search with the best score; None where none has one."""
    assert sweep.search is not None
    known = [(point, s) for point in sweep.points if isfinite(s := score(sweep, point))]
    sign = 1 if sweep.search.maximised else -1
    return max(known, key=lambda pair: sign * pair[1], default=None)


def columns(sweep: Sweep) -> list[str]:
    """What the columns of `table` are."""
    return [
        *sweep.names,
        "state",
        "steps taken",
        "loss" if sweep.search is None else sweep.search.score,
        "seconds",
    ]


def table(sweep: Sweep) -> list[list[str]]:
    """A line for each run: its values, how it stands, its steps, its last loss or its score, its seconds."""
    chosen = {axis.name for axis in sweep.axes if axis.interval}  # to more digits than tell anything
    return [
        [
            *(f"{v:.6g}" if name in chosen else word(v) for name, v in point.at.items()),
            state,
            *_numbers(sweep, point),
        ]
        for point, state in zip(sweep.points, states(sweep), strict=True)
    ]


def _numbers(sweep: Sweep, point: Point) -> list[str]:
    try:
        run = open_run(point.folder)
    except SdeflowError:
        return ["", "", ""]
    with run:
        last = float(run.loss.isel(time=-1).mean()) if "loss" in run else nan
        number = last if sweep.search is None else score(sweep, point)
        told = "" if isnan(number) else f"{number:.6g}"
        return [f"{int(run.attrs['steps_taken']):,}", told, f"{float(run.attrs['seconds']):.1f}"]

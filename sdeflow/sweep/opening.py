"""The trajectories of a sweep as one dataset."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import xarray as xr

from sdeflow.errors import SdeflowError
from sdeflow.sweep.cluster import states
from sdeflow.sweep.plan import Axis, Point, Sweep, word
from sdeflow.trajectory.opening import open_run


def open_sweep(folder: str | Path) -> xr.Dataset:
    """The trajectories of all runs of a sweep, with its keys as the first dimensions, by name.

    Runs that have not begun, and times that a run has not come to, are NaN; `state` says how each run stands.
    Where runs differ in their times, by h say, `step` takes the place of `time` as dimension and index.
    With dask installed values are read when they are asked for. Raises SdeflowError for what is no sweep, and
    for one of which no run has begun.
    """
    sweep = Sweep.open(Path(folder))
    found = {i: open_run(point.folder) for i, point in enumerate(sweep.points) if point.folder.exists()}
    if not found:
        raise SdeflowError(f"no run of the sweep {sweep.folder} has begun yet")
    longest = max(found.values(), key=lambda run: run.sizes["time"])
    times = longest.time.to_numpy()
    if not all(np.array_equal(run.time, times[: run.sizes["time"]]) for run in found.values()):
        found = {i: run.swap_dims(time="step") for i, run in found.items()}
        longest = max(found.values(), key=lambda run: run.sizes["step"])
    lazy = find_spec("dask") is not None
    missing = xr.full_like(longest, np.nan, dtype=float)
    runs = [
        _only(found.get(i, missing), sweep.axes).assign(state=state) for i, state in enumerate(states(sweep))
    ]
    whole = _joined([run.chunk() if lazy else run for run in runs], sweep.axes)
    return whole.assign_attrs(longest.attrs | {"sweep": str(sweep.folder), "config": sweep.base})


def _only(run: xr.Dataset, axes: Sequence[Axis]) -> xr.Dataset:
    """A run without what a dimension of the sweep takes the name of."""
    return run.drop_vars([axis.name for axis in axes if axis.name in run.variables]).drop_attrs(deep=False)


def _joined(runs: Sequence[xr.Dataset], axes: Sequence[Axis]) -> xr.Dataset:
    """Runs in the order of a sweep's points along its axes."""
    if not axes:
        return runs[0]
    axis, size = axes[0], len(runs) // len(axes[0].values)
    parts = [_joined(runs[i : i + size], axes[1:]) for i in range(0, len(runs), size)]
    values = [v if isinstance(v, int | float | str) else word(v) for v in axis.values]
    along = xr.Variable(axis.name, values, {"long_name": axis.key})
    return xr.concat(parts, along, data_vars="all", coords="different", compat="equals", join="outer")


def table(sweep: Sweep) -> list[list[str]]:
    """A line for each run: its values, how it stands, its steps, its last loss, its seconds."""
    return [
        [*(word(value) for value in point.at.values()), state, *_numbers(point)]
        for point, state in zip(sweep.points, states(sweep), strict=True)
    ]


def _numbers(point: Point) -> list[str]:
    try:
        run = open_run(point.folder)
    except SdeflowError:
        return ["", "", ""]
    with run:
        loss = float(run.loss.isel(time=-1).mean()) if "loss" in run else np.nan
        return [f"{int(run.attrs['steps_taken']):,}", f"{loss:.6g}", f"{float(run.attrs['seconds']):.1f}"]

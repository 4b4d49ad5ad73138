"""What a run of a search is chosen by: the last value of something that it records, or its evidence."""

from __future__ import annotations

from math import nan
from pathlib import Path

import xarray as xr

from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.sweep.plan import EVIDENCE, FOLD
from sdeflow.trajectory.layout import EVALUATION
from sdeflow.trajectory.opening import open_run


def score_of(folder: Path, name: str) -> float:
    """The score of a run in its folder, the mean over replicas; NaN where it diverged.

    An evidence is that of the last parameters of the first replica, on the validation fold, in evaluation.nc.
    Raises SdeflowError for what the run does not record, and where there is no such evaluation.
    """
    with open_run(folder) as run:
        if run.attrs["retcode"] == "diverged":
            return nan
        if name == EVIDENCE:
            return _evidence(folder, int(run.attrs["steps_taken"]))
        known = {str(n) for n, v in run.data_vars.items() if {"time"} <= {*v.dims} <= {"time", "replica"}}
        if name not in known:
            known.add(EVIDENCE)
            raise SdeflowError(f"--search {name}: a run does not record that, {did_you_mean(name, known)}")
        values = run[name].dropna("time", how="all")
        return float(values.isel(time=-1).mean(skipna=False)) if values.sizes["time"] else nan


def has_evidence(folder: Path) -> bool:
    """Whether a run was evaluated as it is now."""
    try:
        score_of(folder, EVIDENCE)
    except SdeflowError:
        return False
    return True


def _evidence(folder: Path, steps: int) -> float:
    try:
        with xr.open_dataset(folder / EVALUATION, engine="netcdf4") as found:
            if found.attrs["fold"] == FOLD and int(found.attrs["steps_taken"]) == steps:
                return float(found.value.sel(parameters="last", score="evidence"))
    except FileNotFoundError:
        pass
    raise SdeflowError(f"{folder} has no evidence: sdeflow evaluate {folder} --fold {FOLD} finds it")

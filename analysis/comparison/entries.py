"""What a comparison is made of: entries, each a scheme's run, and rows, what is known of one.

Runs of one comparison must be of one problem; what they may differ in is stated here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from sdeflow.analysis.rates import Interval
from sdeflow.config.run import flattened
from sdeflow.errors import SdeflowError
from sdeflow.trajectory.layout import EVALUATION
from sdeflow.trajectory.opening import open_run

FREE = {"integrator", "steps", "seed", "replicas", "device", "bound"}
"""Keys of [run] in which runs of one comparison may differ; they may also differ in [save] and [average]."""


@dataclass(frozen=True)
class Entry:
    """One scheme's run, or the reason why there is none; `scores` as sdeflow.analysis.evaluation has them."""

    label: str
    dataset: xr.Dataset | None
    refusal: str = ""
    scores: xr.Dataset | None = None

    @property
    def evaluations(self) -> int:
        assert self.dataset is not None
        return int(self.dataset.attrs["gradient_evaluations_per_step"])

    @property
    def seconds_a_step(self) -> float:
        assert self.dataset is not None
        seconds = float(self.dataset.attrs["seconds"] / max(1, self.dataset.attrs["steps_taken"]))
        return seconds or np.nan

    @property
    def retcode(self) -> str:
        return "refused" if self.dataset is None else str(self.dataset.attrs["retcode"])


class Row(NamedTuple):
    """What is known of one entry; rates are of the error, per step; NaN and a note where there is none.

    loss        at the end
    fitted      from theta's way to its limit; its error holds that of the model (sdeflow.analysis.rates)
    frequency   of its oscillation, radians a step, likewise; 0 where it does not oscillate
    regime      'underdamped' or 'overdamped' (sdeflow.analysis.rates)
    predicted   -log of the contraction of the scheme's step near the equilibrium
    """

    label: str
    retcode: str
    evaluations: int
    seconds_a_step: float
    loss: Interval | None
    fitted: Interval | None
    predicted: float
    note: str
    frequency: Interval | None = None
    regime: str = ""

    def fitted_per(self, steps: float) -> tuple[float, float]:
        """The fitted rate and its standard error per so many steps; NaN where there is none."""
        return (
            (np.nan, np.nan) if self.fitted is None else (self.fitted.mean * steps, self.fitted.error * steps)
        )


def open_entries(folders: Sequence[Path]) -> list[Entry]:
    """Runs in folders, labelled by their integrators, or by folder where those repeat.

    Raises SdeflowError for no folder, for what is no run folder, and for runs of different problems.
    """
    if not folders:
        raise SdeflowError("nothing to compare: give one run folder or more")
    datasets = [open_run(folder) for folder in folders]
    for folder, dataset in zip(folders, datasets, strict=True):
        if dataset.attrs.get("grid"):
            raise SdeflowError(
                f"{folder} is a grid of gamma and eta: a comparison takes runs at one point each"
            )
    schemes = [str(dataset.attrs["integrator"]) for dataset in datasets]
    names = schemes if len(set(schemes)) == len(schemes) else [folder.name for folder in folders]
    _refuse_mixed(dict(zip(names, datasets, strict=True)))
    return [
        Entry(name, dataset, scores=_scores(folder, dataset))
        for name, folder, dataset in zip(names, folders, datasets, strict=True)
    ]


def _scores(folder: Path, run: xr.Dataset) -> xr.Dataset | None:
    """The scores in a run folder; None where there are none, or where the run has gone on since."""
    if not (folder / EVALUATION).is_file():
        return None
    scores = xr.load_dataset(folder / EVALUATION, engine="netcdf4")
    known = "parameters" in scores.dims and scores.attrs["steps_taken"] == run.attrs["steps_taken"]
    return scores if known else None


def scored(entries: Sequence[Entry]) -> xr.Dataset | None:
    """Values and errors of all scores, along `integrator` and `parameters`; None without any.

    NaN where a run lacks one.
    """
    names = ["value", "error_over_data", "error_over_chains"]
    parts = [
        entry.scores[names]
        .assign(data=entry.scores.sizes["datum"], prior=entry.scores.attrs["prior"])
        .rename({name: f"score_{name}" for name in (*names, "data", "prior", "title")})
        .expand_dims(integrator=[entry.label])
        for entry in entries
        if entry.scores is not None
    ]
    rule: dict[str, Any] = {
        "join": "outer",
        "coords": "minimal",
        "compat": "override",
        "combine_attrs": "drop",
    }
    return xr.concat(parts, "integrator", data_vars="all", **rule) if parts else None


def _refuse_mixed(datasets: Mapping[str, xr.Dataset]) -> None:
    problems = {name: _problem(dataset) for name, dataset in datasets.items()}
    first, *others = problems
    for other in others:
        a, b = problems[first], problems[other]
        if changed := sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key)):
            what = ", ".join(
                f"{key} is {a.get(key, 'not set')!r} and {b.get(key, 'not set')!r}" for key in changed[:4]
            )
            raise SdeflowError(f"'{first}' and '{other}' are runs of different problems: {what}")


def _problem(dataset: xr.Dataset) -> dict[str, Any]:
    """What must be equal in a comparison, by key."""
    if not dataset.attrs["config"]:
        return {"system": dataset.attrs["system"]}
    keys = flattened(tomllib.loads(dataset.attrs["config"]))
    free = {f"run.{key}" for key in FREE}
    apart = ("save.", "average.", "callbacks.", "observables.", "system.use")
    return {key: v for key, v in keys.items() if key not in free and not key.startswith(apart)}

"""The three bases on which methods are compared: equal evaluations, equal particle time, each one tuned."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import xarray as xr

from sdeflow.analysis.image_table.methods import Method
from sdeflow.analysis.image_table.settings import GIVEN, GRID, GRID_SEED, TUNED, Setting
from sdeflow.analysis.image_table.trial import Looks, best, trial
from sdeflow.trajectory import durable

GRIDS, CHOSEN = "grid", "chosen.json"
TENTH = 0.1
"""The part of the budget that a run of the grid has."""

Done = Callable[[str], None]


def runs(setting: Setting, methods: Sequence[Method]) -> int:
    """How many runs there are to do."""
    return len(methods) * (2 + len(GRID))


def compare(
    setting: Setting, methods: Sequence[Method], out: Path, done: Done
) -> dict[str, dict[str, xr.Dataset]]:
    """Scores by basis and label of each method; calls `done` with what was done after each run.

    GIVEN   the setting's numbers: equal evaluations, and by their curves equal particle time
    TUNED   the method's own numbers, of the runs of GRID that have a part of the budget the one with the best
            evidence of validation data
    """
    found: dict[str, dict[str, xr.Dataset]] = {GIVEN: {}, TUNED: {}}
    for method in methods:
        found[GIVEN][method.label] = of_given(setting, method, out)
        done(f"{method.label}, given numbers")
        theta, x = GRID[chosen(setting, method, out, done)]
        found[TUNED][method.label] = of_tuned(setting, method, out, theta, x)
        done(f"{method.label}, tuned")
    return found


def of_given(setting: Setting, method: Method, out: Path) -> xr.Dataset:
    config = setting.config(method, replicas=setting.seeds)
    return trial(
        config, out / GIVEN / folder(method.label), Looks(setting.along, observable=setting.observable)
    )


def of_tuned(setting: Setting, method: Method, out: Path, theta: float, x: float) -> xr.Dataset:
    config = setting.config(method, theta=theta, x=x, replicas=setting.seeds, average=True)
    looks = Looks(setting.along, setting.of_images, setting.mixture, setting.observable)
    return trial(config, out / TUNED / folder(method.label), looks).assign_attrs(
        factor_theta=theta, factor_x=x
    )


def chosen(setting: Setting, method: Method, out: Path, done: Done = lambda _: None) -> int:
    """The place in GRID of a method's numbers; what was found is kept in CHOSEN."""
    found = []
    for i, (theta, x) in enumerate(GRID):
        config = setting.config(method, theta=theta, x=x, part=TENTH, seed=GRID_SEED)
        found.append(trial(config, out / GRIDS / folder(method.label) / str(i), Looks(setting.quick)))
        done(f"{method.label}, {theta:g} and {x:g} times the steps")
    place = best(found)
    durable.write(out / GRIDS / folder(method.label) / CHOSEN, json.dumps(GRID[place]).encode())
    return place


def folder(label: str) -> str:
    """A name for a method's files."""
    return label.replace(", ", "-").replace(" ", "_")

"""The three bases on which methods are compared: equal evaluations, equal particle time, each one tuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from sdeflow.analysis.image_table.methods import Method
from sdeflow.analysis.image_table.settings import GIVEN, GRID, GRID_SEED, TUNED, Setting
from sdeflow.analysis.image_table.trial import Looks, evidence, trial

GRIDS = "grid"

ROUNDS = ((0.1, len(GRID)), (0.3, 3))
"""Of choosing numbers: the part of the budget that each run has, and how many of the best go into it."""

Done = Callable[[], None]


def runs(setting: Setting, methods: Sequence[Method]) -> int:
    """How many runs there are to do."""
    return len(methods) * (2 + sum(count for _, count in ROUNDS))


def compare(
    setting: Setting, methods: Sequence[Method], out: Path, done: Done
) -> dict[str, dict[str, xr.Dataset]]:
    """Scores by basis and label of each method; calls `done` after each run.

    GIVEN   the setting's numbers: equal evaluations, and by their curves equal particle time
    TUNED   the method's own numbers, which have the best evidence of validation data in the last of ROUNDS
    """
    found: dict[str, dict[str, xr.Dataset]] = {GIVEN: {}, TUNED: {}}
    for method in methods:
        found[GIVEN][method.label] = of_given(setting, method, out)
        done()
        theta, x = GRID[chosen(setting, method, out, done)]
        found[TUNED][method.label] = of_tuned(setting, method, out, theta, x)
        done()
    return found


def of_given(setting: Setting, method: Method, out: Path) -> xr.Dataset:
    config = setting.config(method, replicas=setting.seeds)
    return trial(
        config, out / GIVEN / folder(method.label), Looks(setting.along, observable=setting.observable)
    )


def of_tuned(setting: Setting, method: Method, out: Path, theta: float, x: float) -> xr.Dataset:
    config = setting.config(method, theta=theta, x=x, replicas=setting.seeds, average=True)
    looks = Looks(setting.along, setting.of_images, setting.mixture, setting.observable)
    found = trial(config, tuned_folder(out, method.label, theta, x), looks)
    return found.assign_attrs(factor_theta=theta, factor_x=x)


def tuned_folder(out: Path, label: str, theta: float, x: float) -> Path:
    """Of a method's run by its own numbers."""
    return out / TUNED / f"{folder(label)}-{theta:g}-{x:g}"


def chosen(setting: Setting, method: Method, out: Path, done: Done = lambda: None) -> int:
    """The place in GRID of a method's numbers.

    Each round has longer runs of the best of the one before, as what is best at first need not stay so.
    """
    found, left = out / GRIDS / folder(method.label), list(range(len(GRID)))
    for part, count in ROUNDS:
        values = []
        for i in left[:count]:
            theta, x = GRID[i]
            config = setting.config(method, theta=theta, x=x, part=part, seed=GRID_SEED)
            values.append(evidence(trial(config, found / f"{theta:g}-{x:g}-{part:g}", Looks(setting.quick))))
            done()
        left = [left[k] for k in np.argsort(values, kind="stable")[::-1]]
    return left[0]


def folder(label: str) -> str:
    """A name for a method's files."""
    return label.replace(", ", "-").replace(" ", "_")

"""How many steps systems take to a level, each at steps and friction that theory chose before anything ran.

A race is a packaged problem and some entrants: variants of its file under integrators. Each is tuned by
`sdeflow.analysis.studies.tuning` and run with replicas; its time is the first saved step from which the
series stays on the right side of the level, with a standard error over replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sdeflow.analysis.curves import curve, open_frame
from sdeflow.analysis.rates import Interval, over_replicas
from sdeflow.analysis.stability import equilibrium
from sdeflow.analysis.studies.script import parser, pm, solved
from sdeflow.analysis.studies.tuning import Tuning, retuned, tuned
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.run import Run
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.system.system import BlockSystem

SAVED = 400
"""Times at which a series is looked at."""


class Entrant(NamedTuple):
    """A variant of the problem's file (None: as it is), an integrator, and how long it may run."""

    label: str
    variant: str | None
    integrator: str
    steps: int


class Finish(NamedTuple):
    """What came of an entrant; `steps` is None where not every replica got there."""

    entrant: Entrant
    run: Run
    tuning: Tuning
    dataset: xr.Dataset
    series: xr.DataArray
    steps: Interval | None

    @property
    def evaluations(self) -> int:
        return self.run.gradient_evaluations


def race(
    problem: str,
    entrants: Sequence[Entrant],
    series: Callable[[Run, xr.Dataset], xr.DataArray],
    level: float,
    *,
    share: float,
    replicas: int,
    falling: bool = True,
    overrides: Sequence[dict[str, Any]] = (),
) -> list[Finish]:
    """Tunes and runs every entrant.

    series   of a run's dataset, (time, replica), that is to fall to the level, or to rise to it
    share    of the largest stable step that is taken

    Raises SdeflowError for fewer than two replicas.
    """
    if replicas < 2:
        raise SdeflowError(
            f"an error bar needs two replicas or more, given {replicas}: take --replicas 8, say"
        )
    found = []
    for entrant in entrants:
        run, tuning = prepared(problem, entrant, share=share, replicas=replicas, overrides=overrides)
        dataset = solved(run).dataset
        values = series(run, dataset)
        times = reached(values, level, falling=falling)
        steps = over_replicas(times) if np.isfinite(times).all() else None
        found.append(Finish(entrant, run, tuning, dataset, values, steps))
    return found


def prepared(
    problem: str,
    entrant: Entrant,
    *,
    share: float,
    replicas: int,
    overrides: Sequence[dict[str, Any]] = (),
) -> tuple[Run, Tuning]:
    """An entrant's run at its tuned steps and friction.

    Theory is asked about one particle a datum: more would add modes that move particles of a datum against
    each other, with the curvature that the data's posteriors have anyway.
    """
    own = {
        "run": {"integrator": entrant.integrator, "steps": entrant.steps, "replicas": replicas},
        "save": {"every": max(1, entrant.steps // SAVED)},
    }

    def built(*more: dict[str, Any]) -> tuple[Run, BlockSystem]:
        config = load_config(
            problem_file(problem), variant=entrant.variant, overrides=[*overrides, own, *more]
        )
        run = build(config)
        assert isinstance(run.system, BlockSystem)
        return run, run.system

    run, system = built()
    single = built({"system": {"particles": 1}})[1].to(torch.float64, torch.device("cpu"))
    tuning = tuned(single, run.integrator, equilibrium(single), share=share)
    return replace(run, system=retuned(system, tuning), config=None), tuning


def reached(series: xr.DataArray, level: float, *, falling: bool = True) -> NDArray[np.float64]:
    """For each replica the first saved step from which the series (time, replica) stays past the level.

    inf where it ends on the wrong side, or is not finite.
    """
    values = series.transpose("time", "replica").to_numpy()
    right = values <= level if falling else values >= level
    late = np.logical_and.accumulate(right[::-1])[::-1]
    steps = series["step"].to_numpy().astype(np.float64)
    return np.where(late[-1], steps[late.argmax(0)], np.inf)


def row(finish: Finish) -> dict[str, str]:
    """Columns that every race has: label, scheme, steps h, friction, steps and gradient evaluations."""
    blocks = {b.name: b for b in _blocks(finish.run)}
    h, x = finish.run.system.h, blocks["x"]
    late = "not within " + f"{finish.entrant.steps:,}"
    steps = finish.steps
    return {
        "": finish.entrant.label,
        "h of theta, X": f"{h * blocks['theta'].rate:.3g}, {h * x.rate:.3g}",
        "friction": f"{x.gamma * x.eta:.3g}" if x.kinetic else "",
        "steps": late if steps is None else pm(steps),
        "gradient evaluations": late if steps is None else pm(steps, finish.evaluations),
    }


def draw(finishes: Sequence[Finish], level: float, label: str, note: str, *, log: bool) -> Figure:
    """The series against gradient evaluations, and the level with each time's 95% interval on it."""
    figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    panel = figure.subplots()
    for number, f in enumerate(finishes):
        later = f.series.isel(time=slice(1, None))  # a log axis has no place for the start
        curve(panel, later, f.entrant.label, colour=f"C{number}", scale=float(f.evaluations), positive=log)
        if f.steps is not None:
            mean, low, high = (f.evaluations * v for v in (f.steps.mean, f.steps.low, f.steps.high))
            panel.errorbar(
                mean, level, xerr=[[mean - low], [high - mean]], fmt="o", ms=5, mfc="white",
                color=f"C{number}", capsize=3, zorder=5,
            )  # fmt: skip
    panel.axhline(level, color="0.4", lw=0.8, ls=":")
    panel.annotate(note, (0.01, level), xycoords=("axes fraction", "data"), va="bottom", color="0.35",
                   fontsize="small")  # fmt: skip
    panel.set(xscale="log", xlabel="gradient evaluations", ylabel=label)
    if log:
        panel.set_yscale("log")
    open_frame(panel)
    panel.legend(frameon=False, fontsize="small", loc="best")
    return figure


def asked(doc: str | None, out: str, measure: Callable[[int], list[Finish]]) -> tuple[list[Finish], Path]:
    """A race by its command line, --out and --replicas: what came of it, and where its figure goes."""
    options = parser(doc)
    options.add_argument("--out", type=Path, default=Path(out), help="figure to write")
    options.add_argument("--replicas", type=int, default=8)
    given = options.parse_args()
    try:
        return measure(given.replicas), given.out
    except SdeflowError as error:
        options.error(str(error))


def _blocks(run: Run) -> Sequence[Any]:
    assert isinstance(run.system, BlockSystem)
    return run.system.blocks

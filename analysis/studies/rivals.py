"""Particle methods for maximum likelihood against each other, each at its best step, by gradient evaluations.

    python -m sdeflow.analysis.studies.rivals --out rivals.png
    python -m sdeflow.analysis.studies.rivals --problems breast_cancer --out one.png

mpgd by baoab and by expint, pgd, ipla, svgd_em and coin_em, on two sets of the literature of these methods:

    breast_cancer     Bayesian logistic regression, N = 100
    mnist_4_9         a Bayesian network of 40 hidden units on 1,000 images of two digits, N = 5

Where a method has steps, and mpgd a friction, those are taken from a small grid by seeds that are not
reported: that end nearest to the MLE on breast_cancer, and with the least held-out loss on mnist_4_9, there
on another 1,000 images. Reported are means over the last quarter of the budget, with 95% Student intervals
of differences to pgd, seed by seed: of theta's distance from the MLE, where it is known, and of the held-out
data's loss and error under the particles' average prediction. mpgd has inverse mass 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sdeflow import Save, simulate
from sdeflow.analysis.curves import open_frame
from sdeflow.analysis.logistic_mle import Estimate, maximum_likelihood
from sdeflow.analysis.rates import Interval, over_replicas
from sdeflow.analysis.studies.race import reached
from sdeflow.analysis.studies.script import markdown, parser, pm, write
from sdeflow.analysis.studies.tuned import spread
from sdeflow.config.catalogue import integrator_named
from sdeflow.errors import DivergenceWarning, SdeflowError, StabilityWarning
from sdeflow.model.model import Model
from sdeflow.problems.bayesian_network import BayesianNetwork
from sdeflow.problems.logistic import Logistic
from sdeflow.system.grid import Grid
from sdeflow.system.published import ipla, mpgd, pgd
from sdeflow.system.stein import coin_em, svgd_em
from sdeflow.system.system import BlockSystem
from sdeflow.terminal import counted

SEEDS = 5
FIRST_SEED = 100
"""Of those that are reported; numbers are chosen by others."""
SNAPSHOTS = 50

Array = NDArray[np.float64]

MEASURES = {
    "error": "|θ − θ*|",
    "held_out_log_loss": "held-out loss",
    "held_out_error": "held-out error",
}


class Entrant(NamedTuple):
    """A system, an integrator, the numbers that are tried, and others: h, or h_theta and h_x, and gamma."""

    system: str
    integrator: str
    tried: Mapping[str, Sequence[float]] = {}
    given: Mapping[str, float] = {}

    @property
    def label(self) -> str:
        return f"{self.system}, {self.integrator}" if self.system == "mpgd" else self.system

    @property
    def evaluations(self) -> int:
        return integrator_named(self.integrator).evaluations


class Case(NamedTuple):
    """A problem, and who takes part, pgd first.

    rehearsal   the model on which numbers are chosen, by this measure
    particles   N
    budget      gradient evaluations
    level       of the measure, to which they are counted
    rehearsals  seeds, from 0, by which numbers are chosen
    """

    name: str
    model: Callable[[], Model]
    rehearsal: Callable[[], Model]
    measure: str
    particles: int
    budget: int
    level: float
    entrants: Sequence[Entrant]
    dtype: str = "float64"
    rehearsals: int = 2


_STEPS = {"h_theta": (0.01, 0.03, 0.1), "h_x": (0.01, 0.02, 0.04)}  # stable up to 2/6 and about 2/40
_MOTION = {"h": (0.05, 0.1, 0.2), "gamma": (1.5, 5.0, 15.0)}
_NETWORK, _SLOW = {"h_x": (0.003, 0.01, 0.03)}, {"h_theta": 1e-5}  # alpha sees 2 * 31,360
_KINETIC, _HEAVY = {"h_x": (0.1, 0.2), "gamma": (1.0, 3.0)}, {"h_theta": 3e-3}

CASES = {
    case.name: case
    for case in (
        Case(
            "breast_cancer",
            Logistic,
            Logistic,
            "error",
            particles=100,
            budget=500,
            level=0.1,
            entrants=(
                Entrant("pgd", "euler_maruyama", _STEPS),
                Entrant("ipla", "euler_maruyama", _STEPS),
                Entrant("mpgd", "baoab", _MOTION),
                Entrant("mpgd", "expint", _MOTION),
                Entrant("svgd_em", "expint_nc2", {"h_theta": (0.01, 0.03, 0.1), "h_x": (0.3, 1.0, 3.0)}),
                Entrant("coin_em", "expint_nc2"),
            ),
        ),
        Case(
            "mnist_4_9",
            BayesianNetwork,
            partial(BayesianNetwork, skip=1000),
            "held_out_log_loss",
            particles=5,
            budget=100,
            level=0.15,
            entrants=(
                Entrant("pgd", "euler_maruyama", _NETWORK, _SLOW),
                Entrant("ipla", "euler_maruyama", _NETWORK, _SLOW),
                Entrant("mpgd", "baoab", _KINETIC, _HEAVY),
                Entrant("mpgd", "expint", _KINETIC, _HEAVY),
                Entrant("svgd_em", "expint_nc2", _NETWORK, _SLOW),
                Entrant("coin_em", "expint_nc2"),
            ),
            dtype="float32",
            rehearsals=1,
        ),
    )
}


class Result(NamedTuple):
    """What an entrant came to: numbers; by measure the course [time, seed] at evaluations [time]."""

    case: Case
    entrant: Entrant
    chosen: dict[str, float]
    evaluations: Array
    courses: dict[str, Array]

    def late(self, measure: str) -> Array:
        """The mean over the last quarter of the budget, for each seed."""
        return np.asarray(self.courses[measure][self.evaluations > 0.75 * self.evaluations[-1]].mean(0))

    def until(self) -> Array:
        """Gradient evaluations from which the measure stays below its level, for each seed; inf for never."""
        values = self.courses[self.case.measure]
        series = xr.DataArray(values, dims=("time", "replica"), coords={"step": ("time", self.evaluations)})
        return reached(series, self.case.level)


@cache
def answer() -> Estimate:
    """The MLE of breast_cancer's theta."""
    model = Logistic()
    return maximum_likelihood(model.data[0].numpy(), model.variance)


def system_of(case: Case, entrant: Entrant, numbers: Mapping[str, float], *, rehearsal: bool) -> BlockSystem:
    """An entrant's system at these numbers."""
    model = case.rehearsal() if rehearsal else case.model()
    if entrant.system == "coin_em":
        return coin_em(model, particles=case.particles)
    own = {"eta": 1.0, "gamma": numbers["gamma"]} if "gamma" in numbers else {}
    theta, x = ({"h": numbers.get(f"h_{name}", numbers.get("h")), **own} for name in ("theta", "x"))
    if entrant.system == "svgd_em":
        return svgd_em(model, particles=case.particles, theta=theta, x=x)
    declared = {"pgd": pgd, "ipla": ipla, "mpgd": mpgd}[entrant.system]
    return declared(model, particles=case.particles, theta=theta, x=x)


def solved(
    case: Case,
    entrant: Entrant,
    numbers: Mapping[str, float],
    *,
    seed: int,
    replicas: int,
    grid: Grid | None = None,
) -> tuple[Array, dict[str, Array], xr.Dataset]:
    """Evaluations [time], the measures' courses [time, replica], the dataset; with a grid a rehearsal."""
    steps = case.budget // entrant.evaluations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)  # the largest steps of a grid may
        warnings.simplefilter("ignore", StabilityWarning)  # a kernel's particles collapse, and this shows it
        dataset = simulate(
            system_of(case, entrant, numbers, rehearsal=grid is not None),
            entrant.integrator,
            steps=steps,
            seed=seed,
            replicas=replicas,
            grid=grid,
            save=Save(every=max(1, steps // SNAPSHOTS), particles=1),
            dtype=case.dtype,
        )
    courses = {
        name: dataset[name].transpose("time", "replica").to_numpy().astype(np.float64)
        for name in ("held_out_log_loss", "held_out_error")
    }
    if case.measure == "error":
        theta = dataset["theta"].isel(param=0).transpose("time", "replica").to_numpy()
        courses = {"error": np.abs(theta - answer().value), **courses}
    return dataset["step"].to_numpy() * float(entrant.evaluations), courses, dataset


def tuned(case: Case, entrant: Entrant) -> dict[str, float]:
    """Of the numbers that are tried those whose measure is least, mean over seeds and the last quarter."""
    if not entrant.tried:
        return {}
    tried = {name: list(values) for name, values in entrant.tried.items()}
    apart = {block: {"h": tried[f"h_{block}"]} for block in ("theta", "x") if f"h_{block}" in tried}
    grid = Grid(system=apart or None, **{n: v for n, v in tried.items() if n in ("h", "gamma")})
    first = {**entrant.given, **{name: values[0] for name, values in tried.items()}}
    evaluations, courses, dataset = solved(case, entrant, first, seed=0, replicas=case.rehearsals, grid=grid)
    late = courses[case.measure][evaluations > 0.75 * evaluations[-1]].mean(0)
    late = np.where(np.isfinite(late), late, np.inf)
    points = list(zip(*(dataset[name].to_numpy().tolist() for name in tried), strict=True))
    least = min(dict.fromkeys(points), key=lambda p: late[[q == p for q in points]].mean())
    return dict(zip(tried, least, strict=True))


def measure(cases: Sequence[Case], *, seeds: int = SEEDS) -> list[Result]:
    """All entrants of every case, each tuned; raises SdeflowError for fewer than two seeds."""
    if seeds < 2:
        raise SdeflowError(f"an interval needs two seeds or more, given {seeds}: take --seeds 5, say")
    found = []
    with counted("method", sum(len(case.entrants) for case in cases)) as tick:
        for case in cases:
            for entrant in case.entrants:
                chosen = tuned(case, entrant)
                numbers = {**entrant.given, **chosen}
                evaluations, courses, _ = solved(case, entrant, numbers, seed=FIRST_SEED, replicas=seeds)
                found.append(Result(case, entrant, chosen, evaluations, courses))
                tick()
    return found


def row(result: Result, to: Result) -> dict[str, str]:
    """A line of the table: every measure, and what it is more than that of `to`."""
    until = result.until()
    line = {
        "problem": result.case.name,
        "method": result.entrant.label,
        "chosen": ", ".join(f"{name} {value:g}" for name, value in result.chosen.items()),
        "evaluations to the level": spread(until, "{:,.0f}"),
    }
    for name, label in MEASURES.items():
        there = name in result.courses
        line[label] = pm(over_replicas(result.late(name)), digits=4) if there else ""
        more = difference(result, to, name) if there and result is not to else None
        line[f"{label}, less pgd's"] = (
            f"{more.mean:+.4f} ({more.low:+.4f} to {more.high:+.4f})" if more is not None else ""
        )
    return line


def difference(result: Result, to: Result, measure: str) -> Interval:
    """Of two methods in a measure, seed by seed."""
    return over_replicas(result.late(measure) - to.late(measure))


def rows(found: Sequence[Result]) -> list[dict[str, str]]:
    """The table; differences are to the first of each case."""
    firsts = {r.case.name: r for r in reversed(found)}
    return [row(r, firsts[r.case.name]) for r in found]


def draw(found: Sequence[Result]) -> Figure:
    """Distances from the MLE and held-out losses of each case: mean and range over seeds."""
    firsts = {r.case.name: r for r in reversed(found)}
    cases = list(dict.fromkeys(r.case.name for r in found))
    panels_of = [(c, m) for c in cases for m in ("error", "held_out_log_loss") if m in firsts[c].courses]
    figure = Figure(figsize=(4.1 * len(panels_of), 3.8), layout="constrained")
    panels = figure.subplots(1, len(panels_of), squeeze=False)[0]
    for panel, (name, shown) in zip(panels, panels_of, strict=True):
        own = [r for r in found if r.case.name == name]
        for i, result in enumerate(own):
            values, style = result.courses[shown], {"color": f"C{i}"}
            panel.plot(result.evaluations, values.mean(1), lw=1.4, label=result.entrant.label, **style)
            panel.fill_between(result.evaluations, values.min(1), values.max(1), alpha=0.15, lw=0, **style)
        later = np.array([r.courses[shown][2:].mean(1)[[0, -1]] for r in own])
        panel.set(xlabel="gradient evaluations", ylabel=MEASURES[shown], title=name)
        if shown == "error":
            panel.set(yscale="log", ylim=(0.5 * later.min(), 1.5 * later.max()))
        else:
            panel.set_ylim(0.8 * later.min(), 1.1 * later.max())
        open_frame(panel)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize="small")
    return figure


def main() -> None:
    """The script."""
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("rivals.png"), help="figure to write")
    options.add_argument("--seeds", type=int, default=SEEDS)
    options.add_argument("--problems", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME",
                         help=f"which to run, of {', '.join(CASES)} (default: all)")  # fmt: skip
    given = options.parse_args()
    try:
        found = measure([CASES[name] for name in given.problems], seeds=given.seeds)
    except SdeflowError as error:
        options.error(str(error))
    print(markdown(rows(found)), end="\n\n")
    write(given.out, draw(found))


if __name__ == "__main__":
    main()

"""Numbers that the run chooses against given ones: how far each has come, by gradient evaluations.

    python -m sdeflow.analysis.studies.tuned --out tuned.png
    python -m sdeflow.analysis.studies.tuned --problems digits latent_ebm_2d mnist --out three.png

Every problem runs from the same seeds by the numbers that it was published with, or that were found for it by
hand or theory, under their scheme; and by 'auto', where h, eta, gamma and the scheme are chosen in the run;
on some, pgd is tuned so too. Counted are the gradient evaluations of steps and those that choosing takes:
products of curvature and looks of the guard. Each seed is a run of its own, that tunes for itself.

The table has medians over seeds and their ranges. The median of all seeds lies within the range of n with
probability 1 - 2^(1-n), 0.992 for 8. Problems that are not run unless asked for are long, or want images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.analysis.curves import open_frame
from sdeflow.analysis.studies.race import reached
from sdeflow.analysis.studies.script import markdown, parser, write
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.run import Run
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.simulation.ending import Solution
from sdeflow.simulation.solve import solve
from sdeflow.system.system import BlockSystem
from sdeflow.terminal import counted

FIRST_SEED = 100
"""None with which constants of the warm-up were found."""

Series = NDArray[np.float64]
Table = dict[str, Any]


def relative(run: Run, dataset: xr.Dataset) -> Series:
    """Distance of the parameters from the MLE, the mean of the data, in that of the start."""
    name = "theta" if "theta" in dataset else "alpha"
    at = dataset[name].to_numpy().astype(np.float64)
    assert isinstance(run.system, BlockSystem)
    assert run.system.model_forces is not None
    data = run.system.model_forces.model.data
    assert isinstance(data, Tensor)
    return _relative(at, data.double().mean(0).reshape(-1).numpy())


def from_long_run(run: Run, dataset: xr.Dataset) -> Series:
    """Likewise, from the average of a long run of breast_cancer, of given numbers but by another scheme."""
    return _relative(dataset["theta"].to_numpy().astype(np.float64), np.array([long_run()]))


@cache
def long_run() -> float:
    """theta of breast_cancer, over the last three quarters of 16 replicas."""
    over = {
        "run": {"integrator": "ubu", "replicas": 16, "dtype": "float64", "seed": 1},
        "save": {"every": 50},
    }
    config = load_config(problem_file("breast_cancer"), variant="fixed", overrides=[over])
    theta = _solved(build(config), "the long run").dataset["theta"]
    return float(theta.isel(time=slice(theta.sizes["time"] // 4, None)).mean())


def recorded(name: str) -> Callable[[Run, xr.Dataset], Series]:
    """A series that the run records."""
    return lambda run, dataset: dataset[name].to_numpy().astype(np.float64).reshape(-1)


def short_of_half(run: Run, dataset: xr.Dataset) -> Series:
    """How far the share of particles in the other mode is from one half."""
    return np.abs(recorded("other_mode")(run, dataset) - 0.5)


def to_held_out(run: Run, dataset: xr.Dataset) -> Series:
    """W_2 from the prior particles' observations to held-out points."""
    from sdeflow.analysis.studies.latent_priors import along

    return along(run, dataset.expand_dims("replica", 1)).to_numpy()[:, 0]


@dataclass(frozen=True)
class Case:
    """A problem, what is measured of it, and for how long.

    budget    gradient evaluations
    level     of the measure, to which they are counted
    every     gradient evaluations between snapshots
    given     the variant with numbers; None is the file as it is
    auto      the variant without
    pgd       gradient evaluations for pgd, tuned too; None to leave it out
    """

    problem: str
    label: str
    measure: Callable[[Run, xr.Dataset], Series]
    budget: int
    level: float
    every: int = 2
    given: str | None = "fixed"
    auto: str | None = None
    over: Table = field(default_factory=dict)
    over_auto: Table = field(default_factory=dict)
    pgd: int | None = None


ERROR = "error of θ, relative to its start"
IMAGES: Table = {"model": {"images": 10_000}, "save": {"theta_max": 1}}
AUTO: Table = {"h": "auto", "eta": "auto", "gamma": "auto"}
CASES = (
    Case("hierarchical", ERROR, relative, 1500, 0.01, given=None, auto="tuned", pgd=300),
    Case("gradient_correction", ERROR, relative, 1500, 0.01, given=None, auto="tuned"),
    Case("ill_conditioned", ERROR, relative, 1200, 0.01, pgd=20_000),
    Case("breast_cancer", ERROR, from_long_run, 600, 0.1),
    Case(
        "digits",
        "loss, 448 images",
        recorded("loss"),
        600,
        16.5,
        over={"model": {"images": 448}, "save": {"theta_max": 1}},
        pgd=600,
    ),
    Case("two_modes", "share in the other mode, from ½", short_of_half, 4000, 0.25, 8),
    Case("ppca", "nats below the maximum", recorded("excess"), 1000, 1.0),
    Case("factor_analysis", "nats below the maximum", recorded("excess"), 1500, 1.0),
    Case("linear_energy", "error of α, relative to its start", relative, 1500, 0.01, 4),
)
LONG = (
    Case(
        "latent_ebm_2d",
        "W₂ to held-out points",
        to_held_out,
        8000,
        0.25,
        400,
        given="splitting",
        over={"save": {"particles": "all"}},
        over_auto={"system": dict.fromkeys(("alpha", "beta", "x", "z"), AUTO), "run": {"integrator": "auto"}},
    ),
    Case(
        "cifar10_small",
        "loss",
        recorded("loss"),
        1200,
        4000.0,
        20,
        given=None,
        over={"save": {"theta_max": 1}},
        over_auto={"system": {"theta": AUTO, "x": AUTO}, "run": {"integrator": "auto"}},
    ),
    Case("mnist", "loss, 10,000 images", recorded("loss"), 1200, 2500.0, 20, None, "tuned", IMAGES),
    Case("fashion_mnist", "loss, 10,000 images", recorded("loss"), 1200, 2500.0, 20, None, "tuned", IMAGES),
)


class Course(NamedTuple):
    """What the runs of one entrant gave: for each seed its measure at gradient evaluations, both [T].

    tuning   gradient evaluations of each seed that went into choosing numbers
    back     how often each went back to smaller steps
    """

    case: Case
    label: str
    scheme: str
    budget: int
    evaluations: list[Series]
    values: list[Series]
    tuning: list[float]
    back: list[float]

    def at(self, part: float) -> Series:
        """The measure at a part of the budget, for each seed: that of the last snapshot by then."""
        pairs = zip(self.evaluations, self.values, strict=True)
        return np.array([v[np.searchsorted(e, part * self.budget, side="right") - 1] for e, v in pairs])

    def until(self, level: float) -> Series:
        """Gradient evaluations from which the measure stays below a level, for each seed; inf for never."""
        found = []
        for e, v in zip(self.evaluations, self.values, strict=True):
            series = xr.DataArray(v[:, None], dims=("time", "replica"), coords={"step": ("time", e)})
            found.append(reached(series, level)[0])
        return np.array(found)


def course(case: Case, entrant: str, seeds: Sequence[int], tick: Callable[[], None] = lambda: None) -> Course:
    """Runs an entrant, 'given', 'auto' or 'auto, pgd', from every seed; calls `tick` after each.

    Raises SdeflowError for a run by given numbers that does not end well; a run by 'auto' that does not has a
    measure of inf from there on.
    """
    own = entrant != "given"
    budget = case.budget if entrant != "auto, pgd" else case.pgd or case.budget
    over: list[Table] = [{"save": {"data": 1, "particles": 1}}, case.over]
    over += [case.over_auto] if own else []
    over += [{"system": {"use": "pgd"}}] if entrant == "auto, pgd" else []
    evaluations, values, tuning, back = [], [], [], []
    for seed in seeds:

        def built(steps: int, every: int, seed: int = seed) -> Run:
            more: Table = {"run": {"seed": seed, "steps": steps}, "save": {"every": every}}
            variant = case.auto if own else case.given
            return build(load_config(problem_file(case.problem), variant=variant, overrides=[*over, more]))

        each = built(1, 1).gradient_evaluations
        stretch = max(1, budget // case.budget)
        run = built(budget // each, max(1, stretch * case.every // each))
        solution = _solved(run, f"{case.problem}, {entrant}, seed {seed}", must=not own)
        dataset = solution.dataset
        chosen = dataset.get("tuning_evaluations", xr.zeros_like(dataset["step"])).to_numpy().reshape(-1)
        evaluations.append(dataset["step"].to_numpy() * float(each) + chosen)
        values.append(_measured(case, run, solution))
        tuning.append(float(chosen[-1]))
        back.append(float(dataset["tuning_returns"].to_numpy().reshape(-1)[-1]) if own else 0.0)
        tick()
    return Course(case, entrant, run.integrator.name, budget, evaluations, values, tuning, back)


def measure(cases: Sequence[Case] = CASES, *, seeds: int = 8) -> list[Course]:
    """All entrants of every case; raises SdeflowError for fewer than two seeds."""
    if seeds < 2:
        raise SdeflowError(f"a range needs two seeds or more, given {seeds}: take --seeds 8, say")
    todo = [(c, e) for c in cases for e in ("given", "auto", *(["auto, pgd"] if c.pgd else []))]
    each = range(FIRST_SEED, FIRST_SEED + seeds)
    with counted("run", len(todo) * seeds) as tick:
        return [course(case, entrant, each, tick) for case, entrant in todo]


def row(found: Course) -> dict[str, str]:
    """A line of the table."""
    case, until = found.case, found.until(found.case.level)
    return {
        "problem": case.problem,
        "measure": case.label,
        "numbers": found.label,
        "scheme": found.scheme,
        "budget": f"{found.budget:,}",
        **{f"at {part:g} of it": spread(found.at(part)) for part in (0.25, 0.5, 0.75, 1.0)},
        "level": f"{case.level:g}",
        "evaluations to it": spread(until, "{:,.0f}"),
        "for tuning": spread(np.array(found.tuning), "{:,.0f}"),
        "went back": f"{max(found.back):.0f}",
    }


def spread(values: Series, form: str = "{:.3g}") -> str:
    """The median and the range; '-' for inf."""
    middle, low, high = (
        form.format(v) if np.isfinite(v) else "-" for v in (median(values), values.min(), values.max())
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def median(values: Series) -> float:
    """The median, where some are inf too."""
    ordered = np.sort(values)
    n = len(ordered)
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    return float(low if low == high else (low + high) / 2)


def draw(found: Sequence[Course]) -> Figure:
    """A panel for each case: median and range over seeds against gradient evaluations."""
    cases = list(dict.fromkeys(f.case.problem for f in found))
    columns = min(3, len(cases))
    lines = -(-len(cases) // columns)
    figure = Figure(figsize=(3.9 * columns, 2.7 * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    colours = {"given": "0.35", "auto": "C0", "auto, pgd": "C1"}
    for panel, name in zip(panels, cases, strict=False):
        own = [f for f in found if f.case.problem == name]
        for f in own:
            begin = max(e[e > 0][0] for e in f.evaluations)
            grid = np.geomspace(max(begin, 4), f.budget, 200)
            at = np.array([f.at(g / f.budget) for g in grid])
            colour, label = colours[f.label], f"{f.label}: {f.scheme}"
            panel.plot(grid, [median(a) for a in at], color=colour, lw=1.4, label=label)
            panel.fill_between(grid, at.min(1), at.max(1), color=colour, alpha=0.2, lw=0)
        panel.axhline(own[0].case.level, color="0.5", lw=0.8, ls=":")
        panel.set(xscale="log", yscale="log", title=name, ylabel=own[0].case.label)
        if panel.get_ylim()[1] / panel.get_ylim()[0] > 10:
            panel.yaxis.set_minor_formatter(NullFormatter())
        open_frame(panel)
        panel.legend(frameon=False, fontsize="x-small")
    for panel in panels[len(cases) :]:
        panel.set_axis_off()
    figure.supxlabel("gradient evaluations, tuning included", fontsize="medium")
    return figure


def main() -> None:
    """The script."""
    every = {case.problem: case for case in (*CASES, *LONG)}
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("tuned.png"), help="figure to write")
    options.add_argument("--seeds", type=int, default=8)
    quick = [case.problem for case in CASES]
    options.add_argument(
        "--problems", nargs="+", choices=list(every), default=quick, metavar="NAME",
        help=f"which to run, of {', '.join(every)} (default: all up to {quick[-1]})",
    )  # fmt: skip
    given = options.parse_args()
    try:
        found = measure([every[name] for name in given.problems], seeds=given.seeds)
    except SdeflowError as error:
        options.error(str(error))
    print(markdown([row(f) for f in found]), end="\n\n")
    write(given.out, draw(found))


def _measured(case: Case, run: Run, solution: Solution) -> Series:
    values = case.measure(run, solution.dataset)
    values = np.where(np.isfinite(values), values, np.inf)
    if solution.retcode != "success":
        values[-1] = np.inf
    return values


def _relative(at: Series, to: Series) -> Series:
    distance = np.linalg.norm(at - to, axis=1)
    return np.asarray(distance / distance[0])


def _solved(run: Run, what: str, *, must: bool = True) -> Solution:
    solution = solve(run)
    if solution.retcode == "interrupted":
        raise KeyboardInterrupt(solution.message)
    if must and solution.retcode != "success":
        raise SdeflowError(f"{what}: {solution.message}")
    return solution


if __name__ == "__main__":
    main()

"""Maximum likelihood on a state space model: particles that are whole paths, against EM.

    python -m sdeflow.analysis.studies.state_space --out state_space.svg

On `state_space`, T = 50, from the same start; c alone is learned, or a, log q and log r. Scored are nats of
the exact log-likelihood below its maximum. Compared are

    mpgd, pgd     N paths, which a scheme moves at once
    EM, Kalman    exact: the smoother, then the parameters in closed form
    EM, PaRIS     sums of paths by a particle smoother, averaged over passes as in stochastic approximation EM
    EM, PPG       likewise by sweeps of particle Gibbs

Costs are passes over T. One is, for mpgd and pgd, a gradient of log p(x, y) of all N paths, which has no
recursion in time, those that choosing numbers takes included; for EM a filter and smoother; for PaRIS and PPG
a filter of N particles, with N^2 densities of transition a time. So a pass is not the same work for all.

Predicted for N = infinity, of mpgd and pgd: where theta's forces vanish when paths have the scheme's
stationary law: the right mean, and in each direction of precision kappa the variance V_h(kappa).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from sdeflow.analysis.curves import curve, open_frame
from sdeflow.analysis.kalman import expected, maximum, smoothed
from sdeflow.analysis.path_statistics import maximiser
from sdeflow.analysis.rates import over_replicas
from sdeflow.analysis.smoothing import paris
from sdeflow.analysis.studies.bias import variances
from sdeflow.analysis.studies.race import reached
from sdeflow.analysis.studies.script import markdown, model_of, parser, pm, solved, write
from sdeflow.analysis.studies.state_space_law import (
    Answer,
    Theta,
    nats_below,
    predicted,
    shown,
    start_of,
    told,
)
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.problems.state_space import StateSpace
from sdeflow.system.system import BlockSystem

Array = NDArray[np.float64]

REPLICAS, LEVEL = 4, 0.1
"""LEVEL is of nats below the maximum, to which passes are counted."""

LEARNED: dict[tuple[str, ...], float] = {("c",): 0.25, ("a", "log_q", "log_r"): 1.0}
"""What is learned, and which part of their passes methods take for it."""


class Moved(NamedTuple):
    """A system on the packaged problem: a variant, a scheme and h of X; h = None has the run choose."""

    system: str
    integrator: str
    h: float | None
    particles: int = 100
    passes: int = 2500


class Smoother(NamedTuple):
    """EM by a particle smoother; `gibbs` hands a path from pass to pass."""

    gibbs: bool
    particles: int
    passes: int = 500


MOVED = (
    Moved("mpgd", "baoab", None),
    Moved("mpgd", "baoab", 0.1),
    Moved("mpgd", "expint", 0.1),
    Moved("mpgd", "expint", 0.05),
    Moved("pgd", "euler_maruyama", 0.05),
    Moved("pgd", "euler_maruyama", 0.01),
)
SMOOTHERS = (Smoother(False, 20), Smoother(False, 100), Smoother(True, 20))
KALMAN_PASSES = 200

THETA: dict[str, dict[str, float]] = {"mpgd": {"gamma": 20.0}, "pgd": {"h": 0.005}}
"""Where h is given theta moves faster than the file has it, which was slow: all are to settle."""

WHOLE = 30
"""Passes of a smoother that are taken whole; pass k after them counts WHOLE / k. EM forgets an error in its
slowest direction in some 22 passes, so that what was wrong at the start falls as k^-(WHOLE / 22).
"""


class Course(NamedTuple):
    """What came of a method, along passes over T.

    learn      names of the parameters
    value      the parameter that is told, c or r, (time, replica); its coordinate `step` counts passes
    nats       below the maximum, (time, replica)
    seconds    of a pass, of all replicas side by side
    """

    label: str
    h: str
    particles: str
    learn: tuple[str, ...]
    value: xr.DataArray
    nats: xr.DataArray
    seconds: float
    predicted: Answer | None = None


def moved(by: Moved, learn: tuple[str, ...], replicas: int, part: float = 1.0) -> Course:
    """A system on the packaged problem, for a part of its passes."""
    numbers: dict[str, Any] = {"particles": by.particles}
    variant = "pgd" if by.system == "pgd" else None if by.h is None else "fixed"
    if by.h is not None:
        numbers |= {"theta": THETA[by.system], "x": {"h": by.h}}
    over = {"model": {"learn": list(learn)}, "system": numbers}

    def built(steps: int) -> Any:
        more = {
            "run": {"integrator": by.integrator, "steps": steps, "replicas": replicas},
            "save": {"every": max(1, steps // 400), "data": 1, "particles": 1},
        }
        return build(load_config(problem_file("state_space"), variant=variant, overrides=[over, more]))

    each = built(1).gradient_evaluations
    run = built(max(8, round(part * by.passes / each)))
    assert isinstance(run.system, BlockSystem)
    model = model_of(run, StateSpace)
    best = maximum(model.data, start_of(model), learn)
    began = time.perf_counter()
    dataset = solved(run).dataset
    seconds = time.perf_counter() - began
    answer = None
    if by.h is not None:
        (x,) = run.system.particles
        answer = predicted(model, best, variances(x, run.system.h, by.integrator))
    chosen = dataset["tuning_evaluations"].max("replica") if "tuning_evaluations" in dataset else 0
    passes = dataset["step"] * each + chosen
    nats = (best.log_likelihood - dataset["log_likelihood"]).assign_coords(step=passes)
    value = shown(dataset["theta"].sel(param=told(learn), drop=True), learn).assign_coords(step=passes)
    label, h = f"{by.system}, {by.integrator}", "chosen" if by.h is None else f"{by.h:g}"
    return Course(label, h, str(by.particles), learn, value, nats, seconds / float(passes[-1]), answer)


def kalman(learn: tuple[str, ...], part: float = 1.0) -> Course:
    """EM with exact steps."""
    model = StateSpace(learn=learn)
    thetas, began = [start_of(model)], time.perf_counter()
    for _ in range(round(part * KALMAN_PASSES)):
        theta = thetas[-1]
        thetas.append(maximiser(expected(model.data, smoothed(model.data, theta)), theta, learn))
    return _course("EM, Kalman", "", model, [[theta] for theta in thetas], began)


def by_particles(by: Smoother, learn: tuple[str, ...], replicas: int, part: float = 1.0) -> Course:
    """Stochastic approximation EM: each pass moves the sums a part of the way to its own, then theta to their
    maximiser. Replicas are rows of one smoother, each with its theta.
    """
    model, rng = StateSpace(learn=learn), np.random.default_rng(0)
    y = np.repeat(model.data.numpy(), replicas, 0)
    theta = {name: np.repeat(value[None], replicas, 0) for name, value in start_of(model).items()}
    along, sums, path, began = [theta], None, None, time.perf_counter()
    for k in range(round(part * by.passes)):
        found = paris(y, theta, by.particles, rng, path=path)
        path = found.path if by.gibbs else None
        sums = found.statistics if sums is None else sums.towards(found.statistics, min(1.0, WHOLE / (k + 1)))
        theta = maximiser(sums, theta, learn)
        along.append(theta)
    rows = [[{name: v[i] for name, v in theta.items()} for i in range(replicas)] for theta in along]
    label = "EM, PPG" if by.gibbs else "EM, PaRIS"
    return _course(label, str(by.particles), model, rows, began)


def measure(replicas: int = REPLICAS, part: float = 1.0) -> list[Course]:
    """All methods, for each of LEARNED; raises SdeflowError for fewer than two replicas."""
    if replicas < 2:
        raise SdeflowError(
            f"an error bar needs two replicas or more, given {replicas}: take --replicas 4, say"
        )
    found = []
    for learn, share in LEARNED.items():
        found += [moved(by, learn, replicas, share * part) for by in MOVED]
        found += [kalman(learn, share * part)]
        found += [by_particles(by, learn, replicas, share * part) for by in SMOOTHERS]
    return found


def late(series: xr.DataArray) -> Array:
    """The mean over the last half of the passes, [replica]."""
    return series.isel(time=slice(series.sizes["time"] // 2, None)).mean("time").to_numpy()


def row(found: Course) -> dict[str, str]:
    """A line of the table."""
    to = reached(found.nats, LEVEL)
    answer = found.predicted
    return {
        "learned": ", ".join(found.learn),
        "": found.label,
        "h of X": found.h,
        "N": found.particles,
        "passes": f"{int(found.nats['step'][-1]):,}",
        "c or r": _told(late(found.value), 4),
        "predicted": _plain(answer.value) if answer else "",
        "nats below the maximum": _told(late(found.nats), 4),
        "predicted at N = ∞": _plain(answer.nats) if answer else "",
        f"passes to {LEVEL:g} nats": _told(to, 0) if np.isfinite(to).all() else "never",
    }


def draw(courses: Sequence[Course]) -> Figure:
    """Nats below the maximum against passes, a panel for each of what is learned."""
    tasks = list(dict.fromkeys(f.learn for f in courses))
    figure = Figure(figsize=(5.2 * len(tasks), 4.4), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False).reshape(-1)
    for panel, learn in zip(panels, tasks, strict=True):
        own = [f for f in courses if f.learn == learn]
        for number, f in enumerate(own):
            later = f.nats.isel(time=slice(1, None))
            about = [f.label, f.h and f"h {f.h}", f.particles and f"N {f.particles}"]
            label = ", ".join(part for part in about if part)
            curve(panel, later, label, colour=f"C{number}", positive=True)
        panel.axhline(LEVEL, color="0.5", lw=0.8, ls=":")
        title = ", ".join(name.replace("_", " ") for name in learn)
        panel.set(xscale="log", yscale="log", xlabel="passes over T", title=f"learned: {title}")
        panel.set_ylim(bottom=1e-6)
        panel.yaxis.set_minor_formatter(NullFormatter())
        open_frame(panel)
    panels[0].set_ylabel("nats below the maximum")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="x-small")
    return figure


def main() -> None:
    """The script."""
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("state_space.svg"), help="figure to write")
    options.add_argument("--replicas", type=int, default=REPLICAS)
    given = options.parse_args()
    try:
        found = measure(given.replicas)
    except SdeflowError as error:
        options.error(str(error))
    print(markdown([row(f) for f in found]), end="\n\n")
    times = {f"{f.label}{f.particles and f', N = {f.particles}'}": f.seconds for f in found}
    print("Milliseconds of a pass here:", "; ".join(f"{k} {1e3 * s:.2g}" for k, s in times.items()))
    write(given.out, draw(found))


def _told(values: Array, digits: int) -> str:
    return pm(over_replicas(values), digits=digits) if len(values) > 1 else _plain(values[0], digits)


def _plain(number: float, digits: int = 4) -> str:
    return f"{round(number, digits) + 0.0:,.{digits}f}"  # no minus before zeros


def _course(
    label: str, particles: str, model: StateSpace, along: Sequence[Sequence[Theta]], began: float
) -> Course:
    """Of theta of every replica after each pass."""
    seconds = (time.perf_counter() - began) / (len(along) - 1)
    learn = tuple(model.start)
    best = maximum(model.data, start_of(model), learn)

    def series(of: Callable[[Theta], float]) -> xr.DataArray:
        values = [[of(theta) for theta in row] for row in along]
        return xr.DataArray(
            values, dims=("time", "replica"), coords={"step": ("time", np.arange(len(along)))}
        )

    value = series(lambda theta: shown(theta[told(learn)].item(), learn))
    nats = series(lambda theta: nats_below(model, best, theta))
    return Course(label, "", particles, learn, value, nats, seconds)


if __name__ == "__main__":
    main()

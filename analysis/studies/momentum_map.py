"""Draws how fast theta settles over a grid of friction and inverse mass, measured and as theory has it.

    sdeflow run momentum_grid
    python -m sdeflow.analysis.studies.momentum_map runs/momentum_grid-expint-s0 --out momentum_map.png

RUN is the folder or the trajectory of a run with a [grid] of gamma and eta. Rates are of the error, a step:

    measured    fitted to theta's way to its limit (sdeflow.analysis.rates), with the error of
                replicas and model
    predicted   -log |lambda|, lambda the leading eigenvalue of the scheme's own step near the equilibrium
                (sdeflow.analysis.stability): exact for linear-Gaussian models

A point has no measured rate where a replica diverged, where theta moved too little in the steps that it had,
or too fast for what was saved, and where it had not settled to one mode. Damping is critical where lambda
turns from a complex number, an error that swings, to a real one. Theory is of all modes of the system, and
theta shows those that move it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sdeflow.analysis.curves import opened
from sdeflow.analysis.rates import decay
from sdeflow.analysis.stability import linearised, step_map, with_momentum
from sdeflow.analysis.studies.script import parser, write
from sdeflow.config.build import build
from sdeflow.config.schema import Config, parse_config
from sdeflow.errors import SdeflowError
from sdeflow.simulation.ending import past_bound
from sdeflow.terminal import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = NDArray[np.float64]

RATIOS, TICKS = (0.8, 1.25), (0.8, 0.9, 1.0, 1.1, 1.25)
"""Of measured to predicted, between which colours tell them apart."""

REAL = 1e-6
"""Imaginary part up to which an eigenvalue is real, of its modulus: of equal ones none is exact."""

NOTHING = "0.87"
BAR: Any = {"location": "bottom", "pad": 0.03, "shrink": 0.9}


class Agreement(NamedTuple):
    """Of the points with both rates: how many, the ratio measured/predicted, and how far apart they are.

    ratio    median, and the interval that holds nine tenths of the points
    within   share of points where the two are within 2 standard errors; NaN without replicas
    """

    points: int
    ratio: tuple[float, float, float]
    within: float


def configuration(dataset: xr.Dataset) -> Config:
    """What a run on a grid was made of.

    Raises SdeflowError for a run that is not on a grid of two values or more of each, or is from Python.
    """
    if not {"gamma", "eta"} <= set(dataset.coords):
        raise SdeflowError("this run has no grid of gamma and eta: run a file with both in its [grid]")
    counts = {name: len(np.unique(dataset[name])) for name in ("gamma", "eta")}
    if min(counts.values()) < 2:
        raise SdeflowError(
            f"a map takes two values of gamma and of eta or more, given {counts['gamma']} and {counts['eta']}"
        )
    if float(dataset["gamma"].min()) == 0:
        raise SdeflowError("a map has a logarithmic axis of gamma: run a grid without gamma = 0")
    if not dataset.attrs["config"]:
        raise SdeflowError("a run from Python does not tell its model: run it from a TOML file")
    return parse_config(dataset.attrs["config"], Path("config.toml"))


def measured(dataset: xr.Dataset, bound: float, tick: Callable[[], None] = lambda: None) -> xr.Dataset:
    """rate and its standard error, (gamma, eta), NaN where there is none; diverged: a replica past `bound`.

    The error is NaN too where each point has one replica.
    """
    gammas, etas = np.unique(dataset["gamma"]), np.unique(dataset["eta"])
    shape = len(gammas), len(etas)
    rate, error, diverged = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, bool)
    scalars = {str(name): v for name, v in dataset.data_vars.items() if set(v.dims) == {"time", "replica"}}
    sizes = {name: np.abs(v.transpose("time", "replica").to_numpy()) for name, v in scalars.items()}
    lost = past_bound({name: v.max(0) for name, v in sizes.items()}, bound)
    for at in np.ndindex(shape):
        tick()
        replicas = np.flatnonzero((dataset["gamma"] == gammas[at[0]]) & (dataset["eta"] == etas[at[1]]))
        diverged[at] = any(int(replica) in lost for replica in replicas)
        if diverged[at]:
            continue
        try:
            found = decay(dataset.isel(replica=replicas)).rate
        except SdeflowError:  # too slow for the steps taken, too fast for those saved, or unsettled
            continue
        rate[at], error[at] = found.mean, found.error
    return _on_grid(gammas, etas, rate=rate, error=error, diverged=diverged)


def predicted(
    config: Config, gammas: Values, etas: Values, tick: Callable[[], None] = lambda: None
) -> xr.Dataset:
    """rate, (gamma, eta), negative where unstable; critical, (eta): the friction of critical damping.

    The latter is bisected between neighbours on the grid, stable both, of which the lower swings and the
    higher does not; NaN where there are none.

    Raises SdeflowError where there is no theory (sdeflow.analysis.stability.linearised).
    """
    run = build(config.model_copy(update={"grid": None}).with_particles(2))  # two carry all modes
    system, z = linearised(run)

    def leading(gamma: float, eta: float) -> complex:
        point = with_momentum(system, gamma, eta)
        return complex(step_map(point, run.integrator, z).eigenvalues()[0])

    def swings(eigenvalue: complex) -> bool:
        return abs(eigenvalue.imag) > REAL * abs(eigenvalue)

    slowest, critical = np.empty((len(gammas), len(etas)), complex), np.full(len(etas), np.nan)
    for j, eta in enumerate(etas):
        for i, gamma in enumerate(gammas):
            slowest[i, j] = leading(gamma, eta)
            tick()
        pairs = zip(range(len(gammas)), slowest[:-1, j], slowest[1:, j], strict=False)
        for i, below, above in pairs:
            if max(abs(below), abs(above)) < 1 and swings(below) and not swings(above):
                low, high = gammas[i], gammas[i + 1]
                while high > 1.002 * low:
                    middle = np.sqrt(low * high)
                    low, high = (middle, high) if swings(leading(middle, eta)) else (low, middle)
                critical[j] = low
    return _on_grid(gammas, etas, rate=-np.log(np.abs(slowest))).assign(critical=("eta", critical))


def agreement(found: xr.Dataset, theory: xr.Dataset) -> Agreement:
    """How well the two agree; raises SdeflowError where no point has a measured rate."""
    ratio = (found["rate"] / theory["rate"]).to_numpy()
    both = np.isfinite(ratio)
    if not both.any():
        raise SdeflowError("no point of the grid has a measured rate: take more steps, or save more often")
    low, middle, high = map(float, np.quantile(ratio[both], [0.05, 0.5, 0.95]))
    apart = (abs(found["rate"] - theory["rate"]) / found["error"]).to_numpy()[both]
    within = float((apart < 2).mean()) if np.isfinite(apart).all() else np.nan
    return Agreement(int(both.sum()), (middle, low, high), within)


def best(values: xr.DataArray) -> dict[str, float]:
    """gamma and eta of the largest value; there must be one."""
    at = np.unravel_index(np.nanargmax(values.to_numpy()), values.shape)
    return {name: float(values[name][i]) for name, i in zip(("gamma", "eta"), at, strict=True)}


def summary(found: xr.Dataset, theory: xr.Dataset) -> str:
    """The fastest points, measured and predicted, and how well the two agree, or raises as `agreement`."""
    points, (middle, low, high), within = agreement(found, theory)
    lines = ["e-folds of the error in 1000 steps"]
    for label, point in (("measured", best(found["rate"])), ("predicted", best(theory["rate"]))):
        here, there = found.sel(point), theory.sel(point)
        rate, error = 1000 * float(here["rate"]), 1000 * float(here["error"])
        seen = "none measured" if np.isnan(rate) else f"{rate:.4g} measured"
        seen += "" if np.isnan(error) else f" ± {error:.2g}"
        where = f"gamma = {point['gamma']:g}, eta = {point['eta']:g}"
        lines.append(f"fastest {label}: {where}: {seen}, {1000 * float(there['rate']):.4g} predicted")
    lines.append(
        f"measured/predicted at {points} of {found['rate'].size} points: median {middle:.3f}, nine tenths in "
        f"{low:.3f} to {high:.3f}" + ("" if np.isnan(within) else f"; {within:.0%} within 2 standard errors")
    )
    unstable = theory["rate"] < 0
    lines.append(
        f"unstable by theory: {int(unstable.sum())} points; diverged: {int(found['diverged'].sum())}, "
        f"{int((found['diverged'] & unstable).sum())} of them among those"
    )
    return "\n".join(lines)


def draw(found: xr.Dataset, theory: xr.Dataset, title: str) -> Figure:
    """Measured, predicted, and their ratio, with the curve of critical damping."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    fast = 1000 * found["rate"].where(found["rate"] > 0), 1000 * theory["rate"].where(theory["rate"] > 0)
    top = max(float(f.max()) for f in fast)
    shade = LogNorm(max(top / 300, min(float(f.min()) for f in fast)), top)
    figure = Figure(figsize=(9.6, 4.7), dpi=130, layout=ConstrainedLayoutEngine(w_pad=0.08))
    left, middle, right = figure.subplots(1, 3, sharex=True, sharey=True)
    mesh = _panel(left, fast[0], theory, "measured", norm=shade, cmap="viridis")
    _panel(middle, fast[1], theory, "predicted", norm=shade, cmap="viridis")
    figure.colorbar(mesh, ax=[left, middle], label="e-folds of the error in 1000 steps", **BAR, aspect=45)
    ratio = _panel(
        right, fast[0] / fast[1], theory, "measured / predicted", norm=LogNorm(*RATIOS), cmap="RdBu_r"
    )
    bar = figure.colorbar(ratio, ax=right, label="ratio", extend="both", ticks=TICKS, **BAR, aspect=20)
    bar.ax.set_xticklabels([f"{tick:g}" for tick in TICKS])
    bar.ax.minorticks_off()
    crosses = {"ls": "none", "marker": "x", "color": "crimson", "ms": 5, "label": "diverged, or unstable"}
    star = {"ls": "none", "marker": "*", "color": "white", "mec": "black", "ms": 12, "label": "fastest"}
    for panel, lost, values in ((left, found["diverged"], fast[0]), (middle, theory["rate"] < 0, fast[1])):
        i, j = np.nonzero(lost.to_numpy())
        panel.plot(lost["eta"][j], lost["gamma"][i], **crosses)
        point = best(values)
        panel.plot(point["eta"], point["gamma"], **star)
    left.set_ylabel("friction γ")
    figure.suptitle(title, fontsize="medium")
    left.plot([], [], ls="--", color="0.2", label="critical damping")
    handles = [line for line in left.get_lines() if not line.get_label().startswith("_")]
    nothing = left.fill_between([], [], color=NOTHING, label="no rate to tell")
    figure.legend(
        handles=[*handles, nothing],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize="small",
    )
    return figure


def _panel(panel: Axes, values: xr.DataArray, theory: xr.Dataset, title: str, **how: Any) -> Any:
    """A map of values, (gamma, eta), with the curve on which the slowest mode begins to turn."""
    gammas, etas = values["gamma"].to_numpy(), values["eta"].to_numpy()
    panel.set_facecolor(NOTHING)
    mesh = panel.pcolormesh(_edges(etas), _edges(gammas), values, rasterized=True, **how)
    colour = "white" if how["cmap"] == "viridis" else "0.2"
    panel.plot(etas, theory["critical"], ls="--", lw=1.4, color=colour)
    panel.set(xscale="log", yscale="log", xlabel="inverse mass η")
    panel.set_title(title, fontsize="medium")
    return mesh


def _edges(values: Values) -> Values:
    """Edges of cells about values on a log axis, one more than those."""
    x = np.log(values)
    middle = (x[1:] + x[:-1]) / 2
    return np.exp(np.concatenate([[2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]]))


def _on_grid(gammas: Values, etas: Values, **values: NDArray[Any]) -> xr.Dataset:
    dims = ("gamma", "eta")
    return xr.Dataset({name: (dims, v) for name, v in values.items()}, {"gamma": gammas, "eta": etas})


def main() -> None:
    """The script."""
    options = parser(__doc__)
    options.add_argument("run", metavar="RUN", type=Path)
    options.add_argument("--out", type=Path, default=Path("momentum_map.svg"), help=".svg, .png or .pdf")
    given = options.parse_args()
    if not given.run.exists():
        options.error(f"there is no run {given.run}")
    try:
        with opened(given.run) as dataset:
            config = configuration(dataset)
            points = len(np.unique(dataset["gamma"])) * len(np.unique(dataset["eta"]))
            with counted("point", 2 * points) as tick:
                found = measured(dataset, config.run.bound, tick)
                theory = predicted(config, found["gamma"].to_numpy(), found["eta"].to_numpy(), tick)
            title = f"{config.title}: {dataset.attrs['integrator']}"
        print(summary(found, theory))
    except SdeflowError as error:
        options.error(str(error))
    write(given.out, draw(found, theory, title))


if __name__ == "__main__":
    main()

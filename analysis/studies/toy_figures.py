"""Draws the toy experiments of arXiv:2312.07335 from the packaged problems.

    python -m sdeflow.analysis.studies.toy_figures gradient_correction --out gradient_correction.svg
    python -m sdeflow.analysis.studies.toy_figures all --out FOLDER

A column for each panel of the experiment, theta above and E - E* below, a curve for each scheme or system:
the mean over replicas and their range. A run that diverges is drawn to where it leaves the frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdeflow.analysis.curves import curve, open_frame, parameter_curve
from sdeflow.analysis.free_energy import gaussian_energy, toy_minimum
from sdeflow.analysis.studies.script import model_of, parser, solved, write
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.run import Run
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical


class Choice(NamedTuple):
    """What a run differs in from its file; None leaves the file's own. `longer` multiplies all steps."""

    variant: str | None = None
    system: str | None = None
    integrator: str | None = None
    longer: float = 1.0


class Experiment(NamedTuple):
    """A problem, and by the titles of panels, by the labels of curves, what to run."""

    problem: str
    panels: Mapping[str, Mapping[str, Choice]]


def _grid(
    variants: Mapping[str, str], *, system: Sequence[str] = (), integrator: Sequence[str] = ()
) -> dict[str, dict[str, Choice]]:
    """A panel for each variant, by title; a curve for each system, or for each integrator."""
    return {
        title: {name: Choice(variant, system=name) for name in system}
        | {name: Choice(variant, integrator=name) for name in integrator}
        for title, variant in variants.items()
    }


EXPERIMENTS = {
    "regimes": Experiment(
        "regimes",
        {
            "": {
                **{name: Choice(name) for name in ("underdamped", "critical", "overdamped")},
                "pgd, no momentum": Choice(system="pgd", integrator="euler_maruyama"),
            }
        },
    ),
    "gradient_correction": Experiment(
        "gradient_correction",
        _grid({f"h × {f}": f"f{f}" for f in ("0.99", "1.00", "1.01")}, integrator=("expint", "expint_nc"))
        # ours: past the limit of the scheme without correction
        | {"h × 1.05": {name: Choice("f1.00", None, name, 1.05) for name in ("expint", "expint_nc")}},
    ),
    "nesterov": Experiment(
        "nesterov",
        _grid({f"μ = {mu}": f"mu{mu}" for mu in ("0.99", "0.9", "0.5")}, integrator=("expint", "nag")),
    ),
    "enrichment": Experiment(
        "enrichment",
        _grid(
            {f"X from N(−{start}, 1)": f"start-{start}" for start in (5, 20, 100)},
            system=("pgd", "mpgd-theta", "mpgd-x", "mpgd"),
        ),
    ),
}


class Curve(NamedTuple):
    """One solved run: theta and E - E*, (time, replica), and the step at which it diverged, if it did."""

    theta: xr.DataArray
    energy: xr.DataArray
    diverged: int | None


def runs(
    experiment: Experiment, *, replicas: int = 4, steps: int | None = None
) -> Iterator[tuple[str, str, Run]]:
    """(panel, curve, run) in order, with everything saved that E takes, at some 250 times."""
    for panel, curves in experiment.panels.items():
        for label, choice in curves.items():
            file = problem_file(experiment.problem)
            own = load_config(file, variant=choice.variant).system.arguments
            tables: dict[str, Any] = {
                "run": _given(replicas=replicas, integrator=choice.integrator, steps=steps),
                "system": _given(use=choice.system)
                | {name: {"h": choice.longer * own[name]["h"]} for name in ("theta", "x")},
                "save": {"data": "all", "particles": "all"},
            }
            config = load_config(file, variant=choice.variant, overrides=[tables])
            every = {"save": {"every": max(1, config.run.steps // 250)}}
            yield panel, label, build(load_config(file, variant=choice.variant, overrides=[tables, every]))


def measure(run: Run) -> Curve:
    """Solves a run of the toy model in memory."""
    solution = solved(run)
    dataset = solution.dataset
    diverged = int(dataset.attrs["steps_taken"]) if solution.retcode == "diverged" else None
    energy = excess_energy(dataset, model_of(run, Hierarchical))
    return Curve(parameter_curve(dataset), energy, diverged)


def excess_energy(dataset: xr.Dataset, model: Hierarchical) -> xr.DataArray:
    """E - E* of the clouds' moments, for any latent: one of d coordinates is d latents of one coordinate.

    NaN where a state is not finite.
    """
    y, s = model.data.numpy().reshape(-1, 1), model.variance**0.5
    least = toy_minimum(y, s)
    theta = dataset["theta"].isel(param=0, drop=True)
    values = np.full(theta.shape, np.nan)
    clouds = dataset["X"].transpose(*theta.dims, "datum", "latent", "particle").to_numpy().astype(np.float64)
    for at in np.ndindex(values.shape):
        x = clouds[at].reshape(len(y), -1, 1)
        if np.isfinite(x).all() and np.isfinite(theta.values[at]):
            values[at] = gaussian_energy(x, float(theta.values[at]), y, s).value - least
    return theta.copy(data=values).rename("excess_energy")


def draw(found: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Columns of panels, theta above and E - E* below, framed by the curves that did not diverge."""
    columns = len(found)
    figure = Figure(figsize=(4.6 if columns == 1 else 1 + 2.8 * columns, 5.2), layout="constrained")
    above, below = figure.subplots(2, columns, sharex=True, squeeze=False).tolist()
    for top, bottom, (name, curves) in zip(above, below, found.items(), strict=True):
        # Logarithmic, and linear below one nat, where the curves are noise about 0 and less.
        bottom.set_yscale("symlog", linthresh=1.0, linscale=0.7)
        stable = [c for c in curves.values() if c.diverged is None] or list(curves.values())
        low, high = _range([c.theta for c in stable])
        room = 0.06 * (high - low)
        _panel(top, {k: c.theta for k, c in curves.items()}, curves, (low - room, high + room))
        least, most = _range([c.energy for c in stable])
        _panel(bottom, {k: c.energy for k, c in curves.items()}, curves, (min(least, 0) - 0.5, 3 * most))
        top.set_title(name, fontsize="medium")
        bottom.set_xlabel("step")
        if lost := ", ".join(label for label, c in curves.items() if c.diverged is not None):
            top.text(0.96, 0.08, f"{lost} diverges", transform=top.transAxes, ha="right", fontsize="small")
    above[0].set_ylabel("θ")
    below[0].set_ylabel("E − E*, nats")
    handles = {line.get_label(): line for panel in above for line in panel.get_lines()}
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _panel(
    panel: Axes, series: Mapping[str, xr.DataArray], curves: Mapping[str, Curve], frame: tuple[float, float]
) -> None:
    for number, (label, values) in enumerate(series.items()):
        if curves[label].diverged is not None:
            wide = values if "replica" not in values.dims else values.mean("replica")
            outside = np.flatnonzero(~((wide >= frame[0]) & (wide <= frame[1])).to_numpy())
            values = values.isel(time=slice(None, outside[0] + 1)) if len(outside) else values
        style = "--" if number == 1 and len(series) == 2 else "-"  # two may well lie on each other
        curve(panel, values, label, colour=f"C{number}", style=style)
    panel.set_ylim(frame)
    open_frame(panel)


def _range(curves: Sequence[xr.DataArray]) -> tuple[float, float]:
    """The least and the largest mean over replicas."""
    means = [c.mean("replica") if "replica" in c.dims else c for c in curves]
    return min(float(m.min()) for m in means), max(float(m.max()) for m in means)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def main() -> None:
    """The script."""
    options = parser(__doc__)
    options.add_argument("figure", choices=[*EXPERIMENTS, "all"])
    options.add_argument("--out", type=Path, help="file to write, .svg, .png or .pdf; for 'all' a folder")
    options.add_argument("--replicas", type=int, default=4)
    options.add_argument("--steps", type=int, help="instead of those in the file")
    given = options.parse_args()
    names = list(EXPERIMENTS) if given.figure == "all" else [given.figure]
    try:
        for name in names:
            file = Path(f"{name}.svg")
            out = file if given.out is None else given.out / file if given.figure == "all" else given.out
            write(out, draw_experiment(name, replicas=given.replicas, steps=given.steps))
    except SdeflowError as error:
        options.error(str(error))


def draw_experiment(name: str, *, replicas: int = 4, steps: int | None = None) -> Figure:
    """Solves what an experiment declares, and draws it."""
    found: dict[str, dict[str, Curve]] = {}
    for panel, label, run in runs(EXPERIMENTS[name], replicas=replicas, steps=steps):
        found.setdefault(panel, {})[label] = measure(run)
    return draw(found)


if __name__ == "__main__":
    main()

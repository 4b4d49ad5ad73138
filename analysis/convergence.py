"""Draws how runs converge: theta and the loss against steps, one curve a run.

    python -m sdeflow.analysis.convergence RUN [RUN ...] --out convergence.svg

RUN is a run folder or a NetCDF file; several replicas are drawn as their mean and range.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sdeflow.trajectory.opening import open_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def opened(path: str | Path) -> xr.Dataset:
    """The trajectory in a run folder, also an unfinished one, or in a file."""
    return open_run(path) if Path(path).is_dir() else xr.open_dataset(path)


def parameter_curve(run: xr.Dataset) -> xr.DataArray:
    """theta where it is a scalar, else its Euclidean norm."""
    if "theta" not in run:
        return run["theta_norm"]
    theta = run["theta"]
    if theta.sizes["param"] == 1:
        return theta.isel(param=0, drop=True)
    norm = (theta**2).sum("param") ** 0.5
    return norm.assign_attrs(long_name="Euclidean norm of parameters")


def draw(runs: Mapping[str, xr.Dataset]) -> Figure:
    """Two panels: theta and the loss against steps, the loss on a log scale where it is positive."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, run in runs.items():
        curve(left, parameter_curve(run), label)
        curve(right, run["loss"], label)
    left.set(xlabel="step", ylabel="theta")
    positive = all((run["loss"] > 0).all() for run in runs.values())
    right.set(xlabel="step", ylabel="loss", yscale="log" if positive else "linear")
    left.legend(frameon=False, fontsize="small")
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return figure


def curve(
    panel: Axes,
    values: xr.DataArray,
    label: str,
    *,
    colour: str | None = None,
    style: str = "-",
    scale: float = 1.0,
    positive: bool = False,
) -> None:
    """A series (time[, replica]) against steps times `scale`: mean over replicas, and their range as a band.

    positive   for a log axis: left out where the mean is not positive, the band cut at the mean where the
               least is not
    """
    x = values["step"].to_numpy() * scale
    y = values.transpose("time", ...).to_numpy().reshape(len(x), -1)
    mean, low, high = y.mean(1), y.min(1), y.max(1)
    if positive:
        shown = np.isfinite(y).all(1) & (mean > 0)
        low = np.where(low > 0, low, mean)
        mean, low, high = (np.where(shown, part, np.nan) for part in (mean, low, high))
    (line,) = panel.plot(x, mean, label=label, lw=1.4, color=colour, ls=style)
    if y.shape[1] > 1:
        panel.fill_between(x, low, high, color=line.get_color(), alpha=0.2, lw=0)


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", default="convergence.svg", help="figure to write, .svg, .png or .pdf")
    arguments = parser.parse_args()
    missing = [run for run in arguments.runs if not Path(run).exists()]
    if missing:
        parser.error(f"there is no run {', '.join(missing)}")
    names = [Path(run).stem if Path(run).is_file() else Path(run).name for run in arguments.runs]
    draw(dict(zip(names, map(opened, arguments.runs), strict=True))).savefig(arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()

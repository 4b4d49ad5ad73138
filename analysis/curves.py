"""Series of a run as curves: steps along, the mean over replicas, and their range as a band."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from sdeflow.errors import SdeflowError
from sdeflow.state import PARAMETERS
from sdeflow.trajectory.opening import open_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LARGEST = 1e100
"""Of a run that diverges, the largest number that a log axis is drawn for."""


class Picture(Figure):
    """A figure that Jupyter shows as the value of a cell, also where pyplot has drawn none of its own yet."""

    def _repr_png_(self) -> bytes:
        png = BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def opened(path: str | Path) -> xr.Dataset:
    """The trajectory in a run folder, also an unfinished one, or in a file."""
    return open_run(path) if Path(path).is_dir() else xr.open_dataset(path)


def parameter_curve(run: xr.Dataset) -> xr.DataArray:
    """theta, or of an energy alpha or beta, where it is a scalar; else its Euclidean norm.

    Raises SdeflowError for a run without parameters.
    """
    for name in PARAMETERS:
        if f"{name}_norm" in run:
            return run[f"{name}_norm"]
        if name in run:
            param = str(run[name].dims[-1])
            if run[name].sizes[param] == 1:
                return run[name].isel({param: 0}, drop=True)
            norm = (run[name] ** 2).sum(param) ** 0.5
            return norm.assign_attrs(long_name="Euclidean norm of parameters")
    raise SdeflowError("there are no parameters to draw: the trajectory of a model was expected")


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
               least is not; and where the greatest is past LARGEST
    """
    x = values["step"].to_numpy() * scale
    y = values.transpose("time", ...).to_numpy().astype(np.float64).reshape(len(x), -1)
    mean, low, high = y.mean(1), y.min(1), y.max(1)
    if positive:
        shown = (np.abs(y) < LARGEST).all(1) & (mean > 0)
        low = np.where(low > 0, low, mean)
        mean, low, high = (np.where(shown, part, np.nan) for part in (mean, low, high))
    (line,) = panel.plot(x, mean, label=label, lw=1.4, color=colour, ls=style)
    if y.shape[1] > 1:
        panel.fill_between(x, low, high, color=line.get_color(), alpha=0.2, lw=0)


def draw(runs: Mapping[str, xr.Dataset]) -> Figure:
    """Two panels: theta and the loss against steps, the loss on a log scale where it is positive."""
    figure = Picture(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, run in runs.items():
        curve(left, parameter_curve(run), label)
        curve(right, run["loss"], label)
    left.set(xlabel="step", ylabel="theta")
    positive = all((run["loss"] > 0).all() for run in runs.values())
    right.set(xlabel="step", ylabel="loss", yscale="log" if positive else "linear")
    left.legend(frameon=False, fontsize="small")
    open_frame(left)
    open_frame(right)
    return figure


def open_frame(panel: Axes, *, grid: bool = True) -> None:
    """A panel without its upper and right edges, and with a faint grid."""
    panel.spines[["top", "right"]].set_visible(False)
    if grid:
        panel.grid(alpha=0.25)

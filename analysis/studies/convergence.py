"""Draws how runs converge: theta and the loss against steps, one curve a run.

    python -m sdeflow.analysis.studies.convergence RUN [RUN ...] --out convergence.svg

RUN is a run folder or a NetCDF file; several replicas are drawn as their mean and range.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from sdeflow.analysis.curves import curve, open_frame, opened, parameter_curve
from sdeflow.analysis.studies.script import parser, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    open_frame(left)
    open_frame(right)
    return figure


def main() -> None:
    """The script."""
    options = parser(__doc__)
    options.add_argument("runs", nargs="+", metavar="RUN", type=Path)
    options.add_argument(
        "--out", type=Path, default=Path("convergence.svg"), help="figure to write, .svg, .png or .pdf"
    )
    given = options.parse_args()
    if missing := [str(run) for run in given.runs if not run.exists()]:
        options.error(f"there is no run {', '.join(missing)}")
    names = [run.stem if run.is_file() else run.name for run in given.runs]
    write(given.out, draw(dict(zip(names, map(opened, given.runs), strict=True))))


if __name__ == "__main__":
    main()

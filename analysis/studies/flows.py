"""Draws paths of probability in the plane: clouds on the way from the start to the end, and some paths.

    python -m sdeflow.analysis.studies.flows --out flows.png
    python -m sdeflow.analysis.studies.flows diffusion interpolant:sde --out flows.png

A row for each problem or PROBLEM:VARIANT; colours are by the component that a path ends nearest to. Of flows,
which have no noise, the kinetic energy is told, and the least that any path between these ends would spend.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sdeflow.analysis.distances import wasserstein
from sdeflow.analysis.kinetic_energy import kinetic_energy
from sdeflow.analysis.studies.script import parser, solved, write
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.run import Run
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.system.sde import SDESystem

ROWS = (
    "diffusion",
    "diffusion:sde",
    "interpolant",
    "interpolant:sde",
    "interpolant:straight",
    "pfgmpp",
)
MOMENTS, LINES = (0.0, 0.5, 0.75, 1.0), 40


def run_of(row: str, *, paths: int | None = None) -> Run:
    """The run of PROBLEM or PROBLEM:VARIANT; raises SdeflowError where its paths are not in the plane."""
    problem, _, variant = row.partition(":")
    tables: dict[str, Any] = {} if paths is None else {"system": {"paths": paths}}
    run = build(load_config(problem_file(problem), variant=variant or None, overrides=[tables]))
    if not isinstance(run.system, SDESystem) or run.system.axes["X"].shape[-1] != 2:
        raise SdeflowError(f"{row} has no paths in the plane: give a plain SDE of two coordinates")
    return run


def ends(run: Run) -> NDArray[np.float64]:
    """Where the components lie at the end, [K, 2]; one at 0 where the SDE says nothing of that."""
    sde: Any = run.system.definition
    law = getattr(sde, "law", None)
    found = law(sde.final_time)[0] if law is not None else getattr(sde, "points", None)
    return np.zeros((1, 2)) if found is None else np.unique(found.numpy().round(9), axis=0)


def told(run: Run, dataset: xr.Dataset) -> str:
    """The energy of a flow, in words; '' along noise."""
    if run.system.channels:
        return ""
    energy = kinetic_energy(dataset).spent
    few = dataset.X.isel(particle=slice(1000))
    time = float(dataset.time[-1] - dataset.time[0])
    least = wasserstein(few[0].values, few[-1].values) ** 2 / time
    return f"energy {energy.value:.3g} ± {energy.error:.1g}\nleast {least:.3g}"


def draw(rows: Sequence[str], *, paths: int | None = None) -> Figure:
    """Solves and draws the rows: clouds at four moments, and paths."""
    figure = Figure(figsize=(2.1 * (len(MOMENTS) + 1), 2.3 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(MOMENTS) + 1, squeeze=False)
    for line, row in zip(panels, rows, strict=True):
        run = run_of(row, paths=paths)
        dataset = solved(run).dataset
        x = dataset.X.values
        nearest = np.square(x[-1][:, None] - ends(run)).sum(-1).argmin(-1)
        colours = np.array([f"C{k % 10}" for k in nearest])
        for panel, share in zip(line, MOMENTS, strict=False):
            at = int(np.abs(dataset.time.values / float(dataset.time[-1]) - share).argmin())
            reach = 1.15 * float(np.quantile(np.abs(x[at]), 0.99))
            panel.scatter(x[at][:, 0], x[at][:, 1], s=3, lw=0, alpha=0.6, c=colours)
            panel.set(xlim=(-reach, reach), ylim=(-reach, reach), title=f"t = {float(dataset.time[at]):.2g}")
        reach = 1.15 * float(np.quantile(np.abs(x), 0.97))
        for i in range(min(LINES, x.shape[1])):
            line[-1].plot(x[:, i, 0], x[:, i, 1], lw=0.5, alpha=0.7, color=colours[i])
        line[-1].set(xlim=(-reach, reach), ylim=(-reach, reach), title="paths", xlabel=told(run, dataset))
        line[0].set_ylabel(row)
        for panel in line:
            panel.set_aspect("equal")
            panel.tick_params(labelsize="x-small")
            panel.title.set_fontsize("small")
            panel.xaxis.label.set_fontsize("x-small")
    return figure


def main() -> None:
    """The script."""
    options = parser(__doc__)
    options.add_argument("rows", nargs="*", metavar="PROBLEM[:VARIANT]", help=f"default: {' '.join(ROWS)}")
    options.add_argument(
        "--out", type=Path, default=Path("flows.png"), help="file to write, .png, .svg or .pdf"
    )
    options.add_argument("--paths", type=int, help="instead of those in the files")
    given = options.parse_args()
    try:
        write(given.out, draw(given.rows or ROWS, paths=given.paths))
    except SdeflowError as error:
        options.error(str(error))


if __name__ == "__main__":
    main()

"""Draws how runs converge: theta and the loss against steps, one curve a run.

    python -m sdeflow.analysis.studies.convergence RUN [RUN ...] --out convergence.svg

RUN is a run folder or a NetCDF file; several replicas are drawn as their mean and range.
"""

from __future__ import annotations

from pathlib import Path

from sdeflow.analysis.curves import draw, opened
from sdeflow.analysis.studies.script import parser, write


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

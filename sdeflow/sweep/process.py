"""The processes of a run of a sweep: `sdeflow run --resume`, of the configuration that the sweep has for it;
and `sdeflow evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path

from sdeflow.sweep.plan import FOLD, POINTS, Point, Sweep
from sdeflow.trajectory import durable


def command(sweep: Sweep, point: Point) -> list[str]:
    """What begins a run or goes on with it, wherever it is called; the run's configuration is written."""
    config = _beside(sweep, point, ".toml")
    durable.write(config, point.config.toml().encode())
    where = [str(config.absolute()), "--out", str(point.folder.absolute())]
    return [sys.executable, "-m", "sdeflow", "run", *where, "--resume", "--quiet"]


def evaluation(point: Point) -> list[str]:
    """What scores a run that has ended, on the fold that numbers are chosen by."""
    how = ["--fold", FOLD, "--no-pictures", "--quiet"]
    return [sys.executable, "-m", "sdeflow", "evaluate", str(point.folder.absolute()), *how]


def log(sweep: Sweep, point: Point) -> Path:
    """What the processes of a run say to."""
    return _beside(sweep, point, ".log").absolute()


def last(file: Path) -> str:
    """The last line that a process said; '' where there is none."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return lines[-1] if lines else ""


def _beside(sweep: Sweep, point: Point, end: str) -> Path:
    return sweep.folder / POINTS / f"{point.folder.name}{end}"

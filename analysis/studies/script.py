"""What the studies share: a command line, a run solved under a progress bar, tables, and figures on disk."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from sdeflow.analysis.rates import Interval
from sdeflow.config.run import Run
from sdeflow.model.model import Model
from sdeflow.simulation.ending import Solution
from sdeflow.system.system import BlockSystem
from sdeflow.terminal import progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

M = TypeVar("M", bound=Model)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a study's docstring as it stands."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def solved(run: Run) -> Solution:
    """A run solved in memory; raises KeyboardInterrupt where it was interrupted."""
    from sdeflow.simulation.solve import solve

    with progress_bar() as report:
        solution = solve(run, progress=report)
    if solution.retcode == "interrupted":
        raise KeyboardInterrupt(solution.message)
    return solution


def model_of(run: Run, kind: type[M]) -> M:
    """The run's model, which is of this kind."""
    assert isinstance(run.system, BlockSystem)
    assert run.system.model_forces is not None
    model = run.system.model_forces.model
    assert isinstance(model, kind)
    return model


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A table, a row for each dictionary, a column for each of its keys."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([r[name] for name in head] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pm(value: Interval, factor: int = 1, digits: int | None = None) -> str:
    """A mean with its standard error, both times a factor; by default to a decimal at most."""
    error = factor * value.error
    if digits is None:
        digits = min(1, max(0, int(1 - np.floor(np.log10(error))))) if error > 0 else 0
    return f"{factor * value.mean:,.{digits}f} ± {error:,.{digits}f}"


def write(out: Path, figure: Figure) -> None:
    """The figure, into a folder that is made where it is not there; prints the path."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(out)

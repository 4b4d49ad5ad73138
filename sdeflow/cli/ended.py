"""How a run ended, for people and for what called it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sdeflow.terminal import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Numbers = Mapping[str, NDArray[Any]]

EXIT = {"success": 0, "stopped": 0, "diverged": 3, "interrupted": 130}


def tell(solution: Any, folder: Path, quiet: bool) -> None:
    """Says how a run ended and where it is, and exits with the code for that.

    What it says is read from the folder itself, as opening the trajectory takes longer than a short run.
    """
    if solution.retcode != "success" and not (quiet and solution.retcode == "stopped"):
        typer.echo(shown(f"{solution.retcode}: {solution.message}"), err=True)
    if not quiet:
        from sdeflow.terminal import out as console

        console.print(shown(_told(folder, solution.diverged)), markup=False, soft_wrap=True)
    raise typer.Exit(EXIT[solution.retcode])


def _told(folder: Path, diverged: frozenset[int]) -> str:
    from sdeflow.terminal import rate
    from sdeflow.trajectory.layout import TRAJECTORY
    from sdeflow.trajectory.opening import newest
    from sdeflow.trajectory.segments import observed, of_replicas

    meta = newest(folder)
    files, seconds = meta.files(folder), meta.seconds
    speed = f" ({rate(meta.last / max(seconds, 1e-9))})" if meta.last else ""
    numbers, grid = observed(files), of_replicas(files)
    told = f"{meta.last:,} steps in {seconds:.1f} s{speed}"
    told += _best(numbers, grid, diverged) if grid else _losses(numbers, diverged)
    if "held_out_loss" in numbers and not grid:
        told += f" ({meta.evaluate_seconds:.1f} s of them to measure it)"
    if meta.start:
        told += f"\nbegun from {meta.start['run']}; anew: {meta.start['anew'] or 'nothing'}"
    path = folder / TRAJECTORY
    opened = f"{path}    open it with xr.open_dataset({path.as_posix()!r})" if path.exists() else folder
    return f"{told}\n{opened}"


def _best(numbers: Numbers, grid: Numbers, diverged: frozenset[int]) -> str:
    """How many points of a grid did not diverge, and the least loss at the end, a mean over replicas."""
    points: dict[tuple[float, ...], list[int]] = {}
    for replica, point in enumerate(zip(*(values.tolist() for values in grid.values()), strict=True)):
        points.setdefault(point, []).append(replica)
    good = {point: at for point, at in points.items() if not diverged.intersection(at)}
    told = f", {len(good):,} of {len(points):,} points did not diverge"
    if "loss" in numbers and good:
        losses = {point: float(numbers["loss"][-1][at].mean()) for point, at in good.items()}
        best = min(losses, key=lambda point: losses[point])
        where = ", ".join(f"{name}={value:g}" for name, value in zip(grid, best, strict=True))
        told += f", least loss {losses[best]:.6g} at {where}"
    return told


def _losses(numbers: Numbers, diverged: frozenset[int]) -> str:
    """The losses that were measured last, each the mean over replicas that did not diverge."""
    told = ""
    for name, label in (("loss", "loss"), ("held_out_loss", "held-out loss")):
        measured = [
            row for row in numbers.get(name, ()) if not (row != row).all()
        ]  # NaN is not equal to itself
        last = measured[-1].ravel() if measured else []
        kept = [float(value) for replica, value in enumerate(last) if replica not in diverged]
        if kept:
            told += f", {label} {sum(kept) / len(kept):.6g}"
            told += f" of {len(kept)} replicas that did not diverge" if len(kept) < len(last) else ""
    if "tuning_returns" in numbers and (returns := int(numbers["tuning_returns"].max())):
        told += f", went back to smaller steps {returns} times" if returns > 1 else ", went back once"
    return told

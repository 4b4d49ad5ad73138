"""How a run ended, for people and for what called it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from sdeflow.terminal import shown

EXIT = {"success": 0, "stopped": 0, "diverged": 3, "interrupted": 130}


def tell(solution: Any, folder: Path, quiet: bool) -> None:
    """Says how a run ended and where it is, and exits with the code for that."""
    from sdeflow.terminal import out as console
    from sdeflow.terminal import rate
    from sdeflow.trajectory.layout import TRAJECTORY

    if solution.retcode != "success" and not (quiet and solution.retcode == "stopped"):
        typer.echo(shown(f"{solution.retcode}: {solution.message}"), err=True)
    if not quiet:
        dataset, attrs = solution.dataset, solution.dataset.attrs
        taken, seconds = int(attrs["steps_taken"]), float(attrs["seconds"])
        speed = f" ({rate(taken / max(seconds, 1e-9))})" if taken else ""
        loss = _losses(dataset, solution.diverged)
        begun = attrs.get("start_anew")
        loss += "" if begun is None else f"\nbegun from {attrs['start_run']}; anew: {begun or 'nothing'}"
        path = folder / TRAJECTORY
        opened = f"{path}    open it with xr.open_dataset({path.as_posix()!r})" if path.exists() else folder
        console.print(
            shown(f"{taken:,} steps in {seconds:.1f} s{speed}{loss}\n{opened}"),
            markup=False,
            soft_wrap=True,
        )
    raise typer.Exit(EXIT[solution.retcode])


def _losses(dataset: Any, diverged: frozenset[int]) -> str:
    """The losses at the end of what did not diverge: the mean over replicas, of a grid the least one."""
    told, attrs = "", dataset.attrs
    if attrs["grid"]:
        names = [axis.partition(" = ")[0] for axis in attrs["grid"].split("; ")]
        points: dict[tuple[float, ...], list[int]] = {}
        for replica, point in enumerate(zip(*(dataset[name].values.tolist() for name in names), strict=True)):
            points.setdefault(point, []).append(replica)
        good = {point: at for point, at in points.items() if not diverged.intersection(at)}
        told = f", {len(good):,} of {len(points):,} points did not diverge"
        if "loss" in dataset and good:
            last = dataset["loss"][-1]
            losses = {point: float(last[at].mean()) for point, at in good.items()}
            best = min(losses, key=lambda point: losses[point])
            where = ", ".join(f"{name}={value:g}" for name, value in zip(names, best, strict=True))
            told += f", least loss {losses[best]:.6g} at {where}"
        return told
    for name, label in (("loss", "loss"), ("held_out_loss", "held-out loss")):
        if name not in dataset:
            continue
        values = dataset[name].dropna("time", how="all")
        last = values[-1].values.ravel() if values.size else []
        kept = [float(value) for replica, value in enumerate(last) if replica not in diverged]
        if kept:
            told += f", {label} {sum(kept) / len(kept):.6g}"
            told += f" of {len(kept)} replicas that did not diverge" if len(kept) < len(last) else ""
    if "tuning_returns" in dataset and (returns := int(dataset["tuning_returns"].values.max())):
        told += f", went back to smaller steps {returns} times" if returns > 1 else ", went back once"
    if attrs["evaluate"]:
        told += f" ({attrs['evaluate_seconds']:.1f} s of them to measure it)"
    return told

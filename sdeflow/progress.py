"""Telling how far a run is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, float | None], None]
"""Called between chunks of steps with the steps taken and the latest loss."""


@contextmanager
def progress_bar(steps: int) -> Iterator[Progress]:
    """A bar on stderr with rate, time left and the latest loss."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Bar(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task("", total=steps, rate="", loss="")

        def report(step: int, loss: float | None) -> None:
            speed = bar.tasks[0].speed
            bar.update(
                task,
                completed=step,
                rate=f"{speed:,.0f} steps/s" if speed else "",
                loss="" if loss is None else f"loss {loss:.5g}",
            )

        yield report

"""Telling how far a run is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sdeflow.units import duration, rate

Progress = Callable[[int, int, float | None], None]
"""Called between chunks of steps with the steps taken, the steps of the run, and the latest loss."""

_SECONDS_BETWEEN_LINES = 30
_SLOW_START = 2.0


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """On stderr, a bar with rate, time left and loss; where that is no terminal, a line now and then."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("left{task.fields[loss]}"),
    )
    with Bar(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task("", total=None, rate="", loss="")

        def report(step: int, steps: int, loss: float | None) -> None:
            speed = bar.tasks[0].speed
            told = rate(speed) if speed else ""
            bar.update(task, completed=step, total=steps, rate=told, loss=_loss(loss))

        yield report


def _lines() -> Progress:
    """A line at the first report, where steps are slow, and then now and then."""
    began, last, first = time.monotonic(), -float("inf"), None

    def report(step: int, steps: int, loss: float | None) -> None:
        nonlocal last, first, began
        now = time.monotonic()
        if first is None:
            first = step - 1
            if now - began < _SLOW_START:
                last = now
                return
        if now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        speed = (step - first) / (now - began)
        left = duration((steps - step) / speed)
        line = f"step {step:,} of {steps:,}, {rate(speed)}, {left} left{_loss(loss)}"
        print(line, file=sys.stderr, flush=True)

    return report


def _loss(loss: float | None) -> str:
    return "" if loss is None else f", loss {loss:.5g}"

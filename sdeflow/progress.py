"""Telling how far a run is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, float | None], None]
"""Called between chunks of steps with the steps taken and the latest loss."""

_SECONDS_BETWEEN_LINES = 30


@contextmanager
def progress_bar(steps: int) -> Iterator[Progress]:
    """On stderr, a bar with rate, time left and loss; where that is no terminal, a line now and then."""
    if not sys.stderr.isatty():
        yield _lines(steps)
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
        task = bar.add_task("", total=steps, rate="", loss="")

        def report(step: int, loss: float | None) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=step, rate=rate(speed) if speed else "", loss=_loss(loss))

        yield report


def _lines(steps: int) -> Progress:
    began = last = time.monotonic()

    def report(step: int, loss: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES:
            return
        last = now
        speed = step / (now - began)
        left = (steps - step) / speed
        print(
            f"step {step:,} of {steps:,}, {rate(speed)}, {left:,.0f} s left{_loss(loss)}",
            file=sys.stderr,
            flush=True,
        )

    return report


def rate(speed: float) -> str:
    """Steps a second, for people."""
    return f"{speed:,.0f} steps/s" if speed >= 10 else f"{speed:.2g} steps/s"


def _loss(loss: float | None) -> str:
    return "" if loss is None else f", loss {loss:.5g}"

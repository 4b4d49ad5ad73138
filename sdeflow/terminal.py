"""What is written to a terminal: tables, progress, and numbers for people."""

from __future__ import annotations

import inspect
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""By which a terminal or a scheduler asks a run to stop; Windows has no SIGHUP."""


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table."""
    grid = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for i, column in enumerate(columns):
        grid.add_column(column, style="cyan" if i == 0 else None, overflow="fold", no_wrap=i == 0)
    for row in rows:
        grid.add_row(*map(Text, row))
    out.print(grid)
    out.print()


def first_line(thing: Any) -> str:
    """The first sentence of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def rate(speed: float) -> str:
    """Steps a second, or seconds a step, for people."""
    if speed < 0.5:
        return f"{duration(1 / speed)} a step"
    return f"{speed:,.0f} steps/s" if speed >= 10 else f"{speed:.2g} steps/s"


def duration(seconds: float) -> str:
    """A time for people."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.{1 if seconds < 10 * size else 0}f} {unit}"
    return f"{seconds:,.0f} s"


def human(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


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
            shown = rate(speed) if speed else ""
            bar.update(task, completed=step, total=steps, rate=shown, loss=_loss(loss))

        yield report


def reading(file: BinaryIO, size: int, name: str) -> AbstractContextManager[BinaryIO]:
    """The file, to be read under a bar with its bytes and time left, on stderr where that is a terminal."""
    from rich.progress import wrap_file

    console, hidden = Console(stderr=True, highlight=False), not sys.stderr.isatty()
    return wrap_file(file, size, description=name, console=console, transient=True, disable=hidden)


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

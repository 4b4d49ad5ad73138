"""What is written to a terminal: tables, progress, and numbers for people."""

from __future__ import annotations

import inspect
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import count
from typing import Any, BinaryIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""By which a terminal or a scheduler asks a run to stop; Windows has no SIGHUP."""


def shown(text: str) -> str:
    """The text with control characters escaped: a stranger's title moves no cursor and hides no line."""
    if text.isprintable():
        return text
    good = (c in "\n\t" or not unicodedata.category(c).startswith("C") for c in text)
    return "".join(
        c if fine else c.encode("unicode_escape").decode() for c, fine in zip(text, good, strict=True)
    )


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, cut: bool = False) -> None:
    """Prints a table. A row too long for the terminal is folded; with `cut` it is a line, cut with '…'."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        grid.add_column(column, style="cyan" if i == 0 else None, overflow="fold", no_wrap=i == 0)
    for row in rows:
        how: Any = {"no_wrap": True, "overflow": "ellipsis"} if cut else {}
        grid.add_row(*(Text(shown(cell), **how) for cell in row))
    out.print(Text(shown(title), style="bold"))  # a table's own title is folded to the table's width
    out.print(grid)
    out.print()


def first_line(thing: Any) -> str:
    """The first sentence of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def rate(speed: float, unit: str = "step") -> str:
    """Steps a second, or seconds a step, for people."""
    if speed < 0.5:
        return f"{duration(1 / speed)} {'an' if unit[0] in 'aeiou' else 'a'} {unit}"
    return f"{speed:,.0f} {unit}s/s" if speed >= 10 else f"{speed:.2g} {unit}s/s"


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
def progress_bar(unit: str = "step") -> Iterator[Progress]:
    """On stderr, a bar with rate, time left and loss; where that is no terminal, a line now and then."""
    if not sys.stderr.isatty():
        yield _lines(unit)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[more]}"))
    with Bar(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task, pace = bar.add_task("", total=None, more=""), _Pace(unit)

        def report(step: int, steps: int, loss: float | None) -> None:
            bar.update(task, completed=step, total=steps, more=f"{pace(step, steps)}{_loss(loss)}")

        yield report


@contextmanager
def progress_bars(*units: str) -> Iterator[list[Progress]]:
    """A bar for each of several things done in turn: it is shown from its first report to another's."""
    with ExitStack() as there:
        begun: dict[str, Progress] = {}

        def report(unit: str, step: int, steps: int, loss: float | None) -> None:
            if unit not in begun:
                there.close()
                begun[unit] = there.enter_context(progress_bar(unit))
            begun[unit](step, steps, loss)

        yield [partial(report, unit) for unit in units]


@contextmanager
def counted(unit: str, total: int) -> Iterator[Callable[[], None]]:
    """Progress through so many things that are no steps of a run: what it gives is called after each."""
    done = count(1)
    with progress_bar(unit) as report:
        yield lambda: report(next(done), total, None)


def reading(file: BinaryIO, size: int, name: str) -> AbstractContextManager[BinaryIO]:
    """The file, to be read under a bar with its bytes and time left, on stderr where that is a terminal."""
    from rich.progress import wrap_file

    console, hidden = Console(stderr=True, highlight=False), not sys.stderr.isatty()
    return wrap_file(file, size, description=name, console=console, transient=True, disable=hidden)


class _Pace:
    """Rate and time left, in words, from the first report on: compiling, say, went before it."""

    def __init__(self, unit: str) -> None:
        self._unit, self._began = unit, time.monotonic()
        self.first: tuple[int, float] | None = None

    def __call__(self, step: int, steps: int) -> str:
        now = time.monotonic()
        if self.first is None:
            self.first = step, now
            return f"after {duration(now - self._began)}"
        taken, seconds = step - self.first[0], now - self.first[1]
        if taken <= 0 or seconds <= 0:
            return ""
        speed = taken / seconds
        return f"{rate(speed, self._unit)}, {duration((steps - step) / speed)} left"


def _lines(unit: str) -> Progress:
    """A line at the first report, where it took long, and then now and then."""
    pace, due = _Pace(unit), time.monotonic() + _SLOW_START

    def report(step: int, steps: int, loss: float | None) -> None:
        nonlocal due
        now, begins = time.monotonic(), pace.first is None
        told = pace(step, steps)
        if now >= due and told:
            print(f"{unit} {step:,} of {steps:,}, {told}{_loss(loss)}", file=sys.stderr, flush=True)
        if now >= due or begins:
            due = now + _SECONDS_BETWEEN_LINES

    return report


def _loss(loss: float | None) -> str:
    return "" if loss is None else f", loss {loss:.5g}"

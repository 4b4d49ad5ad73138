"""One file over the network: into NAME.part, taken up again where it broke, renamed when it is whole."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

Say = Callable[[str], None]
"""Takes a line meant for people."""

_Report = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes of the whole, where the server tells them."""

_CHUNK = 1 << 16
_SECONDS_BETWEEN_LINES = 10


class DownloadError(Exception):
    """A file that cannot be had from here: who answered what, in a phrase."""


class _Broken(Exception):
    """The connection failed; what came through is kept."""


def download(url: str, target: Path, say: Say, *, timeout: float = 20, pause: float = 1) -> None:
    """Puts the file at `url` into `target`, going on from what an earlier attempt left in NAME.part.

    A broken connection is taken up again for as long as every attempt brings more bytes. Whether they are
    the right ones is for the caller to check.

    Raises:
        DownloadError: the server cannot be reached, refuses, or goes silent.
        OSError: the disk does not take the file.
    """
    part = target.with_name(f"{target.name}.part")
    with _progress(target.name, say) as report:
        while True:
            before = _size(part)
            try:
                _append(url, part, report, timeout)
                break
            except _Broken as broken:
                if _size(part) <= before:
                    raise DownloadError(f"{urlsplit(url).hostname}: {broken}") from None
                say(f"{target.name}: {broken} after {_size(part):,} bytes; going on from there")
            time.sleep(pause)
    os.replace(part, target)


def _append(url: str, part: Path, report: _Report, timeout: float) -> None:
    """One connection: appends to `part` what it lacks; raises _Broken where that was not all of it."""
    have = _size(part)
    headers = {"User-Agent": "sdeflow"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        with error:
            if error.code != 416 or not have:  # 416: there is nothing from `have` on
                raise DownloadError(
                    f"{urlsplit(url).hostname} answered {error.code} {error.reason}"
                ) from None
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return None
        part.unlink()
        return _append(url, part, report, timeout)
    except (OSError, HTTPException) as error:
        raise _Broken(_reason(error)) from None
    with response:
        resumed = response.status == 206
        span, _, whole = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if resumed and span.partition("-")[0] != str(have):
            part.unlink()
            return _append(url, part, report, timeout)
        length = whole if resumed else response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        with part.open("ab" if resumed else "wb") as out:
            for chunk in _chunks(response):
                out.write(chunk)
                report(out.tell(), total)
    if total is not None and _size(part) < total:
        raise _Broken("the connection broke")
    return None


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, HTTPException) as error:
            raise _Broken(_reason(error)) from None
        if not chunk:
            return
        yield chunk


def _reason(error: Exception) -> str:
    cause = error.reason if isinstance(error, URLError) else error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _progress(name: str, say: Say) -> Iterator[_Report]:
    """On stderr, a bar with bytes, speed and time left; where that is no terminal, a line now and then."""
    if not sys.stderr.isatty():
        yield _lines(name, say)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(name: str, say: Say) -> _Report:
    last: float | None = None

    def report(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if last is None or now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            say(f"{name}: {done / 1e6:,.1f} MB" + (f" of {total / 1e6:,.1f} MB" if total else ""))

    return report

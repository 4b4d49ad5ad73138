"""The command that draws a run: plot, into a figure or a page, or served while the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated

import typer

from sdeflow.cli import app as cli
from sdeflow.cli.app import app, names_in
from sdeflow.errors import SdeflowError
from sdeflow.terminal import shown

if TYPE_CHECKING:
    from xarray import Dataset

HOST, PORT, REFRESH = "127.0.0.1", 8765, 5
"""Where a page is served, to this machine alone, and the seconds after which a browser asks for it again."""


@app.command()
def plot(
    folder: cli.RunArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="PNG, SVG or PDF, or a page (default: RUN/plot.png or RUN/plot.html)."),
    ] = None,
    page: Annotated[bool, typer.Option("--html", help="A page of one file in place of a figure.")] = False,
    data: Annotated[
        str | None, typer.Option(help="Whose particles are drawn: indices, separated by commas.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Serve the page on this machine, drawn anew as the run goes on."),
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help=f"Of --follow (default: {PORT}); 0 for a free one.")
    ] = None,
) -> None:
    """Draw a run, also while it goes on: parameters, losses, energies, forces, and particles of some data."""
    from sdeflow.trajectory.opening import open_run

    some = None if data is None else _indices(data)
    if follow:
        if out is not None or page:
            raise SdeflowError("--follow serves a page and writes no file: leave out --out and --html")
        serve(Followed(folder, some), PORT if port is None else port)
        return
    if port is not None:
        raise SdeflowError("--port is that of --follow: give --follow too")
    target = out or folder / ("plot.html" if page else "plot.png")
    with open_run(folder) as run:
        drawn = _page(run, some) if page else _figure(run, some, target)
    from sdeflow.trajectory.durable import write

    write(target, drawn)
    typer.echo(shown(str(target)))


def _page(run: Dataset, data: Sequence[int] | None) -> bytes:
    from sdeflow.analysis.comparison.run_page import page

    return page(run, data).encode()


def _figure(run: Dataset, data: Sequence[int] | None, target: Path) -> bytes:
    """The file of a figure, of the kind that its name says."""
    import io

    from sdeflow.analysis.course import figure

    drawn, kind = figure(run, data), target.suffix.removeprefix(".").lower()
    known = drawn.canvas.get_supported_filetypes()
    if kind not in known:
        raise SdeflowError(f"{target} does not end as a figure does: give .png, .svg or .pdf, or --html")
    buffer = io.BytesIO()
    drawn.savefig(buffer, format=kind, dpi=150)
    return buffer.getvalue()


def _indices(listed: str) -> list[int]:
    try:
        return [int(index) for index in names_in(listed)]
    except ValueError:
        raise SdeflowError(f"--data takes indices separated by commas, as 0,5,9; given '{listed}'") from None


class Followed:
    """The page of a run that goes on, drawn where its files have changed."""

    def __init__(self, folder: Path, data: Sequence[int] | None) -> None:
        self.folder, self._data = folder, data
        self._lock, self._files, self._text = Lock(), list[int](), ""
        self.text()

    def text(self) -> str:
        """The page as it is now; raises SdeflowError as `open_run` and for data that were not saved."""
        from sdeflow.analysis.comparison.run_page import RUNNING, page
        from sdeflow.trajectory.layout import CHECKPOINT, TRAJECTORY
        from sdeflow.trajectory.opening import open_run

        with self._lock:
            files = [_written(self.folder / name) for name in (TRAJECTORY, CHECKPOINT)]
            if files != self._files:
                with open_run(self.folder) as run:
                    going_on = run.attrs["retcode"] == RUNNING
                    self._text = page(run, self._data, REFRESH if going_on else 0)
                self._files = files
            return self._text


def _written(path: Path) -> int:
    """When a file was written; 0 where it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def server_of(followed: Followed, port: int) -> ThreadingHTTPServer:
    """What serves the page to this machine; raises SdeflowError where the port is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/":
                self.send_error(404)
                return
            try:
                text = followed.text()
            except SdeflowError as error:  # of a run that was removed, say: it may be there again
                self.send_error(503, explain=str(error))
                return
            with suppress(ConnectionError):  # of a browser that has gone
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Nothing: the terminal has the address alone."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise SdeflowError(f"port {port} cannot be had, {error.strerror}: give another --port") from error


def serve(followed: Followed, port: int) -> None:
    """Serves the page until Ctrl-C."""
    with server_of(followed, port) as server:
        typer.echo(f"http://{HOST}:{server.server_port}/ shows {followed.folder}; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo(f"{followed.folder} is no longer shown; a run that goes on is not touched by that")

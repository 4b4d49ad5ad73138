"""The page of a run, served to this machine while the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

import typer

from sdeflow.errors import SdeflowError

HOST, REFRESH = "127.0.0.1", 5
"""Where it is served, to this machine alone, and the seconds after which a browser asks for it again."""


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

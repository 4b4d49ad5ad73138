"""The `sdeflow` command: signals, warnings and errors, and the commands."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import traceback
import warnings

import typer

from sdeflow.cli import commands, comparisons, plots, starting, sweeps, telling, tuning  # noqa: F401 (their commands join the app)
from sdeflow.cli.app import app
from sdeflow.errors import Elsewhere, SdeflowError
from sdeflow.terminal import STOP_SIGNALS, shown


def main() -> None:
    """The `sdeflow` command."""
    # Threads that spin while they wait make a step 20 times slower where another process has a core too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Before and after the time loop, which has its own way to end, other requests are taken like Ctrl-C.
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):  # a terminal in ASCII gets '?' for a Greek letter
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    warnings.showwarning = _warn
    try:
        app(prog_name="sdeflow")  # by which a shell completes it, also as python -m sdeflow
    except SdeflowError as error:
        rank = os.environ.get("RANK", "0")
        if not isinstance(error, Elsewhere):
            typer.echo(shown(f"sdeflow{f', process {rank}' * (rank != '0')}: {error}"), err=True)
        sys.exit(error.exit_code)
    except ImportError as error:  # of a dask, say, that lacks what it needs: xarray loads it where it is
        asking = traceback.extract_tb(error.__traceback__)[-1].filename
        typer.echo(f"sdeflow: {error}, which {asking} asks for: install what it needs or remove it", err=True)
        sys.exit(1)
    except OSError as error:  # of what is printed: what is written to files has errors of its own
        if error.errno != errno.ENOSPC:
            raise
        typer.echo("sdeflow: the output could not be written: no space left on its device", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing more is tried at exit
        sys.exit(1)


def _warn(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """A line; not of NumPy's arithmetic, whose overflow is told in words as what it does to the run."""
    if not issubclass(category, RuntimeWarning):
        typer.echo(shown(f"warning: {message}"), err=True)

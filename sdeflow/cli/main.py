"""The `sdeflow` command: signals, warnings and errors, and the commands."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings

import typer

from sdeflow.cli import commands, comparisons  # noqa: F401 (their commands join the app)
from sdeflow.cli.app import app
from sdeflow.errors import SdeflowError


def main() -> None:
    """The `sdeflow` command."""
    # Threads that spin while they wait make a step 20 times slower where another process has a core too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Before and after the time loop, which has its own way to end, SIGTERM is taken like Ctrl-C.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.showwarning = lambda message, *_, **__: typer.echo(f"warning: {message}", err=True)
    try:
        app()
    except SdeflowError as error:
        typer.echo(f"sdeflow: {error}", err=True)
        sys.exit(error.exit_code)

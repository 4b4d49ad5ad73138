"""Commands, scripts and programs as somebody would start them, and what they leave in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from sdeflow.cli import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Result]
"""What the fixture `cli` gives: the command line, with what it prints."""


def exit_code(entry: Callable[[], object], *arguments: object) -> int:
    """Of a script's `main` with the arguments, in this process; 0 where it returns."""
    argv, sys.argv = sys.argv, ["sdeflow", *map(str, arguments)]
    try:
        entry()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    finally:
        sys.argv = argv
    return 0


def command(*arguments: object) -> int:
    """The exit code of the command line in this process."""

    def ended() -> None:
        main()
        pytest.fail("the command line did not exit")

    return exit_code(ended, *arguments)


def program(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own."""
    call = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(call, env=os.environ | environment, capture_output=True, text=True, check=False)


def numbers(code: str, **environment: str) -> list[float]:
    """What a program prints, which must end well."""
    done = program(code, **environment)
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

"""Settings and fixtures for all tests: one thread of torch and of BLAS, since every system here is small."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.linalg  # noqa: F401  its BLAS must be there to be told
import tomli_w
import torch
from commands import Cli, Result, command
from threadpoolctl import threadpool_limits
from valid import VALID, Refused

from sdeflow.cli import main

os.environ["SDEFLOW_OFFLINE"] = "1"  # no test fetches data by itself
os.environ["SDEFLOW_KEPT_STEPS"] = "0"  # and none compiles beside a run, or depends on what another did
torch.set_num_threads(1)
threadpool_limits(1)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Calls the command in this process."""
    return lambda *arguments: Result(command(*arguments), *capsys.readouterr())


@pytest.fixture
def stop_before(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Makes runs stop before step n, as Ctrl-C in the middle of a step does; None for no longer."""
    from sdeflow.simulation.prepare import Prepared

    at: list[int | None] = [None]
    move = Prepared._move

    def stopping(ready: Prepared, *arguments: Any) -> None:
        move(ready, *arguments)
        step = ready.stepper

        class Stopping:
            stride = 1

            def __call__(self, z: Any, n: int, count: int = 1) -> Any:
                if n == at[0]:
                    raise KeyboardInterrupt
                return step(z, n, count)

        ready.stepper = Stopping()

    monkeypatch.setattr(Prepared, "_move", stopping)

    def set_to(n: int | None) -> None:
        at[0] = n

    return set_to


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Calls `sdeflow run` in this process; gives the sentence on stderr after all that must hold of it."""
    monkeypatch.chdir(tmp_path)

    def call(*options: object, problem: str = "problem.toml", files: dict[str, str] | None = None) -> str:
        for name, text in ({"problem.toml": tomli_w.dumps(VALID)} | (files or {})).items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        monkeypatch.setattr(sys, "argv", ["sdeflow", "run", problem, *map(str, options)])
        with pytest.raises(SystemExit) as ending:
            main()
        out, err = capsys.readouterr()
        assert ending.value.code == 2, err
        assert out == ""
        assert err.startswith("sdeflow: ")
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".pyc"}
        assert after == before
        return err

    return call

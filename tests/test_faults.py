"""Runs that are killed, run out of disk or find a byte flipped lose nothing; the harness in short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def report(faults: int, folder: Path) -> dict[str, Any]:
    """What the harness found, in a process of its own, which has one thread when it forks."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("faults.py")),
        "--faults",
        str(faults),
        "--seed",
        "0",
    ]
    done = subprocess.run([*command, "--folder", str(folder)], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert (found["steps lost"], found["bytes differing"]) == (0, 0)
    assert done.returncode == 0
    assert found["slowest stop, s"] < 5  # two seconds of patience, and a busy machine
    return found


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks")


@forks
def test_a_few_faults_lose_nothing(tmp_path: Path) -> None:
    found = report(15, tmp_path)
    assert found["kill"] >= 3
    assert found["resumptions"] >= 10
    assert found["bytes compared"] > 10_000


@forks
@pytest.mark.slow
def test_no_fault_loses_an_acknowledged_step_or_changes_a_bit(tmp_path: Path) -> None:
    found = report(150, tmp_path)
    assert found["kill"] >= 40
    assert found["kill"] + found["sudden"] >= 50  # a kill at a random moment may find the run ended
    assert found["resumptions"] >= 100
    assert found["bytes compared"] > 100_000
    assert found["full"] >= 5
    assert found["limit"] >= 5
    assert found["refused by name"] >= 2

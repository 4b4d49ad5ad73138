"""Runs that are killed, run out of disk or find a byte flipped lose nothing; the harness in short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="the harness forks")
def test_no_fault_loses_an_acknowledged_step_or_changes_a_bit(tmp_path: Path) -> None:
    """In a process of its own, which has one thread when it forks."""
    command = [sys.executable, str(Path(__file__).with_name("faults.py")), "--faults", "150", "--seed", "0"]
    done = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert (report["steps lost"], report["bytes differing"]) == (0, 0)
    assert done.returncode == 0
    assert report["kill"] >= 40
    assert report["kill"] + report["sudden"] >= 50  # a kill at a random moment may find the run ended
    assert report["resumptions"] >= 100
    assert report["bytes compared"] > 100_000
    assert report["full"] >= 5
    assert report["limit"] >= 5
    assert report["refused by name"] >= 2
    assert report["slowest stop, s"] < 5  # two seconds of patience, and a busy machine

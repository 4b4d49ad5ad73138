"""The command that accepts a device, with the CPU in its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import needs_kernel

SCRIPT = Path(__file__).with_name("accept.py")

pytestmark = needs_kernel


def accept(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--cpu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_a_cpu_passes_in_the_place_of_a_device(tmp_path: Path) -> None:
    done = accept("--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "accepted.json").read_text())
    assert all(one["passed"] for part in ("checks", "speeds") for one in found[part].values())
    assert {"catalogue, float64", "graphs", "resuming"} <= set(found["checks"])


WRONG = """
import runpy, sys
sys.path.insert(0, {folder!r})
sys.argv = ["accept.py", "--cpu", "--only", "kernels"]
import stand_in
right = stand_in.CountingKernel.normals
def wrong(self, out, draw, apart=1):
    right(self, out, draw, apart)
    out *= 1 + 1e-5
stand_in.CountingKernel.normals = wrong
runpy.run_path({script!r}, run_name="__main__")
"""


def test_a_wrong_kernel_is_found() -> None:
    """One whose normals are a hundred roundings of float32 off."""
    script = WRONG.format(folder=str(SCRIPT.parent), script=str(SCRIPT))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "FAIL kernels" in done.stdout
    assert "failed: kernels" in done.stdout

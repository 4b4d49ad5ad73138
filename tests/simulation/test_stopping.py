"""Processes that are asked to stop: they checkpoint, say so, and end within seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from commands import command
from safetensors.torch import load_file
from small import assert_same

from sdeflow import Save, SDESystem, open_run, simulate
from sdeflow.errors import Interrupted
from sdeflow.trajectory import checkpoint

OTHERS = [signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)]
)
def test_a_request_to_stop(tmp_path: Path, number: int) -> None:
    """The process checkpoints, exits with 130 within seconds, and the run goes on to the same numbers."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    run = [
        sys.executable,
        "-m",
        "sdeflow",
        "run",
        "hierarchical",
        "-q",
        "--steps",
        "1000000",
        "--engine",
        "eager",  # a run of another length would choose another
        "--out",
        str(out),
    ]
    process = subprocess.Popen(run, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    asked = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - asked < 10
    assert err.startswith("interrupted: stopped after ")
    assert err.count("\n") == 1
    taken = checkpoint.peek(out / "checkpoint").step
    assert f"stopped after {taken} of 1000000 steps" in err
    assert f"interrupted: stopped after {taken}" in (out / "run.log").read_text()
    again = ("run", "hierarchical", "-q", "--steps", str(taken), "--engine", "eager", "--out", str(whole))
    assert command(*again) == 0
    last = load_file(whole / "final.safetensors")
    stopped = load_file(out / "final.safetensors")
    assert all(torch.equal(last[name], stopped[name]) for name in last)


HANGS = """
import os, time
from sdeflow.integrators.euler_maruyama import EulerMaruyama

class Hangs(EulerMaruyama):
    def step(self, *arguments):
        time.sleep(60 if os.path.exists("hang") else 0)
        return super().step(*arguments)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_run_killed_in_its_first_step_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is there before that step, with the start; the numbers are those of a run in one piece."""
    monkeypatch.chdir(tmp_path)
    Path("hangs.py").write_text(HANGS)
    Path("hang").touch()
    run = ["run", "hierarchical", "-q", "--steps", "20", "--integrator", "hangs.py:Hangs", "--out"]
    process = subprocess.Popen([sys.executable, "-m", "sdeflow", *run, "run"])
    deadline = time.monotonic() + 50
    while not Path("run").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    with open_run("run") as begun:
        assert begun.step.values.tolist() == [0]
        assert (begun.attrs["retcode"], begun.attrs["steps_taken"]) == ("running", 0)
    Path("hang").unlink()
    assert command("resume", "run", "-q") == 0
    assert command(*run, "whole") == 0
    assert_same(open_run("run"), open_run("whole"))
    names = {"hang", "hangs.py", "run", "whole", "__pycache__"}
    assert {path.name for path in Path().iterdir()} <= names


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_step_that_takes_long_is_cut_short(tmp_path: Path) -> None:
    """A step of a minute is not waited for; the steps before it are kept."""
    (tmp_path / "slow.py").write_text(
        "import time\n\n"
        "class Slow:\n"
        "    calls = 0\n\n"
        "    def drift(self, t, x):\n"
        "        Slow.calls += 1\n"
        "        time.sleep(60 if t > 0.045 else 0)\n"
        "        return -x\n\n"
        "    def diffusion(self, t, x):\n"
        "        return 1.0\n"
    )
    (tmp_path / "slow.toml").write_text(
        '[system]\nuse = "slow.py:Slow"\nh = 0.01\n[run]\nintegrator = "euler_maruyama"\nsteps = 50\n'
        "[save]\nevery = 2\ncheckpoint = 0.0\n"
    )
    out = tmp_path / "run"
    run = [sys.executable, "-m", "sdeflow", "run", str(tmp_path / "slow.toml"), "-q", "--out", str(out)]
    process = subprocess.Popen(run, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=50)
    assert process.returncode == 130, err
    assert 1 < time.monotonic() - asked < 10
    assert checkpoint.peek(out / "checkpoint").step == 5
    with xr.open_dataset(out / "trajectory.nc") as dataset:
        assert dataset.step.values.tolist() == [0, 2, 4]


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, *OTHERS])
def test_a_run_in_memory_gives_what_was_recorded(number: int) -> None:
    """Asked to stop in its sixth step; the snapshots until then are those of a run that nobody asked."""

    class Asks:
        asked = False

        def drift(self, t: float, x: torch.Tensor) -> torch.Tensor:
            if t > 0.055 and not self.asked:
                self.asked = True
                os.kill(os.getpid(), number)
            return -x

        def diffusion(self, t: float, x: torch.Tensor) -> float:
            return 1.0

    options = {"save": Save(every=1), "noise": "torch"}
    with pytest.raises(Interrupted, match=r"stopped after .* of 1000000 steps") as stopped:
        simulate(SDESystem(Asks(), h=0.01), "euler_maruyama", steps=1_000_000, **options)
    found = stopped.value.dataset
    assert found.attrs["retcode"] == "interrupted"
    assert 6 <= found.step[-1] < 1_000_000
    quiet = Asks()
    quiet.asked = True
    alone = simulate(SDESystem(quiet, h=0.01), "euler_maruyama", steps=int(found.step[-1]), **options)
    np.testing.assert_array_equal(found.X, alone.X)

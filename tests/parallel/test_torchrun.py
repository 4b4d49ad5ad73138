"""`torchrun -m sdeflow`: the commands, and what they do where a process fails, is killed or asked to stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import command
from support import needs_kernel

from sdeflow.trajectory import checkpoint

pytestmark = needs_kernel

TESTS = Path(__file__).parent.parent
NUMBERS = {"h": 0.01, "eta": 100, "gamma": 0.1}
MOTION = [f"--set=system.{block}.{name}={v}" for block in ("theta", "x") for name, v in NUMBERS.items()]
HALF = """
import sdeflow
from sdeflow.problems.hierarchical import Hierarchical

class Half(Hierarchical):
    score_x = score_theta = None

    def __init__(self, data, theta_true, data_seed):
        super().__init__(data=data, theta_true=theta_true, data_seed=data_seed)
        self.last = self.data[-1]

    def log_joint(self, theta, x, y):
        if y[-1] == self.last and self.fails:
            raise ValueError("the last datum")
        return super().log_joint(theta, x, y)

    fails = False

class Late(Half):
    calls = 0

    def log_joint(self, theta, x, y):
        self.calls += 1
        self.fails = self.calls > 100
        return super().log_joint(theta, x, y)
"""


def started(size: int, *arguments: object, restarts: int = 0) -> subprocess.Popen[str]:
    options = ["--nproc-per-node", str(size), "--max-restarts", str(restarts)]
    call = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "sdeflow", *map(str, arguments)]
    return subprocess.Popen(
        call,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(size: int, *arguments: object) -> tuple[int, str, str]:
    """The exit code of torchrun, and what was printed."""
    process = started(size, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def toy(folder: Path, *more: object, steps: int = 200) -> list[object]:
    return ["run", "hierarchical", "--out", folder, "--steps", steps, "--dtype", "float64", *MOTION, *more]


def wait_for(path: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.02)


def test_a_run_and_its_resumption_on_one_process(tmp_path: Path) -> None:
    """A run of 3 processes is gone on with by one, and is that of one process up to rounding."""
    code, _, err = torchrun(3, *toy(tmp_path / "shared", "--set=batch.size=20", "--set=parallel.strata=10"))
    assert code == 1
    assert "3 processes cannot share parallel.strata = 10 evenly" in err
    assert err.count("sdeflow:") == 1, "told once"
    code, out, err = torchrun(3, *toy(tmp_path / "shared"))
    assert (code, out.count("200 steps in")) == (0, 1), err
    meta, common = checkpoint.decode(tmp_path / "shared/checkpoint")
    assert len(meta.shards) == 3
    assert not common.keys() & {"X", "U"}, "no process had all of them"
    assert command("resume", tmp_path / "shared", "--steps", 50, "--quiet") == 0
    assert command(*toy(tmp_path / "whole", "--quiet", steps=250)) == 0
    with xr.open_dataset(tmp_path / "shared/trajectory.nc") as shared:
        with xr.open_dataset(tmp_path / "whole/trajectory.nc") as whole:
            for name in whole.data_vars:
                most = float(np.abs(whole[name]).max())
                np.testing.assert_allclose(shared[name], whole[name], rtol=0, atol=1e-11 * most, err_msg=name)
        assert "processes was 3 and is 1" in shared.attrs["warnings"]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "words"), [("Half", "fails"), ("Late", "the run failed after step")])
def test_a_model_that_fails_in_one_process_ends_all(model: str, words: str, tmp_path: Path) -> None:
    text = HALF.replace("fails = False", "fails = True") if model == "Half" else HALF
    (tmp_path / "half.py").write_text(text)
    given = ["--set", f"model.use={tmp_path / 'half.py'}:{model}"]
    began = time.monotonic()
    code, _, err = torchrun(2, *toy(tmp_path / "out", *given, steps=5000))
    assert code == 1
    assert time.monotonic() - began < 60
    assert re.search(rf"sdeflow, process 1: .*{words}", err), err[-3000:]
    assert "the last datum" in err
    assert "Traceback" not in err.partition("torch/distributed")[0]


@pytest.mark.slow
def test_a_run_that_fails_at_once_replaces_no_other(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(HALF.replace("calls > 100", "calls > 5"))
    out = tmp_path / "out"
    assert command(*toy(out, "--quiet", steps=20)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    code, _, err = torchrun(2, *toy(out, "--overwrite", "--set", f"model.use={tmp_path / 'half.py'}:Late"))
    assert (code, "ExpInt.step fails with ValueError: the last datum" in err) == (1, True), err[-2000:]
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"half.py", "out"}, "nothing half-written"


@pytest.mark.slow
def test_a_callback_stops_all_processes(tmp_path: Path) -> None:
    """The process that leads has the callback, and all stop together."""
    folder, stopping = tmp_path / "out", {"observable": "loss", "patience": 1, "min_delta": 1e9}
    stops = [f"--set=callbacks.early_stopping.{name}={value}" for name, value in stopping.items()]
    code, _, err = torchrun(2, *toy(folder, *stops))
    assert (code, err.count("stopped:")) == (0, 1), err[-2000:]
    code, _, err = torchrun(2, "resume", folder, "--steps", 100)  # which it is still to stop
    assert (code, err.count("stopped:")) == (0, 1), err[-2000:]


@pytest.mark.slow
def test_a_run_that_diverges_is_told_once(tmp_path: Path) -> None:
    code, _, err = torchrun(2, *toy(tmp_path / "out", "--set=system.theta.h=30"))
    assert (code, err.count("diverged:")) == (1, 1)
    with xr.open_dataset(tmp_path / "out/trajectory.nc") as found:
        assert found.attrs["retcode"] == "diverged"


@pytest.mark.slow
def test_all_stop_after_the_same_step_and_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = started(2, *toy(folder, "--set=save.checkpoint=0", steps=90_000))
    wait_for(folder / "checkpoint")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "interrupted: stopped after" in err
    found = re.search(r"stopped after (\d+) of", err)
    assert found
    assert checkpoint.peek(folder / "checkpoint").step == int(found[1])


@pytest.mark.slow
def test_torchrun_starts_a_killed_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = started(2, *toy(folder, "--set=save.checkpoint=0", steps=3000), restarts=1)
    wait_for(folder / "segments/000002.nc")  # so that steps are acknowledged
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "another process of the run has ended" in err
    assert "3,000 steps in" in out
    assert "resumed at step" in (folder / "run.log").read_text()


@pytest.mark.slow
def test_a_restart_takes_up_no_run_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert command(*toy(folder, "--quiet", steps=5)) == 0
    process = started(2, *toy(folder, steps=50), restarts=1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.count("exists: give --overwrite") == 2, "once an attempt"
    assert checkpoint.peek(folder / "checkpoint").step == 5


def lost(kills: int) -> str:
    """What the harness says, in a process that has one thread when it forks."""
    call = [sys.executable, TESTS / "kills.py", "--kills", str(kills)]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_kills_lose_nothing() -> None:
    assert "no acknowledged step lost, none hung" in lost(4)

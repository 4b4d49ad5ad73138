"""Sweeps: runs of every combination of values, each the run that it is alone, taken once and lost never."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
from commands import Cli, command
from tiny import TINY

from sdeflow import SdeflowError, open_run, open_sweep
from sdeflow.sweep.axes import Axis, parted
from sdeflow.sweep.plan import Sweep
from sdeflow.trajectory.layout import LOCK

GAMMAS = Axis("system.theta.gamma", (0.1, 0.3))


def test_lists_and_ranges_are_axes_and_the_rest_is_of_all_runs() -> None:
    axes, rest = parted(
        [
            "system.x.h=[0.1, 0.2]",
            "run.seed=-1..2",
            "grid.gamma=[1.0]",
            "model.hidden=[[8], [8, 8]]",
            "run.steps=9",
        ]
    )
    assert axes == [
        Axis("system.x.h", (0.1, 0.2)),
        Axis("run.seed", (-1, 0, 1, 2)),
        Axis("model.hidden", ([8], [8, 8])),
    ]
    assert rest == ["grid.gamma=[1.0]", "run.steps=9"]
    (words,), _ = parted(["run.integrator=[baoab, torchsde:euler]"])  # as a shell leaves them
    assert words.values == ("baoab", "torchsde:euler")
    for wrong in ("run.seed=[]", "run.seed=[1, 1]", "run.seed=3..1"):
        with pytest.raises(SdeflowError, match="different values"):
            parted([wrong])


def test_no_value_is_left_out_and_no_folder_is_shared(tmp_path: Path) -> None:
    with pytest.raises(SdeflowError, match="at most 10,000 values"):
        parted(["run.seed=0..10000"])
    assert len(parted(["run.seed=1..10000"])[0][0].values) == 10_000
    with pytest.raises(SdeflowError, match="must differ in their letters and digits"):
        Sweep(tmp_path / "s", TINY, [Axis("title", ("a b", "a:b"))]).begin()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("system.theta.gamma", "gamma_theta"),
        ("system.theta.optimizer.name", "optimizer_name_theta"),
        ("system.particles", "particles"),
        ("system.use", "system"),
        ("model.use", "model"),
        ("run.seed", "seed"),
        ("model.sigma", "sigma"),
        ("batch.size", "batch_size"),
    ],
)
def test_names_of_dimensions(key: str, name: str) -> None:
    assert Axis(key, (1,)).name == name


def test_a_folder_has_one_sweep_which_may_get_more_values(tmp_path: Path) -> None:
    Sweep(tmp_path / "s", TINY, [GAMMAS]).begin()
    more = Sweep(tmp_path / "s", TINY, [Axis(GAMMAS.key, (0.5, 0.1))]).begin()
    assert more.axes[0].values == (0.1, 0.3, 0.5)
    again = Sweep.open(tmp_path / "s")
    assert (again.axes, [p.folder.name for p in again.points]) == (
        more.axes,
        ["gamma_theta=0.1", "gamma_theta=0.3", "gamma_theta=0.5"],
    )
    assert [p.config.system.arguments["theta"] for p in again.points] == [
        {"h": 1e-3, "gamma": gamma} for gamma in (0.1, 0.3, 0.5)
    ]
    with pytest.raises(SdeflowError, match=r"is a sweep over system\.theta\.gamma, given run\.seed"):
        Sweep(tmp_path / "s", TINY, [Axis("run.seed", (1,))]).begin()
    with pytest.raises(SdeflowError, match="is a sweep of another problem"):
        Sweep(tmp_path / "s", TINY.replace("data = 3\n[sys", "data = 4\n[sys"), [GAMMAS]).begin()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(SdeflowError, match="exists and is no sweep"):
        Sweep(tmp_path / "other", TINY, [GAMMAS]).begin()
    with pytest.raises(SdeflowError, match=r"'run\.seed'.*given 'x'"):
        Sweep(tmp_path / "new", TINY, [Axis("run.seed", (1, "x"))]).begin()
    assert not (tmp_path / "new").exists()
    with pytest.raises(SdeflowError, match="names of their own"):
        Sweep(tmp_path / "new", TINY, [Axis("run.sigma", (1,)), Axis("model.sigma", (1,))])


@pytest.mark.slow
def test_each_run_is_the_run_alone_and_is_taken_once(here: Path, cli: Cli) -> None:
    """To the bit; what has ended is left alone, and what failed is told."""
    sets = ["--set", "run.seed=0..1", "--set", "system.x.h=[0.01, -1.0]", "--out", "s"]
    code, out, err = cli("sweep", "tiny.toml", *sets, "--jobs", 2)
    assert code == 1
    assert err.count("h_x=-1.0: failed: sdeflow: ") == 2, err
    assert out.count("success") == 2
    assert out.count("waiting") == 2
    for seed in (0, 1):
        assert (
            cli(
                "run", "tiny.toml", "--seed", seed, "--set", "system.x.h=0.01", "--out", f"r{seed}", "-q"
            ).code
            == 0
        )
    with open_sweep("s") as runs:
        assert runs.loss.dims == ("seed", "h_x", "time")
        for seed in (0, 1):
            with open_run(f"r{seed}") as one:
                np.testing.assert_array_equal(runs.X.sel(seed=seed, h_x=0.01), one.X)
                np.testing.assert_array_equal(runs.loss.sel(seed=seed, h_x=0.01), one.loss)
        assert bool(runs.loss.sel(h_x=-1.0).isnull().all())
        assert runs.state.sel(h_x=-1.0).values.tolist() == ["waiting"] * 2
    files = {path: path.stat().st_mtime_ns for path in Path("s").rglob("trajectory.nc")}
    assert cli("sweep", "s", "-q").code == 1
    assert {path: path.stat().st_mtime_ns for path in Path("s").rglob("trajectory.nc")} == files


@pytest.mark.slow
def test_runs_on_other_clocks_have_steps_as_dimension(here: Path, cli: Cli) -> None:
    sets = ["--set", "system.theta.h=[0.001, 0.002]", "--set", "run.steps=[4, 8]", "--out", "s", "-q"]
    assert cli("sweep", "tiny.toml", *sets).code == 0
    with open_sweep("s") as runs:
        assert runs.loss.dims == ("h_theta", "steps", "step")
        assert runs.step.values.tolist() == [0, 2, 4, 6, 8]
        np.testing.assert_allclose(runs.time.sel(h_theta=0.002, steps=8), [0, 0.004, 0.008, 0.012, 0.016])
        assert runs.loss.sel(steps=4).notnull().sum("step").values.tolist() == [3, 3]
        assert runs.loss.sel(steps=8).notnull().sum("step").values.tolist() == [5, 5]


def test_runs_that_would_write_to_one_file_are_refused(here: Path, cli: Cli) -> None:
    sets = ["--set", "run.seed=0..1", "--set", "callbacks.csv.path=log.csv", "--out", "s"]
    code, _, err = cli("sweep", "tiny.toml", *sets)
    assert code == 2
    assert "callbacks.csv.path is " in err
    assert "write over each other: leave it out" in err
    assert not Path("s").exists()
    Sweep(here / "s", TINY + "[callbacks.csv]", [Axis("run.seed", (0, 1))]).begin()


def test_two_sweeps_on_one_folder_are_told_apart(here: Path, cli: Cli) -> None:
    sets = ["--set", "run.seed=0..1", "--out", "s"]
    Sweep(Path("s"), TINY, [Axis("run.seed", (0, 1))]).begin()
    with filelock.FileLock(Path("s") / LOCK):
        code, _, err = cli("sweep", "s")
    assert code != 0
    assert "another sweep is at work in s: wait for it, or give another --out" in err
    code, _, err = cli("sweep", "s", *sets)
    assert code == 2
    assert "s is a sweep, which has its settings: remove out, settings" in err
    code, _, err = cli("sweep", "tiny.toml", "--set", "run.seed=0..1")
    assert "give --out" in err
    with pytest.raises(SdeflowError, match="no run of the sweep s has begun"):
        open_sweep("s")
    with pytest.raises(SdeflowError, match=r"is no sweep: it has no sweep\.toml"):
        open_sweep(".")


LENGTH = "20000"
LONG = [
    "--set",
    "run.seed=0..2",
    "--set",
    "save.checkpoint=0.1",
    "--steps",
    LENGTH,
    "--set",
    "save.every=500",
]


def begun(*extra: str) -> subprocess.Popen[str]:
    """A sweep of three runs in a process of its own, two at a time, of which one is well on its way."""
    call = [sys.executable, "-m", "sdeflow", "sweep", "tiny.toml", *LONG, "--out", "s", "--jobs", "2", *extra]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until(lambda: (Path("s") / "seed=0" / "checkpoint.prev").exists())
    return process


def until(happens: object, seconds: float = 120) -> None:
    """Waits; fails where that does not happen."""
    end = time.monotonic() + seconds
    assert callable(happens)
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """The particles of the runs that nothing happens to, by seed."""
    folder, found = tmp_path_factory.mktemp("alone"), {}
    (folder / "tiny.toml").write_text(TINY)
    for seed in (0, 2):
        options = ["--steps", LENGTH, "--set", "save.every=500", "--seed", seed, "--out", folder / f"{seed}"]
        assert command("run", folder / "tiny.toml", *options, "-q") == 0
        with open_run(folder / f"{seed}") as run:
            found[seed] = run.X.load()
    return found


def equal_to_the_runs_alone(alone: dict[int, Any]) -> None:
    with open_sweep("s") as runs:
        assert runs.state.values.tolist() == ["success"] * 3
        for seed, expected in alone.items():
            np.testing.assert_array_equal(runs.X.sel(seed=seed), expected)


@pytest.mark.slow
def test_a_sweep_that_is_interrupted_goes_on(here: Path, cli: Cli, alone: dict[int, Any]) -> None:
    process = begun()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped; to go on: sdeflow sweep s" in err
    assert [p.state for p in Sweep.open(Path("s")).points][2] == "waiting"
    assert "interrupted" in [p.state for p in Sweep.open(Path("s")).points]
    assert cli("sweep", "s", "-q", "--jobs", 2).code == 0
    equal_to_the_runs_alone(alone)


@pytest.mark.slow
def test_a_run_that_is_killed_takes_no_other_with_it(here: Path, cli: Cli, alone: dict[int, Any]) -> None:
    process = begun()
    killed = subprocess.run(["pkill", "-9", "-f", "--", f"--out {Path('s/seed=0').absolute()} "], check=False)
    assert killed.returncode == 0
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert err.count("seed=0: failed") == 1, err
    assert [p.state for p in Sweep.open(Path("s")).points] == ["interrupted", "success", "success"]
    assert cli("sweep", "s", "-q").code == 0
    equal_to_the_runs_alone(alone)


@pytest.mark.slow
def test_a_sweep_that_is_killed_leaves_runs_that_are_waited_for(
    here: Path, cli: Cli, alone: dict[int, Any]
) -> None:
    """Those that it has begun go on, and are not begun again."""
    process = begun()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert "running" in [p.state for p in Sweep.open(Path("s")).points]
    assert cli("sweep", "s", "-q", "--jobs", 2).code == 0
    for folder in ("seed=0", "seed=1"):
        assert "resumed" not in (Path("s") / folder / "run.log").read_text(encoding="utf-8")
    equal_to_the_runs_alone(alone)

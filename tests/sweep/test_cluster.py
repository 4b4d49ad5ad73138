"""The runs of a sweep as jobs of a SLURM cluster, which stand-ins for its commands play."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Cli
from tiny import TINY

from sdeflow import SdeflowError, open_run, open_sweep
from sdeflow.errors import RunError
from sdeflow.sweep.axes import Axis
from sdeflow.sweep.cluster import slurm_parameters, submit
from sdeflow.sweep.plan import Sweep
from sdeflow.trajectory import checkpoint

COMMANDS = {
    "sbatch": 'n=$(ls "$CLUSTER"/*.sh 2>/dev/null | wc -l); cp "$1" "$CLUSTER/471$n.sh"\n'
    'echo "Submitted batch job 471$n"',
    "squeue": 'echo "$@" > "$CLUSTER/asked"; cat "$CLUSTER/queue"',
    "scontrol": 'echo "$@" > "$CLUSTER/told"',
    "srun": 'echo $$ > "$CLUSTER/task"\n'
    'while :; do case $1 in --unbuffered) shift;; --output|--error) shift 2;; *) exec "$@";; esac; done',
}
"""What stands in for SLURM's: a job waits in $CLUSTER as a script, and the queue is a file of lines."""


@pytest.fixture
def slurm(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cluster beside tiny.toml; gives its folder."""
    pytest.importorskip("submitit")
    cluster, bin_ = here / "slurm", here / "bin"
    for folder in (cluster, bin_):
        folder.mkdir()
    for name, script in COMMANDS.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (bin_ / name).chmod(0o755)
    (cluster / "queue").touch()
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(cluster))
    return cluster


def queue(cluster: Path, *lines: str) -> None:
    (cluster / "queue").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def job(cluster: Path, number: int, index: int) -> subprocess.Popen[bytes]:
    """A task of an array, as the cluster would begin it."""
    given = {
        "SLURM_JOB_ID": str(number),
        "SLURM_ARRAY_JOB_ID": str(number),
        "SLURM_ARRAY_TASK_ID": str(index),
    }
    return subprocess.Popen(["bash", str(cluster / f"{number}.sh")], env=os.environ | given)


def test_parameters_are_those_of_submitit_and_options_of_sbatch() -> None:
    assert slurm_parameters(
        "partition=gpu, time=60,gpus=1,cpus=4,mem=16.5G,mail_user=a@b,exclusive=true"
    ) == {
        "timeout_min": 60,
        "gpus_per_node": 1,
        "cpus_per_task": 4,
        "mem_gb": 16.5,
        "slurm_additional_parameters": {"partition": "gpu", "mail-user": "a@b", "exclusive": True},
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("partition", r"takes key=value,.*given 'partition'"),
        ("time=60,=3", r"takes key=value,.*given '=3'"),
        ("time=60,a b=3", r"takes key=value,.*given 'a b=3'"),
        ("time=60,comment=a\nb", r"takes key=value"),
        ("time=1:00:00", r"time: a whole number of minutes was expected, given '1:00:00'"),
        ("time=60,gpus=0", r"gpus: a whole number was expected, given '0'"),
        ("time=60,mem=16MB", r"mem: a number of GB was expected, given '16MB'"),
        ("time=60,mem=0", r"mem: a number of GB was expected, given '0'"),
        ("time=60,ntasks_per_node=2", "ntasks_per_node: the sweep gives that itself"),
        ("partition=gpu", "needs time, the minutes"),
    ],
)
def test_what_is_no_parameter_is_refused(given: str, told: str) -> None:
    with pytest.raises(SdeflowError, match=told):
        slurm_parameters(given)


SWEEP = ["sweep", "tiny.toml", "--set", "run.seed=0..2", "--out", "s"]
ARRAY = ["--slurm", "partition=gpu,time=60,mem=2,account=me"]


def test_runs_are_one_array_and_are_submitted_once(slurm: Path, cli: Cli) -> None:
    code, out, err = cli(*SWEEP, *ARRAY, "--jobs", 2)
    assert (code, err) == (0, "")
    assert out == "3 runs submitted as job 4710; how they stand: sdeflow sweep s\n"
    script = (slurm / "4710.sh").read_text(encoding="utf-8").splitlines()
    for option in ("partition=gpu", "time=60", "mem=2GB", "account=me", "array=0-2%2", "job-name=s"):
        assert f"#SBATCH --{option}" in script
    queue(slurm, "4710_0 RUNNING", "4710_1 PENDING", "4710_2 PENDING", "99 RUNNING")
    code, out, err = cli("sweep", "s")
    assert (code, err) == (0, "")
    assert [row.split()[:2] for row in out.splitlines()[2:5]] == [
        ["0", "running"],
        ["1", "queued"],
        ["2", "queued"],
    ]
    assert "--array --user" in (slurm / "asked").read_text()
    code, out, _ = cli(*SWEEP, *ARRAY)
    assert (code, out) == (
        0,
        "nothing to submit: every run has ended or is in the queue; sdeflow sweep s tells\n",
    )
    assert sorted(path.name for path in slurm.glob("*.sh")) == ["4710.sh"]


def test_more_values_are_submitted_alone_and_what_failed_again(slurm: Path, cli: Cli) -> None:
    assert cli(*SWEEP, *ARRAY).code == 0
    queue(slurm, "4710_0 RUNNING", "4710_1 PENDING")  # 4710_2 has gone, and there is no run
    (Path("s") / "points" / "seed=2.log").write_text("a\nout of memory\n", encoding="utf-8")
    code, out, err = cli("sweep", "s")
    assert code == 1
    assert err == "seed=2: failed: out of memory\n"
    more = ["sweep", "tiny.toml", "--set", "run.seed=[0, 1, 2, 7]", "--out", "s"]
    code, out, err = cli(*more)  # tells of them, and takes none
    assert [row.split()[:2] for row in out.splitlines()[2:6]][-1] == ["7", "waiting"]
    assert not list(Path("s").glob("seed=*"))
    assert cli(*more, *ARRAY).out == "2 runs submitted as job 4711; how they stand: sdeflow sweep s\n"
    jobs = tomllib.loads(Path("s/cluster/jobs.toml").read_text())
    assert jobs == {"seed=0": "4710_0", "seed=1": "4710_1", "seed=2": "4711_0", "seed=7": "4711_1"}


def test_a_single_run_is_a_job_of_its_own(slurm: Path, cli: Cli) -> None:
    one = ["sweep", "tiny.toml", "--set", "run.seed=[5]", "--out", "s"]
    assert cli(*one, *ARRAY).out == "1 run submitted as job 4710; how they stand: sdeflow sweep s\n"
    queue(slurm, "4710 PENDING")
    assert "queued" in cli("sweep", "s").out


def test_where_the_queue_does_not_answer_nothing_is_submitted(slurm: Path, cli: Cli) -> None:
    assert cli(*SWEEP, *ARRAY).code == 0
    (slurm / "queue").unlink()
    code, out, _ = cli("sweep", "s")
    assert code == 0
    assert out.count("submitted") == 3
    code, _, err = cli(*SWEEP, *ARRAY)
    assert code == 1
    assert "squeue does not say which jobs of s there are" in err


def test_a_cluster_that_takes_no_jobs_is_told(slurm: Path, cli: Cli) -> None:
    sbatch = slurm.with_name("bin") / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
    code, _, err = cli(*SWEEP, *ARRAY)
    assert code == 1
    assert err == "sdeflow: the cluster takes no jobs: sbatch: error: invalid partition specified: gpu\n"
    (slurm.with_name("bin") / "srun").unlink()
    code, _, err = cli(*SWEEP, *ARRAY)
    assert code == 2
    assert "found no SLURM cluster" in err


def test_without_submitit_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    found = Sweep(tmp_path / "s", TINY, [Axis("run.seed", (0,))]).begin()
    with pytest.raises(SdeflowError, match=r'pip install "sdeflow\[cluster\]"'):
        submit(found, {"timeout_min": 1})


def equal_to_the_run_alone(cli: Cli, seed: int, *sets: object) -> None:
    assert cli("run", "tiny.toml", "--seed", seed, *sets, "--out", f"r{seed}", "-q").code == 0
    with open_sweep("s") as runs, open_run(f"r{seed}") as alone:
        np.testing.assert_array_equal(runs.X.sel(seed=seed), alone.X)
        np.testing.assert_array_equal(runs.loss.sel(seed=seed), alone.loss)


@pytest.mark.slow
def test_jobs_take_the_runs_and_those_that_ended_are_left_alone(slurm: Path, cli: Cli) -> None:
    assert cli(*SWEEP, *ARRAY).code == 0
    for index in (0, 2):
        assert job(slurm, 4710, index).wait() == 0
    queue(slurm, "4710_1 PENDING")
    code, out, _ = cli("sweep", "s", "--jobs", 1)  # takes what is left here, which is nothing
    assert code == 0
    assert [row.split()[:2] for row in out.splitlines()[2:5]] == [
        ["0", "success"],
        ["1", "queued"],
        ["2", "success"],
    ]
    with open_sweep("s") as runs:
        assert runs.state.values.tolist() == ["success", "queued", "success"]
    queue(slurm)
    assert cli(*SWEEP, *ARRAY).out.startswith("1 run submitted as job 4711;")
    assert cli("sweep", "s", "--jobs", 1, "-q").code == 0
    equal_to_the_run_alone(cli, 1)
    equal_to_the_run_alone(cli, 2)


@pytest.mark.slow
def test_a_job_whose_time_is_up_keeps_what_it_has_and_is_queued_again(slurm: Path, cli: Cli) -> None:
    long: list[Any] = ["--steps", 20_000, "--set", "save.every=500", "--set", "save.checkpoint=0.1"]
    assert cli("sweep", "tiny.toml", "--set", "run.seed=3..4", *long, "--out", "s", *ARRAY).code == 0
    first = job(slurm, 4710, 0)
    run, end = Path("s/seed=3"), time.monotonic() + 120
    while not (run / "checkpoint.prev").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(int((slurm / "task").read_text()), signal.SIGUSR2)
    first.wait(60)
    assert (slurm / "told").read_text() == "requeue 4710_0\n"
    step = checkpoint.peek(run / "checkpoint").step
    assert 0 < step < 20_000
    assert "interrupted" in cli("sweep", "s").out
    assert job(slurm, 4710, 0).wait() == 0
    assert f"resumed at step {step:,} of" in (run / "run.log").read_text(encoding="utf-8")
    equal_to_the_run_alone(cli, 3, *long)


def test_a_job_that_the_cluster_refuses_is_no_run(slurm: Path) -> None:
    found = Sweep(Path("s"), TINY, [Axis("run.seed", (0, 1))]).begin()
    (slurm.with_name("bin") / "sbatch").write_text("#!/bin/sh\necho nonsense\n")
    with pytest.raises(RunError, match="takes no jobs"):
        submit(found, {"timeout_min": 5})
    assert not Path("s/cluster/jobs.toml").exists()

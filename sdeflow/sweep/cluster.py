"""The runs of a sweep as jobs of a SLURM cluster: an array, by submitit (the extra `cluster`).

cluster/jobs.toml    the job of each run that was submitted, by the names of their folders
cluster/             besides, what submitit writes: scripts, what they print, and what a job is to call
"""

from __future__ import annotations

import getpass
import io
import os
import re
import subprocess
import tomllib
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import tomli_w

from sdeflow.errors import RunError, SdeflowError
from sdeflow.sweep.plan import ENDED, Point, Sweep, alone
from sdeflow.sweep.process import command, log
from sdeflow.trajectory import durable

CLUSTER, JOBS = "cluster", "jobs.toml"
IN_QUEUE = ("queued", "running", "submitted")
"""States of runs that a cluster has or may have, 'submitted' where it does not say."""

_PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_OWN = ("array", "output", "error", "open-mode", "signal", "nodes", "ntasks", "ntasks-per-node")
_COUNTS = {"time": "timeout_min", "gpus": "gpus_per_node", "cpus": "cpus_per_task"}


def slurm_parameters(text: str) -> dict[str, Any]:
    """What submitit takes, of 'partition=gpu,time=60,gpus=1': `time` in minutes, `mem` in GB, `cpus`, `gpus`.

    Every other key is an option of sbatch, such as account=NAME or exclusive=true. Raises SdeflowError for
    what is not of that form, for no `time`, and for options that are the sweep's own.
    """
    found: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if not re.fullmatch(r"[a-z][a-z_-]*", key) or not value.isprintable() or not value:
            raise SdeflowError(
                f"--slurm takes key=value,..., for example partition=gpu,time=60; given '{part}'"
            )
        if key in _COUNTS:
            if not re.fullmatch(r"[1-9]\d*", value):
                unit = " of minutes" * (key == "time")
                raise SdeflowError(f"--slurm {key}: a whole number{unit} was expected, given '{value}'")
            found[_COUNTS[key]] = int(value)
        elif key == "mem":
            if not (number := re.fullmatch(r"(\d+(?:\.\d+)?)(?:G|GB)?", value)) or float(number[1]) == 0:
                raise SdeflowError(f"--slurm mem: a number of GB was expected, given '{value}'")
            found["mem_gb"] = float(number[1])
        elif (option := key.replace("_", "-")) in _OWN:
            raise SdeflowError(f"--slurm {key}: the sweep gives that itself, leave it out")
        else:
            others[option] = True if value == "true" else value
    if "timeout_min" not in found:
        raise SdeflowError("--slurm needs time, the minutes that a run may take, for example time=60")
    return found | ({"slurm_additional_parameters": others} if others else {})


def submit(sweep: Sweep, parameters: Mapping[str, Any], at_once: int | None = None) -> dict[str, str]:
    """Submits all runs that have not ended and are in no queue, as one array; gives their jobs by name.

    parameters   as `slurm_parameters` gives them
    at_once      the most jobs of the array that run at a time

    A job is `sdeflow run --resume`. When its time is nearly up it is told to stop, with all it has kept, and
    is queued again, three times at most. Raises SdeflowError without submitit or without a cluster,
    RunError where the cluster takes no jobs or does not say which it has.
    """
    try:
        import submitit
    except ImportError as error:
        raise SdeflowError(
            f'--slurm needs a package that is not here ({error}): pip install "sdeflow[cluster]"'
        ) from error
    with alone(sweep):
        now = states(sweep)
        if "submitted" in now:
            raise RunError(
                f"squeue does not say which jobs of {sweep.folder} there are: try again where it does, or "
                f"remove {sweep.folder / CLUSTER / JOBS} if there are none"
            )
        points = [p for p, state in zip(sweep.points, now, strict=True) if state not in ENDED + IN_QUEUE]
        if not points:
            return {}
        try:
            executor = submitit.AutoExecutor(sweep.folder.absolute() / CLUSTER, cluster="slurm")
        except RuntimeError as error:  # it looks for srun
            raise SdeflowError(
                "--slurm found no SLURM cluster: give it where sbatch and srun are, or leave it out"
            ) from error
        width = {} if at_once is None else {"slurm_array_parallelism": at_once}
        executor.update_parameters(name=sweep.folder.absolute().name, **parameters, **width)
        jobs = [Job(command(sweep, point), log(sweep, point)) for point in points]
        try:
            with redirect_stderr(io.StringIO()):  # which submitit repeats what sbatch said to
                begun = executor.submit_array(jobs)
        except (OSError, RuntimeError) as error:
            said = (str(error).strip().splitlines() or ["it says nothing"])[-1]
            raise RunError(f"the cluster takes no jobs: {said}") from error
        new = {point.folder.name: str(job.job_id) for point, job in zip(points, begun, strict=True)}
        durable.write(sweep.folder / CLUSTER / JOBS, tomli_w.dumps(submitted(sweep) | new).encode())
    return new


class Job:
    """What a job calls: a run in a process of its own, that says to a file."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._command, self._log = command, log

    def __call__(self) -> int:
        with self._log.open("wb") as said:
            self._process = subprocess.Popen(self._command, stdout=said, stderr=said)
        return self._process.wait()

    def checkpoint(self) -> Any:
        """Called by submitit in a signal's handler before a job's time is up; gives what to queue again."""
        from submitit.helpers import DelayedSubmission

        self._process.terminate()
        # the handler has come amid `wait`, which must not be called again
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Job(self._command, self._log))


def submitted(sweep: Sweep) -> dict[str, str]:
    """The job of each run that was submitted, by the name of its folder."""
    try:
        return tomllib.loads((sweep.folder / CLUSTER / JOBS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SdeflowError(f"{sweep.folder / CLUSTER / JOBS} cannot be read: {error}") from error


def states(sweep: Sweep) -> list[str]:
    """How each run stands: its own state, that of its job in the queue, or 'failed' where that has gone."""
    jobs, theirs = submitted(sweep), in_queue(sweep)
    return [_state(point, point.folder.name in jobs, theirs) for point in sweep.points]


def in_queue(sweep: Sweep) -> dict[str, str]:
    """How runs stand that a cluster has or may have (IN_QUEUE), by the names of their folders."""
    if not (jobs := submitted(sweep)):
        return {}
    if (queue := _queue()) is None:
        return dict.fromkeys(jobs, "submitted")
    return {
        name: "queued" if queue[job] in _PENDING else "running" for name, job in jobs.items() if job in queue
    }


def _state(point: Point, job: bool, theirs: Mapping[str, str]) -> str:
    if (state := point.state) in (*ENDED, "running"):
        return state
    return theirs.get(point.folder.name) or ("failed" if job and state == "waiting" else state)


def _queue() -> dict[str, str] | None:
    """How the jobs of this user stand that SLURM has, by id; None where it does not answer."""
    asked = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format=%i %T"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return {job: state for job, _, state in (line.strip().partition(" ") for line in said.splitlines())}

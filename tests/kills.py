"""Kills random processes of a run, resumes it on another number of them, and compares it with one whole.

    python tests/kills.py --kills 200

Each attempt starts 1, 2 or 3 processes, and one of them is killed (or all are asked to stop, as Ctrl-C does)
at a random time; then the others must end, by themselves or by torchrun's SIGTERM, within BOUND seconds. No
step that was acknowledged may be lost, and once a run has come to its end all of its state is that of the run
in one piece, to the bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import sdeflow
from sdeflow import Parallel, Save
from sdeflow.errors import Interrupted, SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.trajectory import checkpoint
from sdeflow.trajectory.layout import CHECKPOINT, PREVIOUS

STEPS, BOUND = 1500, 30.0

ALONE = 5.0
"""Seconds in which processes end by themselves; then they get SIGTERM, which torchrun sends at once: those
that wait for one to begin cannot see that it is gone."""

FIXED = Parallel(strata=6, reduction="fixed")
MOTION = {"h": 0.01, "eta": 100.0, "gamma": 0.1}


def take(folder: Path | None, parallel: Parallel | None) -> xr.Dataset:
    """The run, gone on with where it is in a folder."""
    return sdeflow.simulate(
        sdeflow.mpgd(Hierarchical(data=24), particles=5, theta=MOTION, x=MOTION),
        "baoab",
        steps=STEPS,
        dtype="float64",
        noise="philox",
        save=Save(every=100, data="all", particles="all", checkpoint=0.0),
        parallel=parallel,
        out=folder,
        resume=True,
    )


def process(rank: int, size: int, port: int, folder: Path) -> int:
    """One of the processes of an attempt, forked; gives its id."""
    pid = os.fork()
    if pid:
        return pid
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        take(folder, FIXED)
    except (SdeflowError, Interrupted) as error:
        os._exit(getattr(error, "exit_code", 130))
    except BaseException:
        os._exit(99)
    os._exit(0)


def attempt(folder: Path, size: int, after: float, asked: bool) -> list[int]:
    """Exit codes of an attempt in which one is killed after so many seconds, or all are asked to stop."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = [process(rank, size, port, folder) for rank in range(size)]
    codes: dict[int, int] = {}

    def wait(until: float) -> bool:
        while len(codes) < size and time.monotonic() < until:
            for pid in set(pids) - codes.keys():
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        return len(codes) == size

    if not wait(time.monotonic() + after):
        for pid in pids if asked else random.sample(pids, 1):
            if pid not in codes:
                os.kill(pid, signal.SIGTERM if asked else signal.SIGKILL)
    if not wait(time.monotonic() + ALONE):
        for pid in set(pids) - codes.keys():
            os.kill(pid, signal.SIGTERM)
    if not wait(time.monotonic() + BOUND):
        for pid in set(pids) - codes.keys():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        raise AssertionError(f"{size - len(codes)} of {size} processes still ran {BOUND:g} s after")
    return [codes[pid] for pid in pids]


def acknowledged(folder: Path) -> int:
    """The step that the folder's newest checkpoint covers, -1 for none."""
    there = [path for name in (CHECKPOINT, PREVIOUS) if (path := folder / name).exists()]
    return checkpoint.peek(there[0]).step if there else -1


def same(one: xr.Dataset, other: xr.Dataset) -> None:
    """The state to the bit, observables to rounding."""
    for name in ("theta", "m", "X", "U"):
        np.testing.assert_array_equal(other[name].values, one[name].values, err_msg=name)
    for name in one.data_vars:
        np.testing.assert_allclose(other[name].values, one[name].values, rtol=1e-9, atol=1e-12)


def kill(kills: int, seed: int, where: Path) -> tuple[int, int, float]:
    """Kills so many; gives how many runs ended, how many attempts were resumed, and the longest wait."""
    random.seed(seed)
    whole = take(None, FIXED)
    ended, resumed, slowest, count = 0, 0, 0.0, 0
    folder = where / "run-0"
    while count < kills:
        before, asked = acknowledged(folder), random.random() < 0.2
        began, after = time.monotonic(), random.uniform(0.1, 2.5)
        codes = attempt(folder, random.choice((1, 2, 3)), after, asked)
        slowest = max(slowest, time.monotonic() - began - after)
        assert {*codes} <= {0, 1, 130, -signal.SIGKILL, -signal.SIGTERM}, codes
        assert {*codes} != {1}, "all ended, and none was killed"
        now = acknowledged(folder)
        assert now >= before, f"step {before} was acknowledged, and {now} is left"
        resumed += before >= 0
        if any(codes):
            count += 1
        elif all(code == 0 for code in codes):
            with xr.open_dataset(folder / "trajectory.nc") as found:
                same(whole, found)
            ended += 1
            folder = where / f"run-{ended}"
        print(f"\r{count} of {kills}, {ended} ended", end="", file=sys.stderr)
    print(file=sys.stderr)
    attempt(folder, 2, 300.0, asked=False)  # what is left of the last run
    with xr.open_dataset(folder / "trajectory.nc") as found:
        same(whole, found)
    assert resumed > 0
    return ended + 1, resumed, slowest


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as where:
        ended, resumed, slowest = kill(given.kills, given.seed, Path(where))
    print(
        f"{given.kills} kills, {resumed} attempts went on with a run, {ended} runs came to their end: no "
        f"acknowledged step lost, none hung; the longest time to the end was {slowest:.1f} s"
    )


if __name__ == "__main__":
    main()

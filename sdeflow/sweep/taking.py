"""Taking the runs of a sweep: several processes at a time, each of one run."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import filelock

from sdeflow.errors import SdeflowError
from sdeflow.sweep.plan import POINTS, Point, Sweep, busy
from sdeflow.trajectory import durable
from sdeflow.trajectory.layout import LOCK

ENDED = ("success", "stopped", "diverged")
"""States of runs that are not begun again."""


class Ended(NamedTuple):
    """How a point's run stands, and what its process said where it failed."""

    point: Point
    state: str
    note: str = ""


def take(sweep: Sweep, jobs: int, tick: Callable[[], None] = lambda: None) -> list[Ended]:
    """Takes all runs of a sweep that have not ended, so many at a time; gives how each of them stands.

    Each is a process of its own, `sdeflow run --resume`, so that one which is killed or runs out of memory
    takes no other with it; it has its share of the cores as threads. One that was stopped goes on, and one
    that another process is writing is waited for. KeyboardInterrupt stops them all at their next step, with
    what they have kept. Raises SdeflowError where another sweep is at work in the folder.
    """
    lock = filelock.FileLock(sweep.folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise SdeflowError(
            f"another sweep is at work in {sweep.folder}: wait for it, or give another --out"
        ) from None
    taking = _Taking(sweep, max(1, (os.cpu_count() or 1) // jobs))
    with lock, ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(taking.one, point): point for point in sweep.points}
        try:
            for _ in as_completed(futures):
                tick()
        except KeyboardInterrupt:
            taking.stop()
            raise
    return [future.result() for future in futures]


class _Taking:
    """The processes of a sweep."""

    def __init__(self, sweep: Sweep, threads: int) -> None:
        self._sweep, self._stopped = sweep, threading.Event()
        self._environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
        self._going: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()

    def one(self, point: Point) -> Ended:
        """Takes a run, if it has not ended."""
        while point.folder.exists() and busy(point.folder):  # by a process that outlived its sweep
            if self._stopped.wait(0.5):
                break
        if point.state in ENDED:
            return Ended(point, point.state)
        if self._stopped.is_set():
            return Ended(point, "interrupted")
        beside = self._sweep.folder / POINTS / point.folder.name
        config, log = (beside.with_name(beside.name + end) for end in (".toml", ".log"))
        durable.write(config, point.config.toml().encode())
        arguments = ["run", str(config), "--out", str(point.folder), "--resume", "--quiet"]
        with log.open("wb") as said:
            process = self._started([sys.executable, "-m", "sdeflow", *arguments], said.fileno())
            code = -1 if process is None else process.wait()
        with self._guard:
            self._going.discard(process)
        if (state := point.state) in ENDED:
            return Ended(point, state)
        return Ended(point, "interrupted" if code == 130 else "failed", _last(log))

    def _started(self, command: list[str], said: int) -> subprocess.Popen[bytes] | None:
        with self._guard:
            if self._stopped.is_set():
                return None
            # a group of its own, so that Ctrl-C reaches it once, from here
            process = subprocess.Popen(
                command, stdout=said, stderr=said, env=self._environment, start_new_session=True
            )
            self._going.add(process)
            return process

    def stop(self) -> None:
        """Asks all to stop, and begins no other."""
        with self._guard:
            self._stopped.set()
            for process in self._going:
                process.terminate()


def _last(log: Path) -> str:
    """The last line that a process said."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""

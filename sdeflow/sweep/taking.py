"""Taking the runs of a sweep: several processes at a time, each of one run."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from sdeflow.sweep.cluster import in_queue, states
from sdeflow.sweep.plan import ENDED, Point, Sweep, alone, busy
from sdeflow.sweep.process import command, last, log

FAILED = ("failed", "interrupted", "damaged")
"""States of runs that are to be looked at: they have not ended, and nobody takes them."""


class Ended(NamedTuple):
    """How a point's run stands, and what its process said where it failed."""

    point: Point
    state: str
    note: str = ""


def take(sweep: Sweep, jobs: int, tick: Callable[[], None] = lambda: None) -> list[Ended]:
    """Takes all runs of a sweep that have not ended, so many at a time; gives how each of them stands.

    Each is a process of its own, `sdeflow run --resume`, so that one which is killed or runs out of memory
    takes no other with it; it has its share of the cores as threads. One that was stopped goes on, one that
    another process is writing is waited for, and one that is a cluster's job is left to it.
    KeyboardInterrupt stops them all at their next step, with what they have kept. Raises SdeflowError where
    another sweep is at work in the folder.
    """
    with alone(sweep), ThreadPoolExecutor(jobs) as pool:
        taking, theirs = Taking(sweep, max(1, (os.cpu_count() or 1) // jobs)), in_queue(sweep)
        here = [p for p in sweep.points if p.folder.name not in theirs or p.state in ENDED]
        futures = {point.folder: pool.submit(taking.one, point) for point in here}
        try:
            for _ in as_completed(futures.values()):
                tick()
        except KeyboardInterrupt:
            taking.stop()
            raise
    return [
        futures[point.folder].result() if point.folder in futures else Ended(point, theirs[point.folder.name])
        for point in sweep.points
    ]


def standing(sweep: Sweep) -> list[Ended]:
    """How each run stands, where nothing is done."""
    return [
        Ended(point, state, last(log(sweep, point)) if state in FAILED else "")
        for point, state in zip(sweep.points, states(sweep), strict=True)
    ]


class Taking:
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
        if self.stopped:
            return Ended(point, "interrupted")
        code = self.call(command(self._sweep, point), said := log(self._sweep, point))
        if (state := point.state) in ENDED:
            return Ended(point, state)
        return Ended(point, "interrupted" if code == 130 else "failed", last(said))

    def call(self, command: Sequence[str], log: Path) -> int:
        """Calls a command that says to a file; gives its exit code, and 130 where all is stopped."""
        with log.open("wb") as file:
            process = self._started(command, file.fileno())
            code = 130 if process is None else process.wait()
        with self._guard:
            self._going.discard(process)
        return code

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def _started(self, command: Sequence[str], said: int) -> subprocess.Popen[bytes] | None:
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

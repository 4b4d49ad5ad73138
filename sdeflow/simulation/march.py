"""The march of a run through its steps: chunks, and between them snapshots, checkpoints, progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdeflow.engine.step import Step, pieces
from sdeflow.errors import RunError, attempt
from sdeflow.simulation.ending import Stop, not_finite, past_bound
from sdeflow.simulation.held_out import PREFIX as HELD_OUT
from sdeflow.simulation.held_out import HeldOut
from sdeflow.state import State
from sdeflow.terminal import Progress
from sdeflow.trajectory.record import Recorder

_CHUNK_SECONDS = 0.2


@dataclass
class March:
    """A run under way. `at` is the state with the steps taken to it; the two change together.

    keep       called with this march, puts what it has on the disk; `due` tells whether it is time
    diverged   by replica, which variable left the finite numbers and when
    fresh      whether no step has succeeded yet, in which a mistake of the user's shows
    """

    at: tuple[int, State]
    take: Step
    scheme: str
    h: float
    bound: float
    recorder: Recorder
    held_out: HeldOut | None
    stop: Stop
    progress: Progress | None
    diverged: dict[int, str]
    due: Callable[[], bool] | None = None
    keep: Callable[[March], None] | None = None
    fresh: bool = True
    seconds_before: float = 0.0
    evaluate_seconds: float = 0.0
    retcode: str = "running"
    error: Exception | None = None
    _began: float = field(default_factory=time.perf_counter)
    _chunk: int = 1
    _loss: float | None = None

    @property
    def step(self) -> int:
        return self.at[0]

    @property
    def state(self) -> State:
        return self.at[1]

    @property
    def seconds(self) -> float:
        """Since the run began, what was spent before it was taken up included."""
        return self.seconds_before + time.perf_counter() - self._began

    def through(self) -> None:
        """Goes on to the last step, or to what ends the run before; sets `retcode` and `error`.

        Raises RunError where the disk does not take what is to be kept, and whatever a first step raises.
        """
        try:
            self._through()
            if self.retcode == "running":
                self.retcode = "diverged" if self.diverged else "success"
        except KeyboardInterrupt:
            self.retcode = "interrupted"
        except Exception as error:
            if self.fresh or isinstance(error, RunError):
                raise
            self.retcode, self.error = "failed", error

    def _through(self) -> None:
        for target in self.recorder.when.after(self.recorder.taken):
            while self.step < target:
                if self.stop.asked:
                    self.retcode = "interrupted"
                    return
                self._steps(self._next(target) - self.step)
                if self._lost:
                    return
                if self.progress is not None:
                    self.progress(self.step, self.recorder.when[-1], self._loss)
                if self.step < target:  # at the target a snapshot comes first
                    self._keep_if(full=False, looked=False)
                if self._lost:
                    return
            self._snapshot()
            if self._lost:
                return
            self._keep_if(full=self.recorder.full, looked=True)

    def _next(self, target: int) -> int:
        """Where a chunk ends: at the target, or before it with whole strides (see sdeflow.engine.pieces)."""
        stride = self.take.stride
        return min(target, -(-(self.step + self._chunk) // stride) * stride)

    @property
    def _lost(self) -> bool:
        """Whether no replica is left that has not diverged."""
        return len(self.diverged) == self.recorder.replicas

    def _steps(self, count: int) -> None:
        clock, before = time.perf_counter(), self.step
        with torch.no_grad(), self.stop.stepping():
            for n, many in pieces(self.step, self.step + count, self.take.stride):
                z = self.state
                self.at = n + many, self._first(z, n, many) if self.fresh else self.take(z, n, many)
        own = {name: value for name, value in self.state.items() if not name.startswith(HELD_OUT)}
        self._note(not_finite(own), f", and was after step {before}")
        seconds = time.perf_counter() - clock
        self._chunk = max(1, min(2 * self._chunk, int(count * _CHUNK_SECONDS / max(seconds, 1e-9))))

    def _first(self, z: State, n: int, many: int) -> State:
        z = attempt(f"{self.scheme}.step", self.take, z, n, many)
        self.fresh = False
        return z

    def _snapshot(self) -> None:
        more: dict[str, Tensor] = {}
        n, z = self.at
        if self.held_out is not None:
            clock = time.perf_counter()
            with self.stop.stepping():
                z, more = self.held_out.look(z, n, self.recorder.when[-1])
            self.evaluate_seconds += time.perf_counter() - clock
        observed = self.recorder.take(n, n * self.h, z, more)
        self.at = n, z
        self._note(past_bound(observed, self.bound))
        going = [replica for replica in range(self.recorder.replicas) if replica not in self.diverged]
        self._loss = float(observed["loss"][going].mean()) if "loss" in observed and going else None

    def _keep_if(self, *, full: bool, looked: bool) -> None:
        """Keeps where it is time or there is no room for another snapshot; never before a step succeeded.

        looked   whether the energies of this state have been compared with the bound
        """
        if self.keep is None or self.fresh or not (full or (self.due is not None and self.due())):
            return
        if not looked:
            self._note(past_bound(self.recorder.observed(self.step * self.h, self.state), self.bound))
        if not self._lost:  # the checkpoint before is the last good one
            self.keep(self)

    def _note(self, found: dict[int, str], more: str = "") -> None:
        for replica, what in found.items():
            self.diverged.setdefault(replica, f"{what} by step {self.step}{more}")

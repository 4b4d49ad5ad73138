"""The loop of a run through its steps: chunks, and between them snapshots, checkpoints, progress."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdeflow.engine.step import strides
from sdeflow.errors import RunError, attempt
from sdeflow.simulation.ending import not_finite, past_bound, refuse_no_number
from sdeflow.simulation.held_out import PREFIX as HELD_OUT
from sdeflow.state import TUNING
from sdeflow.system.average import AVERAGE
from sdeflow.tuning.warm_up import OUT_OF_RANGE

if TYPE_CHECKING:
    from sdeflow.config.run import Run
    from sdeflow.simulation.ending import Stop
    from sdeflow.simulation.keeper import Keeper
    from sdeflow.simulation.onlookers import Onlookers
    from sdeflow.simulation.prepare import Prepared
    from sdeflow.state import State
    from sdeflow.terminal import Progress
    from sdeflow.trajectory.checkpoint import Metadata

_CHUNK_SECONDS = 0.2


class TimeLoop:
    """A run under way, from `prepared.state`, the state after `meta.step` steps.

    step, state   steps taken, and the state after them; the two change together
    diverged      by replica, which variable left the finite numbers and when
    retcode       'running' until `to_the_end` sets how the run ended
    error         what ended it, where it failed
    verdict       what to know of how numbers that were chosen did, '' for nothing
    """

    def __init__(
        self,
        run: Run,
        prepared: Prepared,
        meta: Metadata,
        keeper: Keeper,
        stop: Stop,
        onlookers: Onlookers,
        progress: Progress | None = None,
    ) -> None:
        self._at = meta.step, prepared.hand_over()
        self._run, self._begun_from = run, meta
        self._prepared, self._warm_up = prepared, prepared.warm_up
        self._keeper, self._recorder = keeper, keeper.recorder
        self._ranks = prepared.ranks
        self._stop, self._onlookers, self._progress = stop, onlookers, progress
        self.diverged = dict(meta.diverged)
        self.retcode = "running"
        self.error: Exception | None = None
        self.verdict = ""
        self._untried = meta.step == 0  # no step has succeeded yet, in which a user's mistake shows
        self._began, self._evaluate_seconds = time.perf_counter(), meta.evaluate_seconds
        self._chunk = 1
        self._loss: float | None = None

    @property
    def step(self) -> int:
        return self._at[0]

    @property
    def state(self) -> State:
        return self._at[1]

    def hand_over(self) -> State:
        """The state, which is then held by the caller alone."""
        step, state = self._at
        self._at = step, {}
        return state

    @property
    def meta(self) -> Metadata:
        """What is known of the run by now; its seconds include those before it was resumed."""
        return replace(
            self._begun_from,
            step=self.step,
            last=self.step,
            diverged=dict(self.diverged),
            seconds=self._begun_from.seconds + time.perf_counter() - self._began,
            evaluate_seconds=self._evaluate_seconds,
            retcode=self.retcode,
            stopped=stopped.who if (stopped := self._onlookers.stopped) and self.retcode == "stopped" else "",
            warnings=(*self._begun_from.warnings, *filter(None, [self.verdict])),
        )

    def to_the_end(self) -> None:
        """Goes on to the last step, or to what ends the run before; sets `retcode` and `error`.

        Raises RunError where the disk does not take what is to be kept, and whatever a first step raises; of
        a run on several processes any error, as the others cannot go on.
        """
        try:
            self._all_steps()
            if self.retcode == "running":
                early = "success" if self.step == self._run.steps else "stopped"
                self.retcode = "diverged" if self.diverged else early
            if self._warm_up is not None and self._loss is not None:
                self.verdict = self._warm_up.verdict(self._loss)
        except KeyboardInterrupt:
            if self._ranks.several:  # before the first step, where there is nothing to keep
                raise
            self.retcode = "interrupted"
        except Exception as error:
            if self._untried:
                self._keeper.withdraw()
            if self._untried or isinstance(error, RunError):
                raise
            if self._ranks.several:
                raise RunError(f"the run failed after step {self.step:,}: {error}") from error
            self.retcode, self.error = "failed", error
        finally:
            self._stop.whole = False

    def _all_steps(self) -> None:
        for target in self._recorder.when.after(self._recorder.taken):
            if self._onlookers.stopped:
                return
            while self.step < target:
                asked, end = self._ranks.most(
                    self._stop.asked, self._chunk_end(target) if self._ranks.leads else 0
                )
                if asked:
                    self.retcode = "interrupted"
                    return
                self._stop.whole = self._ranks.several and not self._untried
                self._steps(end - self.step)
                if self._lost:
                    return
                if self._progress is not None:
                    self._progress(self.step, self._run.steps, self._loss)
                if self.step < target or self._recorder.full:  # else a snapshot comes first
                    self._keep_if_due(full=self._recorder.full, compared=False)
                if self._lost:
                    return
            self._snapshot()
            if self._lost:
                return
            self._keep_if_due(full=self._recorder.full, compared=True)

    def _chunk_end(self, target: int) -> int:
        """Where a chunk ends: at the target, or before it with whole strides (see sdeflow.engine.step).

        In a warm-up at its next look at the latest.
        """
        look = None if self._warm_up is None else self._warm_up.next(self.step)
        target = target if look is None else min(target, look)
        stride = self._prepared.stepper.stride
        return min(target, -(-(self.step + self._chunk) // stride) * stride)

    @property
    def _lost(self) -> bool:
        """Whether no replica is left that has not diverged."""
        return len(self.diverged) == self._recorder.replicas

    def _steps(self, count: int) -> None:
        clock, before = time.perf_counter(), self.step
        look = None if self._warm_up is None else self._warm_up.next(before)
        with torch.no_grad(), self._stop.stepping():
            try:
                for n, many in strides(before, before + count, self._prepared.stepper.stride):
                    z = self.state
                    self._at = (
                        n + many,
                        self._first(z, n, many) if self._untried else self._prepared.stepper(z, n, many),
                    )
            except Exception as error:  # a warm-up has tried the model before, and goes back
                out_of_range = any(isinstance(e, OUT_OF_RANGE) for e in (error, error.__cause__))
                if look is None or not out_of_range:
                    raise
                self._at, self._untried = (before + count, _lost(self.state)), False
        apart = (HELD_OUT, AVERAGE, TUNING)
        found = not_finite({name: v for name, v in self.state.items() if not name.startswith(apart)})
        if self._ranks.most(len(found))[0]:
            seen = reversed(self._ranks.each(found))
            found = {replica: what for own in seen for replica, what in own.items()}
        if self.step == look:  # and not before, so that a run does not depend on where its chunks end
            self._adapt()
        elif look is None:
            self._note(found, f", and was after step {before}")
        seconds = time.perf_counter() - clock
        self._chunk = max(1, min(2 * self._chunk, int(count * _CHUNK_SECONDS / max(seconds, 1e-9))))

    @property
    def _adapts(self) -> bool:
        """Whether a warm-up is still to look at the run."""
        return self._warm_up is not None and self._warm_up.next(self.step) is not None

    def _adapt(self) -> None:
        """Lets the warm-up look at the run, and choose other numbers or go back."""
        assert self._warm_up is not None
        n, z = self._at
        with self._stop.stepping():
            self._at = n, self._prepared.adapt(z, n)
        if words := self._warm_up.news:
            self._keeper.log(f"step {n:,}: {words}")

    def _first(self, z: State, n: int, many: int) -> State:
        z = attempt(f"{type(self._run.integrator).__name__}.step", self._prepared.stepper, z, n, many)
        self._untried = False
        return z

    def _snapshot(self) -> None:
        more: dict[str, Tensor] = {}
        n, z = self._at
        if (held_out := self._prepared.held_out) is not None:
            clock = time.perf_counter()
            with self._stop.stepping():
                z, more = held_out.look(z, n, self._run.steps)
            self._evaluate_seconds += time.perf_counter() - clock
        more |= self._prepared.numbers(n)
        observed = self._recorder.take(n, self._prepared.times(n), z, more)
        if n == 0:
            refuse_no_number(observed, self._recorder.system)
        self._at = n, z
        if not self._adapts:
            self._note(past_bound(observed, self._run.bound))
        going = [replica for replica in range(self._recorder.replicas) if replica not in self.diverged]
        self._loss = float(observed["loss"][going].mean()) if "loss" in observed and going else None
        if self._run.callbacks:
            whole = self._prepared.sharing.everywhere(z)
            with self._stop.stepping():
                system, time_ = self._recorder.system, self._recorder.times[-1][""]
                self._ranks.lead(
                    lambda: self._onlookers.show(system, whole, n, time_, self.meta.seconds, observed)
                )
            self._onlookers.stopped = self._ranks.of_first(self._onlookers.stopped)

    def _keep_if_due(self, *, full: bool, compared: bool) -> None:
        """Keeps where it is time or there is no room for another snapshot.

        A run takes the place of one that is in its folder only when a step has succeeded.

        compared   whether the energies of this state have been compared with the bound
        """
        due = not (self._untried and self._keeper.replaces) and (full or self._keeper.due(self.step))
        if not self._ranks.most(due and self._ranks.leads)[0]:  # as the process that writes has it
            return
        if not compared and not self._adapts:
            observed = self._recorder.observed(self._prepared.times(self.step)[""], self.state)
            self._note(past_bound(observed, self._run.bound))
        if not self._lost:  # the checkpoint before is the last good one
            self._keeper.keep(self.meta, self.state)

    def _note(self, found: dict[int, str], more: str = "") -> None:
        for replica, what in found.items():
            self.diverged.setdefault(replica, f"{what} by step {self.step}{more}")


def _lost(z: State) -> State:
    """A state whose positions and momenta are no numbers, so that a warm-up goes back from it."""
    own = (HELD_OUT, AVERAGE, TUNING)
    return {
        name: v if name.startswith(own) or not v.is_floating_point() else torch.full_like(v, torch.nan)
        for name, v in z.items()
    }

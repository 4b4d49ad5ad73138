"""A search: points that Optuna chooses by the scores of those before, each a run like any other of a sweep.

What was chosen, and what came of it, is in a journal in the sweep's folder (the extra `search`). A run that
has not ended has no score there, and goes on when the search does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from sdeflow.errors import RunError, SdeflowError
from sdeflow.sweep.axes import Axis, word
from sdeflow.sweep.plan import ENDED, EVIDENCE, TRIAL, Point, Search, Sweep, alone
from sdeflow.sweep.process import evaluation, last, log
from sdeflow.sweep.score import has_evidence, score_of
from sdeflow.sweep.taking import Ended, Taking
from sdeflow.trajectory import durable

JOURNAL = "journal.log"
HOPELESS = 3
"""Runs that fail before one has ended, at which a search gives up."""


def seek(sweep: Sweep, jobs: int, tick: Callable[[], None] = lambda: None) -> list[Ended]:
    """Takes the trials of a search, so many at a time, until it has as many as it is to have.

    Trial n is chosen by the scores that are known then: with one job it is the same in every search with the
    same scores, whether that was stopped or not. One that diverged, or whose score is not finite, is pruned.
    Raises SdeflowError without Optuna, where a score is not recorded or cannot be found, and where another
    sweep is at work in the folder; RunError where the first runs all fail. KeyboardInterrupt as in `take`.
    """
    with alone(sweep), ThreadPoolExecutor(jobs) as pool:
        taking = Taking(sweep, max(1, (os.cpu_count() or 1) // jobs))
        seeking = _Seeking(sweep, taking)
        futures: list[Future[Ended | None]] = [pool.submit(seeking.one, number) for number in seeking.left()]
        try:
            for future in as_completed(futures):
                future.result()
                tick()
        except BaseException:
            taking.stop()
            for future in futures:
                future.cancel()
            raise
    return [ended for future in futures if (ended := future.result()) is not None]


class _Seeking:
    """The study of a sweep, and the processes of its runs."""

    def __init__(self, sweep: Sweep, taking: Taking) -> None:
        assert sweep.search is not None
        self._sweep, self._sought, self._taking = sweep, sweep.search, taking
        self._guard, self._ended, self._failed = threading.Lock(), 0, 0
        self._optuna, self._study = _study(sweep, sweep.search)
        self._distributions = {axis.key: _distribution(self._optuna, axis) for axis in sweep.axes}

    def left(self) -> list[int | None]:
        """The trials that have not ended, by number, and a None for each that is to be chosen."""
        states = self._optuna.trial.TrialState
        going: list[int | None] = []
        for trial in self._study.trials:
            if trial.state == states.RUNNING and trial.params.keys() == self._distributions.keys():
                going.append(trial.number)
            elif trial.state == states.RUNNING:  # the search was killed while this was chosen
                self._study.tell(trial.number, state=states.FAIL)
        self._ended = sum(trial.state in (states.COMPLETE, states.PRUNED) for trial in self._study.trials)
        new = self._sought.trials - self._ended - len(going)
        return [*going, *[None] * new]

    def one(self, number: int | None) -> Ended | None:
        """Takes the run of a trial, or of one that is chosen now, and tells its score; None once stopped."""
        try:
            with self._guard:
                if self._taking.stopped:
                    return None
                point = self._chosen(number)
            ended = self._taking.one(point)
            return self._told(ended) if ended.state in ENDED else self._lamented(ended)
        except BaseException:
            self._taking.stop()  # before the next is chosen
            raise

    def _chosen(self, number: int | None) -> Point:
        if number is None:
            chosen = sum(trial.params.keys() == self._distributions.keys() for trial in self._study.trials)
            self._study.sampler = self._optuna.samplers.TPESampler(seed=seed_of(chosen))
            number = self._study.ask(self._distributions).number
        params = self._study.trials[number].params
        values = [_value(axis, params[axis.key]) for axis in self._sweep.axes]
        return self._sweep.trial(number, values)

    def _told(self, ended: Ended) -> Ended:
        """Tells the score of a run that has ended; where that cannot be found, it is still to come."""
        point, name, number = ended.point, self._sought.score, ended.point.at[TRIAL]
        evaluates = name == EVIDENCE and ended.state != "diverged" and not has_evidence(point.folder)
        if evaluates and (code := self._taking.call(evaluation(point), said := log(self._sweep, point))):
            if code == 2:  # as it would be of every trial
                raise SdeflowError(last(said).removeprefix("sdeflow: "))
            return self._lamented(Ended(point, "interrupted" if code == 130 else "failed", last(said)))
        score, state = score_of(point.folder, name), self._optuna.trial.TrialState.PRUNED
        with self._guard:
            self._ended += 1
            if isfinite(score):
                self._study.tell(number, score)
            else:
                self._study.tell(number, state=state)
        return ended

    def _lamented(self, ended: Ended) -> Ended:
        """Raises RunError where all fails; a run that was interrupted has not."""
        with self._guard:
            self._failed += ended.state == "failed"
            if self._failed >= HOPELESS and not self._ended:
                raise RunError(f"the first {HOPELESS} runs of {self._sweep.folder} failed: {ended.note}")
        return ended


def seed_of(trial: int) -> int:
    """Of what chooses a trial, which is so the same after a search was stopped."""
    return int(np.random.SeedSequence(trial).generate_state(1)[0])


def _study(sweep: Sweep, sought: Search) -> tuple[Any, Any]:
    """Optuna, and the study in a sweep's journal."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError as error:
        raise SdeflowError(
            f'--search needs a package that is not here ({error}): pip install "sdeflow[search]"'
        ) from error
    path = sweep.folder / JOURNAL
    if sweep.points and not path.exists():
        raise SdeflowError(f"{path} is gone, without which the search cannot go on: give another --out")
    _mend(path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    class Nobody(JournalFileOpenLock):
        """No lock: the sweep's own keeps others out, and goes with its process."""

        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    storage = JournalStorage(JournalFileBackend(str(path), Nobody(str(path))))
    direction = "maximize" if sought.maximised else "minimize"
    kind: Any = {"direction": direction, "load_if_exists": True}
    return optuna, optuna.create_study(storage=storage, study_name="sweep", **kind)


def _mend(path: Path) -> None:
    """Takes from a journal a last line that is not whole, which Optuna would not read."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        durable.write(path, text[: text.rfind(b"\n") + 1])


def _distribution(optuna: Any, axis: Axis) -> Any:
    """What Optuna chooses from: of a list the words of its values, as it takes no lists as choices."""
    if (interval := axis.interval) is None:
        return optuna.distributions.CategoricalDistribution([word(value) for value in axis.values])
    whole = isinstance(interval.low, int)
    kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
    return kind(interval.low, interval.high, log=interval.log)


def _value(axis: Axis, chosen: Any) -> Any:
    """The value of a key of what was chosen."""
    if axis.interval is not None:
        return chosen
    return next(value for value in axis.values if word(value) == chosen)

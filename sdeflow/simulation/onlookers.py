"""The callbacks of a run while it goes: what they are shown, and what they answer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from sdeflow.callbacks.callback import About, Callback, Snapshot, identity, label
from sdeflow.errors import SdeflowError, attempt, plain
from sdeflow.trajectory.dataset import Copies, recorded_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sdeflow.state import State
    from sdeflow.system.system import System

NOTHING: Mapping[str, Any] = MappingProxyType({})


class Stopped(NamedTuple):
    """Which callback stopped a run, in full and for people, and why."""

    who: str
    name: str
    why: str

    def __str__(self) -> str:
        return self.name + (f": {self.why}" if self.why else "")


class Onlookers:
    """The callbacks of a run, told in a `with` where it begins and ends.

    steps      that the run is to take
    record     what was observed before it was resumed, by name [T] or [T, R], with 'step' and 'time'
    several    whether observables have an axis of replicas
    stopped    the first answer to the last snapshot that stops the run; None for none
    retcode    what they are told at the end

    Raises SdeflowError, with the callback's name, for one that fails or gives what is no answer.
    """

    def __init__(
        self,
        callbacks: Sequence[Any],
        about: About,
        steps: int,
        record: Mapping[str, NDArray[Any]],
        *,
        several: bool,
    ) -> None:
        self.callbacks, self._record = tuple(callbacks), record
        self.stopped: Stopped | None = None
        self.retcode = "failed"
        self._about, self._steps, self._several = about, steps, several
        self._begun: list[Callback] = []

    def __enter__(self) -> Self:
        try:
            for callback in self.callbacks:
                if isinstance(callback, Callback):
                    _asked(callback, callback.begin, self._about)
                    self._begun.append(callback)
            self._replay(self._record)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for callback in self._begun:
            try:
                _asked(callback, callback.end, self.retcode)
            except SdeflowError as error:  # the run itself has ended, and is written
                warnings.warn(f"at the end of the run, {error}", stacklevel=6)

    def _replay(self, record: Mapping[str, NDArray[Any]]) -> None:
        """Shows the snapshots that were recorded before to those that are to see them again.

        An answer counts where it is to the state that the run goes on from.
        """
        again = [callback for callback in self._begun if callback.replays]
        if not record or not again:
            return
        names = [name for name in record if name != "step" and not name.startswith("time")]
        for k, (step, time) in enumerate(zip(record["step"].tolist(), record["time"].tolist(), strict=True)):
            observables = self._readable({name: record[name][k] for name in names})
            self._show(again, Snapshot(step, self._steps, time, float("nan"), observables, NOTHING))
            self.stopped = self.stopped if step == self._about.step else None

    def show(
        self,
        system: System,
        z: State,
        step: int,
        time: float,
        seconds: float,
        observed: Mapping[str, NDArray[np.floating]],
    ) -> None:
        """Shows a snapshot to all of them, and keeps what they answer.

        observed   what was recorded by name, each [R]
        """
        rows = {recorded_name(name): v if self._several else v[0] for name, v in observed.items()}
        state = Copies(system, z)
        self._show(self.callbacks, Snapshot(step, self._steps, time, seconds, self._readable(rows), state))

    def _readable(self, rows: Mapping[str, Any]) -> Mapping[str, Any]:
        """Copies that cannot be written to; a number of one replica is one already."""
        rows = {name: rows[name].copy() for name in sorted(rows)}  # as they come out of a file
        for value in rows.values():
            if value.ndim:
                value.setflags(write=False)
        return MappingProxyType(rows)

    def _show(self, callbacks: Sequence[Any], snapshot: Snapshot) -> None:
        answers = [(callback, _answer(callback, snapshot)) for callback in callbacks]
        stopping = (
            Stopped(identity(callback), label(callback), why) for callback, why in answers if why is not None
        )
        self.stopped = next(stopping, None)


def _answer(callback: Any, snapshot: Snapshot) -> str | None:
    """Why it stops the run, '' where it does not say; None where it goes on."""
    answer = plain(_asked(callback, callback, snapshot))
    if answer is True:
        return ""
    if answer is None or answer is False or isinstance(answer, str):
        return answer or None
    raise SdeflowError(
        f"callback '{label(callback)}' gives {type(answer).__name__}, expected True or a text that says why "
        "to stop the run, and False or None to go on"
    )


def _asked(callback: Any, method: Any, *arguments: Any) -> Any:
    what = f"callback '{label(callback)}'"
    try:
        return attempt(what, method, *arguments)
    except SdeflowError as error:
        if str(error).startswith(what):
            raise
        raise SdeflowError(f"{what}: {error}") from error

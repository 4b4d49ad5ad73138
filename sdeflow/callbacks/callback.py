"""What a callback is, and what it sees of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.state import parameters_of

if TYPE_CHECKING:
    from torch import Tensor

Answer = bool | str | None
"""True, or a reason, stops the run."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A run at one of its snapshots, for reading: nothing that is done to it changes the run.

    Whoever keeps it keeps all of the state in memory: keep what is needed of it.

    step, steps   steps taken, and steps that the run is to take
    time          on the reference clock
    seconds       that the run has taken by now, those before it was resumed too
    observables   what is recorded of this snapshot, by name: a number, of several replicas an array [R]
    state         the state by name as in final.safetensors ('X', 'theta.weight'), of several replicas with
                  these as the first axis: copies on the host, each made when it is asked for
    """

    step: int
    steps: int
    time: float
    seconds: float
    observables: Mapping[str, Any]
    state: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Any:
        """An observable; raises SdeflowError for one that the run does not have."""
        if name not in self.observables:
            raise SdeflowError(f"the run has no observable '{name}': {did_you_mean(name, self.observables)}")
        return self.observables[name]

    @property
    def theta(self) -> dict[str, Tensor]:
        """The parameters by the names that the model gives them, as `sdeflow.load` has them."""
        return parameters_of(self.state)


@dataclass(frozen=True, eq=False)
class About:
    """What a callback may know of a run that begins or is resumed.

    step         steps that were taken before
    attributes   what the trajectory says of the run: title, system, integrator, seed, config, ...
    identity     a name that no other run has, the same after it is resumed; '' without a folder
    folder       the run folder, None for none
    there        whether the folder is there and the run's own: not so before its first snapshot is kept, nor
                 before its first step where it is to replace another
    """

    step: int
    attributes: Mapping[str, Any]
    identity: str
    folder: Path | None
    there: Callable[[], bool]


class Callback:
    """A callback that is told where a run begins and ends; any callable that takes a `Snapshot` will do too.

    It is called at every snapshot (`save.every`), never within a step, with what was recorded; True, or a
    text that says why, stops the run.

    replays   whether it is shown the snapshots that were taken before again where a run is resumed: their
              step, time and observables as they were recorded, no state, and no seconds. So its memory is
              that of a run in one piece
    """

    replays: ClassVar[bool] = False

    def begin(self, run: About) -> None:
        """Called before the first snapshot, and where a run is resumed: what is left of another run goes."""

    def __call__(self, snapshot: Snapshot) -> Answer:
        raise NotImplementedError

    def end(self, retcode: str) -> None:
        """Called once the run has ended and is written, or has failed (retcode 'failed')."""


def label(callback: Any) -> str:
    """The name of a callback for people."""
    while isinstance(callback, partial):
        callback = callback.func
    return str(getattr(callback, "__qualname__", type(callback).__qualname__))


def identity(callback: Any) -> str:
    """What tells a callback from another, the same in another process: with its numbers where it has them."""
    return repr(callback) if hasattr(callback, "__dataclass_fields__") else label(callback)

"""What a run needs in memory before its first step: system, start, stepper, and who looks on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from sdeflow.config.run import Run
from sdeflow.engine.minibatch import MiniBatches
from sdeflow.engine.step import Stepper
from sdeflow.errors import SdeflowError, attempt
from sdeflow.simulation.held_out import HeldOut
from sdeflow.state import State
from sdeflow.system.average import AVERAGE, average_start, averaging
from sdeflow.system.system import BlockSystem, System, initial_state

ONE_THREAD_BELOW = 500_000
"""Numbers in the state up to which a CPU run keeps to one thread.

Small operations gain nothing from more, and lose much where the other cores are busy: threads that wait
for each other made a step of 4000 particles 20 times slower on two cores with one of them taken.
"""


@dataclass
class Prepared:
    """A run that can start: `stepper` takes its steps, `observe(t, state)` gives the system's observables.

    state     at the start, or where the run was resumed
    warning   what to know of catching up by long steps, '' for nothing
    """

    system: System
    state: State
    stepper: Stepper
    observe: Callable[[float, State], State]
    held_out: HeldOut | None
    warning: str

    def restore(self, state: State) -> None:
        """Goes on from a stored state; raises SdeflowError where it is that of another system."""
        for name in sorted(state.keys() | self.state.keys()):
            stored, own = state.get(name), self.state.get(name)
            if stored is None or own is None or stored.shape != own.shape or stored.dtype != own.dtype:
                given, expected = (
                    "nothing" if v is None else f"{v.dtype} {tuple(v.shape)}" for v in (stored, own)
                )
                raise SdeflowError(
                    f"the checkpoint holds {given} for {name}, expected {expected}: the model has changed"
                )
        self.state = {name: state[name].to(own.device) for name, own in self.state.items()}

    def hand_over(self) -> State:
        """The state, which is then held by the caller alone: it can be freed when there is a next one."""
        state, self.state = self.state, {}
        return state


def prepare(run: Run) -> Prepared:
    """Moves the system to its device, draws the start and tries what the user wrote on it once.

    Raises SdeflowError where something does not fit.
    """
    scheme, system, replicas = run.integrator, run.system.to(run.dtype, run.device), run.all_replicas
    z, every, warning = initial_state(system, replicas), run.save.every, ""
    if run.average is not None:
        z |= average_start(system, z)
        scheme = averaging(scheme, run.average.decay)
    stepper: Stepper
    if run.batch is None:
        system.check(z)
        noise = run.engine.source(system.channels, scheme.noise_spec(system.h), replicas)
        stepper, observe = run.engine.stepper(system, scheme, noise, every=every), system.observe
        with torch.no_grad():
            z |= attempt(f"{type(scheme).__name__}.init", scheme.init, system, z)
    else:
        of_blocks = cast(BlockSystem, system)  # as a Run with minibatches has it
        stepper = batches = MiniBatches(of_blocks, scheme, run.batch, replicas, run.engine, every=every)
        batches.check(z)
        with torch.no_grad():
            warning = batches.warning(z)
        z, observe = batches.start(z), batches.observe
    held_out = None
    if run.evaluate is not None:
        at_once = None if run.batch is None else run.batch.size
        held_out = HeldOut(system, run.evaluate, replicas, at_once=at_once, source=run.engine.source)
        z |= held_out.start()
    return Prepared(system, z, stepper, observe, held_out, warning)


def threads_for(z: Mapping[str, Tensor]) -> int:
    """How many threads a state is worth, averages aside: one, or those that torch uses."""
    numbers = sum(value.numel() for name, value in z.items() if not name.startswith(AVERAGE))
    small = numbers < ONE_THREAD_BELOW
    return 1 if small else torch.get_num_threads()


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Torch with that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""What a run needs in memory before its first step: system, start, stepper, and who looks on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from sdeflow.config.run import Run
from sdeflow.engine.compiled import CompiledSteps
from sdeflow.engine.minibatch import MiniBatches
from sdeflow.engine.step import Stepper
from sdeflow.errors import SdeflowError, attempt
from sdeflow.model.precision import float32_products
from sdeflow.parallel.field import sharded, shareable
from sdeflow.parallel.ranks import ALONE, Ranks
from sdeflow.simulation.held_out import HeldOut
from sdeflow.simulation.sharing import Sharing
from sdeflow.state import TUNING, State
from sdeflow.system.average import AVERAGE, average_start, averaging
from sdeflow.system.scheduled import OwnTime, numbers_at
from sdeflow.system.start import Origin, begun
from sdeflow.system.system import BlockSystem, System, initial_state
from sdeflow.tuning.warm_up import WarmUp

ONE_THREAD_BELOW = 500_000
"""Numbers in the state up to which a CPU run keeps to one thread.

Small operations gain nothing from more, and lose much where the other cores are busy: threads that wait
for each other made a step of 4000 particles 20 times slower on two cores with one of them taken.
"""


class Prepared:
    """A run that can start: `stepper` takes its steps, `observe(t, state)` gives the system's observables.

    state     at the start, or where the run was resumed
    system    as it moves; in a warm-up it changes, and with it what is made of it
    warm_up   what chooses the numbers that are 'auto'; None where there are none
    warning   what to know of the forces, and of catching up by long steps; '' for nothing
    anew      names of what an origin did not give to the start
    ranks     the processes that take the run; `state` has this one's part of the particles
    sharing   who has which part of the state

    Raises SdeflowError where something does not fit.
    """

    system: System
    stepper: Stepper
    observe: Callable[[float, State], State]
    warm_up: WarmUp | None
    held_out: HeldOut | None
    state: State

    def __init__(self, run: Run, origin: Origin | None = None, ranks: Ranks = ALONE) -> None:
        system, self._run, self.ranks = run.system, run, ranks
        if isinstance(system, BlockSystem):
            system = system.observing(run.observables).in_bf16(run.precision == "bf16")
        self._shared, self.sharing = system, Sharing.of(system, run.shard(ranks), ranks)
        self.warm_up, self.held_out = None, None
        self.warning = "" if system.model_forces is None else system.model_forces.warning
        self._scheduled = {
            b.name: OwnTime(b.schedules["h"], b.steps) for b in system.blocks if "h" in b.schedules
        }
        z, system = self._start(origin)
        if run.average is not None:
            z |= average_start(system, z)
        self._move(system)
        batches = self._batches
        ranks.alike(lambda: (system if batches is None else batches).check(z))
        if any(b.auto for b in system.blocks):
            part, epoch = (None, 1) if batches is None else (batches.part, batches.per_epoch)
            of_blocks = cast(BlockSystem, system)  # as one with blocks is
            self.warm_up = WarmUp(of_blocks, run.integrator, run.tune, run.steps, part=part, epoch=epoch)
            with float32_products():  # curvature is a difference of forces
                z = self.warm_up.begin(z)
            self._move(self.warm_up.system)
        with torch.no_grad():
            if self._batches is not None:
                self.warning = " ".join(filter(None, [self.warning, self._batches.warning(z)]))
                z = self._batches.start(z)
            else:
                scheme = run.integrator
                z |= attempt(f"{type(scheme).__name__}.init", scheme.init, self.system, z)
        if self.held_out is not None:
            z |= ranks.alike(self.held_out.start)
        self.state = z if self.warm_up is None else self.warm_up.keep(z, 0)

    def _start(self, origin: Origin | None) -> tuple[State, System]:
        """Where the run begins, and the system that moves it: of this process's data where others share it.

        Then all of the start is drawn on the host, and cut; what all have is as the leading process has it.
        """
        run, device = self._run, torch.device("cpu") if self._sharded else self._run.device
        whole = self._shared.to(run.dtype, device)
        z = initial_state(whole, replace(run.all_replicas, device=device))
        self.anew = [] if origin is None else begun(whole, z, origin)
        if not self._sharded:
            return z, whole
        own = shareable(self._shared)
        own = sharded(own, self.sharing.shard, self.ranks, fixed=run.parallel.fixed)
        return self.sharing.cut(z, run.device), own.to(run.dtype, run.device)

    @property
    def _sharded(self) -> bool:
        """Whether forces are those of parts of the data, added up."""
        return self.ranks.several or self._run.parallel.fixed

    @property
    def whole(self) -> System:
        """The system that all processes move together."""
        return self._shared if self.ranks.several else self.system

    def times(self, n: int) -> dict[str, Any]:
        """Time after step n on the reference clock, '', and on the blocks' own, [R] where replicas differ."""
        if self.warm_up is not None:
            return self.warm_up.times(n) | self._own_times(n)
        h = self.system.h
        even = {"": n * h} | {name: n * (h * rate) for name, rate in self.system.clocks.items()}
        return even | self._own_times(n)

    def numbers(self, n: int) -> State:
        """What is recorded after step n of numbers that change, each [R]."""
        replicas = self._run.all_replicas.count
        found = {} if self.warm_up is None else self.warm_up.values(replicas)
        scheduled = numbers_at(self.system.blocks, n)
        return found | {
            name: torch.full((replicas,), value, dtype=torch.float64) for name, value in scheduled.items()
        }

    def _own_times(self, n: int) -> dict[str, float]:
        """Of blocks whose own step is a schedule."""
        return {name: time(n) for name, time in self._scheduled.items()}

    def require_kept(self, *, beside: bool) -> None:
        """Loads the compiled functions that take the steps; raises NotKept where they are not kept.

        beside   whether another process compiles them then, for the next run
        """
        steps = self.stepper if self._batches is None else self._batches.compiled
        assert isinstance(steps, CompiledSteps)  # as this is asked of a run that compiles
        with threads(threads_for(self.state)):
            steps.require_kept(self.state, self._run.save.steps(self._run.steps), beside=beside)

    def move_by(self, run: Run) -> None:
        """Takes the steps by the engine of that run, which is the same one but for this, from its start."""
        self._run = run
        self._move(self.system)

    def adapt(self, z: State, n: int) -> State:
        """The state to go on from after step n, by the numbers that the warm-up now has."""
        assert self.warm_up is not None
        with float32_products():
            z = self.warm_up.look(z, n)
        if self.warm_up.system is not self.system or self.warm_up.next(n) is None:
            self._move(self.warm_up.system, n)
        return z

    def restore(self, state: State, n: int) -> None:
        """Goes on from a state that was stored after step n; raises SdeflowError for another system's."""
        for name in sorted(state.keys() | self.state.keys()):
            if name.startswith(TUNING):
                continue
            stored, own = state.get(name), self.state.get(name)
            if stored is None or own is None or stored.shape != own.shape or stored.dtype != own.dtype:
                given, expected = (
                    "nothing" if v is None else f"{v.dtype} {tuple(v.shape)}" for v in (stored, own)
                )
                raise SdeflowError(
                    f"the checkpoint holds {given} for {name}, expected {expected}: the model has changed"
                )
        # in the order of a run from its start, by which a compiled step is found (a checkpoint has another)
        names = [name for name in self.state | state if name in state]
        self.state = {name: state[name].to(self._run.device) for name in names}
        if self.warm_up is not None:
            self.warm_up.restore(self.state)
            self._move(self.warm_up.system, n)

    def hand_over(self) -> State:
        """The state, which is then held by the caller alone: it can be freed when there is a next one."""
        state, self.state = self.state, {}
        return state

    def _move(self, system: System, n: int = 0) -> None:
        """Moves by another system after step n: what takes its steps, and what looks on."""
        run, self.system = self._run, system
        scheme, replicas, every = run.integrator, run.all_replicas, run.save.every
        if run.average is not None:
            scheme = averaging(scheme, run.average.decay)
        adapts = self.warm_up is not None and self.warm_up.next(n) is not None
        engine = run.engine.uncompiled if adapts else run.engine
        self._batches = None
        if run.batch is None:
            noise = engine.source(system.channels, scheme.noise_spec(system.h), replicas)
            self.stepper = engine.stepper(system, scheme, noise, every=every)
            self.observe = system.observe
        else:
            of_blocks = cast(BlockSystem, system)  # as a Run with minibatches has it
            self._batches = MiniBatches(
                of_blocks, scheme, run.batch, replicas, engine, every=every, shard=self.sharing.shard
            )
            self.stepper, self.observe = self._batches, self._batches.observe
        if run.evaluate is not None:
            at_once = None if run.batch is None else run.batch.size
            whole = self._shared.to(run.dtype, run.device) if self._sharded else system
            self.held_out = HeldOut(
                whole,
                run.integrator,
                run.evaluate,
                replicas,
                at_once=at_once,
                ranks=self.ranks,
                source=engine.source,
            )
            self.sharing = self.sharing.also(self.held_out.shared, self.held_out.shard)


def prepare(run: Run, origin: Origin | None = None, ranks: Ranks = ALONE) -> Prepared:
    """A run moved to its device, its start drawn, and what the user wrote tried on it once.

    ranks    the processes that take it
    origin   what takes the place of what was drawn (`run.start`, read); None for a run that is resumed

    Raises SdeflowError where something does not fit.
    """
    with float32_products(tf32=run.precision == "tf32"):
        return Prepared(run, origin, ranks)


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

"""Engines: how steps are computed and where their noise comes from.

    eager      torch's operations one after the other
    fused      noise and update of a block in one pass over memory, where a map allows it
    compiled   several steps at once through torch.compile, all but their normals, which takes up to a minute
               at first: for long runs

Engines agree within one noise source, to rounding. Nothing here has a side effect or looks at a value.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, get_args

import torch
from torch import Tensor

from sdeflow.engine.compiled import CompiledSteps
from sdeflow.engine.cuda_graph import GraphedSteps
from sdeflow.engine.kept import used
from sdeflow.engine.step import EagerSteps, Stepper
from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.noise.cpp import NO_FMA
from sdeflow.noise.kernel import Kernel, NoKernel
from sdeflow.noise.philox_source import PhiloxNoise, find_kernel
from sdeflow.noise.source import NormalSource, TorchNoise
from sdeflow.options import Batch, EngineName, NoiseName
from sdeflow.state import Replicas, State
from sdeflow.system.increments import Channel, NoiseSpec, noise_of
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import BlockSystem, System
from sdeflow.system.traced import StepNumbers

LONG, BESIDE, LOOK = 100_000, 10_000, 1_000
"""Steps from which 'auto' compiles first, compiles beside the run for the next one, and looks what is kept.

Measured on one core: compiling the toy model or a decoder of the digits takes 15 to 60 s, and saves 0.2 to
2 ms of a step, so that it is paid back after some 20 000; looking takes 0.05 s.
"""


@dataclass(frozen=True)
class Engine:
    """What computes a run: the engine's name, its noise source's, and why it is these.

    fallback   what to take where torch cannot compile the model's step; None where this one was asked for
    kept       what to take instead where its compiled step is kept; None for nothing
    """

    name: str = "eager"
    source_name: str = TorchNoise.name
    why: str = "the default"
    fallback: Engine | None = None
    kept: Engine | None = None

    def __str__(self) -> str:
        return f"engine {self.name}, noise {self.source_name}: {self.why}"

    @property
    def uncompiled(self) -> Engine:
        """What to take steps by that are too few to be compiled."""
        return replace(self, name="eager") if self.name == "compiled" else self

    def source(self, channels: Sequence[Channel], spec: NoiseSpec, replicas: Replicas) -> NormalSource:
        """Its noise source."""
        if self.source_name == TorchNoise.name:
            return TorchNoise(channels, spec, replicas)
        return PhiloxNoise(channels, spec, replicas, fused=self.name == "fused")

    def stepper(
        self, system: System, integrator: Integrator[Any], noise: NormalSource, *, every: int = 1
    ) -> Stepper:
        """Steps of a scheme on a system; raises SdeflowError where this engine cannot take them.

        every   steps from one snapshot to the next
        """
        if self.name == "compiled":
            return _compiled(system, integrator, noise, every)
        if counters := self.counters(system, integrator, noise):
            return _graphed(system, integrator, noise, counters, every)
        return EagerSteps(system, integrator, noise)

    def counters(self, system: System, integrator: Integrator[Any], *sources: NormalSource) -> list[Tensor]:
        """Those of noise sources, where steps of a system can be captured in a graph; else none.

        Where forces do not depend on time a graph of its steps serves all of them, of one set of numbers:
        those of schedules are read on the host. A graph with reductions was not yet tried.
        """
        found = [s.counter for s in sources if isinstance(s, PhiloxNoise) and s.counter is not None]
        forces = system.model_forces
        if self.name != "fused" or len(found) < len(sources) or forces is None or not integrator.captured:
            return []
        steady = not forces.timed and not forces.stored and not any(b.schedules for b in system.blocks)
        return found if steady and not forces.shared and traced(system) else []


def _compiled(system: System, integrator: Integrator[Any], noise: NormalSource, every: int) -> CompiledSteps:
    if system.model_forces is None:
        raise SdeflowError("engine 'compiled' needs a system made of a model: give 'auto' or 'eager'")
    assert isinstance(system, BlockSystem)  # as one with a model's forces is
    h, spec = system.h, integrator.noise_spec(system.h)
    numbers, device = StepNumbers(system), torch.device("cpu")

    def step(system: BlockSystem, channels: Sequence[Channel], z: State, drawn: Sequence[Tensor]) -> State:
        t: Any  # a number to a scheme; of what is compiled once a tensor, as it changes
        t, *normals = drawn
        return integrator.step(system, t, z, h, noise_of(zip(channels, normals, strict=True), spec))

    def begin(z: State) -> None:
        nonlocal device
        device = next(iter(z.values())).device
        drawn = [x[0] for x in draw(0, 1)]
        numbers.ask(lambda system, channels: step(system, channels, z, drawn), device)

    def draw(n: int, count: int) -> list[Tensor]:
        times = torch.tensor([k * h for k in range(n, n + count)], dtype=torch.float64, device=device)
        return [times, *(xi for _, xi in noise.normals(n, count)), *numbers.rows(n, count)]

    def transition(z: State, draws: Sequence[Tensor]) -> State:
        return step(numbers.system, numbers.channels, z, numbers.show(draws))

    drawn = next(noise.normals(0), None)
    missing = 0 if drawn is None else drawn[1].shape[3] * _normals_elsewhere(system, spec)
    missing -= 1  # the time is no normal
    keeps = not system.model_forces.shared
    return CompiledSteps(transition, draw, integrator.evaluations, every, begin, missing, keeps=keeps)


def _graphed(
    system: System, integrator: Integrator[Any], noise: NormalSource, counters: list[Tensor], every: int
) -> GraphedSteps:
    h, device = system.h, counters[0].device

    def draw(n: int, count: int) -> list[Tensor]:
        return [torch.arange(n, n + count, device=device)]

    def transition(z: State, k: int, draws: Sequence[Tensor]) -> State:
        t: Any = draws[0].double() * h  # of the step that is replayed, to a scheme that looks at it
        return integrator.step(system, t, z, h, noise(k))

    return GraphedSteps(transition, counters, draw, every, sum(prod(a.shape) for a in system.axes.values()))


def _normals_elsewhere(system: BlockSystem, spec: NoiseSpec) -> int:
    """Normals of a step of a replica that other processes draw, for particles of their data."""
    assert system.model_forces is not None
    others = system.model_forces.n_all - system.model_forces.n_data
    of_data = (c for c in system.channels if c.block is not None and c.block.of_data)
    return others * spec.substeps * sum(prod(c.shape[1:]) * c.normals(spec.kind) for c in of_data)


def traced(system: System) -> bool:
    """Whether all that moves blocks is made of torch's operations alone."""
    return all(b.optimizer is None or b.optimizer.traced for b in system.blocks)


def refuses_compiling(system: System, batch: Batch | None) -> str:
    """Why steps cannot be compiled, '' where they can: they would read data, or look at scheduled numbers."""
    if system.model_forces is not None and system.model_forces.stored:
        return "its data are not in memory"
    late = batch is not None and batch.catch_up != "off"
    for b in system.blocks:
        for name in b.schedules:
            if b.optimizer is not None:
                return f"the learning rate h of block '{b.name}' is a schedule"
            if late and b.of_data:
                return f"{name} of block '{b.name}', which catches up, is a schedule"
    return ""


def refuse_schedules(system: System, batch: Batch | None, engine: Engine) -> None:
    """Raises SdeflowError where schedules do not go with how steps are taken."""
    if engine.name == "compiled" and (why := refuses_compiling(system, batch)):
        raise SdeflowError(
            f"engine 'compiled' cannot take this run, for {why}: give engine 'auto', 'fused' or 'eager'"
        )
    how = "off" if batch is None else batch.catch_up
    for b in system.blocks:
        for name in b.schedules:
            if b.of_data and (how == "srock" or (how == "one_step" and name != "h")):
                raise SdeflowError(
                    f"batch.catch_up = '{how}' takes several steps as one, and {name} of block '{b.name}' is "
                    "a schedule: give batch.catch_up = 'substeps' or 'off'"
                )


def steps_to_compile(system: System, batch: Batch | None, steps: int, device: torch.device) -> int:
    """The steps of a run that may be compiled unasked, else 0: those of a model, where C++ can be compiled.

    Not while numbers are chosen on the way, since each change of them would be compiled anew.
    """
    if any(b.auto for b in system.blocks) or not traced(system) or refuses_compiling(system, batch):
        return 0
    if not isinstance(steps, int) or device.type != "cpu" or system.model_forces is None:
        return 0
    return steps if shutil.which(os.environ.get("CXX", "g++")) is not None else 0


def resolve_engine(engine: str, noise: str, device: torch.device, *, steps: int = 0) -> Engine:
    """The engine for names that may be 'auto'; raises SdeflowError where it cannot be had.

    With a kernel for the device 'auto' is philox and fused, and eager with noise torch; without one, torch
    and eager. With many `steps` to compile (`steps_to_compile`) it is compiled, with these to fall back on;
    with fewer, these, or compiled where that is kept.
    """
    for what, given, names in (("engine", engine, EngineName), ("noise", noise, NoiseName)):
        if given not in get_args(names):
            raise SdeflowError(f"unknown {what} '{given}': {did_you_mean(str(given), get_args(names))}")
    if (engine, noise) == ("fused", "torch"):
        raise SdeflowError("engine 'fused' draws its noise itself: give noise 'philox', not 'torch'")
    kernel, why_not = _kernel_or_reason(device)
    if kernel is not None and not kernel.fast and (engine, noise) == ("auto", "auto"):
        kernel, why_not = None, NO_FMA
    if kernel is None:
        for what, given, needs_kernel in (("engine", engine, "fused"), ("noise", noise, "philox")):
            if given == needs_kernel:
                raise SdeflowError(f"{what} '{given}' needs a kernel, and {why_not}: give engine 'eager'")
        noise = "torch"
    elif noise == "auto":
        noise = "philox"
    if engine != "auto":
        return Engine(engine, noise, why_not or "as asked for")
    name = "fused" if noise == "philox" else "eager"
    short = Engine(name, noise, why_not or f"the best for noise {noise} on {device.type}")
    if name == "fused" and device.type == "cuda":  # for a model whose steps no graph can be made of
        short = replace(short, fallback=Engine("eager", noise))
    if steps >= LONG:
        return Engine("compiled", noise, f"worth it from {LONG:,} steps on", fallback=short)
    if steps < LOOK or not used():
        return short
    kept = Engine("compiled", noise, "its compiled step was kept", fallback=short)
    return replace(short, why=f"{short.why}, but compiled where its step is kept", kept=kept)


def _kernel_or_reason(device: torch.device) -> tuple[Kernel | None, str]:
    try:
        return find_kernel(device), ""
    except NoKernel as reason:
        return None, str(reason)

"""Engines: how steps are computed and where their noise comes from; and advancing a state by steps.

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
from typing import Any, get_args

import torch
from torch import Tensor

from sdeflow.engine.compiled import CompiledSteps
from sdeflow.engine.cuda_graph import GraphedSteps
from sdeflow.engine.step import FullBatch, Step
from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.noise.cpp import NO_FMA
from sdeflow.noise.philox_source import PhiloxNoise, kernel
from sdeflow.noise.source import NormalSource, TorchNoise
from sdeflow.options import EngineName, NoiseName
from sdeflow.state import State
from sdeflow.system.increments import Channel, noise_of
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import System

LONG = 100_000
"""Steps from which 'auto' compiles.

Measured on one core: compiling the toy model or a decoder of the digits takes 5 to 40 s, and saves 0.2 to
2 ms of a step, so that it is paid back after some 20 000.
"""


@dataclass(frozen=True)
class Engine:
    """What computes a run: the engine's name, the noise source's, and why it is these.

    fallback   what to take where torch cannot compile the model's step; None where this one was asked for
    """

    name: str = "eager"
    noise: str = TorchNoise.name
    why: str = "unless told otherwise"
    fallback: Engine | None = None

    def __str__(self) -> str:
        return f"engine {self.name}, noise {self.noise}: {self.why}"

    def source(self, channels: Sequence[Channel], **how: Any) -> NormalSource:
        """Its noise source; `how` as for sdeflow.noise.TorchNoise."""
        if self.noise == TorchNoise.name:
            return TorchNoise(channels, **how)
        return PhiloxNoise(channels, **how, fused=self.name == "fused")

    def step(
        self, system: System, integrator: Integrator[Any], noise: NormalSource, *, every: int = 1
    ) -> Step:
        """Steps of a scheme on a system; raises SdeflowError where this engine cannot take them.

        every   steps from one snapshot to the next
        """
        if self.name == "compiled":
            return _compiled(system, integrator, noise, every)
        step = FullBatch(system, integrator, noise)
        counter = noise.counter if isinstance(noise, PhiloxNoise) and self.name == "fused" else None
        return GraphedSteps(step, counter) if counter is not None and _modelled(system) else step


def _modelled(system: System) -> bool:
    """Whether forces come from a model, and so do not depend on time."""
    return system.model_forces is not None


def _compiled(system: System, integrator: Integrator[Any], noise: NormalSource, every: int) -> CompiledSteps:
    if not _modelled(system):
        raise SdeflowError("engine 'compiled' needs a system made of a model: give 'auto' or 'eager'")
    channels, h = list(system.channels), system.h
    how: dict[str, Any] = {"kind": integrator.noise, "substeps": integrator.substeps, "h": h}

    def draw(n: int, count: int) -> list[Tensor]:
        return [xi for _, xi in noise.normals(n, count)]

    def transition(z: State, normals: Sequence[Tensor]) -> State:
        return integrator.step(system, 0.0, z, h, noise_of(zip(channels, normals, strict=True), **how))

    return CompiledSteps(transition, draw, integrator.evaluations, every)


def worth_compiling(system: System, steps: int, device: torch.device) -> bool:
    """Whether a run pays for torch.compile: a long one of a model, where there is a C++ compiler."""
    if not isinstance(steps, int) or steps < LONG or device.type != "cpu":
        return False
    return _modelled(system) and shutil.which(os.environ.get("CXX", "g++")) is not None


def resolve_engine(engine: str, noise: str, device: torch.device, *, long: bool = False) -> Engine:
    """The engine for names that may be 'auto'; raises SdeflowError where it cannot be had.

    'auto' is philox and fused where there is a kernel for the CPU, and torch and eager where not; compiled
    for a long run (`worth_compiling`), with these to fall back on.
    """
    for what, given, names in (("engine", engine, EngineName), ("noise", noise, NoiseName)):
        if given not in get_args(names):
            raise SdeflowError(f"unknown {what} '{given}': {did_you_mean(str(given), get_args(names))}")
    if engine == "fused" and noise == "torch":
        raise SdeflowError("engine 'fused' draws its noise itself: give noise 'philox', not 'torch'")
    found = kernel(device)
    if not isinstance(found, str) and not found.fast and (engine, noise) == ("auto", "auto"):
        found = NO_FMA
    if isinstance(found, str):
        for what, given, wish in (("engine", engine, "fused"), ("noise", noise, "philox")):
            if given == wish:
                raise SdeflowError(f"{what} '{wish}' needs a kernel, and {found}: give engine 'eager'")
        short = Engine("eager", "torch", found)
        if engine == "compiled":
            return replace(short, name="compiled")
        return _for_long_runs(short) if engine == "auto" and long else short
    if noise == "auto":
        noise = "philox" if device.type == "cpu" or engine == "fused" else "torch"
    best = "fused" if noise == "philox" else "eager"
    if engine == "auto":
        short = Engine(best, noise, f"the best for noise {noise} on {device.type}")
        return _for_long_runs(short) if long else short
    return Engine(engine, noise, "as asked for")


def _for_long_runs(short: Engine) -> Engine:
    return Engine("compiled", short.noise, f"worth it from {LONG:,} steps on", short)

"""Engines: how steps are computed and where their noise comes from; and advancing a state by steps.

    eager      torch's operations one after the other
    fused      noise and update of a block in one pass over memory, where a map allows it
    compiled   the whole step but for its normals through torch.compile, which takes half a minute at first:
               for long runs of models whose gradients are automatic

Engines agree within one noise source, to rounding. Nothing here has a side effect or looks at a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from sdeflow.compiled import CompiledStep
from sdeflow.config import EngineName, NoiseName
from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.integrator import Integrator
from sdeflow.keyed import PhiloxNoise
from sdeflow.native import kernel
from sdeflow.noise import Channel, NoiseSource, NormalSource, TorchNoise
from sdeflow.system import System

State = dict[str, Tensor]

Step = Callable[[State, int], State]
"""Step n of a run: the state after it, from the state before it, which stays as it was."""


@dataclass(frozen=True)
class Engine:
    """What computes a run: the engine's name, the noise source's, and why it is these."""

    name: str = "eager"
    noise: str = TorchNoise.name
    why: str = "unless told otherwise"

    def __str__(self) -> str:
        return f"engine {self.name}, noise {self.noise}: {self.why}"

    def source(self, channels: Sequence[Channel], **how: Any) -> NormalSource:
        """Its noise source; `how` as for sdeflow.noise.TorchNoise."""
        if self.noise == TorchNoise.name:
            return TorchNoise(channels, **how)
        return PhiloxNoise(channels, **how, fused=self.name == "fused")

    def step(self, system: System, integrator: Integrator, noise: NormalSource) -> Step:
        """Steps of a scheme on a system; raises SdeflowError where this engine cannot take them."""
        if self.name == "compiled":
            return CompiledStep(system, integrator, noise)
        return full_batch(system, integrator, noise)


def full_batch(system: System, integrator: Integrator, noise: NoiseSource) -> Step:
    """Steps on whatever the system's forces see."""
    return lambda z, n: integrator.step(system, n * system.h, z, system.h, noise(n))


def resolve_engine(engine: str, noise: str, device: torch.device) -> Engine:
    """The engine for names that may be 'auto'; raises SdeflowError where it cannot be had.

    'auto' is philox and fused where there is a kernel for the CPU, and torch and eager where not.
    """
    for what, given, names in (("engine", engine, EngineName), ("noise", noise, NoiseName)):
        if given not in get_args(names):
            raise SdeflowError(f"unknown {what} '{given}': {did_you_mean(str(given), get_args(names))}")
    if engine == "fused" and noise == "torch":
        raise SdeflowError("engine 'fused' draws its noise itself: give noise 'philox', not 'torch'")
    found = kernel(device)
    if isinstance(found, str):
        for what, given, wish in (("engine", engine, "fused"), ("noise", noise, "philox")):
            if given == wish:
                raise SdeflowError(f"{what} '{wish}' needs a kernel, and {found}: give engine 'eager'")
        return Engine("compiled" if engine == "compiled" else "eager", "torch", found)
    if noise == "auto":
        noise = "philox" if device.type == "cpu" or engine == "fused" else "torch"
    best = "fused" if noise == "philox" else "eager"
    if engine == "auto":
        return Engine(best, noise, f"the best for noise {noise} on {device.type}")
    return Engine(engine, noise, "as asked for")


def advance(step: Step, z: State, first: int, steps: int) -> State:
    """The state after the steps first, first + 1, ..., first + steps - 1 of the reference clock."""
    with torch.no_grad():
        for n in range(first, first + steps):
            z = step(z, n)
    return z

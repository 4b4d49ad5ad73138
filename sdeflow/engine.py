"""Advancing a state: no side effect, no look at a value, nothing but steps."""

from __future__ import annotations

import torch
from torch import Tensor

from sdeflow.integrator import Integrator
from sdeflow.noise import NoiseSource
from sdeflow.system import System


def advance(
    system: System, integrator: Integrator, z: dict[str, Tensor], noise: NoiseSource, first: int, steps: int
) -> dict[str, Tensor]:
    """The state after the steps first, first + 1, ..., first + steps - 1 of the reference clock."""
    h = system.h
    with torch.no_grad():
        for n in range(first, first + steps):
            z = integrator.step(system, n * h, z, h, noise(n))
    return z

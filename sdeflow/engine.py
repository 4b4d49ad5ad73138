"""Advancing a state: no side effect, no look at a value, nothing but steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdeflow.integrator import Integrator
from sdeflow.noise import NoiseSource
from sdeflow.system import System

State = dict[str, Tensor]

Step = Callable[[State, int], State]
"""Step n of a run: the state after it, from the state before it, which stays as it was."""


def full_batch(system: System, integrator: Integrator, noise: NoiseSource) -> Step:
    """Steps on all data at once."""
    return lambda z, n: integrator.step(system, n * system.h, z, system.h, noise(n))


def advance(step: Step, z: State, first: int, steps: int) -> State:
    """The state after the steps first, first + 1, ..., first + steps - 1 of the reference clock."""
    with torch.no_grad():
        for n in range(first, first + steps):
            z = step(z, n)
    return z

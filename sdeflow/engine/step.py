"""Steps of a run, and advancing a state by them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from sdeflow.system.system import BlockSystem

if TYPE_CHECKING:
    from sdeflow.noise.source import NoiseSource
    from sdeflow.state import State
    from sdeflow.system.integrator import Integrator
    from sdeflow.system.system import System


class Stepper(Protocol):
    """Steps of a run: z_n to z_{n + count}, where z_n stays as it was.

    stride   how many are best taken at once: `count` is this or 1
    """

    @property
    def stride(self) -> int: ...

    def __call__(self, z: State, n: int, count: int = 1) -> State: ...


@dataclass(frozen=True)
class EagerSteps:
    """Steps on whatever the system's forces see, one after the other."""

    system: System
    integrator: Integrator[Any]
    noise: NoiseSource
    stride: ClassVar[int] = 1

    def __call__(self, z: State, n: int, count: int = 1) -> State:
        for k in range(n, n + count):
            system = self.system.at(k) if isinstance(self.system, BlockSystem) else self.system
            z = self.integrator.step(system, k * system.h, z, system.h, self.noise(k))
        return z


def advance(stepper: Stepper, z: State, first: int, steps: int) -> State:
    """The state after the steps first, first + 1, ..., first + steps - 1 of the reference clock."""
    with torch.no_grad():
        for n, count in strides(first, first + steps, stepper.stride):
            z = stepper(z, n, count)
    return z


def strides(first: int, end: int, stride: int) -> Iterator[tuple[int, int]]:
    """(n, count) from `first` up to `end`: whole strides from multiples of the stride on, else single steps.

    So what is taken at once depends on the end alone, and not on where a run is cut at multiples.
    """
    n = first
    while n < end:
        count = stride if n % stride == 0 and n + stride <= end else 1
        yield n, count
        n += count

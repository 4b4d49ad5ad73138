"""Where the normals of a step come from, and torch's generator as the source of reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sdeflow.seeds import derive_key, step_key
from sdeflow.state import Replicas
from sdeflow.system.increments import Channel, Noise, NoiseSpec, noise_of


class NoiseSource(Protocol):
    """Gives the noise of step n as one mapping a substep; a function of n alone, in any order."""

    def __call__(self, n: int) -> tuple[Noise, ...]: ...


class NormalSource(NoiseSource, Protocol):
    """A source that also gives what its increments are made of.

    of   the step whose numbers blocks have, where they are scheduled; n unless given
    """

    def __call__(self, n: int, of: int | None = None) -> tuple[Noise, ...]: ...

    def normals(self, n: int, count: int = 1) -> Iterator[tuple[Channel, Tensor]]:
        """Standard normals of steps n, ..., n + count - 1 by channel, [count, substep, normal, R, *shape].

        To be used before the next.
        """


class Buffers:
    """Tensors to draw into, made anew only where another shape is asked for."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        buffer = self._tensors.get(name)
        if buffer is None or buffer.shape != shape:
            like = self._replicas
            buffer = self._tensors[name] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return buffer


class TorchNoise:
    """The `torch` source: torch's own generator, keyed anew for every (seed, block, step).

    Replica i of a run with seed s draws what a run of one replica with seed s + i draws. W comes from the
    first normals of a step, so schemes with as many substeps share it, whatever else they ask for; P alone
    is drawn from the same normals, and is then only close to the P that comes with Q. On a CPU
    the generator is torch's Mersenne twister, on CUDA its Philox: the two give different numbers.
    """

    name = "torch"

    def __init__(self, channels: Sequence[Channel], spec: NoiseSpec, replicas: Replicas) -> None:
        self._generator = torch.Generator(replicas.device)
        self._spec = spec
        self._channels = [
            (channel, [step_key(derive_key(seed, "noise", channel.key)) for seed in replicas.seeds])
            for channel in channels
        ]
        self._buffers = Buffers(replicas)

    def __call__(self, n: int, of: int | None = None) -> tuple[Noise, ...]:
        step = n if of is None else of
        return noise_of(((channel.at(step), xi[0]) for channel, xi in self.normals(n)), self._spec)

    def normals(self, n: int, count: int = 1) -> Iterator[tuple[Channel, Tensor]]:
        """As NormalSource has it; the next steps reuse the tensors."""
        for channel, keys in self._channels:
            many = self._spec.substeps, channel.normals(self._spec.kind)
            xi = self._buffers(channel.key, (count, *many, len(keys), *channel.shape))
            for k in range(count):
                for r, key in enumerate(keys):
                    self._generator.manual_seed(key(n + k))
                    for of, substep in np.ndindex(many[::-1]):
                        xi[k, substep, of, r].normal_(generator=self._generator)
            yield channel, xi

"""Counter-based noise, and increments of it that a kernel draws within the update of their block.

A map that meets such an increment hands its update to the kernel, which draws the noise and moves the block
in one pass over memory. Wherever the kernel does not apply the increment is a mapping like any other, whose
tensors are drawn when they are asked for; the normals are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import prod
from typing import cast

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.noise.cpp import cpp_kernel
from sdeflow.noise.kernel import Draw, Kernel, KineticNumbers, LinearNumbers, NoKernel, kinetic_numbers
from sdeflow.noise.source import Buffers
from sdeflow.noise.transforms import outside_transforms, transformed
from sdeflow.seeds import derive_key
from sdeflow.state import Replicas, State
from sdeflow.system.block import Block
from sdeflow.system.increments import Channel, FusableIncrement, Kind, Noise, NoiseSpec

Numbers = LinearNumbers | KineticNumbers


@dataclass(frozen=True, eq=False)
class PhiloxChannel:
    """The noise of one channel in all replicas: a key each [R], and what its normals are made into.

    h         reference length of a substep
    fused     whether an update may draw the noise itself
    counter   what the kernel adds to every step, on its device
    """

    channel: Channel
    kind: Kind
    h: float
    keys: Tensor
    dtype: torch.dtype
    kernel: Kernel
    fused: bool
    counter: Tensor | None = None
    shape: torch.Size = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", torch.Size((len(self.keys), *self.channel.shape)))

    def normals(self, step: int, substep: int) -> Tensor:
        """Standard normals, [normal, R, *shape]; constants to any transform of torch that is under way."""
        with outside_transforms():
            many = self.channel.normals(self.kind)
            out = torch.empty((1, 1, many, *self.shape), dtype=self.dtype, device=self.keys.device)
            self.fill(out, step, substep)
        return out[0, 0]

    def fill(self, out: Tensor, step: int, substep: int = 0) -> None:
        """Puts standard normals from a step and substep on into a tensor [steps, substeps, normals, R, ...].

        The normals of a substep have `slots` slots of their own, from slots * substep on.
        """
        self.kernel.normals(out.flatten(1, 2), self.draw(step, substep), self.slots // out.shape[2])

    @property
    def slots(self) -> int:
        """Of a substep: 2, or 3 where a number takes as many normals."""
        return max(2, self.channel.normals(self.kind))

    def draw(self, step: int, substep: int) -> Draw:
        return Draw(self.keys, step, self.slots * substep, self.counter, self.channel.first)

    def numbers(
        self, make: Callable[[Block, float, Block, float], Numbers], b: Block, h: float, noise: Block
    ) -> Tensor:
        """Those of an update of a block over h by noise of another, [1, k]; [R, k] where replicas differ."""
        return _numbers(make, b, noise, h, self.h, self.dtype, self.keys.device)

    def moves(self, *tensors: Tensor) -> bool:
        """Whether the kernel can move a block; not under a transform."""
        return (
            self.fused
            and not transformed()
            and all(
                x.shape == self.shape
                and x.dtype == self.dtype
                and x.device == self.keys.device
                and x.is_contiguous()
                for x in tensors
            )
        )


class PhiloxIncrement(FusableIncrement):
    """The increment of one channel over one substep, drawn when it is looked at.

    own   the channel with its block's numbers in the step
    """

    __slots__ = ("_channel", "_drawn", "_own", "_step", "_substep")

    def __init__(self, channel: PhiloxChannel, own: Channel, step: int, substep: int) -> None:
        self._channel, self._own, self._step, self._substep = channel, own, step, substep
        self._drawn: Mapping[str, Tensor] | None = None

    @property
    def drawn(self) -> Mapping[str, Tensor]:
        """W, H, K, P, Q as asked for."""
        if self._drawn is None:
            xi = self._channel.normals(self._step, self._substep)
            self._drawn = self._own.increment(xi.unbind(), self._channel.h, self._channel.kind)
        return self._drawn

    def __getitem__(self, name: str) -> Tensor:
        return self.drawn[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.drawn)

    def __len__(self) -> int:
        return len(self.drawn)

    def exponential(self, b: Block, z: State, f: Tensor | None, h: float | Tensor) -> State | None:
        if isinstance(h, Tensor):  # a step a datum
            return None
        c, force = self._channel, () if f is None else (f,)
        q, draw = z[b.position], c.draw(self._step, self._substep)
        if b.momentum is None:
            if not c.moves(q, *force):
                return None
            return {b.position: c.kernel.linear(q, f, c.numbers(_euler, b, h, self._own.block or b), draw)}
        p = z[b.momentum]
        if self._own.block is None or "Q" not in c.kind or not c.moves(q, p, *force):
            return None
        q, p = c.kernel.kinetic(q, p, f, c.numbers(_exponential, b, h, self._own.block), draw)
        return {b.position: q, b.momentum: p}

    def friction(self, b: Block, z: State, h: float | Tensor) -> State | None:
        c, p = self._channel, z[b.noisy]
        if isinstance(h, Tensor) or self._own.block is None or c.kind != "P" or not c.moves(p):
            return None
        numbers = c.numbers(_friction, b, h, self._own.block)
        return {b.noisy: c.kernel.linear(p, None, numbers, c.draw(self._step, self._substep))}


# Numbers of an update for one replica: its block over h, and the noise over h_noise of its own block.


def _euler(b: Block, h: float, noise: Block, h_noise: float) -> LinearNumbers:
    return LinearNumbers(a=1.0, c=b.rate * h, s=b.diffusion, t=h_noise**0.5)


def _exponential(b: Block, h: float, noise: Block, h_noise: float) -> KineticNumbers:
    return kinetic_numbers(b.flow(h), noise.flow(h_noise), b.root_temperature)


def _friction(b: Block, h: float, noise: Block, h_noise: float) -> LinearNumbers:
    w, std = cast("tuple[float, float]", (b.flow(h).w, noise.flow(h_noise).p_std))
    return LinearNumbers(a=w, c=0.0, s=b.root_temperature, t=std)


@lru_cache(maxsize=256)
def _numbers(
    make: Callable[[Block, float, Block, float], Numbers],
    b: Block,
    noise: Block,
    h: float,
    h_noise: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    rows = [make(one, h, noise.of(r), h_noise) for r, one in enumerate(b.replicas)]
    return torch.tensor(rows, dtype=torch.float64).to(device, dtype)


class PhiloxNoise:
    """Counter-based noise: a number is a function of (seed, block, step, substep, which normal, element).

    Replica i of a run with seed s draws what a run of one replica with seed s + i draws. W comes from the
    first normals of a step, and so does P alone, as from the source `torch`. Numbers do not depend on
    threads, and not on the device but for the last digits. See sdeflow.noise.kernel for the layout.

    fused     whether an update may draw the noise itself, in one pass over memory
    counter   what a kernel adds to every step, on its device; None where steps cannot be captured

    Raises SdeflowError where there is no kernel for the device.
    """

    name = "philox"

    def __init__(
        self, channels: Sequence[Channel], spec: NoiseSpec, replicas: Replicas, *, fused: bool = False
    ) -> None:
        device = replicas.device
        try:
            kernel = find_kernel(device)
        except NoKernel as missing:
            raise SdeflowError(f"noise 'philox' needs a kernel, and {missing}: give noise 'torch'") from None
        self._spec = spec
        self.counter = torch.zeros(1, dtype=torch.int64, device=device) if kernel.captures else None
        self._channels = [
            PhiloxChannel(
                c, spec.kind, spec.h_substep, _keys(c, replicas), replicas.dtype, kernel, fused, self.counter
            )
            for c in channels
        ]
        self._buffers = Buffers(replicas)
        most = 2**34 if replicas.dtype == torch.float32 else 2**33  # see sdeflow.noise.kernel
        if too_long := [c.key for c in channels if c.first + prod(c.shape) > most]:
            raise SdeflowError(
                f"block '{too_long[0]}' has more than {most:,} numbers a replica, and noise 'philox' has no "
                "more: take fewer data or particles"
            )

    def __call__(self, n: int, of: int | None = None) -> tuple[Noise, ...]:
        channels = [(c, c.channel.at(n if of is None else of)) for c in self._channels]
        return tuple(
            {own.variable: PhiloxIncrement(c, own, n, substep) for c, own in channels}
            for substep in range(self._spec.substeps)
        )

    def normals(self, n: int, count: int = 1) -> Iterator[tuple[Channel, Tensor]]:
        """As sdeflow.noise.source.NormalSource has it; the next steps reuse the tensors."""
        for c in self._channels:
            many = self._spec.substeps, c.channel.normals(c.kind)
            xi = self._buffers(c.channel.key, (count, *many, *c.shape))
            c.fill(xi, n)
            yield c.channel, xi


def _keys(channel: Channel, replicas: Replicas) -> Tensor:
    """64 bits a replica, as int64."""
    keys = (derive_key(seed, "noise", channel.key) & 2**64 - 1 for seed in replicas.seeds)
    signed = [key - (key >> 63 << 64) for key in keys]
    return torch.tensor(signed, dtype=torch.int64).to(replicas.device)


def find_kernel(device: torch.device) -> Kernel:
    """The kernels for a device; raises NoKernel with the reason where there are none."""
    return cpp_kernel() if device.type == "cpu" else _triton()


@cache
def _triton() -> Kernel:
    try:
        from sdeflow.noise.cuda import TritonKernel
    except ImportError as error:
        raise NoKernel(
            f"the kernels for CUDA are written in Triton, which is not to be had: {error}"
        ) from error
    return TritonKernel()

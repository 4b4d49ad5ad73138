"""Increments that are described rather than drawn, and the updates that draw them as they go.

A map that meets such an increment hands its update to the kernel, which draws the noise and moves the block
in one pass over memory. Wherever the kernel does not apply the increment is a mapping like any other, whose
tensors are drawn when they are asked for; the normals are the same bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import cast

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from sdeflow.errors import SdeflowError
from sdeflow.noise.cpp import native
from sdeflow.noise.kernel import Draw, Kernel, kinetic_numbers
from sdeflow.noise.source import Room
from sdeflow.seeds import stream
from sdeflow.state import State
from sdeflow.system.block import Block
from sdeflow.system.increments import Channel, Described, Kind, Noise

Make = Callable[[Block, float, Block, float], tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Stream:
    """The noise of one channel in all replicas: a key each [R], and what its normals are made into.

    h       reference length of a substep
    fused   whether an update may draw the noise itself
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
        with temporarily_clear_interpreter_stack():
            many = self.channel.normals(self.kind)
            out = torch.empty((1, 1, many, *self.shape), dtype=self.dtype, device=self.keys.device)
            self.fill(out, step, substep)
        return out[0, 0]

    def fill(self, out: Tensor, step: int, substep: int = 0) -> None:
        """Puts standard normals from a step and substep on into a tensor [steps, substeps, normals, R, ...].

        The normals of a substep have slots of their own, 2 substep and 2 substep + 1.
        """
        self.kernel.normals(out.flatten(1, 2), self.draw(step, substep), 2 // out.shape[2])

    def draw(self, step: int, substep: int) -> Draw:
        return Draw(self.keys, step, 2 * substep, self.counter)

    def numbers(self, make: Make, b: Block, h: float) -> Tensor:
        """Those of an update of a block over h, [1, k], or [R, k] where replicas have their own."""
        return _numbers(make, b, self.channel.block, h, self.h, self.dtype, self.keys.device)

    def moves(self, *tensors: Tensor) -> bool:
        """Whether the kernel can move a block; not under a transform."""
        return (
            self.fused
            and not traced()
            and all(
                x.shape == self.shape
                and x.dtype == self.dtype
                and x.device == self.keys.device
                and x.is_contiguous()
                for x in tensors
            )
        )


class Keyed(Described):
    """The increment of one channel over one substep, drawn when it is looked at."""

    __slots__ = ("_parts", "_step", "_stream", "_substep")

    def __init__(self, stream: Stream, step: int, substep: int) -> None:
        self._stream, self._step, self._substep = stream, step, substep
        self._parts: Mapping[str, Tensor] | None = None

    @property
    def parts(self) -> Mapping[str, Tensor]:
        if self._parts is None:
            s = self._stream
            xi = s.normals(self._step, self._substep)
            self._parts = s.channel.increment(xi.unbind(), s.h, s.kind)
        return self._parts

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def exponential(self, b: Block, z: State, f: Tensor | None, h: float | Tensor) -> State | None:
        if isinstance(h, Tensor):  # a step a datum
            return None
        s, force = self._stream, () if f is None else (f,)
        q, draw = z[b.position], s.draw(self._step, self._substep)
        if b.momentum is None:
            if not s.moves(q, *force):
                return None
            return {b.position: s.kernel.linear(q, f, s.numbers(_euler, b, h), draw)}
        p = z[b.momentum]
        if s.channel.block is None or "Q" not in s.kind or not s.moves(q, p, *force):
            return None
        q, p = s.kernel.kinetic(q, p, f, s.numbers(_exponential, b, h), draw)
        return {b.position: q, b.momentum: p}

    def friction(self, b: Block, z: State, h: float | Tensor) -> State | None:
        s, p = self._stream, z[b.noisy]
        if isinstance(h, Tensor) or s.channel.block is None or s.kind != "P" or not s.moves(p):
            return None
        numbers = s.numbers(_friction, b, h)
        return {b.noisy: s.kernel.linear(p, None, numbers, s.draw(self._step, self._substep))}


# Numbers of an update for one replica: its block over h, and the noise over h_noise of its own block.


def _euler(b: Block, h: float, noise: Block, h_noise: float) -> tuple[float, ...]:
    return 1.0, b.rate * h, b.diffusion, h_noise**0.5


def _exponential(b: Block, h: float, noise: Block, h_noise: float) -> tuple[float, ...]:
    return kinetic_numbers(b.flow(h), noise.flow(h_noise), math.sqrt(b.temperature))


def _friction(b: Block, h: float, noise: Block, h_noise: float) -> tuple[float, ...]:
    w, std = cast("tuple[float, float]", (b.flow(h).w, noise.flow(h_noise).p_std))
    return w, 0.0, math.sqrt(b.temperature), std


@lru_cache(maxsize=256)
def _numbers(
    make: Make,
    b: Block,
    noise: Block | None,
    h: float,
    h_noise: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    noise = noise or b
    rows = [make(one, h, noise.of(r), h_noise) for r, one in enumerate(b.replicas)]
    return torch.tensor(rows, dtype=torch.float64).to(device, dtype)


def traced() -> bool:
    """Whether torch follows what is computed, to differentiate or to batch it; a kernel is opaque to that."""
    return (
        torch.is_grad_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
    )


class PhiloxNoise:
    """Counter-based noise: a number is a function of (seed, block, step, substep, which normal, element).

    Replica i of a run with seed s draws what a run of one replica with seed s + i draws. W comes from the
    first normals of a step, and so does P alone, as from the source `torch`. Numbers do not depend on
    threads, and not on the device but for the last digits. See sdeflow.philox for the layout.

    fused     whether an update may draw the noise itself, in one pass over memory
    counter   what a kernel adds to every step, on its device; None where steps cannot be captured

    Raises SdeflowError where there is no kernel for the device.
    """

    name = "philox"

    def __init__(
        self,
        channels: Sequence[Channel],
        *,
        kind: Kind,
        substeps: int,
        h: float,
        seeds: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        fused: bool = False,
    ) -> None:
        found = kernel(device)
        if isinstance(found, str):
            raise SdeflowError(f"noise 'philox' needs a kernel, and {found}: give noise 'torch'")
        self._substeps = substeps
        self.counter = torch.zeros(1, dtype=torch.int64, device=device) if found.captures else None
        self._streams = [
            Stream(c, kind, h / substeps, _keys(c, seeds).to(device), dtype, found, fused, self.counter)
            for c in channels
        ]
        self._room = Room(dtype, device)

    def __call__(self, n: int) -> tuple[Noise, ...]:
        return tuple(
            {s.channel.variable: Keyed(s, n, substep) for s in self._streams}
            for substep in range(self._substeps)
        )

    def normals(self, n: int, count: int = 1) -> Iterator[tuple[Channel, Tensor]]:
        """As sdeflow.noise.NormalSource has it; the next steps reuse the tensors."""
        for s in self._streams:
            xi = self._room(s.channel.key, (count, self._substeps, s.channel.normals(s.kind), *s.shape))
            s.fill(xi, n)
            yield s.channel, xi


def _keys(channel: Channel, seeds: Sequence[int]) -> Tensor:
    """64 bits a replica, as int64."""
    keys = (stream(seed, "noise", channel.key) & 2**64 - 1 for seed in seeds)
    return torch.tensor([key - (key >> 63 << 64) for key in keys], dtype=torch.int64)


def kernel(device: torch.device) -> Kernel | str:
    """The kernels for a device, or why there are none."""
    return native() if device.type == "cpu" else _triton()


@cache
def _triton() -> Kernel | str:
    try:
        from sdeflow.noise.cuda import Cuda
    except ImportError as error:
        return f"the kernels for CUDA are written in Triton, which is not to be had: {error}"
    return Cuda()

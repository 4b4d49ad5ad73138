"""Increments that are described rather than drawn, and the updates that draw them as they go.

A map that meets such an increment hands its update to the kernel, which draws the noise and moves the block
in one pass over memory. Wherever the kernel does not apply the increment is a mapping like any other, whose
tensors are drawn when they are asked for; the normals are the same bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from sdeflow.block import Block
from sdeflow.maps import Described
from sdeflow.native import Draw, Kernel
from sdeflow.noise import Channel, Kind

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Stream:
    """The noise of one channel in all replicas: a key each [R], and what its normals are made into.

    h       reference length of a substep
    fused   whether an update may draw the noise itself
    """

    channel: Channel
    kind: Kind
    h: float
    keys: Tensor
    dtype: torch.dtype
    kernel: Kernel
    fused: bool
    shape: torch.Size = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", torch.Size((len(self.keys), *self.channel.shape)))

    def normals(self, step: int, substep: int, which: int) -> Tensor:
        """Standard normals, [R, *shape]; constants to any transform of torch that is under way."""
        with temporarily_clear_interpreter_stack():
            out = torch.empty(self.shape, dtype=self.dtype, device=self.keys.device)
            self.fill(out, step, substep, which)
        return out

    def fill(self, out: Tensor, step: int, substep: int, which: int) -> None:
        """Puts standard normals into a contiguous tensor [R, *shape]."""
        self.kernel.normals(out, self.draw(step, substep, which))

    def draw(self, step: int, substep: int, which: int = 0) -> Draw:
        return Draw(self.keys, step, 2 * substep + which)

    def moves(self, b: Block, *tensors: Tensor) -> bool:
        """Whether the kernel can move this block; not one with a step a datum, nor under a transform."""
        return (
            self.fused
            and type(b) is Block
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
            xi = [s.normals(self._step, self._substep, i) for i in range(s.channel.normals(s.kind))]
            self._parts = s.channel.increment(xi, s.h, s.kind)
        return self._parts

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def exponential(self, b: Block, z: State, f: Tensor | None, h: float | Tensor) -> State | None:
        s, force = self._stream, () if f is None else (f,)
        q, draw = z[b.position], s.draw(self._step, self._substep)
        if b.momentum is None:
            if isinstance(h, Tensor) or not s.moves(b, q, *force):
                return None
            return {b.position: s.kernel.linear(q, f, 1.0, b.rate * h, b.diffusion, s.h**0.5, draw)}
        p = z[b.momentum]
        if s.channel.block is None or "Q" not in s.kind or not s.moves(b, q, p, *force):
            return None
        noise, root = s.channel.block.flow(s.h), math.sqrt(b.temperature)
        new = s.kernel.kinetic(q, p, f, b.flow(h), noise, root, draw)
        return dict(zip((b.position, b.momentum), new, strict=True))

    def friction(self, b: Block, z: State, h: float | Tensor) -> State | None:
        s, p = self._stream, z[b.noisy]
        if s.channel.block is None or s.kind != "P" or not s.moves(b, p):
            return None
        w, std, root = b.flow(h).w, s.channel.block.flow(s.h).p_std, math.sqrt(b.temperature)
        assert not isinstance(w, Tensor)
        assert not isinstance(std, Tensor)
        return {b.noisy: s.kernel.linear(p, None, w, 0.0, root, std, s.draw(self._step, self._substep))}


def traced() -> bool:
    """Whether torch follows what is computed, to differentiate or to batch it; a kernel is opaque to that."""
    return (
        torch.is_grad_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
    )

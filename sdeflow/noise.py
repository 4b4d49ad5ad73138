"""Brownian increments: what a scheme asks for, how two steps compose, and where the draws come from.

Over a step h of a kinetic block (k = gamma eta, its own clock, unit temperature),

    P = sqrt(2 gamma) int e^{-k(h-s)} dB,    Q = sqrt(2 gamma)/gamma int (1 - e^{-k(h-s)}) dB

and W is the increment of the same path on the reference clock, Var W = h, so that with the block's
rate r the three are tied by P + gamma Q = sqrt(2 gamma r) W. Two of them are drawn. H, the space-time
Levy area of W, is N(0, h/12) and independent of W; with it int_0^h B ds = h (W/2 + H).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from sdeflow.block import Block
from sdeflow.maps import plus

Kind = Literal["W", "WH", "P", "PQ", "WPQ"]
"""The increments a scheme needs. P and Q are a kinetic block's; an overdamped block gets W in their place."""


Increment = Mapping[str, Tensor]
"""Noise of one variable over one step: 'W', 'P', 'Q' as asked for, each shaped like it, [R, ...]."""

Noise = Mapping[str, Increment]
"""By name of the variable that the noise enters. A variable at zero temperature has no entry."""


@dataclass(frozen=True)
class Channel:
    """One variable that noise enters: its place in the state, its block (None for a plain SDE), its key."""

    key: str
    variable: str
    shape: tuple[int, ...]
    block: Block | None = None

    @property
    def kinetic(self) -> bool:
        return self.block is not None and self.block.kinetic

    def normals(self, kind: Kind) -> int:
        """Standard normals a coordinate over one (sub)step."""
        return 2 if "H" in kind or (self.kinetic and "Q" in kind) else 1

    def increment(self, xi: Sequence[Tensor], h: float | Tensor, kind: Kind) -> Increment:
        """The increments over a reference step h made of the standard normals `xi`; h may differ by datum."""
        if kind == "WH":
            return {"W": h**0.5 * xi[0], "H": (h / 12) ** 0.5 * xi[1]}
        if kind == "W" or self.block is None or not self.block.kinetic:
            return {"W": h**0.5 * xi[0]}
        c = self.block.flow(h)
        if kind == "P":
            return {"P": c.p_std * xi[0]}
        parts: dict[str, Tensor] = {}
        if "W" in kind:
            parts["W"] = h**0.5 * xi[0]
        if "Q" in kind:
            parts["P"] = plus(c.p1 * xi[0], (c.p2, xi[1]))
            parts["Q"] = plus(c.q1 * xi[0], (c.q2, xi[1]))
        return parts


def compose(channel: Channel, first: Increment, second: Increment, h_second: float) -> Increment:
    """The increment over two consecutive steps, the second of reference length `h_second`; exact.

    W = W1 + W2,    P = w2 P1 + P2,    Q = Q1 + Q2 + (1-w2)/gamma P1,    H = (H1 + H2)/2 + (W1 - W2)/4

    H, where there is one, needs steps of equal length.
    """
    whole: dict[str, Tensor] = {}
    if "W" in first:
        whole["W"] = first["W"] + second["W"]
    if "H" in first:
        whole["H"] = (first["H"] + second["H"]) / 2 + (first["W"] - second["W"]) / 4
    if "P" in first and channel.block is not None:
        c = channel.block.flow(h_second)
        whole["P"] = c.w * first["P"] + second["P"]
        if "Q" in first:
            whole["Q"] = first["Q"] + second["Q"] + c.free * first["P"]
    return whole


class NoiseSource(Protocol):
    """Gives the noise of step n as one mapping a substep; a function of n alone, in any order."""

    def __call__(self, n: int) -> tuple[Noise, ...]: ...


class NormalSource(NoiseSource, Protocol):
    """A source that also gives what its increments are made of."""

    def normals(self, n: int, count: int = 1) -> Iterator[tuple[Channel, Tensor]]:
        """Standard normals of steps n, ..., n + count - 1 by channel, [count, substep, normal, R, *shape].

        To be used before the next.
        """


def noise_of(
    drawn: Iterable[tuple[Channel, Tensor]], *, kind: Kind, substeps: int, h: float
) -> tuple[Noise, ...]:
    """The noise of one step of length h made of its normals, [substep, normal, R, *shape] by channel."""
    noise: list[dict[str, Increment]] = [{} for _ in range(substeps)]
    for channel, xi in drawn:
        for part, normals in zip(noise, xi.unbind(), strict=True):
            part[channel.variable] = channel.increment(normals.unbind(), h / substeps, kind)
    return tuple(noise)


class Room:
    """Tensors to draw into, made anew only where another shape is asked for."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._how: dict[str, Any] = {"dtype": dtype, "device": device}
        self._tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        room = self._tensors.get(name)
        if room is None or room.shape != shape:
            room = self._tensors[name] = torch.empty(shape, **self._how)
        return room


def _mix32(x: int) -> int:
    """A bijection of the 32-bit integers that scatters neighbours (MurmurHash3's finaliser)."""
    x ^= x >> 16
    x = x * 0x85EBCA6B & 0xFFFFFFFF
    x ^= x >> 13
    x = x * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ x >> 16


def stream(seed: int, *names: object) -> int:
    """A 128-bit key for one use of a seed; different names give unrelated streams."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one use of a seed."""
    return torch.Generator(device).manual_seed(stream(seed, *names) & 0x7FFFFFFFFFFFFFFF)


def step_key(key: int) -> Callable[[int], int]:
    """Maps a step to a 63-bit generator seed. Steps of one stream never share their low 32 bits.

    torch's CPU generator looks at the low 32 bits of its seed only, so these are a bijection of the
    step number (up to 2^32 steps) rather than a hash, which would repeat noise within a long run.
    """
    k1, k2, high = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF, (key >> 64 & 0x7FFFFFFF) << 32
    return lambda n: high | _mix32(_mix32(n & 0xFFFFFFFF ^ k1) + k2 & 0xFFFFFFFF)


class TorchNoise:
    """The `torch` source: torch's own generator, keyed anew for every (seed, block, step).

    Replica i of a run with seed s draws what a run of one replica with seed s + i draws. W comes from the
    first normals of a step, so schemes with as many substeps share it, whatever else they ask for; P alone
    is drawn from the same normals, and is then only close to the P that comes with Q. On a CPU
    the generator is torch's Mersenne twister, on CUDA its Philox: the two give different numbers.
    """

    name = "torch"

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
    ) -> None:
        self._generator = torch.Generator(device)
        self._how: dict[str, Any] = {"kind": kind, "substeps": substeps, "h": h}
        self._channels = [
            (channel, [step_key(stream(seed, "noise", channel.key)) for seed in seeds])
            for channel in channels
        ]
        self._room = Room(dtype, device)

    def __call__(self, n: int) -> tuple[Noise, ...]:
        return noise_of(((channel, xi[0]) for channel, xi in self.normals(n)), **self._how)

    def normals(self, n: int, count: int = 1) -> Iterator[tuple[Channel, Tensor]]:
        """As NormalSource has it; the next steps reuse the tensors."""
        for channel, keys in self._channels:
            many = self._how["substeps"], channel.normals(self._how["kind"])
            xi = self._room(channel.key, (count, *many, len(keys), *channel.shape))
            for k in range(count):
                for r, key in enumerate(keys):
                    self._generator.manual_seed(key(n + k))
                    for of, substep in np.ndindex(many[::-1]):
                        xi[k, substep, of, r].normal_(generator=self._generator)
            yield channel, xi

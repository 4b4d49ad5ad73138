"""Brownian increments: what a scheme asks for, what they are made of, and how two steps compose.

Over a step h of a kinetic block (k = gamma eta, its own clock, unit temperature),

    P = sqrt(2 gamma) int e^{-k(h-s)} dB,    Q = sqrt(2 gamma)/gamma int (1 - e^{-k(h-s)}) dB

and W is the increment of the same path on the reference clock, Var W = h, so that with the block's
rate r the three are tied by P + gamma Q = sqrt(2 gamma r) W. Two of them are drawn.

Of W there are also the space-time and the space-time-time Levy area: with b_s = B_s - s/h W, the bridge,

    H = 1/h int b_s ds,    K = 1/h^2 int (h/2 - s) b_s ds

W, H and K are 1, -1/2 and 1/12 times the Legendre polynomials of degree 0, 1 and 2 on [0, h], integrated
against dB: so they are independent, N(0, h), N(0, h/12) and N(0, h/720).

Source of H and K: Foster, Lyons, Oberhauser 2021, arXiv:2101.03446.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from sdeflow.state import State, plus

if TYPE_CHECKING:
    from torch import Tensor

    from sdeflow.state import Coefficient
    from sdeflow.system.block import Block

Kind = Literal["W", "WH", "WHK", "P", "PQ", "WPQ"]
"""The increments a scheme needs. P and Q are a kinetic block's; an overdamped block gets W in their place."""

_OF_H = {"W": 1, "H": 12, "K": 720}
"""The step over the variance of each."""

Increment = Mapping[str, "Tensor"]
"""Noise of one variable over one step: W, H, K, P, Q as asked for, each shaped like it, [R, ...]."""

Noise = Mapping[str, Increment]
"""By name of the variable that the noise enters. A variable at zero temperature has no entry."""


@dataclass(frozen=True)
class NoiseSpec:
    """The increments that a step of length h takes over each of its `substeps` equal parts."""

    kind: Kind
    substeps: int
    h: float

    @property
    def h_substep(self) -> float:
        return self.h / self.substeps


@dataclass(frozen=True)
class Channel:
    """One variable that noise enters: its place in the state, its block (None for a plain SDE), its key.

    first   which number of a replica of the whole variable is the first here, where this is a part of it
    """

    key: str
    variable: str
    shape: tuple[int, ...]
    block: Block | None = None
    first: int = 0

    @property
    def kinetic(self) -> bool:
        return self.block is not None and self.block.kinetic

    def at(self, n: int) -> Channel:
        """The channel with the numbers that its block has in step n."""
        block = None if self.block is None else self.block.at(n)
        return self if block is self.block else replace(self, block=block)

    def normals(self, kind: Kind) -> int:
        """Standard normals a coordinate over one (sub)step."""
        if "H" in kind:
            return len(kind)
        return 2 if self.kinetic and "Q" in kind else 1

    def increment(self, xi: Sequence[Tensor], h: float | Tensor, kind: Kind) -> Increment:
        """The increments over a reference step h made of the standard normals `xi`; h may differ by datum."""
        if "H" in kind:
            return {part: (h / _OF_H[part]) ** 0.5 * one for part, one in zip(kind, xi, strict=True)}
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

    W = W1 + W2,    P = w2 P1 + P2,    Q = Q1 + Q2 + (1-w2)/gamma P1
    H = (H1 + H2)/2 + (W1 - W2)/4,    K = (K1 + K2)/4 + (H1 - H2)/8

    H and K, where they are there, need steps of equal length.
    """
    whole: dict[str, Tensor] = {}
    if "W" in first:
        whole["W"] = first["W"] + second["W"]
    if "H" in first:
        whole["H"] = (first["H"] + second["H"]) / 2 + (first["W"] - second["W"]) / 4
    if "K" in first:
        whole["K"] = (first["K"] + second["K"]) / 4 + (first["H"] - second["H"]) / 8
    if "P" in first and channel.block is not None:
        c = channel.block.flow(h_second)
        whole["P"] = c.w * first["P"] + second["P"]
        if "Q" in first:
            whole["Q"] = first["Q"] + second["Q"] + c.free * first["P"]
    return whole


def noise_of(drawn: Iterable[tuple[Channel, Tensor]], spec: NoiseSpec) -> tuple[Noise, ...]:
    """The noise of one step made of its normals, [substep, normal, R, *shape] by channel."""
    noise: list[dict[str, Increment]] = [{} for _ in range(spec.substeps)]
    for channel, xi in drawn:
        for of_substep, normals in zip(noise, xi.unbind(), strict=True):
            of_substep[channel.variable] = channel.increment(normals.unbind(), spec.h_substep, spec.kind)
    return tuple(noise)


class FusableIncrement(Mapping[str, "Tensor"]):
    """An increment that is drawn when it is looked at, and may be drawn within an update of its block.

    Each update gives what `U`, `exponential` or `O` would, in one pass over memory, or None where it cannot.
    """

    __slots__ = ()

    @abstractmethod
    def exponential(self, b: Block, z: State, f: Tensor | None, h: Coefficient) -> State | None:
        """The exponential integrator of a block; U for f = None."""

    @abstractmethod
    def friction(self, b: Block, z: State, h: Coefficient) -> State | None:
        """O, the friction and the noise alone."""

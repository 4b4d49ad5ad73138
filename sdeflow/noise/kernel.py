"""What a compiled kernel does, whatever it is written in."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sdeflow.system.flow import Flow


class Draw(NamedTuple):
    """Normals of one step: a key a replica [R], int64 by its bits, and a slot; see sdeflow.philox.

    counter   int64 [1] on the device, which kernels there add to the step (sdeflow.graphed)
    """

    keys: Tensor
    step: int
    slot: int
    counter: Tensor | None = None


class Kernel(Protocol):
    """Normals, and updates that draw their own; tensors are contiguous, [R, ...], of one dtype.

    Numbers are [1, k], or [R, k] where replicas have their own.

    fast       whether it is faster than torch on this machine
    captures   whether its calls can be captured in a graph
    """

    fast: bool
    captures: bool

    def normals(self, out: Tensor, draw: Draw, apart: int = 1) -> None:
        """Fills out [step, slot, R, ...] with xi from the draw's step and slot on, slots so far apart."""

    def linear(self, x: Tensor, f: Tensor | None, numbers: Tensor, draw: Draw) -> Tensor:
        """a x + s (t xi) + c f by the numbers (a, c, s, t)."""

    def kinetic(
        self, q: Tensor, p: Tensor, f: Tensor | None, numbers: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        """q + free p + s (q1 xi1 + q2 xi2) + push f,  w p + s (p1 xi1 + p2 xi2) + kick f.

        xi1 has the draw's slot, xi2 the one after it; the numbers are as in `kinetic_numbers`.
        """


def kinetic_numbers(flow: Flow, noise: Flow, s: float) -> tuple[float, ...]:
    """(free, push, w, kick, s, q1, q2, p1, p2), the last four of the noise's flow."""
    values: Any = flow.free, flow.push, flow.w, flow.kick, s, noise.q1, noise.q2, noise.p1, noise.p2
    return tuple(values)


def stride(numbers: Tensor) -> int:
    """How far it is from the numbers of a replica to those of the next."""
    return numbers.shape[1] if len(numbers) > 1 else 0

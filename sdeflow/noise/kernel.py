"""What a compiled kernel does, whatever it is written in: counter-based normals, and updates that draw them.

Normal e of a replica in a variable depends on a 64-bit key and on the counter of Philox4x32-10

    (group of e, low word of the step, high word of the step, slot)

alone, the slot telling the normals of a step apart. Philox gives four 32-bit words a counter, of which
Box-Muller makes 4 normals in float32, 2 in float64. 16 groups lie side by side: in blocks of 64 or 32
numbers, normal i of group l is number 16 i + l of the block. A variable may have 2^34 numbers a replica in
float32, 2^33 in float64.

Source: Salmon, Moraes, Dror, Shaw 2011, Parallel random numbers: as easy as 1, 2, 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor

    from sdeflow.system.flow import Flow


class NoKernel(Exception):
    """Why there is no kernel for a device."""


class Draw(NamedTuple):
    """Normals of one step: a key a replica [R], int64 by its bits, and a slot.

    counter   int64 [1] on the device, which kernels there add to the step: one captured graph serves all
    first     which number of a replica is the first of the tensor, where that is a part of the variable
    """

    keys: Tensor
    step: int
    slot: int
    counter: Tensor | None = None
    first: int = 0


class LinearNumbers(NamedTuple):
    """Coefficients of a x + s (t xi) + c f; philox.hpp has them in the same order."""

    a: float
    c: float
    s: float
    t: float


class KineticNumbers(NamedTuple):
    """Coefficients of a kinetic update (see `Kernel.kinetic`); philox.hpp has them in the same order."""

    free: float
    push: float
    w: float
    kick: float
    s: float
    q1: float
    q2: float
    p1: float
    p2: float


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
        """a x + s (t xi) + c f by `LinearNumbers`."""

    def kinetic(
        self, q: Tensor, p: Tensor, f: Tensor | None, numbers: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        """q + free p + s (q1 xi1 + q2 xi2) + push f,  w p + s (p1 xi1 + p2 xi2) + kick f.

        xi1 has the draw's slot, xi2 the one after it; the numbers are `KineticNumbers`.
        """


def kinetic_numbers(flow: Flow, noise: Flow, s: float) -> KineticNumbers:
    """The numbers of the exponential integrator by a flow, with noise of a flow at root-temperature s."""
    c, xi = cast("tuple[Any, Any]", (flow, noise))
    return KineticNumbers(c.free, c.push, c.w, c.kick, s, xi.q1, xi.q2, xi.p1, xi.p2)


def row_stride(numbers: Tensor) -> int:
    """How far it is from the numbers of a replica to those of the next; 0 where they share them."""
    return numbers.shape[1] if len(numbers) > 1 else 0

"""Rules: what changes a block's force, or moves it in place of an SDE, by a memory of the forces before.

    a preconditioner   (f', memory') = rule(f, memory)           the block's SDE goes on with f'
    an optimizer       (q', memory') = rule(q, f, memory, h)     h, the block's own step, is the learning rate

once a step, at T = 0. A memory is tensors by slot; the state holds them, so that they are stored and resumed
with it, and replicas have their own. Of a block with a row for each datum, a minibatch takes its data's rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from sdeflow.system.block import Block

Memory = dict[str, "Tensor"]
"""By slot, each [R, ...]."""


class Rule(ABC):
    """What has a memory. Options are the fields of a frozen dataclass: equal rules have equal options.

    name     as it is asked for
    source   where it comes from
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""

    @abstractmethod
    def start(self, block: Block) -> Memory:
        """The memory at the start, of one replica."""

    @abstractmethod
    def slots(self, block: Block) -> Sequence[str]:
        """The names of what it keeps."""

    def __str__(self) -> str:
        options = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))  # type: ignore[arg-type]
        return f"{self.name}({options})" if options else self.name


class Preconditioner(Rule):
    """A rule that changes the force on a block, which then moves as it would."""

    @abstractmethod
    def __call__(self, f: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The force that moves the block, and the new memory."""

    @abstractmethod
    def root(self, memory: Memory) -> Tensor:
        """The root of the factor on a force, in float64, while the memory stays as it is."""


@dataclass(frozen=True)
class RMSProp(Preconditioner):
    """v' = 0.99 v + 0.01 f^2 from v = 1,    f' = f / sqrt(v' + 1e-8)."""

    name = "rmsprop"
    source = "Tieleman, Hinton 2012"
    decay: ClassVar[float] = 0.99
    floor: ClassVar[float] = 1e-8

    def start(self, block: Block) -> Memory:
        import torch

        return {"rms": torch.ones(block.shape, dtype=torch.float64)}

    def slots(self, block: Block) -> Sequence[str]:
        return ("rms",)

    def __call__(self, f: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        v = self.decay * memory["rms"] + (1 - self.decay) * f.square()
        return f / (v + self.floor).sqrt(), {"rms": v}

    def root(self, memory: Memory) -> Tensor:
        return (memory["rms"].double() + self.floor) ** -0.25


class Optimizer(Rule):
    """A rule that moves a position. It is a pure function: nothing is changed in place that a caller can see.

    equations   of the show command, with {q} for the position and {f} for its force
    usual       the learning rate that its authors take, to be named where none is given
    kept        slots of tensors like the position, 0 at the start
    counts      whether the steps are counted too, in the slot `step`
    stepless    whether it has no learning rate: h is left aside, and the block's clock counts its steps
    traced      whether it is torch's operations alone and looks at no value, so that a step can be compiled
    """

    equations: ClassVar[Sequence[str]] = ("{q} by {f}",)
    usual: ClassVar[float] = 1e-3
    kept: ClassVar[Sequence[str]] = ()
    counts: ClassVar[bool] = False
    stepless: ClassVar[bool] = False
    traced: ClassVar[bool] = True

    def start(self, block: Block) -> Memory:
        import torch

        memory = {slot: torch.zeros(block.shape, dtype=torch.float64) for slot in self.kept}
        if self.counts:
            rows = block.shape[:1] if block.of_data else (1,)
            memory["step"] = torch.zeros((*rows, *(1 for _ in block.shape[1:])), dtype=torch.int64)
        return memory

    def slots(self, block: Block) -> Sequence[str]:
        return (*self.kept, "step") if self.counts else self.kept

    @abstractmethod
    def __call__(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        """The new position and the new memory of a step of learning rate h, where -f is the gradient."""

    def fitted(self, shapes: Sequence[tuple[int, ...]]) -> Optimizer:
        """The optimizer of a vector in which tensors of these shapes lie one after the other.

        What moves each coordinate by itself need not know them.
        """
        return self

"""What a step that is compiled once reads of schedules: numbers in tensors, shown anew for each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from sdeflow.system.block import Block
from sdeflow.system.flow import Flow
from sdeflow.system.increments import Channel
from sdeflow.system.system import BlockSystem

NUMBERS = ("rate", "gamma", "temperature", "root_temperature", "diffusion")
"""What a row has of a block before its flows, one for each length that a scheme asks for."""

AS_THEY_ARE = (
    *(f.name for f in fields(Block) if f.name not in NUMBERS),
    *("kinetic", "steps", "preconditioner", "optimizer", "kept", "of_data", "variables", "noisy", "heated"),
)


class _Asking(Block):
    """A block that keeps over which steps its flow is asked for."""

    asked: dict[float, None]

    def flow(self, h: float | Tensor) -> Flow:
        self.asked[cast(float, h)] = None
        return super().flow(h)


class _Shown:
    """The numbers of the step that is traced, [columns] in float64."""

    row: Tensor


class _Traced:
    """A scheduled block whose numbers are parts of a row; no dataclass, whose fields torch holds constant.

    first   where its numbers are in the row
    asked   the reference steps over which it has flows
    """

    memory, remember = Block.memory, Block.remember
    schedules: ClassVar[dict[str, Any]] = {}

    def __init__(self, block: Block, shown: _Shown, first: int, asked: Sequence[float]) -> None:
        for name in AS_THEY_ARE:
            setattr(self, name, getattr(block, name))
        self._shown, self._first = shown, first
        size = len(Flow._fields)
        self._flows = {h: first + len(NUMBERS) + i * size for i, h in enumerate(asked)}

    @property
    def rate(self) -> Tensor:
        return self._shown.row[self._first]

    @property
    def gamma(self) -> Tensor:
        return self._shown.row[self._first + 1]

    @property
    def temperature(self) -> Tensor:
        return self._shown.row[self._first + 2]

    @property
    def root_temperature(self) -> Tensor:
        return self._shown.row[self._first + 3]

    @property
    def diffusion(self) -> Tensor:
        return self._shown.row[self._first + 4]

    def flow(self, h: float) -> Flow:
        at = self._flows[h]
        return Flow(*self._shown.row[at : at + len(Flow._fields)].unbind())


class StepNumbers:
    """A system for steps that are compiled: its schedules are rows of numbers, computed before in float64.

    system, channels   as they are traced; those of the system itself where none of its numbers is a schedule
    """

    def __init__(self, system: BlockSystem) -> None:
        self._own, self._shown, self._device = system, _Shown(), torch.device("cpu")
        self._asked: list[tuple[Block, list[float]]] = []
        self.system, self.channels = system, list(system.channels)

    def ask(self, step: Callable[[BlockSystem, Sequence[Channel]], Any], device: torch.device) -> None:
        """Lets a step tell over which lengths it needs flows; `system` has them from then on, on a device."""
        if not self._own.scheduled:
            return
        self._device = device
        asking: list[Block] = []
        for b in self._own.blocks:
            one = b if not b.schedules else object.__new__(_Asking)
            if one is not b:
                vars(one).update(vars(b.at(0)) | {"asked": {}})
            asking.append(one)
        system = self._own.with_blocks(asking)
        step(system, list(system.channels))
        traced: list[Any] = []
        columns = 0
        for b, one in zip(self._own.blocks, asking, strict=True):
            if isinstance(one, _Asking):
                self._asked.append((b, list(one.asked)))
                traced.append(_Traced(b, self._shown, columns, self._asked[-1][1]))
                columns += len(NUMBERS) + len(one.asked) * len(Flow._fields)
            else:
                traced.append(b)
        self.system = self._own.with_blocks(traced)
        self.channels = list(self.system.channels)

    def rows(self, n: int, count: int) -> list[Tensor]:
        """The rows of so many steps from step n on, [count, columns], where there are any."""
        if not self._asked:
            return []
        steps = range(n, n + count)
        rows = [[x for b, asked in self._asked for x in _numbers(b.at(k), asked)] for k in steps]
        return [torch.tensor(rows, dtype=torch.float64, device=self._device)]

    def show(self, draws: Sequence[Tensor]) -> Sequence[Tensor]:
        """Puts a step's row, the last of its draws, where the system sees it; gives the others."""
        if not self._asked:
            return draws
        *others, self._shown.row = draws
        return others


def _numbers(b: Block, asked: Sequence[float]) -> list[float]:
    return [*(getattr(b, name) for name in NUMBERS), *(x for h in asked for x in cast(Any, b.flow(h)))]

"""Blocks whose numbers change from step to step by schedules, and the time that these take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import inf
from typing import Any

from sdeflow.errors import SdeflowError
from sdeflow.system.block import Block
from sdeflow.system.schedule import SCHEDULED, Schedule


@dataclass(frozen=True)
class Scheduled(Block):
    """A block whose step, friction or temperature is a schedule. Its fields are those of step 0.

    In step n it is the block `at(n)` with the numbers of that step, whose exact flow and noise it has over
    it: its own step is h_n, its temperature the factor of step n times that of the system.

    by       the schedules by name, of `SCHEDULED`
    own_temperature   that of the system, on which the schedule's is a factor
    """

    by: tuple[tuple[str, Schedule], ...] = ()
    own_temperature: float = 1.0

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        return dict(self.by)

    @property
    def heated(self) -> bool:
        """In some step, where the factor is not 0 in all."""
        return self.own_temperature > 0

    def at(self, n: int) -> Block:
        if n not in self._last:  # asked for by the step and by its noise
            self._last.clear()
            self._last[n] = self._made(n)
        return self._last[n]

    def _made(self, n: int) -> Block:
        # not by replace, which would check in each step what `in_run` has checked for all
        own, block = dict(self._own), object.__new__(Block)
        for name, schedule in self.by:
            if name == "h":
                own["rate"] = self.rate * (schedule(n) / self._first)
            elif name == "gamma":
                own["gamma"] = schedule(n)
            else:
                own["temperature"] = self.own_temperature * schedule(n)
        vars(block).update(own)
        return block

    @cached_property
    def _last(self) -> dict[int, Block]:
        return {}

    @cached_property
    def _own(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FIELDS}

    @cached_property
    def _first(self) -> float:
        """h in step 0."""
        return self.schedules["h"](0)

    def in_run(self, steps: int, begun: int) -> Block:
        by = tuple((name, schedule.over(begun)) for name, schedule in self.by)
        for name, schedule in by:
            for n in schedule.turns(steps):
                value = schedule(n)
                if not (0 < value < inf or (value == 0 and name != "h")):
                    raise SdeflowError(
                        f"block '{self.name}': {name} must be {'positive' if name == 'h' else 'at least 0'} "
                        f"and finite in every step, and its schedule gives {value:g} at step {n:,}"
                    )
        return replace(self, by=by)

    def number(self, name: str) -> str:
        if name not in (by := self.schedules):
            return super().number(name)
        factor = f"{self.own_temperature:g} times " if name == "temperature" else ""
        return f"{factor}{by[name]}"


_FIELDS = tuple(f.name for f in fields(Block))


def scheduled(block: Block, **by: Any) -> Block:
    """A block with h, gamma or temperature by a schedule, as `Schedule.of` takes it; itself without any.

    The block has the numbers of step 0, but for its temperature, which is the one that the schedule's values
    are factors on. Raises SdeflowError where a warm-up is to choose a number of the block.
    """
    found = [(name, Schedule.of(by[name])) for name in SCHEDULED if name in by]
    if not found:
        return block
    if block.auto:
        raise SdeflowError(
            f"block '{block.name}' has a schedule of {found[0][0]}, and leaves {', '.join(block.auto)} to "
            "the run's warm-up: give these too, for numbers are chosen for steps that stay as they are"
        )
    own: dict[str, Any] = {name: getattr(block, name) for name in _FIELDS}
    if "temperature" in by:
        own["temperature"] *= dict(found)["temperature"](0)
    return Scheduled(**own, by=tuple(found), own_temperature=block.temperature)


class OwnTime:
    """Time on a block's own clock after n steps, h_0 + ... + h_{n-1} of a schedule, times its inner steps.

    It is added up from step 0 on, whatever is asked for, so that a resumed run has the same to the bit.
    """

    def __init__(self, schedule: Schedule, steps: int) -> None:
        self._schedule, self._steps = schedule, steps
        self._n, self._total = 0, 0.0

    def __call__(self, n: int) -> float:
        if n < self._n:
            self._n, self._total = 0, 0.0
        while self._n < n:
            self._total += self._schedule(self._n)
            self._n += 1
        return self._steps * self._total


def numbers_at(blocks: Sequence[Block], n: int) -> dict[str, float]:
    """What is recorded of schedules after n steps: the last step's numbers, and step 0's at the start."""
    last, found = max(n - 1, 0), {}
    for b in blocks:
        for name, schedule in b.schedules.items():
            found[f"{name}_{b.name}"] = getattr(b.at(last), name) if name != "h" else schedule(last)
    return found

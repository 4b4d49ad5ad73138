"""Time on the reference clock and on the blocks' own, of a run whose steps change."""

from __future__ import annotations

from sdeflow.system.system import BlockSystem


class Clock:
    """Times of a run whose steps change: at the last change, and what a step adds since."""

    def __init__(self, system: BlockSystem) -> None:
        self._names = ["", *system.clocks]
        self.numbers = [0.0] * (1 + 2 * len(self._names))

    def __call__(self, n: int) -> dict[str, float]:
        changed, *rest = self.numbers
        count = len(self._names)
        return {
            name: then + (n - changed) * h
            for name, then, h in zip(self._names, rest[:count], rest[count:], strict=True)
        }

    def change(self, n: int, system: BlockSystem) -> None:
        now = self(n).values()
        self.numbers = [float(n), *now, system.h, *(system.h * (b.rate * b.steps) for b in system.blocks)]

    def restore(self, numbers: list[float]) -> None:
        self.numbers = numbers

"""Several steps as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdeflow.state import State

if TYPE_CHECKING:
    from sdeflow.engine.step import Stepper

Transition = Callable[[State, int, Sequence[Tensor]], State]
"""z_{n+1} by z_n, by how far n is from what the counters say, and by what was drawn for the step."""

STRIDE = 16
"""Steps in a graph: a launch of one instead of some hundred kernels."""


def cuda_graph(run: Callable[[], None]) -> Callable[[], None]:
    """What `run` does on the device, captured, to be replayed; it runs once before, so that all is built."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def nothing(n: int, count: int) -> list[Tensor]:
    """What is drawn for steps that need no more than their noise."""
    return []


class GraphedSteps:
    """Steps whose numbers do not change, captured once and replayed.

    A graph works on tensors of its own, into which a state and what was drawn are copied, and out of which
    the next state is. The step of its noise is the place of a step in the graph plus a counter, which the
    kernels read on the device: so one graph serves all n.

    stepper      takes single steps
    transition   what is captured
    counters     int64 [1], one of each noise source
    draw         what steps n, ..., n + count - 1 need besides, [count, ...] each
    capture      makes of a function one that does the same (default: `cuda_graph`)
    """

    stride = STRIDE

    def __init__(
        self,
        stepper: Stepper,
        transition: Transition,
        counters: Sequence[Tensor],
        draw: Callable[[int, int], Sequence[Tensor]] = nothing,
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self._stepper, self._transition, self._draw = stepper, transition, draw
        self._counters, self._capture = counters, capture or cuda_graph
        self._own: State = {}
        self._drawn: list[Tensor] = []
        self._replay: Callable[[], None] | None = None

    def __call__(self, z: State, n: int, count: int = 1) -> State:
        if count == 1:
            return self._stepper(z, n)
        assert count == self.stride
        draws = self._draw(n, count)
        if self._replay is None:
            self._own = {name: value.clone() for name, value in z.items()}
            self._drawn = [x.clone() for x in draws]
            self._replay = self._capture(self._run)
        for own, value in zip(self._drawn, draws, strict=True):
            own.copy_(value)
        for name, value in z.items():
            self._own[name].copy_(value)
        for counter in self._counters:
            counter.fill_(n)
        try:
            self._replay()
        finally:
            for counter in self._counters:
                counter.zero_()
        return {name: value.clone() for name, value in self._own.items()}

    def _run(self) -> None:
        z = self._own
        for k in range(STRIDE):
            z = self._transition(z, k, [x[k] for x in self._drawn])
        for name, value in self._own.items():
            value.copy_(z[name])

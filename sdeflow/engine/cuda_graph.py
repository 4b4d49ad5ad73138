"""Several steps as one CUDA graph.

Tested with a stand-in for the graph on the CPU; NOT YET RUN ON A DEVICE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdeflow.state import State

if TYPE_CHECKING:
    from sdeflow.engine.step import Stepper


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


class GraphedSteps:
    """Steps that do not depend on time, captured once and replayed.

    A graph works on tensors of its own, into which a state is copied and out of which the next one is. The
    step of its noise is the place of a step in the graph plus `counter`, int64 [1], which the kernels read on
    the device: so one graph serves all n.

    capture   makes of a function one that does the same
    """

    stride = STRIDE

    def __init__(
        self,
        stepper: Stepper,
        counter: Tensor,
        capture: Callable[[Callable[[], None]], Callable[[], None]] = cuda_graph,
    ) -> None:
        self._stepper, self._counter, self._capture = stepper, counter, capture
        self._own: State = {}
        self._replay: Callable[[], None] | None = None

    def __call__(self, z: State, n: int, count: int = 1) -> State:
        if count == 1:
            return self._stepper(z, n)
        if self._replay is None:
            self._own = {name: value.clone() for name, value in z.items()}
            self._replay = self._capture(self._run)
        for name, value in z.items():
            self._own[name].copy_(value)
        assert count == self.stride
        self._counter.fill_(n)
        try:
            self._replay()
        finally:
            self._counter.zero_()
        return {name: value.clone() for name, value in self._own.items()}

    def _run(self) -> None:
        z = self._own
        for k in range(STRIDE):
            z = self._stepper(z, k)
        for name, value in self._own.items():
            value.copy_(z[name])

"""Several steps as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdeflow.errors import Uncompilable
from sdeflow.state import State

Transition = Callable[[State, int, Sequence[Tensor]], State]
"""z_{n+1} by z_n, by how far n is from what the counters say, and by what was drawn for the step."""

MOST, MOST_OF_LARGE, LARGE = 64, 8, 10**6
"""Steps in a graph at most, which is launched as one instead of kernel by kernel; and where a replica of the
state has LARGE numbers or more, whose steps take long."""


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
    """Steps whose numbers do not change, captured once and replayed.

    A graph works on tensors of its own, into which a state and what was drawn are copied, and out of which
    the next state is. The step of its noise is the place of a step in the graph plus a counter, which the
    kernels read on the device: so one graph serves all n. There is one of a stride, and one of a single step.

    transition   a step
    counters     int64 [1], one of each noise source
    draw         what steps n, ..., n + count - 1 need besides, n itself for one, [count, ...] each
    every        steps from one snapshot to the next, which whole strides fill
    numbers      of a replica's state
    capture      makes of a function one that does the same (default: `cuda_graph`)

    Raises Uncompilable where a step cannot be captured, such as one that reads a value on the host.
    """

    def __init__(
        self,
        transition: Transition,
        counters: Sequence[Tensor],
        draw: Callable[[int, int], Sequence[Tensor]],
        every: int = MOST,
        numbers: int = 0,
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        most = MOST if numbers < LARGE else MOST_OF_LARGE
        self.stride = max(k for k in range(1, most + 1) if every % k == 0)
        self._transition, self._draw, self._counters = transition, draw, counters
        self._capture = capture or cuda_graph
        self._own: State = {}
        self._given: State = {}
        self._drawn: dict[int, list[Tensor]] = {}
        self._replays: dict[int, Callable[[], None]] = {}

    def __call__(self, z: State, n: int, count: int = 1) -> State:
        draws = self._draw(n, count)
        if count not in self._replays:
            self._prepare(z, draws, count)
        for own, value in zip(self._drawn[count], draws, strict=True):
            own.copy_(value)
        for name, value in z.items():
            if value is not self._given.get(name):  # else it is what the graph still has
                self._own[name].copy_(value)
        for counter in self._counters:
            counter.fill_(n)
        self._given = {}
        self._replays[count]()
        self._given = {name: value.clone() for name, value in self._own.items()}
        return dict(self._given)

    def _prepare(self, z: State, draws: Sequence[Tensor], count: int) -> None:
        self._own = self._own or {name: value.clone() for name, value in z.items()}
        self._given = {}
        self._drawn[count] = [x.clone() for x in draws]
        try:
            self._replays[count] = self._capture(lambda: self._run(count))
        except RuntimeError as error:
            reason = (str(error).splitlines() or [""])[0]
            raise Uncompilable(
                f"this run's steps cannot be captured in a CUDA graph ({reason}): give engine 'eager'"
            ) from error

    def _run(self, count: int) -> None:
        z = self._own
        for k in range(count):
            z = self._transition(z, k, [x[k] for x in self._drawn[count]])
        if added := z.keys() - self._own.keys():
            raise Uncompilable(
                f"a step adds {', '.join(sorted(added))} to the state, and a CUDA graph has the variables of "
                "its start: let the integrator's init give it, or give engine 'eager'"
            )
        # what a step keeps of the state before is a tensor of the graph, which is written to below
        own = {value.untyped_storage().data_ptr() for value in self._own.values()}
        new = {
            name: value.clone() if value.untyped_storage().data_ptr() in own else value
            for name, value in z.items()
            if value is not self._own[name]
        }
        for name, value in new.items():
            self._own[name].copy_(value)

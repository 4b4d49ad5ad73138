"""In place of a device: the kernel in C++ with a counter; a graph is what it was made of, run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sdeflow.engine import cuda_graph
from sdeflow.noise import philox_source
from sdeflow.noise.cpp import cpp_kernel
from sdeflow.noise.kernel import Draw


class CountingKernel:
    """The kernel in C++, which looks at a counter as one on a device does."""

    fast = captures = True

    def normals(self, out: Tensor, draw: Draw, apart: int = 1) -> None:
        cpp_kernel().normals(out, counted(draw), apart)

    def linear(self, x: Tensor, f: Tensor | None, numbers: Tensor, draw: Draw) -> Tensor:
        return cpp_kernel().linear(x, f, numbers, counted(draw))

    def kinetic(self, q: Tensor, p: Tensor, f: Tensor | None, numbers: Tensor, draw: Draw) -> Any:
        return cpp_kernel().kinetic(q, p, f, numbers, counted(draw))


def counted(draw: Draw) -> Draw:
    """A draw whose step has the counter in it."""
    return draw if draw.counter is None else draw._replace(step=draw.step + int(draw.counter), counter=None)


def again(run: Callable[[], None]) -> Callable[[], None]:
    """What stands for a graph; run once first, as a capture does."""
    run()
    return run


def use() -> None:
    """Lets this process take the CPU for a device."""
    philox_source.find_kernel = lambda device: CountingKernel()
    cuda_graph.cuda_graph = again

"""The compiled kernels: where they are, and how a tensor reaches them."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

import sdeflow
from sdeflow.flow import Flow


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


_POINTER = ctypes.c_void_p
_DRAW = [_POINTER, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int32]
_ARGUMENTS: dict[str, list[Any]] = {
    "normals": [_POINTER, *[ctypes.c_int64] * 3, *_DRAW],
    "linear": [*[_POINTER] * 4, ctypes.c_int64, *_DRAW],
    "kinetic": [*[_POINTER] * 6, ctypes.c_int64, *_DRAW],
}


class Native:
    """The C++ kernels on the CPU, by as many threads as torch uses."""

    captures = False

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.fast = bool(library.sdeflow_fast())
        self._normals, self._linear, self._kinetic = (_both(library, name) for name in _ARGUMENTS)

    def normals(self, out: Tensor, draw: Draw, apart: int = 1) -> None:
        steps, slots = out.shape[:2]
        self._normals[out.dtype](
            out.data_ptr(), steps, slots, apart, *_drawn(out.numel() // (steps * slots), draw)
        )

    def linear(self, x: Tensor, f: Tensor | None, numbers: Tensor, draw: Draw) -> Tensor:
        out = torch.empty_like(x)
        force = None if f is None else f.data_ptr()
        self._linear[x.dtype](
            out.data_ptr(), x.data_ptr(), force, numbers.data_ptr(), stride(numbers), *_drawn(x.numel(), draw)
        )
        return out

    def kinetic(
        self, q: Tensor, p: Tensor, f: Tensor | None, numbers: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        q_out, p_out = torch.empty_like(q), torch.empty_like(p)
        self._kinetic[q.dtype](
            *(q_out.data_ptr(), p_out.data_ptr(), q.data_ptr(), p.data_ptr()),
            None if f is None else f.data_ptr(),
            *(numbers.data_ptr(), stride(numbers)),
            *_drawn(q.numel(), draw),
        )
        return q_out, p_out


def _both(library: ctypes.CDLL, name: str) -> dict[torch.dtype, Any]:
    """A function of the library by dtype."""
    found = {}
    for dtype, suffix in ((torch.float32, "f32"), (torch.float64, "f64")):
        found[dtype] = function = library[f"sdeflow_{name}_{suffix}"]
        function.argtypes, function.restype = _ARGUMENTS[name], None
    return found


def stride(numbers: Tensor) -> int:
    """How far it is from the numbers of a replica to those of the next."""
    return numbers.shape[1] if len(numbers) > 1 else 0


def _drawn(count: int, draw: Draw) -> tuple[int, ...]:
    """The last arguments of every kernel, for so many normals."""
    replicas, threads = len(draw.keys), torch.get_num_threads()
    return draw.keys.data_ptr(), replicas, count // replicas, draw.step, draw.slot, threads


NO_FMA = "this processor has no fused multiply-add, without which the kernel is slower than torch"


@cache
def native() -> Native | str:
    """The C++ kernels, or why they are not there."""
    for folder in sdeflow.__path__:
        for suffix in EXTENSION_SUFFIXES:
            path = Path(folder) / f"_fused{suffix}"
            if path.is_file():
                try:
                    return Native(path)
                except (OSError, AttributeError) as error:
                    return f"the compiled kernel cannot be loaded: {error}"
    return "the kernel was not compiled when sdeflow was installed, which takes a C++ compiler"


def kernel(device: torch.device) -> Kernel | str:
    """The kernels for a device, or why there are none."""
    return native() if device.type == "cpu" else _triton()


@cache
def _triton() -> Kernel | str:
    try:
        from sdeflow.fused_cuda import Cuda
    except ImportError as error:
        return f"the kernels for CUDA are written in Triton, which is not to be had: {error}"
    return Cuda()

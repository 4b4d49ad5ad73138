"""The kernels in C++: where the library is, and how a tensor reaches it."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdeflow.noise.kernel import Draw, NoKernel, row_stride

_POINTER = ctypes.c_void_p
_DRAW = [_POINTER, *[ctypes.c_int64] * 3, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int32]
_ARGUMENTS: dict[str, list[Any]] = {
    "normals": [_POINTER, *[ctypes.c_int64] * 3, *_DRAW],
    "linear": [*[_POINTER] * 4, ctypes.c_int64, *_DRAW],
    "kinetic": [*[_POINTER] * 6, ctypes.c_int64, *_DRAW],
}


class CppKernel:
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
            out.data_ptr(),
            x.data_ptr(),
            force,
            numbers.data_ptr(),
            row_stride(numbers),
            *_drawn(x.numel(), draw),
        )
        return out

    def kinetic(
        self, q: Tensor, p: Tensor, f: Tensor | None, numbers: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        q_out, p_out = torch.empty_like(q), torch.empty_like(p)
        self._kinetic[q.dtype](
            *(q_out.data_ptr(), p_out.data_ptr(), q.data_ptr(), p.data_ptr()),
            None if f is None else f.data_ptr(),
            *(numbers.data_ptr(), row_stride(numbers)),
            *_drawn(q.numel(), draw),
        )
        return q_out, p_out


def _both(library: ctypes.CDLL, name: str) -> dict[torch.dtype, Any]:
    """A function of the library by dtype."""
    found = {}
    for dtype, suffix in ((torch.float32, "f32"), (torch.float64, "f64")):
        found[dtype] = function = library[f"sdeflow_{name}_from_{suffix}"]
        function.argtypes, function.restype = _ARGUMENTS[name], None
    return found


def _drawn(count: int, draw: Draw) -> tuple[int, ...]:
    """The last arguments of every kernel, for so many normals."""
    replicas, threads = len(draw.keys), torch.get_num_threads()
    return draw.keys.data_ptr(), replicas, count // replicas, draw.first, draw.step, draw.slot, threads


NO_FMA = "this processor has no fused multiply-add, without which the kernel is slower than torch"


@cache
def cpp_kernel() -> CppKernel:
    """The C++ kernels; raises NoKernel where they are not there."""
    if (spec := find_spec("sdeflow.noise._philox")) is not None and spec.origin is not None:
        try:
            return CppKernel(Path(spec.origin))
        except (OSError, AttributeError) as error:
            raise NoKernel(f"the compiled kernel cannot be loaded: {error}") from error
    raise NoKernel("the kernel was not compiled when sdeflow was installed, which takes a C++ compiler")

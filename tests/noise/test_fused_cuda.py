"""The Triton kernels, by Triton's interpreter on the CPU: what a device computes is not tested here.

Where Triton is installed they are also compiled for a device, which needs none to be there.
"""

from __future__ import annotations

from commands import numbers
from support import needs_kernel, needs_triton

INTERPRETED = """
import torch
from sdeflow.system.flow import kinetic_flow
from sdeflow.noise.cuda import TritonKernel
from sdeflow.noise.cpp import cpp_kernel
from sdeflow.noise.kernel import Draw, kinetic_numbers

torch.manual_seed(0)
cpu, cuda = cpp_kernel(), TritonKernel()
keys = torch.tensor([0x1E3779B97F4A7C15, -5])
flows = kinetic_flow(0.3, 2.0, 0.1), kinetic_flow(0.3, 2.0, 0.2)
rows = [kinetic_numbers(*flows, 0.7), kinetic_numbers(*flows[::-1], 0.6)]
for dtype in (torch.float32, torch.float64):
    for size, first in ((1, 0), (1, 77), (100, 0), (100, 2**32 + 31), (5000, 0), (5000, 12345)):
        q, p, f = (torch.randn(2, size, dtype=dtype) for _ in range(3))
        draw = Draw(keys, 3 * 2**32 + 2**31 + 7, 2**31 + 4, first=first)
        one, other = torch.empty(2, 2, *q.shape, dtype=dtype), torch.empty(2, 2, *q.shape, dtype=dtype)
        cpu.normals(one, draw, 2)
        cuda.normals(other, draw, 2)
        pairs = [(one, other)]
        for force in (f, None):
            linear = (q, force, torch.tensor([[0.9, 0.2, 0.7, 0.5]], dtype=dtype), draw)
            kinetic = (q, p, force, torch.tensor(rows, dtype=dtype), draw)
            pairs += [(cpu.linear(*linear), cuda.linear(*linear))]
            pairs += zip(cpu.kinetic(*kinetic), cuda.kinetic(*kinetic))
        print(max(float((a - b).abs().max()) for a, b in pairs) / torch.finfo(dtype).eps)
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sdeflow.noise import cuda

draw = {"keys": "*i64", "counter": "*i64", "first": "i64"}
draw |= {name: "i32" for name in ("stride", "size", "low", "high", "slot")}
for real in ("*fp32", "*fp64"):
    for function in (cuda._fill, cuda._linear, cuda._kinetic):
        fixed = {"GROUPS": cuda.GROUPS, "DOUBLE": real == "*fp64", "FORCE": True}
        fixed = {name: value for name, value in fixed.items() if name in function.arg_names}
        kinds = {n: "constexpr" if n in fixed else draw.get(n, real) for n in function.arg_names}
        at = {(function.arg_names.index(name),): value for name, value in fixed.items()}
        source = ASTSource(fn=function, signature=kinds, constexprs=at)
        done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
        print(len(done.asm["ptx"]))
"""


@needs_triton
@needs_kernel
def test_interpreted_kernels_agree_with_the_native_ones() -> None:
    """Normals and updates of both precisions, with and without a force, to 2 units in the last place of 4."""
    assert all(difference <= 8 for difference in numbers(INTERPRETED, TRITON_INTERPRET="1"))


@needs_triton
def test_kernels_compile_for_a_device() -> None:
    assert len(numbers(COMPILED)) == 6

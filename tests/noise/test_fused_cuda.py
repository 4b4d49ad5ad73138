"""The Triton kernels, by Triton's interpreter on the CPU: what a device computes is not tested here.

Where Triton is installed they are also compiled for a device, which needs none to be there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from support import needs_kernel

from sdeflow.engine.engine import resolve_engine
from sdeflow.errors import SdeflowError
from sdeflow.noise.kernel import NoKernel

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

INTERPRETED = """
import torch
from sdeflow.system.flow import kinetic_flow
from sdeflow.noise.cuda import Cuda
from sdeflow.noise.cpp import native
from sdeflow.noise.kernel import Draw, kinetic_numbers

torch.manual_seed(0)
cpu, cuda = native(), Cuda()
keys = torch.tensor([0x1E3779B97F4A7C15, -5])
flows = kinetic_flow(0.3, 2.0, 0.1), kinetic_flow(0.3, 2.0, 0.2)
rows = [kinetic_numbers(*flows, 0.7), kinetic_numbers(*flows[::-1], 0.6)]
for dtype in (torch.float32, torch.float64):
    for size in (1, 100, 5000):
        q, p, f = (torch.randn(2, size, dtype=dtype) for _ in range(3))
        draw = Draw(keys, 3 * 2**32 + 2**31 + 7, 2**31 + 4)
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

draw = {"keys": "*i64", "counter": "*i64"}
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


GRAPHED = """
import torch
from sdeflow import kiplmc
from sdeflow.noise import philox_source
from sdeflow.config.catalogue import integrator_named
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.noise.cuda import Cuda
from sdeflow.engine.cuda_graph import GraphedSteps
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.state import Replicas
from sdeflow.system.system import initial_state

cuda, replicas = Cuda(), Replicas([3, 2**40], torch.float64, torch.device("cpu"))
philox_source.find_kernel = lambda device: cuda
motion = {"h": 1e-2, "eta": 30.0, "gamma": 1.0}
system, scheme = kiplmc(Hierarchical(data=3), particles=2, theta=motion, x=motion), integrator_named("expint")
noise = philox_source.PhiloxNoise(system.channels, scheme.noise_spec(system.h), replicas, fused=True)
step, z = EagerSteps(system, scheme, noise), initial_state(system, replicas)
start = {name: value.clone() for name, value in z.items()}
graphed = GraphedSteps(step, noise.counter, capture=lambda run: run)
first = 2**32 - 16
one, other = advance(step, z, first, 17), advance(graphed, z, first, 17)
assert all(torch.equal(z[name], start[name]) for name in z)
assert all((one[name] - z[name]).abs().min() > 0 for name in z)
def cut_short():
    raise KeyboardInterrupt

cut = GraphedSteps(step, noise.counter, capture=lambda run: cut_short)
try:
    cut(z, 32, cut.stride)
except KeyboardInterrupt:
    assert noise.counter.item() == 0
print(*(float((one[name] - other[name]).abs().max()) for name in z))
"""


def output(program: str, **environment: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [float(line) for line in done.stdout.split()]


@needs_triton
@needs_kernel
def test_interpreted_kernels_agree_with_the_native_ones() -> None:
    """Normals and updates of both precisions, with and without a force, to 2 units in the last place of 4."""
    assert all(difference <= 8 for difference in output(INTERPRETED, TRITON_INTERPRET="1"))


@needs_triton
def test_steps_of_a_graph_are_those_one_by_one() -> None:
    """With a stand-in that does again what would be captured, over a step that no 32 bits hold."""
    assert output(GRAPHED, TRITON_INTERPRET="1") == [0.0] * 4


@needs_triton
def test_kernels_compile_for_a_device() -> None:
    assert len(output(COMPILED)) == 6


def test_without_triton_fused_is_refused_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise NoKernel("Triton is not to be had")

    monkeypatch.setattr("sdeflow.noise.philox_source._triton", lost)
    cuda = torch.device("cuda")
    with pytest.raises(SdeflowError, match="'fused' needs a kernel, and Triton is not to be had"):
        resolve_engine("fused", "auto", cuda)
    assert resolve_engine("auto", "auto", cuda).source_name == "torch"


def test_on_cuda_fused_has_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdeflow.noise.philox_source._triton", lambda: SimpleNamespace(fast=True))
    cuda = torch.device("cuda")
    chosen = {e: resolve_engine(e, "auto", cuda) for e in ("auto", "fused")}
    assert [(c.name, c.source_name) for c in chosen.values()] == [("eager", "torch"), ("fused", "philox")]

"""Steps of a CUDA graph, with Triton's interpreter on the CPU and a stand-in for what is captured."""

from __future__ import annotations

from commands import numbers
from support import needs_triton

GRAPHED = """
import torch
from sdeflow import kiplmc
from sdeflow.noise import philox_source
from sdeflow.config.catalogue import integrator_named
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.noise.cuda import TritonKernel
from sdeflow.engine.cuda_graph import GraphedSteps
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.state import Replicas
from sdeflow.system.system import initial_state

cuda, replicas = TritonKernel(), Replicas([3, 2**40], torch.float64, torch.device("cpu"))
philox_source.find_kernel = lambda device: cuda
motion = {"h": 1e-2, "eta": 30.0, "gamma": 1.0}
system, scheme = kiplmc(Hierarchical(data=3), particles=2, theta=motion, x=motion), integrator_named("expint")
noise = philox_source.PhiloxNoise(system.channels, scheme.noise_spec(system.h), replicas, fused=True)
step, z = EagerSteps(system, scheme, noise), initial_state(system, replicas)
start = {name: value.clone() for name, value in z.items()}
captured = lambda z, k, _: step(z, k), [noise.counter]
graphed = GraphedSteps(*captured, capture=lambda run: run)
first = 2**32 - 16
one, other = advance(step, z, first, 17), advance(graphed, z, first, 17)
assert all(torch.equal(z[name], start[name]) for name in z)
assert all((one[name] - z[name]).abs().min() > 0 for name in z)
def cut_short():
    raise KeyboardInterrupt

cut = GraphedSteps(*captured, capture=lambda run: cut_short)
try:
    cut(z, 32, cut.stride)
except KeyboardInterrupt:
    assert noise.counter.item() == 0
print(*(float((one[name] - other[name]).abs().max()) for name in z))
"""


@needs_triton
def test_steps_of_a_graph_are_those_one_by_one() -> None:
    """With a stand-in that does again what would be captured, over a step that no 32 bits hold."""
    assert numbers(GRAPHED, TRITON_INTERPRET="1") == [0.0] * 4

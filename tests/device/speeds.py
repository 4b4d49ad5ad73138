"""What a step costs on a device, beside what the device does at most: a measured copy and matrix product.

A measurement takes a device by name and gives rows of numbers with their units. Times are medians over rounds
by the clock, with the device synchronised before and after each. On a CPU all sizes are small.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from checks import Convolutions

import sdeflow
from sdeflow.config.run import Run
from sdeflow.config.schema import RunSection
from sdeflow.engine.step import advance
from sdeflow.machine import operations
from sdeflow.model.precision import float32_products
from sdeflow.noise import philox_source
from sdeflow.noise.kernel import Draw, KineticNumbers
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.prepare import prepare

Rows = dict[str, dict[str, float]]

ROUNDS, SECONDS = 7, 0.05


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "the CPU"


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], object], device: str, rounds: int = ROUNDS) -> float:
    """Of one call, the median over rounds of about SECONDS each."""
    function()
    wait(device)
    began = time.perf_counter()
    function()
    wait(device)
    count = max(1, int(SECONDS / max(time.perf_counter() - began, 1e-6)))
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(count):
            function()
        wait(device)
        taken.append((time.perf_counter() - began) / count)
    return statistics.median(taken)


@cache
def bandwidth(device: str) -> float:
    """Bytes read and written a second by a large copy."""
    x = torch.randn(2**28 if device == "cuda" else 2**22, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / seconds(lambda: y.copy_(x), device)


PRECISIONS = ("full", "tf32", "bf16")


@contextmanager
def products(precision: str) -> Iterator[torch.dtype]:
    """The dtype of a product of that precision, and torch set to it."""
    with float32_products(tf32=precision == "tf32"):
        yield torch.bfloat16 if precision == "bf16" else torch.float32


@cache
def peak(device: str, precision: str) -> float:
    """Operations a second of a large matrix product of random numbers."""
    n = 8192 if device == "cuda" else 512
    with products(precision) as dtype:
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        return 2 * n**3 / seconds(lambda: a @ b, device)


def limits(device: str) -> Rows:
    """What the device does at most."""
    rows = {"copy": {"GB/s": bandwidth(device) / 1e9}}
    return rows | {
        f"matrix product, {p}": {"TFLOP/s": peak(device, p) / 1e12}
        for p in (PRECISIONS if device == "cuda" else PRECISIONS[:1])
    }


def updates(device: str) -> Rows:
    """A particle update by the kernel: position, momentum and force read, two written, two normals drawn."""
    kernel, rows, size = (
        philox_source.find_kernel(torch.device(device)),
        {},
        10**8 if device == "cuda" else 10**5,
    )
    for dtype in (torch.float32, torch.float64):
        q, p, f = (torch.randn(1, size, dtype=dtype, device=device) for _ in range(3))
        numbers = torch.tensor([KineticNumbers(0.1, 0.01, 0.9, 0.1, 1.0, 0.1, 0.2, 0.3, 0.0)], dtype=dtype)
        draw = Draw(torch.tensor([12345], device=device), 3, 0)
        took = seconds(partial(kernel.kinetic, q, p, f, numbers.to(device), draw), device)
        share = 5 * q.nbytes / took / bandwidth(device)
        rows[str(dtype).removeprefix("torch.")] = {"us": took * 1e6, "of a copy's bandwidth": share}
    return rows


def a_step(system: Any, scheme: str, device: str, *, batch: Any = None, **options: Any) -> float:
    """Seconds of one, with 64 from one snapshot to the next."""
    section, save = RunSection(steps=1, device=device, **options), sdeflow.Save(every=64)
    with float32_products(tf32=section.precision == "tf32"):
        prepared = prepare(Run.declare(system, scheme, section, batch=batch, save=save))
        at, stride = [0, prepared.state], prepared.stepper.stride

        def steps() -> None:
            n, z = at
            at[:] = n + stride, advance(prepared.stepper, z, n, stride)

        return seconds(steps, device) / stride


WAYS = ("fused", "philox"), ("eager", "philox"), ("eager", "torch"), ("compiled", "philox")
"""Engines and noise; what is compiled for a CPU takes long, and tests/benchmarks/speed.py has it."""


def toys(device: str) -> Rows:
    """mpgd of the toy model by expint, 100 particles a datum; bytes are those of X and U read and written."""
    rows: Rows = {}
    sizes = (100, 10_000, 1_000_000) if device == "cuda" else (100,)
    for data in sizes:
        motion = {"eta": 2000.0, "gamma": 0.1}
        numbers = {"theta": {"h": 1e-2 / data, **motion}, "x": {"h": 1e-2, **motion}}
        for engine, noise in WAYS if device == "cuda" else WAYS[:3]:
            system = sdeflow.mpgd(Hierarchical(data=data), particles=100, **numbers)
            took = a_step(system, "expint", device, engine=engine, noise=noise)
            moved = 4 * 4 * 100 * data / took / bandwidth(device)
            rows[f"D = {data:,}, {engine}, {noise}"] = {
                "us a step": took * 1e6,
                "of a copy's bandwidth": moved,
            }
    return rows


MOTION = {"h": 1e-4, "eta": 500.0, "gamma": 0.9}


def digits(device: str) -> Rows:
    """The digits' decoder by minibatches of 128, N = 10, one gradient pass (expint_shared)."""
    rows = {}
    for engine in ("fused", "eager", "compiled")[: 3 if device == "cuda" else 2]:
        system = sdeflow.mpgd(Decoder(), particles=10, theta=MOTION, x=MOTION)
        took = a_step(system, "expint_shared", device, batch=sdeflow.Batch(128), engine=engine)
        rows[engine] = {"us a step": took * 1e6, "images/s": 128 / took}
    return rows


def published(device: str) -> Rows:
    """The decoder of the published experiment, ngf = 256, batch 128, N = 5, by expint_shared."""
    rows: Rows = {}
    on_gpu = device == "cuda"
    sizes, size = ((256, 256, 32, 128), 128) if on_gpu else ((8, 4, 8, 4), 4)
    section = RunSection(steps=1, device=device, engine="eager")

    def system(channels_last: bool) -> Any:
        model = Convolutions(*sizes, channels_last=channels_last)
        return sdeflow.mpgd(model, particles=5, theta=MOTION, x=MOTION)

    one = prepare(Run.declare(system(True), "expint_shared", section, batch=sdeflow.Batch(size)))
    work = operations(lambda: one.stepper(one.state, 0))
    ways = [
        (precision, engine, channels_last)
        for precision in (PRECISIONS if on_gpu else PRECISIONS[:1])
        for engine, channels_last in (("fused", True), ("fused", False), ("eager", True), ("compiled", True))
        if engine == "fused" or (precision == "bf16" and on_gpu)
    ]
    for precision, engine, channels_last in ways:
        options = {"batch": sdeflow.Batch(size), "engine": engine, "precision": precision}
        took = a_step(system(channels_last), "expint_shared", device, **options)
        rows[f"{precision}, {engine}, channels {'last' if channels_last else 'first'}"] = {
            "ms a step": took * 1e3,
            "images/s": size / took,
            "TFLOP/s": work / took / 1e12,
            "of a product's rate": work / took / peak(device, precision),
        }
    return rows


SPEEDS: dict[str, Callable[[str], Rows]] = {
    "speed, limits": limits,
    "speed, particle update": updates,
    "speed, toy": toys,
    "speed, decoder of digits": digits,
    "speed, published decoder": published,
}

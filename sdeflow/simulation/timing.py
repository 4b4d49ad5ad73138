"""How long a step of a run takes on this machine, from timed steps of a few of its data."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median_low

import torch

from sdeflow.config.run import Run
from sdeflow.engine.engine import Engine, resolve_engine
from sdeflow.engine.minibatch import MiniBatches
from sdeflow.engine.step import Stepper
from sdeflow.simulation.prepare import threads, threads_for
from sdeflow.state import State
from sdeflow.system.system import BlockSystem, initial_state

_TIMES, _REPEATED = 10, 0.1
"""How often a timing is repeated, up to so many seconds: small ones jitter, and the first warms torch up."""


def seconds_a_step(run: Run, *, within: float = 4.0, share: float = 2.0) -> float | None:
    """About how long a step takes on a CPU; None for a run without a model, and for one that cannot start.

    Steps are timed on 1, 2, 4, ... of the data that a step sees, until they take `share` times that on one,
    all of them are there, or the steps have taken `within` seconds. A step of b data takes a + c b; the two
    numbers come from the first and the last timing, with c between half and all of the last over its b, and
    three quarters where one timing was long enough. 'compiled', which takes a minute to begin, is timed as
    the engine that would stand in for it.

    Checked on cifar10's decoder with `width` 64, 128 and 256 and batches of 16 to 128, on two cores that
    others kept busy: what was told, before and after a step, was 0.6 to 1.7 times what that step took.
    """
    if run.system.model_forces is None or not isinstance(run.system, BlockSystem):
        return None
    system = run.system.in_bf16(run.precision == "bf16").to(run.dtype, run.device)
    size = run.n_data if run.batch is None else run.batch.size
    whole = {name: torch.empty(axes.shape, device="meta") for name, axes in system.axes.items()}
    b = 1
    try:
        with threads(threads_for(whole)), torch.no_grad():
            last = spent = one = _seconds(run, system, 1)
            while b < size and last < share * one and spent < within:
                b = min(2 * b, size)
                last = _seconds(run, system, b)
                spent += last
    except Exception:  # what the user wrote fails: the run itself says how
        return None
    c = 0.75 * one if b == 1 else (last - one) / (b - 1)
    return last + (size - b) * min(max(c, last / b / 2), last / b)


def _seconds(run: Run, system: BlockSystem, b: int) -> float:
    """Of a step on the first b data, the median of a few."""
    stepper, z = _stepper(run, system, b)
    taken: list[float] = []
    while len(taken) < _TIMES and sum(taken) < _REPEATED:
        began = time.perf_counter()
        stepper(z, 0)
        taken.append(time.perf_counter() - began)
    return median_low(taken)


def _stepper(run: Run, system: BlockSystem, b: int) -> tuple[Stepper, State]:
    """What takes steps of the first b data alone, and their start."""
    scheme, replicas, engine = run.integrator, run.all_replicas, _uncompiled(run)
    index = torch.arange(b, device=replicas.device).expand(replicas.count, b)
    part = system.minibatch(index)
    z = initial_state(part, replicas)
    if run.batch is not None:
        batches = MiniBatches(part, scheme, replace(run.batch, size=b), replicas, engine)
        return batches, batches.start(z)
    noise = engine.source(part.channels, scheme.noise_spec(part.h), replicas)
    return engine.stepper(part, scheme, noise), z | scheme.init(part, z)


def _uncompiled(run: Run) -> Engine:
    if run.engine.name != "compiled":
        return run.engine
    return run.engine.fallback or resolve_engine("auto", run.engine.source_name, run.device)

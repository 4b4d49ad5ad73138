"""What a step of a run costs on R processes: arithmetic that is counted, and a reduction by its bytes.

    compute     (a + c b / R) / F     a + c n operations of a step on n data, b of them in a step, F a second
    reduction   2 (R - 1)/R B / W + 2 ceil(log2 R) L     B bytes of forces on parameters, a ring over links of
                                                         W bytes a second with latency L
    step        compute + reduction, which do not overlap
    efficiency  of R processes against one: step(1) / (R step(R))

Operations are those of matrix products and convolutions, forward and backward, of a whole step with its
catching up. Of models without them, or where F is not given, compute is what steps take on this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2, prod

import torch
from torch._subclasses import FakeTensorMode

from sdeflow.config.run import Run
from sdeflow.errors import SdeflowError
from sdeflow.machine import operations
from sdeflow.parallel.field import shareable
from sdeflow.simulation.memory import state_bytes
from sdeflow.simulation.timing import seconds_a_step
from sdeflow.state import State
from sdeflow.system.increments import noise_of
from sdeflow.system.system import BlockSystem


@dataclass(frozen=True)
class Link:
    """What connects two processes: bytes a second one way, and seconds until the first arrives."""

    bandwidth: float
    latency: float = 20e-6

    def reduction(self, size: float, ranks: int) -> float:
        """Seconds to add up `size` bytes of each of so many processes, for all of them."""
        if ranks == 1:
            return 0.0
        return 2 * (ranks - 1) / ranks * size / self.bandwidth + 2 * ceil(log2(ranks)) * self.latency


@dataclass(frozen=True)
class Work:
    """Of a step: what is done once, and for each datum; in operations or in seconds."""

    once: float
    datum: float

    def of(self, data: float) -> float:
        return self.once + data * self.datum

    def over(self, speed: float) -> Work:
        """In seconds, by operations a second."""
        return Work(self.once / speed, self.datum / speed)


@dataclass(frozen=True)
class Share:
    """A step on so many processes: data of each, seconds, the share of them that is of use, bytes of each."""

    ranks: int
    data: float
    compute: float
    reduction: float
    efficiency: float
    state: float

    @property
    def seconds(self) -> float:
        return self.compute + self.reduction


def shares(run: Run, ranks: Sequence[int], link: Link, work: Work) -> list[Share]:
    """A step of a run on each number of processes, by what the work takes in seconds.

    Raises SdeflowError for a system that processes cannot share, and for more of them than data.
    """
    system = shareable(run.system)
    data = run.n_data if run.batch is None else run.batch.size
    if (most := max(ranks)) > data:
        raise SdeflowError(f"{most} processes cannot share the {data} data of a step: give at most {data}")
    size, whole = reduced_bytes(run), state_bytes(run)
    of_data = run.replica_count * run.dtype.itemsize * _of_data(system)
    alone, found = work.of(data), []
    for r in ranks:
        compute, reduction = work.of(data / r), link.reduction(size, r)
        efficiency = alone / (r * (compute + reduction))
        found.append(Share(r, data / r, compute, reduction, efficiency, whole - of_data * (1 - 1 / r)))
    return found


def reduced_bytes(run: Run) -> int:
    """Bytes of the forces on parameters, which are added up once a step."""
    numbers = sum(prod(b.shape) for b in shareable(run.system).parameters)
    return run.replica_count * run.dtype.itemsize * numbers


def _of_data(system: BlockSystem) -> int:
    """Numbers of a replica's state that processes share."""
    return sum(prod(axes.shape) for axes in system.axes.values() if axes.dims[:1] == ("datum",))


def measured(run: Run) -> Work | None:
    """Seconds of a step on this machine, as if all of it were for the data; None where none can be taken."""
    seconds = seconds_a_step(run)
    data = run.n_data if run.batch is None else run.batch.size
    return None if seconds is None else Work(0.0, seconds / data)


def counted(run: Run) -> Work:
    """Operations of a step: of a step on two data, and what of them the second added."""
    one, two = (_operations_of(run, n) for n in (1, 2))
    return Work(2 * one - two, two - one)


def _operations_of(run: Run, n: int) -> float:
    """Those of a step on the first n data, of shapes alone: no number is computed."""
    scheme, batch, whole = run.integrator, run.batch, run.system.to(run.dtype, torch.device("cpu"))
    assert isinstance(whole, BlockSystem)  # as `shares` has found
    system = whole.minibatch(torch.arange(n).expand(run.replica_count, n))
    spec, lead = scheme.noise_spec(system.h), (run.replica_count,)
    with FakeTensorMode(allow_non_fake_inputs=True):
        z: State = {name: torch.zeros(*lead, *a.shape, dtype=run.dtype) for name, a in system.axes.items()}
        for b in system.blocks:
            if b.rule is not None:
                z |= {k: v.expand(*lead, *v.shape) for k, v in b.remember(b.rule.start(b)).items()}
        normals = {c: (spec.substeps, c.normals(spec.kind), *lead, *c.shape) for c in system.channels}
        noise = noise_of([(c, torch.zeros(shape, dtype=run.dtype)) for c, shape in normals.items()], spec)
        kept = scheme.init(system, z)
        scores = [b for b in system.particles if b.of_data]
        taken = operations(lambda: scheme.step(system, 0.0, z | kept, system.h, noise))
        if batch is not None:  # which makes forces that are kept useless, and may catch up
            taken += operations(lambda: scheme.init(system, z))
            taken += batch.extra_evaluations * operations(lambda: system.forces(0.0, z, scores))
    return taken

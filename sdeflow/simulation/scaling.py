"""What a step of a run costs on R processes: arithmetic that is counted, and a reduction by its bytes.

    compute     (a + c b / R) / F     a + c n operations of a step on n data, b of them in a step, F a second
    reduction   2 (R - 1)/R B / W + 2 ceil(log2 R) L     B bytes of forces on parameters, a ring over links of
                                                         W bytes a second with latency L; as often as a step
                                                         evaluates theta's force
    step        compute + reduction, which do not overlap
    efficiency  of R processes against one: step(1) / (R step(R))

Operations are those of matrix products and convolutions, forward and backward, of a whole step with its
catching up. Of models without them, or where F is not given, compute is what steps take on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, inf, log2, prod

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from sdeflow.config.run import Run
from sdeflow.errors import SdeflowError
from sdeflow.machine import operations
from sdeflow.parallel.field import sharded, shareable
from sdeflow.parallel.ranks import Ranks
from sdeflow.parallel.shard import Shard
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
    shareable(run.system)
    data = run.n_data if run.batch is None else run.batch.size
    if (most := max(ranks)) > data:
        raise SdeflowError(f"{most} processes cannot share the {data} data of a step: give at most {data}")
    size, times = reduced_bytes(run), reductions(run)
    alone, found = work.of(data), []
    for r in ranks:
        compute, reduction = work.of(data / r), times * link.reduction(size, r)
        efficiency = alone / (r * (compute + reduction))
        found.append(Share(r, data / r, compute, reduction, efficiency, state_bytes(run, 1 / r)))
    return found


def reductions(run: Run) -> int:
    """How often a step adds up the forces on parameters.

    Once by most schemes, whose other evaluations are the particles' alone; counted in a step on one datum.
    """
    sent = _Counting()
    system = sharded(shareable(run.system), Shard.of(run.n_data), sent, fixed=False)
    with _shapes_alone(run, system, 1) as (step, start, _):
        before = len(sent.sums)
        step()
        if run.batch is not None:
            start()
    return len(sent.sums) - before


@dataclass(frozen=True)
class _Counting(Ranks):
    """One process that counts what it would add up with others."""

    sums: list[int] = field(default_factory=list)

    def sum(self, parts: Sequence[Tensor]) -> list[Tensor]:
        self.sums.append(len(parts))
        return list(parts)


def reduced_bytes(run: Run) -> int:
    """Bytes of the forces on parameters."""
    numbers = sum(prod(b.shape) for b in shareable(run.system).parameters)
    return run.replica_count * run.dtype.itemsize * numbers


def measured(run: Run) -> Work | None:
    """Seconds of a step on this machine, as if all of it were for the data; None where none can be taken."""
    seconds = seconds_a_step(run, share=inf)
    data = run.n_data if run.batch is None else run.batch.size
    return None if seconds is None else Work(0.0, seconds / data)


def counted(run: Run) -> Work:
    """Operations of a step: of a step on two data, and what of them the second added."""
    one, two = (_operations_of(run, n) for n in (1, 2))
    return Work(2 * one - two, two - one)


def _operations_of(run: Run, n: int) -> float:
    """Those of a step on the first n data."""
    assert isinstance(run.system, BlockSystem)  # as `shares` has found
    with _shapes_alone(run, run.system, n) as (step, start, score):
        if run.batch is None:
            return operations(step)
        # another batch makes forces that are kept useless, and may catch up
        return operations(step) + operations(start) + run.batch.extra_evaluations * operations(score)


Parts = tuple[Callable[[], object], Callable[[], object], Callable[[], object]]
"""A step, what a scheme begins with, and an evaluation of the score."""


@contextmanager
def _shapes_alone(run: Run, system: BlockSystem, n: int) -> Iterator[Parts]:
    """The parts of a step on the first n data, where shapes count and no number is computed.

    Raises SdeflowError for a model that looks at numbers.
    """
    scheme, lead = run.integrator, (run.replica_count,)
    system = system.to(run.dtype, torch.device("cpu")).minibatch(torch.arange(n).expand(*lead, n))
    spec = scheme.noise_spec(system.h)
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            z: State = {k: torch.zeros(*lead, *a.shape, dtype=run.dtype) for k, a in system.axes.items()}
            for b in system.blocks:
                memory = {} if b.rule is None else b.remember(b.rule.start(b))
                for name, value in memory.items():
                    own = value.to(run.dtype) if value.is_floating_point() else value
                    z[name] = own.expand(*lead, *value.shape)
            normals = {c: (spec.substeps, c.normals(spec.kind), *lead, *c.shape) for c in system.channels}
            noise = noise_of([(c, torch.zeros(of, dtype=run.dtype)) for c, of in normals.items()], spec)
            kept = scheme.init(system, z)
            scores = [b for b in system.particles if b.of_data]
            yield (
                lambda: scheme.step(system, 0.0, z | kept, system.h, noise),
                lambda: scheme.init(system, z),
                lambda: system.forces(0.0, z, scores),
            )
    except SdeflowError:
        raise
    except Exception as error:  # what a user wrote can fail in any way on shapes alone
        raise SdeflowError(
            f"a step of this model cannot be counted, which looks at numbers ({type(error).__name__}): only "
            "models made of torch's operations alone can be asked what more processes bring"
        ) from error

"""The memory that a run takes, and whether this machine has it."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sdeflow.errors import SdeflowError
from sdeflow.machine import free_memory
from sdeflow.model.rows import Rows
from sdeflow.parallel.ranks import ALONE, Ranks
from sdeflow.system.average import average_axes, averaged
from sdeflow.system.block import Block
from sdeflow.terminal import human
from sdeflow.trajectory.record import BUFFER, Recorder

if TYPE_CHECKING:
    from sdeflow.config.run import Run


def require_memory(run: Run, *, folder: bool, ranks: Ranks = ALONE) -> None:
    """Raises SdeflowError where there is no room for a run, beside its data, which are there already.

    Processes that share it share the memory of their machine, and have a GPU each.
    """
    on_gpu = run.device.type == "cuda"
    part = run.shard(ranks).count / run.n_data if ranks.several else 1.0
    needed = peak_bytes(run, folder=folder, part=part) - data_bytes(run)
    snapshots = 0 if folder or on_gpu else snapshot_bytes(run)
    free = torch.cuda.mem_get_info(run.device)[0] if on_gpu else free_memory() // ranks.here
    if needed + snapshots > free:
        fix = "take fewer particles (system.particles), data or replicas"
        if snapshots > needed:
            fix = "save less often (save.every), of fewer data (save.data) or particles (save.particles)"
        raise SdeflowError(
            f"{'each process' if ranks.several else 'the run'} would hold about "
            f"{human(needed + snapshots)} of memory at once, and "
            f"{human(free)}{' of the GPU' if on_gpu else ''} are free: {fix}"
        )


def room_beside(run: Run) -> bool:
    """Whether this machine's memory has room for a run's steps and, beside them, a state that is written.

    Writing a checkpoint takes three copies, of which one is there already where steps wait.
    """
    return peak_bytes(run) - data_bytes(run) + 3 * state_bytes(run) <= free_memory()


def usual_bytes(run: Run, *, folder: bool = True) -> int:
    """The most bytes that a run on the host holds at once where memory is ample, of which it makes use.

    Freed memory is kept for the next step, and lies in pieces: about one state more. Of a run with a folder
    there are three copies of a state that is written beside the steps.
    """
    return peak_bytes(run, folder=folder) + (3 if folder else 1) * state_bytes(run)


def recorder_of(run: Run) -> Recorder:
    """A recorder as a run with a folder has it, to be asked what it would take."""
    return Recorder(
        run.system, run.save, axes=run.axes, replicas=run.replica_count, steps=run.steps, buffer=BUFFER
    )


def snapshot_bytes(run: Run) -> int:
    """Bytes of all snapshots of a run that keeps them in memory."""
    recorder = recorder_of(run)
    return recorder.numbers_per_snapshot * run.dtype.itemsize * len(recorder.when)


def state_bytes(run: Run, part: float = 1.0) -> int:
    """Bytes of the state of all replicas, or of a process that has a part of the data."""
    of_data = {name for b in run.system.blocks if b.of_data for name in b.variables}
    numbers = sum(prod(a.shape) * (part if v in of_data else 1) for v, a in run.system.axes.items())
    numbers += sum(_kept(b) * (part if b.of_data else 1) for b in run.system.blocks)
    return int(run.replica_count * (numbers * run.dtype.itemsize + average_bytes(run)))


def _kept(b: Block) -> int:
    """How many numbers a block's rule keeps, of one replica."""
    with torch.device("meta"):  # shapes alone
        return 0 if b.rule is None else sum(value.numel() for value in b.rule.start(b).values())


def average_bytes(run: Run) -> int:
    """Bytes of the average of the parameters of one replica, which is in float64."""
    return 0 if run.average is None else 8 * sum(prod(a.shape) for a in average_axes(run.system).values())


def kept_bytes(run: Run) -> int:
    """Bytes of the parameters of all replicas, and of their average."""
    of_one = sum(prod(run.system.axes[name].shape) for name in averaged(run.system)) * run.dtype.itemsize
    return run.replica_count * (of_one + average_bytes(run))


def data_bytes(run: Run) -> int:
    """Bytes of the model's tensors."""
    forces = run.system.model_forces
    leaves = [] if forces is None else tree_leaves(list(vars(forces.model).values()))
    return sum(
        v.numel() * (run.dtype.itemsize if v.is_floating_point() else v.element_size())
        for v in leaves
        if isinstance(v, Tensor)
    )


def read_bytes(run: Run) -> int:
    """Bytes of data that are read by minibatches: three batches, and one in the run's precision."""
    forces = run.system.model_forces
    rows = [] if forces is None else [v for v in tree_leaves(forces.model.data) if isinstance(v, Rows)]
    items = [v[0] for each in rows for v in tree_leaves(each.meta)]
    size = 0 if run.batch is None else run.replica_count * run.batch.size
    return sum(size * v.numel() * (3 * v.element_size() + run.dtype.itemsize) for v in items)


def peak_bytes(run: Run, *, folder: bool = True, part: float = 1.0) -> int:
    """The least that a run on the host must be able to hold at once, a model's own intermediate values aside.

    part   of the data, which a process has

    At the start, which each process draws whole, one replica is drawn in float64 beside the state that it is
    copied to, and there may be what the run begins from. A step makes a new state beside the old, from forces
    and noise of the data it sees. Writing a checkpoint, where there is a run folder, takes three copies.
    """
    state, own = state_bytes(run), state_bytes(run, part)
    start = state + state // run.replica_count * 8 // run.dtype.itemsize + (0 if run.start is None else state)
    kind = run.integrator.noise_spec(run.system.h).kind
    normals = (
        run.replica_count
        * run.dtype.itemsize
        * sum((c.normals(kind) + 2) * run.integrator.substeps * prod(c.shape) for c in run.system.channels)
    )
    share = 1.0 if run.batch is None else run.batch.size / run.n_data
    step = 2 * own + int(share * (own + part * normals))
    step += read_bytes(run)
    written = 4 * own if part == 1 else 3 * state + own  # of several one puts all together in the end
    return data_bytes(run) + max(start, step, written if folder else 0)

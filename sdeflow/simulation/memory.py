"""The memory that a run takes, and whether this machine has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from math import inf, prod
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sdeflow.config.run import Run
from sdeflow.errors import SdeflowError
from sdeflow.system.average import average_axes, averaged
from sdeflow.system.block import Block
from sdeflow.terminal import human
from sdeflow.trajectory.record import BUFFER, Recorder


def require_memory(run: Run, *, folder: bool) -> None:
    """Raises SdeflowError where there is no room for a run, beside its data, which are there already."""
    needed, on_gpu = peak_bytes(run, folder=folder) - data_bytes(run), run.device.type == "cuda"
    snapshots = 0 if folder or on_gpu else snapshot_bytes(run)
    free = torch.cuda.mem_get_info(run.device)[0] if on_gpu else free_memory()
    if needed + snapshots > free:
        fix = "take fewer particles (system.particles), data or replicas"
        if snapshots > needed:
            fix = "save less often (save.every), of fewer data (save.data) or particles (save.particles)"
        raise SdeflowError(
            f"the run would hold about {human(needed + snapshots)} of memory at once, and "
            f"{human(free)}{' of the GPU' if on_gpu else ''} are free: {fix}"
        )


def free_memory() -> float:
    """Bytes that this process can still take, swap too; inf where that is not told."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        told = {
            name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)
        }
        free: float = told["MemAvailable"] + told["SwapFree"]
    except (OSError, KeyError, ValueError):  # no Linux: what the machine has
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else inf
    return max(0, min([free, *_left_in_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]))


def _left_in_groups(own: Path, root: Path) -> Iterator[int]:
    """Bytes below the limit of each control group that a process is in, as a container or a job has one.

    own    the file that names its groups, of version 1 or 2
    root   where groups are folders
    """
    with suppress(OSError, ValueError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            limit, usage, cached = names if controllers else ("memory.max", "memory.current", "inactive_file")
            top = root / controllers
            group = top / path.lstrip("/")
            for folder in [group, *group.parents][: len(group.parts) - len(top.parts) + 1]:
                with suppress(OSError, ValueError):  # no such folder in a container, or a limit of "max"
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    used = int((folder / usage).read_text()) - int(stat.get(cached, 0))
                    yield int((folder / limit).read_text()) - used


def recorder_of(run: Run) -> Recorder:
    """A recorder as a run with a folder has it, to be asked what it would take."""
    return Recorder(
        run.system, run.save, axes=run.axes, replicas=run.replica_count, steps=run.steps, buffer=BUFFER
    )


def snapshot_bytes(run: Run) -> int:
    """Bytes of all snapshots of a run that keeps them in memory."""
    recorder = recorder_of(run)
    return recorder.numbers_per_snapshot * run.dtype.itemsize * len(recorder.when)


def state_bytes(run: Run) -> int:
    """Bytes of the state of all replicas."""
    numbers = sum(prod(a.shape) for a in run.system.axes.values()) + sum(map(_kept, run.system.blocks))
    return run.replica_count * (numbers * run.dtype.itemsize + average_bytes(run))


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


def peak_bytes(run: Run, *, folder: bool = True) -> int:
    """The most bytes that a run on the host holds at once, but for a model's own intermediate values.

    At the start one replica is drawn in float64 beside the state that it is copied to, and there may be what
    the run begins from. A step makes a new state beside the old, from forces and noise of the data it sees.
    Writing a checkpoint, where there is a run folder, takes three copies.
    """
    state = state_bytes(run)
    start = state + state // run.replica_count * 8 // run.dtype.itemsize + (0 if run.start is None else state)
    kind = run.integrator.noise_spec(run.system.h).kind
    normals = (
        run.replica_count
        * run.dtype.itemsize
        * sum((c.normals(kind) + 2) * run.integrator.substeps * prod(c.shape) for c in run.system.channels)
    )
    share = 1.0 if run.batch is None else run.batch.size / run.n_data
    step = 2 * state + int(share * (state + normals))
    return data_bytes(run) + max(start, step, 4 * state if folder else 0)

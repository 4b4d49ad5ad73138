"""What a run takes: steps, memory, disk and time, before it begins."""

from __future__ import annotations

from math import prod

from torch import Tensor
from torch.utils._pytree import tree_leaves

from sdeflow.config.run import Run
from sdeflow.model.forces import held_out_forces
from sdeflow.simulation.timing import seconds_a_step
from sdeflow.terminal import duration, human, rate
from sdeflow.trajectory.record import BUFFER, Recorder


def cost(run: Run) -> list[tuple[str, str]]:
    """Pairs of what and how much."""
    each = 4 if run.dtype.itemsize == 4 else 8
    recorder = Recorder(run.system, run.save, replicas=run.all_replicas.count, steps=run.steps, buffer=BUFFER)
    snapshot = recorder.numbers_per_snapshot * each
    disk, whole = snapshot * len(recorder.when), state_bytes(run)
    rows = [
        (
            "steps",
            f"{run.steps:,}, {len(recorder.when):,} snapshots, {run.all_replicas.count} replica(s), "
            f"{str(run.dtype).removeprefix('torch.')}",
        ),
        ("computed by", str(run.engine)),
        ("a step", f"{_seen(run)}, {run.gradient_evaluations} gradient evaluation(s)"),
    ]
    if run.evaluate is not None:
        forces = held_out_forces(run.system.model_forces)
        rows.append(("held-out loss", run.evaluate.cost(run.steps, forces.n_data, forces.n_particles)))
    return [
        *rows,
        ("a snapshot", human(snapshot)),
        ("trajectory.nc", f"about {human(disk)}, twice that on disk while it is put together"),
        ("a checkpoint", f"about {human(whole)}, and as much for the one before"),
        ("memory: state", human(whole)),
        ("memory: data", human(data_bytes(run))),
        ("memory: peak", f"about {human(peak_bytes(run))}, and what the model needs for its gradients"),
    ]


def cpu_cost(run: Run) -> str:
    """'about 2 min a step on this CPU, 3.0 days for 2,000 steps; ', measured; '' where it cannot be."""
    seconds = seconds_a_step(run)
    if seconds is None:
        return ""
    return f"about {rate(1 / seconds)} on this CPU, {duration(run.steps * seconds)} for {run.steps:,} steps; "


def state_bytes(run: Run) -> int:
    """Bytes of the state of all replicas."""
    return run.all_replicas.count * sum(prod(a.shape) for a in run.system.axes.values()) * run.dtype.itemsize


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

    At the start one replica is drawn in float64 beside the state that it is copied to. A step makes a new
    state beside the old, from forces and noise of the data it sees. Writing a checkpoint, where there is a
    run folder, takes three copies.
    """
    state = state_bytes(run)
    start = state + state // run.all_replicas.count * 8 // run.dtype.itemsize
    kind = run.integrator.noise_spec(run.system.h).kind
    normals = (
        run.all_replicas.count
        * run.dtype.itemsize
        * sum((c.normals(kind) + 2) * run.integrator.substeps * prod(c.shape) for c in run.system.channels)
    )
    share = 1.0 if run.batch is None else run.batch.size / run.n_data
    step = 2 * state + int(share * (state + normals))
    return data_bytes(run) + max(start, step, 4 * state if folder else 0)


def _seen(run: Run) -> str:
    return "all data" if run.batch is None else f"{run.batch.size:,} of {run.n_data:,} data"

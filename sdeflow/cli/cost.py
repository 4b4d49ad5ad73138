"""What a run takes: steps, memory, disk and time, before it begins."""

from __future__ import annotations

from sdeflow.config.run import Run
from sdeflow.model.forces import held_out_forces
from sdeflow.simulation.memory import (
    average_bytes,
    data_bytes,
    free_memory,
    kept_bytes,
    recorder_of,
    state_bytes,
    usual_bytes,
)
from sdeflow.simulation.timing import seconds_a_step
from sdeflow.system.average import AVERAGE, average_axes
from sdeflow.terminal import duration, human, rate


def cost(run: Run) -> list[tuple[str, str]]:
    """Pairs of what and how much."""
    each = 4 if run.dtype.itemsize == 4 else 8
    recorder = recorder_of(run)
    snapshot = recorder.numbers_per_snapshot * each
    disk, whole = snapshot * len(recorder.when), state_bytes(run)
    rows = [
        (
            "steps",
            f"{run.steps:,}, {len(recorder.when):,} snapshots, {run.replica_count} replica(s), "
            f"{str(run.dtype).removeprefix('torch.')}"
            + ("" if run.precision == "full" else f", forces in {run.precision}"),
        ),
        ("computed by", str(run.engine)),
        ("a step", f"{_seen(run)}, {run.gradient_evaluations} gradient evaluation(s)"),
    ]
    if run.evaluate is not None:
        forces = held_out_forces(run.system.model_forces)
        rows.append(("held-out loss", run.evaluate.cost(run.steps, forces.n_data, forces.n_particles)))
    if run.average is not None:
        names = ", ".join(name.removeprefix(AVERAGE) for name in average_axes(run.system))
        rows.append(
            (f"average of {names}", f"{run.average}, in float64: {human(average_bytes(run))} a replica")
        )
    if moments := run.save.moments(run.steps):
        kept = f"{human(kept_bytes(run))} at each of {len(moments)} moments"
        rows.append(("kept parameters", kept))
    rows += [("not saved", words) for words in recorder.not_whole]
    if run.start is not None:
        rows.append(("begins from", str(run.start)))
    return [
        *rows,
        ("a snapshot", human(snapshot)),
        ("trajectory.nc", f"about {human(disk)}, twice that on disk while it is put together"),
        ("a checkpoint", f"about {human(whole)}, and as much for the one before"),
        ("memory: state", human(whole)),
        ("memory: data", human(data_bytes(run))),
        (
            "memory: peak",
            f"about {human(usual_bytes(run))}, and what the model needs for its gradients; "
            f"{human(free_memory())} are free here",
        ),
    ]


def cpu_cost(run: Run) -> str:
    """'about 2 min a step on this CPU, 3.0 days for 2,000 steps; ', measured; '' where it cannot be."""
    seconds = seconds_a_step(run)
    if seconds is None:
        return ""
    return f"about {rate(1 / seconds)} on this CPU, {duration(run.steps * seconds)} for {run.steps:,} steps; "


def _seen(run: Run) -> str:
    return "all data" if run.batch is None else f"{run.batch.size:,} of {run.n_data:,} data"

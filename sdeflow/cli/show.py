"""What the command line prints: tables and equations."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sdeflow.config.run import Run
from sdeflow.model.forces import held_out_forces
from sdeflow.system.block import Block
from sdeflow.system.system import System
from sdeflow.terminal import first_line, human, out, table
from sdeflow.trajectory.record import BUFFER, Recorder

if TYPE_CHECKING:
    from sdeflow.config.schema import Config


def equations(b: Block) -> list[str]:
    """The block's SDE on its own clock, with its numbers left as symbols."""
    q, f = b.position, f"f_{b.name}"
    if b.momentum is None:
        return [f"d{q} = {f} dt" + (" + √(2T) dW" if b.temperature > 0 else "")]
    p = b.momentum
    return [
        f"d{q} = η {p} dt",
        f"d{p} = (−γη {p} + {f}) dt" + (" + √(2γT) dW" if b.temperature > 0 else ""),
    ]


def describe(config: Config, run: Run, variants: Sequence[str]) -> None:
    """Prints what a problem is and what a run of it takes."""
    out.print(Text(config.title or config.system.use, style="bold"))
    if config.cpu_note:
        out.print(f"on a CPU: {config.cpu_note}", markup=False)
    if config.model is not None:
        from sdeflow.config.catalogue import find

        out.print(f"model   {config.model.use}: {first_line(find('models', config.model.use))}", markup=False)
    out.print(f"system  {config.system.use}", markup=False)
    out.print(f"scheme  {run.integrator.name}: {first_line(run.integrator)}\n", markup=False)
    if run.system.blocks:
        _describe_blocks(run.system)
    shapes = [[name, " × ".join(map(str, a.shape)), ", ".join(a.dims)] for name, a in run.system.axes.items()]
    table("State of one replica", ("variable", "shape", "axes"), shapes)
    table("What a run takes", ("", ""), cost(run))
    if variants:
        out.print(f"variants (--variant NAME): {', '.join(variants)}", markup=False)


def _describe_blocks(system: System) -> None:
    rows = [
        [
            b.name,
            "\n".join(equations(b)),
            f"{b.rate * system.h:g}",
            b.number("eta") if b.kinetic else "",
            b.number("gamma") if b.kinetic else "",
            f"{b.temperature:g}",
            _product(b, system.h) if b.kinetic else "",
        ]
        for b in system.blocks
    ]
    table("Blocks", ("block", "on its own clock", "step h", "η", "γ", "T", "γηh"), rows)


def _product(b: Block, h: float) -> str:
    """gamma eta h, of a grid's blocks from the least to the most."""
    values = [one.gamma * one.eta * one.rate * h for one in b.replicas]
    return f"{min(values):g}" if min(values) == max(values) else f"{min(values):g}..{max(values):g}"


def tell_compared(rows: Sequence[Any], folder: Path) -> None:
    """Prints what a comparison of runs in a folder found, a row a run."""
    from sdeflow.analysis.comparison.report import plain_cells

    columns = ("integrator", "ended", "fitted rate, 1e-3 a step", "predicted", "loss", "")
    table("Comparison", columns, [plain_cells(row) for row in rows])
    out.print(f"{folder / 'report.html'}\n{folder / 'compare.nc'}", markup=False)


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
    normals = (
        run.all_replicas.count
        * run.dtype.itemsize
        * sum(
            (c.normals(run.integrator.increments) + 2) * run.integrator.substeps * prod(c.shape)
            for c in run.system.channels
        )
    )
    share = 1.0 if run.batch is None else run.batch.size / run.n_data
    step = 2 * state + int(share * (state + normals))
    return data_bytes(run) + max(start, step, 4 * state if folder else 0)


def _seen(run: Run) -> str:
    return "all data" if run.batch is None else f"{run.batch.size:,} of {run.n_data:,} data"

"""What the command line prints: tables and equations."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdeflow.block import Block
from sdeflow.system import BlockSystem, System

if TYPE_CHECKING:
    from sdeflow.problem import Problem

out = Console(highlight=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table."""
    grid = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for i, column in enumerate(columns):
        grid.add_column(column, style="cyan" if i == 0 else None, overflow="fold", no_wrap=i == 0)
    for row in rows:
        grid.add_row(*map(Text, row))
    out.print(grid)
    out.print()


def first_line(thing: Any) -> str:
    """The first sentence of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


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


def human(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def describe(problem: Problem, variants: Sequence[str]) -> None:
    """Prints what a problem is and what a run of it takes."""
    config, system = problem.config, problem.system
    out.print(Text(config.title or config.system.use, style="bold"))
    if config.cpu_note:
        out.print(f"on a CPU: {config.cpu_note}", markup=False)
    if config.model is not None:
        from sdeflow.catalogue import find

        out.print(f"model   {config.model.use}: {first_line(find('models', config.model.use))}", markup=False)
    out.print(f"system  {config.system.use}", markup=False)
    out.print(f"scheme  {problem.integrator.name}: {first_line(problem.integrator)}\n", markup=False)
    if isinstance(system, BlockSystem):
        _describe_blocks(system)
    shapes = [[name, " × ".join(map(str, a.shape)), ", ".join(a.dims)] for name, a in system.axes.items()]
    table("State of one replica", ("variable", "shape", "axes"), shapes)
    _describe_cost(problem, system)
    if variants:
        out.print(f"variants (--variant NAME): {', '.join(variants)}", markup=False)


def _describe_blocks(system: BlockSystem) -> None:
    rows = [
        [
            b.name,
            "\n".join(equations(b)),
            f"{b.rate * system.h:g}",
            f"{b.eta:g}" if b.kinetic else "",
            f"{b.gamma:g}" if b.kinetic else "",
            f"{b.temperature:g}",
            f"{b.gamma * b.eta * b.rate * system.h:g}" if b.kinetic else "",
        ]
        for b in system.blocks
    ]
    table("Blocks", ("block", "on its own clock", "step h", "η", "γ", "T", "γηh"), rows)


def _describe_cost(problem: Problem, system: System) -> None:
    from torch import Tensor

    from sdeflow.held_out import held_out_forces
    from sdeflow.record import Recorder

    run, batch = problem.config.run, problem.config.batch
    bytes_each = {"float32": 4, "float64": 8}[run.dtype]
    recorder = Recorder(system, problem.save, replicas=run.replicas, steps=run.steps)
    model = system.model_forces if isinstance(system, BlockSystem) else None
    state = run.replicas * sum(prod(a.shape) for a in system.axes.values()) * bytes_each
    normals = sum(
        (1 + (len(problem.integrator.noise) if c.kinetic else 1))
        * problem.integrator.substeps
        * prod(c.shape)
        for c in system.channels
    )
    a_step = 2 * state + run.replicas * normals * bytes_each  # new state, forces and noise
    seen = "all data"
    if batch is not None and model is not None:
        a_step = a_step * batch.size // model.data
        seen = f"{batch.size:,} of {model.data:,} data"
    snapshot = recorder.numbers_per_snapshot * bytes_each
    disk = snapshot * len(recorder.when)
    rows = [
        ["steps", f"{run.steps:,}, {len(recorder.when):,} snapshots, {run.replicas} replica(s), {run.dtype}"],
        ["a step", f"{seen}, {problem.gradient_evaluations} gradient evaluation(s)"],
        ["a snapshot", human(snapshot)],
        ["trajectory.nc", f"about {human(disk)}, held in memory until the run ends"],
        ["final.safetensors", f"about {human(state)}"],
        ["memory: state", human(state)],
        ["memory: a step", f"about {human(a_step)}, and what the model needs for its gradients"],
    ]
    if problem.evaluate is not None:
        forces = held_out_forces(system)
        rows.append(["held-out loss", problem.evaluate.cost(run.steps, forces.data, forces.particles)])
    if model is not None:
        size = sum(v.numel() for v in vars(model.model).values() if isinstance(v, Tensor)) * bytes_each
        rows.append(["memory: data", human(size)])
    table("What a run takes", ("", ""), rows)

"""The command that chooses a problem's numbers: tune."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdeflow.cli import app as cli
from sdeflow.cli.app import app, configured
from sdeflow.errors import SdeflowError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdeflow.config.run import Run
    from sdeflow.config.schema import Config
    from sdeflow.simulation.tune import Tuned
    from sdeflow.system.block import Block

NUMBERS = ("h", "eta", "gamma")


@app.command()
def tune(
    ctx: typer.Context,
    problem: cli.ProblemArgument,
    integrator: cli.IntegratorOption = None,
    system: cli.SystemOption = None,
    variant: cli.VariantOption = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of the warm-up; curvature is measured at 20, 40, 80, ...")
    ] = 200,
    seed: Annotated[int | None, typer.Option(help="Seed of the start and of the noise.")] = None,
    settings: cli.SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Where the problem is written with its numbers.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    quiet: cli.QuietOption = False,
) -> None:
    """Choose the numbers of a problem by the curvature that its blocks see, and say why.

    Chosen are h, eta and gamma where the file has 'auto' or nothing; all of them where it gives all.
    """
    from contextlib import nullcontext

    from sdeflow.config.build import build
    from sdeflow.config.catalogue import problem_file
    from sdeflow.simulation.tune import tune as find
    from sdeflow.terminal import progress_bar
    from sdeflow.trajectory.durable import write

    if out is not None and out.exists() and not overwrite:
        raise SdeflowError(f"{out} exists: give another --out, or --overwrite")
    if out is not None and not out.parent.is_dir():
        raise SdeflowError(f"{out.parent} is no folder: make it, or give another --out")
    config = configured(problem_file(problem), {**ctx.params, "steps": None})
    run = build(_opened(config, build(config).system.blocks, settings or [], steps))
    with nullcontext() if quiet else progress_bar() as progress:
        tuned = find(run, progress=progress)
    if out is not None:
        write(out, _written(config, run, tuned).encode())
    if not quiet:
        _tell(run, tuned, out)


def _opened(config: Config, blocks: Sequence[Block], settings: list[str], steps: int) -> Config:
    """The configuration for a warm-up alone.

    Where no number is 'auto' all are made so, but for those that are set on the command line.
    """
    from sdeflow.config.schema import Config, merged

    opened: dict[str, Any] = {}
    if not any(b.auto for b in blocks):
        fixed = {setting.partition("=")[0].strip() for setting in settings}
        opened = {
            b.name: {key: "auto" for key in NUMBERS if f"system.{b.name}.{key}" not in fixed} for b in blocks
        }
    warm_up = {"system": opened, "run": {"steps": steps, "replicas": 1}, "tune": {"until": steps}}
    return Config.of(merged(config.tables(), warm_up))


def _written(config: Config, run: Run, tuned: Tuned) -> str:
    """The problem with the numbers that were found, as TOML, and what they are."""
    from sdeflow.config.schema import Config, merged

    numbers: dict[str, dict[str, Any]] = {
        "system": {name: _rounded(own) for name, own in tuned.numbers.items()},
        "run": {"integrator": run.config.run.integrator if run.config else run.integrator.name},
    }
    lines = Config.of(merged(config.tables(), numbers)).toml().splitlines()
    meaning: dict[str, str] = {}
    for i, line in enumerate(lines):
        if line.startswith("["):
            block = line.removeprefix("[system.").removesuffix("]")
            own = numbers["system"].get(block)
            meaning = _meaning(own, tuned.curvature[block]) if own else {}
        if key := meaning.get(line.partition(" = ")[0]):
            lines[i] = f"{line}  # {key}"
    head = [f"# h, eta and gamma are those of 'sdeflow tune': {_why(run, tuned)}."]
    return "\n".join([*head, *lines, ""])


def _meaning(own: dict[str, float | bool], curvature: float) -> dict[str, str]:
    """What the numbers of a block do, by name."""
    told = {
        "h": "step on this block's own clock",
        "restart": "a momentum that points against the force is set to zero",
    }
    if {"h", "eta", "gamma"} <= own.keys():
        h, eta, gamma = (float(own[key]) for key in NUMBERS)
        told["eta"] = (
            f"inverse mass: h^2 eta L = {h * h * eta * curvature:.3g}, with L = {curvature:.4g} the largest "
            "curvature that the block sees"
        )
        told["gamma"] = f"friction: the momentum keeps exp(-gamma eta h) = {exp(-gamma * eta * h):.2g} a step"
    return told


def _rounded(numbers: dict[str, float | bool]) -> dict[str, float | bool]:
    return {name: v if isinstance(v, bool) else float(f"{v:.4g}") for name, v in numbers.items()}


def _why(run: Run, tuned: Tuned) -> str:
    return (
        f"the step is {tuned.share:.2g} of the largest stable one of {run.integrator.name}, in units in "
        f"which every block's largest curvature is 1, which is {tuned.limit:.3g}"
        + ("" if tuned.margin == 1 else f"; curvature counts {tuned.margin:.3g} times, as the run went back")
    )


def _heat(run: Run, tuned: Tuned) -> str:
    """What to know of the particles' temperature, where their law is not that of the model."""
    if abs(tuned.heat) < 0.02:
        return ""
    return (
        f" Under such steps of {run.integrator.name} the variance of the particles' stiffest direction is "
        f"off by {tuned.heat:+.0%}, which biases what is learned."
    )


def _tell(run: Run, tuned: Tuned, out: Path | None) -> None:
    """Prints what was measured, what was chosen and why, and what every scheme would need."""
    from sdeflow.terminal import out as console
    from sdeflow.terminal import table

    rows = [
        [b.name, f"{tuned.curvature[b.name]:.4g}", *(_cell(b, key, own) for key in NUMBERS), _rest(own)]
        for b, own in zip(run.system.blocks, tuned.numbers.values(), strict=True)
    ]
    table(
        f"What the blocks see and take, found by {tuned.evaluations:,.0f} gradient evaluations",
        ["block", "curvature", *NUMBERS, ""],
        rows,
    )
    s = tuned.spectrum
    joint = (
        f"Their joint curvature lies between {s.lo:.3g} and {s.hi:.3g}, a condition number of "
        f"{s.hi / s.lo:.3g}: friction suits the slowest error."
        if s.known
        else "The least joint curvature is not known: friction, and the table below, suit errors that see "
        f"{tuned.assumed:.3g} of the largest."
    )
    why = _why(run, tuned)
    console.print(f"{why[0].upper()}{why[1:]}. {joint}{_heat(run, tuned)}\n", markup=False)
    rows = [[name, _count(v)] for name, v in tuned.efold.items()]
    table("Gradient evaluations an e-fold of the slowest error", ["integrator", "evaluations"], rows)
    best, own = next(iter(tuned.efold)), run.integrator.name
    needs, least = tuned.efold.get(own, 0.0), tuned.efold[best]
    if needs > 2 * least:
        console.print(
            f"{own} needs {_count(needs)} evaluations an e-fold and {best} {_count(least)}: "
            f"take --integrator {best}\n",
            markup=False,
        )
    if out is not None:
        console.print(
            f"{out}    the problem with these numbers: sdeflow run {out}", markup=False, soft_wrap=True
        )


def _cell(b: Block, key: str, own: dict[str, float | bool]) -> str:
    if key in own:
        return f"{own[key]:.4g}"
    if key in b.schedules:
        return "a schedule"
    return "of the grid" if b.kinetic else ""


def _count(value: float) -> str:
    return f"{float(f'{value:.3g}'):,g}"


def _rest(own: dict[str, float | bool]) -> str:
    return "restarts" if own.get("restart") else ""

"""The command that chooses a problem's numbers: tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdeflow.cli import app as cli
from sdeflow.cli.app import app, configured
from sdeflow.errors import SdeflowError

if TYPE_CHECKING:
    from sdeflow.config.run import Run
    from sdeflow.config.schema import Config
    from sdeflow.simulation.tune import Tuned

NUMBERS = ("h", "eta", "gamma")
MEANING = {
    "h": "step on this block's own clock",
    "eta": "inverse mass, 1 over the largest curvature that the block sees",
    "gamma": "friction",
    "restart": "a momentum that points against the force is set to zero",
}


@app.command()
def tune(
    ctx: typer.Context,
    problem: cli.ProblemArgument,
    integrator: cli.IntegratorOption = None,
    system: cli.SystemOption = None,
    variant: cli.VariantOption = None,
    steps: Annotated[
        int, typer.Option(help="Steps of the warm-up; curvature is measured at 20, 60, 180.")
    ] = 200,
    seed: Annotated[int | None, typer.Option(help="Seed of the start and of the noise.")] = None,
    settings: cli.SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Where the problem is written with its numbers.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    quiet: cli.QuietOption = False,
) -> None:
    """Choose h, eta and gamma of all blocks by the curvature that they see, and say why."""
    from contextlib import nullcontext

    from sdeflow.config.build import build
    from sdeflow.config.catalogue import problem_file
    from sdeflow.simulation.tune import tune as find
    from sdeflow.terminal import progress_bar
    from sdeflow.trajectory.durable import write

    if out is not None and out.exists() and not overwrite:
        raise SdeflowError(f"{out} exists: give another --out, or --overwrite")
    config = configured(problem_file(problem), {**ctx.params, "steps": None})
    run = build(_opened(config, [b.name for b in build(config).system.blocks], settings or [], steps))
    with nullcontext() if quiet else progress_bar() as progress:
        tuned = find(run, progress=progress)
    if out is not None:
        write(out, _written(config, run, tuned).encode())
    if not quiet:
        _tell(run, tuned, out)


def _opened(config: Config, blocks: list[str], settings: list[str], steps: int) -> Config:
    """The configuration with every number of the blocks 'auto' that is not set on the command line."""
    from sdeflow.config.schema import Config, merged

    opened: dict[str, Any] = {
        name: {key: "auto" for key in NUMBERS if f"system.{name}.{key}" not in _keys(settings)}
        for name in blocks
    }
    warm_up = {"system": opened, "run": {"steps": steps, "replicas": 1}, "tune": {"until": steps}}
    return Config.of(merged(config.tables(), warm_up))


def _keys(settings: list[str]) -> set[str]:
    return {setting.partition("=")[0].strip() for setting in settings}


def _written(config: Config, run: Run, tuned: Tuned) -> str:
    """The problem with the numbers that were found, as TOML, and what they are."""
    from sdeflow.config.schema import Config, merged

    numbers = {
        "system": {name: _rounded(own) for name, own in tuned.numbers.items()},
        "run": {"integrator": run.config.run.integrator if run.config else run.integrator.name},
    }
    lines = Config.of(merged(config.tables(), numbers)).toml().splitlines()
    block = ""
    for i, line in enumerate(lines):
        if line.startswith("["):
            block = line.removeprefix("[system.").removesuffix("]")
        key = line.partition(" = ")[0]
        if block in tuned.numbers and key in MEANING:
            lines[i] = f"{line}  # {MEANING[key].format(curvature=tuned.curvature[block])}"
    head = [f"# h, eta and gamma are those of 'sdeflow tune': {_why(run, tuned)}."]
    return "\n".join([*head, *lines, ""])


def _rounded(numbers: dict[str, float | bool]) -> dict[str, float | bool]:
    return {name: v if isinstance(v, bool) else float(f"{v:.4g}") for name, v in numbers.items()}


def _why(run: Run, tuned: Tuned) -> str:
    return (
        f"h is {tuned.share:.2g} of the largest stable step of {run.integrator.name}, in units in which "
        "every block's largest curvature is 1"
    )


def _tell(run: Run, tuned: Tuned, out: Path | None) -> None:
    """Prints what was measured, what was chosen and why, and what every scheme would need."""
    from sdeflow.terminal import out as console
    from sdeflow.terminal import table

    rows = [
        [name, f"{tuned.curvature[name]:.4g}", *(_cell(own.get(key)) for key in NUMBERS), _rest(own)]
        for name, own in tuned.numbers.items()
    ]
    table(
        f"What the blocks see and take, found by {tuned.evaluations:,.0f} gradient evaluations",
        ["block", "curvature", *NUMBERS, ""],
        rows,
    )
    s = tuned.spectrum
    joint = (
        f"Their joint curvature lies between {s.lo:.3g} and {s.hi:.3g}: friction suits the slowest error."
        if s.known
        else "Their joint curvature is not positive, so what is slowest is not known: friction suits 1/400 "
        "of the largest curvature."
    )
    console.print(f"{_why(run, tuned)[0].upper()}{_why(run, tuned)[1:]}. {joint}\n", markup=False)
    title = "Gradient evaluations an e-fold" + ("" if s.known else " at 1/400 of the largest curvature")
    table(title, ["integrator", "evaluations"], [[n, f"{v:,.3g}"] for n, v in tuned.efold.items()])
    best, own = next(iter(tuned.efold)), run.integrator.name
    if tuned.efold.get(own, 0) > 2 * tuned.efold[best]:
        console.print(
            f"{own} needs {tuned.efold[own]:,.0f} evaluations an e-fold and {best} {tuned.efold[best]:,.0f}: "
            f"take --integrator {best}\n",
            markup=False,
        )
    if out is not None:
        console.print(
            f"{out}    the problem with these numbers: sdeflow run {out}", markup=False, soft_wrap=True
        )


def _cell(value: float | bool | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _rest(own: dict[str, float | bool]) -> str:
    return "restarts" if own.get("restart") else ""

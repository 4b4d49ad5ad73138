"""The command that takes many runs of one problem."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from sdeflow.cli import app as cli
from sdeflow.cli.app import app, configured
from sdeflow.errors import SdeflowError
from sdeflow.terminal import shown


@app.command()
def sweep(
    ctx: typer.Context,
    problem: Annotated[
        str, typer.Argument(help="A TOML file, a packaged problem, or the folder of a sweep to go on with.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A value for all runs, or values to sweep over: run.seed=0..4, system.x.gamma=[0.1,0.3].",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the runs.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time (default: one a core).", min=1)] = None,
    integrator: cli.IntegratorOption = None,
    system: cli.SystemOption = None,
    variant: cli.VariantOption = None,
    steps: cli.StepsOption = None,
    replicas: cli.ReplicasOption = None,
    dtype: cli.DtypeOption = None,
    engine: cli.EngineOption = None,
    noise: cli.NoiseOption = None,
    eval_every: cli.EvalEveryOption = None,
    quiet: cli.QuietOption = False,
) -> None:
    """Take a run of every combination of values, in folders side by side; what has ended is not taken again.

    The same command goes on with a sweep that was stopped, and takes the runs of values that it is given
    besides. sdeflow.open_sweep opens all of them as one dataset.
    """
    from contextlib import nullcontext

    from sdeflow.config.catalogue import problem_file
    from sdeflow.sweep.opening import table
    from sdeflow.sweep.plan import SWEEP, Sweep, parted
    from sdeflow.sweep.taking import ENDED, take
    from sdeflow.terminal import counted
    from sdeflow.terminal import table as print_table

    if (Path(problem) / SWEEP).is_file():
        given = {name for name, value in ctx.params.items() if value}
        asked = sorted(given - {"problem", "jobs", "quiet"})
        if asked:
            raise SdeflowError(f"{problem} is a sweep, which has its settings: remove {', '.join(asked)}")
        found = Sweep.open(Path(problem)).begin()
    else:
        axes, rest = parted(settings or ())
        if out is None:
            raise SdeflowError("give --out, a folder for the runs")
        config = configured(problem_file(problem), ctx.params | {"settings": rest})
        found = Sweep(out, config.toml(), axes).begin()
    jobs = min(jobs or os.cpu_count() or 1, len(found.points))
    try:
        with nullcontext(lambda: None) if quiet else counted("run", len(found.points)) as tick:
            ended = take(found, jobs, tick)
    except KeyboardInterrupt:
        typer.echo(shown(f"stopped; to go on: sdeflow sweep {shlex.quote(str(found.folder))}"), err=True)
        raise typer.Exit(130) from None
    if not quiet:
        names = [axis.name for axis in found.axes]
        print_table(
            f"Sweep {found.folder}", (*names, "ended", "steps", "loss", "seconds"), table(found.points)
        )
        typer.echo(f"sdeflow.open_sweep({found.folder.as_posix()!r}) opens them as one dataset")
    for one in ended:
        if one.state not in ENDED:
            typer.echo(shown(f"{one.point.folder.name}: {one.state}: {one.note}"), err=True)
    states = {one.state for one in ended}
    raise typer.Exit(1 if states.difference(ENDED) else 3 if "diverged" in states else 0)

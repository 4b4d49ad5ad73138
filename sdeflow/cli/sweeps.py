"""The command that takes many runs of one problem."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdeflow.cli import app as cli
from sdeflow.cli.app import app, configured
from sdeflow.errors import SdeflowError
from sdeflow.terminal import shown

if TYPE_CHECKING:
    from sdeflow.sweep.plan import Sweep
    from sdeflow.sweep.taking import Ended


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
            help="A value for all runs, or values to sweep over: run.seed=0..4, system.x.gamma=[0.1,0.3]; or "
            "with --search numbers to choose between: system.x.gamma=0.1..0.9, system.x.h=1e-4..1e-2:log.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the runs.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time (default: one a core).", min=1)] = None,
    search: Annotated[
        str,
        typer.Option(
            metavar="SCORE",
            help="Choose points by the scores of those before: evidence, to be large, or what a run records, "
            "to be small: loss.",
        ),
    ] = "",
    trials: Annotated[int | None, typer.Option(help="Points that a search chooses.", min=1)] = None,
    slurm: Annotated[
        str,
        typer.Option(
            metavar="KEY=VALUE,...",
            help="Submit them as one SLURM array: partition=gpu,time=60 (minutes), gpus, cpus, mem (GB), and "
            "options of sbatch.",
        ),
    ] = "",
    integrator: cli.IntegratorOption = None,
    system: cli.SystemOption = None,
    variant: cli.VariantOption = None,
    steps: cli.StepsOption = None,
    replicas: cli.ReplicasOption = None,
    dtype: cli.DtypeOption = None,
    precision: cli.PrecisionOption = None,
    engine: cli.EngineOption = None,
    noise: cli.NoiseOption = None,
    eval_every: cli.EvalEveryOption = None,
    quiet: cli.QuietOption = False,
) -> None:
    """Take a run of every combination of values, in folders side by side; what has ended is not taken again.

    The same command goes on with a sweep that was stopped, and takes the runs of values that it is given
    besides. With --search points are chosen, one by the scores of those before. With --slurm the runs are
    submitted to a cluster; sdeflow sweep FOLDER then tells how they stand. sdeflow.open_sweep opens all as
    one dataset.
    """
    from sdeflow.sweep.cluster import slurm_parameters, submit, submitted
    from sdeflow.sweep.plan import SWEEP
    from sdeflow.sweep.taking import standing

    parameters = slurm_parameters(slurm) if slurm else {}
    found = _opened(ctx) if (Path(problem) / SWEEP).is_file() else _declared(ctx)
    if slurm and found.search is not None:
        raise SdeflowError("a search chooses by runs that have ended, and is no array: leave out --slurm")
    found = found.begin()
    if slurm:
        _tell_submitted(found, submit(found, parameters, jobs))
    elif jobs is None and submitted(found):
        _tell(found, standing(found), quiet)
    else:
        _take(found, jobs or os.cpu_count() or 1, quiet)


def _opened(ctx: typer.Context) -> Sweep:
    """The sweep in a folder, with another number of trials where one is given."""
    from sdeflow.sweep.plan import Sweep

    folder, trials = Path(ctx.params["problem"]), ctx.params["trials"]
    found = Sweep.open(folder)
    free = {"problem", "jobs", "slurm", "quiet", *["trials"] * (found.search is not None)}
    if asked := sorted({name for name, value in ctx.params.items() if value} - free):
        raise SdeflowError(f"{folder} is a sweep, which has its settings: remove {', '.join(asked)}")
    if found.search is None or trials is None:
        return found
    return Sweep(folder, found.base, found.axes, found.search._replace(trials=trials))


def _declared(ctx: typer.Context) -> Sweep:
    """The sweep of a problem that the options declare."""
    from sdeflow.config.catalogue import problem_file
    from sdeflow.sweep.axes import parted
    from sdeflow.sweep.plan import Search, Sweep

    given = ctx.params
    axes, rest = parted(given["settings"] or (), searching=bool(given["search"]))
    if given["out"] is None:
        raise SdeflowError("give --out, a folder for the runs")
    if bool(given["search"]) != (given["trials"] is not None):
        raise SdeflowError("--search SCORE and --trials N go together: give both, or neither")
    if given["search"] and not axes:
        raise SdeflowError("a search needs numbers to choose between: --set system.x.gamma=0.1..0.9, say")
    search = Search(given["search"], given["trials"]) if given["search"] else None
    config = configured(problem_file(given["problem"]), given | {"settings": rest})
    return Sweep(given["out"], config.toml(), axes, search)


def _take(sweep: Sweep, jobs: int, quiet: bool) -> None:
    """Takes the runs here, and tells how they stand."""
    from contextlib import nullcontext

    from sdeflow.sweep.cluster import submitted
    from sdeflow.sweep.search import seek
    from sdeflow.sweep.taking import take
    from sdeflow.terminal import counted

    count = len(sweep.points) if sweep.search is None else sweep.search.trials
    jobs = min(jobs, count)
    try:
        with nullcontext(lambda: None) if quiet else counted("run", count) as tick:
            ended = (take if sweep.search is None else seek)(sweep, jobs, tick)
    except KeyboardInterrupt:
        again = f"{_again(sweep)}{f' --jobs {jobs}' * bool(submitted(sweep))}"
        typer.echo(shown(f"stopped; to go on: {again}"), err=True)
        raise typer.Exit(130) from None
    _tell(sweep, ended, quiet)


def _again(sweep: Sweep) -> str:
    return f"sdeflow sweep {shlex.quote(str(sweep.folder))}"


def _tell(sweep: Sweep, ended: Sequence[Ended], quiet: bool) -> None:
    """Says how the runs stand, and exits with the code for that."""
    from sdeflow.sweep.opening import best, columns, table
    from sdeflow.sweep.taking import FAILED
    from sdeflow.terminal import table as print_table

    states, found = {one.state for one in ended}, None if sweep.search is None else best(sweep)
    if not quiet:
        print_table(f"Sweep {sweep.folder}", columns(sweep), table(sweep))
        if found and sweep.search:
            point, score = found
            at = ", ".join(f"{name}={value}" for name, value in point.at.items())
            typer.echo(shown(f"best {sweep.search.score} {score:.6g} at {at}"))
        typer.echo(f"sdeflow.open_sweep({sweep.folder.as_posix()!r}) opens them as one dataset")
    for one in ended:
        if one.state in FAILED:
            typer.echo(shown(f"{one.point.folder.name}: {one.state}: {one.note}"), err=True)
    diverged = "diverged" in states and found is None  # a search goes round what diverges
    raise typer.Exit(1 if states.intersection(FAILED) else 3 if diverged else 0)


def _tell_submitted(sweep: Sweep, jobs: Mapping[str, str]) -> None:
    """Says which jobs there are now."""
    if not jobs:
        typer.echo(f"nothing to submit: every run has ended or is in the queue; {_again(sweep)} tells")
        return
    ids = list(dict.fromkeys(job.partition("_")[0] for job in jobs.values()))
    runs = "1 run" if len(jobs) == 1 else f"{len(jobs)} runs"
    typer.echo(shown(f"{runs} submitted as job {', '.join(ids)}; how they stand: {_again(sweep)}"))

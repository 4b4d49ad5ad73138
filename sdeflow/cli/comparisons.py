"""Commands that compare integrators and runs: stability, compare, report."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sdeflow.cli import app as cli
from sdeflow.cli import completion
from sdeflow.cli.app import app, configured, names_in
from sdeflow.cli.importing import for_good
from sdeflow.errors import Incompatible, SdeflowError
from sdeflow.terminal import progress_bar, shown


@app.command()
def stability(
    ctx: typer.Context,
    problem: cli.ProblemArgument,
    integrators: Annotated[
        str,
        typer.Option(
            help="Names, separated by commas (default: all that can but torchsde's).",
            autocompletion=completion.integrators,
        ),
    ] = "",
    system: cli.SystemOption = None,
    variant: cli.VariantOption = None,
    settings: cli.SetOption = None,
    at: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Linearise at the end of this run, not the equilibrium.",
            autocompletion=completion.runs,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the map of friction and step is drawn, SVG.")
    ] = None,
) -> None:
    """What each integrator contracts a step near the equilibrium, the largest stable steps, and its bias.

    The bias is the relative error of the particles' variance with the parameters held, where it is largest.
    """
    with for_good():
        from sdeflow.analysis.comparison.stability_map import show as show_stability
        from sdeflow.config.build import build
        from sdeflow.config.catalogue import integrators_for, problem_file

    path = problem_file(problem)
    config = configured(path, ctx.params)
    if at is None and config.model is not None:  # two particles carry all modes
        config = config.with_particles(2)
    run = build(config)
    if run.grid is not None:
        raise SdeflowError(
            "stability is of one point: remove [grid]; --out draws a map over friction and step"
        )
    able = integrators_for(run.system, reference=False)
    names = names_in(integrators) or able
    title = " ".join(filter(None, [path.stem, variant, system]))
    show_stability(run, names, at=at, out=out, title=title)


@app.command()
def compare(
    ctx: typer.Context,
    problem: cli.ProblemArgument,
    integrators: Annotated[
        str, typer.Option(help="Names, separated by commas.", autocompletion=completion.integrators)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the runs, compare.nc and report.html.")],
    system: cli.SystemOption = None,
    variant: cli.VariantOption = None,
    steps: cli.StepsOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed, the same for all.")] = None,
    replicas: Annotated[int, typer.Option(help="Replicas of each, for error bars.")] = 8,
    settings: cli.SetOption = None,
    quiet: cli.QuietOption = False,
) -> None:
    """Run a problem by several integrators, on common noise where they allow it; writes a report."""
    from sdeflow.analysis.comparison.compare import compare as compare_runs
    from sdeflow.cli.show import tell_compared
    from sdeflow.config.build import build
    from sdeflow.config.catalogue import problem_file
    from sdeflow.data.cache import fetching
    from sdeflow.trajectory.layout import safe_name

    if out.exists():
        raise SdeflowError(f"{out} exists: give another --out")
    path = problem_file(problem)
    runs: dict[str, Any] = {}
    for name in names_in(integrators):
        label = safe_name(name.rpartition(":")[2]) if ".py:" in name else name
        try:
            with fetching(quiet=quiet):
                built = runs[label] = build(configured(path, ctx.params | {"integrator": name}))
            if built.grid is not None:
                raise SdeflowError("a comparison is of one point of gamma and eta: remove [grid]")
        except Incompatible as error:
            runs[label] = str(error)
    if not any(not isinstance(run, str) for run in runs.values()):
        raise SdeflowError("; ".join(runs.values()) or "give --integrators, names separated by commas")

    title = " ".join(filter(None, [path.stem, variant, system]))
    rows = compare_runs(runs, out, title, partial(_reporting, quiet))
    if not quiet:
        tell_compared(rows, out)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of runs of one problem, or that of a sweep.",
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for compare.nc and report.html.")] = Path("report"),
    quiet: cli.QuietOption = False,
) -> None:
    """Compare existing runs of one problem, or those of a sweep; writes a report."""
    from sdeflow.analysis.comparison.compare import write
    from sdeflow.analysis.comparison.entries import open_entries
    from sdeflow.cli.show import tell_compared
    from sdeflow.sweep.plan import SWEEP

    if (out / "report.html").exists():
        raise SdeflowError(f"{out / 'report.html'} exists: give another --out")
    if sweeps := [folder for folder in runs if (folder / SWEEP).is_file()]:
        if len(runs) > 1:
            raise SdeflowError(f"{sweeps[0]} is a sweep, which is reported alone: give no other folder")
        _report_sweep(sweeps[0], out, quiet)
        return
    entries = open_entries(runs)
    title = next(str(entry.dataset.attrs["title"]) for entry in entries if entry.dataset is not None)
    rows = write(entries, out, title, partial(_reporting, quiet))
    if not quiet:
        tell_compared(rows, out)


def _report_sweep(folder: Path, out: Path, quiet: bool) -> None:
    """Writes the page of a sweep."""
    from sdeflow.analysis.comparison.sweep_page import page
    from sdeflow.sweep.opening import columns, open_sweep, table
    from sdeflow.sweep.plan import Sweep
    from sdeflow.trajectory import durable

    found = Sweep.open(folder)
    with open_sweep(folder) as runs:
        text = page(f"Sweep {folder.resolve().name}", runs, columns(found), table(found))
    out.mkdir(parents=True, exist_ok=True)
    durable.write(out / "report.html", text.encode())
    if not quiet:
        typer.echo(out / "report.html")


def _reporting(quiet: bool, label: str, unit: str = "step") -> Any:
    """A context for something that takes long: says what it is, and gives what it reports to."""
    if quiet:
        return nullcontext()
    typer.echo(shown(label), err=True)
    return progress_bar(unit)

"""The command line: parse, call, print."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from functools import partial
from math import inf, isnan
from pathlib import Path
from typing import Annotated, Any

import typer

from sdeflow import __version__
from sdeflow.errors import Incompatible, SdeflowError

EXIT = {"success": 0, "diverged": 3, "interrupted": 130}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Interacting-particle SDE systems for training latent-variable models.",
    epilog="Exit codes: 0 ok, 1 runtime, 2 usage or configuration, 3 diverged, 130 interrupted.",
)

ProblemArgument = Annotated[str, typer.Argument(help="A TOML file, or the name of a packaged problem.")]
IntegratorOption = Annotated[str | None, typer.Option(help="A name from 'sdeflow list', or file.py:Name.")]
SystemOption = Annotated[str | None, typer.Option(help="A name from 'sdeflow list', or file.py:Name.")]
VariantOption = Annotated[str | None, typer.Option(help="One of the problem's [variants.NAME].")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="key.sub=value, for example system.theta.gamma=0.05; repeatable."),
]
StepsOption = Annotated[int | None, typer.Option(help="Steps of the reference clock.")]
ReplicasOption = Annotated[int | None, typer.Option(help="Replicas in one run; replica i has seed + i.")]
EvalEveryOption = Annotated[
    int | None, typer.Option(help="Steps between measurements of the loss on held-out data.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
EngineOption = Annotated[str | None, typer.Option(help="auto, eager, fused or compiled.")]
NoiseOption = Annotated[str | None, typer.Option(help="Noise source: auto, torch or philox.")]
DtypeOption = Annotated[str | None, typer.Option(help="float32 or float64.")]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"sdeflow {__version__}")
        raise typer.Exit


@app.command()
def run(
    problem: ProblemArgument,
    integrator: IntegratorOption = None,
    system: SystemOption = None,
    variant: VariantOption = None,
    steps: StepsOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the start and of the noise.")] = None,
    replicas: ReplicasOption = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    dtype: DtypeOption = None,
    engine: EngineOption = None,
    noise: NoiseOption = None,
    eval_every: EvalEveryOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder (default: runs/PROBLEM-INTEGRATOR-sSEED).")
    ] = None,
    settings: SetOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run folder.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Run a problem; writes a run folder with trajectory.nc and final.safetensors."""
    from contextlib import nullcontext

    from sdeflow.config.build import build
    from sdeflow.config.catalogue import problem_file
    from sdeflow.simulation.solve import solve
    from sdeflow.terminal import progress_bar
    from sdeflow.trajectory.folder import refuse_occupied

    path = problem_file(problem)
    config = _config(
        path,
        variant,
        settings,
        {
            "system": {"use": system},
            "run": {
                "integrator": integrator,
                "steps": steps,
                "seed": seed,
                "replicas": replicas,
                "device": device,
                "dtype": dtype,
                "engine": engine,
                "noise": noise,
            },
            "evaluate": {"every": eval_every},
        },
    )
    built = build(config)
    names = [path.stem, variant, system, built.integrator.name]
    folder = out or Path("runs") / "-".join([*(_slug(n) for n in names if n), f"s{config.run.seed}"])
    refuse_occupied(folder, overwrite)
    if config.cpu_note and not quiet and built.device.type == "cpu":
        typer.echo(f"note: {config.cpu_note}", err=True)
    if built.engine.name == "compiled" and not quiet:
        typer.echo("note: torch compiles the step first, which can take a minute", err=True)
    with nullcontext() if quiet else progress_bar() as progress:
        solution = solve(built, out=folder, overwrite=overwrite, progress=progress)
    _tell(solution, folder, quiet)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    steps: Annotated[int, typer.Option(help="Steps to add to those that the run was to take.")] = 0,
    quiet: QuietOption = False,
) -> None:
    """Go on with a run that was stopped, or further with one that had ended, to the same numbers."""
    from contextlib import nullcontext

    from sdeflow.simulation.resume import resume as resume_run
    from sdeflow.terminal import progress_bar

    with nullcontext() if quiet else progress_bar() as progress:
        solution = resume_run(folder, steps, progress=progress)
    _tell(solution, folder, quiet)


def _tell(solution: Any, folder: Path, quiet: bool) -> None:
    """Says how a run ended and where it is, and exits with the code for that."""
    from sdeflow.terminal import out as console
    from sdeflow.terminal import rate
    from sdeflow.trajectory.layout import TRAJECTORY

    dataset, attrs = solution.dataset, solution.dataset.attrs
    if solution.retcode != "success":
        typer.echo(f"{solution.retcode}: {solution.message}", err=True)
    if not quiet:
        speed = rate(attrs["steps_taken"] / max(attrs["seconds"], 1e-9))
        loss = ""
        if "loss" in dataset:
            last = dataset["loss"][-1]
            loss = f", loss {float(last.where(abs(last) < inf).mean()):.6g}"
        if attrs["evaluate"]:
            measured = dataset["held_out_loss"].dropna("time", how="all")
            held_out = float(measured[-1].mean()) if measured.size else float("nan")
            loss += f", held-out loss {held_out:.6g} ({attrs['evaluate_seconds']:.1f} s of them)"
        path = folder / TRAJECTORY
        opened = f"{path}    open it with xr.open_dataset('{path.as_posix()}')" if path.exists() else folder
        console.print(
            f"{attrs['steps_taken']:,} steps in {attrs['seconds']:.1f} s ({speed}){loss}\n{opened}",
            markup=False,
            soft_wrap=True,
        )
    raise typer.Exit(EXIT[solution.retcode])


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="cifar10, mnist or fashion_mnist.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="A folder or tar archive that you have already.")
    ] = None,
) -> None:
    """Put a data set into the cache folder, checked (SDEFLOW_DATA names another folder); prints where."""
    from sdeflow.data.cache import fetch as fetch_data

    typer.echo(fetch_data(name, source=source, say=partial(typer.echo, err=True)))


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    n: Annotated[int, typer.Option("--n", help="Samples of the prior.")] = 64,
    steps: Annotated[
        int, typer.Option(help="Steps that the particles of a learned prior take from the run's last.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    replica: Annotated[int, typer.Option(help="Which replica's parameters.")] = 0,
) -> None:
    """Sample the prior that a run has learned; writes samples.nc and pictures into the run folder."""
    from sdeflow.analysis.samples import sample as sample_run

    for path in sample_run(folder, n=n, steps=steps, seed=seed, replica=replica):
        typer.echo(path)


@app.command("list")
def list_catalogue() -> None:
    """The catalogue: integrators, systems, models and packaged problems."""
    import tomllib

    from sdeflow.config import catalogue
    from sdeflow.system.published import Declaration
    from sdeflow.terminal import first_line, table

    rows = []
    for name in catalogue.entries("integrators"):
        try:
            scheme = catalogue.integrator_named(name)
        except SdeflowError as error:
            rows.append([name, "", "", "", str(error), ""])
            continue
        orders = ["" if isnan(order) else f"{order:g}" for order in (scheme.strong_order, scheme.weak_order)]
        rows.append([name, *orders, str(scheme.evaluations), scheme.needs, scheme.source])
    table("Integrators", ("name", "strong", "weak", "gradients a step", "needs", "source"), rows)

    rows = []
    for name, entry in catalogue.entries("systems").items():
        try:
            found = catalogue.find("systems", name)
        except SdeflowError as error:
            rows.append([name, "", str(error)])
            continue
        if isinstance(found, Declaration):
            rows.append([name, "; ".join(f"{v} {how}" for v, how in found.dynamics.items()), found.source])
        else:
            rows.append([name, first_line(found), entry.value.partition(":")[0]])
    table("Systems", ("name", "dynamics", "source"), rows)

    rows = [[name, entry.value] for name, entry in catalogue.entries("models").items()]
    table("Models", ("name", "where"), rows)

    rows = []
    for name, path in catalogue.problem_files().items():
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        rows.append([name, tables.get("title", ""), ", ".join(tables.get("variants", {}))])
    table("Problems", ("name", "title", "variants"), rows)


@app.command()
def show(
    problem: ProblemArgument,
    integrator: IntegratorOption = None,
    system: SystemOption = None,
    variant: VariantOption = None,
    steps: StepsOption = None,
    replicas: ReplicasOption = None,
    dtype: DtypeOption = None,
    engine: EngineOption = None,
    noise: NoiseOption = None,
    eval_every: EvalEveryOption = None,
    settings: SetOption = None,
) -> None:
    """What a problem is: blocks and equations, shapes, and the memory and disk that a run takes."""
    import tomllib

    from sdeflow.cli.show import describe
    from sdeflow.config.build import build
    from sdeflow.config.catalogue import problem_file
    from sdeflow.config.schema import variant_tables

    path = problem_file(problem)
    chosen = {"integrator": integrator, "steps": steps, "replicas": replicas, "dtype": dtype}
    chosen |= {"engine": engine, "noise": noise}
    tables: Any = {"system": {"use": system}, "run": chosen, "evaluate": {"every": eval_every}}
    config = _config(path, variant, settings, tables)
    describe(config, build(config), list(variant_tables(tomllib.loads(path.read_text(encoding="utf-8")))))


@app.command()
def stability(
    problem: ProblemArgument,
    integrators: Annotated[
        str, typer.Option(help="Names, separated by commas (default: all that can but torchsde's).")
    ] = "",
    system: SystemOption = None,
    variant: VariantOption = None,
    settings: SetOption = None,
    at: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Linearise at the end of this run, not the equilibrium."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the map of friction and step is drawn, SVG.")
    ] = None,
) -> None:
    """What each integrator contracts a step near the equilibrium, and the largest stable steps."""
    from sdeflow.analysis.comparison.stability_map import show as show_stability
    from sdeflow.config.build import build
    from sdeflow.config.catalogue import integrators_for, problem_file

    path = problem_file(problem)
    config = _config(path, variant, settings, {"system": {"use": system}})
    if at is None and config.model is not None:  # two particles carry all modes
        config = config.with_particles(2)
    run = build(config)
    if run.grid is not None:
        raise SdeflowError(
            "stability is of one point: remove [grid]; --out draws a map over friction and step"
        )
    able = [name for name in integrators_for(run.system) if not name.startswith("torchsde:")]
    names = _names(integrators) or able
    title = " ".join(filter(None, [path.stem, variant, system]))
    show_stability(run, names, at=at, out=out, title=title)


@app.command()
def compare(
    problem: ProblemArgument,
    integrators: Annotated[str, typer.Option(help="Names, separated by commas.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs, compare.nc and report.html.")],
    system: SystemOption = None,
    variant: VariantOption = None,
    steps: StepsOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed, the same for all.")] = None,
    replicas: Annotated[int, typer.Option(help="Replicas of each, for error bars.")] = 8,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run a problem by several integrators, on common noise where they allow it; writes a report."""
    from contextlib import nullcontext

    from sdeflow.analysis.comparison.compare import compare as compare_runs
    from sdeflow.cli.show import tell_compared
    from sdeflow.config.build import build
    from sdeflow.config.catalogue import problem_file
    from sdeflow.terminal import progress_bar

    if out.exists():
        raise SdeflowError(f"{out} exists: give another --out")
    path = problem_file(problem)
    common = {"steps": steps, "seed": seed, "replicas": replicas}
    runs: dict[str, Any] = {}
    for name in _names(integrators):
        tables: dict[str, dict[str, Any]] = {
            "system": {"use": system},
            "run": {**common, "integrator": name},
        }
        label = _slug(name) if ".py:" in name else name
        try:
            built = runs[label] = build(_config(path, variant, settings, tables))
            if built.grid is not None:
                raise SdeflowError("a comparison is of one point of gamma and eta: remove [grid]")
        except Incompatible as error:
            runs[label] = str(error)
    if not any(not isinstance(run, str) for run in runs.values()):
        raise SdeflowError("; ".join(runs.values()) or "give --integrators, names separated by commas")

    def reporting(label: str) -> Any:
        if not quiet:
            typer.echo(label, err=True)
        return nullcontext() if quiet else progress_bar()

    title = " ".join(filter(None, [path.stem, variant, system]))
    rows = compare_runs(runs, out, title, reporting)
    if not quiet:
        tell_compared(rows, out)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs of one problem.")],
    out: Annotated[Path, typer.Option(help="Folder for compare.nc and report.html.")] = Path("report"),
    quiet: QuietOption = False,
) -> None:
    """Compare existing runs of one problem; writes a report."""
    from sdeflow.analysis.comparison.compare import write
    from sdeflow.analysis.comparison.entries import open_entries
    from sdeflow.cli.show import tell_compared

    entries = open_entries(runs)
    if (out / "report.html").exists():
        raise SdeflowError(f"{out / 'report.html'} exists: give another --out")
    title = next(str(entry.dataset.attrs["title"]) for entry in entries if entry.dataset is not None)
    rows = write(entries, out, title)
    if not quiet:
        tell_compared(rows, out)


def _config(
    path: Path,
    variant: str | None,
    settings: list[str] | None,
    options: Mapping[str, Mapping[str, Any]],
) -> Any:
    """The file's configuration under --variant, then --set, then the options that were given."""
    from sdeflow.config.schema import load_config, override

    given = [{table: {k: v}} for table, values in options.items() for k, v in values.items() if v is not None]
    return load_config(path, variant=variant, overrides=[*map(override, settings or []), *given])


def _names(listed: str) -> list[str]:
    """Names separated by commas, each once."""
    return list(dict.fromkeys(filter(None, map(str.strip, listed.split(",")))))


def _slug(name: str) -> str:
    """A name that is safe in a folder's name; of 'file.py:Name' only Name."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name.rpartition(":")[2])


def main() -> None:
    """The `sdeflow` command."""
    # Threads that spin while they wait make a step 20 times slower where another process has a core too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Before and after the march, which has its own way to end, SIGTERM is taken like Ctrl-C.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.showwarning = lambda message, *_, **__: typer.echo(f"warning: {message}", err=True)
    try:
        app()
    except SdeflowError as error:
        typer.echo(f"sdeflow: {error}", err=True)
        sys.exit(error.exit_code)

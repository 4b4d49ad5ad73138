"""Commands that run a problem and tell what there is: parse, call, print."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sdeflow import __version__
from sdeflow.cli import app as cli
from sdeflow.cli import completion, images
from sdeflow.cli.app import app, configured
from sdeflow.cli.ended import EXIT, tell
from sdeflow.cli.importing import for_good
from sdeflow.errors import SdeflowError
from sdeflow.terminal import shown

PriorOption = Annotated[
    str,
    typer.Option(
        metavar="gmm:K", help="Take a mixture of K Gaussians, fitted to the final particles, as the prior."
    ),
]


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        typer.echo(f"sdeflow {__version__}")
        raise typer.Exit


@app.command()
def run(
    ctx: typer.Context,
    problem: cli.ProblemArgument,
    integrator: cli.IntegratorOption = None,
    system: cli.SystemOption = None,
    variant: cli.VariantOption = None,
    steps: cli.StepsOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the start and of the noise.")] = None,
    replicas: cli.ReplicasOption = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    dtype: cli.DtypeOption = None,
    precision: cli.PrecisionOption = None,
    engine: cli.EngineOption = None,
    noise: cli.NoiseOption = None,
    eval_every: cli.EvalEveryOption = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Begin from the last state of this run, in a folder of its own.",
            autocompletion=completion.runs,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder (default: runs/PROBLEM-INTEGRATOR-sSEED).")
    ] = None,
    settings: cli.SetOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run folder.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in its folder where there is one.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch no data set, as with SDEFLOW_OFFLINE=1.")
    ] = False,
    quiet: cli.QuietOption = False,
) -> None:
    """Run a problem; writes a run folder with trajectory.nc and final.safetensors."""
    from contextlib import nullcontext

    with for_good():
        from sdeflow.cli.cost import cpu_cost
        from sdeflow.config.build import build
        from sdeflow.config.catalogue import problem_file
        from sdeflow.data.cache import fetching
        from sdeflow.parallel.ranks import started
        from sdeflow.simulation.resume import resume_from, with_engine_of
        from sdeflow.simulation.solve import solve
        from sdeflow.terminal import progress_bar
        from sdeflow.trajectory.claim import refuse_occupied
        from sdeflow.trajectory.layout import safe_name

    ranks = started()
    quiet = quiet or not ranks.leads
    path = ranks.alike(lambda: problem_file(problem))
    config = ranks.alike(lambda: configured(path, ctx.params))
    with fetching(offline=offline, quiet=quiet):
        if ranks.several:
            ranks.lead(lambda: build(config))  # which fetches data that are not there
        alone = ranks.alike(lambda: build(config, watched=True))
    built = ranks.alike(lambda: alone.shared(ranks))
    names = [path.stem, variant, system, built.integrator.name]
    safe = [safe_name(name.rpartition(":")[2]) for name in names if name]
    before = [] if config.start is None else ["from", Path(config.start.run).name]
    folder = out or Path("runs") / "-".join([*safe, f"s{config.run.seed}", *before])
    if resume and overwrite:
        raise SdeflowError("give --resume or --overwrite, not both")
    again = ranks.noted(str(folder.resolve())) or ranks.of_first(resume and folder.exists())
    if not again:
        ranks.lead(lambda: refuse_occupied(folder, overwrite))
    if config.cpu_note and built.device.type == "cpu" and not quiet and not again:
        typer.echo(shown(f"note: {cpu_cost(built)}{config.cpu_note}"), err=True)
    if built.engine.name == "compiled" and not quiet:
        typer.echo("note: torch compiles a step that is not kept, which can take a minute", err=True)
    with nullcontext() if quiet else progress_bar() as progress:
        if again:
            solution = resume_from(
                lambda meta: with_engine_of(meta, built, config.run.engine, config.run.noise),
                folder,
                progress=progress,
                ranks=ranks,
            )
        else:
            solution = solve(built, out=folder, overwrite=overwrite, progress=progress, ranks=ranks)
    if not ranks.leads:
        raise typer.Exit(EXIT[solution.retcode])
    tell(solution, folder, quiet)


@app.command()
def resume(
    folder: cli.RunArgument,
    steps: Annotated[int, typer.Option(help="Steps to add to those that the run was to take.")] = 0,
    quiet: cli.QuietOption = False,
) -> None:
    """Go on with a run that was stopped, or further with one that had ended, to the same numbers."""
    from contextlib import nullcontext

    with for_good():
        from sdeflow.data.cache import fetching
        from sdeflow.parallel.ranks import started
        from sdeflow.simulation.resume import resume as resume_run
        from sdeflow.terminal import progress_bar

    ranks = started()
    quiet = quiet or not ranks.leads
    with fetching(quiet=quiet), nullcontext() if quiet else progress_bar() as progress:
        solution = resume_run(folder, steps, progress=progress, ranks=ranks)
    if not ranks.leads:
        raise typer.Exit(EXIT[solution.retcode])
    tell(solution, folder, quiet)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="cifar10, mnist, fashion_mnist, or inception.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="A folder or archive that you have already.")
    ] = None,
) -> None:
    """Put a data set, or the network that scores images, into the cache folder, checked; prints where.

    SDEFLOW_DATA names another folder.
    """
    from sdeflow.data.cache import fetch as fetch_data

    typer.echo(fetch_data(name, source=source, say=partial(typer.echo, err=True)))


@app.command()
def sample(
    folder: cli.RunArgument,
    n: Annotated[int, typer.Option("--n", help="Samples of the prior.")] = 64,
    steps: Annotated[
        int, typer.Option(help="Steps that the particles of a learned prior take from the run's last.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    replica: Annotated[int, typer.Option(help="Which replica's parameters.")] = 0,
    average: Annotated[
        bool,
        typer.Option("--average", help="Take the average of the parameters (average.decay), not the last."),
    ] = False,
    prior: PriorOption = "",
) -> None:
    """Sample the prior that a run has learned; writes samples.nc and pictures into the run folder."""
    from sdeflow.analysis.samples import sample as sample_run

    for path in sample_run(
        folder, n=n, steps=steps, seed=seed, replica=replica, average=average, prior=prior
    ):
        typer.echo(path)


@app.command()
def evaluate(
    ctx: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The folder of a run that has ended.", autocompletion=completion.runs
        ),
    ],
    data: Annotated[int, typer.Option(help="Score so many data at most, spread evenly.")] = 1000,
    fold: Annotated[
        str,
        typer.Option(help="Of the held-out data the half to choose by, 'validation', or to report, 'test'."),
    ] = "",
    chains: Annotated[int, typer.Option(help="Chains a datum of annealed importance sampling.")] = 16,
    temperatures: Annotated[int, typer.Option(help="Temperatures between prior and posterior.")] = 500,
    particles: Annotated[int, typer.Option(help="Particles that reconstruct a datum.")] = 5,
    langevin_steps: Annotated[int, typer.Option(help="Langevin steps that they take.")] = 500,
    langevin_h: Annotated[float, typer.Option(help="The size of those steps.")] = 1e-3,
    kid: images.KidOption = None,
    fid: images.FidOption = None,
    against: images.AgainstOption = None,
    pixels: images.PixelsOption = None,
    features: images.FeaturesOption = None,
    at_once: Annotated[
        int, typer.Option(help="Data that move together; fewer take less memory, to the same scores.")
    ] = 100,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64 (default: the run's).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the chains.")] = 0,
    replica: Annotated[int, typer.Option(help="Which replica's parameters.")] = 0,
    prior: PriorOption = "",
    along: Annotated[
        bool,
        typer.Option(
            "--along", help="The evidence at moments of the run too: save.keep, or snapshots with theta."
        ),
    ] = False,
    pictures: Annotated[
        bool, typer.Option(help="Draw samples, reconstructions, and the particles along the run.")
    ] = True,
    quiet: cli.QuietOption = False,
) -> None:
    """Score a trained model: evidence and reconstructions, of held-out data where it has any.

    Writes evaluation.nc, and pictures, into the run folder. An evidence is the mean of log p(y) in nats, from
    below; its error over chains holds how far below it is likely to be. With --kid, --fid or another option
    of images those that the model makes are compared with real ones.
    """
    from contextlib import nullcontext
    from dataclasses import fields

    from sdeflow.analysis.evaluation import evaluate as evaluate_run
    from sdeflow.analysis.scores import Options
    from sdeflow.cli.show import tell_scores
    from sdeflow.data.cache import fetching
    from sdeflow.data.sources import silent
    from sdeflow.terminal import progress_bars
    from sdeflow.trajectory.layout import EVALUATION

    options = Options(**{field.name: ctx.params[field.name] for field in fields(Options)})
    say = partial(typer.echo, err=True)
    with fetching(quiet=quiet), nullcontext() if quiet else progress_bars("move", "image") as bars:
        asked, (moves, looks) = images.image_options(ctx.params), bars or (None, None)
        found = evaluate_run(folder, options, moves, asked, looks, silent if quiet else say)
    if not quiet:
        tell_scores(found, folder / EVALUATION)

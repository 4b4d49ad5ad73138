"""Commands that tell what there is: the catalogue, references, problems, and the keys of a problem's TOML."""

from __future__ import annotations

from typing import Annotated

import typer

from sdeflow.cli import app as cli
from sdeflow.cli import completion
from sdeflow.cli.app import app, configured
from sdeflow.errors import SdeflowError


@app.command("list")
def list_catalogue(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME...]", help="Names to tell all about.", autocompletion=completion.names),
    ] = None,
    long: Annotated[bool, typer.Option("--long", help="With sources, variants and whole titles.")] = False,
) -> None:
    """The catalogue: integrators, systems, optimizers, callbacks, models and packaged problems."""
    from sdeflow.cli.catalogue import show_catalogue, show_entry

    for name in names or []:
        show_entry(name)
    if not names:
        show_catalogue(long=long)


@app.command()
def cite(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Names from 'sdeflow list', TOML files or run folders.",
            autocompletion=completion.names,
        ),
    ],
) -> None:
    """BibTeX for what a run used."""
    from sdeflow.cli.cite import bibtex

    typer.echo(bibtex(names))


@app.command()
def show(
    ctx: typer.Context,
    problem: cli.OptionalProblem = None,
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
    settings: cli.SetOption = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Every key of a TOML file: type, default, unit, what it is."),
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --full, as a page in Markdown.")] = False,
    ranks: Annotated[
        str,
        typer.Option(metavar="R,R,...", help="What a step takes on so many processes that torchrun starts."),
    ] = "",
    link: Annotated[
        str, typer.Option(metavar="BYTES/S", help="With --ranks, what connects them one way.")
    ] = "40GB/s",
    flops: Annotated[
        str,
        typer.Option(
            metavar="N", help="With --ranks, operations a second of one (default: as timed on this machine)."
        ),
    ] = "",
) -> None:
    """What a problem is: blocks and equations, shapes, and the memory and disk that a run takes."""
    import tomllib

    if full or markdown:
        if problem is not None or not full:
            raise SdeflowError("show takes a problem, or --full, which --markdown goes with, and is of none")
        from sdeflow.cli.keys import keys_page, show_keys

        if markdown:
            typer.echo(keys_page(), nl=False)
        else:
            show_keys()
        return
    if problem is None:
        raise SdeflowError("show takes a problem: a TOML file or a name from 'sdeflow list'; or --full")
    from sdeflow.cli.show import describe
    from sdeflow.config.build import build
    from sdeflow.config.catalogue import problem_file
    from sdeflow.config.schema import variant_tables
    from sdeflow.data.cache import fetching

    path = problem_file(problem)
    config = configured(path, ctx.params)
    with fetching(offline=True):  # a question fetches nothing
        built = build(config, watched=True)
    if ranks:
        from sdeflow.cli.scaling import tell_scaling

        tell_scaling(built, ranks, link, flops)
        return
    describe(config, built, list(variant_tables(tomllib.loads(path.read_text(encoding="utf-8-sig")))))

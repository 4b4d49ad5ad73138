"""The command line's app, and the arguments and options that several commands take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdeflow.cli import completion

if TYPE_CHECKING:
    from sdeflow.config.schema import Config

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Interacting-particle SDE systems for training latent-variable models.",
    epilog="Exit codes: 0 ok, 1 runtime, 2 usage or configuration, 3 diverged, 130 interrupted.",
)

PROBLEM = typer.Argument(
    help="A TOML file, or the name of a packaged problem.", autocompletion=completion.problems
)
ProblemArgument = Annotated[str, PROBLEM]
OptionalProblem = Annotated[str | None, PROBLEM]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="The folder of a run.", autocompletion=completion.runs)
]
NAMED = "A name from 'sdeflow list', or file.py:Name."
IntegratorOption = Annotated[str | None, typer.Option(help=NAMED, autocompletion=completion.integrators)]
SystemOption = Annotated[str | None, typer.Option(help=NAMED, autocompletion=completion.systems)]
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
PrecisionOption = Annotated[str | None, typer.Option(help="Of the model's forces: full, tf32 or bf16.")]


def configured(path: Path, given: Mapping[str, Any]) -> Config:
    """The file's configuration under --variant, then --set, then the other options that were given.

    given   a command's parameters by name; those of the table [run] are named as in it
    """
    from sdeflow.config.schema import RunSection, load_config, override

    tables: dict[str, dict[str, Any]] = {
        "system": {"use": given.get("system")},
        "run": {field.name: given.get(field.name) for field in fields(RunSection)},
        "evaluate": {"every": given.get("eval_every")},
        "start": {"run": given.get("start")},
    }
    options = [
        {table: {key: value}}
        for table, values in tables.items()
        for key, value in values.items()
        if value is not None
    ]
    settings = map(override, given.get("settings") or ())
    return load_config(path, variant=given.get("variant"), overrides=[*settings, *options])


def names_in(listed: str) -> list[str]:
    """Names separated by commas, each once."""
    return list(dict.fromkeys(filter(None, map(str.strip, listed.split(",")))))

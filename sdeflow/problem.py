"""From a configuration to a system: TOML -> problem -> system -> integrator -> trajectory."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from sdeflow.catalogue import find
from sdeflow.config import Config, explain
from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.integrator import Integrator
from sdeflow.model import Model
from sdeflow.record import Save
from sdeflow.simulation import Progress, Solution, compatible, resolve_device, solve
from sdeflow.system import BlockSystem, SDESystem, System
from sdeflow.systems import Motion


@dataclass(frozen=True)
class Problem:
    """A configuration and what it builds: the system, and an integrator that can take it."""

    config: Config
    system: System
    integrator: Integrator
    save: Save

    def solve(self, *, out: Path | None = None, overwrite: bool = False, progress: Progress | None = None) -> Solution:
        """Runs the problem as configured."""
        run = self.config.run
        return solve(
            self.system,
            self.integrator,
            steps=run.steps,
            seed=run.seed,
            replicas=run.replicas,
            save=self.save,
            dtype=run.dtype,
            device=run.device,
            out=out,
            overwrite=overwrite,
            config=self.config.toml(),
            progress=progress,
        )


def build(config: Config) -> Problem:
    """Builds everything that a configuration names; raises SdeflowError where something does not fit."""
    resolve_device(config.run.device)
    system = _model_system(config) if config.model is not None else _sde_system(config)
    save = Save(**config.save.model_dump())
    return Problem(config, system, compatible(config.run.integrator, system), save)


def _model_system(config: Config) -> BlockSystem:
    assert config.model is not None
    model = _call(find("models", config.model.use), _arguments(config.model), "model")
    if not isinstance(model, Model):
        raise SdeflowError(f"model '{config.model.use}' gives a {type(model).__name__}, not an sdeflow.Model")
    declaration = find("systems", config.system.use)
    if not callable(declaration) or hasattr(declaration, "drift"):
        raise SdeflowError(f"system '{config.system.use}' is a plain SDE and takes no model: remove [model]")
    arguments = {
        key: _typed(Motion, value, f"system.{key}") if isinstance(value, dict) else value
        for key, value in _arguments(config.system).items()
    }
    system = _call(declaration, {"model": model, **arguments}, "system")
    if not isinstance(system, BlockSystem):
        raise SdeflowError(f"system '{config.system.use}' gives a {type(system).__name__}, not a BlockSystem")
    return system


def _sde_system(config: Config) -> SDESystem:
    name = config.system.use
    sde = find("systems", name)
    if not (hasattr(sde, "drift") and hasattr(sde, "diffusion")):
        raise SdeflowError(f"system '{name}' needs a model: add a [model] table with use = ...")
    given = _arguments(config.system)
    own = {key: given.pop(key) for key in ("h", "paths", "start") if key in given}
    if isinstance(sde, type):
        sde = _call(sde, given, "system", also=("h", "paths", "start"))
    elif given:
        raise SdeflowError(f"system '{name}' takes no arguments, given {', '.join(given)}")
    return _call(SDESystem, {"sde": sde, **own}, "system")


def _arguments(section: Any) -> dict[str, Any]:
    return dict(section.model_extra or {})


def _call(function: Any, arguments: Mapping[str, Any], where: str, also: tuple[str, ...] = ()) -> Any:
    """`function(**arguments)`, after its signature and annotations had a say, in the words of the TOML file."""
    parameters = inspect.signature(function).parameters
    named = {n: p for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    checked = {}
    for key, value in arguments.items():
        if key not in named and not takes_any:
            known = [*(set(named) - {"model", "sde"}), *also]
            raise SdeflowError(f"unknown key '{where}.{key}': {did_you_mean(key, known)}")
        plain = key in named and not isinstance(value, Model | Motion) and key != "sde"
        checked[key] = _typed(_annotation(function, named[key]), value, f"{where}.{key}") if plain else value
    missing = [n for n, p in named.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise SdeflowError(f"'{where}.{missing[0]}' is missing")
    try:
        return function(**checked)
    except (ValueError, TypeError) as error:
        raise SdeflowError(f"[{where}]: {error}") from error


def _typed(annotation: Any, value: Any, where: str) -> Any:
    """A value of TOML, checked strictly against an annotation where pydantic understands it."""
    try:
        return TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        return value
    except ValidationError as error:
        raise SdeflowError("; ".join(explain(error, where=where))) from None


def _annotation(function: Any, parameter: inspect.Parameter) -> Any:
    """The annotation of a parameter; Any where there is none or it names what is imported for type checks only."""
    if not isinstance(parameter.annotation, str):
        return Any if parameter.annotation is parameter.empty else parameter.annotation
    try:
        return eval(parameter.annotation, vars(sys.modules[function.__module__]))
    except NameError:
        return Any

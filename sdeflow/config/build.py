"""From a configuration to a run: the model, the system and the integrator that it names."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import isfunction
from typing import Any

from sdeflow.config.arguments import call, typed
from sdeflow.config.catalogue import find
from sdeflow.config.run import Run
from sdeflow.config.schema import Config
from sdeflow.entries import from_file
from sdeflow.errors import SdeflowError
from sdeflow.model.energy_prior import EnergyPrior
from sdeflow.model.instance_noise import with_instance_noise
from sdeflow.model.model import Model
from sdeflow.system.motion import Motion
from sdeflow.system.published import Declaration
from sdeflow.system.sde import SDESystem
from sdeflow.system.system import BlockSystem

AROUND = ("energy_prior", "instance_noise")
"""Keys of [model] that are no arguments of a model, but change what it gives."""


def build(config: Config, *, watched: bool = False) -> Run:
    """The run that a configuration declares; raises SdeflowError where something does not fit.

    watched   with its callbacks, of which nothing depends but who looks on and when the run is stopped
    """
    return Run.declare(
        _model_system(config) if config.model is not None else _sde_system(config),
        config.run.integrator,
        config.run,
        save=config.save,
        batch=config.batch,
        evaluate=config.evaluate,
        grid=config.grid,
        tune=config.tune,
        average=config.average,
        parallel=config.parallel,
        start=config.start,
        callbacks=_callbacks(config.callbacks or {}) if watched else (),
        observables={name: _observable(name, spec) for name, spec in (config.observables or {}).items()},
        config=config,
    )


def _callbacks(tables: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """The callbacks of the tables [callbacks.NAME]."""
    made = []
    for name, table in tables.items():
        where, given = f"callbacks.{name}", dict(table)
        use = given.pop("use", name)
        if not isinstance(use, str):
            raise SdeflowError(f"'{where}.use': a name or file.py:Name was expected, given {use!r}")
        found = find("callbacks", use)
        if isinstance(found, type):
            found = call(found, given, where, also=["use"])
        elif given:
            key = next(iter(given))
            raise SdeflowError(f"callback '{use}' is a function of a snapshot, and takes no '{key}'")
        made.append(found)
    return made


def _observable(name: str, spec: str) -> Any:
    if ".py:" not in spec:
        raise SdeflowError(f"'observables.{name}': a function as 'file.py:Name' was expected, given '{spec}'")
    return from_file(spec, "observable")


def _model_system(config: Config) -> BlockSystem | SDESystem:
    assert config.model is not None
    use = config.model.use
    found = find("models", use)
    model = call(found, config.model.arguments, "model", also=AROUND) if callable(found) else found
    if not isinstance(model, Model):
        raise SdeflowError(f"'model.use': {use} gives {type(model).__name__}, not an sdeflow.Model")
    if (tau := config.model.instance_noise) is not None:
        model = with_instance_noise(model, tau, seed=config.model.arguments.get("data_seed", 0))
    if (energy := config.model.energy_prior) is not None:
        model = call(EnergyPrior, energy, "model.energy_prior", built={"plain": model})
    declaration = find("systems", config.system.use)
    if not callable(declaration) or hasattr(declaration, "drift"):
        raise SdeflowError(f"system '{config.system.use}' is a plain SDE and takes no model: remove [model]")
    arguments = {
        key: typed(Motion, value, f"system.{key}") if isinstance(value, dict) else value
        for key, value in config.system.arguments.items()
    }
    system = call(declaration, arguments, "system", built={"model": model})
    if not isinstance(system, BlockSystem | SDESystem):
        raise SdeflowError(f"system '{config.system.use}' gives a {type(system).__name__}, not a BlockSystem")
    return system


def _sde_system(config: Config) -> SDESystem:
    name = config.system.use
    sde = find("systems", name)
    if isinstance(sde, Declaration) or isfunction(sde):
        raise SdeflowError(f"system '{name}' needs a model: add a [model] table with use = ...")
    for method in ("drift", "diffusion"):
        if not hasattr(sde, method):
            raise SdeflowError(f"system '{name}' has no {method}(t, x): an SDE needs drift and diffusion")
    given = config.system.arguments
    keys = ["h", "paths", "start"]
    own = {key: given.pop(key) for key in keys if key in given}
    if isinstance(sde, type):
        sde = call(sde, given, "system", also=keys)
    elif given:
        raise SdeflowError(f"system '{name}' takes no arguments, given {', '.join(given)}")
    if "h" not in own and getattr(sde, "final_time", None) is None:
        raise SdeflowError("'system.h' is missing")
    return call(SDESystem, own, "system", built={"sde": sde})

"""From a configuration to a run: TOML -> problem -> system -> integrator -> trajectory."""

from __future__ import annotations

from inspect import isfunction
from pathlib import Path

import torch

from sdeflow.arguments import call, typed
from sdeflow.batch import Batch
from sdeflow.catalogue import find
from sdeflow.checkpoint import Facts
from sdeflow.config import Config, load_config
from sdeflow.engine import resolve_engine, worth_compiling
from sdeflow.errors import SdeflowError
from sdeflow.folder import CONFIG
from sdeflow.grid import Grid
from sdeflow.held_out import Evaluate
from sdeflow.model import Model
from sdeflow.progress import Progress
from sdeflow.record import Save
from sdeflow.run import Run, compatible, resolve_device
from sdeflow.sde import SDESystem
from sdeflow.simulation import Solution, go_on
from sdeflow.system import BlockSystem
from sdeflow.systems import Declaration, Motion


def build(config: Config) -> Run:
    """The run that a configuration declares; raises SdeflowError where something does not fit."""
    run, batch, evaluate, grid = config.run, config.batch, config.evaluate, config.grid
    device = resolve_device(run.device)
    system = _model_system(config) if config.model is not None else _sde_system(config)
    long = worth_compiling(system, run.steps, device)
    engine = resolve_engine(run.engine, run.noise, device, long=long)
    return Run(
        system=system,
        integrator=compatible(run.integrator, system),
        steps=run.steps,
        seed=run.seed,
        replicas=run.replicas,
        save=Save(**config.save.model_dump()),
        batch=None if batch is None else Batch(**batch.model_dump()),
        evaluate=None if evaluate is None else Evaluate(**evaluate.model_dump()),
        grid=None if grid is None else Grid(tuple(grid.gamma), tuple(grid.eta)),
        dtype=getattr(torch, run.dtype),
        device=device,
        engine=engine,
        bound=run.bound,
        config=config.on(engine.name, engine.noise).toml(),
        title=config.title,
    )


def resume(folder: str | Path, steps: int = 0, *, progress: Progress | None = None) -> Solution:
    """Goes on with a run that `sdeflow run` made, to where it was to end and `steps` further.

    The trajectory is that of a run in one piece, to the bit on the same machine. Raises SdeflowError for
    what is no run folder, has a writer, diverged, or whose config.toml has changed; Damaged for a file
    that is not what was written.
    """
    path = Path(folder)
    if steps < 0:
        raise SdeflowError(f"steps must be at least 0, the steps to add, given {steps}")

    def declare(facts: Facts) -> Run:
        if not (path / CONFIG).is_file():
            if "system.use" in facts.settings:
                raise SdeflowError(f"{path} has no {CONFIG}, of which its run was made: put it back")
            raise SdeflowError(
                f"{path} has no {CONFIG}: a run from Python goes on with simulate(..., out=..., resume=True)"
            )
        again = {"run": {"steps": facts.steps + steps, "device": facts.setting["device"]}}
        return build(load_config(path / CONFIG, overrides=[again]))

    return go_on(declare, path, progress=progress)


def _model_system(config: Config) -> BlockSystem:
    assert config.model is not None
    use = config.model.use
    found = find("models", use)
    model = call(found, config.model.arguments, "model") if callable(found) else found
    if not isinstance(model, Model):
        raise SdeflowError(f"'model.use': {use} gives {type(model).__name__}, not an sdeflow.Model")
    declaration = find("systems", config.system.use)
    if not callable(declaration) or hasattr(declaration, "drift"):
        raise SdeflowError(f"system '{config.system.use}' is a plain SDE and takes no model: remove [model]")
    arguments = {
        key: typed(Motion, value, f"system.{key}") if isinstance(value, dict) else value
        for key, value in config.system.arguments.items()
    }
    system = call(declaration, arguments, "system", built={"model": model})
    if not isinstance(system, BlockSystem):
        raise SdeflowError(f"system '{config.system.use}' gives a {type(system).__name__}, not a BlockSystem")
    return system


def _sde_system(config: Config) -> SDESystem:
    name = config.system.use
    sde = find("systems", name)
    if isinstance(sde, Declaration) or isfunction(sde):
        raise SdeflowError(f"system '{name}' needs a model: add a [model] table with use = ...")
    for method in ("drift", "diffusion"):
        if not callable(getattr(sde, method, None)):
            raise SdeflowError(f"system '{name}' has no {method}(t, x): an SDE needs drift and diffusion")
    given = config.system.arguments
    keys = ["h", "paths", "start"]
    own = {key: given.pop(key) for key in keys if key in given}
    if isinstance(sde, type):
        sde = call(sde, given, "system", also=keys)
    elif given:
        raise SdeflowError(f"system '{name}' takes no arguments, given {', '.join(given)}")
    return call(SDESystem, own, "system", built={"sde": sde})

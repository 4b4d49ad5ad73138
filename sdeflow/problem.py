"""From a configuration to a system: TOML -> problem -> system -> integrator -> trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import isfunction
from pathlib import Path

from sdeflow.arguments import call, typed
from sdeflow.batch import Batch, evaluations
from sdeflow.catalogue import find
from sdeflow.config import Config
from sdeflow.errors import SdeflowError
from sdeflow.held_out import Evaluate
from sdeflow.integrator import Integrator
from sdeflow.model import Model
from sdeflow.progress import Progress
from sdeflow.record import Save
from sdeflow.sde import SDESystem
from sdeflow.simulation import Solution, compatible, resolve_device, solve
from sdeflow.system import BlockSystem, System
from sdeflow.systems import Motion, SystemDeclaration


@dataclass(frozen=True)
class Problem:
    """A configuration and what it builds: the system, and an integrator that can take it."""

    config: Config
    system: System
    integrator: Integrator
    save: Save

    @property
    def batch(self) -> Batch | None:
        """How data are subsampled; None where every step sees them all."""
        section = self.config.batch
        return None if section is None else Batch(**section.model_dump())

    @property
    def evaluate(self) -> Evaluate | None:
        """When the loss on held-out data is measured; None for never."""
        section = self.config.evaluate
        return None if section is None else Evaluate(**section.model_dump())

    @property
    def gradient_evaluations(self) -> int:
        """Gradient evaluations a step."""
        return evaluations(self.integrator, self.batch)

    def solve(
        self, *, out: Path | None = None, overwrite: bool = False, progress: Progress | None = None
    ) -> Solution:
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
            batch=self.batch,
            evaluate=self.evaluate,
            out=out,
            overwrite=overwrite,
            config=self.config.toml(),
            title=self.config.title,
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
    if isinstance(sde, SystemDeclaration) or isfunction(sde):
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

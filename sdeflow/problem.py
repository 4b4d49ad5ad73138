"""From a configuration to a system: TOML -> problem -> system -> integrator -> trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdeflow.arguments import call, typed
from sdeflow.catalogue import find
from sdeflow.config import Config
from sdeflow.errors import SdeflowError
from sdeflow.integrator import Integrator
from sdeflow.model import Model
from sdeflow.progress import Progress
from sdeflow.record import Save
from sdeflow.sde import SDESystem
from sdeflow.simulation import Solution, compatible, resolve_device, solve
from sdeflow.system import BlockSystem, System
from sdeflow.systems import Motion


@dataclass(frozen=True)
class Problem:
    """A configuration and what it builds: the system, and an integrator that can take it."""

    config: Config
    system: System
    integrator: Integrator
    save: Save

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
    model = call(find("models", config.model.use), config.model.arguments, "model")
    if not isinstance(model, Model):
        raise SdeflowError(f"model '{config.model.use}' gives a {type(model).__name__}, not an sdeflow.Model")
    declaration = find("systems", config.system.use)
    if not callable(declaration) or hasattr(declaration, "drift"):
        raise SdeflowError(f"system '{config.system.use}' is a plain SDE and takes no model: remove [model]")
    given = config.system.arguments
    motions = {k: typed(Motion, v, f"system.{k}") for k, v in given.items() if isinstance(v, dict)}
    numbers = {k: v for k, v in given.items() if k not in motions}
    system = call(declaration, numbers, "system", model=model, **motions)
    if not isinstance(system, BlockSystem):
        raise SdeflowError(f"system '{config.system.use}' gives a {type(system).__name__}, not a BlockSystem")
    return system


def _sde_system(config: Config) -> SDESystem:
    name = config.system.use
    sde = find("systems", name)
    if not (hasattr(sde, "drift") and hasattr(sde, "diffusion")):
        raise SdeflowError(f"system '{name}' needs a model: add a [model] table with use = ...")
    given = config.system.arguments
    keys = ["h", "paths", "start"]
    own = {key: given.pop(key) for key in keys if key in given}
    if isinstance(sde, type):
        sde = call(sde, given, "system", also=keys)
    elif given:
        raise SdeflowError(f"system '{name}' takes no arguments, given {', '.join(given)}")
    return call(SDESystem, own, "system", sde=sde)

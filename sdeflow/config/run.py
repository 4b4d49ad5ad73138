"""A run: everything that fixes its numbers, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from sdeflow.config.catalogue import integrator_named, integrators_for
from sdeflow.config.fingerprint import digests, fingerprint
from sdeflow.config.schema import Config, RunSection
from sdeflow.engine.engine import (
    Engine,
    refuse_schedules,
    refuses_compiling,
    resolve_engine,
    traced,
    worth_compiling,
)
from sdeflow.errors import Incompatible, SdeflowError
from sdeflow.model.forces import held_out_forces
from sdeflow.model.model import Model
from sdeflow.model.rows import one_tensor
from sdeflow.options import Average, Batch, Evaluate, Grid, RunOptions, Save, Tune
from sdeflow.state import Axes, Replicas
from sdeflow.system.average import average_axes
from sdeflow.system.integrator import Integrator, evaluations, why_not
from sdeflow.system.published import Declaration
from sdeflow.system.start import Origin, Start
from sdeflow.system.system import BlockSystem, System
from sdeflow.system.varying import spread

Scheme = str | Integrator | type[Integrator]


@dataclass(frozen=True, kw_only=True)
class Run(RunOptions):
    """A system, a scheme that can take it, and all that a trajectory depends on besides.

    grid     frictions and inverse masses, with `replicas` at each
    average  what is kept beside the parameters; it changes no other number
    start    what takes the place of what is drawn at the start: another run, or tensors by name
    config   the configuration that this came from, None for a run declared in Python
    begun    the steps that it was begun with, where that was with fewer: schedules that do not say how far
             they go are over these

    Raises SdeflowError where something does not fit.
    """

    system: System
    integrator: Integrator
    save: Save = field(default_factory=Save)
    batch: Batch | None = None
    evaluate: Evaluate | None = None
    grid: Grid | None = None
    tune: Tune = field(default_factory=Tune)
    average: Average | None = None
    start: Start | Origin | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    engine: Engine = field(default_factory=Engine)
    config: Config | None = None
    begun: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, expected in (
            ("save", Save),
            ("batch", Batch),
            ("evaluate", Evaluate),
            ("grid", Grid),
            ("tune", Tune),
            ("average", Average),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, expected):
                raise SdeflowError(
                    f"{name} must be an sdeflow.{expected.__name__}, given {type(value).__name__}"
                )
        if self.grid is not None:
            if self.batch is not None or self.evaluate is not None:
                raise SdeflowError("a grid takes all data in every step and no evaluation: drop either")
            object.__setattr__(self, "system", spread(self.system, self.grid, self.replicas))
        if isinstance(self.system, BlockSystem):
            object.__setattr__(self, "system", self.system.in_run(self.steps, self.horizon))
            refuse_schedules(self.system, self.batch, self.engine)
        auto, inner = (any(getattr(b, key) for b in self.system.blocks) for key in ("auto", "inner"))
        if inner and self.batch is not None and self.batch.catch_up != "off":
            raise SdeflowError(
                f"batch.catch_up = '{self.batch.catch_up}' moves particles by the time that they missed, and "
                "inner steps move them at each visit anyway: give batch.catch_up = 'off'"
            )
        if auto and self.batch is not None and self.batch.catch_up != "off":
            raise SdeflowError(
                f"batch.catch_up = '{self.batch.catch_up}' takes long steps, and numbers that are 'auto' "
                "leave no room for them: give h, eta and gamma, or batch.catch_up = 'off'"
            )
        if self.engine.name == "compiled" and not traced(self.system):
            names = ", ".join(f"'{b.optimizer.name}'" for b in self.system.blocks if b.optimizer is not None)
            raise SdeflowError(
                f"engine 'compiled' takes optimizers of our own alone, given {names}: give engine 'auto'"
            )
        if self.batch is not None and not self.system.blocks:
            raise SdeflowError("minibatches need a system made of blocks, with a model's forces")
        if forces := self.system.model_forces:
            self._refuse_redrawn(forces.model)
            if forces.stored and self.batch is None:
                raise SdeflowError(
                    f"the data of {type(forces.model).__name__} are not in memory, and are read by "
                    "minibatches: give batch.size, or read(..., in_memory=True), where there is room for all"
                )
        if self.average is not None and not average_axes(self.system):
            raise SdeflowError("an average is of parameters, and this system has none: remove [average]")
        if self.evaluate is not None:
            held_out_forces(self.system.model_forces)
            if self.evaluate.every % self.save.every:
                raise SdeflowError(
                    f"evaluate.every must be a multiple of save.every, {self.save.every}, "
                    f"given {self.evaluate.every}"
                )

    def _refuse_redrawn(self, model: Model) -> None:
        """Raises SdeflowError where a model makes its data anew at each visit, and this run cannot."""
        if model.at_access is None or (self.batch is not None and one_tensor(model.data)):
            return
        what = f"{type(model).__name__} makes its data anew at each visit (at_access), which needs"
        if self.batch is None:
            raise SdeflowError(f"{what} minibatches: give batch.size, or of images model.dequantise = 'once'")
        raise SdeflowError(f"{what} data that are one tensor, given {type(model.data).__name__}")

    @classmethod
    def declare(
        cls,
        system: object,
        integrator: Scheme,
        options: RunSection,
        *,
        save: Save | None = None,
        batch: Batch | None = None,
        evaluate: Evaluate | None = None,
        grid: Grid | None = None,
        tune: Tune | None = None,
        average: Average | None = None,
        start: Start | Origin | None = None,
        config: Config | None = None,
    ) -> Run:
        """A run with its scheme, device, dtype, engine and noise source given by name.

        integrator   takes the place of the name in `options`
        """
        found, device = _system(system), resolve_device(options.device)
        long = worth_compiling(found, options.steps, device) and not refuses_compiling(found, batch)
        engine = resolve_engine(options.engine, options.noise, device, long=long)
        scheme = compatible(integrator, found)
        if config is not None:
            config = config.with_integrator(scheme.name).with_engine(engine.name, engine.source_name)
        return cls(
            system=found,
            integrator=scheme,
            **{option.name: getattr(options, option.name) for option in fields(RunOptions)},
            save=Save() if save is None else save,
            batch=batch,
            evaluate=evaluate,
            grid=grid,
            tune=Tune() if tune is None else tune,
            average=average,
            start=start,
            dtype=_dtype(options.dtype),
            device=device,
            engine=engine,
            config=config,
        )

    def with_engine(self, engine: Engine) -> Run:
        """The run computed by another engine."""
        config = self.config
        if config is not None:
            config = config.with_engine(engine.name, engine.source_name)
        return replace(self, engine=engine, config=config)

    @property
    def horizon(self) -> int:
        """The steps that schedules go over which do not say."""
        return max(1, self.begun or self.steps)

    @property
    def toml(self) -> str:
        """The configuration as TOML, '' for a run declared in Python."""
        return "" if self.config is None else self.config.with_schedules_over(self.horizon).toml()

    @property
    def title(self) -> str:
        """The configuration's, '' for none."""
        return "" if self.config is None else self.config.title

    @property
    def n_data(self) -> int:
        """D, the number of data of the model; 1 without one."""
        forces = self.system.model_forces
        return 1 if forces is None else forces.n_data

    @property
    def axes(self) -> Mapping[str, Axes]:
        """What is recorded: the system's variables, and averages of its parameters where they are kept."""
        axes = self.system.axes
        return axes if self.average is None else {**axes, **average_axes(self.system)}

    @property
    def gradient_evaluations(self) -> int:
        """Gradient evaluations a step."""
        return evaluations(self.integrator, self.batch)

    @property
    def replica_count(self) -> int:
        """R, at all points of the grid."""
        return self.replicas * (1 if self.grid is None else len(self.grid.points))

    @property
    def all_replicas(self) -> Replicas:
        """Of all points of the grid, with the same seeds at each."""
        seeds = [*range(self.seed, self.seed + self.replicas)] * (self.replica_count // self.replicas)
        return Replicas(seeds, self.dtype, self.device)

    @property
    def settings(self) -> dict[str, Any]:
        """What fixes the numbers but for how many there are, by key: the same in a run and its resumption."""
        if self.config is not None:
            keys = flattened(self.config.with_schedules_over(self.horizon).tables())
            apart = ("run.steps", "run.device", "run.engine", "save.checkpoint", "save.keep")
            return {key: value for key, value in keys.items() if key not in apart}
        settings: dict[str, Any] = {
            "system": str(self.system),
            "model": fingerprint(self.system),
            "integrator": self.integrator.name,
            "seed": self.seed,
            "replicas": self.replicas,
            "save": str(replace(self.save, checkpoint=0.0)),
            "batch": str(self.batch),
            "evaluate": str(self.evaluate),
            "grid": str(self.grid),
            "tune": str(self.tune),
            "dtype": str(self.dtype),
            "noise": self.engine.source_name,
            "bound": self.bound,
        }
        if self.batch is not None and self.batch.stages is not None:
            settings["batch.stages"] = self.batch.stages
        settings |= {} if self.average is None else {"average": repr(self.average)}
        return settings if self.start is None else settings | {"start": str(self.start)}

    @property
    def code(self) -> dict[str, str]:
        """SHA-256 of the files that the configuration names, of code and of data, by path."""
        return {} if self.config is None else digests(self.settings)


def flattened(tables: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Nested tables as one, by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= flattened(value, f"{at}{key}.") if isinstance(value, Mapping) else {f"{at}{key}": value}
    return flat


def compatible(integrator: Scheme, system: System) -> Integrator:
    """The integrator; raises Incompatible, naming those that would do, where it refuses the system.

    'auto' is baoab where every block has a momentum and a force as it is: of all schemes it takes the largest
    steps for a gradient. Else it is Euler-Maruyama where none has a momentum, and expint_shared where some
    have; and alternating where particles take inner steps.
    """
    scheme = integrator_named(_fitting(system) if integrator == "auto" else integrator)
    if refusal := why_not(scheme, system):
        would_do = ", ".join(integrators_for(system)) or "none of the catalogue"
        raise Incompatible(
            f"integrator '{scheme.name}' cannot take this system: {refusal}. These can: {would_do}"
        )
    return scheme.fitted(system)


def _fitting(system: System) -> str:
    if any(b.inner is not None for b in system.blocks):
        return "alternating"
    if not any(b.kinetic for b in system.blocks):
        return "euler_maruyama"
    return "baoab" if why_not(integrator_named("baoab"), system) is None else "expint_shared"


def resolve_device(device: str | torch.device) -> torch.device:
    """'auto' is CUDA where there is one; raises SdeflowError for CUDA where there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise SdeflowError(f"device must be 'auto', 'cpu' or 'cuda', given '{device}'") from error
    if chosen.type not in ("cpu", "cuda"):
        raise SdeflowError(f"device must be 'auto', 'cpu' or 'cuda', given '{device}'")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SdeflowError(
            "device 'cuda' was asked for, but there is no CUDA device here: give 'cpu' or 'auto'"
        )
    return chosen


def _dtype(dtype: str) -> torch.dtype:
    chosen = getattr(torch, dtype, None)
    if chosen not in (torch.float32, torch.float64):
        raise SdeflowError(f"dtype must be float32 or float64, given {dtype}")
    assert isinstance(chosen, torch.dtype)
    return chosen


def _system(system: object) -> System:
    if isinstance(system, System) and not isinstance(system, type):
        return system
    if hasattr(system, "drift") and hasattr(system, "axes"):
        raise SdeflowError(
            f"{type(system).__name__} lacks a part of a system: derive it from sdeflow.system.System"
        )
    if hasattr(system, "drift") and hasattr(system, "diffusion"):
        raise SdeflowError(f"{type(system).__name__} is a plain SDE: give SDESystem(sde, h=...) instead")
    if isinstance(system, Model | Declaration):
        raise SdeflowError(
            "a system is a declaration with a model: mpgd(model, particles=..., theta=..., x=...)"
        )
    raise SdeflowError(f"a system was expected, given {type(system).__name__}")

"""A run: everything that fixes its numbers, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from sdeflow.config.catalogue import Scheme, compatible
from sdeflow.config.device import refuse_precision, resolve_device, resolve_dtype
from sdeflow.config.fingerprint import digests, fingerprint
from sdeflow.config.schema import Config, RunSection
from sdeflow.engine.engine import (
    Engine,
    refuse_schedules,
    resolve_engine,
    steps_to_compile,
    traced,
)
from sdeflow.errors import SdeflowError
from sdeflow.model.forces import held_out_forces
from sdeflow.model.model import Model
from sdeflow.model.rows import one_tensor
from sdeflow.options import Average, Batch, Evaluate, Parallel, RunOptions, Save, Tune
from sdeflow.parallel.field import shareable
from sdeflow.parallel.ranks import ALONE, Ranks
from sdeflow.parallel.shard import Shard
from sdeflow.state import Axes, Replicas, reserved
from sdeflow.system.average import average_axes
from sdeflow.system.grid import Grid
from sdeflow.system.integrator import Integrator, evaluations
from sdeflow.system.published import Declaration
from sdeflow.system.start import Origin, Start
from sdeflow.system.system import System
from sdeflow.system.varying import spread


@dataclass(frozen=True, kw_only=True)
class Run(RunOptions):
    """A system, a scheme that can take it, and all that a trajectory depends on besides.

    grid     numbers of blocks, with `replicas` at each combination
    average  what is kept beside the parameters; it changes no other number
    parallel how processes share the data
    start    what takes the place of what is drawn at the start: another run, or tensors by name
    callbacks    what looks on at its snapshots, and may stop it (sdeflow.callbacks); a list, or one
    observables  functions of (theta, x, y) by name, recorded beside the model's own
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
    parallel: Parallel = field(default_factory=Parallel)
    start: Start | Origin | None = None
    callbacks: Any = ()
    observables: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
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
            ("parallel", Parallel),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, expected):
                raise SdeflowError(
                    f"{name} must be an sdeflow.{expected.__name__}, given {type(value).__name__}"
                )
        refuse_precision(self.precision, self.dtype, self.device, self.system)
        object.__setattr__(self, "callbacks", _callbacks(self.callbacks))
        _refuse_observables(self.observables, self.system)
        if self.grid is not None:
            object.__setattr__(self, "system", spread(self.system, self.grid, self.replicas))
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
        parallel: Parallel | None = None,
        start: Start | Origin | None = None,
        callbacks: Any = (),
        observables: Mapping[str, Callable[..., Any]] | None = None,
        config: Config | None = None,
    ) -> Run:
        """A run with its scheme, device, dtype, engine and noise source given by name.

        integrator   takes the place of the name in `options`
        """
        found, device = _system(system), resolve_device(options.device)
        steps = steps_to_compile(found, batch, options.steps, device)
        engine = resolve_engine(options.engine, options.noise, device, steps=steps)
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
            parallel=Parallel() if parallel is None else parallel,
            start=start,
            callbacks=callbacks,
            observables={} if observables is None else observables,
            dtype=resolve_dtype(options.dtype),
            device=device,
            engine=engine,
            config=config,
        )

    def shared(self, ranks: Ranks) -> Run:
        """The run as processes take it, with the strata of its minibatches; SdeflowError if they cannot."""
        if ranks.several:
            shareable(self.system)
            if len({*ranks.each(fingerprint(self.system))}) > 1:
                raise SdeflowError("processes have different models or data: make them of files and seeds")
            if (name := self.engine.source_name) != "philox":
                raise SdeflowError(
                    f"processes draw noise by addresses, and noise '{name}' has none: give --noise philox"
                )
        self.shard(ranks)
        if not ranks.several or self.batch is None or self.parallel.strata is not None:
            return self
        own, config = replace(self.parallel, strata=ranks.size), self.config
        return replace(self, parallel=own, config=config and config.with_strata(ranks.size))

    def shard(self, ranks: Ranks = ALONE) -> Shard:
        """The data of one of the processes that take the run."""
        found = Shard.of(self.n_data, ranks.rank, ranks.size, self.parallel.strata)
        if self.batch is not None:
            found.of_batch(self.batch.size)
        return found

    def with_engine(self, engine: Engine) -> Run:
        """The run computed by another engine."""
        config = self.config and self.config.with_engine(engine.name, engine.source_name)
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
            apart = ["run.steps", "run.device", "run.engine", "save.checkpoint", "save.keep"]
            apart += ["run.precision"] if self.precision == "full" else []  # as older runs have it
            return {k: v for k, v in keys.items() if k not in apart and not k.startswith("callbacks.")}
        settings: dict[str, Any] = {
            "system": str(self.system),
            "model": fingerprint(self.system),
            "integrator": str(self.integrator),
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
        settings |= {} if self.precision == "full" else {"precision": self.precision}
        settings |= {"batch.stages": self.batch.stages} if self.batch and self.batch.stages else {}
        settings |= {} if self.parallel == Parallel() else {"parallel": repr(self.parallel)}
        settings |= {} if self.average is None else {"average": repr(self.average)}
        settings |= {"observables": sorted(self.observables)} if self.observables else {}
        return settings if self.start is None else settings | {"start": str(self.start)}

    @property
    def code(self) -> dict[str, str]:
        """SHA-256 of the files that the configuration names, of code and of data, by path."""
        return {} if self.config is None else digests(self.settings)


def _callbacks(given: Any) -> tuple[Callable[[Any], Any], ...]:
    """Those that were given, one or several; raises SdeflowError for what is not called with a snapshot."""
    found = tuple(given) if isinstance(given, list | tuple) else (given,)
    for one in found:
        if isinstance(one, type) or not callable(one):
            what = f"the class {one.__name__}: make one of it" if isinstance(one, type) else repr(one)
            raise SdeflowError(
                "callbacks takes functions of a snapshot, or objects such as EarlyStopping('loss'), "
                f"given {what}"
            )
    return found


def _refuse_observables(given: Any, system: System) -> None:
    """Raises SdeflowError for observables that are no functions by name, or have no model."""
    if not isinstance(given, Mapping) or not all(map(callable, given.values())):
        raise SdeflowError(f"observables takes functions of (theta, x, y) by name, given {given!r}")
    for name in given:
        if not isinstance(name, str) or not name.isidentifier():
            raise SdeflowError(f"observable {name!r}: a name of letters, digits and underscores was expected")
        if reserved(name):
            raise SdeflowError(f"observable '{name}': the trajectory uses the name itself, choose another")
    if given and system.model_forces is None:
        raise SdeflowError(
            f"observables ({', '.join(given)}) are functions of a model's parameters and particles, and this "
            "system has no model: compute them from the trajectory"
        )


def flattened(tables: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Nested tables as one, by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= flattened(value, f"{at}{key}.") if isinstance(value, Mapping) else {f"{at}{key}": value}
    return flat


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

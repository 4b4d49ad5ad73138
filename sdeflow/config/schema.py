"""The TOML schema of a problem, and its errors. `Config` says what tables there are; every key with its type
and default stands in README.md beside this file, which `sdeflow show --full --markdown` makes.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from annotated_types import Gt
from pydantic import BaseModel, ConfigDict, ValidationError

from sdeflow.config.files import absolute_files
from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.options import Average, Batch, EngineName, Evaluate, NoiseName, Parallel, RunOptions, Save, Tune
from sdeflow.system.grid import Grid
from sdeflow.system.schedule import SCHEDULED, written_out
from sdeflow.system.start import Start


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Named(_Strict):
    """A model or a system by name, with its arguments in the same table.

    use   a name from 'sdeflow list', or file.py:Name, relative to the file that says so
    """

    model_config = ConfigDict(extra="allow")
    use: str

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class NamedModel(Named):
    """A model, and the numbers of the energy that takes the place of its prior, where one does.

    energy_prior   a neural energy that is learned in place of the prior N(0, I)
    instance_noise   standard deviation of noise that is added to the data once, by the model's `data_seed`
    """

    energy_prior: dict[str, Any] | None = None
    instance_noise: Annotated[float, Gt(0)] | None = None


@dataclass(frozen=True, kw_only=True)
class RunSection(RunOptions):
    """How to run: numbers, and names of what takes the steps.

    integrator   a name from 'sdeflow list', or file.py:Name; with options of its own a table,
                 {name = "ghvb", order = 3}; 'auto' takes one by the system
    dtype        precision of the state
    device       where steps are taken; 'auto' takes cuda where it is there
    engine       how steps are computed
    noise        the source of normals
    """

    integrator: str | dict[str, Any] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: EngineName = "auto"
    noise: NoiseName = "auto"


class Config(_Strict):
    """A problem with everything that was chosen for one run of it.

    title      what the problem is, in a line
    cpu_note   what is made smaller for a CPU: a run on one says it, with what a step costs
    model      what is learned; other keys are its own arguments. Without this table the system is a plain SDE
    system     how parameters and particles move; other keys are its own arguments, and a table for each block
    run        how many steps, by which integrator, from which seeds
    batch      minibatches; without it every step sees all data
    save       what is kept of the run
    evaluate   when a loss on the model's held-out data is measured; without it never
    grid       lists of values of blocks' numbers, with `replicas` at each combination
    tune       how h, eta and gamma that are 'auto' are chosen
    average    a moving average of the parameters; without it none is kept
    parallel   how processes that torchrun starts share the data
    start      another run, from whose last state this one begins
    callbacks  what looks on at snapshots: a table [callbacks.NAME], where NAME, or `use` = another name or
               file.py:Name, says which; the rest are its arguments. A path is relative to the file
    observables   name = file.py:Name, functions of (theta, x, y) that are recorded beside the model's own
    variants   tables that replace parts of the above under `--variant NAME`
    """

    title: str = ""
    cpu_note: str = ""
    system: Named
    model: NamedModel | None = None
    run: RunSection = RunSection()
    batch: Batch | None = None
    save: Save = Save()
    evaluate: Evaluate | None = None
    grid: Grid | None = None
    tune: Tune | None = None
    average: Average | None = None
    parallel: Parallel | None = None
    start: Start | None = None
    callbacks: dict[str, dict[str, Any]] | None = None
    observables: dict[str, str] | None = None

    @classmethod
    def of(cls, tables: Mapping[str, Any]) -> Config:
        """The configuration in tables as TOML has them; raises what pydantic does, and SdeflowError."""
        return cls.model_validate_json(json.dumps(tables, default=str))  # in which strict takes a list

    def with_particles(self, n: int) -> Config:
        """The same with n particles a datum, and as many of a prior where there are any."""
        counts: dict[str, Any] = {
            key: n for key in ("particles", "prior_particles") if key in self.system.arguments
        }
        return self.model_copy(update={"system": self.system.model_copy(update=counts)})

    def with_engine(self, engine: str, noise: str) -> Config:
        """The configuration with what 'auto' has become for engine and noise source."""
        run: Any = replace(self.run, engine=engine, noise=noise)  # type: ignore[arg-type]  # names that are resolved
        return self.model_copy(update={"run": run})

    def with_strata(self, strata: int) -> Config:
        """The configuration with so many strata of the data."""
        own = replace(self.parallel or Parallel(), strata=strata)
        return self.model_copy(update={"parallel": own})

    def with_schedules_over(self, steps: int) -> Config:
        """The configuration with the steps that schedules go over, also where those are the run's."""
        arguments = {
            block: own
            | {key: written_out(own[key], steps) for key in SCHEDULED if isinstance(own.get(key), dict)}
            for block, own in self.system.arguments.items()
            if isinstance(own, dict)
        }
        return self.model_copy(update={"system": self.system.model_copy(update=arguments)})

    def with_integrator(self, name: str) -> Config:
        """The configuration with what 'auto' has become for the integrator; another name stays as it is."""
        run = replace(self.run, integrator=name) if self.run.integrator == "auto" else self.run
        return self.model_copy(update={"run": run})

    def tables(self) -> dict[str, Any]:
        """The configuration as the tables of TOML."""
        return self.model_dump(mode="json", exclude_none=True)

    def toml(self) -> str:
        """The configuration as TOML; running it gives the same numbers."""
        return tomli_w.dumps(self.tables())


_TABLES = {
    "run": RunSection,
    "batch": Batch,
    "save": Save,
    "evaluate": Evaluate,
    "grid": Grid,
    "tune": Tune,
    "average": Average,
    "parallel": Parallel,
    "start": Start,
}


def load_config(
    path: Path, *, variant: str | None = None, overrides: Sequence[Mapping[str, Any]] = ()
) -> Config:
    """The configuration in a file, with a variant and then overrides (nested tables) merged into it.

    Raises SdeflowError for what is not TOML, an unknown key, a wrong type, or a value out of range.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SdeflowError(f"{path} cannot be read: {error}") from error
    return parse_config(text, path, variant=variant, overrides=overrides)


def parse_config(
    text: str, path: Path, *, variant: str | None = None, overrides: Sequence[Mapping[str, Any]] = ()
) -> Config:
    """The configuration in the text of a file at `path`; see `load_config`."""
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SdeflowError(f"{path} is not valid TOML: {error}") from error
    variants = variant_tables(tables)
    if variant is not None and variant not in variants:
        raise SdeflowError(f"{path.name} has no variant '{variant}': {did_you_mean(variant, variants)}")
    tables.pop("variants", None)
    tables = absolute_files(merged(tables, variants[variant] if variant else {}), path.parent)
    for table in overrides:
        tables = merged(tables, absolute_files(table, Path.cwd()))
    _refuse_nonfinite(tables, "")
    for name in ("model", "system", "callbacks", "observables", *_TABLES):
        if not isinstance(tables.get(name, {}), dict):
            raise SdeflowError(f"{path.name}: '{name}' must be a table, [{name}], given {tables[name]!r}")
    _refuse_other_axes(tables.get("grid", {}))
    try:
        return Config.of(tables)
    except ValidationError as error:
        raise SdeflowError(f"{path.name}: {'; '.join(explain(error, _fields))}") from None
    except SdeflowError as error:  # a value out of range
        raise SdeflowError(f"{path.name}: {error}") from None


def _refuse_other_axes(grid: Mapping[str, Any]) -> None:
    """Raises SdeflowError for keys of a grid that are no numbers of blocks: a sweep is of any."""
    tables = {table: of for table, of in grid.items() if isinstance(of, dict)}
    others = [f"{table}.{key}" for table, of in tables.items() if table != "system" for key in of]
    others += [f"system.{key}" for key, of in tables.get("system", {}).items() if not isinstance(of, dict)]
    for key in others:
        raise SdeflowError(
            f"grid.{key}: a grid is of step, friction, inverse mass and temperature, all in one run; runs "
            f"that differ in {key} are for 'sdeflow sweep PROBLEM --set {key}=[...] --out DIR'"
        )


def variant_tables(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The [variants.NAME] tables of a file."""
    variants = tables.get("variants", {})
    if not isinstance(variants, dict) or not all(isinstance(v, dict) for v in variants.values()):
        raise SdeflowError("variants must be tables: [variants.NAME]")
    return variants


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over` in their place; tables are merged, other values replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def override(assignment: str) -> dict[str, Any]:
    """The nested table of 'key.sub=value'; the value is TOML, or else a string."""
    return nested(*assigned(assignment))


def nested(key: str, value: Any) -> dict[str, Any]:
    """The nested table in which a dotted key has a value."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def assigned(assignment: str) -> tuple[str, Any]:
    """Key and value of 'key.sub=value'."""
    key, equals, text = assignment.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise SdeflowError(
            f"--set takes key.sub=value, for example system.theta.gamma=0.05; given '{assignment}'"
        )
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return ".".join(parts), value


def _refuse_nonfinite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise SdeflowError(f"'{where}': a finite number was expected, given {value}")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        _refuse_nonfinite(part, f"{where}.{key}" if where else str(key))


def explain(
    error: ValidationError, fields: Callable[[Sequence[str]], Sequence[str]], where: str = ""
) -> list[str]:
    """One sentence for each thing that pydantic found: where, what was given, what was expected.

    fields   gives the known keys of the table at a path
    where    the path of the whole
    """
    sentences = []
    seen: set[str] = set()
    for e in error.errors():
        path = [str(part) for part in e["loc"] if not (isinstance(part, str) and "[" in part)]
        key = ".".join(filter(None, [where, *path]))
        if key in seen:
            continue  # the other members of a union that did not match either
        seen.add(key)
        if e["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            sentences.append(f"unknown key '{key}': {did_you_mean(path[-1], fields(path[:-1]))}")
        elif e["type"] == "missing":
            sentences.append(f"'{key}' is missing")
        else:
            message = e["msg"][0].lower() + e["msg"][1:]
            sentences.append(f"'{key}': {message}, given {e['input']!r}")
    return sentences


def _fields(path: Sequence[str]) -> list[str]:
    if not path:
        return list(Config.model_fields)
    return [f.name for f in fields(_TABLES[path[0]])] if path[0] in _TABLES else []

"""Every key of a problem's TOML: type, default, unit and what it is, read from what takes it.

A key is a field of a table's class, or an argument of a model, a system or an SDE. What it is stands in the
docstring of that class, or of one that it derives from, a line a key, with what follows indented:

    every       [steps] between snapshots; the start and the last step are always among them

The unit is the first word there in such brackets; a number without one is a pure number, of unit 1.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le

from sdeflow.config.arguments import annotation_of
from sdeflow.config.catalogue import Group, entries, find
from sdeflow.config.schema import Config, Named, NamedModel
from sdeflow.errors import SdeflowError
from sdeflow.system.motion import Motion
from sdeflow.system.published import Declaration
from sdeflow.system.schedule import Schedule
from sdeflow.system.sde import SDESystem

REQUIRED, NOTHING = "required", "none"
"""In place of a default."""


class Key(NamedTuple):
    """A key of a table; `type` and `what` are words, `default` is TOML, `REQUIRED` or `NOTHING`."""

    name: str
    type: str
    default: str
    unit: str
    what: str


class Table(NamedTuple):
    """A table of TOML, what it is for and its keys; `use` are the names for which it has these, if any."""

    name: str
    use: tuple[str, ...]
    about: str
    keys: tuple[Key, ...]

    @property
    def title(self) -> str:
        names = ", ".join(json.dumps(name) for name in self.use)
        key = "name" if self.name.endswith(("optimizer]", "integrator]")) else "use"
        return ", ".join(filter(None, [self.name, names and f"{key} = {names}"]))


def tables(*, own: bool = False) -> list[Table]:
    """All of them, in the order in which a file has them; without the plug-ins' where `own` is given.

    Plug-ins that do not load are left out: `sdeflow list --long` says why.
    """
    given, whole = Config.model_fields, described(Config)
    alone = [_key(name, given[name].annotation, given[name].default, whole) for name in ("title", "cpu_note")]
    found = [Table("at the top", (), "Of the problem as a whole.", tuple(alone))]
    found += [*_of_models(own), *_of_systems(own)]
    for name, field in given.items():
        if name in ("title", "cpu_note", "model", "system"):
            continue
        options = next((part for part in _union(field.annotation) if is_dataclass(part)), None)
        about = _sentence(whole.get(name, "")) or _about(options)
        found.append(Table(f"[{name}]", (), about, () if options is None else of_fields(options)))
        if name == "run":
            found += _of_integrators(own)
    return [*found, Table("[variants.NAME]", (), _sentence(whole["variants"]), ())]


def of_fields(options: Any) -> tuple[Key, ...]:
    """The keys of a table that a dataclass or a pydantic model stands for."""
    hints, about = get_type_hints(options, include_extras=True), described(options)
    if not is_dataclass(options):
        own = options.model_fields.items()
        return tuple(_key(name, hints[name], field.get_default(), about) for name, field in own)
    return tuple(_key(f.name.rstrip("_"), hints[f.name], f.default, about) for f in fields(options))


def of_arguments(function: Callable[..., Any], built: Sequence[str] = ()) -> tuple[Key, ...]:
    """The keys that a class, a declaration or a function takes, without the arguments that are `built`."""
    about = described(function)
    return tuple(
        _key(name, annotation_of(function, p), p.default, about)
        for name, p in inspect.signature(function).parameters.items()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and name not in built
    )


def described(thing: Any) -> dict[str, str]:
    """What the docstring of a class, or of an object's, says of each key, with those that it derives from."""
    kind = thing if isinstance(thing, type) or inspect.isfunction(thing) else type(thing)
    found: dict[str, str] = {}
    for one in reversed(getattr(kind, "__mro__", (kind,))):
        lines = inspect.cleandoc(one.__doc__ or "")
        for names, text in re.findall(r"^(\w+(?:, \w+)*) {2,}(\S.*(?:\n +\S.*)*)", lines, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


# Tables -----------------------------------------------------------------------------------------------


def _of_models(own: bool) -> Iterator[Table]:
    from sdeflow.model.energy_prior import EnergyPrior

    yield Table("[model]", (), _sentence(described(Config)["model"]), of_fields(NamedModel))
    about, energy = described(NamedModel)["energy_prior"], of_arguments(EnergyPrior, ["plain"])
    yield Table("[model.energy_prior]", (), _sentence(about), energy)
    for name, model in _loaded("models", own):
        if callable(model):
            yield Table("[model]", (name,), _about(model), of_arguments(model))


def _of_systems(own: bool) -> Iterator[Table]:
    yield Table("[system]", (), _sentence(described(Config)["system"]), of_fields(Named))
    declared: dict[Any, list[str]] = {}
    plain = []
    for name, system in _loaded("systems", own):
        if isinstance(system, Declaration) or inspect.isfunction(system):
            declared.setdefault(type(system) if isinstance(system, Declaration) else system, []).append(name)
        elif isinstance(system, type):
            plain.append((name, system))
    for names in declared.values():
        system = find("systems", names[0])
        yield Table("[system]", tuple(names), _about(system), of_arguments(system, ["model"]))
    yield Table("[system.BLOCK]", (), _about(Motion), of_fields(Motion))
    schedule = [key for key in of_fields(Schedule) if key.name not in ("function", "horizon")]
    yield Table("[system.BLOCK.h], .gamma, .temperature", (), _about(Schedule), tuple(schedule))
    for name, optimizer in _loaded("optimizers", own):
        yield Table("[system.theta.optimizer]", (name,), _about(optimizer), of_fields(optimizer))
    paths = of_arguments(SDESystem, ["sde"])
    for name, sde in plain:
        yield Table("[system]", (name,), _about(sde), (*paths, *of_arguments(sde)))


def _of_integrators(own: bool) -> Iterator[Table]:
    for name, scheme in _loaded("integrators", own):
        if keys := of_arguments(scheme):
            yield Table("[run.integrator]", (name,), _about(scheme), keys)


def _loaded(group: Group, own: bool) -> Iterator[tuple[str, Any]]:
    for name, entry in entries(group).items():
        if entry.value.startswith("sdeflow.") or not own:
            with suppress(SdeflowError):
                yield name, find(group, name)


def _about(thing: Any) -> str:
    """The first paragraph of a docstring, as a line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def _sentence(text: str) -> str:
    """What is said of a key as what a table is headed by."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


# Words ------------------------------------------------------------------------------------------------


def _key(name: str, annotation: Any, default: Any, about: Mapping[str, str]) -> Key:
    if annotation is Any and isinstance(default, bool | int | float | str):
        annotation = type(default)
    words, what = in_words(annotation), about.get(name, "")
    unit = re.search(r"\[([a-z]{2,})\]", what)
    pure = "1" if re.search(r"\bnumbers?\b", words) else ""
    return Key(name, words, _toml(default), unit[1] if unit else pure, what.replace(*_bare(unit)))


def _bare(unit: re.Match[str] | None) -> tuple[str, str]:
    """What is to be replaced, and by what, to have the word of a unit without its brackets."""
    return ("", "") if unit is None else (unit[0], unit[1])


def _toml(default: Any) -> str:
    """A default as TOML has it."""
    if default is None:
        return NOTHING
    if isinstance(default, bool | str):
        return json.dumps(default)
    if isinstance(default, float):
        short = f"{default:g}" if float(f"{default:g}") == default else repr(default)
        return short if re.search(r"[.e]", short) else f"{short}.0"
    if isinstance(default, list | tuple):
        return f"[{', '.join(map(_toml, default))}]"
    if isinstance(default, int):
        return str(default)
    return "{}" if isinstance(default, Motion | dict) else REQUIRED


def in_words(annotation: Any) -> str:
    """A type as a user would say it: 'whole number ≥ 1', '"auto" or number', 'list of numbers'."""
    *others, last = dict.fromkeys(word for part in _union(annotation) for word in _words(part)) or [""]
    return " or ".join(filter(None, [", ".join(others), last]))


def _union(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, of unions in it too; anything else alone."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(part for member in get_args(annotation) for part in _union(member))
    return (annotation,)


def _words(kind: Any) -> list[str]:
    """Those of a type that is no union; none of None and of functions, which TOML does not have."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        signs = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le")}
        limits = [(*signs[type(bound)], bound) for bound in parts[1:] if type(bound) in signs]
        said = " and ".join(f"{sign} {_toml(getattr(bound, name))}" for sign, name, bound in limits)
        return [f"{in_words(parts[0])} {said}".rstrip()]
    if origin is Literal:
        return [json.dumps(name) for name in parts]
    if isinstance(origin, type) and issubclass(origin, Sequence):
        count = f"{len(parts)} " if origin is tuple and Ellipsis not in parts else ""
        several = re.sub(r"\b(number|list)\b", r"\1s", in_words(parts[0]))
        return [f"list of {count}{several}"]
    if is_dataclass(kind) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return ["table"]
    if kind is NoneType or origin is Callable:
        return []
    named = {bool: "true or false", int: "whole number", float: "number", str: "text", dict: "table"}
    return [named.get(kind, "any")]

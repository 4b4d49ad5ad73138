"""Calling a model, a system or an SDE with the values of its TOML table."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from sdeflow.config.schema import explain
from sdeflow.errors import SdeflowError, attempt, did_you_mean


def call(
    function: Any,
    table: Mapping[str, Any],
    where: str,
    *,
    built: Mapping[str, Any] = MappingProxyType({}),
    also: Collection[str] = (),
) -> Any:
    """`function(**table, **built)`, with the table checked against its signature and annotations.

    where   the name of the TOML table, for the errors
    built   arguments that are objects already, not the user's to give
    also    further keys that the table takes, for the suggestions

    Raises SdeflowError for an unknown or missing key, a wrong type, or what the function itself refuses.
    """
    parameters = inspect.signature(function).parameters
    named = {n: p for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in table:
        if key in built or (key not in named and not takes_any):
            known = {*named, *also} - {*built}
            raise SdeflowError(f"unknown key '{where}.{key}': {did_you_mean(key, known)}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in table and name not in built:
            what = getattr(function, "__name__", where)
            raise SdeflowError(f"'{where}.{name}' is missing, which {what} needs")
    checked = {
        key: value
        if key not in named or is_dataclass(value)
        else typed(annotation_of(function, named[key]), value, f"{where}.{key}")
        for key, value in table.items()
    }
    return attempt(getattr(function, "__name__", where), function, **checked, **built)


def typed(annotation: Any, value: Any, where: str) -> Any:
    """A value of TOML, checked strictly against an annotation where pydantic understands it."""
    try:
        return TypeAdapter(annotation).validate_json(json.dumps(value, default=str), strict=True)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        return value
    except ValidationError as error:
        known = [f.name for f in fields(annotation)] if is_dataclass(annotation) else []
        raise SdeflowError("; ".join(explain(error, lambda path: known, where))) from None


def annotation_of(function: Any, parameter: inspect.Parameter) -> Any:
    """The annotation of a parameter; Any where there is none, or none that can be resolved at run time."""
    if not isinstance(parameter.annotation, str):
        return Any if parameter.annotation is parameter.empty else parameter.annotation
    try:
        return eval(parameter.annotation, vars(sys.modules[function.__module__]))
    except NameError:
        return Any

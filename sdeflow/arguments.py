"""Calling a model, a system or an SDE with the values of its TOML table."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

from sdeflow.config import explain
from sdeflow.errors import SdeflowError, did_you_mean


def call(
    function: Any, table: Mapping[str, Any], where: str, *, also: Collection[str] = (), **built: Any
) -> Any:
    """`function(**table, **built)`, with the table checked against its signature and annotations.

    where   the name of the TOML table, for the errors
    also    further keys that the table takes, for the suggestions
    built   arguments that are objects already

    Raises SdeflowError for an unknown or missing key, a wrong type, or what the function itself refuses.
    """
    parameters = inspect.signature(function).parameters
    named = {n: p for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in (*table, *built):
        if key not in named and not takes_any:
            raise SdeflowError(
                f"unknown key '{where}.{key}': {did_you_mean(key, {*named, *also} - {'model', 'sde'})}"
            )
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in table and name not in built:
            raise SdeflowError(f"'{where}.{name}' is missing")
    checked = {
        key: typed(_annotation(function, named[key]), value, f"{where}.{key}") if key in named else value
        for key, value in table.items()
    }
    try:
        return function(**checked, **built)
    except (ValueError, TypeError) as error:
        raise SdeflowError(f"[{where}]: {error}") from error


def typed(annotation: Any, value: Any, where: str) -> Any:
    """A value of TOML, checked strictly against an annotation where pydantic understands it."""
    try:
        return TypeAdapter(annotation).validate_json(json.dumps(value, default=str), strict=True)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        return value
    except ValidationError as error:
        fields = (
            [f.name for f in dataclasses.fields(annotation)] if dataclasses.is_dataclass(annotation) else []
        )
        raise SdeflowError("; ".join(explain(error, lambda path: fields, where))) from None


def _annotation(function: Any, parameter: inspect.Parameter) -> Any:
    """The annotation of a parameter; Any where there is none, or none that can be resolved at run time."""
    if not isinstance(parameter.annotation, str):
        return Any if parameter.annotation is parameter.empty else parameter.annotation
    try:
        return eval(parameter.annotation, vars(sys.modules[function.__module__]))
    except NameError:
        return Any

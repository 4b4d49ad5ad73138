"""The catalogue as tables, a line a name: integrators, systems, optimizers, callbacks, models, problems."""

from __future__ import annotations

import inspect
import re
import tomllib
from math import isnan
from typing import Any

from rich.text import Text

from sdeflow.config import catalogue
from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.system.integrator import Integrator
from sdeflow.system.optimizer_names import optimizer_named
from sdeflow.system.published import Declaration
from sdeflow.system.rule import Optimizer
from sdeflow.terminal import first_line, out, shown, table


def show_catalogue(*, long: bool = False) -> None:
    """Prints it, a line each, or `long` with what does not fit in one: sources, and why a plug-in fails."""

    def told(title: str, columns: tuple[str, ...], rows: list[list[str]], short: int) -> None:
        kept = len(columns) if long else short
        table(title, columns[:kept], [row[:kept] for row in rows], cut=not long)

    columns: tuple[str, ...] = ("name", "strong", "weak", "gradients", "needs", "source")
    rows = [_integrator(name, long) for name in catalogue.entries("integrators")]
    told("Integrators: orders, gradients a step", columns, rows, 5)
    rows = [_system(name, long) for name in catalogue.entries("systems")]
    told("Systems", ("name", "dynamics", "source"), rows, 2)
    rows = [_optimizer(name, long) for name in catalogue.entries("optimizers")]
    told("Optimizers of parameters; by name torch.optim's too", ("name", "options", "source"), rows, 2)
    rows = [_callback(name, long) for name in catalogue.entries("callbacks")]
    told("Callbacks", ("name", "what it does", "where"), rows, 2)
    models = [[name, entry.value] for name, entry in catalogue.entries("models").items()]
    told("Models", ("name", "where"), models, 2)
    problems = [[name, *_problem(name)] for name in catalogue.problem_files()]
    told("Problems", ("name", "title", "variants"), problems, 2)
    if not long:
        out.print(
            "More of one: sdeflow list NAME, of all: --long. References: sdeflow cite NAME.", markup=False
        )


def show_entry(name: str) -> None:
    """Prints all that is known of a name; raises SdeflowError for one that nothing in the catalogue has."""
    entries = {group: catalogue.entries(group) for group in catalogue.GROUPS}
    problems = catalogue.problem_files()
    known = {*problems, *(known for named in entries.values() for known in named)}
    if name not in known:
        raise SdeflowError(f"the catalogue has no '{name}': {did_you_mean(name, known)}")
    for group in catalogue.GROUPS:
        if name in entries[group]:
            found = catalogue.find(group, name)
            lines = [f"from {entries[group][name].value}"]
            if source := getattr(found, "source", ""):
                lines.append(f"source: {source}")
            _print(f"{name}, {group.removesuffix('s')}", [*_facts(found), *lines])
    if name in problems:
        title, variants = _problem(name)
        lines = [title, f"in {problems[name]}", *([f"variants: {variants}"] if variants else [])]
        _print(f"{name}, problem", [*lines, f"more: sdeflow show {name}"])


def _print(title: str, lines: list[str]) -> None:
    out.print(Text(shown(title), style="bold"))
    for line in lines:
        out.print(Text(shown(line)))
    out.print()


def _facts(found: Any) -> list[str]:
    """What an integrator, a system or a model is: numbers and equations."""
    if isinstance(found, Declaration):
        return [f"{variable}: {how}" for variable, how in found.dynamics.items()]
    lines = [_flowing(inspect.getdoc(found) or "")]
    if isinstance(found, type) and issubclass(found, Optimizer):
        options = str(optimizer_named(found.name)).partition("(")[2].rstrip(")")
        lines.append(f'\noptions: {options}; by [system.theta] optimizer = "{found.name}"')
    if isinstance(found, type) and issubclass(found, Integrator):
        strong, weak = _orders(found)
        cost = f"{found.evaluations} gradient evaluation(s) a step"
        lines.append(f"\norder {strong or '?'} strong, {weak or '?'} weak; {cost}; needs {found.needs}")
    return lines


def _flowing(text: str) -> str:
    """A docstring whose paragraphs are lines, for a terminal of any width; equations and lists stay."""
    prose = r"\S(?:\S| (?! ))*"
    return re.sub(rf"^({prose})\n(?={prose}$)", r"\1 ", text, flags=re.MULTILINE)


def _orders(scheme: Any) -> tuple[str, str]:
    strong, weak = (
        "" if isnan(order) else f"{order:g}" for order in (scheme.strong_order, scheme.weak_order)
    )
    return strong, weak


FAILS = "does not load: why is in --long"


def _integrator(name: str, long: bool) -> list[str]:
    try:
        scheme = catalogue.integrator_named(name)
    except SdeflowError as error:
        return [name, "", "", "", str(error) if long else FAILS, ""]
    return [name, *_orders(scheme), str(scheme.evaluations), scheme.needs, scheme.source]


def _system(name: str, long: bool) -> list[str]:
    try:
        found = catalogue.find("systems", name)
    except SdeflowError as error:
        return [name, str(error) if long else FAILS, ""]
    if isinstance(found, Declaration):
        return [name, "; ".join(f"{v} {how}" for v, how in found.dynamics.items()), found.source]
    return [name, first_line(found), catalogue.entries("systems")[name].value.partition(":")[0]]


def _optimizer(name: str, long: bool) -> list[str]:
    try:
        made = optimizer_named(name)
    except SdeflowError as error:
        return [name, str(error) if long else FAILS, ""]
    return [name, str(made).removeprefix(name).strip("()"), made.source]


def _callback(name: str, long: bool) -> list[str]:
    where = catalogue.entries("callbacks")[name].value
    try:
        return [name, first_line(catalogue.find("callbacks", name)), where]
    except SdeflowError as error:
        return [name, str(error) if long else FAILS, where]


def _problem(name: str) -> tuple[str, str]:
    """A packaged problem's title, and its variants."""
    tables = tomllib.loads(catalogue.problem_files()[name].read_text(encoding="utf-8-sig"))
    return tables.get("title", ""), ", ".join(tables.get("variants", {}))

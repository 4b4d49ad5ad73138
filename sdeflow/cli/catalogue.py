"""The catalogue as tables: integrators, systems, models and packaged problems."""

from __future__ import annotations

import tomllib
from math import isnan

from sdeflow.config import catalogue
from sdeflow.errors import SdeflowError
from sdeflow.system.published import Declaration
from sdeflow.terminal import first_line, table


def show_catalogue() -> None:
    """Prints it; a plug-in that does not load is a line that says why."""
    rows = []
    for name in catalogue.entries("integrators"):
        try:
            scheme = catalogue.integrator_named(name)
        except SdeflowError as error:
            rows.append([name, "", "", "", str(error), ""])
            continue
        orders = ["" if isnan(order) else f"{order:g}" for order in (scheme.strong_order, scheme.weak_order)]
        rows.append([name, *orders, str(scheme.evaluations), scheme.needs, scheme.source])
    table("Integrators", ("name", "strong", "weak", "gradients a step", "needs", "source"), rows)

    rows = []
    for name, entry in catalogue.entries("systems").items():
        try:
            found = catalogue.find("systems", name)
        except SdeflowError as error:
            rows.append([name, "", str(error)])
            continue
        if isinstance(found, Declaration):
            rows.append([name, "; ".join(f"{v} {how}" for v, how in found.dynamics.items()), found.source])
        else:
            rows.append([name, first_line(found), entry.value.partition(":")[0]])
    table("Systems", ("name", "dynamics", "source"), rows)

    rows = [[name, entry.value] for name, entry in catalogue.entries("models").items()]
    table("Models", ("name", "where"), rows)

    rows = []
    for name, path in catalogue.problem_files().items():
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        rows.append([name, tables.get("title", ""), ", ".join(tables.get("variants", {}))])
    table("Problems", ("name", "title", "variants"), rows)

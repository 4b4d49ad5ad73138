"""The balance of runs as a section of a page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import NamedTuple

import xarray as xr

from sdeflow.analysis.balance import STANDARD_ERRORS, WORTH_TELLING, balance, warnings
from sdeflow.analysis.comparison import html
from sdeflow.errors import SdeflowError

_CAPTION = (
    "In windows of steps, with standard errors over particles; red where one is off by more than "
    f"{STANDARD_ERRORS:g} of these and {WORTH_TELLING:.0%}. Work less dissipation, over the energy that was "
    "turned over, is 0 for steps that are small enough, whatever the run does. Temperatures and virial are "
    "1 once particles are at rest under their scores; those of positions matter for what is learned. A "
    "model's own score is compared with the gradient of its log-joint."
)


class Balance(NamedTuple):
    """The balance of a run and what it says is wrong, or why there is none."""

    found: xr.Dataset | None
    wrong: list[str]
    why_not: str = ""


def balance_of(run: xr.Dataset) -> Balance | None:
    """Of a run that keeps its system; None for one from Python, of no model, that diverged, or of no SDE."""
    if not run.attrs.get("config", "") or "X" not in run or run.attrs.get("retcode") == "diverged":
        return None
    try:
        found = balance(run)
    except SdeflowError as error:
        return Balance(None, [], str(error))
    return Balance(found, warnings(found)) if found.sizes["identity"] else None


def section(balances: Mapping[str, Balance | None]) -> str:
    """A table for each run, by label, and what is wrong above it; '' where there is nothing to tell."""
    parts = []
    for label, one in balances.items():
        if one is None:
            continue
        parts.append(f"<h3>{escape(label)}</h3>" * bool(label))
        said = one.wrong if one.found is not None else [f"Not known: {one.why_not}."]
        parts += [f"<p class=sub>{escape(sentence)}</p>" for sentence in said]
        if one.found is not None:
            parts.append(_table(one.found))
    return html.section("Balance", "".join(parts), _CAPTION) if any(parts) else ""


def _table(found: xr.Dataset) -> str:
    """A row an identity, a column a window."""
    windows = [f"{b:,} to {e:,}" for b, e in zip(found["begin"].values, found["end"].values, strict=True)]
    rows, bad = [], []
    for i in range(found.sizes["identity"]):
        one = found.isel(identity=i)
        of = str(one["block"].item())
        cells = {"identity": f"{one['name'].item()}{' of ' * bool(of)}{of}"}
        for k, steps in enumerate(windows):
            value, error = float(one["value"][k]), float(one["error"][k])
            cells[steps] = f"{value:.3f} ± {error:.3f}" if error else f"{value:.2g}"
        rows.append(cells)
        bad.append(bool(one["off"].any() if float(one["expected"]) == 0 else one["off"][-1]))
    return html.table(rows, bad=bad)

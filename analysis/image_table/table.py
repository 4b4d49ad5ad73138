"""Tables of methods on three bases: means over seeds, and differences to the reference in pairs of seeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from sdeflow.analysis.image_table.methods import REFERENCE
from sdeflow.analysis.rates import Interval, over_replicas
from sdeflow.analysis.studies.script import pm

Scores = Mapping[str, xr.Dataset]
"""Of methods by label, as `trial` gives them."""

DIGITS = {"evidence": 2, "gap": 1, "kid": 4, "reconstruction": 4, "w1": 3}
"""Decimals of scores."""


def paired(values: xr.DataArray, reference: xr.DataArray) -> Interval | None:
    """The mean difference over the seeds of both, with Student's 95% interval; None for fewer than two."""
    difference = (values - reference).dropna("seed").to_numpy()
    return over_replicas(difference) if len(difference) > 1 else None


def rows(found: Scores) -> list[dict[str, str]]:
    """A line for each method of one basis, with what all of them have: scores, differences, cost."""
    first = next(iter(found.values()))
    measure = "w1" if "w1" in first.score else "evidence"
    of = {label: dict(_columns(scores)) for label, scores in found.items()}
    names = list(dict.fromkeys(name for columns in of.values() for name in columns))
    lines = []
    for label, scores in found.items():
        lost = int(scores.attrs["diverged"])
        line = {"method": f"{label} ({lost} diverged)" if lost else label}
        for name in names:
            values = of[label].get(name)
            line[name] = "" if values is None else _mean(values, DIGITS[str(values.score.item())])
            if name == measure or name == "evidence":
                line[f"{name} less {REFERENCE}'s"] = _difference(of, label, name)
        lines.append(line | _cost(scores))
    return lines


def _columns(scores: xr.Dataset) -> list[tuple[str, xr.DataArray]]:
    """What is shown of a method: each a value a seed."""
    if "value" not in scores:
        return []
    asked = [("last", name) for name in ("evidence", "w1")]
    asked += [(str(p), "evidence") for p in scores.parameters.to_numpy() if p != "last"]
    asked += [("last", name) for name in ("gap", "kid", "reconstruction")]
    known = set(scores.score.to_numpy().tolist())
    return [
        (f"{name}, {p}".replace(", last", ""), scores.value.sel(parameters=p, score=name))
        for p, name in asked
        if name in known and bool(scores.value.sel(parameters=p, score=name).notnull().any())
    ]


def _difference(of: Mapping[str, Mapping[str, xr.DataArray]], label: str, name: str) -> str:
    one, reference = of[label].get(name), of.get(REFERENCE, {}).get(name)
    if label == REFERENCE or one is None or reference is None:
        return ""
    return interval(paired(one, reference), DIGITS[name.partition(",")[0]])


def interval(found: Interval | None, digits: int) -> str:
    """A difference with its interval; '' where there is none."""
    if found is None:
        return ""
    return f"{found.mean:+.{digits}f} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


def _mean(values: xr.DataArray, digits: int) -> str:
    """The mean over the seeds that there are, with its standard error where there are two."""
    there = values.dropna("seed").to_numpy()
    if len(there) < 2:
        return "".join(f"{value:.{digits}f}" for value in there)
    return pm(over_replicas(there), 1, digits)


def _cost(scores: xr.Dataset) -> dict[str, str]:
    """Evaluations a step, seconds a seed, and by which factors steps were multiplied."""
    a = scores.attrs
    line = {"evaluations a step": f"{a['evaluations_a_step']:.3g}", "s": f"{a['seconds']:.0f}"}
    if "factor_theta" in a:
        line["steps of θ, X"] = f"{a['factor_theta']:g}, {a['factor_x']:g}"
    return line


def at_equal_time(found: Scores) -> tuple[float, list[dict[str, str]]]:
    """The least time that particles of any method have covered, and what is looked at of each at that time.

    It is interpolated between moments, in the logarithm of the step. Methods that draw particles anew have
    none, and neither have those that did not come to a moment before.
    """
    times = {
        label: scores.moment.to_numpy() * scores.attrs["particle_time"]
        for label, scores in found.items()
        if "course" in scores and np.isfinite(scores.attrs["particle_time"])
    }
    if not times:
        return float("nan"), []
    least = min(t[-1] for t in times.values())
    then = {
        label: found[label]
        .course.drop_vars("evaluations")
        .assign_coords(moment=np.log(t))
        .interp(moment=np.log(least), kwargs={"bounds_error": False})
        for label, t in times.items()
    }
    measure = str(found[next(iter(times))].course.attrs["measure"])
    lines = []
    for label, values in then.items():
        difference = (
            ""
            if label == REFERENCE or REFERENCE not in then
            else interval(paired(values, then[REFERENCE]), DIGITS[measure])
        )
        spent = least / found[label].attrs["particle_time"] * found[label].attrs["evaluations_a_step"]
        lines.append(
            {
                "method": label,
                measure: _mean(values, DIGITS[measure]),
                f"less {REFERENCE}'s": difference,
                "evaluations": f"{spent:,.0f}",
            }
        )
    return least, lines

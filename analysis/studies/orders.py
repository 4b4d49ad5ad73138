"""Measures the strong and the weak order of integrators on nonlinear problems, on shared Brownian paths.

    python -m sdeflow.analysis.studies.orders [--integrators NAME,NAME] [--paths N] [--out orders.json]

The problems are quartic wells, V(q) = q^4/4 - q^2/2, from time 0 to 1: two coupled wells on different clocks
and under different friction, the same with noiseless parameters, and one without momentum. What is measured,
and how, is said in sdeflow.analysis.convergence_orders.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from sdeflow.analysis.convergence_orders import (
    BATCHES,
    DIVERGED,
    PATHS,
    STRONG_MARGIN,
    WEAK_LEVELS,
    WEAK_MARGIN,
    WEAK_REFERENCE,
    MakeSystem,
    SharedPaths,
    Slope,
    strong_errors,
    strong_slope,
    weak_errors,
    weak_slope,
)
from sdeflow.analysis.studies.script import parser
from sdeflow.analysis.studies.wells import WELLS
from sdeflow.config.catalogue import entries, integrator_named
from sdeflow.errors import RunError, SdeflowError
from sdeflow.system.integrator import Integrator
from sdeflow.terminal import table

CHOICES = (("coupled wells", "coupled, parameters without noise"), ("overdamped well",))
"""The table measures on the first system of each choice that a scheme takes."""

FINER, FEWER = 3, 16
"""How many levels finer the weak error of schemes of order 3 is looked at, and by how many times fewer paths.

At the steps of the others the next terms of their error still lift the order by one half. So small an error
needs fewer paths: scheme and reference hardly part.
"""


class Row(NamedTuple):
    """One integrator on one system; where it could not be measured, `remark` says why."""

    integrator: str
    system: str = ""
    declared_strong: float = math.nan
    strong: Slope = DIVERGED
    declared_weak: float = math.nan
    weak: Slope = DIVERGED
    remark: str = ""

    @property
    def verdict(self) -> str:
        """'yes' where both measured orders are the declared ones, else what is not."""
        strong = self.strong.against(self.declared_strong, STRONG_MARGIN)
        weak = self.weak.against(self.declared_weak, WEAK_MARGIN)
        found = [f"{kind} {word}" for kind, word in (("strong", strong), ("weak", weak)) if word != "yes"]
        return self.remark or "; ".join(found) or "yes"

    def flat(self) -> dict[str, Any]:
        """Numbers and strings by name, for a file."""
        slopes = (("strong", self.strong), ("weak", self.weak))
        ends = {f"{kind}_{end}": x for kind, slope in slopes for end, x in slope._asdict().items()}
        rest = {k: v for k, v in self._asdict().items() if not isinstance(v, Slope)}
        return rest | ends | {"verdict": self.verdict}


def measure(names: Sequence[str], paths: int = PATHS) -> list[Row]:
    """Rows for integrators of the catalogue (or 'file.py:Name'), on one system of each choice that they take.

    `paths` is the number of paths of the weak error. A scheme may do better than it declares on one system:
    what it declares is for all. Raises SdeflowError for an unknown name and for too few paths.
    """
    if paths < 2 * BATCHES:
        raise SdeflowError(f"the orders need at least {2 * BATCHES} paths, given {paths}")
    rows: dict[str, list[Row]] = {name: [] for name in dict.fromkeys(names)}
    schemes = {name: integrator_named(name) for name in rows}
    for choice in CHOICES:
        waiting = dict(schemes)
        for system in choice:
            able = {n: s for n, s in waiting.items() if s.refuses(WELLS[system](1.0, 2)) is None}
            waiting = {n: s for n, s in waiting.items() if n not in able}
            for name, row in _measured(system, able, paths).items():
                rows[name].append(row)
    for name, scheme in schemes.items():
        if not rows[name]:
            why = [scheme.refuses(WELLS[system](1.0, 2)) for choice in CHOICES for system in choice]
            rows[name].append(Row(name, remark=f"not measured: {why[-1]}"))
    return [row for each in rows.values() for row in each]


def _measured(system: str, schemes: Mapping[str, Integrator], paths: int) -> dict[str, Row]:
    make, rows, sound = WELLS[system], {}, {}
    trial = SharedPaths(make, finest=6, coarsest=2, batches=1, paths=2)
    for name, scheme in schemes.items():
        try:
            trial.end(scheme, 2)
            sound[name] = scheme
        except SdeflowError as error:  # one plug-in's failure is a row, not the end of the table
            rows[name] = Row(name, system, remark=f"not measured: {error}")
    if sound:
        errors, weak = strong_errors(make, list(sound.values())), _weak_slopes(make, sound, paths)
        for (name, s), strong in zip(sound.items(), errors, strict=True):
            rows[name] = Row(name, system, s.strong_order, strong_slope(strong), s.weak_order, weak[name])
    return rows


def _weak_slopes(make: MakeSystem, schemes: Mapping[str, Integrator], paths: int) -> dict[str, Slope]:
    found: dict[str, Slope] = {}
    for high in sorted({s.weak_order > 2 for s in schemes.values()}):
        group = {name: s for name, s in schemes.items() if (s.weak_order > 2) == high}
        finer, fewer = (FINER, FEWER) if high else (0, 1)
        levels, each = [n + finer for n in WEAK_LEVELS], max(2, 2 * (paths // (2 * BATCHES * fewer)))
        errors = weak_errors(make, list(group.values()), levels, reference=WEAK_REFERENCE + finer, paths=each)
        found |= {name: weak_slope(error, levels) for name, error in zip(group, errors, strict=True)}
    return found


def write(rows: Sequence[Row], out: Path, paths: int) -> None:
    """The rows as JSON where the name ends so, else as NetCDF; raises RunError where it cannot write."""
    flat = [row.flat() for row in rows]
    try:
        if out.suffix == ".json":
            clean = [{k: v if v == v else None for k, v in row.items()} for row in flat]  # JSON has no NaN
            out.write_text(json.dumps({"paths": paths, "rows": clean}, indent=1) + "\n", encoding="utf-8")
        else:
            columns = {key: ("row", [row[key] for row in flat]) for key in flat[0]}
            xr.Dataset(columns, attrs={"paths": paths}).to_netcdf(out)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """The script; a mistake in its arguments is a sentence and exit code 2, as with `sdeflow`."""
    options = parser(__doc__)
    options.add_argument("--integrators", default="", help="names, separated by commas (default: all)")
    options.add_argument("--paths", type=int, default=PATHS, help=f"of the weak error (default: {PATHS})")
    options.add_argument("--out", type=Path, help="file to write, .json or .nc")
    given = options.parse_args(arguments)
    try:
        if given.out is not None and given.out.suffix not in (".json", ".nc"):
            raise SdeflowError(f"--out {given.out}: expected a name that ends in .json or .nc")
        if given.out is not None and not given.out.absolute().parent.is_dir():
            raise SdeflowError(f"--out {given.out}: there is no folder {given.out.parent}")
        names = [name for name in map(str.strip, given.integrators.split(",")) if name]
        rows = measure(names or list(entries("integrators")), given.paths)
        table(
            f"Orders, with 99.9% intervals; {given.paths} paths for the weak ones",
            ("integrator", "system", "strong", "measured", "weak", "measured", "agrees"),
            [_cells(row) for row in rows],
        )
        if given.out is not None:
            write(rows, given.out, given.paths)
    except SdeflowError as error:
        print(f"sdeflow: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _cells(row: Row) -> list[str]:
    if row.remark:
        return [row.integrator, row.system, "", "", "", "", row.remark]
    strong, weak = f"{row.declared_strong:g}", f"{row.declared_weak:g}"
    return [row.integrator, row.system, strong, str(row.strong), weak, str(row.weak), row.verdict]


if __name__ == "__main__":
    main()

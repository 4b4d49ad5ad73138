"""Schemes side by side on one problem: what each measured, and what theory says of it.

A comparison is a list of entries, each a finished (or diverged, or unfinished) run; `rows` measures and
predicts, `joined` puts all into one dataset, `write` adds the page of sdeflow.analysis.comparison.report.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from sdeflow.analysis.chosen import chosen
from sdeflow.analysis.comparison.balances import Balance, balance_of
from sdeflow.analysis.comparison.entries import Entry, Row, scored
from sdeflow.analysis.comparison.report import page
from sdeflow.analysis.free_energy import energy_along, toy_minimum
from sdeflow.analysis.rates import Interval, decay, over_replicas
from sdeflow.analysis.stability import contraction, equilibrium
from sdeflow.config.build import build
from sdeflow.config.catalogue import integrator_named
from sdeflow.config.run import Run
from sdeflow.config.schema import parse_config
from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.solve import solve
from sdeflow.state import State
from sdeflow.system.integrator import why_not
from sdeflow.system.system import BlockSystem
from sdeflow.trajectory import durable
from sdeflow.trajectory.layout import safe_name
from sdeflow.trajectory.segments import encode_dataset

SNAPSHOTS = 20
"""How many a rate is fitted to at least (sdeflow.analysis.rates)."""


def problem_of(entries: Sequence[Entry]) -> BlockSystem | None:
    """The entries' system with two particles a datum, which carry all modes; None where none is stated."""
    for entry in entries:
        if entry.dataset is not None and (text := entry.dataset.attrs["config"]):
            tables = tomllib.loads(text)
            if "model" not in tables:
                return None
            return _two_particles(text)
    return None


def rows(
    entries: Sequence[Entry], system: BlockSystem | None, tick: Callable[[], None] = lambda: None
) -> list[Row]:
    """A row for each entry, after which `tick` is called; `system` is what theory is asked about, if any."""
    z, why = None, "no theory for this system"
    if system is not None:
        try:
            z = equilibrium(system)
        except SdeflowError as error:
            why = str(error)
    found = []
    for entry in entries:
        found.append(_row(entry, system, z, why))
        tick()
    return found


def excess_energy(entry: Entry, model: Model | None) -> xr.DataArray | None:
    """E - E* along a run of the toy model whose data were all saved; None elsewhere."""
    dataset = entry.dataset
    if dataset is None or type(model) is not Hierarchical or "X" not in dataset:
        return None
    if dataset.sizes["datum"] != len(model.data) or dataset.sizes["particle"] < 8:
        return None
    least = toy_minimum(model.data.numpy(), model.variance**0.5)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return energy_along(dataset, model) - least
    except SdeflowError:  # where the run diverged
        return None


def joined(
    entries: Sequence[Entry], found: Sequence[Row], energies: Mapping[str, xr.DataArray]
) -> xr.Dataset:
    """One dataset with a dimension `integrator`: curves, NaN where a run has none, and the table."""
    parts = []
    for entry in entries:
        if entry.dataset is None:
            continue
        names = [
            name for name in entry.dataset.data_vars if set(entry.dataset[name].dims) <= {"time", "replica"}
        ]
        names += [
            name
            for name in ("theta", "alpha", "beta")
            if name in entry.dataset and entry.dataset.sizes[entry.dataset[name].dims[-1]] <= 16
        ]
        part = entry.dataset[names].load()
        if entry.label in energies:
            part = part.assign(excess_energy=energies[entry.label].reset_coords(drop=True))
        parts.append(part.reset_coords(drop=True).expand_dims(integrator=[entry.label]))
    whole = xr.Dataset(coords={"integrator": [entry.label for entry in entries]})
    if parts:
        rule: dict[str, Any] = {"join": "outer", "coords": "minimal", "compat": "override"}
        curves = xr.concat(parts, "integrator", data_vars="all", combine_attrs="drop", **rule)
        longest = max((e.dataset for e in entries if e.dataset is not None), key=lambda d: d.sizes["time"])
        whole = curves.reindex(integrator=whole.integrator).assign_coords(step=longest["step"])
    columns: dict[str, list[Any]] = {
        "retcode": [row.retcode for row in found],
        "gradient_evaluations_per_step": [row.evaluations for row in found],
        "seconds_per_step": [row.seconds_a_step for row in found],
        "fitted_rate": [row.fitted.mean if row.fitted else np.nan for row in found],
        "fitted_rate_error": [row.fitted.error if row.fitted else np.nan for row in found],
        "predicted_rate": [row.predicted for row in found],
        "fitted_frequency": [row.frequency.mean if row.frequency else np.nan for row in found],
        "fitted_frequency_error": [row.frequency.error if row.frequency else np.nan for row in found],
        "regime": [row.regime for row in found],
        "note": [row.note for row in found],
    }
    for unit, steps in (
        ("gradient_evaluation", [1 / max(1, row.evaluations) for row in found]),
        ("second", [1 / row.seconds_a_step for row in found]),
    ):
        pairs = [row.fitted_per(step) for row, step in zip(found, steps, strict=True)]
        rates, errors = zip(*pairs, strict=True)
        columns[f"fitted_rate_per_{unit}"], columns[f"fitted_rate_per_{unit}_error"] = [*rates], [*errors]
        columns[f"predicted_rate_per_{unit}"] = [r.predicted * s for r, s in zip(found, steps, strict=True)]
    if (scores := scored(entries)) is not None:
        whole = whole.merge(scores.reindex(integrator=whole.integrator))
    return whole.assign({name: ("integrator", np.asarray(values)) for name, values in columns.items()})


def _row(entry: Entry, system: BlockSystem | None, z: State | None, why: str) -> Row:
    if entry.dataset is None:
        why = entry.refusal.partition(". These can: ")[0]
        return Row(entry.label, "refused", 0, np.nan, None, None, np.nan, why)
    dataset, notes = entry.dataset, []
    loss = None
    if "loss" in dataset and entry.retcode != "diverged":
        last = np.atleast_1d(dataset["loss"].isel(time=-1).to_numpy())
        if last.size > 1 and np.isfinite(last).all():
            loss = over_replicas(last)
        elif last.size == 1:
            loss = Interval(float(last[0]), np.nan, np.nan, np.nan)
    predicted = np.nan
    if system is not None and z is not None:
        scheme = integrator_named(str(dataset.attrs["integrator"])).fitted(system)
        steady = not system.scheduled and not any(b.rule is not None for b in system.blocks)
        if steady and why_not(scheme, system) is None:
            predicted = -float(np.log(contraction(chosen(system, dataset), scheme, z)))
    else:
        notes.append(why)
    fitted, frequency, regime = None, None, ""
    if entry.retcode == "diverged":
        first, *others = str(dataset.attrs["message"]).partition(". ")[0].split("; ")
        notes.append(f"{first}{', and others' if others else ''}")
    else:
        if entry.retcode != "success":
            notes.append(f"{entry.retcode} after {dataset.attrs['steps_taken']:,} steps")
        try:
            found = decay(dataset)
            fitted, frequency, regime = found.rate, found.frequency, found.regime
        except SdeflowError as error:
            short = dataset.sizes["time"] < SNAPSHOTS
            told = f"too short ({dataset.sizes['time']} of {SNAPSHOTS} snapshots)"
            notes.append(told if short else str(error))
    return Row(
        entry.label,
        entry.retcode,
        entry.evaluations,
        entry.seconds_a_step,
        loss,
        fitted,
        predicted,
        "; ".join(notes),
        frequency,
        regime,
    )


def _told(row: Row, balance: Balance | None) -> Row:
    """The row with what its run's balance says is wrong."""
    wrong = [] if balance is None else balance.wrong
    return row._replace(note="; ".join(filter(None, [row.note, *wrong])))


def _two_particles(config: str) -> BlockSystem | None:
    system = build(parse_config(config, Path("config.toml")).with_particles(2)).system
    system = system.to(torch.float64, torch.device("cpu"))
    return system if isinstance(system, BlockSystem) else None


def compare(runs: Mapping[str, Run | str], out: Path, title: str, progress: Callable[..., Any]) -> list[Row]:
    """Solves runs, by label (or notes the reason why there is none), and writes compare.nc and report.html.

    progress   gives a context whose value is what a solving run reports to, for a label

    Schemes of one seed follow one Brownian path where they can. A diverging scheme is a row that says so.
    """
    entries = []
    for label, run in runs.items():
        if isinstance(run, str):
            entries.append(Entry(label, None, run))
            continue
        with progress(label) as report:
            solution = solve(run, out=out / "runs" / safe_name(label), progress=report)
        if solution.retcode == "interrupted":
            raise KeyboardInterrupt(solution.message)
        entries.append(Entry(label, solution.dataset))
    return write(entries, out, title, progress)


def write(
    entries: Sequence[Entry], out: Path, title: str, progress: Callable[..., Any] = lambda *_: nullcontext()
) -> list[Row]:
    """Measures, predicts, and writes compare.nc and report.html into a folder, each whole or not at all.

    progress   as in `compare`, and told the unit that is counted
    """
    system, done = problem_of(entries), count(1)
    with progress("rates, fitted and predicted", "scheme") as report:
        found = rows(entries, system, lambda: report(next(done), len(entries), None) if report else None)
    model = None if system is None or system.model_forces is None else system.model_forces.model
    energies = {entry.label: value for entry in entries if (value := excess_energy(entry, model)) is not None}
    balances = {entry.label: balance_of(entry.dataset) for entry in entries if entry.dataset is not None}
    found = [_told(row, balances.get(row.label)) for row in found]
    text = page(title, entries, found, energies, balances)
    out.mkdir(parents=True, exist_ok=True)
    durable.write(out / "compare.nc", encode_dataset(joined(entries, found, energies)))
    durable.write(out / "report.html", text.encode())
    return found

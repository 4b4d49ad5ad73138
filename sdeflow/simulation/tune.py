"""Finding the numbers of a system's blocks without a long run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import xarray as xr

from sdeflow.config.catalogue import integrator_named, integrators_for
from sdeflow.config.run import Run
from sdeflow.errors import RunError, SdeflowError
from sdeflow.simulation.solve import solve
from sdeflow.system.block import Block
from sdeflow.system.system import BlockSystem
from sdeflow.terminal import Progress
from sdeflow.tuning.choice import OPPOSED_LO, UNKNOWN_LO, Spectrum, evaluations_an_efold, pace
from sdeflow.tuning.limits import wells_of


@dataclass(frozen=True)
class Tuned:
    """What a warm-up found.

    numbers      by block h and, with a momentum, eta and gamma, but for those that differ over a grid
                 or are schedules;
                 restart where it is to be set
    curvature    by block the largest that it sees, on the last data that were looked at
    spectrum     the ends of the joint curvature; `known` is False where there is no least positive one
    assumed      what is taken for the least joint curvature
    share        of the largest stable step that h is
    limit        that largest step, in units in which the largest curvature of every block is 1
    margin       a factor on curvature, above 1 where the run went back
    heat         by what share the variance of the particles' stiffest direction is off
    efold        by scheme of the catalogue, predicted gradient evaluations in which the slowest mode's error
                 falls to 1/e, each scheme with the numbers that are best for it
    evaluations  gradient evaluations that were taken, steps and curvature
    """

    numbers: dict[str, dict[str, float | bool]]
    curvature: dict[str, float]
    spectrum: Spectrum
    assumed: float
    share: float
    limit: float
    margin: float
    heat: float
    efold: dict[str, float]
    evaluations: float
    dataset: xr.Dataset


def tune(run: Run, *, progress: Progress | None = None) -> Tuned:
    """The numbers that the warm-up of a run comes to within its steps.

    Raises SdeflowError for a run whose numbers are all given, RunError for one that does not stay finite.
    """
    system = run.system
    if not isinstance(system, BlockSystem) or not any(b.auto for b in system.blocks):
        raise SdeflowError("there is nothing to tune: no block has a number that is 'auto'")
    solution = solve(run, progress=progress)
    if solution.retcode != "success":
        raise RunError(f"the warm-up did not come to an end: {solution.message}")
    last = solution.dataset.isel(time=-1)

    def value(name: str) -> float:
        return float(last[name].max())

    def spread(key: str, b: Block) -> bool:
        return len({float(v) for v in last[f"{key}_{b.name}"].values.reshape(-1)}) > 1

    spectrum = Spectrum(value("curvature_least"), value("curvature_most"))
    numbers: dict[str, dict[str, float | bool]] = {}
    for b in system.blocks:
        keys = ("h", "eta", "gamma") if b.kinetic else ("h",)
        own: dict[str, float | bool] = {
            key: value(f"{key}_{b.name}") for key in keys if key not in b.schedules and not spread(key, b)
        }
        if f"restart_{b.name}" in last and value(f"restart_{b.name}"):
            own["restart"] = True
        numbers[b.name] = own
    wells, share = wells_of(system, run.integrator), value("tuning_share")
    opposed = bool(system.force_field.opposed)
    known = Spectrum(OPPOSED_LO, spectrum.hi) if opposed else spectrum
    chosen = pace(wells, known, share, restart=run.integrator.restarts)
    return Tuned(
        numbers=numbers,
        curvature={b.name: value(f"curvature_{b.name}") for b in system.blocks},
        spectrum=spectrum,
        assumed=known.lo if known.known else UNKNOWN_LO,
        share=share,
        limit=chosen.limit,
        margin=value("tuning_margin"),
        heat=wells.heat(chosen.h, chosen.particles),
        efold=_efolds(system, known, share),
        evaluations=run.steps * run.gradient_evaluations + value("tuning_evaluations"),
        dataset=solution.dataset,
    )


def _efolds(system: BlockSystem, spectrum: Spectrum, share: float) -> dict[str, float]:
    """Predicted evaluations an e-fold of every scheme of our own that can take the system, the best first."""
    assumed = spectrum if spectrum.known else Spectrum(UNKNOWN_LO, spectrum.hi)
    found: dict[str, float] = {}
    for name in integrators_for(system, reference=False):
        scheme: Any = integrator_named(name).fitted(system)
        found[name] = evaluations_an_efold(wells_of(system, scheme), assumed, share)
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))

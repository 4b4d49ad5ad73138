"""Steps to a given E - E* on a badly conditioned problem, with momentum and without.

    python -m sdeflow.analysis.studies.conditioning --out conditioning.svg

Every system runs at half its largest stable steps and at the friction that contracts fastest there, both from
the linearised one-step map. Predicted beside the measured steps: log((E0 - E*)/level) / (2 r), with E0 at the
start and r minus the log of the contraction, as if the slowest mode were all there is. pgd's steps are bound
by the largest curvature L and its rate by the least l, so that it needs of the order of L/l steps; with
momentum and a scheme that is stable up to h ~ 1/sqrt(L) it is sqrt(L/l). The exponential integrator of
arXiv:2312.07335 is no such scheme: it takes the particles' score at the step's beginning, as Euler does, and
is stable up to h ~ friction/L.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from sdeflow.analysis.free_energy import energy_along
from sdeflow.analysis.studies.race import Entrant, Finish, asked, draw, race, row
from sdeflow.analysis.studies.script import markdown, model_of, write
from sdeflow.config.run import Run
from sdeflow.problems.ill_conditioned import IllConditioned

LEVEL, SHARE = 5.0, 0.5
"""Nats above the minimum, of some thousand at the start; share of the largest stable step."""

ENTRANTS = (
    Entrant("pgd, euler_maruyama", "pgd", "euler_maruyama", 20_000),
    Entrant("mpgd, expint", "fixed", "expint", 12_000),
    Entrant("mpgd, baoab", "fixed", "baoab", 600),
)


def excess_energy(run: Run, dataset: xr.Dataset) -> xr.DataArray:
    """E - E* of the problem, (time, replica)."""
    model = model_of(run, IllConditioned)
    return energy_along(dataset, model) - model.minimum


def predicted(finish: Finish) -> float:
    """Steps to LEVEL, were all of E - E* in the slowest mode."""
    start = float(finish.series.isel(time=0).mean())
    return float(np.log(start / LEVEL) / (-2 * np.log(finish.tuning.contraction)))


def measure(
    replicas: int = 8, entrants: Sequence[Entrant] = ENTRANTS, condition: float | None = None
) -> list[Finish]:
    """The race, on the packaged problem or at another condition number."""
    overrides = [] if condition is None else [{"model": {"condition": condition}}]
    return race(
        "ill_conditioned", entrants, excess_energy, LEVEL, share=SHARE, replicas=replicas, overrides=overrides
    )


def main() -> None:
    """The script."""
    found, out = asked(__doc__, "conditioning.svg", measure)
    print(markdown([row(f) | {"predicted steps": f"{predicted(f):,.0f}"} for f in found]), end="\n\n")
    figure = draw(found, LEVEL, "E − E*, nats", f"{LEVEL:g} nats", log=True)
    figure.axes[0].set_ylim(bottom=LEVEL / 500)  # below it there is only noise
    write(out, figure)


if __name__ == "__main__":
    main()

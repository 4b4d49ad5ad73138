"""How soon particles that all begin in one of two modes fill the other, with momentum and without.

    python -m sdeflow.analysis.studies.coverage --out coverage.svg

Every system runs at a tenth of its largest stable steps, so that what steps do to the stationary law is
small, and at the friction that contracts fastest there, both from the one-step map linearised within a mode.
In the end half of the particles are in the other mode, exactly; half-coverage is a quarter. The table also
has the share over the last fifth of the run, and how far theta's mean over it is from the MLE, root mean
square over coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from sdeflow.analysis.rates import Interval, over_replicas
from sdeflow.analysis.studies.race import Entrant, Finish, asked, draw, race, row
from sdeflow.analysis.studies.script import markdown, model_of, write
from sdeflow.config.run import Run
from sdeflow.problems.two_modes import TwoModes

LEVEL, SHARE = 0.25, 0.1

ENTRANTS = (
    Entrant("pgd, euler_maruyama", "pgd", "euler_maruyama", 8000),
    Entrant("mpgd, expint", "fixed", "expint", 4000),
    Entrant("mpgd, baoab", "fixed", "baoab", 8000),
)
"""With 8000 gradient evaluations each."""


def share(run: Run, dataset: xr.Dataset) -> xr.DataArray:
    """Of particles in the mode where none began, (time, replica)."""
    return dataset["other_mode"]


def late_share(finish: Finish) -> Interval:
    """The share over the last fifth of the run."""
    late = finish.series.isel(time=slice(-finish.series.sizes["time"] // 5, None))
    return over_replicas(late.mean("time").to_numpy())


def theta_error(finish: Finish) -> float:
    """Root mean square distance of theta, averaged over the last fifth and over replicas, from the MLE."""
    model = model_of(finish.run, TwoModes)
    theta = finish.dataset["theta"]
    late = theta.isel(time=slice(-theta.sizes["time"] // 5, None)).mean(("time", "replica"))
    return float(np.sqrt(((late.to_numpy() - model.mle.numpy()) ** 2).mean()))


def measure(replicas: int = 8, entrants: Sequence[Entrant] = ENTRANTS) -> list[Finish]:
    """The race on the packaged problem."""
    return race("two_modes", entrants, share, LEVEL, share=SHARE, replicas=replicas, falling=False)


def main() -> None:
    """The script."""
    found, out = asked(__doc__, "coverage.svg", measure)
    lines = []
    for f in found:
        late = late_share(f)
        more = {
            "share at the end": f"{late.mean:.3f} ± {late.error:.3f}",
            "error of theta": f"{theta_error(f):.3f}",
        }
        lines.append(row(f) | more)
    print(markdown(lines), end="\n\n")
    figure = draw(found, LEVEL, "share in the other mode", "half-coverage", log=False)
    figure.axes[0].axhline(0.5, color="0.4", lw=0.8)
    figure.axes[0].set_ylim(0, 0.6)
    write(out, figure)


if __name__ == "__main__":
    main()

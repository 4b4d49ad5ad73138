"""An energy-based prior against a Gaussian one, and momentum against none, on points in the plane.

    python -m sdeflow.analysis.studies.latent_priors --out latent_priors.svg
    python -m sdeflow.analysis.studies.latent_priors --dataset rings

Every entrant makes as many gradient evaluations, from as many seeds. Measured is W_2 between samples of the
model and held-out data, as many of each: while training with the prior particles as they are, and at the end
also with prior particles that have moved on with the parameters held fixed, which are samples of what was
learned rather than of how. Even exact samples would be at the distance that two sets of data have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.analysis.curves import curve, open_frame
from sdeflow.analysis.distances import wasserstein
from sdeflow.analysis.rates import Interval, over_replicas
from sdeflow.analysis.samples import continued
from sdeflow.analysis.studies.race import reached
from sdeflow.analysis.studies.script import markdown, parser, pm, solved, write
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.run import Run
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.model.energy_forces import EnergyForces
from sdeflow.problems.latent_ebm import LatentEBM, planar
from sdeflow.seeds import generator
from sdeflow.simulation.ending import Solution
from sdeflow.system.system import BlockSystem

PROBLEM, SNAPSHOTS, MOVED_ON = "latent_ebm_2d", 40, 500


class Entrant(NamedTuple):
    """A variant of the problem's file (None: as it is) under a system and an integrator."""

    label: str
    variant: str | None
    system: str
    integrator: str


ENTRANTS = (
    Entrant("energy, ebipla, euler_maruyama", None, "ebipla", "euler_maruyama"),
    Entrant("energy, kinetic_ebipla, expint_shared", None, "kinetic_ebipla", "expint_shared"),
    Entrant("energy, kinetic_ebipla, baoab", "splitting", "kinetic_ebipla", "baoab"),
    Entrant("Gaussian, affine decoder", "gaussian", "ebipla", "euler_maruyama"),
    Entrant("Gaussian, MLP decoder", "gaussian_mlp", "ebipla", "euler_maruyama"),
)


class Result(NamedTuple):
    """W_2 to held-out data, (time, replica), and at the end that of particles that moved on."""

    entrant: Entrant
    distance: xr.DataArray
    moved_on: NDArray[np.float64]
    evaluations: int
    seconds: float

    def until(self, level: float) -> Interval | None:
        """Gradient evaluations until W_2 stays below a level; None where a replica does not get there."""
        steps = reached(self.distance, level) * self.evaluations
        return over_replicas(steps) if np.isfinite(steps).all() else None


def measure(
    entrants: Sequence[Entrant] = ENTRANTS,
    *,
    dataset: str = "mixture",
    evaluations: int = 12_000,
    replicas: int = 5,
    overrides: Sequence[dict[str, Any]] = (),
) -> list[Result]:
    """Runs the entrants; raises SdeflowError for fewer than two replicas, or one that diverges."""
    if replicas < 2:
        raise SdeflowError(f"an error bar needs two replicas or more, given {replicas}")
    return [
        _measure(entrant, dataset=dataset, evaluations=evaluations, replicas=replicas, overrides=overrides)
        for entrant in entrants
    ]


def _measure(
    entrant: Entrant, *, dataset: str, evaluations: int, replicas: int, overrides: Sequence[dict[str, Any]]
) -> Result:
    def built(steps: int) -> Run:
        own = {
            "model": {"dataset": dataset},
            "system": {"use": entrant.system},
            "run": {"integrator": entrant.integrator, "replicas": replicas, "steps": steps},
            "save": {"every": max(1, steps // SNAPSHOTS)},
        }
        config = load_config(problem_file(PROBLEM), variant=entrant.variant, overrides=[own, *overrides])
        return build(config)

    run = built(evaluations // built(1).gradient_evaluations)
    solution = solved(run)
    if solution.retcode == "diverged":
        raise SdeflowError(f"{entrant.label}: {solution.message}")
    moved_on = np.array([_distance(run, y) for y in _moved_on(run, solution)])
    seconds = float(solution.dataset.attrs["seconds"])
    return Result(entrant, along(run, solution.dataset), moved_on, run.gradient_evaluations, seconds)


def along(run: Run, dataset: xr.Dataset) -> xr.DataArray:
    """W_2 to the held-out data at every snapshot and replica."""
    _, model, forces = _parts(run)
    values = np.empty((dataset.sizes["time"], dataset.sizes["replica"]))
    for i, r in np.ndindex(values.shape):
        at = dataset.isel(time=i, replica=r)
        flat = {k: torch.from_numpy(at[k].to_numpy()) for k in ("alpha", "beta", "Z") if k in at}
        values[i, r] = _distance(run, _observed(model, forces, flat, flat.get("Z"), seed=i))
    return xr.DataArray(values, dims=("time", "replica"), coords={"step": dataset["step"]})


def _moved_on(run: Run, solution: Solution) -> list[Tensor]:
    """Observations of each replica's model, from prior particles moved on by MOVED_ON steps."""
    system, model, forces = _parts(run)
    found = []
    for r in range(run.replicas):
        state = {name: value[r] for name, value in solution.state.items()}
        z = None
        if forces.prior is not None:
            z = continued(system, run.integrator, state, forces.prior.n_particles, MOVED_ON, seed=r)
        found.append(_observed(model, forces, state, z, seed=r))
    return found


def _observed(
    model: LatentEBM, forces: EnergyForces, flat: dict[str, Tensor], z: Tensor | None, seed: int
) -> Tensor:
    """Observations [n, 2] of latents, or of the fixed prior's."""
    layouts = forces.parameters.items()
    theta = {f"{name}.{k}": v for name, layout in layouts for k, v in layout.views(flat[name]).items()}
    g = generator(seed, "samples")
    with torch.no_grad():
        latents = model.sample_prior(theta, len(_held_out(model)), g) if z is None else z
        return model.sample_data(theta, latents, g)


def _distance(run: Run, y: Tensor) -> float:
    held_out = _held_out(_parts(run)[1]).double().numpy()
    n = min(len(y), len(held_out))
    return wasserstein(y.double().numpy()[:n], held_out[:n]) if y.isfinite().all() else np.inf


def _held_out(model: LatentEBM) -> Tensor:
    assert isinstance(model.held_out, Tensor)
    return model.held_out


def _parts(run: Run) -> tuple[BlockSystem, LatentEBM, EnergyForces]:
    assert isinstance(run.system, BlockSystem)
    system = run.system.to(run.dtype, torch.device("cpu"))
    forces = system.force_field
    assert isinstance(forces, EnergyForces)
    assert isinstance(forces.model, LatentEBM)
    return system, forces.model, forces


def between_data(dataset: str, n: int = 1000) -> Interval:
    """W_2 between two sets of n data, over five pairs."""
    pairs = [(planar(dataset, n, 100 + i).numpy(), planar(dataset, n, 200 + i).numpy()) for i in range(5)]
    return over_replicas([wasserstein(a, b) for a, b in pairs])


def table(results: Sequence[Result], level: float) -> str:
    """In Markdown."""
    rows = []
    for r in results:
        until = r.until(level)
        rows.append(
            {
                "": r.entrant.label,
                "W2 at the end": pm(over_replicas(r.distance.to_numpy()[-1]), digits=3),
                "moved on": pm(over_replicas(r.moved_on), digits=3),
                f"evaluations to {level:g}": "not all got there" if until is None else pm(until, digits=0),
                "steps": "" if until is None else f"{until.mean / r.evaluations:,.0f}",
                "seconds": f"{r.seconds:.0f}",
            }
        )
    return markdown(rows)


def draw(results: Sequence[Result], floor: float) -> Figure:
    """W_2 against gradient evaluations, mean and range over replicas."""
    figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    panel = figure.subplots()
    for number, r in enumerate(results):
        curve(panel, r.distance, r.entrant.label, colour=f"C{number}", scale=float(r.evaluations))
    panel.axhline(floor, color="0.4", lw=0.8, ls=":")
    at: Any = {"xycoords": ("axes fraction", "data"), "va": "bottom", "ha": "right"}
    panel.annotate("two sets of data", (0.99, floor), color="0.35", fontsize="small", **at)
    panel.set(xlabel="gradient evaluations", ylabel="W₂ to held-out data", ylim=(0, None))
    open_frame(panel)
    panel.legend(frameon=False, fontsize="small")
    return figure


def main() -> None:
    """The script."""
    options = parser(__doc__)
    options.add_argument("--dataset", choices=["mixture", "rings", "moons"], default="mixture")
    options.add_argument("--out", type=Path, default=Path("latent_priors.svg"), help="figure to write")
    everyone = range(len(ENTRANTS))
    options.add_argument(
        "--entrants", type=int, nargs="*", choices=everyone, default=everyone, help="which to run"
    )
    options.add_argument("--replicas", type=int, default=5)
    options.add_argument("--evaluations", type=int, default=12_000, help="gradient evaluations of each")
    options.add_argument("--level", type=float, default=0.3, help="of W2, for the time to it")
    given = options.parse_args()
    try:
        entrants = [ENTRANTS[i] for i in given.entrants]
        found = measure(
            entrants, dataset=given.dataset, evaluations=given.evaluations, replicas=given.replicas
        )
    except SdeflowError as error:
        options.error(str(error))
    floor = between_data(given.dataset)
    print(table(found, given.level))
    print(f"\nbetween two sets of data: {pm(floor, digits=3)}\n")
    write(given.out, draw(found, floor.mean))


if __name__ == "__main__":
    main()

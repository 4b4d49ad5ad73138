"""The kinetic energy of a path of probability: what a flow spends on taking its start to its end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from sdeflow.analysis.entropy import Estimate
from sdeflow.errors import SdeflowError

ROUGH = 1.02
"""How much more than in every other snapshot paths may spend in all. Of an ODE's paths it is more by three
times what is lost between snapshots; noise, which spends twice as much, is at most a 25th of the answer."""

ROUNDING = 1e-9
"""What paths at rest may spend, in the unit of their mean square over the time."""


class KineticEnergy(NamedTuple):
    """What paths spend, and what the same displacements would take along straight lines at constant speed.

    Both are at least W_2^2 of start and end over the time between; of optimal transport they are that.
    """

    spent: Estimate
    straight: Estimate


def kinetic_energy(run: xr.Dataset) -> KineticEnergy:
    """KE = int E|u_t(X_t)|^2 dt of a flow X' = u_t(X), from recorded paths of an ODE, with standard errors.

        KE ~ mean over paths of sum_k |x_{k+1} - x_k|^2 / (t_{k+1} - t_k)

    which is below by dt^2/12 int E|X''|^2 dt, dt the time between snapshots, and never below W_2^2 over the
    time. It is finite where second moments are, of PFGM++ with D > 2. Where an SDE has the same marginals
    this is not of its paths, which have noise: take the ODE's.

    run   a trajectory of a plain SDE: X (time[, replica], particle, latent)

    Raises SdeflowError for other trajectories, and where paths are rough: noise, or too few snapshots.
    Source: Shaul, Chen, Nickel, Le, Lipman 2023, arXiv:2306.06626.
    """
    if "X" not in run or {*run["X"].dims} - {"replica"} != {"time", "particle", "latent"}:
        raise SdeflowError("the kinetic energy is of a plain SDE's paths X, and this trajectory has none")
    if run.sizes["time"] < 5:
        raise SdeflowError(f"paths of at least 5 snapshots are needed, given {run.sizes['time']}: save more")
    paths = run["X"].transpose("time", ..., "latent").values.astype(np.float64)
    paths, time = paths.reshape(len(paths), -1, paths.shape[-1]), run["time"].values
    if not np.isfinite(paths).all():
        raise SdeflowError("the paths are not finite")
    spent, rounding = _spent(paths, time), ROUNDING * np.square(paths).sum(-1).mean() / np.ptp(time)
    if spent.mean() > ROUGH * _spent(paths[::2], time[::2]).mean() + rounding:
        raise SdeflowError(
            "the paths are rough between snapshots: take those of an ODE, without noise, and more snapshots"
        )
    return KineticEnergy(_mean(spent), _mean(_spent(paths[[0, -1]], time[[0, -1]])))


def _spent(paths: np.ndarray, time: np.ndarray) -> np.ndarray:
    """By each path, [n], of positions [time, n, d]."""
    squares = np.square(np.diff(paths, axis=0)).sum(-1)
    return (squares / np.diff(time)[:, None]).sum(0)


def _mean(values: np.ndarray) -> Estimate:
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))

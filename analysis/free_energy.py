"""The free energy of clouds of particles, in nats, with error bars.

    E(theta, q) = sum_i E_q_i[ log q_i(x) - l_i(theta, x) ],      l_i(theta, x) = log p_theta(x, y_i)
    F(theta, m, q) = sum_i E_q_i[ log q_i(x, u) - l_i(theta, x) - log r(u) ] + eta_theta |m|^2 / 2

with r = N(0, I/eta_x). The minimum of both is -log p_theta*(y) at theta*, the maximum of the marginal
likelihood. The expectation of l_i is an average over particles; the entropy of q_i is estimated by
`sdeflow.analysis.entropy` in one of two ways: 'gaussian' (a fit: exact for Gaussian clouds, too high for any
other) or 'knn' (nearest neighbours: any smooth density, at a cost in variance, and in bias once there are
more than a few coordinates). Particles are taken to be independent draws from q_i.

Source: Lim et al. 2024, arXiv:2312.07335.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike

from sdeflow.analysis.entropy import (
    CORRELATION,
    LOG_2PI,
    NEIGHBOURS,
    Array,
    Estimate,
    covariances,
    gaussian_fit,
    log_det_bias,
    neighbour_terms,
    refuse_not_finite,
)
from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.model.forces import ModelForces
from sdeflow.model.model import Model

Estimator = Literal["gaussian", "knn"]

# Energy of clouds ----------------------------------------------------------------------------------


def energy(
    x: ArrayLike, log_joint: ArrayLike, estimator: Estimator = "gaussian", k: int = NEIGHBOURS
) -> Estimate:
    """E of clouds x [D, N, d] at whose points l_i is log_joint [D, N].

    'gaussian'   the error is exact for Gaussian clouds and quadratic l_i, up to the fit's own noise:
                 error^2 = sum_i var_j(log q_i - l_i)/N + sum_k psi'((N-k)/2)/4 - d/(2N), the first term
                 (0 where q_i is the posterior) less d (d+3)/(2 N^2), which fitting q_i adds to it. For other
                 clouds E comes out too low by KL(q_i | its Gaussian fit), which the error does not know.
    'knn'        the error of `knn_entropy`, with the variance that of log q - l. Biases of the data add up,
                 and the variance of their sum's estimate, D var_i(b_i), is added.

    Raises SdeflowError where the estimator does, or for shapes that do not fit.
    """
    clouds, values = np.asarray(x, dtype=np.float64), np.asarray(log_joint, dtype=np.float64)
    if clouds.ndim != 3 or values.shape != clouds.shape[:2]:
        raise SdeflowError(
            "clouds [data, particles, coordinates] with one log-joint a particle were expected, given shapes "
            f"{clouds.shape} and {values.shape}: reshape them"
        )
    refuse_not_finite(clouds, "the clouds")
    refuse_not_finite(values, "the log-joint")
    if estimator == "gaussian":
        entropy, log_q, log_det = gaussian_fit(clouds)
        data, n, d = clouds.shape
        first_order = float((log_q - values).var(1, ddof=1).sum() / n) - data * d * (d + 3) / (2 * n**2)
        variance = max(first_order, 0.0) + data * max(log_det / 4 - d / (2 * n), 0.0)
        return Estimate(float(-(entropy + values.mean(1)).sum()), variance**0.5)
    if estimator == "knn":
        parts = [neighbour_terms(cloud, k) for cloud in clouds]
        terms = np.stack([minus_log_q for minus_log_q, _ in parts]) + values
        variance = CORRELATION * (terms.var(1, ddof=1) / clouds.shape[1]).sum()
        biases = np.array([bias for _, bias in parts])
        # A sum of biases may be small by chance: their spread over data tells by how much.
        chance = len(biases) * biases.var(ddof=1) if len(biases) > 1 else 0.0
        return Estimate(float(-terms.mean(1).sum()), float(variance + biases.sum() ** 2 + chance) ** 0.5)
    raise SdeflowError(
        f"there is no estimator '{estimator}': {did_you_mean(str(estimator), ['gaussian', 'knn'])}"
    )


def enriched_energy(
    x: ArrayLike,
    u: ArrayLike,
    log_joint: ArrayLike,
    *,
    m: ArrayLike,
    eta_theta: float,
    eta_x: float,
    estimator: Estimator = "gaussian",
    k: int = NEIGHBOURS,
) -> Estimate:
    """F of clouds x with momenta u, both [D, N, d], log_joint [D, N] as for `energy`, and momentum m [p].

    The entropy is that of the pairs (x, u), in 2 d coordinates; errors are raised as by `energy`.
    """
    positions, momenta = np.asarray(x, dtype=np.float64), np.asarray(u, dtype=np.float64)
    if positions.shape != momenta.shape or positions.ndim != 3:
        raise SdeflowError(
            f"momenta must have the shape of the clouds, given {momenta.shape} and {positions.shape}"
        )
    if not eta_theta > 0 or not eta_x > 0:
        raise SdeflowError(f"eta_theta and eta_x must be positive, given {eta_theta} and {eta_x}")
    log_r = (positions.shape[2] * (log(eta_x) - LOG_2PI) - eta_x * (momenta**2).sum(2)) / 2
    both = np.concatenate([positions, momenta], axis=2)
    value, error = energy(both, np.asarray(log_joint, dtype=np.float64) + log_r, estimator, k)
    return Estimate(value + eta_theta * float(np.sum(np.square(m))) / 2, error)


# The toy hierarchical model ------------------------------------------------------------------------


def toy_energy(mean: ArrayLike, covariance: ArrayLike, theta: float, y: ArrayLike, scale: float) -> float:
    """E of exactly Gaussian q_i on the model x_i ~ N(theta, s^2 I), y_i | x_i ~ N(x_i, I).

        E = sum_i KL(N(mean_i, covariance_i) | N(v (y_i + theta/s^2), v I)) - sum_i log N(y_i; theta, 1 + s^2)

    with v = 1/(1 + 1/s^2); mean [D, d], covariance [D, d, d], y [D, d].
    """
    y, covariance = np.asarray(y, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    v = 1 / (1 + 1 / scale**2)
    shift = np.asarray(mean, dtype=np.float64) - v * (y + theta / scale**2)
    trace = np.trace(covariance, axis1=1, axis2=2).sum()
    kl = (trace + (shift**2).sum()) / v - y.size * (1 - log(v)) - np.linalg.slogdet(covariance)[1].sum()
    return float(kl / 2 - _toy_log_marginal(y, theta, scale))


def toy_minimum(y: ArrayLike, scale: float) -> float:
    """E*, the least E on that model: -sum_i log N(y_i; mean y, 1 + s^2), coordinates being independent."""
    y = np.asarray(y, dtype=np.float64)
    return -_toy_log_marginal(y, float(y.mean()), scale)


def gaussian_energy(
    x: ArrayLike, theta: float, y: ArrayLike, scale: float, *, debiased: bool = True
) -> Estimate:
    """E of clouds x [D, N, d] on the toy model, taken to be Gaussian, from their sample moments and y [D, d].

    Put into `toy_energy` as they are, moments of N particles give an E that is too high by

        b = sum_i [ tr S_i / (2 N v) + (1/2) sum_k ( log((N-1)/2) - psi((N-k)/2) ) ],  about D d (d+3) / (4N)

    at q_i = the posterior: as much as 1 nat for D = N = 100, d = 1. `debiased` takes b off; otherwise b is
    part of the error. Errors are raised as by `energy`.
    """
    clouds, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if clouds.ndim != 3 or y.shape != (clouds.shape[0], clouds.shape[2]):
        raise SdeflowError(
            "clouds [data, particles, coordinates] and y [data, coordinates] were expected, given shapes "
            f"{clouds.shape} and {y.shape}"
        )
    data, n, d = clouds.shape
    prior = ((clouds - theta) ** 2).sum(2) / scale**2
    log_joint = -((clouds - y[:, None]) ** 2).sum(2) / 2 - prior / 2 - d * (LOG_2PI + log(scale))
    error = energy(clouds, log_joint).error
    covariance = covariances(clouds)
    value = toy_energy(clouds.mean(1), covariance, theta, y, scale)
    trace = float(np.trace(covariance, axis1=1, axis2=2).sum())
    bias = trace * (1 + 1 / scale**2) / (2 * n) - data * log_det_bias(n, d) / 2
    return Estimate(value - bias, error) if debiased else Estimate(value, (error**2 + bias**2) ** 0.5)


def _toy_log_marginal(y: Array, theta: float, scale: float) -> float:
    variance = 1 + scale**2
    return float(-(y.size * (LOG_2PI + log(variance)) + ((y - theta) ** 2).sum() / variance) / 2)


# Along a trajectory --------------------------------------------------------------------------------


def energy_along(dataset: xr.Dataset, model: Model, estimator: Estimator = "gaussian") -> xr.DataArray:
    """E(time[, replica]) of a saved trajectory, with its standard error as the coordinate 'error'.

    theta and all data must be saved; of the particles a part will do, for any are as good as the others.
    Values are NaN where the state is not finite. Raises SdeflowError where something is not saved, or is not
    of this model, or as `energy` does.
    """
    return _along(dataset, model, ("theta", "X"), lambda s, logs: energy(s["X"], logs, estimator), estimator)


def enriched_along(
    dataset: xr.Dataset,
    model: Model,
    *,
    eta_theta: float,
    eta_x: float,
    estimator: Estimator = "gaussian",
) -> xr.DataArray:
    """F(time[, replica]), like `energy_along`, of a trajectory of a system with momenta m and U."""

    def of(s: dict[str, Array], logs: Array) -> Estimate:
        return enriched_energy(
            s["X"], s["U"], logs, m=s["m"], eta_theta=eta_theta, eta_x=eta_x, estimator=estimator
        )

    return _along(dataset, model, ("theta", "X", "m", "U"), of, estimator)


def _along(
    dataset: xr.Dataset,
    model: Model,
    names: tuple[str, ...],
    of: Callable[[dict[str, Array], Array], Estimate],
    estimator: str,
) -> xr.DataArray:
    if missing := [name for name in names if name not in dataset]:
        raise SdeflowError(
            f"the dataset has no {', '.join(missing)}: a trajectory of particles was expected, with theta "
            "saved whole (raise save.theta_max)"
        )
    forces = ModelForces(model, dataset.sizes["particle"]).to(torch.float64, torch.device("cpu"))
    expected = {"datum": forces.n_data, "latent": forces.latent, "param": forces.parameters.size}
    for dim, size in expected.items():
        if dataset.sizes[dim] != size:
            raise SdeflowError(
                f"all {size} entries of the axis '{dim}' of the model are needed, the dataset has "
                f"{dataset.sizes[dim]}: give the model of this run, and save with Save(data='all')"
            )
    lead = [dim for dim in ("time", "replica") if dim in dataset["X"].dims]
    state = {
        name: dataset[name].transpose(*lead, ...).to_numpy().astype(np.float64, copy=False) for name in names
    }
    shape = tuple(dataset.sizes[dim] for dim in lead)
    values, errors = np.full(shape, np.nan), np.full(shape, np.nan)
    for at in np.ndindex(shape):
        here = {name: value[at] for name, value in state.items()}
        if not all(np.isfinite(value).all() for value in here.values()):
            continue
        x = torch.from_numpy(np.ascontiguousarray(here["X"])).view(*here["X"].shape[:2], *model.latent_shape)
        with torch.no_grad():
            theta = forces.parameters.views(torch.from_numpy(here["theta"]))
            logs = forces.model.log_joint(theta, x, forces.model.data)
        values[at], errors[at] = of(here, logs.numpy())
    coords = {name: c for name, c in dataset.coords.items() if set(c.dims) <= set(lead)}
    about = {"long_name": f"free energy, {estimator} estimate", "units": "nat"}
    result = xr.DataArray(values, coords, lead, name="free_energy", attrs=about)
    error = xr.DataArray(errors, dims=lead, attrs={"long_name": "standard error", "units": "nat"})
    return result.assign_coords(error=error)

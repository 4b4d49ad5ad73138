"""Differential entropy of a cloud of particles, in nats, with error bars: by a fit or by neighbours."""

from __future__ import annotations

from math import lgamma, log, pi
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from scipy.special import digamma, polygamma

from sdeflow.errors import SdeflowError

Array = NDArray[np.float64]

LOG_2PI = log(2 * pi)

NEIGHBOURS = 3
"""The neighbour whose distance 'knn' takes. Of the first the distances are 4 times as variable (psi'(k))."""

CORRELATION = 2.0
"""How much larger the variance of a mean of nearest-neighbour terms is taken to be than of independent ones.

Neighbours share their distances: measured on Gaussian clouds, 1.1 to 1.8 up to 5 coordinates and 2.5 in 10,
where the bias is what counts."""


class Estimate(NamedTuple):
    """A number and its standard error, which includes an estimate of the bias where there is one."""

    value: float
    error: float


def gaussian_entropy(x: ArrayLike) -> Estimate:
    """Differential entropy of the Gaussian that a cloud [n, d] (or [n]) was drawn from.

        H = (1/2) ( d log(2 pi e) + log det S - b ),   b = sum_{k=1..d} psi((n-k)/2) - log((n-1)/2)

    with S the sample covariance (divisor n-1). It is unbiased, and var H = (1/4) sum_k psi'((n-k)/2); both
    are exact, for (n-1) S is Wishart. For a cloud that is not Gaussian it estimates an upper bound.

    Raises SdeflowError for fewer than d + 2 points, or points in a plane.
    Source: Misra, Singh, Demchuk 2005, doi:10.1016/j.jmva.2003.10.003.
    """
    cloud = as_cloud(x)
    entropy, _, _ = gaussian_fit(cloud[None])
    return Estimate(float(entropy[0]), log_det_variance(*cloud.shape) ** 0.5 / 2)


def knn_entropy(x: ArrayLike, k: int = NEIGHBOURS) -> Estimate:
    """Differential entropy of a cloud [n, d] (or [n]) by distances e_j to the k-th neighbour.

        H = psi(n) - psi(k) + log c_d + (d/n) sum_j log e_j,     c_d the volume of the unit ball

    taken after the cloud is made to have unit covariance, for the bias is least in round clouds. The error is

        error^2 = CORRELATION var(terms)/n + b^2,     b = (H_n - H_{n/2}) / (2^r - 1)

    with b what extrapolation from two halves to infinitely many points at the rate n^-r would add; r = 1 in
    one coordinate, else 2/max(d, 4). Inside smooth densities the rate is 2/d, but tails and edges slow it.
    b is not added to H: in many coordinates it is several times the bias, and of the other sign.

    Raises SdeflowError for fewer than 10 max(k+1, d) points (halves must carry k neighbours and resolve d
    directions), or points that coincide, of which no density has any.
    Source: Kozachenko, Leonenko 1987; Kraskov et al. 2004, arXiv:cond-mat/0305641 (any k).
    """
    cloud = as_cloud(x)
    terms, bias = neighbour_terms(cloud, k)
    variance = CORRELATION * terms.var(ddof=1) / len(cloud)
    return Estimate(float(terms.mean()), float(variance + bias**2) ** 0.5)


# Parts ---------------------------------------------------------------------------------------------


def as_cloud(x: ArrayLike, what: str = "a cloud") -> Array:
    """A cloud as [n, d] float64, of [n, d] or [n]; SdeflowError for other shapes and values not finite."""
    cloud = np.asarray(x, dtype=np.float64)
    cloud = cloud[:, None] if cloud.ndim == 1 else cloud
    if cloud.ndim != 2 or 0 in cloud.shape:
        raise SdeflowError(f"{what} must have shape [points, coordinates], given {np.shape(x)}: reshape it")
    refuse_not_finite(cloud, what)
    return cloud


def refuse_not_finite(x: Array, what: str) -> None:
    """Raises SdeflowError where a value is not a finite number."""
    if bad := int((~np.isfinite(x)).sum()):
        raise SdeflowError(f"{what} must be finite, {bad} of {x.size} values are not: drop what has diverged")


def covariances(clouds: Array) -> Array:
    """Sample covariances [D, d, d] of clouds [D, N, d]; SdeflowError where one is singular."""
    n, d = clouds.shape[1:]
    if n < d + 2:
        raise SdeflowError(f"a Gaussian fit in {d} coordinates needs at least {d + 2} points, given {n}")
    centred = clouds - clouds.mean(1, keepdims=True)
    covariance = np.einsum("ijk,ijl->ikl", centred, centred) / (n - 1)
    spread = np.linalg.eigvalsh(covariance)
    if (flat := spread[:, 0] <= 1e-14 * spread[:, -1]).any():
        raise SdeflowError(
            f"cloud {int(np.argmax(flat))} lies in a plane, or in one point, and has no density: leave out "
            "coordinates that others determine, or snapshots before the particles have spread"
        )
    return covariance


def log_det_bias(n: int, d: int) -> float:
    """E[log det S] - log det Sigma of n points in d coordinates."""
    return float((digamma((n - np.arange(1, d + 1)) / 2) - log((n - 1) / 2)).sum())


def log_det_variance(n: int, d: int) -> float:
    return float(polygamma(1, (n - np.arange(1, d + 1)) / 2).sum())


def gaussian_fit(clouds: Array) -> tuple[Array, Array, float]:
    """Entropies [D], log densities of the fits at the particles [D, N], and the variance of log det S."""
    _, n, d = clouds.shape
    covariance = covariances(clouds)
    centred = (clouds - clouds.mean(1, keepdims=True)).swapaxes(1, 2)
    squares = (np.linalg.solve(np.linalg.cholesky(covariance), centred) ** 2).sum(1)
    log_det = np.linalg.slogdet(covariance)[1] - log_det_bias(n, d)
    entropy = (d * (LOG_2PI + 1) + log_det) / 2
    log_q = -(d * LOG_2PI + log_det[:, None] + squares) / 2
    return entropy, log_q, log_det_variance(n, d)


def neighbour_terms(cloud: Array, k: int) -> tuple[Array, float]:
    """Estimates of -log q at the points of one cloud [n, d], whose mean is H, and H's bias estimate."""
    n, d = cloud.shape
    least = 10 * max(k + 1, d)
    if k < 1 or n < least:
        raise SdeflowError(
            f"the entropy by neighbour {k} in {d} coordinates needs k >= 1 and at least 10 max(k+1, d) = "
            f"{least} points, given {n}: use more particles, or the 'gaussian' estimator"
        )
    if (copies := n - len(np.unique(cloud, axis=0))) > 0:
        raise SdeflowError(
            f"{copies} of {n} points are exact copies of others, and draws from a density are not: leave out "
            "repeated particles, or run in float64"
        )
    factor = np.linalg.cholesky(covariances(cloud[None])[0])
    unit = np.linalg.solve(factor, (cloud - cloud.mean(0)).T).T
    volume = d / 2 * log(pi) - lgamma(d / 2 + 1) + float(np.log(np.diag(factor)).sum())

    def terms(part: Array) -> Array:
        distance = np.asarray(cKDTree(part).query(part, k + 1)[0])[:, k]
        return d * np.log(distance) + volume + digamma(len(part)) - digamma(k)

    whole = terms(unit)
    halves = (terms(unit[::2]).mean() + terms(unit[1::2]).mean()) / 2
    rate = 1.0 if d == 1 else 2 / max(d, 4)
    return whole, float((whole.mean() - halves) / (2**rate - 1))

"""Distances between clouds of particles and laws: Wasserstein, sliced, MMD; and diagnostics of chains.

    W_p(a, b)^p = min over couplings of E |x - y|^p

Clouds are arrays [n, d] (or [n]) of equally weighted points. A cloud is refused with an SdeflowError where
its shape does not fit or a value is not finite.

Source: Peyre, Cuturi 2019, arXiv:1803.00567; the functions name others.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from math import sqrt
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment, linprog
from scipy.spatial.distance import cdist
from scipy.special import ndtri

from sdeflow.analysis.entropy import Array, Estimate, as_cloud
from sdeflow.errors import SdeflowError

MOST_PAIRS = {"assignment": 16_000_000, "linear programme": 250_000, "network simplex": 400_000_000}
"""Pairs of points up to which couplings are solved for: seconds to a few minutes, and below 1 GiB."""

POT_FROM = 250_000
"""Pairs from which POT's network simplex is taken, where it is installed: it is then faster."""


# Wasserstein ---------------------------------------------------------------------------------------


def wasserstein(a: ArrayLike, b: ArrayLike, p: float = 2) -> float:
    """W_p between two clouds [n, d] and [m, d], exactly.

    In one coordinate by quantiles, for any sizes; else by the best assignment for equal sizes and a linear
    programme for others. Larger clouds need POT (0.9.7, of the extra `analysis`), whose network simplex takes
    W_1 and W_2 of any sizes. `python -m sdeflow.analysis.studies.transport` measures seconds of one core for
    two Gaussian clouds in the plane, up to 110, and errors of W_2 (of sliced_w2 its own):

        n        network simplex   assignment   entropic_w2, 0.05   sliced_w2, 200 directions
        500      0.051             0.081        2.3, +6.3%          0.004, ± 2.2%
        1,000    0.23              0.54         4.5, +7.1%          0.008, ± 1.9%
        2,000    1.1               5.7          15, +7.7%           0.018, ± 2.1%
        5,000    9.2               not taken    left                0.054, ± 2.1%
        10,000   43                not taken    left                0.13, ± 2.1%
        20,000   left              not taken    left                0.32, ± 2.1%

    An entropic coupling is not the faster way. To begin the simplex with the duals of the snapshot before
    saved a fifth of its time where points had moved by a hundredth of the clouds' width, and nothing at a
    tenth, so that is not offered. As distances of the laws behind, those of samples are too large: by about
    n^(-1/d) for more than two coordinates.

    Raises SdeflowError for more pairs of points than MOST_PAIRS, with what to install.
    """
    x, y = _pair(a, b)
    if not 1 <= p < float("inf"):
        raise SdeflowError(f"p must be at least 1 and finite, given {p}")
    if x.shape[1] == 1:
        i, j, weight = _quantile_coupling(len(x), len(y))
        gap = np.abs(np.sort(x[:, 0])[i] - np.sort(y[:, 0])[j])
        return float((weight * gap**p).sum() ** (1 / p))
    simplex = _network_simplex() if p in (1, 2) and len(x) * len(y) > POT_FROM else None
    way = "network simplex" if simplex else "assignment" if len(x) == len(y) else "linear programme"
    if len(x) * len(y) > MOST_PAIRS[way]:
        better = "" if simplex or p not in (1, 2) else "pip install 'POT>=0.9.7', or "
        raise SdeflowError(
            f"the exact distance of {len(x)} and {len(y)} points is too much for the {way} (up to "
            f"{MOST_PAIRS[way]:,} pairs): {better}use sliced_w2, or fewer points"
        )
    if simplex:
        metric = "sqeuclidean" if p == 2 else "euclidean"
        value, log = simplex(x, y, metric=metric, numItermax=10**9, log=True, return_matrix=False)
        if log.get("warning"):
            raise SdeflowError(f"POT's network simplex failed ({log['warning']}): use sliced_w2")
        return max(float(value), 0.0) ** (1 / p)
    cost = cdist(x, y) ** p
    if len(x) == len(y):
        rows, columns = linear_sum_assignment(cost)
        return float(cost[rows, columns].mean() ** (1 / p))
    return float(_transport(cost) ** (1 / p))


def gaussian_w2(
    mean_a: ArrayLike, covariance_a: ArrayLike, mean_b: ArrayLike, covariance_b: ArrayLike
) -> float:
    """W_2 of two Gaussians, means [d] and covariances [d, d] (or numbers):

        W_2^2 = |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A^(1/2) B A^(1/2))^(1/2)

    computed as |mean_a - mean_b|^2 + min over orthogonal U of |A^(1/2) - B^(1/2) U|^2, which is the same and
    loses no digits between near equals. Raises SdeflowError for covariances that are none.
    Source: Dowson, Landau 1982; Bhatia, Jain, Lim 2019, arXiv:1712.01504.
    """
    shift = np.atleast_1d(np.asarray(mean_a, dtype=np.float64) - np.asarray(mean_b, dtype=np.float64))
    a, b = _root(covariance_a), _root(covariance_b)
    if not len(a) == len(b) == len(shift):
        raise SdeflowError(
            "means and covariances must be of one number of coordinates, given covariances of "
            f"{len(a)} and {len(b)}, means of {len(shift)}"
        )
    left, _, right = np.linalg.svd(b @ a)
    return sqrt(float((shift**2).sum() + ((a - b @ left @ right) ** 2).sum()))


def w2_to_gaussian_1d(x: ArrayLike, mean: float = 0.0, std: float = 1.0) -> float:
    """W_2 between a cloud [n] in one coordinate and N(mean, std^2), exactly.

        W_2^2 = integral_0^1 (F^-1(t) - Q(t))^2 dt = sum_i [ (x_(i) - c_i)^2 / n + v_i ]

    with c_i the mean of the Gaussian's quantiles over ((i-1)/n, i/n), and v_i the integral of (Q - c_i)^2.
    """
    points = np.sort(as_cloud(x).ravel())
    if as_cloud(x).shape[1] != 1 or not std > 0:
        raise SdeflowError(
            f"points in one coordinate and a positive std were expected, given {np.shape(x)} and {std}"
        )
    n = len(points)
    z = ndtri(np.arange(n + 1) / n)
    density = np.exp(-(z**2) / 2) / sqrt(2 * np.pi)
    centre = n * (density[:-1] - density[1:])
    spread = 1 - float((centre**2).mean())
    return sqrt(float(((points - mean - std * centre) ** 2).mean()) + std**2 * max(spread, 0.0))


def sliced_w2(a: ArrayLike, b: ArrayLike, *, projections: int = 200, seed: int = 0) -> Estimate:
    """Sliced W_2: the root mean square of W_2 between the clouds' projections on random directions.

        SW_2^2 = E_u W_2(u.a, u.b)^2,   u uniform on the sphere

    The error is that of finitely many directions, none in one coordinate; the clouds are taken as they are.
    Raises SdeflowError for fewer than 2 projections.
    Source: Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3.
    """
    x, y = _pair(a, b)
    if projections < 2:
        raise SdeflowError(f"projections must be at least 2, given {projections}")
    if x.shape[1] == 1:
        return Estimate(wasserstein(x, y), 0.0)
    u = np.random.default_rng(seed).standard_normal((projections, x.shape[1]))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    i, j, weight = _quantile_coupling(len(x), len(y))
    squares = np.empty(projections)
    for k, direction in enumerate(u):  # one after the other: sorted clouds side by side take much memory
        squares[k] = (weight * (np.sort(x @ direction)[i] - np.sort(y @ direction)[j]) ** 2).sum()
    value = sqrt(float(squares.mean()))
    error = float(squares.std(ddof=1)) / sqrt(projections)
    return Estimate(value, error / (2 * value) if value > 0 else 0.0)


def entropic_w2(a: ArrayLike, b: ArrayLike, *, regularisation: float = 0.05) -> float:
    """The root of E |x - y|^2 under the entropic coupling, at or above W_2; for some thousand points.

    regularisation   in units of the mean squared distance of the clouds' points; the smaller, the closer to
                     W_2 and the slower

    Raises SdeflowError where POT is not installed, or Sinkhorn's iteration does not converge.
    Source: Cuturi 2013, arXiv:1306.0895.
    """
    x, y = _pair(a, b)
    if not regularisation > 0:
        raise SdeflowError(f"regularisation must be positive, given {regularisation}")
    ot = optional("ot", "POT")
    cost = cdist(x, y, "sqeuclidean")
    uniform = [np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))]
    options = {"method": "sinkhorn_log", "numItermax": 10_000, "stopThr": 1e-9, "warn": False, "log": True}
    plan, log = ot.sinkhorn(*uniform, cost, regularisation * max(float(cost.mean()), 1e-300), **options)
    if not log["err"][-1] < 1e-6:
        raise SdeflowError(
            f"Sinkhorn's iteration is off by {log['err'][-1]:.1e} after {options['numItermax']:,} rounds, "
            "1e-6 was expected: raise regularisation"
        )
    return sqrt(float((plan * cost).sum()))


# Kernels -------------------------------------------------------------------------------------------


def mmd(a: ArrayLike, b: ArrayLike, bandwidth: float | None = None) -> Estimate:
    """Squared maximum mean discrepancy with the kernel k(x, y) = exp(-|x-y|^2 / (2 s^2)), unbiased.

        MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_ij k(x_i, y_j)

    It is below 0 half the time where the laws are equal. The error is the jackknife's over points of both.

    bandwidth   s (default: the median distance between points of both clouds together)

    Raises SdeflowError for fewer than 3 points.
    Source: Gretton et al. 2012, JMLR 13:723.
    """
    x, y = _pair(a, b)
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise SdeflowError(f"at least 3 points in each cloud are needed, given {n} and {m}")
    xx, yy, xy = (cdist(*pair, "sqeuclidean") for pair in ((x, x), (y, y), (x, y)))
    if bandwidth is None:
        apart = [xx[np.triu_indices(n, 1)], yy[np.triu_indices(m, 1)], xy.ravel()]
        bandwidth = sqrt(float(np.median(np.concatenate(apart))))
    if not bandwidth > 0:
        raise SdeflowError(f"bandwidth must be positive, found or given {bandwidth}: give one")
    xx, yy, xy = (np.exp(squares / (-2 * bandwidth**2)) for squares in (xx, yy, xy))
    # Sums over all pairs, and what leaving out one point takes from them.
    in_x, in_y, across_x, across_y = xx.sum(1) - 1, yy.sum(1) - 1, xy.sum(1), xy.sum(0)
    sx, sy, sxy = in_x.sum(), in_y.sum(), xy.sum()
    value = sx / (n * (n - 1)) + sy / (m * (m - 1)) - 2 * sxy / (n * m)
    less_x = (sx - 2 * in_x) / ((n - 1) * (n - 2)) - 2 * (sxy - across_x) / ((n - 1) * m)
    less_y = (sy - 2 * in_y) / ((m - 1) * (m - 2)) - 2 * (sxy - across_y) / (n * (m - 1))
    return Estimate(float(value), sqrt((n - 1) * less_x.var() + (m - 1) * less_y.var()))


# Chains --------------------------------------------------------------------------------------------


def ess(draws: ArrayLike) -> float:
    """Effective sample size (bulk) of draws [chain, draw] of one number, by arviz.

    Raises SdeflowError where arviz is not installed. Source: Vehtari et al. 2021, arXiv:1903.08008.
    """
    return float(optional("arviz", "arviz").ess(_chains(draws)))


def rhat(draws: ArrayLike) -> float:
    """Rank-normalised split R-hat of draws [chain, draw] of one number, by arviz; raises like `ess`."""
    return float(optional("arviz", "arviz").rhat(_chains(draws)))


# On datasets ---------------------------------------------------------------------------------------


def along(particles: xr.DataArray, distance: Callable[[Array], float | Estimate]) -> xr.DataArray:
    """`distance(cloud [N, d])` of every cloud of a trajectory's X, over its dims but particle and latent.

    For example `along(run["X"].isel(datum=0), lambda x: wasserstein(x, reference))`. Where the distance is an
    Estimate, its error becomes the coordinate 'error'.
    Raises SdeflowError for an array without those dims.
    """
    if missing := {"particle", "latent"} - set(particles.dims):
        raise SdeflowError(f"dims particle and latent were expected, {sorted(missing)} missing: give X or U")

    def both(cloud: Array) -> Array:
        found = distance(cloud)
        return np.array(found if isinstance(found, tuple) else (found, np.nan), dtype=np.float64)

    result = xr.apply_ufunc(
        both, particles, input_core_dims=[["particle", "latent"]], output_core_dims=[["of"]], vectorize=True
    )
    value, error = result.isel(of=0), result.isel(of=1)
    return value if error.isnull().all() else value.assign_coords(error=error.variable)


# Parts ---------------------------------------------------------------------------------------------


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    x, y = as_cloud(a), as_cloud(b)
    if x.shape[1] != y.shape[1]:
        raise SdeflowError(
            f"clouds must have the same number of coordinates, given {x.shape[1]} and {y.shape[1]}"
        )
    return x, y


def _quantile_coupling(n: int, m: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Which of n and of m sorted points are matched, and with what mass: sizes need not be equal."""
    # Mass in whole multiples of 1/(n m), so that no rounding makes an empty match.
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    starts = np.concatenate([[0], ends[:-1]])
    return starts // m, starts // n, (ends - starts) / (n * m)


def _network_simplex() -> Any:
    """POT's solver, which takes points and keeps no matrix of costs; None where it is not there."""
    try:
        return getattr(import_module("ot").lp, "emd2_lazy", None)
    except ImportError:
        return None


def _transport(cost: Array) -> float:
    """The least cost of moving mass 1/n in each row to 1/m in each column."""
    n, m = cost.shape
    rows = scipy.sparse.kron(scipy.sparse.eye_array(n), np.ones((1, m)))
    columns = scipy.sparse.kron(np.ones((1, n)), scipy.sparse.eye_array(m))
    sums: Any = scipy.sparse.vstack([rows, columns]).tocsr()
    mass = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    found = linprog(cost.ravel(), A_eq=sums, b_eq=mass, method="highs")
    if not found.success or found.fun is None:
        raise SdeflowError(f"the linear programme failed ({found.message}): use clouds of equal size")
    return max(float(found.fun), 0.0)


def _root(covariance: ArrayLike) -> Array:
    """The symmetric square root; SdeflowError for a matrix that is no covariance."""
    matrix = np.atleast_2d(np.asarray(covariance, dtype=np.float64))
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not square or not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T):
        raise SdeflowError(f"a finite symmetric covariance [d, d] was expected, given shape {matrix.shape}")
    spread, directions = np.linalg.eigh((matrix + matrix.T) / 2)
    if spread[0] < -1e-10 * max(spread[-1], 1e-300):
        raise SdeflowError(f"a covariance has no negative eigenvalue, given one of {spread[0]:.3g}")
    return (directions * np.sqrt(np.maximum(spread, 0))) @ directions.T


def _chains(draws: ArrayLike) -> Array:
    array = np.asarray(draws, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 4:
        raise SdeflowError(f"draws [chain, draw], at least 4 a chain, were expected, given {array.shape}")
    return array


def optional(module: str, package: str) -> Any:
    """A module of an optional package; raises SdeflowError, with what to install, where it is not there."""
    try:
        return import_module(module)
    except ImportError as error:
        raise SdeflowError(f"{package} is needed here and not installed: pip install {package}") from error

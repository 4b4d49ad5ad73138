"""Kalman's filter and smoother: the exact answer of the linear-Gaussian state space model, `StateSpace`.

    x_0 ~ N(0, I),  x_t = A x_(t-1) + c + N(0, diag q),  y_t = x_t + N(0, diag r)

Of series y [D, T, d], which share their parameters: a mapping theta of a [d, d], log_q, log_r and c [d], all
of them, as `StateSpace.complete` gives. Arrays of NumPy or tensors; all in float64, at T steps of d x d.

Source: Kalman 1960; Rauch, Tung, Striebel 1965; the lag-one covariances of Shumway, Stoffer 1982.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

from sdeflow.analysis import path_statistics
from sdeflow.analysis.path_statistics import Statistics
from sdeflow.errors import SdeflowError

Array = NDArray[np.float64]

SETTLED = 1e-7
"""A score this small in every parameter is a maximum."""


class Smoothed(NamedTuple):
    """The law of paths given all of y, and log p(y).

    log_likelihood  of each series, [D]
    mean            E[x_t | y], [D, T, d]
    covariance      Cov(x_t | y), [T, d, d], the same for every series
    lagged          Cov(x_t, x_(t-1) | y), [T - 1, d, d]
    """

    log_likelihood: Array
    mean: Array
    covariance: Array
    lagged: Array


class Maximum(NamedTuple):
    """The MLE: all parameters by name, and log p(y) there, of all series."""

    theta: dict[str, Array]
    log_likelihood: float


def smoothed(y: Any, theta: Mapping[str, Any]) -> Smoothed:
    """Likelihood, means, variances and lag-one covariances of series y [D, T, d]."""
    y, own = np.asarray(y, np.float64), _arrays(theta)
    a, q, r = own["a"], np.diag(np.exp(own["log_q"])), np.diag(np.exp(own["log_r"]))
    mean, covariance = np.zeros_like(y[:, 0]), np.eye(y.shape[2])
    means, covariances, predicted, value = [], [], [], np.zeros(len(y))
    for t in range(y.shape[1]):
        if t:
            mean, covariance = mean @ a.T + own["c"], a @ covariance @ a.T + q
        predicted.append((mean, covariance))
        spread = covariance + r
        residual = y[:, t] - mean
        solved = np.linalg.solve(spread, residual.T).T
        volume = np.linalg.slogdet(2 * np.pi * spread)[1]
        value -= ((residual * solved).sum(1) + volume) / 2
        mean = mean + solved @ covariance
        covariance = covariance - covariance @ np.linalg.solve(spread, covariance)
        means.append(mean)
        covariances.append(covariance)
    lagged = []
    for t in range(y.shape[1] - 2, -1, -1):
        ahead, spread = predicted[t + 1]
        gain = np.linalg.solve(spread, a @ covariances[t]).T
        lagged.append(covariances[t + 1] @ gain.T)
        means[t] = means[t] + (means[t + 1] - ahead) @ gain.T
        covariances[t] = covariances[t] + gain @ (covariances[t + 1] - spread) @ gain.T
    return Smoothed(value, np.stack(means, 1), np.stack(covariances), np.array(lagged[::-1]))


def expected(y: Any, path: Smoothed) -> Statistics:
    """The sums of a law of paths, of all series: of `smoothed`, the step E of EM, exact."""
    y = np.asarray(y, np.float64)
    series, times, d = y.shape
    z = np.ones((series, times - 1, 2 * d + 1))
    z[..., :d], z[..., d:-1] = path.mean[:, 1:], path.mean[:, :-1]
    pairs = np.einsum("ntk,ntl->kl", z, z)
    late, early = slice(d), slice(d, 2 * d)
    pairs[late, late] += series * path.covariance[1:].sum(0)
    pairs[early, early] += series * path.covariance[:-1].sum(0)
    pairs[late, early] += series * path.lagged.sum(0)
    pairs[early, late] += series * path.lagged.sum(0).T
    misfit = np.square(y - path.mean).sum((0, 1)) + series * np.diag(path.covariance.sum(0))
    return Statistics(pairs, misfit, series * times)


def score(y: Any, theta: Mapping[str, Any]) -> dict[str, Array]:
    """The gradient of log p(y) of all series in every parameter, by Fisher's identity."""
    own = _arrays(theta)
    return path_statistics.score(expected(y, smoothed(y, own)), own)


def maximum(y: Any, theta: Mapping[str, Any], learn: Sequence[str]) -> Maximum:
    """The MLE of the parameters in `learn`, from theta on, the others held: by the score, in few steps.

    Raises SdeflowError where the score does not fall below 1e-7, as where the likelihood is greatest at
    r = 0 or q = 0, whose log runs off.
    """
    y, own = np.asarray(y, np.float64), _arrays(theta)
    sizes = np.cumsum([own[name].size for name in learn])[:-1]

    def at(flat: Array) -> dict[str, Array]:
        parts = zip(learn, np.split(flat, sizes), strict=True)
        return own | {name: part.reshape(own[name].shape) for name, part in parts}

    def loss(flat: Array) -> float:
        with np.errstate(all="ignore"):
            try:
                value = -float(smoothed(y, at(flat)).log_likelihood.sum())
            except np.linalg.LinAlgError:
                return np.inf
        return value if np.isfinite(value) else np.inf

    def slope(flat: Array) -> Array:
        found = score(y, at(flat))
        return -np.concatenate([found[name].ravel() for name in learn])

    start = np.concatenate([own[name].ravel() for name in learn])
    near = scipy.optimize.minimize(loss, start, jac=slope, method="BFGS").x
    best = scipy.optimize.root(
        slope, near, tol=1e-12
    ).x  # values of the loss are too coarse for the last digits
    if not np.abs(slope(best)).max() < SETTLED or loss(best) > loss(near) + SETTLED:
        ends = ", ".join(f"{name} = {np.array2string(at(near)[name], precision=3)}" for name in learn)
        raise SdeflowError(
            f"the likelihood of these series has no maximum that is found: it still grows at {ends}. Hold "
            "a log that runs off, or take more data"
        )
    return Maximum(at(best), -loss(best))


def _arrays(theta: Mapping[str, Any]) -> dict[str, Array]:
    """All four parameters in float64; raises SdeflowError where one is not there."""
    names = ("a", "log_q", "log_r", "c")
    if missing := [name for name in names if name not in theta]:
        raise SdeflowError(
            f"all of {', '.join(names)} are needed, and {', '.join(missing)} is not there: give what "
            "StateSpace.complete(theta) gives"
        )
    return {name: np.asarray(theta[name], np.float64) for name in names}

"""Decaying modes fitted to a series in noise: the pieces of which sdeflow.analysis.rates makes a rate.

    y_r(t) = c_r + sum over modes j of a_rj exp(-s_j t) + noise

for replicas r. The exponents s_j, p of them, are common to all replicas; amplitudes and limits are each
replica's own. Modes come in pairs, with two parameters b and d for s = b ± i sqrt(d), so that two real modes
(d < 0) become an oscillating one (d > 0) smoothly, and one real mode more where p is odd.

start    the matrix pencil: eigenvalues of the shift on the leading singular vectors of all windows of the
         series (Hua, Sarkar 1990; Roy, Kailath 1989)
fit      least squares in the exponents, the amplitudes being linear (variable projection; Golub, Pereyra
         1973), weighted by the inverse of the noise's covariance. Noise of these systems swings and decays
         with the modes themselves, so that unweighted it would be taken for more modes
noise    an autoregression of order 6 at most (`whitening`)
order    the p of the least Bayesian information criterion, p growing until it rises
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.signal
from numpy.typing import NDArray

Series = NDArray[np.float64]
Whitening = Callable[[Series], Series]

MOST_MODES, MOST_LAGS = 4, 6

PENCIL_POINTS = 200
"""Points that the pencil sees, which need only find the valley of the least squares; and a power's fit."""


class Fit(NamedTuple):
    """The slowest mode of a fit: rate and angular frequency (0: none) per unit of t.

    influence   [R, 2], on rate and frequency: what each replica's noise has moved them by, times R, to first
                order; the standard error is that of the mean of R such values
    order       p
    """

    rate: float
    frequency: float
    influence: Series
    order: int


def slowest_mode(t: Series, y: Series, whiten: Whitening, *, free: bool) -> Fit | None:
    """The slowest mode of y [n, R] at evenly spaced t [n] from 0, by the order that suits.

    free   fit each replica's limit too; otherwise it is 0

    None where no order gives a rate: it is to fall by an e-fold within the series at least, and its standard
    error is to be less than a tenth of it.
    """
    replicas, best, last, chosen = y.shape[1], np.inf, np.inf, None
    for order in range(1, min(MOST_MODES, len(t) // 4) + 1):
        found, squares = _least_squares(t, y, whiten, _pencil(t, y, order), free)
        count = order + replicas * (order + free)
        criterion = y.size * np.log(max(squares, 1e-300)) + count * np.log(y.size)
        error = found.influence[:, 0].std() / np.sqrt(max(1, replicas - 1))
        if criterion < best and found.rate * t[-1] > 1 and error < found.rate / 10:
            best, chosen = criterion, found
        if criterion > last:
            break
        last = criterion
    return chosen


def power_law(t: Series, y: Series, noise: float, *, free: bool) -> tuple[float, float, float]:
    """A (t + s)^-p, with a limit where it is free, fitted to y [n]: p, the growth of t + s, the misfit.

    Over points evenly spread in log t, weighted by 1/(|y| + 5 deviations of the noise), so that all of the
    fall counts; the misfit is the root of the mean square of what is left, so weighted.
    """
    at = np.unique(np.geomspace(1, len(t), PENCIL_POINTS).astype(int)) - 1
    since, y = t[at] - t[0], y[at]
    weight = 1 / (np.maximum.accumulate(np.abs(y)[::-1])[::-1] + 5 * noise + 1e-300)
    origin = since[1:2].sum()

    def residual(parameters: Series) -> Series:
        p, s = parameters[0], origin * np.exp(np.clip(parameters[1], -50, 50))
        power = np.exp(np.clip(-p * np.log1p(since / s), -200, 200))
        basis = np.stack([power, np.ones_like(since)][: 1 + free], 1) * weight[:, None]
        q = np.linalg.qr(basis)[0]
        left = weight * y
        return left - q @ (q.T @ left)

    start = np.array([1.0, np.log(max(t[0], origin) / origin)])
    fit = scipy.optimize.least_squares(residual, start, method="lm", max_nfev=200)
    growth = 1 + since[-1] / (origin * np.exp(np.clip(fit.x[1], -50, 50)))
    return float(fit.x[0]), float(growth), float(np.sqrt(np.mean(np.square(fit.fun))))


def whitening(noise: Series) -> Whitening:
    """A linear map that makes noise like this [m, R], evenly spaced, white; it takes [n, ...], n of any size.

    Of an autoregression of the order that has the least Bayesian information criterion. Each row becomes its
    own innovation, and the first few are whitened by the stationary covariance.
    """
    most = min(MOST_LAGS, len(noise) // 4)
    lagged = np.stack([noise[most - lag : len(noise) - lag] for lag in range(most + 1)])
    products, count = np.einsum("kmr,lmr->kl", lagged, lagged), lagged[0].size
    best, chosen = np.inf, np.ones(1)
    for order in range(1, most + 1):
        a = np.linalg.lstsq(products[1 : order + 1, 1 : order + 1], products[1 : order + 1, 0], rcond=None)[0]
        filter_ = np.append(1.0, -a)
        left = filter_ @ products[: order + 1, : order + 1] @ filter_
        stationary = np.abs(np.roots(filter_)).max() < 0.9999
        if not stationary or left <= 1e-14 * products[0, 0] or _covariance_root(filter_) is None:
            continue
        criterion = count * np.log(left) + order * np.log(count)
        if criterion < best:
            best, chosen = criterion, filter_
    root = _covariance_root(chosen)

    def whiten(y: Series) -> Series:
        white: Series = scipy.signal.lfilter(chosen, [1.0], y, axis=0)
        if root is not None:
            white[: len(root)] = scipy.linalg.solve_triangular(root, y[: len(root)], lower=True)
        return white

    return whiten


def _covariance_root(chosen: Series) -> Series | None:
    """Cholesky's factor of the covariance [q, q] of an autoregression of order q with unit innovations.

    Autocovariances by the Yule-Walker equations; None where q is 0 or rounding leaves no covariance.
    """
    order = len(chosen) - 1
    if order == 0:
        return None
    equations = np.zeros((order + 1, order + 1))
    for lag in range(order + 1):
        for step, weight in enumerate(chosen):
            equations[lag, abs(lag - step)] += weight
    try:
        covariances = np.linalg.solve(equations, np.append(1.0, np.zeros(order)))
        return np.linalg.cholesky(scipy.linalg.toeplitz(covariances[:order]))
    except np.linalg.LinAlgError:
        return None


def _pencil(t: Series, y: Series, order: int) -> Series:
    """Where the least squares start: b and d of each pair, then a rate where the order is odd."""
    y = y[:: max(1, len(t) // PENCIL_POINTS)]
    length, step = max(order + 1, len(y) // 3), t[-1] / (len(y) - 1)
    windows = np.lib.stride_tricks.sliding_window_view(y, length, axis=0).reshape(-1, length)
    leading = np.linalg.eigh(windows.T @ windows)[1][:, ::-1][:, :order]
    shift = np.linalg.lstsq(leading[:-1], leading[1:], rcond=None)[0]
    size = np.maximum(np.abs(values := np.linalg.eigvals(shift)), 1e-12)
    rates, angles = -np.log(size) / step, np.angle(values) / step
    swinging = (angles > 0) & (values.imag != 0)
    pairs = [(b, w**2) for b, w in zip(rates[swinging], angles[swinging], strict=True)]
    real = sorted(rates[values.imag == 0])
    while len(real) > 1:
        first, second = real.pop(0), real.pop(0)
        pairs.append(((first + second) / 2, -(((second - first) / 2) ** 2)))
    return np.array([*(number for pair in pairs for number in pair), *real])


def _least_squares(t: Series, y: Series, whiten: Whitening, start: Series, free: bool) -> tuple[Fit, float]:
    """The fit from a start, and its sum of squares."""
    order, replicas = len(start), y.shape[1]
    unit = np.array([1 / t[-1], 1 / t[-1] ** 2] * (order // 2) + [1 / t[-1]] * (order % 2))
    white = whiten(y)
    constant = whiten(np.ones((len(t), 1)))

    def residual(parameters: Series) -> Series:
        with np.errstate(all="ignore"):
            columns = _modes(parameters * unit, t)
        if not (np.abs(columns) < 1e30).all():  # grows without bound: as bad as can be
            return np.full(y.size, 1e3 * np.abs(white).max())
        columns = whiten(columns)
        columns = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
        q = np.linalg.qr(np.concatenate([columns, constant], axis=1) if free else columns)[0]
        return (white - q @ (q.T @ white)).ravel()

    most = 12 * (order + 1)
    fit = scipy.optimize.least_squares(
        residual, start / unit, method="lm", xtol=1e-8, ftol=1e-10, max_nfev=most
    )
    slopes = fit.jac.reshape(len(t), replicas, order)
    scores = np.einsum("nr,nrp->pr", fit.fun.reshape(len(t), replicas), slopes)
    curvature = fit.jac.T @ fit.jac
    moved = -replicas * np.linalg.lstsq(curvature, scores, rcond=None)[0].T
    rate, frequency = _slowest(fit.x * unit)
    return Fit(rate, frequency, moved @ _slopes(fit.x, unit), order), 2 * float(fit.cost)


def _modes(parameters: Series, t: Series) -> Series:
    """Functions of t that span the modes, [n, p]: of a pair exp(-b t) cos(w t) and exp(-b t) sin(w t)/w."""
    columns = []
    for b, d in zip(parameters[:-1:2], parameters[1::2], strict=False):
        w = np.sqrt(complex(d))
        ahead, behind = np.exp((1j * w - b) * t), np.exp((-1j * w - b) * t)
        columns.append((ahead + behind).real / 2)
        columns.append(((ahead - behind) / (2j * w)).real if abs(w) * t[-1] > 1e-4 else t * np.exp(-b * t))
    if len(parameters) % 2:
        columns.append(np.exp(-parameters[-1] * t))
    return np.stack(columns, axis=1)


def _slowest(parameters: Series) -> tuple[float, float]:
    """(rate, frequency) of the mode of least rate."""
    modes = []
    for b, d in zip(parameters[:-1:2], parameters[1::2], strict=False):
        w = float(np.sqrt(abs(d)))
        modes.append((float(b), w) if d > 0 else (float(b) - w, 0.0))
    if len(parameters) % 2:
        modes.append((float(parameters[-1]), 0.0))
    return min(modes)


def _slopes(parameters: Series, unit: Series) -> Series:
    """The derivative of `_slowest` by the parameters, [p, 2], by central differences."""
    rows = []
    for index, value in enumerate(parameters):
        step = np.zeros(len(parameters))
        step[index] = 1e-5 * abs(value) + 1e-9
        ahead, behind = (np.array(_slowest((parameters + s) * unit)) for s in (step, -step))
        rows.append((ahead - behind) / (2 * step[index]))
    return np.array(rows)

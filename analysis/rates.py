"""How fast a trajectory converges: the slowest decay of a series, with an interval that holds two errors.

    y(t) = c + exp(-r t) (A cos w t + B sin w t) + faster modes + noise        w = 0: not oscillating

Several modes are fitted at once, as many as the series shows (sdeflow.analysis.decay), and r is the rate of
the slowest. All replicas have their modes in common, and amplitudes and limits of their own. The fit is made
over three windows. They begin where the envelope e(t) = max over t' >= t and replicas of |y(t') - c| has
fallen to exp(-1/2), exp(-1) and exp(-2) of its value at the start, and last until it is below 5 standard
deviations of the noise, and three tenths longer for the limit. The rate is that of the middle window.

    error of sampling   from the replicas: what each moves the fit by, to first order, and Student's law
    error of the model  the largest difference of the other windows' rates from it: where modes are missing,
                        or the way is not linear yet, they differ

The interval reaches the root of the sum of their squares to either side. A rate whose interval reaches
further than a fifth of it is not given: windows that disagree have not settled to a mode. What this cannot
see: a slow mode that the noise hides in every window, and that a way which is no sum of a few modes, a power
of t say, has no slowest one; its rate is then that of the end which was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
import xarray as xr

from sdeflow.analysis.decay import Fit, Series, slowest_mode, whitening
from sdeflow.errors import SdeflowError

FALLS = (1.0, 0.5, 2.0)
"""e-folds from the start of the series to the beginning of each window; the first is the one that counts."""

MOST_POINTS, LEAST_POINTS = 250, 8
"""Points between a window's beginning and the noise; of more, one in so many is taken, evenly."""

FURTHEST = 0.2
"""How far an interval may reach to a side, of the rate."""

ROUNDING = 1e-7
"""Noise that a series has at least, of its largest value: states are kept in float32, mostly."""


class Interval(NamedTuple):
    """A mean over replicas with its standard error and 95% interval."""

    mean: float
    error: float
    low: float
    high: float


class Decay(NamedTuple):
    """A fitted decay: rate r and angular frequency w (0: none) per unit of t, and where it was fitted.

    modes   how many were fitted there, each real one or half of an oscillating pair
    """

    rate: Interval
    frequency: Interval
    start: float
    end: float
    modes: int

    @property
    def regime(self) -> str:
        """'underdamped' where it turns by a radian or more within an e-fold, else 'overdamped'."""
        return "underdamped" if self.frequency.mean > self.rate.mean else "overdamped"


def fit_decay(t: Series, y: Series, *, limit: float | None = None) -> Decay:
    """The decay of a series y(t), [n] or of replicas [n, R], towards `limit`, or towards a limit of each.

    t is even. Of one replica there is a rate, and no error (NaN).

    Raises SdeflowError for a series that is not finite, is too short, does not fall far enough above its
    noise to tell a rate, or whose windows do not agree on one.
    """
    t, y = np.asarray(t, np.float64), np.asarray(y, np.float64)
    if t.ndim != 1 or y.ndim not in (1, 2) or y.shape[:1] != t.shape or len(t) < 20:
        raise SdeflowError(
            f"a decay needs a series of at least 20 points, given shapes {t.shape} and {y.shape}"
        )
    if not np.isfinite(y).all():
        raise SdeflowError("a decay needs finite values: this run diverged")
    y = y[:, None] if y.ndim == 1 else y
    noise, level = _noise(y), y[-_tail(y) :].mean(0) if limit is None else np.full(y.shape[1], limit)
    envelope = np.maximum.accumulate(np.abs(y - level).max(1)[::-1])[::-1]
    below = envelope < 5 * max(float(noise.std()), ROUNDING * float(np.abs(y).max()))
    end = int(np.argmax(below)) if below.any() else len(t)
    starts = [int((envelope > envelope[0] * np.exp(-falls)).sum()) for falls in FALLS]
    first, *others = [_in_window(t, y - level, noise, start, end, limit is None) for start in starts]
    if first is None:
        raise SdeflowError(
            f"no rate can be told: of {len(t)} points {max(0, end - starts[0])} lie between an e-fold below "
            "the start and the noise at the end, and no mode stands out there that falls by an e-fold. Save "
            "more often, take more steps, or more particles"
        )
    fits = [first, *(fit for fit in others if fit is not None)]
    rates = [fit.rate for fit in fits]
    rate = _with_model_error(rates, first.influence[:, 0])
    reach = rate.high - rate.mean if y.shape[1] > 1 else max(rates) - min(rates)
    if len(fits) < 2 or reach > FURTHEST * rate.mean:
        found = ", ".join(f"{value:.4g}" for value in sorted(rates))
        raise SdeflowError(
            "no rate can be told: this has not settled to one mode, as windows that begin half to two "
            f"e-folds below the start give {found}. Take more steps, or more particles"
        )
    frequency = _with_model_error([fit.frequency for fit in fits], first.influence[:, 1])
    return Decay(rate, frequency, float(t[starts[0]]), float(t[end - 1]), first.order)


def over_replicas(values: Sequence[float] | Series) -> Interval:
    """Mean, standard error and Student's 95% interval of values of independent replicas.

    Raises SdeflowError for fewer than two.
    """
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        raise SdeflowError(
            f"an interval needs two replicas or more, given {len(x)}: run with --replicas 8, say"
        )
    mean, error = float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x)))
    half = float(scipy.stats.t.ppf(0.975, len(x) - 1)) * error
    return Interval(mean, error, mean - half, mean + half)


def coordinate(dataset: xr.Dataset) -> xr.DataArray:
    """theta as one signed number, (time[, replica]): itself, or along the direction in which it moves most.

    Of an energy-based prior it is alpha, where that is learned.

    Raises SdeflowError where theta was not saved whole.
    """
    name = next((name for name in ("theta", "alpha", "beta") if name in dataset), None)
    if name is None:
        raise SdeflowError("theta was not saved whole: raise save.theta_max")
    theta = dataset[name]
    param = str(theta.dims[-1])
    if theta.sizes[param] == 1:
        return theta.isel({param: 0}, drop=True)
    path = theta if "replica" not in theta.dims else theta.mean("replica")
    way = (path - path.isel(time=-1)).to_numpy()
    direction = np.linalg.svd(way, full_matrices=False)[2][0]
    return (theta * xr.DataArray(direction, dims=param)).sum(param)


def decay(dataset: xr.Dataset) -> Decay:
    """theta's way to its limit, per step, of all replicas; raises as `coordinate` and `fit_decay`."""
    steps: Series = dataset["step"].to_numpy().astype(np.float64)
    return fit_decay(steps, coordinate(dataset).to_numpy())


def _in_window(t: Series, gap: Series, noise: Series, start: int, end: int, free: bool) -> Fit | None:
    """The slowest mode from start until the noise at end, and a bit longer for the limit; None without."""
    if end - start < LEAST_POINTS:
        return None
    every = max(1, (end - start) // MOST_POINTS)
    window = slice(start, end + int(0.3 * (end - start)), every)
    thinned = noise[::every]
    whiten = whitening(thinned if len(thinned) >= 20 else noise)
    return slowest_mode(t[window] - t[start], gap[window], whiten, free=free)


def _with_model_error(values: Sequence[float], influence: Series) -> Interval:
    """The first of the windows' values, with the interval of its replicas widened by how far others are."""
    replicas = len(influence)
    if replicas < 2:
        return Interval(values[0], np.nan, np.nan, np.nan)
    quantile = float(scipy.stats.t.ppf(0.975, replicas - 1))
    drift = max(abs(value - values[0]) for value in values)
    half = float(np.hypot(quantile * over_replicas(influence).error, drift))
    return Interval(values[0], half / quantile, values[0] - half, values[0] + half)


def _tail(y: Series) -> int:
    """How many points the last fifth of a series has."""
    return max(8, len(y) // 5)


def _noise(y: Series) -> Series:
    """What replicas differ by in the last fifth, so that a way that all still go is none of it.

    Of one replica what is left of a straight line.
    """
    tail, count = y[-_tail(y) :], y.shape[1]
    tail = tail - tail.mean(0)
    if count > 1:
        return (tail - tail.mean(1, keepdims=True)) * np.sqrt(count / (count - 1))
    line = np.stack([np.ones(len(tail)), np.arange(len(tail))], axis=1)
    return tail - line @ np.linalg.lstsq(line, tail, rcond=None)[0]

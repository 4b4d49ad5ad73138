"""How fast a trajectory converges: the slowest decay of a series, with an interval that holds two errors.

Not all that converges has a rate. Near a minimum without curvature a series falls like a power of time,
`fit_power`; `fit_decay` refuses such a series, and says so.

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
see: a slow mode that the noise hides in every window.

    y(t) = c + A (t + s)^-p + noise

A power is fitted likewise, to each replica. Windows end at the noise; they begin where t is a 30th and a 10th
of that, and no earlier than an e-fold below the start. It is given where t + s grows fivefold in both, for
over less every fall looks like a power.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
import xarray as xr

from sdeflow.analysis.decay import Fit, Series, power_law, slowest_mode, whitening
from sdeflow.errors import SdeflowError

FALLS = (1.0, 0.5, 2.0)
"""e-folds from the start of the series to the beginning of each window; the first is the one that counts."""

MOST_POINTS, LEAST_POINTS = 250, 8
"""Points between a window's beginning and the noise; of more, one in so many is taken, evenly."""

FURTHEST = 0.2
"""How far an interval may reach to a side, of the rate."""

SHARES = (30, 10)
"""By what t grows in each window of a power, where s is 0; the first is the one that counts."""

LEAST_GROWTH, LARGEST_MISFIT = 5.0, 0.1
"""By what t + s grows in the window of a power at least; what its fit leaves of the series, in the mean."""

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


class Power(NamedTuple):
    """A fitted fall like t^-p: the exponent p, and where it was fitted."""

    exponent: Interval
    start: float
    end: float


class _Gap(NamedTuple):
    """What is left of a series [n, R] to its limit, its noise, and the windows' beginnings and end."""

    t: Series
    gap: Series
    noise: Series
    starts: list[int]
    end: int


def fit_decay(t: Series, y: Series, *, limit: float | None = None) -> Decay:
    """The decay of a series y(t), [n] or of replicas [n, R], towards `limit`, or towards a limit of each.

    t is even. Of one replica there is a rate, and no error (NaN).

    Raises SdeflowError for a series that is not finite, is too short, does not fall far enough above its
    noise to tell a rate, or whose windows do not agree on one, as of a fall like a power of t.
    """
    way = _gap(t, y, limit)
    t, noise, starts, end = way.t, way.noise, way.starts, way.end
    if (power := _power(way, limit)) is not None:
        raise SdeflowError(
            f"no rate can be told: from {power.start:.4g} on this falls like t^-{power.exponent.mean:.2f}, "
            "as near a minimum without curvature, and such a fall has none (fit_power)"
        )
    first, *others = [_in_window(t, way.gap, noise, start, end, limit is None) for start in starts]
    if first is None:
        raise SdeflowError(
            f"no rate can be told: of {len(t)} points {max(0, end - starts[0])} lie between an e-fold below "
            "the start and the noise at the end, and no mode stands out there that falls by an e-fold. Save "
            "more often, take more steps, or more particles"
        )
    fits = [first, *(fit for fit in others if fit is not None)]
    rates = [fit.rate for fit in fits]
    rate = _with_model_error(rates, first.influence[:, 0])
    reach = rate.high - rate.mean if way.gap.shape[1] > 1 else max(rates) - min(rates)
    if len(fits) < 2 or reach > FURTHEST * rate.mean:
        found = ", ".join(f"{value:.4g}" for value in sorted(rates))
        raise SdeflowError(
            "no rate can be told: this has not settled to one mode, as windows that begin half to two "
            f"e-folds below the start give {found}. Take more steps, or more particles"
        )
    frequency = _with_model_error([fit.frequency for fit in fits], first.influence[:, 1])
    return Decay(rate, frequency, float(t[starts[0]]), float(t[end - 1]), first.order)


def fit_power(t: Series, y: Series, *, limit: float | None = None) -> Power:
    """The exponent of a fall like t^-p, of a series as `fit_decay` takes it.

    Its interval holds what replicas differ by, and the windows. Of one replica there is no error (NaN).
    Raises SdeflowError as `fit_decay`, and where the series is no such power, or its windows do not agree.
    """
    way = _gap(t, y, limit)
    found = _power(way, limit)
    if found is None:
        raise SdeflowError(
            "no power can be told: up to the noise this is no (t + s)^-p over a fivefold t + s, or windows "
            "that begin at a 30th and a 10th of the time give other exponents"
        )
    return found


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

    Raises SdeflowError where theta was not saved whole, or there is none.
    """
    names = ("theta", "alpha", "beta")
    name = next((name for name in names if name in dataset), None)
    if name is None:
        if not any(f"{name}_norm" in dataset for name in names):
            raise SdeflowError("the run has no parameters, so there is no rate at which they are learned")
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


def _gap(t: Series, y: Series, limit: float | None) -> _Gap:
    """A series checked, and where its windows are; raises SdeflowError for what is no series of numbers."""
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
    return _Gap(t, y - level, noise, starts, end)


def _power(way: _Gap, limit: float | None) -> Power | None:
    """The power that `fit_power` gives; None where it gives none."""
    exponents, since = [], way.t - way.t[0]
    starts = [max(way.starts[0], int(np.searchsorted(since, since[way.end - 1] / share))) for share in SHARES]
    for start in starts:
        fits, window = [], slice(start, way.end)
        if way.end - start < LEAST_POINTS:
            return None
        for gap, noise in zip(way.gap[window].T, way.noise.T, strict=True):
            p, growth, misfit = power_law(way.t[window], gap, float(noise.std()), free=limit is None)
            if not (p > 0 and growth > LEAST_GROWTH and misfit < LARGEST_MISFIT):
                return None
            fits.append(p)
        exponents.append(np.array(fits))
    first, last = exponents
    drift = abs(float(last.mean() - first.mean()))
    if drift > FURTHEST / 2 * first.mean():
        return None
    at = float(way.t[starts[0]]), float(way.t[way.end - 1])
    if len(first) < 2:
        return Power(Interval(float(first[0]), np.nan, np.nan, np.nan), *at)
    sampling = over_replicas(first)
    half = float(np.hypot(sampling.high - sampling.mean, drift))
    error = half / float(scipy.stats.t.ppf(0.975, len(first) - 1))
    return Power(Interval(sampling.mean, error, sampling.mean - half, sampling.mean + half), *at)


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

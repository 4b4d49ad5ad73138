"""How fast a trajectory converges: a decay fitted to a series, with an interval over replicas.

    y(t) = c + exp(-r t) (A cos w t + B sin w t)         oscillating, w > 0
    y(t) = c + A exp(-r t)                               not oscillating

c is the limit where it is known, else the mean of the last fifth of the series, and fitted too where that
fifth still moves one way. The fit is over a window found by a rule that looks at nothing but the envelope
e(t) = max over t' >= t of |y(t') - c|:

    start   where e has first fallen to exp(-2) of its value at the beginning, so that faster modes are gone
    end     where e first is below 8 standard deviations of the last fifth about its mean, the noise's size;
            the end of the series where that fifth still moves one way

Least squares in r and w, the amplitudes being linear (variable projection; Golub, Pereyra 1973). The form
with w > 0 is taken where it lowers the Bayesian information criterion by 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats
import xarray as xr
from numpy.typing import NDArray

from sdeflow.errors import SdeflowError

Series = NDArray[np.float64]

MOST_POINTS = 2000
"""Points of a window that are fitted; a longer one is thinned evenly."""


class Decay(NamedTuple):
    """A fitted decay: rate r and angular frequency w (0: none) per unit of t, and where it was fitted."""

    rate: float
    frequency: float
    limit: float
    start: float
    end: float

    @property
    def regime(self) -> str:
        """'underdamped' where it turns by a radian or more within an e-fold, else 'overdamped'."""
        return "underdamped" if self.frequency > self.rate else "overdamped"


class Interval(NamedTuple):
    """A mean over replicas with its standard error and 95% interval."""

    mean: float
    error: float
    low: float
    high: float


def fit_decay(t: Series, y: Series, *, limit: float | None = None) -> Decay:
    """The decay of a series y(t), both [n], towards `limit`, or towards where its last fifth lies.

    Raises SdeflowError for a series that is not finite, is too short, or does not fall far enough above
    its noise to tell a rate.
    """
    t, y = np.asarray(t, np.float64), np.asarray(y, np.float64)
    if t.shape != y.shape or t.ndim != 1 or len(t) < 20:
        raise SdeflowError(
            f"a decay needs a series of at least 20 points, given shapes {t.shape} and {y.shape}"
        )
    if not np.isfinite(y).all():
        raise SdeflowError("a decay needs finite values: this run diverged")
    tail = y[-max(4, len(y) // 5) :]
    c = float(tail.mean()) if limit is None else limit
    settled = _settled(tail)
    start, end = _window(y - c, float(tail.std()) if settled else 0.0)
    if end - start < 8:
        raise SdeflowError(
            f"no rate can be told: of {len(t)} points only {max(0, end - start)} lie between two e-folds "
            "below the start and the noise at the end. Save more often, take more particles, or more steps"
        )
    every = max(1, (end - start) // MOST_POINTS)
    s, z = t[start:end:every] - t[start], (y - c)[start:end:every]
    rate, frequency, constant = _least_squares(s, z, free=limit is None and not settled)
    if not rate * s[-1] > 1:
        raise SdeflowError(
            f"no rate can be told: over the {len(s)} points of its window the series falls by less than an "
            "e-fold. Take more steps"
        )
    return Decay(rate, frequency, c + constant, float(t[start]), float(t[end - 1]))


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


def interval(values: Sequence[float]) -> Interval:
    """As `over_replicas`; of one replica its value, without an error."""
    return over_replicas(values) if len(values) > 1 else Interval(values[0], np.nan, np.nan, np.nan)


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


def decays(dataset: xr.Dataset) -> list[Decay]:
    """theta's way to its limit, of every replica, per step; raises as `coordinate` and `fit_decay`."""
    series = coordinate(dataset).to_numpy()
    columns = series[:, None] if series.ndim == 1 else series
    steps: NDArray[np.float64] = dataset["step"].to_numpy().astype(np.float64)
    return [fit_decay(steps, column) for column in columns.T]


def _settled(tail: Series) -> bool:
    """Whether the end of a series is noise about a level: the means of its halves are close."""
    first, second = np.array_split(tail, 2)
    return abs(first.mean() - second.mean()) < 0.5 * tail.std()


def _window(gap: Series, noise: float) -> tuple[int, int]:
    envelope = np.maximum.accumulate(np.abs(gap)[::-1])[::-1]
    start = (
        int(np.argmax(envelope <= envelope[0] / np.e**2))
        if envelope[-1] <= envelope[0] / np.e**2
        else len(gap)
    )
    below = envelope < 8 * noise
    end = int(np.argmax(below)) if below.any() else len(gap)
    return start, end


def _least_squares(t: Series, y: Series, *, free: bool) -> tuple[float, float, float]:
    """(rate, frequency, constant) of the better form; t starts at 0, and constant is 0 unless free."""
    span, count = t[-1], len(t)

    def fitted(parameters: Series) -> tuple[Series, Series]:
        decay = np.exp(-parameters[0] * t)
        columns = [decay]
        if len(parameters) == 2:
            columns = [decay * np.cos(parameters[1] * t), decay * np.sin(parameters[1] * t)]
        basis = np.stack([*columns, np.ones_like(t)] if free else columns, axis=1)
        amplitudes = np.linalg.lstsq(basis, y, rcond=None)[0]
        return y - basis @ amplitudes, amplitudes

    def residual(parameters: Series) -> Series:
        return fitted(parameters)[0]

    def best(starts: list[list[float]]) -> tuple[float, Series]:
        fits = [scipy.optimize.least_squares(residual, s, x_scale=1 / span, xtol=1e-12) for s in starts]
        fit = min(fits, key=lambda f: f.cost)
        return 2 * fit.cost, fit.x

    size = np.abs(y)
    fall = np.log(size[: count // 4 + 1].max() / max(size[-(count // 4 + 1) :].max(), 1e-300)) / (0.75 * span)
    rate = max(float(fall), 0.1 / span)
    turns = int((np.diff(np.sign(y)) != 0).sum())
    plain, (r, *_) = best([[rate], [3 * rate]])
    guesses = {np.pi * max(turns, 0.5) / span, 0.5 * np.pi / span, np.pi * (turns + 1) / span}
    waving, (r_w, w) = best([[rate, guess] for guess in guesses])
    floor = 1e-30 * float(y @ y)
    gain = count * np.log(max(plain, floor) / max(waving, floor)) - 2 * np.log(count)
    chosen = np.array([r_w, w] if gain > 10 else [r])
    constant = float(fitted(chosen)[1][-1]) if free else 0.0
    return float(chosen[0]), float(abs(w)) if gain > 10 else 0.0, constant

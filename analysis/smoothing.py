"""Particle smoothers of the linear-Gaussian state space model: PaRIS, and particle Gibbs by it.

N particles go through time as in the bootstrap filter: ancestors by the weights w_(t-1) = p(y_(t-1) | x),
then x_t ~ p(x_t | x_(t-1)). Each carries tau_t, an estimate of what the path to it sums up to,

    tau_t^i = mean over M of tau_(t-1)^J + s(x_(t-1)^J, x_t^i, y_t),     J ~ w_(t-1)^J p(x_t^i | x_(t-1)^J)

and sum_i w_T^i tau_T^i estimates the sums' expectation given y, with a bias of order 1/N. Here s makes
`Statistics`. The weights of J are worked out for all N^2 pairs.

Particle Gibbs holds one particle to a given path, and draws a new one: its end by w_T, then J back in time.
That keeps the law of the path given y, and over such paths the estimate is unbiased, for any N >= 2. Swept
from any first path, the bias falls geometrically in the sweeps.

Source: Olsson, Westerborn, arXiv:1412.7550; Cardoso, Janati, Le Corff, Moulines, Olsson, arXiv:2301.00900.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdeflow.analysis.path_statistics import Statistics
from sdeflow.errors import SdeflowError

Array = NDArray[np.float64]
Index = NDArray[np.int64]


class Pass(NamedTuple):
    """What a pass gives for each row: estimated sums, and a path that was drawn, [rows, T, d]."""

    statistics: Statistics
    path: Array


def paris(
    y: Array,
    theta: Mapping[str, Array],
    particles: int,
    rng: np.random.Generator,
    *,
    draws: int = 2,
    path: Array | None = None,
) -> Pass:
    """One pass over series y [rows, T, d]; each row is a series, or a repetition, with particles of its own.

    theta   a [.., d, d], log_q, log_r, c [.., d]: for all rows, or with an axis of rows
    draws   M, of J for each particle
    path    [rows, T, d], to which the last particle is held: a sweep of particle Gibbs

    Raises SdeflowError for series of another shape, and for no particles.
    """
    if y.ndim != 3 or particles < 1:
        raise SdeflowError(
            "series [rows, T, d] and one particle or more were expected, given "
            f"{list(y.shape)} and {particles}"
        )
    a, c = theta["a"].swapaxes(-1, -2), theta["c"][..., None, :]
    q, r = (np.exp(theta[name])[..., None, :] for name in ("log_q", "log_r"))
    rows, times, d = y.shape
    row = np.arange(rows)[:, None]

    def held(x: Array, t: int) -> Array:
        if path is not None:
            x[:, -1] = path[:, t]
        return x

    x = held(rng.standard_normal((rows, particles, d)), 0)
    misfit = np.square(y[:, :1] - x)
    pairs = np.zeros((rows, particles, 2 * d + 1, 2 * d + 1))
    weight = -(misfit / r).sum(-1) / 2
    places, backward = [x], []
    for t in range(1, times):
        before, centre = x, x @ a + c
        noise = np.sqrt(q) * rng.standard_normal(x.shape)
        x = held(centre[row, _drawn(weight, particles, rng)] + noise, t)
        away = x[:, :, None] - centre[:, None]
        earlier = weight[:, None] - (np.square(away) / q[..., None, :]).sum(-1) / 2
        j = _drawn(earlier, draws, rng)
        z = np.ones((*j.shape, 2 * d + 1))
        z[..., :d], z[..., d:-1] = x[:, :, None], before[row[..., None], j]
        pairs = (pairs[row[..., None], j] + z[..., :, None] * z[..., None, :]).mean(2)
        own = np.square(y[:, t, None] - x)
        misfit = misfit[row[..., None], j].mean(2) + own
        weight = -(own / r).sum(-1) / 2
        places.append(x)
        backward.append(j[..., 0])
    end = _drawn(weight, 1, rng)
    w = np.exp(weight - weight.max(-1, keepdims=True))
    w /= w.sum(-1, keepdims=True)
    estimate = Statistics(np.einsum("ri,rikl->rkl", w, pairs), np.einsum("ri,rik->rk", w, misfit), times)
    return Pass(estimate, _traced(places, backward, end))


def _traced(places: list[Array], backward: list[Index], end: Index) -> Array:
    """Paths [rows, T, d] from particles at the end [rows, 1] back in time."""
    row = np.arange(len(end))[:, None]
    path = [places[-1][row, end]]
    for x, j in zip(places[-2::-1], backward[::-1], strict=True):
        end = j[row, end]
        path.append(x[row, end])
    return np.concatenate(path[::-1], 1)


def _drawn(log_weights: Array, count: int, rng: np.random.Generator) -> Index:
    """Indices along the last axis by weights [.., n], [.., count]."""
    summed = np.exp(log_weights - log_weights.max(-1, keepdims=True)).cumsum(-1)
    u = rng.random((*summed.shape[:-1], count)) * summed[..., -1:]
    return (u[..., None] > summed[..., None, :]).sum(-1)

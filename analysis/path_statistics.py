"""What a linear-Gaussian path's law is for its parameters: sums of its second moments, exact or by particles.

    x_t = A x_(t-1) + c + N(0, diag q),  y_t = x_t + N(0, diag r)

Of a law of paths given y, the score of log p(y) by Fisher's identity and the step M of EM depend on no more
than G = sum_t E[z_t z_t'], z_t = (x_t, x_(t-1), 1), and the sums over t of E[(y_t - x_t)^2]. With
B = (I, -A, -c) it is B G B' = sum_t E[e_t e_t'], e_t = x_t - A x_(t-1) - c.

Parameters are a mapping of a [..., d, d], log_q, log_r and c [..., d], axes before d being those of the sums.

Source: Shumway, Stoffer 1982, J. Time Ser. Anal. 3.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Statistics(NamedTuple):
    """Sums over the times and series of a path's law.

    pairs    G, [..., 2 d + 1, 2 d + 1]
    misfit   of E[(y_t - x_t)^2], [..., d]
    times    how many times these are sums over, T of each series
    """

    pairs: Array
    misfit: Array
    times: int

    def towards(self, other: Statistics, part: float) -> Statistics:
        """A part of the way to others: their mixture."""
        pairs, misfit = (
            (1 - part) * mine + part * its for mine, its in zip(self[:2], other[:2], strict=True)
        )
        return Statistics(pairs, misfit, self.times)


def score(statistics: Statistics, theta: Mapping[str, Array]) -> dict[str, Array]:
    """E[grad log p(x, y)] under the path's law: the gradient of log p(y) where that is exact."""
    pairs, misfit, times = statistics
    q, r, d = np.exp(theta["log_q"]), np.exp(theta["log_r"]), misfit.shape[-1]
    residual = _residual(_weights(theta))
    pull = (residual @ pairs) / q[..., None]
    return {
        "a": pull[..., d:-1],
        "log_q": (_diagonal(residual @ pairs @ _transposed(residual)) / q - pairs[..., -1:, -1]) / 2,
        "log_r": (misfit / r - times) / 2,
        "c": pull[..., -1],
    }


def maximiser(statistics: Statistics, theta: Mapping[str, Array], learn: Collection[str]) -> dict[str, Array]:
    """argmax of E[log p(x, y)] over the parameters in `learn`, the others held: the step M of EM."""
    pairs, misfit, times = statistics
    d = misfit.shape[-1]
    weights = _weights(theta)
    free = [k for k in range(d + 1) if ("c" if k == d else "a") in learn]
    if free:
        held = weights.copy()
        held[..., free] = 0
        regressors = pairs[..., d:, d:]
        target = (pairs[..., :d, d:] - held @ regressors)[..., free]
        normal = regressors[..., free, :][..., free]
        weights[..., free] = _transposed(np.linalg.solve(normal, _transposed(target)))
    residual = _residual(weights)
    squares = _diagonal(residual @ pairs @ _transposed(residual))
    found = {
        "a": weights[..., :d],
        "log_q": np.log(squares / pairs[..., -1:, -1]),
        "log_r": np.log(misfit / times),
        "c": weights[..., d],
    }
    return {name: value if name in learn else theta[name] for name, value in found.items()}


def _weights(theta: Mapping[str, Array]) -> Array:
    """(A, c), [..., d, d + 1]."""
    return np.concatenate([theta["a"], theta["c"][..., None]], -1)


def _residual(weights: Array) -> Array:
    """B of (A, c), [..., d, 2 d + 1]."""
    eye = np.broadcast_to(np.eye(weights.shape[-2]), (*weights.shape[:-1], weights.shape[-2]))
    return np.concatenate([eye, -weights], -1)


def _diagonal(m: NDArray[Any]) -> NDArray[Any]:
    return np.diagonal(m, axis1=-2, axis2=-1)


def _transposed(m: NDArray[Any]) -> NDArray[Any]:
    return m.swapaxes(-1, -2)

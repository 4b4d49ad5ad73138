"""How the best step of a parameter depends on the batch: what one step gains, laws that follow, and fits.

Of a loss with gradient g and Hessian H, whose gradient on b data has the covariance S/b about g, a step
q - h d changes the mean loss by -h E[g.d] + (h^2/2) E[d'Hd], and is best at h = E[g.d] / E[d'Hd]. With d the
gradient

    h(b) = h_max / (1 + B/b),              h_max = |g|^2 / g'Hg,    B = tr(HS) / g'Hg

and with d = sign of the gradient, coordinates of Gaussian noise being independent, p_i = E d_i,

    h(b) = sum_i g_i p_i / (sum_{i != j} H_ij p_i p_j + tr H),      p_i = erf( sqrt(b/2) g_i / sqrt(S_ii) )

For small p this is 2 h_peak / (sqrt(B/b) + sqrt(b/B)), which rises as sqrt(b) and falls again beyond B; it
falls only where curvature couples coordinates along their signs. Where H is diagonal, as where there is but
one parameter, h(b) rises as sqrt(b) and saturates: h_max erf(sqrt(b/B)).

Data that are drawn without replacement have less noise: `with_replacement` says of which b in these laws.

Source: McCandlish et al. 2018, arXiv:1812.06162 (gradient); Li et al. 2024, arXiv:2405.14578 (sign).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import ArrayLike, NDArray

from sdeflow.errors import SdeflowError

Array = NDArray[np.float64]


def gradient_optimum(g: ArrayLike, hessian: ArrayLike, covariance: ArrayLike, b: float) -> float:
    """The best step along the gradient of b data; g [p], Hessian and covariance of a datum's [p, p]."""
    g, hessian = np.asarray(g, np.float64), np.asarray(hessian, np.float64)
    return float(g @ g / (g @ hessian @ g + np.trace(hessian @ np.asarray(covariance)) / b))


def sign_optimum(g: ArrayLike, hessian: ArrayLike, variance: ArrayLike, b: float) -> float:
    """The best step along the signs of it, with independent noise of variance [p] a datum."""
    g, hessian = np.asarray(g, np.float64), np.asarray(hessian, np.float64)
    p = scipy.special.erf(np.sqrt(b / 2) * g / np.sqrt(np.asarray(variance, np.float64)))
    return float(g @ p / (p @ hessian @ p + np.diag(hessian) @ (1 - p**2)))


def with_replacement(b: ArrayLike, data: int) -> Array:
    """The batch that has, drawn with replacement, the noise of b of D data without: b / (1 - b/D), b < D."""
    batch = np.asarray(b, np.float64)
    return np.asarray(batch / (1 - batch / data))


def gradient_variance(gradients: ArrayLike, b: int) -> tuple[float, float]:
    """The variance of theta's force from b of D data with N particles each: of minibatches, of particles.

        (D^2/b) (1 - b/D) Var_i(mean_j g_ij)          (D^2/b) mean_i Var_j(g_ij) / N

    gradients   g_ij of one parameter, [D, N], of independent particles; a run's are correlated in time, so
                that the second part lasts

    The spread of particles is in the means of the first too, and is taken off. Raises SdeflowError for fewer
    than two data or particles, or a batch that is not 1 to D.
    """
    values = np.asarray(gradients, np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise SdeflowError(f"gradients of two data and particles or more were expected, given {values.shape}")
    data, particles = values.shape
    if not 1 <= b <= data:
        raise SdeflowError(f"a batch is 1 to D = {data}, given {b}")
    within = values.var(1, ddof=1).mean() / particles
    between = values.mean(1).var(ddof=1) - within
    return float(data**2 / b * (1 - b / data) * between), float(data**2 / b * within)


_LAWS: dict[str, Callable[[Array, Array], Array]] = {
    "gradient": lambda b, noise: 1 / (1 + noise / b),
    "sign": lambda b, noise: 2 / (np.sqrt(noise / b) + np.sqrt(b / noise)),
    "sign, one parameter": lambda b, noise: scipy.special.erf(np.sqrt(b / noise)),
}
"""h(b) over its own constant, of (b, B)."""

LAWS = tuple(_LAWS)

REACH = 1e3
"""B is looked for up to this factor beyond the batches: further off a law has but one parameter."""


class Fit(NamedTuple):
    """A law through steps: its h and B, and Akaike's criterion, n log(RSS/n) + 4 for its two parameters."""

    law: str
    h: float
    noise: float
    aic: float

    def __call__(self, b: ArrayLike) -> Array:
        return self.h * _LAWS[self.law](np.asarray(b, np.float64), np.asarray(self.noise))


def fit(law: str, b: ArrayLike, h: ArrayLike) -> Fit:
    """Least squares in log h, [n] of batches b [n].

    Raises SdeflowError for fewer than three batches, or what is not positive and finite.
    """
    batch, log_h = np.asarray(b, np.float64), np.log(np.asarray(h, np.float64))
    if len(np.unique(batch)) < 3 or not np.isfinite(log_h).all():
        raise SdeflowError(
            f"a law of two parameters needs positive steps at three batches or more, given {np.asarray(h)}"
        )

    def left(log_noise: ArrayLike) -> Array:
        """What a law of h = 1 leaves of log h, [..., n]."""
        return log_h - np.log(_LAWS[law](batch, np.exp(np.asarray(log_noise))[..., None]))

    grid = np.linspace(np.log(batch.min() / REACH), np.log(batch.max() * REACH), 200)
    at = int(left(grid).var(-1).argmin())
    found = scipy.optimize.minimize_scalar(
        lambda log_noise: left(log_noise).var(),  # the best log h is the mean of what is left
        bounds=(grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]),
        method="bounded",
        options={"xatol": 1e-10},
    )
    mean_square = max(float(found.fun), np.finfo(float).tiny)
    level = float(np.exp(left(found.x).mean()))
    return Fit(law, level, float(np.exp(found.x)), len(batch) * float(np.log(mean_square)) + 4)


class Fitted(NamedTuple):
    """A fit, and 95% intervals of its h and B."""

    fit: Fit
    h: tuple[float, float]
    noise: tuple[float, float]


def fitted(law: str, b: ArrayLike, h: ArrayLike, again: ArrayLike) -> Fitted:
    """A law through steps h [n], and between 2.5 and 97.5% of fits to `again` [draws, n], a bootstrap's.

    An end at the edge of `REACH` says that B has no bound there. Raises SdeflowError as `fit` does.
    """
    drawn = [fit(law, b, each) for each in np.asarray(again, np.float64)]
    low, high = np.quantile([(f.h, f.noise) for f in drawn], (0.025, 0.975), axis=0).tolist()
    return Fitted(fit(law, b, h), (low[0], high[0]), (low[1], high[1]))

"""The MLE of logistic regression's theta, by Hamiltonian Monte Carlo: the answer without a closed form."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAPS = 6
"""Of a leapfrog path, of 0.2 to 0.5 each where the curvature is one."""


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float


def maximum_likelihood(
    z: Array, v: float, *, start: float = 1.0, chains: int = 64, draws: int = 300, seed: int = 0
) -> Estimate:
    """The theta that maximises the likelihood of signed features z [n, d], with x ~ N(theta 1, v I).

    It solves theta = E[mean of x | y, theta]. The expectation is over chains at theta = `start`, in
    coordinates in which the curvature at the mode is one, each draw with the weight
    exp( (theta - start) sum_c x_c / v ) that another theta gives it; the error is a jackknife's over chains.
    The MLE is looked for within 1 of `start`.
    """
    d = z.shape[1]

    def potential(x: Array) -> Array:
        return np.asarray(np.logaddexp(0, -x @ z.T).sum(-1) + ((x - start) ** 2).sum(-1) / (2 * v))

    def slope(x: Array) -> Array:
        return np.asarray((x - start) / v - scipy.special.expit(-x @ z.T) @ z)

    mode = scipy.optimize.minimize(potential, np.full(d, start), jac=slope).x
    p = scipy.special.expit(mode @ z.T)
    root = np.linalg.cholesky(np.linalg.inv(z.T @ (z * (p * (1 - p))[:, None]) + np.eye(d) / v))
    rng = np.random.default_rng(seed)
    x, kept = mode + rng.standard_normal((chains, d)) @ root.T, []
    for n in range(draws + draws // 5):
        u = rng.standard_normal((chains, d))
        h = rng.uniform(0.2, 0.5)  # of the step, so that no period is hit
        at, moved = x, u - h / 2 * slope(x) @ root
        for leap in range(LEAPS):
            at = at + h * moved @ root.T
            moved = moved - (h if leap < LEAPS - 1 else h / 2) * slope(at) @ root
        gain = potential(x) - potential(at) + ((u**2).sum(1) - (moved**2).sum(1)) / 2
        x = np.where((np.log(rng.random(chains)) < gain)[:, None], at, x)
        if n >= draws // 5:
            kept.append(x.sum(1))
    totals = np.array(kept).T

    def solved(sums: Array) -> float:
        def off(theta: float) -> float:
            w = np.exp((theta - start) * (sums - sums.mean()) / v)
            return float((w * sums).sum() / w.sum() / d - theta)

        return float(scipy.optimize.brentq(off, start - 1, start + 1))

    parts = np.array([solved(np.delete(totals, i, 0)) for i in range(chains)])
    return Estimate(solved(totals), float(parts.std() * (chains - 1) ** 0.5))

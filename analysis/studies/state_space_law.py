"""What paths with a scheme's stationary law lead a state space model to learn, for N = infinity.

Theta's forces vanish there, with the mean of paths given y, which is right at any step, and in each direction
of precision kappa the variance V_h(kappa) of the scheme, which should be 1/kappa.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import torch
from numpy.polynomial import Chebyshev
from numpy.typing import NDArray

from sdeflow.analysis import path_statistics
from sdeflow.analysis.kalman import Maximum, Smoothed, expected, smoothed
from sdeflow.errors import SdeflowError
from sdeflow.problems.state_space import StateSpace

Array = NDArray[np.float64]
Theta = dict[str, Array]

NODES = 24
"""Of a scheme's variance, which is smooth in the precision: between as many it is known to rounding."""


class Answer(NamedTuple):
    """A parameter that was learned, c or r, and nats below the maximum."""

    value: float
    nats: float


def told(learn: Sequence[str]) -> str:
    """The parameter that tables have: c, or r, which a path that is spread too wide changes most."""
    return "c" if "c" in learn else "log_r"


def shown(number: Any, learn: Sequence[str]) -> Any:
    """c as it is, r of its log."""
    return number if told(learn) == "c" else np.exp(number)


def start_of(model: StateSpace) -> Theta:
    """All parameters at the start."""
    return {name: value.numpy() for name, value in model.complete(model.start).items()}


def nats_below(model: StateSpace, best: Maximum, theta: Theta) -> float:
    """log p(y) at its maximum, less that at theta."""
    at = {name: torch.as_tensor(value) for name, value in theta.items()}
    return best.log_likelihood - float(model.log_likelihood(at))


def precisions(model: StateSpace, theta: Theta) -> tuple[Array, Array]:
    """Of a path given y, [T d], the least first, and their directions [T d, T d]."""
    precision = model.precision({name: torch.as_tensor(value) for name, value in theta.items()})
    kappa, directions = np.linalg.eigh(precision.numpy())
    return kappa, directions


def law(model: StateSpace, theta: Theta, variance: Callable[[Array], Array]) -> Smoothed:
    """A law of paths given y with the right mean, and a variance of each precision along its direction."""
    kappa, directions = precisions(model, theta)
    covariance = (directions * variance(kappa)) @ directions.T
    times, d = model.latent_shape
    blocks, at = covariance.reshape(times, d, times, d), np.arange(times)
    path = smoothed(model.data, theta)
    return path._replace(covariance=blocks[at, :, at, :], lagged=blocks[at[1:], :, at[:-1], :])


def predicted(model: StateSpace, best: Maximum, variance: Callable[[Array], Array]) -> Answer:
    """The answer for paths whose stationary variance is `variance` of a precision, for N = infinity; d = 1.

    Raises SdeflowError where none is found, or the scheme is not stable there.
    """
    learn = tuple(model.start)
    kappa, _ = precisions(model, best.theta)
    near = kappa[0] / 3, 1.5 * kappa[-1]

    def product(kappa: Array) -> Array:
        found = kappa * variance(kappa)
        if not np.isfinite(found).all():
            raise SdeflowError("the scheme is not stable near the MLE: take a smaller h of X")
        return found

    ratio = Chebyshev.interpolate(product, NODES, near)  # the variance itself takes its time

    def at(flat: Array) -> Theta:
        return best.theta | {
            name: np.reshape(v, best.theta[name].shape) for name, v in zip(learn, flat, strict=True)
        }

    def forces(flat: Array) -> Array:
        theta = at(flat)
        found = path_statistics.score(expected(model.data, law(model, theta, lambda k: ratio(k) / k)), theta)
        return np.array([found[name].item() for name in learn])

    found = scipy.optimize.root(forces, [best.theta[name].item() for name in learn], tol=1e-10)
    theta = at(found.x)
    kappa, _ = precisions(model, theta)
    if not (np.abs(found.fun).max() < 1e-7 and near[0] < kappa[0] < kappa[-1] < near[1]):
        raise SdeflowError(f"what is learned was not found near the MLE: {found.message}")
    return Answer(shown(theta[told(learn)].item(), learn), nats_below(model, best, theta))

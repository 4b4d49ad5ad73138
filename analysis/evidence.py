"""The log marginal likelihood log p_theta(y_i) of each datum, by annealed and by plain importance sampling.

    p_theta(y_i) = integral exp l_i(theta, x) dx = E_q[ w ],    w(x) = exp l_i(theta, x) / q(x)

so the mean of the weights is unbiased, and its logarithm is below the truth in expectation, by var(w)/(2 K).
Sums over data are -E at its minimum over q (see `sdeflow.analysis.free_energy`). Everything is in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log, pi
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from sdeflow.analysis.entropy import Estimate, covariances, refuse_not_finite
from sdeflow.errors import SdeflowError, expect_shape, is_number
from sdeflow.model.model import Data, Model, data_size

ACCEPTANCE = 0.8
"""Share of accepted proposals that step sizes are tuned to."""


class Evidence(NamedTuple):
    """log p_theta(y_i) of the data, each array [D].

    error   standard error, by the jackknife over chains or samples
    ess     effective sample size (sum w)^2 / sum w^2; where it is a small part of the number of weights, or
            below some ten, the value is likely too low and the error too small
    bias    the jackknife's estimate of how far the value is from the truth in expectation: below 0
    """

    value: NDArray[np.float64]
    error: NDArray[np.float64]
    ess: NDArray[np.float64]
    bias: NDArray[np.float64]

    @property
    def total(self) -> Estimate:
        """The sum over data, whose errors are independent."""
        return Estimate(float(self.value.sum()), float((self.error**2).sum()) ** 0.5)

    @property
    def mean(self) -> Estimate:
        """The mean over data; its error holds the bias, which more data do not make smaller."""
        error = float((self.error**2).sum()) ** 0.5 / len(self.error)
        return Estimate(float(self.value.mean()), float(np.hypot(error, self.bias.mean())))


class Gaussian(NamedTuple):
    """N(mean_i, L_i L_i^T) for each datum: mean [D, d] and lower triangular L [D, d, d], float64."""

    mean: Tensor
    factor: Tensor

    @property
    def log_det(self) -> Tensor:
        """log det L_i, [D]."""
        return self.factor.diagonal(dim1=1, dim2=2).log().sum(1)


def fitted(x: ArrayLike | Tensor, *, widen: float = 1.2, pooled: bool = False) -> Gaussian:
    """The Gaussian fitted to the particles [D, N, d] (or [D, N, *latent_shape]) of each datum.

    widen    factor on the standard deviations: weights have a finite variance where the tails of q are the
             heavier ones, and a fit to few particles is easily too narrow
    pooled   one covariance for all data, about each one's own mean, for when N is small

    Raises SdeflowError for fewer particles than d + 2, or where they lie in a plane.
    """
    clouds = np.asarray(x, dtype=np.float64)
    if clouds.ndim < 3:
        raise SdeflowError(f"particles [data, particles, coordinates] were expected, given {clouds.shape}")
    clouds = clouds.reshape(*clouds.shape[:2], -1)
    refuse_not_finite(clouds, "the particles")
    data, n, d = clouds.shape
    mean = clouds.mean(1)
    if pooled:
        # Deviations from N - 1 free directions a datum: the divisor must be D (N - 1).
        together = (clouds - mean[:, None]).reshape(1, -1, d)
        one = covariances(together) * (data * n - 1) / (data * max(n - 1, 1))
        covariance = np.repeat(one, data, axis=0)
    else:
        covariance = covariances(clouds)
    factor = np.linalg.cholesky(covariance) * widen
    return Gaussian(torch.from_numpy(mean), torch.from_numpy(factor))


def standard(data: int, coordinates: int) -> Gaussian:
    """N(0, I) for each datum: the prior of many decoders."""
    eye = torch.eye(coordinates, dtype=torch.float64)
    return Gaussian(torch.zeros(data, coordinates, dtype=torch.float64), eye.expand(data, -1, -1))


def importance(
    model: Model,
    theta: Mapping[str, Tensor],
    proposal: Gaussian,
    *,
    samples: int = 1000,
    seed: int = 0,
    data: Sequence[int] | None = None,
) -> Evidence:
    """log of the mean weight of `samples` draws from the proposal: a bound from below in expectation (IWAE).

    data   the data to look at (default: all); the proposal's first axis runs over them

    Raises SdeflowError for shapes that do not fit, or a log-joint that is not a number.
    Source: Burda, Grosse, Salakhutdinov 2016, arXiv:1509.00519.
    """
    target = _Target(model, theta, proposal, data)
    g = torch.Generator().manual_seed(seed)
    _at_least("samples", samples, 2)
    z = torch.randn(*target.shape(samples), generator=g, dtype=torch.float64)
    return of_weights(target.log_density(z) - _log_normal(z))


def annealed(
    model: Model,
    theta: Mapping[str, Tensor],
    reference: Gaussian,
    *,
    chains: int = 64,
    temperatures: int = 50,
    leapfrog: int = 3,
    power: float = 1.0,
    pilot: int = 16,
    seed: int = 0,
    data: Sequence[int] | None = None,
) -> Evidence:
    """Annealed importance sampling along pi_b ~ q^(1-b) exp(b l_i), b = (t/T)^power, from q the reference.

    Between temperatures every chain makes one step of Hamiltonian Monte Carlo in coordinates in which q is
    N(0, I); the weight is log w = sum_t (b_{t+1} - b_t) (l_i(x_t) - log q(x_t)). Its mean is unbiased
    whatever the mixing, for the step sizes are tuned on pilot chains of their own and then left alone.

    reference      `fitted` to particles, or `standard` (the prior; there a power of 3 or so serves better)
    chains         chains a datum; together with temperatures, the way to smaller errors
    leapfrog       leapfrog steps of a transition, each one evaluation of the score; 1 is MALA
    pilot          pilot chains a datum
    data           the data to look at (default: all); the reference's first axis runs over them

    All data and chains are evaluated together: where that is too much memory, take parts of the data.
    Raises SdeflowError for shapes that do not fit, or a log-joint that is not a number.
    Source: Neal 2001, doi:10.1023/A:1008923215028.
    """
    for name, value, least in (
        ("chains", chains, 2),
        ("temperatures", temperatures, 1),
        ("leapfrog", leapfrog, 1),
        ("pilot", pilot, 1),
    ):
        _at_least(name, value, least)
    if not power > 0:
        raise SdeflowError(f"power must be positive, given {power}")
    target = _Target(model, theta, reference, data)
    path = (torch.linspace(0, 1, temperatures + 1, dtype=torch.float64) ** power).tolist()
    g = torch.Generator().manual_seed(seed)
    steps: list[Tensor] = []
    _anneal(target, path, pilot, leapfrog, g, steps)
    return of_weights(_anneal(target, path, chains, leapfrog, g, steps))


class _Target:
    """l_i in coordinates z of the reference, x = mean + L z, plus log det L: of the same integral."""

    def __init__(
        self, model: Model, theta: Mapping[str, Tensor], reference: Gaussian, data: Sequence[int] | None
    ) -> None:
        if not isinstance(theta, Mapping):
            raise SdeflowError(
                f"theta must be a mapping from names to tensors, given {type(theta).__name__}: "
                "name the parameters as the model does"
            )
        cpu, double = torch.device("cpu"), torch.float64
        self.model = model.to(double, cpu)
        self.theta = {name: torch.as_tensor(value).detach().to(cpu, double) for name, value in theta.items()}
        index = torch.arange(data_size(model)) if data is None else torch.as_tensor(data, dtype=torch.long)
        self.y: Data = tree_map(lambda values: values[index], self.model.data)
        self.reference = reference
        d = int(np.prod(model.latent_shape))
        expect_shape("the reference's mean", reference.mean, (len(index), d), "data, coordinates")
        expect_shape("the reference's factor", reference.factor, (len(index), d, d), "data, L")

    def shape(self, chains: int) -> tuple[int, int, int]:
        data, d = self.reference.mean.shape
        return data, chains, d

    def log_density(self, z: Tensor) -> Tensor:
        """[D, K] of z [D, K, d]."""
        value = self.model.log_joint(self.theta, self._x(z), self.y)
        return value + self.reference.log_det[:, None]

    def with_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The log density and its gradient in z."""
        if self.model.score_x is not None:
            score = self.model.score_x(self.theta, self._x(z), self.y).reshape(z.shape)
            return self.log_density(z), score @ self.reference.factor
        leaf = z.detach().requires_grad_()
        with torch.enable_grad():
            value = self.log_density(leaf)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    def _x(self, z: Tensor) -> Tensor:
        x = self.reference.mean[:, None] + z @ self.reference.factor.mT
        return x.reshape(*x.shape[:2], *self.model.latent_shape)


@torch.no_grad()
def _anneal(
    target: _Target, path: list[float], chains: int, leapfrog: int, g: torch.Generator, steps: list[Tensor]
) -> Tensor:
    """Log weights [D, chains]; an empty list of steps is filled with sizes, [D, 1, 1] a temperature."""
    tuning = not steps
    kind: Any = {"generator": g, "dtype": torch.float64}
    shape = target.shape(chains)
    size = torch.full((shape[0], 1, 1), 0.5 * shape[2] ** -0.25, dtype=torch.float64)
    z = torch.randn(shape, **kind)
    log_p, score = target.with_score(z)
    log_w = torch.zeros(shape[:2], dtype=torch.float64)
    for t, (before, b) in enumerate(pairwise(path)):
        log_w += (b - before) * (log_p - _log_normal(z))
        if t == len(path) - 2:
            break  # where the last chain would go does not enter the weight
        if tuning:
            steps.append(size)
        # A step length of its own for each chain keeps trajectories from closing on themselves.
        h = steps[t] * (0.8 + 0.4 * torch.rand(*shape[:2], 1, **kind))
        p = torch.randn(shape, **kind)
        new, new_p, new_log_p, new_score = z, p, log_p, score
        for _ in range(leapfrog):
            half = new_p + h / 2 * (b * new_score - (1 - b) * new)
            new = new + h * half
            new_log_p, new_score = target.with_score(new)
            new_p = half + h / 2 * (b * new_score - (1 - b) * new)
        gain = b * (new_log_p - log_p) + (1 - b) * (_log_normal(new) - _log_normal(z))
        gain += (p.square() - new_p.square()).sum(2) / 2
        accept = torch.rand(shape[:2], **kind).log() < gain  # False where gain is not a number
        z, score = torch.where(accept[..., None], new, z), torch.where(accept[..., None], new_score, score)
        log_p = torch.where(accept, new_log_p, log_p)
        if tuning:
            size = size * torch.exp(0.5 * (accept.double().mean(1) - ACCEPTANCE))[:, None, None]
    return log_w


def _log_normal(z: Tensor) -> Tensor:
    return -(z.square().sum(-1) + z.shape[-1] * log(2 * pi)) / 2


def of_weights(log_w: Tensor) -> Evidence:
    """log of the mean of each datum's weights [D, K], K at least 2, with jackknife errors.

    Raises SdeflowError where the largest weight of a datum is not a number.
    """
    log_w = log_w.double().cpu()
    k = log_w.shape[1]
    top = log_w.max(1, keepdim=True).values  # not a number where one of them is not
    if not top.isfinite().all():
        datum = int((~top.isfinite()).nonzero()[0, 0])
        raise SdeflowError(
            f"the largest log weight of datum {datum} is {float(top[datum])}, a finite number was expected: "
            "check the model's log_joint where the chains start, or start them elsewhere"
        )
    w = torch.exp(log_w - top)
    total = w.sum(1, keepdim=True)
    # A weight that is all there is leaves nothing behind: the floor makes the error large, not infinite.
    without = ((total - w).clamp_min(1e-300) / (k - 1)).log()
    error = ((without - without.mean(1, keepdim=True)).square().sum(1) * (k - 1) / k).sqrt()
    value = (top + (total / k).log()).squeeze(1)
    ess = total.squeeze(1) ** 2 / w.square().sum(1)
    bias = (k - 1) * (without.mean(1) + top.squeeze(1) - value)
    return Evidence(value.numpy(), error.numpy(), ess.numpy(), bias.numpy())


def _at_least(name: str, value: int, least: int) -> None:
    if not is_number(value, Integral) or value < least:
        raise SdeflowError(f"{name} must be a whole number of at least {least}, given {value!r}")

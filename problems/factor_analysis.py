"""Factor analysis: few latents behind many observed coordinates, each with a noise of its own."""

from __future__ import annotations

from abc import abstractmethod
from math import log, pi
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters

EM_TOLERANCE, EM_MOST, EM_LEAST = 1e-12, 20_000, 1e-6
"""Where EM stops, the gradient for a datum; its most steps; its least noise over a coordinate's variance."""

Matrix = NDArray[np.float64]


class LinearGaussian(Model):
    """x_i ~ N(0, I_k),  y_i | x_i ~ N(W x_i + mu, diag(psi)),  theta = (W, mu, log psi), y_i in R^p.

        marginal     y_i ~ N(mu, C),  C = W W' + diag(psi)
        posterior    x_i | y_i ~ N(V W' (y_i - mu)/psi, V),  V = (I + W' diag(1/psi) W)^-1
        E*           minus the greatest sum_i log N(y_i; mu, C), at `mle`

    W is determined up to W R with R orthogonal: compare W W'. Parameters are `weight` [p, k], `mean` [p] and
    `log_noise`, [] or [p]. Where particles are spread too wide, by their step, the noise is what is learned
    too large: a bias of the scheme that an unknown mean alone does not show.

    Observed are `noise`, the mean of psi, and `excess`, the nats of the marginal log-likelihood below its
    maximum; it is exact, and its minimum is 0.
    """

    mle: Parameters
    joint_maximum = False

    def __init__(self, y: Tensor, latent: int) -> None:
        if not 1 <= latent < y.shape[1]:
            raise SdeflowError(f"latent must be from 1 to {y.shape[1] - 1}, given {latent}")
        self.data = y
        self.latent_shape = (latent,)
        self._constant = -(y.shape[1] + latent) * log(2 * pi) / 2

    def with_data(self, data: Tensor, held_out: Tensor | None) -> Self:
        own = super().with_data(data, held_out)
        own.mle = own._maximum()
        return own

    @abstractmethod
    def _maximum(self) -> Parameters:
        """The MLE of the data."""

    def log_joint(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        log_noise = theta["log_noise"].expand_as(theta["mean"])
        misfit = (self._residual(theta, x, y).square() * (-log_noise).exp()).sum(-1)
        return self._constant - (misfit + log_noise.sum() + x.square().sum(-1)) / 2

    def score_x(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return (self._residual(theta, x, y) * (-theta["log_noise"]).exp()) @ theta["weight"] - x

    def score_theta(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        r = self._residual(theta, x, y)
        pull = r * (-theta["log_noise"]).exp()
        # sum_ij (r^2/psi - 1)/2 of every coordinate; of all of them together where they share one noise
        log_noise = ((pull * r).sum((0, 1)) - r[..., 0].numel()) / 2
        return {
            "weight": pull.flatten(0, 1).mT @ x.flatten(0, 1),
            "mean": pull.sum((0, 1)),
            "log_noise": log_noise if theta["log_noise"].ndim else log_noise.sum(),
        }

    def init_theta(self, generator: torch.Generator) -> Parameters:
        """W from N(0, 1/4): at W = 0 nothing tells its columns apart, and no force moves them."""
        weight = torch.randn(self.mle["weight"].shape, generator=generator) / 2
        zero = {name: torch.zeros(self.mle[name].shape) for name in ("mean", "log_noise")}
        return {"weight": weight} | zero

    def observables(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """noise: the mean of psi; excess: the log-likelihood's maximum less its value, in nats."""
        return {
            "noise": theta["log_noise"].exp().mean(),
            "excess": -self.minimum - self.log_likelihood(theta),
        }

    def log_likelihood(self, theta: Parameters) -> Tensor:
        """sum_i log N(y_i; mu, W W' + diag(psi)), exact and in float64; not finite where theta is not."""
        weight, mean, log_noise = (theta[name].double() for name in ("weight", "mean", "log_noise"))
        covariance = weight @ weight.mT + log_noise.exp().expand_as(mean).diag()
        r = self.data.double() - mean
        squares = (r * torch.linalg.solve_ex(covariance, r.mT).result.mT).sum()
        return -(len(r) * (log(2 * pi) * len(mean) + covariance.logdet()) + squares) / 2

    @property
    def minimum(self) -> float:
        """E*, minus the maximum of the log-likelihood."""
        return -float(self.log_likelihood(self.mle))

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """log N(x; 0, I), [n] of x [n, k]."""
        return -(x.square().sum(-1) + x.shape[-1] * log(2 * pi)) / 2

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n latents [n, k] from N(0, I)."""
        return torch.randn(n, *self.latent_shape, generator=generator)

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Observations [n, p] of latents x [n, k]."""
        mean = x @ theta["weight"].mT + theta["mean"]
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        return mean + (theta["log_noise"] / 2).exp() * noise

    @staticmethod
    def _residual(theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """y_i - mu - W x_ij, [B, N, p]."""
        return (y - theta["mean"])[:, None] - x @ theta["weight"].mT


class FactorAnalysis(LinearGaussian):
    """The linear-Gaussian model with a noise variance of its own for every coordinate.

    The MLE has mu = mean y; W and psi have no closed form, and are EM's fixed point in float64.

    data       D, the number of latents
    observed   p, coordinates of an observation; fewer than about 2 k + 1 do not determine W and psi
    latent     k, coordinates of a latent
    data_seed  seed of the data

    The data are drawn with W and mu of normals, psi from 0.1 to 1. Parameters start at mean 0,
    noise 1 and W from N(0, 1/4). Raises SdeflowError where EM does not end, as where a psi tends to 0.
    """

    def __init__(self, data: int = 100, observed: int = 6, latent: int = 2, data_seed: int = 0) -> None:
        if data < 2 or observed < 2:
            raise SdeflowError(f"data and observed must be at least 2, given {data} and {observed}")
        g = torch.Generator().manual_seed(data_seed)
        psi = torch.logspace(-1, 0, observed, dtype=torch.float64)
        weight = torch.randn(observed, latent, generator=g, dtype=torch.float64)
        mean = torch.randn(observed, generator=g, dtype=torch.float64)
        x = torch.randn(data, latent, generator=g, dtype=torch.float64)
        noise = torch.randn(data, observed, generator=g, dtype=torch.float64)
        super().__init__(x @ weight.mT + mean + psi.sqrt() * noise, latent)
        self.mle = self._maximum()

    def _maximum(self) -> Parameters:
        (data, observed), (latent,) = self.data.shape, self.latent_shape
        found = _maximised(np.cov(self.data.numpy().T, bias=True), latent)
        if found is None:
            raise SdeflowError(
                f"{data} data of {observed} coordinates do not determine {latent} factors: EM does not "
                f"settle in {EM_MOST:,} steps, or a noise tends to 0; give more data or fewer factors"
            )
        w, psi = map(torch.from_numpy, found)
        return {"weight": w, "mean": self.data.mean(0), "log_noise": psi.log()}


def _maximised(s: Matrix, k: int) -> tuple[Matrix, Matrix] | None:
    """W and psi of the MLE for data of covariance s, by EM; None where it does not settle."""
    values, vectors = np.linalg.eigh(s)
    weight, psi = vectors[:, -k:] * np.sqrt(np.maximum(values[-k:], 0) / 2), np.diag(s) / 2
    for _ in range(EM_MOST):
        if (psi < EM_LEAST * np.diag(s)).any():
            return None
        inverse = np.linalg.inv(weight @ weight.T + np.diag(psi))
        # of the log-likelihood for a datum, at mu = mean y: in W, and twice that in psi
        pull = inverse @ s @ inverse - inverse
        if max(np.abs(pull @ weight).max(), np.abs(psi * np.diag(pull)).max()) < EM_TOLERANCE:
            return weight.copy(), psi.copy()
        gain = weight.T @ inverse  # E[x|y] = gain (y - mu)
        cross = s @ gain.T
        second = np.eye(k) - gain @ weight + gain @ cross  # mean over data of E[x x'|y]
        weight = np.linalg.solve(second, cross.T).T
        psi = np.diag(s - weight @ cross.T)
    return None

"""A latent energy-based model in which everything is Gaussian, so that every step is an affine map."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.model.energy import EnergyModel
from sdeflow.model.model import Parameters


class LinearEnergy(EnergyModel):
    """U_alpha(x) = |x - alpha|^2 / 2,  y_i1 | x ~ N(x, s^2 I),  y_i2 | x ~ N(x + beta, s^2 I), with x in R^d.

    Z(alpha) = (2 pi)^(d/2). Marginals y_i1 ~ N(alpha, (1 + s^2) I) and, where there is an offset beta,
    y_i2 ~ N(alpha + beta, (1 + s^2) I), of covariance I with each other. MLE: alpha the mean of the first
    observations, beta the mean of the differences. Posterior of x_i: variance v = 1/(1 + m/s^2) a coordinate,
    mean v (alpha + (y_i1 + y_i2 - beta)/s^2), with m = 2 observations a datum; 1 without an offset.

    data         D, the number of latents
    latent       d, coordinates of a latent
    noise        s, standard deviation of an observation
    offset       whether there are second observations, and with them a parameter of the likelihood
    alpha_true   the alpha that the data are drawn with; parameters start at 0
    data_seed    seed of the data

    Source: the linear-Gaussian case of Marks, Wang, Akyildiz 2025, arXiv:2510.12311.
    """

    def __init__(
        self,
        data: int = 5,
        latent: int = 1,
        noise: float = 1.0,
        offset: bool = False,
        alpha_true: float = 1.0,
        data_seed: int = 0,
    ) -> None:
        if data < 1 or latent < 1 or not noise > 0:
            raise SdeflowError(f"data, latent and noise must be positive, given {data}, {latent} and {noise}")
        g = torch.Generator().manual_seed(data_seed)
        x = alpha_true + torch.randn(data, 1, latent, generator=g, dtype=torch.float64)
        spread = torch.randn(data, 2 if offset else 1, latent, generator=g, dtype=torch.float64)
        self.data = x + noise * spread
        if offset:
            self.data[:, 1] -= 2 * alpha_true
        self.latent_shape = (latent,)
        self.variance, self.offset = noise**2, offset
        self._constant = -self.data[0].numel() * log(2 * pi * noise**2) / 2

    def energy(self, alpha: Parameters, x: Tensor) -> Tensor:
        return (x - alpha["mean"]).square().sum(-1) / 2

    def log_likelihood(self, beta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        gap = (y[:, None, 0] - x).square()
        if self.offset:
            gap = gap + (y[:, None, 1] - beta["offset"] - x).square()
        return self._constant - gap.sum(-1) / (2 * self.variance)

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Observations [n, m, d] of latents x [n, d]."""
        means = torch.stack([x, x + theta["beta.offset"]] if self.offset else [x], 1)
        noise = torch.randn(means.shape, generator=generator, dtype=means.dtype)
        return means + self.variance**0.5 * noise

    def init_alpha(self, generator: torch.Generator) -> Parameters:
        return {"mean": torch.zeros(self.latent_shape)}

    def init_beta(self, generator: torch.Generator) -> Parameters:
        return {"offset": torch.zeros(self.latent_shape)} if self.offset else {}

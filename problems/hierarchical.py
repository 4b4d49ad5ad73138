"""The toy hierarchical model, in which everything is known in closed form."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters


class Hierarchical(Model):
    """x_i ~ N(theta, s^2 I),  y_i | x_i ~ N(x_i, I), with scalar theta and latents x_i in R^d.

    MLE: the mean of y over data and coordinates. Posterior of a coordinate: N(v (y + theta/s^2), v) with
    v = 1/(1 + 1/s^2). Marginal: y ~ N(theta, 1 + s^2).

    data         D, the number of latents
    latent       d, coordinates of a latent; (D, d) = (1, 100) is one latent behind 100 observations
    scale        s, standard deviation of a latent
    theta_true   the theta that the data are drawn with
    mle          shift the data so that the MLE is exactly this (default: leave them as drawn)
    x_start      particles start from N(x_start, 1); theta starts at 0
    data_seed    seed of the data

    Source: Lim et al. 2024, arXiv:2312.07335, toy experiments; Kuntz et al. 2023, arXiv:2204.12965.
    """

    def __init__(
        self,
        data: int = 100,
        latent: int = 1,
        scale: float = 1.0,
        theta_true: float = 100.0,
        mle: float | None = None,
        x_start: float = 0.0,
        data_seed: int = 0,
    ) -> None:
        if data < 1 or latent < 1:
            raise SdeflowError(f"data and latent must be at least 1, given {data} and {latent}")
        if scale <= 0:
            raise SdeflowError(f"scale must be positive, given {scale}")
        g = torch.Generator().manual_seed(data_seed)
        x = theta_true + scale * torch.randn(data, latent, generator=g, dtype=torch.float64)
        y = x + torch.randn(data, latent, generator=g, dtype=torch.float64)
        self.data = y if mle is None else y - y.mean() + mle
        self.latent_shape = (latent,)
        self.variance = scale**2
        self.x_start = x_start
        self._constant = -latent * (log(2 * pi) + log(scale))

    def log_joint(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        prior = (x - theta["theta"]).square().sum(-1) / self.variance
        likelihood = (y[:, None] - x).square().sum(-1)
        return self._constant - (prior + likelihood) / 2

    def score_x(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        # (theta - x)/s^2 + (y - x), in one pass over x
        return torch.sub(theta["theta"] / self.variance + y[:, None], x, alpha=1 + 1 / self.variance)

    def score_theta(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"theta": (x.sum() - x.numel() * theta["theta"]) / self.variance}

    def log_likelihood(self, theta: Parameters) -> Tensor:
        """sum_i log N(y_i; theta, (1 + s^2) I)."""
        square = (self.data - theta["theta"]).square() / (1 + self.variance)
        return -(square + log(2 * pi * (1 + self.variance))).sum() / 2

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """log N(x; theta, s^2 I), [n] of x [n, d]."""
        square = (x - theta["theta"]).square().sum(-1) / self.variance
        return -(square + x.shape[-1] * log(2 * pi * self.variance)) / 2

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n latents [n, d] from N(theta, s^2 I)."""
        return theta["theta"] + self.variance**0.5 * torch.randn(n, *self.latent_shape, generator=generator)

    def draw_prior(self, theta: Parameters, xi: Tensor) -> Tensor:
        """Latents from N(theta, s^2 I) made of standard normals."""
        return theta["theta"] + self.variance**0.5 * xi

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Observations [n, d] of latents x [n, d]."""
        return x + torch.randn(x.shape, generator=generator, dtype=x.dtype)

    def init_theta(self, generator: torch.Generator) -> Parameters:
        return {"theta": torch.zeros(())}

    def init_x(self, generator: torch.Generator, data: int, particles: int) -> Tensor:
        return self.x_start + super().init_x(generator, data, particles)

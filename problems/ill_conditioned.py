"""A linear-Gaussian model of chosen condition number, in which everything is known in closed form."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters


class IllConditioned(Model):
    """x_ic ~ N(theta_c, s_c^2),  y_ic | x_ic ~ N(x_ic, s_c^2),  c = 1..p; s_c^2 falls from 1 to 1/condition.

    Each coordinate is a toy model of its own, at 1/s_c^2 times the curvature of the first; the s_c^2 are in
    geometric progression, so that the curvatures span a factor `condition` in theta and in x.

        MLE          theta*_c = mean_i y_ic
        posterior    x_ic | y_ic ~ N((y_ic + theta_c)/2, s_c^2/2)
        marginal     y_ic ~ N(theta_c, 2 s_c^2)
        E            sum_ic KL(q_ic | posterior) - log N(y_ic; theta_c, 2 s_c^2);   E* the latter at theta*

    The forces on the means are (D/s^2)(x - theta) and (theta + y - 2 x)/s^2. With theta's clock at 2/D of
    that of x their rates are (2 - sqrt 2)/s^2 and (2 + sqrt 2)/s^2: all of them span 5.8 times `condition`.

    data        D, the number of latents
    latent      p, coordinates of theta and of each latent, at least 2
    condition   largest over smallest 1/s_c^2
    distance    the data are drawn with theta_c = distance s_c, so that all coordinates begin alike in nats;
                theta starts at 0, particles from N(0, s_c^2)
    data_seed   seed of the data
    """

    def __init__(
        self,
        data: int = 8,
        latent: int = 4,
        condition: float = 1000.0,
        distance: float = 10.0,
        data_seed: int = 0,
    ) -> None:
        if data < 1 or latent < 2:
            raise SdeflowError(
                f"data must be at least 1 and latent at least 2, given {data} and {latent}: raise them"
            )
        if not condition >= 1:
            raise SdeflowError(f"condition must be at least 1, given {condition}")
        g = torch.Generator().manual_seed(data_seed)
        self.scale = torch.logspace(0, -log(condition, 10) / 2, latent, dtype=torch.float64)
        noise = torch.randn(2, data, latent, generator=g, dtype=torch.float64).sum(0)
        self.data = self.scale * (distance + noise)
        self.latent_shape = (latent,)

    def log_joint(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        squares = (x - theta["theta"]).square() + (y[:, None] - x).square()
        return -(squares / (2 * self.scale**2) + log(2 * pi) + 2 * self.scale.log()).sum(-1)

    def score_x(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return (theta["theta"] + y[:, None] - 2 * x) / self.scale**2

    def score_theta(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"theta": (x - theta["theta"]).sum((0, 1)) / self.scale**2}

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """sum_c log N(x_c; theta_c, s_c^2), [n] of x [n, p]."""
        square = ((x - theta["theta"]) / self.scale).square()
        return -(square + log(2 * pi) + 2 * self.scale.log()).sum(-1) / 2

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n latents [n, p], x_c from N(theta_c, s_c^2)."""
        return theta["theta"] + self.scale * torch.randn(n, *self.latent_shape, generator=generator)

    def draw_prior(self, theta: Parameters, xi: Tensor) -> Tensor:
        """Latents with x_c from N(theta_c, s_c^2) made of standard normals."""
        return theta["theta"] + self.scale * xi

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Observations [n, p] of latents x [n, p]."""
        return x + self.scale * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    def init_theta(self, generator: torch.Generator) -> Parameters:
        return {"theta": torch.zeros(self.latent_shape)}

    def init_x(self, generator: torch.Generator, data: int, particles: int) -> Tensor:
        return self.scale * super().init_x(generator, data, particles)

    @property
    def minimum(self) -> float:
        """E*, -sum_ic log N(y_ic; mean_i y_ic, 2 s_c^2)."""
        variance = 2 * self.scale**2
        squares = (self.data - self.data.mean(0)).square() / variance
        return float((squares + (2 * pi * variance).log()).sum() / 2)

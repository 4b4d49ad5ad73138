"""Latents seen up to their sign: a posterior of two modes with equal weights, all in closed form."""

from __future__ import annotations

from math import log, pi
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters


class TwoModes(Model):
    """x_i ~ N(0, t^2 I) in R^d,  y_i | x_i ~ N(theta + x_i, s^2 I)/2 + N(theta - x_i, s^2 I)/2.

    With r_i = y_i - theta and v = 1/(1/t^2 + 1/s^2):

        marginal     y_i ~ N(theta, (t^2 + s^2) I), so that the MLE is the mean of y
        E*           -sum_i log N(y_i; mean y, (t^2 + s^2) I)
        posterior    N(m_i, v I)/2 + N(-m_i, v I)/2 with m_i = v r_i/s^2: half of it in each mode
        log-joint    -|x|^2/(2v) - |r|^2/(2 s^2) + log cosh(<x, r>/s^2) + constant
        scores       -x/v + tanh(a) r/s^2  and  (r - tanh(a) x)/s^2,  a = <x, r>/s^2

    Between the modes lies a barrier of about |m_i|^2/(2v) - log 2, on average d t^2/(2 s^2) - log 2; it
    varies the less the larger d. Which mode a particle is in is told by the sign of <x, y_i - mean y>.

    data        D, the number of latents
    latent      d, coordinates of a latent
    prior       t, standard deviation of a latent
    noise       s, standard deviation of an observation
    data_seed   seed of the data, which are drawn with theta = 1 in all coordinates; theta starts at 0

    Particles start in the mode +m_i at the MLE, from N(m_i, v I/4).
    """

    def __init__(
        self, data: int = 8, latent: int = 8, prior: float = 1.0, noise: float = 1.0, data_seed: int = 0
    ) -> None:
        if data < 2 or latent < 1:
            raise SdeflowError(
                f"data must be at least 2 and latent at least 1, given {data} and {latent}: raise them"
            )
        if not (prior > 0 and noise > 0):
            raise SdeflowError(f"prior and noise must be positive, given {prior} and {noise}")
        g = torch.Generator().manual_seed(data_seed)
        spread = (prior**2 + noise**2) ** 0.5
        self.data = 1 + spread * torch.randn(data, latent, generator=g, dtype=torch.float64)
        self.latent_shape = (latent,)
        self.prior, self.noise = prior**2, noise**2
        self.variance = 1 / (1 / self.prior + 1 / self.noise)
        self.mle = self.data.mean(0)
        self._constant = -latent * (log(2 * pi) + log(prior * noise)) - log(2)

    def with_data(self, data: Tensor, held_out: Tensor | None) -> Self:
        own = super().with_data(data, held_out)
        own.mle = data.mean(0)
        return own

    def log_joint(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        r = (y - theta["theta"])[:, None]
        a = (x * r).sum(-1) / self.noise
        squares = x.square().sum(-1) / self.variance + r.square().sum(-1) / self.noise
        # log(2 cosh a), which cosh itself would overflow
        return self._constant - squares / 2 + a.abs() + softplus(-2 * a.abs())

    def score_x(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        r = (y - theta["theta"])[:, None]
        sign = torch.tanh((x * r).sum(-1, keepdim=True) / self.noise)
        return sign * r / self.noise - x / self.variance

    def score_theta(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        r = (y - theta["theta"])[:, None]
        sign = torch.tanh((x * r).sum(-1, keepdim=True) / self.noise)
        return {"theta": (r - sign * x).sum((0, 1)) / self.noise}

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """log N(x; 0, t^2 I), [n] of x [n, d]."""
        return -(x.square().sum(-1) / self.prior + x.shape[-1] * log(2 * pi * self.prior)) / 2

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n latents [n, d] from N(0, t^2 I)."""
        return self.prior**0.5 * torch.randn(n, *self.latent_shape, generator=generator)

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Observations [n, d] of latents x [n, d], whose sign is lost."""
        sign = 2 * torch.randint(2, (len(x), 1), generator=generator) - 1
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return theta["theta"] + sign * x + self.noise**0.5 * noise

    def init_theta(self, generator: torch.Generator) -> Parameters:
        return {"theta": torch.zeros(self.latent_shape)}

    def init_x(self, generator: torch.Generator, data: int, particles: int) -> Tensor:
        mode = self.variance * (self.data - self.mle) / self.noise
        return mode[:, None] + self.variance**0.5 / 2 * super().init_x(generator, data, particles)

    def observables(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """other_mode: the share of particles that are not in the mode where all began; in the end 1/2."""
        side = (x * (y - self.mle)[:, None]).sum(-1)
        return {"other_mode": (side < 0).to(x.dtype).mean()}

    @property
    def minimum(self) -> float:
        """E*, -sum_i log N(y_i; mean y, (t^2 + s^2) I)."""
        variance = self.prior + self.noise
        squares = (self.data - self.mle).square().sum() / variance
        return float(squares + self.data.numel() * log(2 * pi * variance)) / 2

"""Functions to minimise as models, so that every system takes them: what is learned is the minimum."""

from __future__ import annotations

from abc import abstractmethod
from math import log, pi

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters


class Landscape(Model):
    """log p_theta(y) = -f(theta) for any y, with a latent x ~ N(0, 1) that has no part in it.

    So E* is the least value of f, the posterior N(0, 1), and theta's gradient that of f. State `f`.

    dimension   d, the length of theta, which starts from U(-3, 3)
    """

    latent_shape = (1,)

    def __init__(self, dimension: int) -> None:
        if dimension < 1:
            raise SdeflowError(f"dimension must be at least 1, given {dimension}")
        self.dimension, self.data = dimension, torch.zeros(1, 1, dtype=torch.float64)

    @abstractmethod
    def f(self, x: Tensor) -> Tensor:
        """The function at points x [..., d], [...]."""

    def log_likelihood(self, theta: Parameters) -> Tensor:
        return -self.f(theta["theta"])

    def log_joint(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return self.log_likelihood(theta) + self.log_prior(theta, x)

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """log N(x; 0, 1), [...] of x [..., 1]."""
        return -(x.square().sum(-1) + log(2 * pi)) / 2

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n latents [n, 1] from N(0, 1)."""
        return torch.randn(n, 1, generator=generator)

    def init_theta(self, generator: torch.Generator) -> Parameters:
        return {"theta": 6 * torch.rand(self.dimension, generator=generator, dtype=torch.float64) - 3}

    def observables(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """f at theta."""
        return {"f": -self.log_likelihood(theta)}


class Rastrigin(Landscape):
    """Rastrigin's function, with a local minimum near every whole number and the least, 0, at the origin.

        f(x) = sum_i (x_i^2 + 10 - 10 cos 2 pi x_i)

    dimension   d, the length of theta, which starts from U(-3, 3)

    Source: Rastrigin 1974.
    """

    def __init__(self, dimension: int = 2) -> None:
        super().__init__(dimension)

    def f(self, x: Tensor) -> Tensor:
        return (x.square() + 10 - 10 * (2 * pi * x).cos()).sum(-1)

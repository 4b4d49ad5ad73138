"""What a user writes for a prior that is an energy: a model whose normalising constant is not known."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from sdeflow.model.model import Data, Model, Parameters

ALPHA, BETA = "alpha.", "beta."


class EnergyModel(Model):
    """A latent-variable model with an energy-based prior, theta = (alpha, beta):

        p_theta(x, y_i) = p_beta(y_i | x) exp(-U_alpha(x)) / Z(alpha)

    A user states `energy` and `log_likelihood`, with parameters from `init_alpha` and `init_beta`. As a Model
    it has parameters 'alpha.NAME' and 'beta.NAME', and the log-joint without log Z(alpha). Where `init_alpha`
    gives nothing the prior is fixed, and `energy` should be normalised: such a model is an ordinary one,
    for every system.

    Source: Marks, Wang, Akyildiz 2025, arXiv:2510.12311; Pang et al. 2020, arXiv:2006.08205.
    """

    @abstractmethod
    def energy(self, alpha: Parameters, x: Tensor) -> Tensor:
        """U_alpha(x), [n] of x [n, *latent_shape]."""

    @abstractmethod
    def log_likelihood(self, beta: Parameters, x: Tensor, y: Data) -> Tensor:
        """log p_beta(y_i | x_ij), [B, N] of x [B, N, *latent_shape] and B data y."""

    @abstractmethod
    def init_alpha(self, generator: torch.Generator) -> Parameters | nn.Module:
        """The energy's parameters at the start; an empty mapping for a fixed prior."""

    def init_beta(self, generator: torch.Generator) -> Parameters | nn.Module:
        """The likelihood's parameters at the start; none unless overridden."""
        return {}

    def init_prior(self, generator: torch.Generator, particles: int) -> Tensor:
        """Prior particles at the start, [P, *latent_shape]; standard normal unless overridden."""
        return torch.randn(particles, *self.latent_shape, generator=generator, dtype=torch.float64)

    def init_theta(self, generator: torch.Generator) -> Parameters:
        return {
            prefix + name: value
            for prefix, init in ((ALPHA, self.init_alpha), (BETA, self.init_beta))
            for name, value in named(init(generator)).items()
        }

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """-U_alpha(x), [n] of x [n, *latent_shape]: log p_alpha where the energy is normalised."""
        return -self.energy(part(theta, ALPHA), x)

    def log_joint(self, theta: Parameters, x: Tensor, y: Data) -> Tensor:
        """log p_beta(y_i | x_ij) - U_alpha(x_ij), without log Z(alpha)."""
        energy = self.energy(part(theta, ALPHA), x.flatten(0, 1)).view(x.shape[:2])
        return self.log_likelihood(part(theta, BETA), x, y) - energy


class Prior(Model):
    """The prior of an energy model as a model of its own: one latent, no observation, -U_alpha(x).

    Its particles are samples of p_alpha, and its evidence is log Z(alpha).
    """

    def __init__(self, model: EnergyModel) -> None:
        self.of = model
        self.latent_shape = model.latent_shape
        self.data = torch.zeros(1, 0)

    def init_theta(self, generator: torch.Generator) -> Parameters:
        return named(self.of.init_alpha(generator))

    def log_joint(self, theta: Parameters, x: Tensor, y: Data) -> Tensor:
        return -self.of.energy(theta, x.flatten(0, 1)).view(x.shape[:2])

    def to(self, dtype: torch.dtype, device: torch.device) -> Self:
        return type(self)(self.of.to(dtype, device))


def part(theta: Parameters, prefix: str) -> dict[str, Tensor]:
    """The parameters whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): v for name, v in theta.items() if name.startswith(prefix)}


def named(parameters: Parameters | nn.Module) -> Mapping[str, Tensor]:
    """Parameters by name, of a mapping or of a module."""
    return dict(parameters.named_parameters()) if isinstance(parameters, nn.Module) else parameters

"""Density estimation on a line: a decoder makes numbers of latents whose prior is learned."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, pi

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters
from sdeflow.problems.networks import Mixture, Network, of_normals, perceptron


class Density(Model):
    """x_i ~ p_theta in R^d,  y_i | x_i ~ N(g_theta(x_i), sigma^2),  y from 1/2 N(-2, 1/4) + 1/2 N(2, 1/4).

    g is a multilayer perceptron with leaky ReLUs. p_theta is a mixture over K learned pseudo-points u_k in
    R^points, from N(0, 10^2) at the start, that another maps to means and diagonal variances,
    p(x) = 1/K sum_k N(x; mu(u_k), diag v(u_k)) with v = softplus(.) + 1e-5.

    data           D, the number of latents
    latent         d, coordinates of a latent
    hidden         widths of the hidden layers of both networks
    sigma          standard deviation of y about g
    pseudo_points  K, components of the prior
    points         dimension of the pseudo-points
    test           fresh data, with other draws, to which the distance W1 of as many samples is recorded
    held_out       so many of the fresh data, the last of them, for a loss on data that were not learned
    data_seed      seed of the data

    Source: Lim et al. 2024, arXiv:2312.07335, density estimation.
    """

    joint_maximum = False  # the decoder's first weights grow while latents shrink

    def __init__(
        self,
        data: int = 100,
        latent: int = 10,
        hidden: Sequence[int] = (512, 512, 512),
        sigma: float = 0.1,
        pseudo_points: int = 20,
        points: int = 2,
        test: int = 10_000,
        held_out: int = 0,
        data_seed: int = 0,
    ) -> None:
        if min(data, latent, *hidden, pseudo_points, points, test) < 1:
            raise SdeflowError(
                "data, latent, hidden, pseudo_points, points and test must be at least 1, given "
                f"{data}, {latent}, {list(hidden)}, {pseudo_points}, {points} and {test}"
            )
        if not sigma > 0:
            raise SdeflowError(f"sigma must be positive, given {sigma}")
        g = torch.Generator().manual_seed(data_seed)
        self.data = _two_modes(data, g)[:, None]
        if not 0 <= held_out <= test:
            raise SdeflowError(f"held_out must lie in 0..{test}, the number of test data, given {held_out}")
        fresh = _two_modes(test, g)
        if held_out:
            self.held_out = fresh[-held_out:, None]
        self.test = fresh.sort().values
        self._normals = torch.randn(test, latent + 1, generator=g, dtype=torch.float64)
        self.latent_shape = (latent,)
        self.sigma = sigma
        self._sizes = latent, tuple(hidden), pseudo_points, points
        with torch.random.fork_rng(devices=[]):
            self.network = self._new_network()  # its structure counts; the values come with theta
        self._constant = -log(2 * pi * sigma**2) / 2

    def _new_network(self) -> Network:
        latent, hidden, pseudo_points, points = self._sizes
        decoder = perceptron(latent, hidden, 1, nn.Identity())
        return Network(decoder, Mixture(latent, pseudo_points, points, hidden))

    def init_theta(self, generator: torch.Generator) -> nn.Module:
        return self._new_network()

    def log_joint(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        value, log_prior = functional_call(self.network, dict(theta), (x,))
        misfit = (y[:, None] - value).square().sum(-1)
        return self._constant + log_prior - misfit / (2 * self.sigma**2)

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """log p_theta(x), [n] of latents x [n, d]."""
        return functional_call(self.network, dict(theta), (x[:, None],))[1].squeeze(1)

    def draw_prior(self, theta: Parameters, xi: Tensor) -> Tensor:
        """Latents from p_theta made of standard normals like them."""
        mean, variance = functional_call(self.network, dict(theta), (None,))
        return of_normals(mean, variance, xi)

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n latents [n, d] from p_theta."""
        xi = torch.randn(n, *self.latent_shape, generator=generator)
        return self.draw_prior(theta, xi.to(next(iter(theta.values())).dtype))

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Observations [n, 1] of latents x [n, d]."""
        value, _ = functional_call(self.network, dict(theta), (x[:, None],))
        noise = torch.randn(len(x), 1, generator=generator, dtype=x.dtype)
        return value.squeeze(1) + self.sigma * noise

    def observables(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """w1: Wasserstein-1 distance of samples, of the same normals at each time, to the test data."""
        xi, noise = self._normals.split([self.latent_shape[0], 1], 1)
        value, _ = functional_call(self.network, dict(theta), (self.draw_prior(theta, xi)[:, None],))
        drawn = (value.flatten() + self.sigma * noise.flatten()).sort().values
        return {"w1": (drawn - self.test).abs().mean()}


def _two_modes(n: int, generator: torch.Generator) -> Tensor:
    """n draws from 1/2 N(-2, 1/4) + 1/2 N(2, 1/4)."""
    side = torch.randint(2, (n,), generator=generator)
    return 4.0 * side - 2 + torch.randn(n, generator=generator, dtype=torch.float64) / 2

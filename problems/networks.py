"""Networks of decoder models: perceptrons, convolutions, a prior that is a mixture over learned points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log, pi

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


def log_normal(x: Tensor) -> Tensor:
    """log N(x; 0, I) over the last axis."""
    return -(x.square().sum(-1) + x.shape[-1] * log(2 * pi)) / 2


class Network(nn.Module):
    """A decoder and, where the prior is learned, its mixture; N(0, I) else."""

    def __init__(self, decoder: nn.Module, prior: Mixture | None) -> None:
        super().__init__()
        self.decoder, self.prior = decoder, prior

    def forward(self, x: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images and log p(x) of latents [B, N, d]; means and variances of the mixture for None."""
        if x is None:
            assert self.prior is not None
            return self.prior.components()
        image = self.decoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        if self.prior is None:
            return image, log_normal(x)
        return image, self.prior(x)


class Mixture(nn.Module):
    """log p(x) of 1/K sum_k N(x; mu(u_k), diag v(u_k)), with u_k in R^points."""

    def __init__(
        self, latent: int, pseudo_points: int, points: int, hidden: Sequence[int] = (512, 512, 512)
    ) -> None:
        super().__init__()
        self.pseudo_points = nn.Parameter(10 * torch.randn(pseudo_points, points))
        self.encoder = perceptron(points, hidden, 2 * latent, nn.Identity())

    def components(self) -> tuple[Tensor, Tensor]:
        mean, raw = self.encoder(self.pseudo_points).chunk(2, dim=-1)
        return mean, softplus(raw) + 1e-5

    def forward(self, x: Tensor) -> Tensor:
        # |x - mu|^2 / v summed over coordinates, by matrix products: no tensor [B, N, K, d]
        mean, variance = self.components()
        precision = variance.reciprocal()
        square = (
            x.square() @ precision.mT - 2 * x @ (mean * precision).mT + (mean.square() * precision).sum(-1)
        )
        normaliser = variance.log().sum(-1) + x.shape[-1] * log(2 * pi)
        return (-(square + normaliser) / 2).logsumexp(-1) - log(len(mean))


def perceptron(inputs: int, hidden: Sequence[int], outputs: int, last: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    widths = [inputs, *hidden]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs), last)


class ChannelsLast(nn.Module):
    """[n, latent] to [n, latent, 1, 1] with the channels last in memory, where convolutions then leave them.

    No number is copied. oneDNN takes them so without reordering them: a step of the decoder of cifar16.toml,
    640 images, took 0.86 s instead of 1.11 on one core (medians of 5 rounds, in turn).
    """

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None, None].movedim(-1, 1)


def convolutional(latent: int, width: int, channels: int, side: int = 32) -> nn.Sequential:
    """[n, latent] to [n, channels, s, s]: 8 width at s/4 x s/4, 4 width at s/2 x s/2, 2 width at s x s."""
    return nn.Sequential(
        ChannelsLast(),
        nn.ConvTranspose2d(latent, 8 * width, side // 4, bias=False),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(8 * width, 4 * width, 4, stride=2, padding=1, bias=False),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1, bias=False),
        nn.LeakyReLU(),
        nn.Conv2d(2 * width, channels, 3, padding=1, bias=False),
        nn.Tanh(),
    )


def of_normals(mean: Tensor, variance: Tensor, xi: Tensor) -> Tensor:
    """Draws of 1/K sum_k N(mu_k, diag v_k), [..., d], made of as many standard normals xi.

    The first coordinate's place in [0, 1], Phi(xi_1), lies in one of K equal parts, which is the component;
    its place in that part is uniform again, and Phi^-1 of it the normal that is left. mean, variance [K, d].
    """
    count = len(mean)
    place = count * torch.special.ndtr(xi[..., 0])
    component = place.long().clamp(0, count - 1)
    inside = (place - component).clamp(count * 2**-24, 1 - count * 2**-24)  # never 0 or 1 in float32
    normal = torch.cat([torch.special.ndtri(inside)[..., None], xi[..., 1:]], -1)
    return mean[component] + variance[component].sqrt() * normal

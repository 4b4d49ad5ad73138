"""Decoder models of the image data sets, which are fetched at first use."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log, pi
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters


class Images(Model):
    """x_i ~ p_theta,  y_i | x_i ~ N(g_theta(x_i), sigma^2 I), with g a decoder and pixels in [-1, 1].

        l_i(theta, x) = log p_theta(x) + log N(y_i; g_theta(x), sigma^2 I)

    Pixels v in 0..255 become 2 v/255 - 1, then U(0, 1/256) is added once (dequantisation, from
    `data_seed`), then they are clipped to [-1, 1].

    dataset         cifar10, mnist or fashion_mnist; fetched where it is not there (see problems/README.md)
    images          use the first so many training images (default: all)
    held_out        the first so many test images, for a loss on images that were not learned
    latent          d, dimension of a latent
    sigma           standard deviation of a pixel about g
    decoder         'convolutional', from 8 x 8 up to 32 x 32 with `width` = ngf, no biases, leaky ReLUs, tanh
                    at the end; or 'mlp', of `hidden` layers with leaky ReLUs, tanh at the end
    pseudo_points   K of the prior: 0 is N(0, I); else a mixture over K learned pseudo-points u_k that an
                    MLP of 3 x 512 maps to means and diagonal variances softplus(.) + 1e-5,
                    p(x) = 1/K sum_k N(x; mu(u_k), diag v(u_k)), with u_k from N(0, 10^2) at the start

    Source: Lim et al. 2024, arXiv:2312.07335, image experiments. Ours, as not published: the tanh, the
    dimension of latents and pseudo-points (the same), sigma, and the number of pseudo-points.
    """

    image_shape: tuple[int, int, int]
    joint_maximum = False  # the decoder's first weights grow while latents shrink

    def __init__(
        self,
        dataset: Literal["cifar10", "mnist", "fashion_mnist"],
        images: int | None = None,
        held_out: int = 0,
        latent: int = 64,
        sigma: float = 0.1,
        decoder: Literal["convolutional", "mlp"] = "convolutional",
        width: int = 256,
        hidden: Sequence[int] = (512, 512, 512),
        pseudo_points: int = 0,
        data_seed: int = 0,
    ) -> None:
        if not sigma > 0:
            raise SdeflowError(f"sigma must be positive, given {sigma}")
        if min(latent, width, *hidden) < 1 or pseudo_points < 0:
            raise SdeflowError("latent, width and hidden must be at least 1, and pseudo_points at least 0")
        from sdeflow.data.images import load_images

        pixels, _ = load_images(dataset)
        if images is not None and not 1 <= images <= len(pixels):
            raise SdeflowError(f"images must lie in 1..{len(pixels)}, given {images}")
        unseen, _ = load_images(dataset, "test")
        if not 0 <= held_out <= len(unseen):
            raise SdeflowError(f"held_out must lie in 0..{len(unseen)}, given {held_out}")
        channels, height, side = pixels.shape[1:]
        self.image_shape = (channels, height, side)
        if decoder == "convolutional" and (height, side) != (32, 32):
            raise SdeflowError(
                f"the convolutional decoder makes 32 × 32 images, {dataset} has "
                f'{self.image_shape[1]} × {self.image_shape[2]}: take decoder = "mlp"'
            )
        g = torch.Generator().manual_seed(data_seed)
        self.data = _pixels(pixels[:images], g)
        if held_out:
            self.held_out = _pixels(unseen[:held_out], g)
        self.dataset = dataset
        self.latent_shape = (latent,)
        self.sigma = sigma
        self._decoder, self._width, self._hidden, self._pseudo_points = (
            decoder,
            width,
            tuple(hidden),
            pseudo_points,
        )
        with torch.random.fork_rng(devices=[]):
            self.network = self._new_network()  # its structure counts; the values come with theta
        self._constant = -self.data.shape[1] / 2 * log(2 * pi * sigma**2)

    def _new_network(self) -> _Network:
        (latent,), (channels, height, width) = self.latent_shape, self.image_shape
        if self._decoder == "convolutional":
            decoder = _convolutional(latent, self._width, channels)
        else:
            decoder = _perceptron(latent, self._hidden, channels * height * width, nn.Tanh())
        return _Network(decoder, _Mixture(latent, self._pseudo_points) if self._pseudo_points else None)

    def init_theta(self, generator: torch.Generator) -> nn.Module:
        return self._new_network()

    def log_joint(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        image, log_prior = functional_call(self.network, dict(theta), (x,))
        misfit = (y[:, None] - image.flatten(2)).square().sum(-1)
        return self._constant + log_prior - misfit / (2 * self.sigma**2)

    def decode(self, theta: Parameters, x: Tensor) -> Tensor:
        """g_theta(x): latents [n, d] to images [n, pixels] in [-1, 1]."""
        image, _ = functional_call(self.network, dict(theta), (x[:, None],))
        return image.flatten(1)

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """log p_theta(x), [n] of latents x [n, d]."""
        if self.network.prior is None:
            return _log_normal(x)
        weights = {name.removeprefix("prior."): v for name, v in theta.items() if name.startswith("prior.")}
        return functional_call(self.network.prior, weights, (x,))

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Images [n, pixels] of latents x [n, d], with the noise of their pixels, which knows no [-1, 1]."""
        mean = self.decode(theta, x)
        return mean + self.sigma * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)

    def real_images(self, split: Literal["train", "test"]) -> Tensor:
        """All images of the data set, as published: bytes [n, channels, height, width]."""
        from sdeflow.data.images import load_images

        return torch.from_numpy(load_images(self.dataset, split)[0])

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n latents [n, d] from p_theta."""
        noise = torch.randn(n, *self.latent_shape, generator=generator)
        if not self._pseudo_points:
            return noise
        mean, variance = functional_call(self.network, dict(theta), (None,))
        which = torch.randint(len(mean), (n,), generator=generator)
        return mean[which] + variance[which].sqrt() * noise


def _pixels(images: NDArray[np.uint8], generator: torch.Generator) -> Tensor:
    """Images [n, ...] as [n, pixels] in [-1, 1], dequantised."""
    values = torch.from_numpy(images.reshape(len(images), -1)).float()
    noise = torch.rand(values.shape, generator=generator)
    return values.div_(127.5).sub_(1).add_(noise.div_(256)).clamp_(-1, 1)


def _log_normal(x: Tensor) -> Tensor:
    """log N(x; 0, I) over the last axis."""
    return -(x.square().sum(-1) + x.shape[-1] * log(2 * pi)) / 2


class _Network(nn.Module):
    """A decoder and, where the prior is learned, its mixture; N(0, I) else."""

    def __init__(self, decoder: nn.Module, prior: _Mixture | None) -> None:
        super().__init__()
        self.decoder, self.prior = decoder, prior

    def forward(self, x: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images and log p(x) of latents [B, N, d]; means and variances of the mixture for None."""
        if x is None:
            assert self.prior is not None
            return self.prior.components()
        image = self.decoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        if self.prior is None:
            return image, _log_normal(x)
        return image, self.prior(x)


class _Mixture(nn.Module):
    """log p(x) of 1/K sum_k N(x; mu(u_k), diag v(u_k))."""

    def __init__(self, latent: int, pseudo_points: int) -> None:
        super().__init__()
        self.pseudo_points = nn.Parameter(10 * torch.randn(pseudo_points, latent))
        self.encoder = _perceptron(latent, (512, 512, 512), 2 * latent, nn.Identity())

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


def _perceptron(inputs: int, hidden: Sequence[int], outputs: int, last: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    widths = [inputs, *hidden]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs), last)


def _convolutional(latent: int, width: int, channels: int) -> nn.Sequential:
    """[n, latent] to [n, channels, 32, 32]: 8 width at 8 x 8, 4 width at 16 x 16, 2 width at 32 x 32."""
    return nn.Sequential(
        nn.Unflatten(1, (latent, 1, 1)),
        nn.ConvTranspose2d(latent, 8 * width, 8, bias=False),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(8 * width, 4 * width, 4, stride=2, padding=1, bias=False),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1, bias=False),
        nn.LeakyReLU(),
        nn.Conv2d(2 * width, channels, 3, padding=1, bias=False),
        nn.Tanh(),
    )

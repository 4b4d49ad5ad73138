"""Decoder models of the image data sets, which are fetched at first use."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, pi
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import avg_pool2d

from sdeflow.data.transforms import dequantise as dequantised
from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters
from sdeflow.problems.networks import Mixture, Network, convolutional, log_normal, of_normals, perceptron


class Images(Model):
    """x_i ~ p_theta,  y_i | x_i ~ N(g_theta(x_i), sigma^2 I), with g a decoder and pixels in [-1, 1].

        l_i(theta, x) = log p_theta(x) + log N(y_i; g_theta(x), sigma^2 I)

    Where images are `pooled` each pixel is the mean of so many by so many, before all else; a side that is
    not a multiple loses its rest. Pixels v in 0..255 become 2 v/255 - 1, then U(0, 1/256) is added
    (dequantisation), then they are clipped to [-1, 1].

    dataset         cifar10, mnist or fashion_mnist; fetched where it is not there (see problems/README.md)
    images          use the first so many training images (default: all)
    held_out        the first so many test images, for a loss on images that were not learned
    latent          d, dimension of a latent
    sigma           standard deviation of a pixel about g
    pool            p, the side of the squares of pixels that become one (default 1: images as they are)
    decoder         'convolutional', from a quarter of the side up, for CIFAR-10 8 x 8 to 32 x 32, with
                    `width` = ngf, no biases, leaky ReLUs, tanh at the end; or 'mlp', of `hidden` layers with
                    leaky ReLUs, tanh at the end
    width           ngf, channels of a convolutional decoder
    hidden          widths of the hidden layers of an mlp
    dequantise      'once', from `data_seed`; or 'each_visit', anew for each minibatch: then what is recorded
                    is of pixels without that noise. Held-out images get theirs once
    pseudo_points   K of the prior: 0 is N(0, I); else a mixture over K learned pseudo-points u_k that an
                    MLP of 3 x 512 maps to means and diagonal variances softplus(.) + 1e-5,
                    p(x) = 1/K sum_k N(x; mu(u_k), diag v(u_k)), with u_k from N(0, 10^2) at the start
    data_seed       seed of the dequantisation

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
        pool: int = 1,
        data_seed: int = 0,
        dequantise: Literal["once", "each_visit"] = "once",
    ) -> None:
        if not sigma > 0:
            raise SdeflowError(f"sigma must be positive, given {sigma}")
        if not 1 <= pool <= 8:
            raise SdeflowError(f"pool must lie in 1..8, given {pool}")
        if min(latent, width, *hidden) < 1 or pseudo_points < 0:
            raise SdeflowError("latent, width and hidden must be at least 1, and pseudo_points at least 0")
        from sdeflow.data.images import load_images

        pixels, _ = load_images(dataset)
        if images is not None and not 1 <= images <= len(pixels):
            raise SdeflowError(f"images must lie in 1..{len(pixels)}, given {images}")
        unseen, _ = load_images(dataset, "test")
        if not 0 <= held_out <= len(unseen):
            raise SdeflowError(f"held_out must lie in 0..{len(unseen)}, given {held_out}")
        channels, height, side = pixels.shape[1], pixels.shape[2] // pool, pixels.shape[3] // pool
        self.image_shape = (channels, height, side)
        if decoder == "convolutional" and (height != side or side % 4):
            raise SdeflowError(
                f"the convolutional decoder doubles a side twice, and images of {height} × {side} are no "
                'multiple of 4: take decoder = "mlp", or another pool'
            )
        g = torch.Generator().manual_seed(data_seed)
        if dequantise not in ("once", "each_visit"):
            raise SdeflowError(f"dequantise must be 'once' or 'each_visit', given {dequantise!r}")
        self.data = _scaled(_pooled(pixels[:images], pool))
        if dequantise == "each_visit":
            self.at_access = dequantised(1 / 256, -1, 1)
        else:
            self.data = _once(self.data, g)
        if held_out:
            self.held_out = _once(_scaled(_pooled(unseen[:held_out], pool)), g)
        self._pool = pool
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

    def _new_network(self) -> Network:
        (latent,), (channels, height, side) = self.latent_shape, self.image_shape
        if self._decoder == "convolutional":
            decoder = convolutional(latent, self._width, channels, side)
        else:
            decoder = perceptron(latent, self._hidden, channels * height * side, nn.Tanh())
        return Network(decoder, Mixture(latent, self._pseudo_points, latent) if self._pseudo_points else None)

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
            return log_normal(x)
        weights = {name.removeprefix("prior."): v for name, v in theta.items() if name.startswith("prior.")}
        return functional_call(self.network.prior, weights, (x,))

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Images [n, pixels] of latents x [n, d], with the noise of their pixels, which knows no [-1, 1]."""
        mean = self.decode(theta, x)
        return mean + self.sigma * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)

    def real_images(self, split: Literal["train", "test"]) -> Tensor:
        """All images of the data set, [n, *image_shape]: bytes as published, or pooled in [-1, 1]."""
        from sdeflow.data.images import load_images

        images = torch.from_numpy(load_images(self.dataset, split)[0])
        return images if self._pool == 1 else _pooled(images, self._pool).div_(127.5).sub_(1)

    def draw_prior(self, theta: Parameters, xi: Tensor) -> Tensor:
        """Latents from p_theta made of standard normals like them."""
        if self.network.prior is None:
            return xi
        mean, variance = functional_call(self.network, dict(theta), (None,))
        return of_normals(mean, variance, xi)

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n latents [n, d] from p_theta."""
        noise = torch.randn(n, *self.latent_shape, generator=generator)
        if not self._pseudo_points:
            return noise
        mean, variance = functional_call(self.network, dict(theta), (None,))
        which = torch.randint(len(mean), (n,), generator=generator)
        return mean[which] + variance[which].sqrt() * noise


def _pooled(images: NDArray[np.uint8] | Tensor, pool: int) -> Tensor:
    """Bytes [n, channels, height, width] as numbers in 0..255, means of squares of `pool` pixels a side."""
    values = torch.as_tensor(images).float()
    return avg_pool2d(values, pool) if pool > 1 else values


def _scaled(images: Tensor) -> Tensor:
    """Images [n, ...] of numbers in 0..255 as [n, pixels] in [-1, 1]."""
    return images.flatten(1).div_(127.5).sub_(1)


def _once(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels with U(0, 1/256) added, in [-1, 1]; in place, which a whole data set is worth."""
    return pixels.add_(torch.rand(pixels.shape, generator=generator).div_(256)).clamp_(-1, 1)

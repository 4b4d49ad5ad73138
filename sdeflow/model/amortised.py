"""Amortised variational inference: a model whose latents are made of normals by an encoder of the data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log, pi, prod
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Data, Model, Parameters
from sdeflow.model.rows import one_tensor

PREFIX = "encoder."
"""Of the names of the encoder's parameters."""

LEAST = 1e-6
"""What is added to a standard deviation."""


class Amortised(Model):
    """x = mu(y) + s(y) xi with xi ~ N(0, I), by an encoder's mu and s: q(x | y) = N(mu(y), diag s(y)^2).

    Its latents are the normals, and its log-joint, whose mean over them is the ELBO of a datum, is

        l_i(theta, mu + s xi) - log q(mu + s xi | y_i),    log q = -sum (log s + xi^2/2 + log(2 pi)/2)

    so that the gradient in theta and in the encoder's parameters is the reparameterised one. s is
    softplus(.) + 1e-6. theta holds the model's parameters under their names, the encoder's under 'encoder.'.

    plain     the model
    encoder   'mlp', of the data as vectors, with leaky ReLUs; linear without hidden layers. Or
              'convolutional', of images: 2, 4 and 8 times `width` channels at the side, half and a quarter
    hidden    widths of an mlp's hidden layers

    Raises SdeflowError for data that are no tensor, and for images that a convolution does not fit.
    Source: Kingma, Welling 2014, arXiv:1312.6114.
    """

    joint_maximum = False  # of an integrand there need be none

    def __init__(
        self,
        plain: Model,
        encoder: Literal["mlp", "convolutional"] = "mlp",
        hidden: Sequence[int] = (256, 256),
        width: int = 32,
    ) -> None:
        name = type(plain).__name__
        if not one_tensor(plain.data):
            raise SdeflowError(f"an encoder is of data that are one tensor, and {name} has another kind")
        if encoder not in ("mlp", "convolutional") or min(width, *hidden, 1) < 1:
            raise SdeflowError(
                "encoder must be 'mlp' or 'convolutional', and encoder_hidden and encoder_width at least 1; "
                f"given {encoder!r}, {list(hidden)} and {width}"
            )
        image = plain.image_shape
        if encoder == "convolutional" and (image is None or image[1] % 4 or image[2] % 4):
            raise SdeflowError(
                f"a convolutional encoder halves images twice, and {name} has {image or 'none'}: give "
                'encoder = "mlp"'
            )
        self.plain, self.data, self.held_out = plain, plain.data, plain.held_out
        self.latent_shape, self.at_access = plain.latent_shape, plain.at_access
        self._kind, self._hidden, self._width = encoder, tuple(hidden), width
        with torch.random.fork_rng(devices=[]):
            self.encoder = self._new_encoder()  # its structure counts; the values come with theta

    def _new_encoder(self) -> nn.Sequential:
        latent = 2 * prod(self.latent_shape)
        if self._kind == "mlp":
            widths = [prod(self.data.shape[1:]), *self._hidden]
            layers = [(nn.Linear(a, b), nn.LeakyReLU()) for a, b in pairwise(widths)]
            flat = [layer for pair in layers for layer in pair]
            return nn.Sequential(nn.Flatten(), *flat, nn.Linear(widths[-1], latent))
        assert self.plain.image_shape is not None
        (channels, height, side), width = self.plain.image_shape, self._width
        return nn.Sequential(
            nn.Flatten(),
            nn.Unflatten(1, (channels, height, side)),
            nn.Conv2d(channels, 2 * width, 3, padding=1),
            nn.LeakyReLU(),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(),
            nn.Conv2d(4 * width, 8 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(),
            nn.Flatten(),
            nn.Linear(8 * width * height * side // 16, latent),
        )

    def to(self, dtype: torch.dtype, device: torch.device) -> Self:
        own = super().to(dtype, device)
        own.plain = self.plain.to(dtype, device)
        own.at_access = own.plain.at_access
        return own

    def init_theta(self, generator: torch.Generator) -> Parameters:
        own = self.plain.init_theta(generator)
        own = dict(own.named_parameters()) if isinstance(own, nn.Module) else dict(own)
        if taken := [name for name in own if name.startswith(PREFIX)]:
            raise SdeflowError(f"{type(self.plain).__name__} has a parameter '{taken[0]}': name it otherwise")
        return own | {PREFIX + name: value for name, value in self._new_encoder().named_parameters()}

    def init_x(self, generator: torch.Generator, data: int, particles: int) -> Tensor:
        return torch.randn(data, particles, *self.latent_shape, generator=generator, dtype=torch.float64)

    def own(self, theta: Parameters) -> dict[str, Tensor]:
        """The model's parameters, without the encoder's."""
        return {name: value for name, value in theta.items() if not name.startswith(PREFIX)}

    def law(self, theta: Parameters, y: Tensor) -> tuple[Tensor, Tensor]:
        """mu and s of data y [B, ...], each [B, *latent_shape]."""
        weights = {n.removeprefix(PREFIX): v for n, v in theta.items() if n.startswith(PREFIX)}
        of_weights = next(iter(weights.values())).dtype
        found = functional_call(self.encoder, weights, (y.to(of_weights),))
        mean, raw = found.to(of_weights).chunk(2, -1)  # a density of what may be less precise
        shape = (len(y), *self.latent_shape)
        return mean.reshape(shape), (softplus(raw) + LEAST).reshape(shape)

    def latents(self, theta: Parameters, xi: Tensor, y: Data) -> Tensor:
        """mu(y) + s(y) xi of normals xi [B, N, *latent_shape]."""
        mean, scale = self.law(theta, y)
        return mean[:, None] + scale[:, None] * xi

    def log_joint(self, theta: Parameters, x: Tensor, y: Data) -> Tensor:
        mean, scale = self.law(theta, y)
        latents = mean[:, None] + scale[:, None] * x
        entropy = (scale.log()[:, None] + x.square() / 2 + log(2 * pi) / 2).flatten(2).sum(-1)
        return self.plain.log_joint(self.own(theta), latents, y) + entropy

    def observables(self, theta: Parameters, x: Tensor, y: Data) -> dict[str, Tensor]:
        return self.plain.observed(self.own(theta), self.latents(theta, x, y), y)

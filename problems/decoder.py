"""Decoder models: each datum is a neural network's image of its own standard normal latent."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, pi

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters


class Decoder(Model):
    """x_i ~ N(0, I_d),  y_i | x_i ~ N(g_theta(x_i), sigma^2 I), with g a multilayer perceptron.

    The data are scikit-learn's 1797 grey images of handwritten digits, 8 x 8 pixels in [-1, 1]. g has
    leaky ReLUs between its linear layers and none at the end; theta are its weights and biases under the
    names that the torch module gives them.

        l_i(theta, x) = log N(x; 0, I_d) + log N(y_i; g_theta(x), sigma^2 I)

    latent    d, dimension of a latent
    hidden    widths of the hidden layers
    sigma     standard deviation of a pixel about g
    images    use the first so many images (default: all but those held out)
    held_out  keep the last so many images aside, for a loss on images that were not learned

    Source of the model class: Lim et al. 2024, arXiv:2312.07335; Kuntz et al. 2023, arXiv:2204.12965; of the
    data: Alpaydin, Kaynak 1998.
    """

    joint_maximum = False  # the first layer's weights grow while latents shrink

    def __init__(
        self,
        latent: int = 8,
        hidden: Sequence[int] = (64,),
        sigma: float = 0.3,
        images: int | None = None,
        held_out: int = 0,
    ) -> None:
        if latent < 1 or any(width < 1 for width in hidden):
            raise SdeflowError(f"latent and hidden must be at least 1, given {latent} and {list(hidden)}")
        if not sigma > 0:
            raise SdeflowError(f"sigma must be positive, given {sigma}")
        # scikit-learn takes a second to import, and no other problem should wait for it.
        from sklearn.datasets import load_digits

        pixels = torch.from_numpy(load_digits().data).double() / 8 - 1  # 0..16 to [-1, 1]
        if not 0 <= held_out < len(pixels):
            raise SdeflowError(f"held_out must lie in 0..{len(pixels) - 1}, given {held_out}")
        left = len(pixels) - held_out
        images = left if images is None else images
        if not 1 <= images <= left:
            raise SdeflowError(f"images must lie in 1..{left}, given {images}")
        self.data = pixels[:images]
        if held_out:
            self.held_out = pixels[left:]
        self.latent_shape = (latent,)
        self.image_shape = (1, 8, 8)
        self.sigma = sigma
        self._widths = [latent, *hidden, pixels.shape[1]]
        self.network = self._new_network()  # its structure counts; the values come with theta
        self._constant = -(latent * log(2 * pi) + pixels.shape[1] * log(2 * pi * sigma**2)) / 2

    def _new_network(self) -> nn.Sequential:
        network = nn.Sequential()
        for fan_in, fan_out in zip(self._widths, self._widths[1:], strict=False):
            if len(network):
                network.append(nn.LeakyReLU())
            network.append(nn.Linear(fan_in, fan_out))
        return network

    def decode(self, theta: Parameters, x: Tensor) -> Tensor:
        """g_theta(x): latents [..., d] to images [..., 64]."""
        return functional_call(self.network, dict(theta), (x,))

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """log N(x; 0, I), [n] of x [n, d]."""
        return -(x.square().sum(-1) + x.shape[-1] * log(2 * pi)) / 2

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n latents [n, d] from N(0, I)."""
        return torch.randn(n, *self.latent_shape, generator=generator)

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Images [n, 64] of latents x [n, d], with the noise of their pixels."""
        mean = self.decode(theta, x)
        return mean + self.sigma * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)

    def log_joint(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        misfit = (y[:, None] - self.decode(theta, x)).square().sum(-1) / self.sigma**2
        return self._constant - (x.square().sum(-1) + misfit) / 2

    def init_theta(self, generator: torch.Generator) -> nn.Module:
        return self._new_network()

    def observables(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """reconstruction_error: mean squared error of a pixel of the particles' average image."""
        return {"reconstruction_error": (y - self.decode(theta, x).mean(1)).square().mean()}

"""Latent energy-based models: a neural energy as a decoder's prior, for points in the plane and digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, pi, sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdeflow.errors import SdeflowError
from sdeflow.model.energy import BETA, part
from sdeflow.model.energy_prior import NeuralEnergy, silu_perceptron
from sdeflow.model.model import Parameters


class LatentEBM(NeuralEnergy):
    """U_alpha(x) = |x|^2/2 + d log(2 pi)/2 - f_alpha(x),   y_i | x_i ~ N(g_beta(x_i), sigma^2 I).

    f and g are multilayer perceptrons with SiLUs (`NeuralEnergy`).

    dataset         'mixture' (8 Gaussians on a circle), 'rings' (two circles), 'moons' (two half circles):
                    points in the plane of mean 0 and mean square 1 a coordinate; 'digits': images of 8 x 8
    points          how many data
    held_out        as many more that are not learned, for comparisons with samples of the model
    latent          d, coordinates of a latent
    energy_hidden   widths of f's hidden layers
    gain            factor on f's first layer at its start: the larger, the finer its features
    decoder         'identity': g(x) = x, nothing to learn; 'affine'; or 'mlp'
    decoder_hidden  widths of an mlp's hidden layers
    sigma           standard deviation of an observation about g
    data_seed       seed of the points

    Source of the model class: Pang et al. 2020, arXiv:2006.08205; of its training here: Marks, Wang,
    Akyildiz 2025, arXiv:2510.12311.
    """

    def __init__(
        self,
        dataset: Literal["mixture", "rings", "moons", "digits"] = "mixture",
        points: int = 1000,
        held_out: int = 1000,
        latent: int = 2,
        energy_hidden: Sequence[int] = (64, 64),
        gain: float = 4.0,
        decoder: Literal["identity", "affine", "mlp"] = "identity",
        decoder_hidden: Sequence[int] = (64, 64),
        sigma: float = 0.1,
        data_seed: int = 0,
    ) -> None:
        if dataset not in ("digits", *PLANAR):
            raise SdeflowError(f"dataset must be digits or one of {', '.join(PLANAR)}, given {dataset!r}")
        if min(points, latent, *decoder_hidden) < 1 or held_out < 0:
            raise SdeflowError("points, latent and widths of layers must be at least 1, held_out at least 0")
        if not sigma > 0:
            raise SdeflowError(f"sigma must be positive, given {sigma}")
        super().__init__((latent,), energy_hidden, gain)
        y = (
            _digits(points + held_out)
            if dataset == "digits"
            else planar(dataset, points + held_out, data_seed)
        )
        self.data = y[:points]
        if held_out:
            self.held_out = y[points:]
        self.image_shape = (1, 8, 8) if dataset == "digits" else None
        self.sigma = sigma
        if decoder not in ("identity", "affine", "mlp"):
            raise SdeflowError(f"decoder must be identity, affine or mlp, given {decoder!r}")
        if decoder == "identity" and latent != y.shape[1]:
            raise SdeflowError(
                f"an identity decodes {latent} coordinates to as many, and data have {y.shape[1]}: "
                "give latent or decoder"
            )
        hidden = decoder_hidden if decoder == "mlp" else ()
        self._decoder_widths = [] if decoder == "identity" else [latent, *hidden, y.shape[1]]
        with torch.random.fork_rng(devices=[]):
            self.g = silu_perceptron(self._decoder_widths)  # its structure counts; the values come with beta
        self._likelihood_constant = -y.shape[1] * log(2 * pi * sigma**2) / 2

    def log_likelihood(self, beta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        misfit = (y[:, None] - self._g(beta, x)).square().sum(-1)
        return self._likelihood_constant - misfit / (2 * self.sigma**2)

    def decode(self, theta: Parameters, x: Tensor) -> Tensor:
        """g_beta(x), latents [..., d] to observations [..., coordinates]."""
        return self._g(part(theta, BETA), x)

    def _g(self, beta: Parameters, x: Tensor) -> Tensor:
        return functional_call(self.g, dict(beta), (x,)) if beta else x

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Observations [n, coordinates] of latents x [n, d]."""
        y = self.decode(theta, x)
        return y + self.sigma * torch.randn(y.shape, generator=generator, dtype=y.dtype)

    def init_beta(self, generator: torch.Generator) -> Parameters | nn.Module:
        return silu_perceptron(self._decoder_widths) if self._decoder_widths else {}

    def observables(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """reconstruction_error: mean squared error of a coordinate of the particles' average observation."""
        return {"reconstruction_error": (y - self.decode(theta, x).mean(1)).square().mean()}


def planar(dataset: str, n: int, seed: int) -> Tensor:
    """n points [n, 2] of a set in the plane, of mean 0 and mean square 1 a coordinate in expectation."""
    return PLANAR[dataset](n, torch.Generator().manual_seed(seed))


def _mixture(n: int, g: torch.Generator) -> Tensor:
    """8 Gaussians of standard deviation 0.25 on a circle."""
    angle = 2 * pi / 8 * torch.randint(8, (n,), generator=g)
    return sqrt(2 * (1 - 0.25**2)) * _circle(angle) + 0.25 * _normal(n, g)


def _rings(n: int, g: torch.Generator) -> Tensor:
    """Two concentric circles, one of half the radius of the other, with noise of 0.15."""
    radius = sqrt(2 * (1 - 0.15**2) / 0.625) * torch.where(torch.rand(n, generator=g) < 0.5, 0.5, 1.0)
    angle = 2 * pi * torch.rand(n, generator=g)
    return radius.double()[:, None] * _circle(angle) + 0.15 * _normal(n, g)


def _moons(n: int, g: torch.Generator) -> Tensor:
    """Two interleaving half circles, with noise of 0.1 before scaling."""
    angle, upper = pi * torch.rand(n, generator=g), torch.rand(n, generator=g) < 0.5
    bow = _circle(angle)
    points = torch.where(upper[:, None], bow, torch.tensor([1.0, 0.5]) - bow)
    points = points + 0.1 * _normal(n, g) - torch.tensor([0.5, 0.25])
    # mean squares of cos - 1/2 and of sin - 1/4 over half a circle, and the noise's
    return points / torch.tensor([1 / 2 + 1 / 4 + 0.01, 1 / 2 + 1 / 16 - 1 / pi + 0.01]).double().sqrt()


PLANAR: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "mixture": _mixture,
    "rings": _rings,
    "moons": _moons,
}


def _circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], 1).double()


def _normal(n: int, g: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=g, dtype=torch.float64)


def _digits(n: int) -> Tensor:
    """The first n of scikit-learn's 1797 grey images of digits, pixels in [-1, 1]."""
    # scikit-learn takes a second to import, and no other problem should wait for it.
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits().data).double() / 8 - 1
    if n > len(pixels):
        raise SdeflowError(f"there are {len(pixels)} digits; points and held_out ask for {n}")
    return pixels[:n]

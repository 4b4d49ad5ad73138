"""A Bayesian neural network that tells two classes of images apart: one latent, its weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, pi
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, logsigmoid

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters


class BayesianNetwork(Model):
    """w ~ N(0, e^(2 alpha) I),  v ~ N(0, e^(2 beta) I),  label_k | w, v ~ softmax(v tanh(w f_k)).

    Features f_k are the pixels of image k, made to have mean 0 and variance 1 over all images that are taken;
    pixels that are all alike are 0. w is [hidden, pixels], v [2, hidden]; x, the one latent that all images
    share, is w and then v, flattened, so D = 1. theta is alpha and beta, which start at 0. With signs
    s_k = +-1 for the second class and the first

        log p_theta(x, y) = log N(w; 0, e^(2 alpha) I) + log N(v; 0, e^(2 beta) I)
                            + sum_k log sigmoid( s_k <v_2 - v_1, tanh(w f_k)> )

    `data` holds features and sign of the training part, [1, n, pixels + 1], `unseen` those of the rest.

    dataset    mnist or fashion_mnist; fetched where it is not there (see problems/README.md)
    classes    the labels of the two classes
    images     how many images of these are taken, in the published order
    skip       how many of these are left out before them
    held_out   share of the images that is kept from training, the last of them
    hidden     units of the hidden layer
    pool       the side of the squares of pixels whose mean becomes one (default 1: images as they are)

    Source: Kuntz, Lim, Johansen 2023, arXiv:2204.12965.
    """

    def __init__(
        self,
        dataset: Literal["mnist", "fashion_mnist"] = "mnist",
        classes: Sequence[int] = (4, 9),
        images: int = 1000,
        skip: int = 0,
        held_out: float = 0.2,
        hidden: int = 40,
        pool: int = 1,
    ) -> None:
        if len(set(classes)) != 2:
            raise SdeflowError(f"classes are two labels, such as [4, 9], given {list(classes)}")
        if not 0 < held_out < 1:
            raise SdeflowError(f"held_out is a share between 0 and 1, given {held_out}")
        if min(images, hidden, pool) < 1 or skip < 0:
            raise SdeflowError(
                "images, hidden and pool are at least 1 and skip at least 0, "
                f"given {images}, {hidden}, {pool} and {skip}"
            )
        from sdeflow.data.images import load_images

        pixels, labels = (torch.from_numpy(a) for a in load_images(dataset))
        first, second = classes
        own = ((labels == first) | (labels == second)).nonzero()[:, 0][skip : skip + images]
        test = round(held_out * images)
        if len(own) < images or not 0 < test < images:
            raise SdeflowError(
                f"{images} images with held_out = {held_out} were asked for, and {len(own)} of these classes "
                f"are left of {dataset} after {skip}: ask for fewer, with an image or more on each side"
            )
        features = avg_pool2d(pixels[own].double(), pool).flatten(1)
        spread = features.std(0, correction=0)
        features = torch.where(spread > 0, (features - features.mean(0)) / spread.where(spread > 0, 1), 0)
        sign = torch.where(labels[own] == second, 1.0, -1.0).double()
        rows = torch.cat([features, sign[:, None]], 1)
        self.data, self.unseen = rows[: images - test][None], rows[images - test :]
        self.hidden, self.weights = hidden, hidden * features.shape[1]
        self.latent_shape = (self.weights + 2 * hidden,)

    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        """s_k <v_2 - v_1, tanh(w f_k)>, [..., n] of x [..., d] and rows y [n, pixels + 1] like x."""
        features, sign = y[..., :-1], y[..., -1]
        w = x[..., : self.weights].unflatten(-1, (self.hidden, -1))
        v = x[..., self.weights :].unflatten(-1, (2, self.hidden))
        hidden = torch.tanh(features @ w.mT)
        return sign * (hidden @ (v[..., 1, :] - v[..., 0, :])[..., None])[..., 0]

    def log_joint(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return self.log_prior(theta, x) + logsigmoid(self.logits(x, y[:, None])).sum(-1)

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """log N(w; 0, e^(2 alpha) I) + log N(v; 0, e^(2 beta) I), [...] of x [..., d]."""
        parts = ((x[..., : self.weights], theta["alpha"]), (x[..., self.weights :], theta["beta"]))
        return sum(
            (
                -(part.square().sum(-1) * torch.exp(-2 * scale) + part.shape[-1] * (2 * scale + log(2 * pi)))
                / 2
                for part, scale in parts
            ),
            start=x.new_zeros(()),
        )

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n latents [n, d] from the prior."""
        return self.draw_prior(theta, torch.randn(n, *self.latent_shape, generator=generator))

    def draw_prior(self, theta: Parameters, xi: Tensor) -> Tensor:
        """Latents from the prior made of standard normals."""
        w, v = xi[..., : self.weights], xi[..., self.weights :]
        return torch.cat([theta["alpha"].exp() * w, theta["beta"].exp() * v], -1)

    def init_theta(self, generator: torch.Generator) -> Parameters:
        return {"alpha": torch.zeros(()), "beta": torch.zeros(())}

    def observables(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Of the predictive probability on the held-out part, the particles' average.

        held_out_error      share of images whose own label gets less than one half
        held_out_log_loss   mean of minus the log of the label's probability
        """
        log_p = logsigmoid(self.logits(x[0], self.unseen)).logsumexp(0) - log(x.shape[1])
        return {
            "held_out_error": (log_p < -log(2)).to(x.dtype).mean(),
            "held_out_log_loss": -log_p.mean(),
        }

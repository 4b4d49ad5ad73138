"""How well a model reconstructs images: from particles that find an image's latent, or from those of a run.

Particles start from the prior and take unadjusted Langevin steps on the posterior of their image,

    x' = x + h grad_x l_i(theta, x) + sqrt(2 h) xi

and the error is the mean square over pixels of the image less the particles' decoded ones.

Source: Lim et al. 2024, arXiv:2312.07335, image experiments, with 5 particles, 500 steps and h = 1e-3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.analysis.streams import Generators, Streams, a_datum
from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters


class Misfit(NamedTuple):
    """Mean squared error of a pixel, [B]: of the particles' mean image, and of each one's own, on average."""

    of_mean: NDArray[np.float64]
    of_each: NDArray[np.float64]


def misfit(model: Model, theta: Parameters, x: Tensor, y: Tensor) -> Misfit:
    """Of particles x [B, N, *latent_shape] about images y [B, ...]."""
    with torch.no_grad():
        image = model.decode(theta, x.flatten(0, 1)).view(*x.shape[:2], -1).double()
    y = y.flatten(1).double()
    of_mean, of_each = (y - image.mean(1)).square().mean(1), (y[:, None] - image).square().mean((1, 2))
    return Misfit(of_mean.cpu().numpy(), of_each.cpu().numpy())


def langevin(
    model: Model,
    theta: Parameters,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    h: float,
    g: Generators,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:
    """Particles x [B, N, *latent_shape] after so many steps on the posteriors of y, with theta held fixed.

    g   one generator, or one a datum

    Raises SdeflowError where they run away.
    """
    normals = Streams(a_datum(g, len(x)), x).normals(*x.shape[1:])

    def total(x: Tensor) -> Tensor:
        return model.log_joint(theta, x, y).sum()

    def score(x: Tensor) -> Tensor:
        return torch.func.grad(total)(x) if model.score_x is None else model.score_x(theta, x, y)

    with torch.no_grad():
        for _ in range(steps):
            x = x + h * score(x) + (2 * h) ** 0.5 * next(normals)
            tick()
    if not x.isfinite().all():
        raise SdeflowError(
            f"particles that reconstruct data run away in {steps} Langevin steps of {h:g}: give a smaller "
            "--langevin-h"
        )
    return x

"""Probabilistic principal components: factor analysis with one noise for all, its MLE in closed form."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from sdeflow.data import read, split
from sdeflow.errors import SdeflowError, is_number
from sdeflow.model.model import Parameters
from sdeflow.problems.factor_analysis import LinearGaussian

ROUNDING = 1e-14
"""A noise less than this, of the largest eigenvalue of the covariance, is none."""


class PPCA(LinearGaussian):
    """The linear-Gaussian model with one noise variance s2 for all coordinates.

    With l_1 >= .. >= l_p and v_c the eigenvalues and eigenvectors of the data's covariance (over D, not
    D - 1), the MLE is

        mu = mean y,    s2 = mean of l_(k+1) .. l_p,    W = [v_1 .. v_k] diag(l_c - s2)^(1/2)
        E* = (D/2) (p log 2 pi + sum_(c <= k) log l_c + (p - k) log s2 + p)

    data       D; at the default, 40, s2 = 0.1943484772 and E* = 174.912703470 for k = 2. Or data of your own,
               [D, p], as `sdeflow.data.read` takes them
    latent     k, coordinates of a latent
    held_out   a share of the data, or how many, that are not learned
    data_seed  by which they are chosen

    By default the data are waves in i, of p = 4, drawn by no generator:

        y_i = (2 sin .9i + .3 cos 5i,  cos .9i + .5 sin 2.3i,  sin 2.3i - sin .9i + .2 cos 7i,
               .4 cos 3.1i + .3 sin 11i),    i = 0 .. D - 1

    Parameters start at mean 0 and noise 1, with W drawn from N(0, 1/4).

    Source: Tipping, Bishop 1999, J. R. Stat. Soc. B 61.
    """

    def __init__(self, data: Any = 40, latent: int = 2, held_out: float = 0.0, data_seed: int = 0) -> None:
        y = _waves(data) if is_number(data, Integral) else _table(data)
        parts = split(y, validation=0, test=held_out, seed=data_seed)
        super().__init__(y[parts.train], latent)
        if held_out:
            self.held_out = y[parts.test]
        self.mle = self._maximum()

    def init_theta(self, generator: torch.Generator) -> Parameters:
        """As the base's; raises SdeflowError where the data leave no noise, and the likelihood no maximum."""
        if not self.mle["log_noise"].isfinite():
            raise SdeflowError(
                f"the data lie in {self.latent_shape[0]} dimensions and leave no noise to learn: take fewer "
                "latents, or give model.instance_noise"
            )
        return super().init_theta(generator)

    def _maximum(self) -> Parameters:
        k = self.latent_shape[0]
        values, vectors = torch.linalg.eigh(self.data.mT.cov(correction=0))
        noise = values[:-k].mean()
        if noise < ROUNDING * values[-1]:
            noise = torch.zeros_like(noise)
        weight = vectors[:, -k:] * (values[-k:] - noise).sqrt()
        return {"weight": weight, "mean": self.data.mean(0), "log_noise": noise.log()}


def _table(data: Any) -> Tensor:
    """Data of one's own in float64; raises SdeflowError where they are no table."""
    y = read(data)
    if not isinstance(y, Tensor) or y.ndim != 2 or min(y.shape) < 2:
        given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise SdeflowError(f"a table [D, p] was expected, of at least 2 data and coordinates, given {given}")
    return y.double()


def _waves(data: int) -> Tensor:
    if data < 6:
        raise SdeflowError(f"data must be at least 6, given {data}")
    i = torch.arange(data, dtype=torch.float64)
    waves = (
        2 * (0.9 * i).sin() + 0.3 * (5 * i).cos(),
        (0.9 * i).cos() + 0.5 * (2.3 * i).sin(),
        (2.3 * i).sin() - (0.9 * i).sin() + 0.2 * (7 * i).cos(),
        0.4 * (3.1 * i).cos() + 0.3 * (11 * i).sin(),
    )
    return torch.stack(waves, 1)

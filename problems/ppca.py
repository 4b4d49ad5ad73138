"""Probabilistic principal components: factor analysis with one noise for all, its MLE in closed form."""

from __future__ import annotations

import torch

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Parameters
from sdeflow.problems.factor_analysis import LinearGaussian


class PPCA(LinearGaussian):
    """The linear-Gaussian model with one noise variance s2 for all coordinates; p = 4.

    With l_1 >= .. >= l_p and v_c the eigenvalues and eigenvectors of the data's covariance (over D, not
    D - 1), the MLE is

        mu = mean y,    s2 = mean of l_(k+1) .. l_p,    W = [v_1 .. v_k] diag(l_c - s2)^(1/2)
        E* = (D/2) (p log 2 pi + sum_(c <= k) log l_c + (p - k) log s2 + p)

    data     D, the number of latents; at the default, 40, s2 = 0.1943484772 and E* = 174.912703470 for k = 2
    latent   k, coordinates of a latent

    The data are waves in i, drawn by no generator:

        y_i = (2 sin .9i + .3 cos 5i,  cos .9i + .5 sin 2.3i,  sin 2.3i - sin .9i + .2 cos 7i,
               .4 cos 3.1i + .3 sin 11i),    i = 0 .. D - 1

    Parameters start at mean 0 and noise 1, with W drawn from N(0, 1/4).

    Source: Tipping, Bishop 1999, J. R. Stat. Soc. B 61.
    """

    def __init__(self, data: int = 40, latent: int = 2) -> None:
        if data < 6:
            raise SdeflowError(f"data must be at least 6, given {data}")
        i = torch.arange(data, dtype=torch.float64)
        waves = (
            2 * (0.9 * i).sin() + 0.3 * (5 * i).cos(),
            (0.9 * i).cos() + 0.5 * (2.3 * i).sin(),
            (2.3 * i).sin() - (0.9 * i).sin() + 0.2 * (7 * i).cos(),
            0.4 * (3.1 * i).cos() + 0.3 * (11 * i).sin(),
        )
        super().__init__(torch.stack(waves, 1), latent)
        self.mle = self._closed_form()

    def _closed_form(self) -> Parameters:
        k = self.latent_shape[0]
        values, vectors = torch.linalg.eigh(self.data.mT.cov(correction=0))
        noise = values[:-k].mean()
        weight = vectors[:, -k:] * (values[-k:] - noise).sqrt()
        return {"weight": weight, "mean": self.data.mean(0), "log_noise": noise.log()}

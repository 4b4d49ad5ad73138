from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdeflow.errors import SdeflowError
from sdeflow.problems.mixture_path import MixturePath, mixture

if TYPE_CHECKING:
    from torch import Tensor


class Diffusion(MixturePath):
    """A diffusion, back from noise to a mixture of Gaussians.

    The noise is variance-exploding, the grid EDM's.

    With p_sigma the data's law under noise of standard deviation sigma, beta = -d(sigma^2)/dt, t in [0, 1],

        dX = (1 + kappa^2)/2 beta grad log p_sigma(X) dt + kappa sqrt(beta) dW,    X_0 ~ p_sigma_max
        sigma(t) = (sigma_max^(1/rho) (1 - t) + sigma_min^(1/rho) t)^rho

    so that equal steps of t are Karras's grid of sigma. X_t ~ p_sigma(t) for every kappa; kappa = 0 is the
    probability-flow ODE. Karras, Aittala, Aila, Laine 2022, arXiv:2206.00364.

    means       of the data's components, [K, d]
    scales      their standard deviations, one or K
    weights     their weights, K; the same for all where they are not given
    kappa       how much noise there is in the way back
    sigma_max   noise at the start
    sigma_min   noise at the end
    rho         how steps are spread: the larger, the more at little noise
    """

    def __init__(
        self,
        means: Sequence[Sequence[float]],
        scales: float | Sequence[float] = 0.1,
        weights: Sequence[float] | None = None,
        kappa: float = 0.0,
        sigma_max: float = 10.0,
        sigma_min: float = 0.002,
        rho: float = 7.0,
    ) -> None:
        if kappa < 0:
            raise SdeflowError(f"kappa must not be negative, given {kappa}")
        if rho <= 0:
            raise SdeflowError(f"rho must be positive, given {rho}")
        if not 0 < sigma_min < sigma_max:
            raise SdeflowError(
                f"sigma_min must be positive and below sigma_max, given {sigma_min} and {sigma_max}"
            )
        self.log_weights, self.means, self.variances = mixture(means, scales, weights)
        self.kappa, self.rho = kappa, rho
        self._roots = sigma_max ** (1 / rho), sigma_min ** (1 / rho)

    def sigma(self, t: float) -> float:
        """The noise at time t."""
        first, last = self._roots
        return float((first * (1 - t) + last * t) ** self.rho)

    def beta(self, t: float) -> float:
        """-d(sigma^2)/dt."""
        first, last = self._roots
        return 2 * self.rho * self.sigma(t) ** (2 - 1 / self.rho) * (first - last)

    @property
    def noisy(self) -> bool:
        return self.kappa > 0

    def heat(self, t: float) -> float:
        return self.kappa**2 * self.beta(t) / 2

    def law(self, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        variances = self.variances + self.sigma(t) ** 2
        return self.means, self.means * 0, variances, variances * 0 - self.beta(t)

"""Paths of probability from one law to another on which all is known: mixtures of Gaussians that move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING

from sdeflow.errors import SdeflowError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class MixturePath(ABC):
    """A path p_t = sum_k w_k N(M_k(t), C_k(t) I) in R^d, t in [0, 1], and the SDEs that move along it.

        velocity   u = sum_k r_k (M_k' + C_k'/(2 C_k) (x - M_k)),    r_k the posterior weight of k at x
        score      s = -sum_k r_k (x - M_k)/C_k
        dX = (u + e s) dt + sqrt(2 e) dW,    X_0 ~ p_0

    has the marginals p_t whatever e(t) >= 0 is; with e = 0 it is an ODE, whose `diffusion` is None.

    log_weights   log w_k, [K]
    """

    final_time = 1.0
    log_weights: Tensor

    @abstractmethod
    def law(self, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """M [K, d], M' likewise, C [K] and C' at time t, each up to broadcasting."""

    @abstractmethod
    def heat(self, t: float) -> float:
        """e(t)."""

    @property
    @abstractmethod
    def noisy(self) -> bool:
        """Whether e is not 0."""

    def drift(self, t: float, x: Tensor) -> Tensor:
        return self._flow(t, x, self.heat(t) if self.noisy else 0.0)

    @property
    def diffusion(self) -> object:
        """sqrt(2 e) as a function of time and state; None without noise."""
        return self._diffusion if self.noisy else None

    def _diffusion(self, t: float, x: Tensor) -> float:
        return sqrt(2 * self.heat(t))

    def velocity(self, t: float, x: Tensor) -> Tensor:
        """u at points [..., d]."""
        return self._flow(t, x, 0.0)

    def score(self, t: float, x: Tensor) -> Tensor:
        """s at points [..., d], the gradient of log p_t."""
        means, _, variances, _ = self.law(t)
        share, gap = self._shares(x, means, variances)
        return -(share * gap / variances[:, None]).sum(-2)

    def start(self, generator: torch.Generator, paths: int) -> Tensor:
        """Draws of p_0, [paths, d]."""
        return self.sample(0.0, generator, paths)

    def sample(self, t: float, generator: torch.Generator, paths: int) -> Tensor:
        """Draws of p_t, [paths, d] in float64."""
        import torch

        means, _, variances, _ = self.law(t)
        k = torch.multinomial(self.log_weights.exp(), paths, replacement=True, generator=generator)
        xi = torch.randn(paths, means.shape[-1], generator=generator, dtype=torch.float64)
        return means[k] + variances[k, None].sqrt() * xi

    def _flow(self, t: float, x: Tensor, heat: float) -> Tensor:
        """u + e s, in one pass over the components."""
        means, way, variances, growth = self.law(t)
        share, gap = self._shares(x, means, variances)
        return (share * (way + ((growth / 2 - heat) / variances)[:, None] * gap)).sum(-2)

    def _shares(self, x: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        """r_k [..., K, 1] at points x [..., d], and x - M_k [..., K, d]."""
        gap = x[..., None, :] - means
        logits = self.log_weights - gap.square().sum(-1) / (2 * variances)
        return (logits - x.shape[-1] / 2 * variances.log()).softmax(-1)[..., None], gap


def mixture(
    means: Sequence[Sequence[float]],
    scales: float | Sequence[float],
    weights: Sequence[float] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """log w [K], means [K, d] and variances [K] in float64, of means, standard deviations and weights.

    Weights are scaled to add up to 1; None is the same for all. Raises SdeflowError for what is no mixture.
    """
    import torch

    if not means or len({len(m) for m in means}) > 1 or not len(means[0]):
        raise SdeflowError(f"means must be points of the same dimension, at least one, given {means}")
    k = len(means)
    own = list(scales) if isinstance(scales, Sequence) else [scales] * k
    shares = [1.0] * k if weights is None else list(weights)
    if len(own) != k or min(own) <= 0:
        raise SdeflowError(f"scales must be positive, one number or {k}, one a point, given {scales}")
    if len(shares) != k or min(shares) <= 0:
        raise SdeflowError(f"weights must be {k} positive numbers, one a point, given {weights}")
    log_weights = torch.tensor(shares, dtype=torch.float64).log().log_softmax(0)
    at, spread = (torch.tensor(v, dtype=torch.float64) for v in (means, own))
    return log_weights, at, spread.square()

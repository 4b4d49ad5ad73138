from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt
from typing import TYPE_CHECKING

from sdeflow.errors import SdeflowError
from sdeflow.problems.mixture_path import mixture

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class PFGMpp:
    """PFGM++: the field lines of charges, back to the charges.

    They are at points in R^N, and seen in N + D dimensions:

        dx/dr = sum_i w_i (x - mu_i)/r,    w_i ~ v_i (|x - mu_i|^2 + r^2)^(-(N + D)/2),    r = sigma sqrt(D)

    an ODE with log(r_max/r) as time, so x' = -sum_i w_i (x - mu_i). At r the law of x is the mixture of
    Student t laws of D degrees of freedom and scale r/sqrt(D) = sigma about the points, from which it starts.
    D = 1 is PFGM; as D grows it tends to the probability flow of a diffusion. Xu, Liu, Tian, Tong, Tegmark,
    Jaakkola 2023, arXiv:2302.04265.

    points      mu_i, [n, N]
    weights     v_i, their charges; the same for all where they are not given
    dimensions  D, of the space that is added
    sigma_max   noise at the start
    sigma_min   noise at the end
    """

    diffusion = None

    def __init__(
        self,
        points: Sequence[Sequence[float]],
        weights: Sequence[float] | None = None,
        dimensions: int = 128,
        sigma_max: float = 10.0,
        sigma_min: float = 0.002,
    ) -> None:
        if dimensions < 1:
            raise SdeflowError(f"dimensions must be at least 1, given {dimensions}")
        if not 0 < sigma_min < sigma_max:
            raise SdeflowError(
                f"sigma_min must be positive and below sigma_max, given {sigma_min} and {sigma_max}"
            )
        self.log_weights, self.points, _ = mixture(points, 1.0, weights)
        self.dimensions, self.sigma_max = dimensions, sigma_max
        self.final_time = log(sigma_max / sigma_min)

    def sigma(self, t: float) -> float:
        """r/sqrt(D) at time t."""
        return self.sigma_max * exp(-t)

    def drift(self, t: float, x: Tensor) -> Tensor:
        gap = x[..., None, :] - self.points
        squares = gap.square().sum(-1) + self.dimensions * self.sigma(t) ** 2
        power = (x.shape[-1] + self.dimensions) / 2
        share = (self.log_weights - power * squares.log()).softmax(-1)
        return -(share[..., None] * gap).sum(-2)

    def start(self, generator: torch.Generator, paths: int) -> Tensor:
        """Draws of the law at sigma_max, [paths, N]."""
        import torch

        def normals(size: int) -> Tensor:
            return torch.randn(paths, size, generator=generator, dtype=torch.float64)

        i = torch.multinomial(self.log_weights.exp(), paths, replacement=True, generator=generator)
        chi = normals(self.dimensions).square().sum(-1, keepdim=True).sqrt()
        r = self.sigma_max * sqrt(self.dimensions)
        return self.points[i] + r * normals(self.points.shape[1]) / chi

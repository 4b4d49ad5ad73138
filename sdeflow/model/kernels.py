"""Kernels between the particles of a datum, and the Stein variational gradients that they make of scores.

    phi_l = (1/N) sum_j [ k(x_j, x_l) s_j + grad_1 k(x_j, x_l) ],    s_j the score of particle j

The first part is a mean of scores, the second drives particles apart. Source: Liu, Wang 2016,
arXiv:1608.04471.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import log
from typing import Any, Literal

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError, did_you_mean, is_number

MEDIAN: Literal["median"] = "median"


class Kernel(ABC):
    """A kernel k of two particles."""

    @abstractmethod
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """k(x_l, x_j) [..., N, N], and sum_j grad_1 k(x_j, x_l) [..., N, d], of particles x [..., N, d]."""

    def force(self, x: Tensor, scores: Tensor) -> Tensor:
        """phi [..., N, d] of particles and scores like it; N^2 d operations and N^2 numbers of memory."""
        k, repulsion = self(x)
        return (k @ scores + repulsion) / x.shape[-2]


@dataclass(frozen=True)
class RBF(Kernel):
    """k(x, y) = exp(-|x - y|^2 / (2 l^2)),    grad_1 k = -(x - y) / l^2 k.

    bandwidth   l, or 'median': l^2 = med / (2 log(N + 1)) with med the median of |x_j - x_l|^2 over all N^2
                pairs, also those of a particle with itself; held constant in the gradient. Where it is 0, as
                for one particle, l is 1
    """

    bandwidth: float | Literal["median"] = MEDIAN

    def __post_init__(self) -> None:
        given: Any = self.bandwidth
        if given != MEDIAN and not (is_number(given) and 0 < given < float("inf")):
            raise SdeflowError(f"bandwidth must be a positive number or 'median', given {given!r}")

    def __str__(self) -> str:
        return (
            f"rbf kernel with {'median bandwidth' if self.bandwidth == MEDIAN else f'l = {self.bandwidth}'}"
        )

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x - x.mean(-2, keepdim=True)  # it counts where they are to each other, and far from 0 digits go
        products = x @ x.mT
        squares = products.diagonal(dim1=-2, dim2=-1)
        apart = (squares[..., :, None] + squares[..., None, :] - 2 * products).clamp(min=0)
        width = self._width(apart)
        k = (apart / (-2 * width)).exp()
        return k, (k.sum(-1, keepdim=True) * x - k @ x) / width

    def _width(self, apart: Tensor) -> Tensor | float:
        """l^2, [..., 1, 1] where it is of the particles."""
        if self.bandwidth != MEDIAN:
            return float(self.bandwidth) ** 2
        width = median_of(apart) / (2 * log(apart.shape[-1] + 1))
        return torch.where(width > 0, width, 1.0)[..., None, None]


@dataclass(frozen=True)
class Linear(Kernel):
    """k(x, y) = 1 + <x, y>,    grad_1 k = y. Of a normal law it moves the mean and the covariance alone."""

    def __str__(self) -> str:
        return "linear kernel"

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 1 + x @ x.mT, x.shape[-2] * x


def median_of(apart: Tensor) -> Tensor:
    """The median of all N^2 entries of matrices [..., N, N] that are symmetric, with 0 on the diagonal.

    In order these are N zeros, and then those above the diagonal twice each.
    """
    n = apart.shape[-1]
    i, j = torch.triu_indices(n, n, 1, device=apart.device)
    above = apart[..., i, j]
    middle = sorted({((n * n - 1) // 2 - n) // 2, (n * n // 2 - n) // 2})
    of_each = [above.kthvalue(k + 1).values if k >= 0 else apart.new_zeros(apart.shape[:-2]) for k in middle]
    return of_each[0] if len(of_each) == 1 else (of_each[0] + of_each[1]) / 2


def kernel_named(name: str, bandwidth: float | Literal["median"] = MEDIAN) -> Kernel:
    """The kernel 'rbf' or 'linear'; raises SdeflowError for another, and for a bandwidth of one without."""
    if name == "rbf":
        return RBF(bandwidth)
    if name != "linear":
        raise SdeflowError(f"unknown kernel '{name}': {did_you_mean(str(name), ['rbf', 'linear'])}")
    if bandwidth != MEDIAN:
        raise SdeflowError(f"kernel 'linear' has no bandwidth, given {bandwidth!r}: leave it out")
    return Linear()

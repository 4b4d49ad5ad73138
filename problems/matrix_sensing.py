"""A symmetric matrix of low rank, learned by its factor: more columns than the rank leave no rate."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, pi

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model, Parameters


class MatrixSensing(Model):
    """Z ~ N(X X', I),  M | Z ~ N(Z, I), matrices of n x n: one datum M, the one latent Z, theta = X [n, k].

        marginal     M ~ N(X X', 2 I), so -log p = |X X' - M|^2/4 + (n^2/2) log 4 pi: sensing's mean loss
        posterior    Z ~ N((X X' + M)/2, I/2)
        E            KL(q | posterior) + the marginal's; E* = (n^2/2) log 4 pi, at X X' = M

    With particles at the posterior X moves by the loss's gradient flow, X. = -(X X' - M) X, for which
    P = X X' has a closed form (Riccati's). M has rank r. With k = r columns P tends to M exponentially, at
    the least of its eigenvalues as rate. With more, k <= n, the spare ones have no curvature at 0: they fall
    like t^(-1/2), and |P - M| t tends to (k - r)^(1/2)/2. No momentum restores a rate.

    N particles leave a distance of order N^(-1/2). Observed is `distance`, |X X' - M|.

    size         n
    eigenvalues  of M, those that are not 0, in r directions by `data_seed`
    columns      k, at most n
    data_seed    of M's directions

    X starts at N(0, 1/4), particles at M's own noise N(0, I).

    Source: Xiong, Ding, Du 2023, arXiv:2310.01769.
    """

    def __init__(
        self,
        size: int = 4,
        eigenvalues: Sequence[float] = (3.0, 2.0),
        columns: int = 2,
        data_seed: int = 0,
    ) -> None:
        if not len(eigenvalues) <= columns <= size or not eigenvalues:
            raise SdeflowError(
                f"columns must lie between how many eigenvalues there are and size, given {columns} of "
                f"{len(eigenvalues)} and {size}, and there must be an eigenvalue"
            )
        if not min(eigenvalues) > 0:
            raise SdeflowError(f"eigenvalues must be positive, given {list(eigenvalues)}")
        g = torch.Generator().manual_seed(data_seed)
        drawn = torch.randn(size, len(eigenvalues), generator=g, dtype=torch.float64)
        directions = torch.linalg.qr(drawn).Q
        self.data = (directions * torch.tensor(eigenvalues, dtype=torch.float64) @ directions.mT)[None]
        self.latent_shape = (size, size)
        self.columns = columns
        self._constant = -(size**2) * log(2 * pi)

    def log_joint(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        squares = (x - self._product(theta)).square() + (y[:, None] - x).square()
        return self._constant - squares.sum((-1, -2)) / 2

    def score_x(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return self._product(theta) + y[:, None] - 2 * x

    def score_theta(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        gap = (x - self._product(theta)).sum((0, 1))
        return {"factor": (gap + gap.mT) @ theta["factor"]}

    def init_theta(self, generator: torch.Generator) -> Parameters:
        return {"factor": torch.randn(len(self.data[0]), self.columns, generator=generator) / 2}

    def observables(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """distance: |X X' - M|, by Frobenius' norm."""
        return {"distance": torch.linalg.matrix_norm(self._product(theta) - y[0])}

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """log N(Z; X X', I), [m] of matrices [m, n, n]."""
        return self._constant / 2 - (x - self._product(theta)).square().sum((-1, -2)) / 2

    def draw_prior(self, theta: Parameters, xi: Tensor) -> Tensor:
        """Matrices from N(X X', I) made of standard normals."""
        return self._product(theta) + xi

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n matrices from N(X X', I)."""
        return self.draw_prior(theta, torch.randn(n, *self.latent_shape, generator=generator))

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Observations of matrices x [m, n, n]."""
        return x + torch.randn(x.shape, generator=generator, dtype=x.dtype)

    @staticmethod
    def _product(theta: Parameters) -> Tensor:
        return theta["factor"] @ theta["factor"].mT

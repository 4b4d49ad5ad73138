"""Distances between two laws of images, by features [n, f] of images of each: FID, KID, precision and recall.

    FID         |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), of means m and covariances S: between Gaussians. Its
                estimate is too large, by a part that falls as 1/n and differs from law to law: figures
                compare at the same n only
    KID         the squared maximum mean discrepancy E k(x, x') + E k(y, y') - 2 E k(x, y) of the kernel
                k(x, y) = (x.y/f + 1)^3; its estimate, over pairs of different images, has no bias at any n
    precision   share of made images within the real ones' manifold: no further from a real image than its
                k-th nearest real neighbour is
    recall      share of real images within the made ones' manifold

Source: Heusel et al. 2017; Binkowski et al. 2018; Kynkaanniemi et al. 2019.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdeflow.analysis.entropy import Estimate
from sdeflow.errors import SdeflowError

Values = NDArray[np.float64]

BLOCKS, NEIGHBOURS, COMPARABLE = 20, 5, 10_000
"""Blocks of KID's jackknife, k of precision and recall, images below which a FID is on no common scale."""

ROWS = 500
"""Images whose pairs with all others, or distances from them, are in memory at once."""


def require_torchmetrics() -> type:
    """The class of torchmetrics that computes a FID; raises SdeflowError where the package is not there."""
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError:
        raise SdeflowError(
            "FID needs the torchmetrics package: pip install 'sdeflow[images]', or leave --fid out"
        ) from None
    return FrechetInceptionDistance


def fid(real: Tensor, made: Tensor) -> float:
    """FID of features [n, f] and [n', f], by torchmetrics in float64. Raises as `require_torchmetrics`."""

    class Given(nn.Identity):
        num_features = real.shape[1]

    metric = require_torchmetrics()(feature=Given())
    for features, of_real in ((real, True), (made, False)):
        for part in features.split(ROWS):
            metric.update(part.double(), real=of_real)
    return float(metric.compute())


def kid(real: Tensor, made: Tensor, blocks: int = BLOCKS) -> Estimate:
    """KID of features [n, f] and [n', f], with the standard error of a jackknife over blocks of both.

    The estimate is made again without the b-th block of either set, for each b and each set. Where both laws
    are the same the error is too large by about sqrt(2), as a jackknife's is of sums over pairs that are
    of mean 0 whatever one of the pair is.
    Raises SdeflowError for fewer images than blocks.
    """
    if min(len(real), len(made)) < blocks:
        raise SdeflowError(
            f"KID takes at least {blocks} images of each kind, given {len(real)} real and {len(made)} made"
        )
    x, y = real.double(), made.double()
    xx, yy, xy = (_pair_sums(a, b, blocks) for a, b in ((x, x), (y, y), (x, y)))
    n, m = (np.array([len(part) for part in features.tensor_split(blocks)]) for features in (x, y))
    value = _discrepancy(xx.sum(), yy.sum(), xy.sum(), n.sum(), m.sum())
    without_x = _discrepancy(_without(xx), yy.sum(), xy.sum() - xy.sum(1), n.sum() - n, m.sum())
    without_y = _discrepancy(xx.sum(), _without(yy), xy.sum() - xy.sum(0), n.sum(), m.sum() - m)
    variance = (blocks - 1) * (without_x.var() + without_y.var())
    return Estimate(float(value), float(variance**0.5))


def _without(sums: Values) -> Values:
    """The sum of a symmetric matrix [B, B] without the b-th row and column, for each b."""
    return sums.sum() - 2 * sums.sum(0) + sums.diagonal()


def _pair_sums(x: Tensor, y: Tensor, blocks: int) -> Values:
    """Sums [B, B] of the kernel over pairs of blocks; of a set with itself, over different images."""
    of_x, of_y = (_memberships(len(z), blocks) for z in (x, y))
    found = torch.zeros(blocks, blocks, dtype=torch.float64)
    for part, rows in zip(x.split(ROWS), of_x.split(ROWS), strict=True):
        found += rows.mT @ ((part @ y.mT / x.shape[1] + 1) ** 3 @ of_y)
    if x is y:
        own = (x.square().sum(1) / x.shape[1] + 1) ** 3
        found.diagonal().sub_(own @ of_y)
    return found.numpy()


def _memberships(n: int, blocks: int) -> Tensor:
    """[n, B], 1 where an image is of a block."""
    sizes = (len(part) for part in torch.arange(n).tensor_split(blocks))
    return torch.block_diag(*(torch.ones(size, 1, dtype=torch.float64) for size in sizes))


def _discrepancy(of_x: Values, of_y: Values, across: Values, n: Values, m: Values) -> Values:
    """The unbiased estimate by sums over n (n - 1), m (m - 1) and n m pairs."""
    return of_x / (n * (n - 1)) + of_y / (m * (m - 1)) - 2 * across / (n * m)


class Coverage(NamedTuple):
    """Which made images lie within the real ones' manifold, [n'], and which real ones in theirs, [n]."""

    precise: Tensor
    recalled: Tensor


def coverage(real: Tensor, made: Tensor, k: int = NEIGHBOURS) -> Coverage:
    """Precision and recall of features, image by image. Raises SdeflowError for no more than k images.

    A share's binomial error is that with the other set's manifold held fixed.
    """
    if min(len(real), len(made)) <= k:
        raise SdeflowError(
            f"precision and recall take more than k = {k} images, given {len(real)} real and {len(made)} made"
        )
    real, made = real.double(), made.double()
    return Coverage(_within(made, real, k), _within(real, made, k))


def _within(points: Tensor, of: Tensor, k: int) -> Tensor:
    """Which points lie no further from some point of a set than its k-th nearest in that set."""
    radius = torch.cat([torch.cdist(part, of).kthvalue(k + 1).values for part in of.split(ROWS)])
    return torch.cat([(torch.cdist(part, of) <= radius).any(1) for part in points.split(ROWS)])

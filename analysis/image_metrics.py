"""Distances between two laws of images, by features [n, f] of images of each: FID, KID, precision and recall.

    FID   |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), of means m and covariances S: between Gaussians. Its estimate is
          too large, by a part that falls as 1/n and differs from law to law: figures compare at the same n only
    KID   the squared maximum mean discrepancy E k(x, x') + E k(y, y') - 2 E k(x, y) of the kernel
          k(x, y) = (x.y/f + 1)^3; its estimate, over pairs of different images, has no bias at any n
    precision   share of made images within the real ones' manifold: within the distance from a real image to
                its k-th nearest real neighbour; recall: share of real images within the manifold of made ones

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
        for part in features.split(1000):
            metric.update(part.double(), real=of_real)
    return float(metric.compute())


def kid(real: Tensor, made: Tensor, blocks: int = BLOCKS) -> Estimate:
    """KID of features [n, f] and [n', f], with the standard error of a jackknife over blocks of both.

    The estimate is made again without the b-th block of either set, for each b and each set. Where both laws
    are the same the error is too large, by up to sqrt(2): to leave out an image changes the sums of all its pairs.
    Raises SdeflowError for fewer images than blocks.
    """
    if min(len(real), len(made)) < blocks:
        raise SdeflowError(
            f"KID takes at least {blocks} images of each kind, given {len(real)} real and {len(made)} made"
        )
    x, y = ([part.double() for part in features.tensor_split(blocks)] for features in (real, made))
    xx, yy, xy = _pair_sums(x, x), _pair_sums(y, y), _pair_sums(x, y)
    n, m = (np.array([len(part) for part in parts]) for parts in (x, y))
    value = _discrepancy(xx.sum(), yy.sum(), xy.sum(), n.sum(), m.sum())
    without_x = _discrepancy(_without(xx), yy.sum(), xy.sum() - xy.sum(1), n.sum() - n, m.sum())
    without_y = _discrepancy(xx.sum(), _without(yy), xy.sum() - xy.sum(0), n.sum(), m.sum() - m)
    variance = (blocks - 1) * (without_x.var() + without_y.var())
    return Estimate(float(value), float(variance**0.5))


def _without(sums: Values) -> Values:
    """The sum of a symmetric matrix [B, B] without the b-th row and column, for each b."""
    return sums.sum() - 2 * sums.sum(0) + sums.diagonal()


def _pair_sums(x: list[Tensor], y: list[Tensor]) -> Values:
    """Sums [B, B] of the kernel over pairs of blocks; of one set with itself, without an image's own pairs."""
    found = np.empty((len(x), len(y)))
    for a, first in enumerate(x):
        for b, second in enumerate(y):
            if x is y and b < a:
                found[a, b] = found[b, a]
                continue
            values = (first @ second.mT / first.shape[1] + 1) ** 3
            found[a, b] = float(values.sum() - (values.diagonal().sum() if x is y and a == b else 0))
    return found


def _discrepancy(of_x: Values, of_y: Values, across: Values, n: Values, m: Values) -> Values:
    """The unbiased estimate by sums over n (n - 1), m (m - 1) and n m pairs."""
    return of_x / (n * (n - 1)) + of_y / (m * (m - 1)) - 2 * across / (n * m)


class Coverage(NamedTuple):
    """Which made images lie within the real ones' manifold, [n'], and which real ones within the made ones', [n]."""

    precise: Tensor
    recalled: Tensor


def coverage(real: Tensor, made: Tensor, k: int = NEIGHBOURS) -> Coverage:
    """Precision and recall of features, image by image. Raises SdeflowError for no more than k images."""
    if min(len(real), len(made)) <= k:
        raise SdeflowError(
            f"precision and recall take more than k = {k} images, given {len(real)} real and {len(made)} made"
        )
    real, made = real.double(), made.double()
    return Coverage(_within(made, real, k), _within(real, made, k))


def _within(points: Tensor, of: Tensor, k: int, at_once: int = 1000) -> Tensor:
    """Which points lie no further from some point of a set than its k-th nearest in that set."""
    radius = torch.cat([torch.cdist(part, of).kthvalue(k + 1).values for part in of.split(at_once)])
    return torch.cat([(torch.cdist(part, of) <= radius).any(1) for part in points.split(at_once)])

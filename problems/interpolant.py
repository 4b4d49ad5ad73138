from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin
from typing import TYPE_CHECKING, Literal

from sdeflow.errors import SdeflowError
from sdeflow.problems.mixture_path import MixturePath, mixture

if TYPE_CHECKING:
    from torch import Tensor


class Interpolant(MixturePath):
    """A stochastic interpolant between two mixtures of Gaussians.

    x_t = a(t) x_0 + b(t) x_1 + g(t) z with independent ends and z ~ N(0, I), g^2 = noise t (1 - t), has the
    velocity u and the score s, and with every epsilon >= 0 the marginals of

        dX = (u + epsilon s) dt + sqrt(2 epsilon) dW,    X_0 ~ the law of x_0

    a = 1 - t, b = t on the linear path, which with noise = 0 is conditional optimal transport (flow
    matching); a = cos(pi t/2), b = sin(pi t/2) on the cosine path. Albergo, Boffi, Vanden-Eijnden 2023,
    arXiv:2303.08797.

    means           of the components of the law at the end, [K, d]
    scales          their standard deviations, one or K
    weights         their weights, K; the same for all where they are not given
    start_means     of those of the law at the start, [J, d]; one at 0 where they are not given
    start_scales    likewise
    start_weights   likewise
    epsilon         how much noise there is on the way
    noise           of the interpolant itself, g^2 over t (1 - t)
    path            linear or cosine
    """

    def __init__(
        self,
        means: Sequence[Sequence[float]],
        scales: float | Sequence[float] = 0.1,
        weights: Sequence[float] | None = None,
        start_means: Sequence[Sequence[float]] | None = None,
        start_scales: float | Sequence[float] = 1.0,
        start_weights: Sequence[float] | None = None,
        epsilon: float = 0.0,
        noise: float = 2.0,
        path: Literal["linear", "cosine"] = "linear",
    ) -> None:
        for name, value in (("epsilon", epsilon), ("noise", noise)):
            if value < 0:
                raise SdeflowError(f"{name} must not be negative, given {value}")
        if path not in ("linear", "cosine"):
            raise SdeflowError(f"path must be 'linear' or 'cosine', given {path!r}")
        end = mixture(means, scales, weights)
        origin = [[0.0] * len(means[0])] if start_means is None else start_means
        start = mixture(origin, start_scales, start_weights)
        if (d := start[1].shape[1]) != end[1].shape[1]:
            raise SdeflowError(f"both ends must be of one dimension, given {d} and {end[1].shape[1]}")
        of_start, of_end = len(start[1]), len(end[1])  # a component of the path for each pair of theirs
        self.log_weights = (start[0][:, None] + end[0]).flatten()
        self.starts = tuple(v.repeat_interleave(of_end, 0) for v in start[1:])
        self.ends = tuple(v.repeat(of_start, *[1] * (v.ndim - 1)) for v in end[1:])
        self.epsilon, self.noise, self.path = epsilon, noise, path

    @property
    def noisy(self) -> bool:
        return self.epsilon > 0

    def heat(self, t: float) -> float:
        return self.epsilon

    def law(self, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b, da, db = self._mixing(t)
        (m0, c0), (m1, c1) = self.starts, self.ends
        variances = a * a * c0 + b * b * c1 + self.noise * t * (1 - t)
        growth = 2 * a * da * c0 + 2 * b * db * c1 + self.noise * (1 - 2 * t)
        return a * m0 + b * m1, da * m0 + db * m1, variances, growth

    def _mixing(self, t: float) -> tuple[float, float, float, float]:
        """a, b, a' and b'."""
        if self.path == "linear":
            return 1 - t, t, -1.0, 1.0
        c, s = cos(pi * t / 2), sin(pi * t / 2)
        return c, s, -pi / 2 * s, pi / 2 * c

"""Consensus-based optimisation: a cloud of points that agree on a minimum, by values of a function alone.

    c = sum_j x_j w_j / sum_j w_j,    w_j = exp(-alpha (f(x_j) - min f))

of a function f, or f(theta) = -log p_theta(y) of a model that has it: maximum likelihood without a gradient.
These are the SDEs of their points; the systems, by name, are in cbo.py.
"""

from __future__ import annotations

from inspect import signature
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError, expect_count, expect_number, expect_positive, expect_shape, numbers
from sdeflow.model.forces import ModelForces
from sdeflow.model.model import Model

TOLD = 16
"""Coordinates of the consensus up to which each is recorded."""


class _Last:
    """The consensus that was computed last: drift and diffusion of a step ask for that of the same points."""

    x: Tensor | None = None
    c: Tensor


class Consensus:
    """What the systems have in common: a function to minimise, its points' consensus, and their start.

    model       f, a function of points [..., d] to [...], or a model with log_likelihood(theta)
    alpha       how sharply the least values count: 0 makes c the mean, and a large alpha the best point
    dimension   d of a function; that of a model is the number of its parameters
    low, high   the box from which points are drawn, numbers or lists of d

    Observed are `consensus_f`, f at the consensus; `least_f`; `spread`, the root mean square distance of the
    points from it; and, of few coordinates, the consensus.

    Raises SdeflowError for a model without a likelihood, and for numbers out of range.
    """

    interacting_noise: ClassVar[bool] = True

    def __init__(
        self, model: Any, *, alpha: float, dimension: int | None = None, low: Any = -3.0, high: Any = 3.0
    ) -> None:
        self.model, self._layout = model, None
        if isinstance(model, Model):
            _expect_likelihood(model)
            self._layout = ModelForces(model, 1).parameters
            if dimension is not None:
                raise SdeflowError(
                    f"{type(model).__name__} has the dimension of its parameters: leave it out"
                )
            dimension = self._layout.size
        elif not callable(model) or isinstance(model, type):
            raise SdeflowError(f"a model, or a function of points [..., d], was expected, given {model!r}")
        elif dimension is None:
            raise SdeflowError(
                "a function of points does not say how many coordinates they have: give dimension"
            )
        self.dimension = expect_count("dimension", dimension)
        self.alpha = expect_number("alpha", alpha)
        if not 0 <= self.alpha < float("inf"):
            raise SdeflowError(f"alpha must be at least 0 and finite, given {alpha}")
        self.low, self.high = _bound("low", low, self.dimension), _bound("high", high, self.dimension)
        if not all(a < b for a, b in zip(self.low, self.high, strict=True)):
            raise SdeflowError(f"low must be below high, given {low} and {high}")
        self._last = _Last()

    def start(self, generator: torch.Generator, paths: int) -> Any:
        """Points from the uniform law of the box, [paths, d]."""
        low, high = (torch.tensor(bound, dtype=torch.float64) for bound in (self.low, self.high))
        return low + (high - low) * torch.rand(paths, len(low), generator=generator, dtype=torch.float64)

    def value(self, x: Tensor) -> Tensor:
        """f at points x [..., d], [...]; infinite where it is no number."""
        if self._layout is None:
            f = self.model(x)
            expect_shape("the function", f, tuple(x.shape[:-1]), "a value a point")
        else:
            theta = self._layout.views(x.flatten(0, -2))
            f = -torch.func.vmap(self.model.log_likelihood)(theta).view(x.shape[:-1])
        return torch.where(f.isnan(), torch.inf, f)

    def consensus(self, x: Tensor) -> Tensor:
        """c of points x [R, N, d], [R, 1, d]."""
        if self._last.x is not x:
            f = self.value(x)
            # of the differences from the least value, so that no weight overflows, and the largest is 1
            w = (-self.alpha * (f - f.amin(-1, keepdim=True))).exp().to(x.dtype)[..., None]
            self._last.x, self._last.c = x, (w * x).sum(-2, keepdim=True) / w.sum(-2, keepdim=True)
        return self._last.c

    def observables(self, t: float, x: Any) -> dict[str, Tensor]:
        x = x["X"] if isinstance(x, dict) else x
        c = self.consensus(x)
        spread = (x - c).square().sum(-1).mean(-1).sqrt()
        found = {"consensus_f": self.value(c)[:, 0], "least_f": self.value(x).amin(-1), "spread": spread}
        few = range(self.dimension if self.dimension <= TOLD else 0)
        return found | {f"consensus_{i}": c[:, 0, i] for i in few}


class _Noisy(Consensus):
    """Points whose noise grows with their distance from the consensus."""

    def __init__(self, model: Any, *, pull: float, sigma: float | None, noise: str, **more: Any) -> None:
        super().__init__(model, **more)
        if noise not in ("anisotropic", "isotropic"):
            raise SdeflowError(f"noise must be 'anisotropic' or 'isotropic', given {noise!r}")
        self.pull, self.isotropic = expect_positive("pull", pull), noise == "isotropic"
        many = self.dimension if self.isotropic else 1
        self.sigma = 1 / sqrt(many) if sigma is None else expect_number("sigma", sigma)
        if not 0 <= self.sigma < float("inf"):
            raise SdeflowError(f"sigma must be at least 0 and finite, given {sigma}")
        self._square = self.sigma**2 * many

    def scale(self, x: Tensor) -> Tensor:
        """sigma D of points x."""
        away = x - self.consensus(x)
        return self.sigma * (away.norm(dim=-1, keepdim=True) if self.isotropic else away)


class CBO(_Noisy):
    """The SDE of `cbo`."""

    def drift(self, t: float, x: Tensor) -> Tensor:
        return -self.pull * (x - self.consensus(x))

    def diffusion(self, t: float, x: Tensor) -> Tensor:
        return self.scale(x)

    def contraction(self, h: float) -> float:
        """The factor of a step on the mean square spread of many points with alpha = 0."""
        return (1 - self.pull * h) ** 2 + self._square * h


class KineticCBO(_Noisy):
    """The SDE of `kinetic_cbo`."""

    def __init__(self, model: Any, *, eta: float, gamma: float, **more: Any) -> None:
        super().__init__(model, **more)
        self.eta, self.gamma = expect_positive("eta", eta), expect_positive("gamma", gamma)

    def start(self, generator: torch.Generator, paths: int) -> dict[str, Tensor]:
        """Points from the box, at rest."""
        x = super().start(generator, paths)
        return {"X": x, "U": torch.zeros_like(x)}

    def drift(self, t: float, z: dict[str, Tensor]) -> dict[str, Tensor]:
        x, u = z["X"], z["U"]
        return {
            "X": self.eta * u,
            "U": -self.gamma * self.eta * u - self.pull * (x - self.consensus(x)),
        }

    def diffusion(self, t: float, z: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"U": self.scale(z["X"])}

    def contraction(self, h: float) -> float:
        """The factor of a step on the second moments of many points with alpha = 0: the spectral radius of

        E X^2' = E (X + h eta U)^2,    E X U' = E (X + h eta U)(w U - h lambda X),
        E U^2' = E (w U - h lambda X)^2 + h sigma^2 d' E X^2,    w = 1 - h gamma eta
        """
        v, w, pull = h * self.eta, 1 - h * self.gamma * self.eta, h * self.pull
        rows = [
            [1.0, 2 * v, v**2],
            [-pull, w - v * pull, v * w],
            [pull**2 + h * self._square, -2 * pull * w, w**2],
        ]
        return float(torch.linalg.eigvals(torch.tensor(rows, dtype=torch.float64)).abs().max())


class ConsensusHopping(Consensus):
    """The SDE of `consensus_hopping`, stepped with h = 1."""

    interacting_noise: ClassVar[bool] = False

    def __init__(self, model: Any, *, radius: float, **more: Any) -> None:
        super().__init__(model, **more)
        self.radius = expect_positive("radius", radius)

    def drift(self, t: float, x: Tensor) -> Tensor:
        return self.consensus(x) - x

    def diffusion(self, t: float, x: Tensor) -> float:
        return self.radius


def _expect_likelihood(model: Model) -> None:
    """Raises SdeflowError for a model that cannot say log p_theta(y) of theta alone."""
    method = getattr(model, "log_likelihood", None)
    if not callable(method) or len(signature(method).parameters) != 1:
        raise SdeflowError(
            f"{type(model).__name__} has no log_likelihood(theta), which gives log p_theta(y) of all data: "
            "state it, or take a system that needs log_joint alone, such as pgd"
        )


def _bound(what: str, given: Any, dimension: int) -> tuple[float, ...]:
    """A side of the box, a number a coordinate."""
    found = numbers(given) or (expect_number(what, given),) * dimension
    if len(found) != dimension:
        raise SdeflowError(
            f"{what} has {len(found)} numbers for {dimension} coordinates: give one, or one each"
        )
    return found

"""State space models: a hidden path in time, seen through noise; linear and Gaussian, or a volatility."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from math import log, pi
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from sdeflow.data import read
from sdeflow.errors import SdeflowError, did_you_mean, is_number
from sdeflow.model.model import Model, Parameters


class Autoregression(Model):
    """x_0 ~ N(0, I),  x_t = A x_(t-1) + c + N(0, diag q),  t = 1 .. T - 1: a latent is a whole path, [T, d].

    A datum is a series y [T, d], and what y_t is, given x_t, a model that derives from this says. Parameters
    are those of `learn` out of a [d, d], log_q [d], c [d] and the model's own; the others stay as they are
    given. The score of all T states is one pass, with no recursion in time.

    A run's clock: the forces on parameters are sums over T and D, so theta's step is about 1/(D T) of that
    of x.
    """

    def __init__(self, y: Tensor, learn: Sequence[str], **given: Tensor | float) -> None:
        d = y.shape[-1]
        value = {key: torch.as_tensor(number, dtype=torch.float64) for key, number in given.items()}
        value = {key: v * torch.eye(d).double() if key == "a" else v.expand(d) for key, v in value.items()}
        for name in learn:
            if name not in value:
                raise SdeflowError(f"learn cannot have '{name}': {did_you_mean(name, value)}")
        if not learn:
            raise SdeflowError(f"learn names no parameter: give some of {', '.join(value)}")
        self.start = {name: value[name] for name in value if name in learn}
        self.held = {name: value[name] for name in value if name not in learn}
        self.data = y
        self.latent_shape = tuple(y.shape[1:])
        self.joint_maximum = not any(name.startswith("log") for name in self.start)

    def complete(self, theta: Parameters) -> dict[str, Tensor]:
        """All parameters by name: those that are learned, of theta, and the others."""
        return {**self.held, **theta}

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        """log p(x_0) + sum_t log p(x_t | x_(t-1)), [...] of paths x [..., T, d]."""
        log_q = self.complete(theta)["log_q"]
        e = self._innovation(theta, x)
        squares = x[..., 0, :].square().sum(-1) + (e.square() * (-log_q).exp()).sum((-1, -2))
        return -(squares + e.shape[-2] * log_q.sum() + x.shape[-1] * x.shape[-2] * log(2 * pi)) / 2

    def log_joint(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return self.log_prior(theta, x) + self._log_emission(theta, x, y[:, None])

    def score_x(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        own = self.complete(theta)
        pull = self._innovation(theta, x) * (-own["log_q"]).exp()
        zero = torch.zeros_like(x[..., :1, :])
        forward = torch.cat([-x[..., :1, :], -pull], -2)
        return forward + torch.cat([pull @ own["a"], zero], -2) + self._emission_score(theta, x, y[:, None])

    def score_theta(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        e = self._innovation(theta, x)
        pull = e * (-self.complete(theta)["log_q"]).exp()
        found = {
            "a": pull.flatten(0, -2).mT @ x[..., :-1, :].flatten(0, -2),
            "log_q": (pull * e - 1).sum((0, 1, 2)) / 2,
            "c": pull.sum((0, 1, 2)),
            **self._emission_theta(theta, x, y[:, None]),
        }
        return {name: found[name] for name in theta}

    def init_theta(self, generator: torch.Generator) -> Parameters:
        return self.start

    def draw_prior(self, theta: Parameters, xi: Tensor) -> Tensor:
        """Paths made of standard normals xi [..., T, d]."""
        own = self.complete(theta)
        first, *others = xi.to(own["a"].dtype).unbind(-2)
        path = [first]
        for normal in others:
            path.append(path[-1] @ own["a"].mT + own["c"] + (own["log_q"] / 2).exp() * normal)
        return torch.stack(path, -2)

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n paths, [n, T, d]."""
        return self.draw_prior(theta, torch.randn(n, *self.latent_shape, generator=generator))

    def _innovation(self, theta: Parameters, x: Tensor) -> Tensor:
        """x_t - A x_(t-1) - c, [..., T - 1, d]."""
        own = self.complete(theta)
        return x[..., 1:, :] - x[..., :-1, :] @ own["a"].mT - own["c"]

    @abstractmethod
    def _log_emission(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """sum_t log p(y_t | x_t) of paths x [B, N, T, d] and y [B, 1, T, d], [B, N]."""

    @abstractmethod
    def _emission_score(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        """Its gradient in x."""

    def _emission_theta(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Its gradients in the parameters that it has, summed over paths."""
        return {}


class StateSpace(Autoregression):
    """The linear-Gaussian state space model: y_t = x_t + N(0, diag r), of an `Autoregression` x.

    Given y the path is Gaussian, with the precision J of `precision`, and nothing is unknown:
    `sdeflow.analysis.kalman` finds the likelihood, its maximum, and the path's means and covariances.
    Observed is `log_likelihood`, log p(y) of all series, exact. Where only c is learned, every step is an
    affine map.

    For d = 1 and 1 - |a| <= q <= 1 + |a| the eigenvalues of J lie between (1 - |a|)^2/q + 1/r and
    (1 + |a|)^2/q + 1/r, whatever T; else x_0, whose variance is 1, may have one outside. Their ratio grows
    with r: where observations are weak a momentum pays. Where the likelihood is
    greatest at r = 0 or q = 0, as of a smooth series, its log runs off.

    data     T, how many times, of waves: y_t = 2 sin(0.3 t + i) + cos(7 t^2 + i) in series i, from 0 on.
             Or data of your own, [T], [T, d] or [D, T, d], as `sdeflow.data.read` takes them
    series   D, how many such series are made
    learn    the parameters that are learned, out of a, log_q, log_r, c
    a        A = a I: at the start, or throughout where it is not learned; so the next three
    q        variance of a step
    r        variance of an observation
    c        drift

    Source: Shumway, Stoffer 1982, J. Time Ser. Anal. 3.
    """

    def __init__(
        self,
        data: Any = 50,
        series: int = 1,
        learn: Sequence[str] = ("a", "log_q", "log_r"),
        a: float = 0.8,
        q: float = 0.5,
        r: float = 0.3,
        c: float = 0.0,
    ) -> None:
        y = _series(data, series, lambda t, i: 2 * (0.3 * t + i).sin() + (7 * t**2 + i).cos())
        super().__init__(y, learn, a=a, log_q=_log("q", q), log_r=_log("r", r), c=c)

    def observables(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """log_likelihood, exact."""
        return {"log_likelihood": self.log_likelihood(theta)}

    def log_likelihood(self, theta: Parameters) -> Tensor:
        """log p(y) of all series, exact and in float64; not finite where theta is not.

        log p(x, y) at the path's mean x, which is its maximum, and the Gaussian integral about it, by
        matrices with T d rows: half a second at T = 2,000. Of longer series take `sdeflow.analysis.kalman`.
        """
        own = {name: v.double() for name, v in self.complete(theta).items()}
        y = self.data.double()
        factor, _ = torch.linalg.cholesky_ex(self.precision(own))
        slope = self.score_x(own, torch.zeros_like(y)[:, None], y)[:, 0]
        mean = torch.cholesky_solve(slope.flatten(1).mT, factor).mT.view_as(y)
        volume = len(factor) * log(2 * pi) / 2 - factor.diagonal().log().sum()
        return self.log_joint(own, mean[:, None], y).sum() + len(y) * volume

    def precision(self, theta: Parameters) -> Tensor:
        """J [T d, T d], minus the Hessian of log p(x, y) in the path x: of x given y, of every series."""
        own, (times, d) = self.complete(theta), self.latent_shape
        shift = torch.ones(times - 1).diag(-1).to(own["a"])
        steps = torch.eye(times * d).to(shift) - torch.kron(shift, own["a"])
        weight = torch.cat([torch.ones_like(own["log_q"]), (-own["log_q"]).exp().repeat(times - 1)])
        return steps.mT @ (weight[:, None] * steps) + (-own["log_r"]).exp().repeat(times).diag()

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Series [n, T, d] of paths x [n, T, d]."""
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return x + (self.complete(theta)["log_r"] / 2).exp() * noise

    def _log_emission(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        log_r = self.complete(theta)["log_r"]
        return -((y - x).square() * (-log_r).exp() + log_r + log(2 * pi)).sum((-1, -2)) / 2

    def _emission_score(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return (y - x) * (-self.complete(theta)["log_r"]).exp()

    def _emission_theta(self, theta: Parameters, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        squares = (y - x).square() * (-self.complete(theta)["log_r"]).exp()
        return {"log_r": (squares - 1).sum((0, 1, 2)) / 2}


class StochasticVolatility(Autoregression):
    """Stochastic volatility: y_t ~ N(0, exp x_t), of an `Autoregression` x, the log of the variance.

    No closed form: the path given y is not Gaussian, and its likelihood an integral over it.

    data     T, how many times, of waves: y_t = exp(sin(0.1 t + i)) sqrt(2) cos(7 t^2 + i) in series i.
             Or data of your own, of mean 0: [T], [T, d] or [D, T, d], as `sdeflow.data.read` takes them
    series   D, how many such series are made
    learn    the parameters that are learned, out of a, log_q, c
    a        A = a I: at the start, or throughout where it is not learned; so the next two
    q        variance of a step
    c        drift

    Source: Kim, Shephard, Chib 1998, Rev. Econ. Stud. 65.
    """

    def __init__(
        self,
        data: Any = 100,
        series: int = 1,
        learn: Sequence[str] = ("a", "log_q", "c"),
        a: float = 0.8,
        q: float = 0.5,
        c: float = 0.0,
    ) -> None:
        y = _series(data, series, lambda t, i: (0.1 * t + i).sin().exp() * 2**0.5 * (7 * t**2 + i).cos())
        super().__init__(y, learn, a=a, log_q=_log("q", q), c=c)

    def sample_data(self, theta: Parameters, x: Tensor, generator: torch.Generator) -> Tensor:
        """Series [n, T, d] of log-variances x [n, T, d]."""
        return (x / 2).exp() * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    def _log_emission(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return -(y.square() * (-x).exp() + x + log(2 * pi)).sum((-1, -2)) / 2

    def _emission_score(self, theta: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return (y.square() * (-x).exp() - 1) / 2


def _log(name: str, variance: float) -> float:
    if not variance > 0:
        raise SdeflowError(f"{name} is a variance and must be positive, given {variance}")
    return log(variance)


def _series(data: Any, series: int, waves: Callable[[Tensor, int], Tensor]) -> Tensor:
    """D series of T times, [D, T, d] in float64; raises SdeflowError where data are no such thing."""
    if is_number(data, Integral):
        if data < 2 or series < 1:
            raise SdeflowError(f"data must be at least 2 and series at least 1, given {data} and {series}")
        t = torch.arange(data, dtype=torch.float64)
        return torch.stack([waves(t, i) for i in range(series)])[..., None]
    if series != 1:
        raise SdeflowError(f"series = {series} is of waves that are made; data of your own have theirs")
    y = read(data)
    given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
    if isinstance(y, Tensor) and 1 <= y.ndim <= 3:
        y = y[None, :, None] if y.ndim == 1 else y[None] if y.ndim == 2 else y
        if y.shape[1] > 1 and y.numel():
            return y.double()
    raise SdeflowError(f"series [T], [T, d] or [D, T, d] were expected, of at least 2 times, given {given}")

"""Annealed importance sampling from a density that can be sampled to the posterior of each datum.

    log p_t(x) = (1 - t) log p_0(x) + t l_i(x),    0 = t_0 < .. < t_T = 1

From p_0 the prior, and l_i the log-joint, p_t = p(x) p(y_i|x)^t. Chains start from p_0; at each temperature
they make a move that leaves p_t invariant, and their weights

    log w = sum_k (t_(k+1) - t_k) (l_i(x_k) - log p_0(x_k))

have the mean p(y_i), so that the log of their mean is below log p(y_i) in expectation. Chains that start from
the posterior and go back to p_0 give weights whose mean is 1/p(y_i): a bound from above. A datum that was
drawn from the model together with its x has such a start, and how far apart the two bounds are on such data
tells how far the first is to be trusted on others (bidirectional Monte Carlo).

A move is a step of OBABO at T = 1 whose middle is accepted or refused; a refusal turns the momentum round.
Its step is found by pilot chains, one for each temperature, before any weight is computed.

Source: Neal 2001, doi:10.1023/A:1008923215028; Grosse, Ghahramani, Adams 2015, arXiv:1511.02543; for decoders
Wu et al. 2017, arXiv:1611.04273; of the moves Horowitz 1991, doi:10.1016/0370-2693(91)90812-5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sdeflow.analysis.evidence import Evidence, of_weights
from sdeflow.analysis.streams import Generators, Streams, a_datum
from sdeflow.errors import SdeflowError, attempt, expect_shape
from sdeflow.model.model import Data, Model, Parameters

KEPT, ACCEPTANCE = 0.8, 0.8
"""What a move keeps of the momentum, and the acceptance that steps are adapted to.

Measured on a decoder of digits, 500 temperatures: log weights have a standard deviation of 1.8; with 0.6 kept
2.4, and between acceptances of 0.7 and 0.9 there is little difference."""

GAIN, SETTLING = 0.5, 60
"""How fast log h follows the acceptance, and the pilot's moves at p_0 before it goes on its way."""

SCALE_DRAWS = 1000
"""Draws of p_0 that tell the scale of its coordinates."""

Tick = Callable[[], None]


def no_tick() -> None:
    """Told after each move of all chains of a batch."""


class Base(NamedTuple):
    """A normalised density that can be sampled: where a path begins, such as a prior.

    log_density   [n] of x [n, *latent_shape]
    sample        n latents of it by a generator on the CPU, in the dtype and on the device of the chains
    """

    log_density: Callable[[Tensor], Tensor]
    sample: Callable[[int, torch.Generator], Tensor]


def prior(model: Model, theta: Parameters, like: Tensor) -> Base:
    """The prior that a model states by `log_prior` and `sample_prior`, at theta, both on the CPU.

    like   a tensor of the dtype and on the device of the chains

    Raises SdeflowError where it states none, or where one of the two fails or gives what it should not.
    """
    name = type(model).__name__
    if missing := [method for method in ("log_prior", "sample_prior") if not getattr(model, method)]:
        raise SdeflowError(
            f"{name} has no {' and no '.join(missing)}, and without them its prior cannot be sampled: give "
            "it log_prior(theta, x) -> [n], of x [n, *latent_shape], and sample_prior(theta, n, generator)"
        )
    there, theta_there = model.to(like.dtype, like.device), {key: v.to(like) for key, v in theta.items()}

    def log_density(x: Tensor) -> Tensor:
        value = attempt(f"{name}.log_prior", there.log_prior, theta_there, x)
        expect_shape(f"{name}.log_prior", value, x.shape[:1], "a value a draw, summed over the latent's axes")
        return value

    def sample(n: int, g: torch.Generator) -> Tensor:
        x = attempt(f"{name}.sample_prior", model.sample_prior, theta, n, g)
        expect_shape(f"{name}.sample_prior", x, (n, *model.latent_shape), "draws, the latent's axes")
        return x.to(like)

    return Base(log_density, sample)


@dataclass(frozen=True)
class Path:
    """The densities between a base and a log-joint, of x [B, K, *latent_shape] and B data y.

    model, theta   whose log_joint is at the other end, in the dtype and on the device of the chains
    """

    base: Base
    model: Model
    theta: Parameters

    def sample(self, chains: int, g: Sequence[torch.Generator]) -> Tensor:
        """Starts [data, chains, *latent_shape] from p_0, by a generator a datum."""
        shape = (len(g), chains, *self.model.latent_shape)
        return torch.cat([self.base.sample(chains, one) for one in g]).reshape(shape)

    def ends(self, x: Tensor, y: Data) -> Ends:
        """log p_0 and l_i at x, and their gradients."""
        start, start_score = _with_gradient(self.base.log_density, x.flatten(0, 1))
        if self.model.score_x is not None:
            end, score = self.model.log_joint(self.theta, x, y), self.model.score_x(self.theta, x, y)
        else:
            end, score = _with_gradient(lambda x: self.model.log_joint(self.theta, x, y), x)
        return Ends(start.view(x.shape[:2]), end, start_score.view_as(x), score)


class Ends(NamedTuple):
    """What all densities of a path are made of, at x: log-densities [B, K], and scores like x."""

    start: Tensor
    end: Tensor
    start_score: Tensor
    end_score: Tensor

    def log_density(self, t: float) -> Tensor:
        return (1 - t) * self.start + t * self.end

    def score(self, t: float) -> Tensor:
        return (1 - t) * self.start_score + t * self.end_score


class Ladder(NamedTuple):
    """t [T + 1] from 0 to 1, the step h at each of them but the ends, and p_0's scale in each coordinate."""

    t: list[float]
    h: list[float]
    scale: Tensor


def sigmoid(temperatures: int, sharpness: float = 4.0) -> list[float]:
    """T + 1 values of t, a logistic curve of k/T from -sharpness to sharpness, stretched to [0, 1]."""
    s = torch.linspace(-sharpness, sharpness, temperatures + 1, dtype=torch.float64).sigmoid()
    return ((s - s[0]) / (s[-1] - s[0])).tolist()


def adapted(
    path: Path, y: Data, *, temperatures: int, chains: int, g: Generators, tick: Tick = no_tick
) -> Ladder:
    """The ladder whose steps pilot chains on some data y find, on their way from p_0 to the posteriors.

    g   one generator, or one a datum, in `forwards` and `backwards` too

    Weights of later chains have the right mean whatever the steps, for only other chains have a say in them.
    """
    g = a_datum(g, size(y))
    t, scale = sigmoid(temperatures), path.sample(SCALE_DRAWS, g[:1])[0].std(0)
    chain, log_h, found = _Chains(path, path.sample(chains, g), y, scale, g), 0.0, []
    for b in [0.0] * SETTLING + t[1:-1]:
        found.append(exp(log_h))
        log_h += GAIN * (chain.move(b, found[-1]) - ACCEPTANCE)
        tick()
    return Ladder(t, found[SETTLING:], scale)


def forwards(
    path: Path, y: Data, ladder: Ladder, *, chains: int, g: Generators, tick: Tick = no_tick
) -> Evidence:
    """log p(y_i), from below in expectation, by chains from p_0."""
    g = a_datum(g, size(y))
    there = _Chains(path, path.sample(chains, g), y, ladder.scale, g)
    return of_weights(there.along(ladder.t, ladder.h, tick))


def backwards(
    path: Path, x: Tensor, y: Data, ladder: Ladder, *, chains: int, g: Generators, tick: Tick = no_tick
) -> Evidence:
    """-log p(y_i), from below in expectation, by chains from draws x [B, *latent_shape] of the posteriors."""
    x = x[:, None].expand(-1, chains, *x.shape[1:])
    there = _Chains(path, x, y, ladder.scale, a_datum(g, size(y)))
    return of_weights(there.along(ladder.t[::-1], ladder.h[::-1], tick))


def size(y: Data) -> int:
    """How many data there are."""
    return len(tree_leaves(y)[0])


class _Chains:
    """Chains [B, K] and their momenta from N(0, I), in coordinates in which p_0 has scale 1."""

    def __init__(self, path: Path, x: Tensor, y: Data, scale: Tensor, g: Sequence[torch.Generator]) -> None:
        self.path, self.x, self.y, self.scale = path, x, y, scale
        streams = Streams(g, x)
        self.normals, self.uniforms = streams.normals(*x.shape[1:]), streams.uniforms(x.shape[1])
        self.v = next(self.normals)
        with torch.no_grad():
            self.at = path.ends(x, y)

    def along(self, t: Sequence[float], h: Sequence[float], tick: Tick) -> Tensor:
        """The log weights [B, K] of the way along t, in float64."""
        log_w = torch.zeros(self.x.shape[:2], dtype=torch.float64, device=self.x.device)
        for k, (before, after) in enumerate(pairwise(t)):
            log_w += (after - before) * (self.at.end - self.at.start).double()
            if k < len(h):  # where the chains would go at the end does not enter the weights
                self.move(after, h[k])
                tick()
        return log_w

    @torch.no_grad()
    def move(self, t: float, h: float) -> float:
        """One move at t; gives the mean probability of its being accepted.

        The second half of O and the first one of the next move are one.
        """
        v = KEPT * self.v + (1 - KEPT**2) ** 0.5 * next(self.normals)
        half = v + h / 2 * self.scale * self.at.score(t)
        x = self.x + h * self.scale * half
        new = self.path.ends(x, self.y)
        end = half + h / 2 * self.scale * new.score(t)
        gain = new.log_density(t) - self.at.log_density(t) + (_square(v) - _square(end)) / 2
        share = gain.clamp(max=0).exp().nan_to_num(0)  # what is not a number is refused
        accept = next(self.uniforms) < share
        self.x, self.v = _where(accept, x, self.x), _where(accept, end, -v)
        self.at = Ends(*(_where(accept, a, b) for a, b in zip(new, self.at, strict=True)))
        return float(share.mean())


def _with_gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Values of f, each of its own entries of x, and their gradients in x."""
    pair: Any = torch.func.vjp(f, x)
    values, pull = pair
    return values, pull(torch.ones_like(values))[0]


def _square(v: Tensor) -> Tensor:
    return v.square().flatten(2).sum(2)


def _where(accept: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accept.view(*accept.shape, *[1] * (new.ndim - 2)), new, old)

"""Whether a model's log_prior and sample_prior are of one law, and its log_prior is normalised.

Two checks of draws x from q, by sample_prior, against the density p = exp(log_prior), each with a bound on
how often it refuses a model that is right, whatever its prior is:

  - A random-walk Metropolis step leaves p as it is and is reversible, so that where q = p a draw and where
    the step takes it may change places: of f(x') - f(x) each sign is as likely as the other. So
    P(|sum of them| > t root of the sum of their squares) <= 2 exp(-t^2 / 2) (Hoeffding 1963), with f each
    coordinate and log p.
  - With a Gaussian g fitted to other draws, mean_g[p / g] has the mean 1 where p is normalised, and
    mean_q[g / p] at most 1 where q = p besides, and so has a product of independent ones. What is positive
    and has such a mean is above 1/e in a share of e of all cases at most (Markov).

What is of another law by little, or normalised badly where p is far from a Gaussian, is not noticed.
"""

from __future__ import annotations

from math import inf, log

import torch
from torch import Tensor

from sdeflow.analysis.annealing import Base
from sdeflow.errors import SdeflowError

FALSE_ALARMS = 1e-6
"""Share of models that are right, of which one is refused at most."""

DRAWS, BATCHES = 10_000, 50
"""Draws that are looked at, and batches of them whose means are multiplied."""


def check_prior(name: str, base: Base, generator: torch.Generator) -> None:
    """Raises SdeflowError where a model's log_prior and sample_prior, as `base` has them, do not agree.

    name   of the model, for the message
    """
    x = base.sample(DRAWS, generator)
    at = base.log_density(x)
    if wrong := int((~at.isfinite()).sum()):
        raise SdeflowError(
            f"{name}.log_prior is not finite at {wrong:,} of {DRAWS:,} draws of sample_prior: mend either"
        )
    scale = base.sample(DRAWS, generator).std(0)
    if _moved(base, x, at, scale, generator) > log(2 / FALSE_ALARMS):
        raise SdeflowError(
            f"{name}.sample_prior does not draw from the law of log_prior, whose Metropolis steps change "
            "the draws' means: mend either"
        )
    if max(_integrals(base, x, at, generator)) > log(4 / FALSE_ALARMS):
        raise SdeflowError(
            f"{name}.log_prior is not the normalised log-density of what sample_prior draws: mend either; "
            "no constant may be left out"
        )


def _moved(base: Base, x: Tensor, at: Tensor, scale: Tensor, g: torch.Generator) -> float:
    """-log of a bound on how likely the steps are to change means of the draws as much as they do."""
    step = 2.4 * x[0].numel() ** -0.5
    moved = x + step * scale * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x)
    after = base.log_density(moved).nan_to_num(-inf)
    accept = torch.rand(len(x), generator=g, dtype=torch.float64).to(x) < (after - at).exp()
    change = torch.where(accept[:, None], (moved - x).flatten(1), 0)
    gain = torch.where(accept, after - at, 0)
    changes = torch.cat([change, gain[:, None]], 1).double()
    t = changes.sum(0) / changes.square().sum(0).sqrt().clamp_min(1e-300)
    return float(t.square().max()) / 2 - log(2 * changes.shape[1])


def _integrals(base: Base, x: Tensor, at: Tensor, g: torch.Generator) -> tuple[float, float]:
    """log of the products of mean_g[p / g] and of mean_q[g / p] over batches of draws."""
    other = base.sample(DRAWS, g).double()
    normal = torch.distributions.Normal(other.mean(0), other.std(0).clamp_min(1e-300))
    fresh = normal.mean + normal.stddev * torch.randn(x.shape, generator=g, dtype=torch.float64).to(other)

    def of_batches(log_ratio: Tensor) -> float:
        ratios = log_ratio.view(BATCHES, -1)
        return float((ratios.logsumexp(1) - log(ratios.shape[1])).sum())

    def of_normal(x: Tensor) -> Tensor:
        return normal.log_prob(x.double()).flatten(1).sum(1)

    there = fresh.to(x)
    p = base.log_density(there).double().nan_to_num(-inf)
    return of_batches(p - of_normal(there)), of_batches(of_normal(x) - at.double())

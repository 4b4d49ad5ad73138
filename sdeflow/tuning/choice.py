"""From curvature to the numbers of a system's blocks.

Only h^2 eta L and gamma eta h of a block matter, the rest is the unit of its momentum. In the units in which
L = 1 one step h serves all blocks:

    h         share times the largest stable step of the scheme (`Wells.limit`), for a splitting 2 / sqrt(hi);
              less where the particles' stiffest direction would be hotter than the law by more than HEAT
    friction  k = 2 sqrt(lo) for a splitting, critical for the slowest mode; for a scheme whose stable step
              depends on friction the k whose step contracts that mode most
    eta       1 / L, so that h is the step of every block
    gamma     k sqrt(L / eta), which is k L with that eta
    without a momentum   h = (h^2 / 2) / L

lo and hi are the ends of the spectrum of the joint curvature J^ (sdeflow.tuning.curvature).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from sdeflow.errors import SdeflowError
from sdeflow.system.block import Block
from sdeflow.system.system import BlockSystem
from sdeflow.system.varying import Spread
from sdeflow.tuning.limits import Wells

FRICTIONS = [10 ** (i / 4) for i in range(-8, 3)]
"""k, in units of the square root of the largest curvature, among which a scheme's best is looked for."""


UNKNOWN_LO = 0.0025
"""The curvature whose friction is taken where the least one is not known: k = 0.1 for a splitting."""

OPPOSED_LO = 0.25
"""What is taken for the least joint curvature where parameters are opposed by particles: k = 1."""

HEAT = 0.25
"""By what share the variance of the particles' stiffest direction may be wrong."""

LIKE, UNKNOWN_LIKE = 0.05, 0.6
"""By what share rates may differ for frictions to count as alike; and where lo is not known."""

LITTLE = 0.02
"""Friction of parameters that restart."""

MOST_FRICTION = 2.0
"""Critical for the stiffest direction: where more would be needed steps shorten instead."""

LEAST_FACTOR = 1e-12
"""The least factor a step that is told from 0."""


@dataclass(frozen=True)
class Spectrum:
    """What is known of the joint curvature J^: its ends; lo is NaN where it has no least positive one."""

    lo: float = math.nan
    hi: float = 2.0

    @property
    def known(self) -> bool:
        return self.lo > 0


@dataclass(frozen=True)
class Pace:
    """The numbers of all blocks in units of their curvature: the step h and the friction k of each role."""

    h: float
    parameters: float
    particles: float
    limit: float
    restart: bool = False

    def friction(self, b: Block) -> float:
        return self.parameters if b.role == "parameters" else self.particles


def pace(wells: Wells, spectrum: Spectrum, share: float, *, restart: bool) -> Pace:
    """The step and frictions for a spectrum. Where its lower end is not known it is taken to be UNKNOWN_LO.

    restart   whether parameters may restart, so that they need no friction where a scheme does not

    Raises SdeflowError for a scheme that is stable under no step.
    """
    lo = spectrum.lo if spectrum.known else UNKNOWN_LO
    like = LIKE if spectrum.known else UNKNOWN_LIKE
    parameters = particles = best_friction(wells, lo, spectrum.hi, share, like)
    restart = restart and not spectrum.known
    cool, limit = wells.coolest(particles, HEAT), wells.limit(parameters, particles, spectrum.hi)
    free = wells.limit(LITTLE, particles, spectrum.hi) if restart else 0.0
    if min(share * free, cool) > min(share * limit, cool) / 2:
        parameters, limit = LITTLE, free
    if not min(limit, cool) > 0:
        raise SdeflowError(
            f"integrator '{wells.integrator.name}' is stable under no step, so that none can be chosen: take "
            "another"
        )
    return Pace(min(share * limit, cool), parameters, particles, limit, restart)


def step(wells: Wells, friction: float, highest: float, share: float) -> float:
    """The step at one friction for all."""
    return min(share * wells.limit(friction, friction, highest), wells.coolest(friction, HEAT))


@lru_cache(maxsize=64)
def best_friction(wells: Wells, lo: float, hi: float, share: float, like: float) -> float:
    """The friction at which a step contracts most; of those alike the largest.

    The larger it is the sooner stiffer modes come to rest, and the larger the step where friction limits it.
    """
    rates = {k: _rate(wells, lo, hi, share, k) for k in (2 * math.sqrt(lo), *FRICTIONS)}
    return max(k for k, r in rates.items() if r >= (1 - like) * max(rates.values()))


def evaluations_an_efold(wells: Wells, spectrum: Spectrum, share: float) -> float:
    """Gradient evaluations in which the slowest mode's error falls to 1/e, by the scheme's own step.

    inf where no step makes it fall.
    """
    lo, hi = spectrum.lo, spectrum.hi
    rate = _rate(wells, lo, hi, share, best_friction(wells, lo, hi, share, LIKE))
    return wells.integrator.evaluations / rate if rate > 0 else math.inf


def _rate(wells: Wells, lo: float, hi: float, share: float, k: float) -> float:
    """-log of the factor by which a step shrinks the slowest mode at a friction; 0 where it does not.

    That is the softest for a splitting; where forces are frozen over a step it may be the stiffest, of one
    block or of two that are coupled.
    """
    h = step(wells, k, hi, share)
    if not h > 0:
        return 0.0
    coupling = max(0.0, min(hi - 1, 1 - lo))
    rho = float(wells.contraction(h, k, k, [(lo, lo, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, coupling)]).max())
    return max(0.0, -math.log(max(rho, LEAST_FACTOR)))


def quiet(b: Block, pace: Pace, nu: float) -> tuple[float, float]:
    """The friction k of a block of parameters under gradient noise nu, and a factor on its curvature.

    Friction takes care of it as far as it can, then shorter steps (sdeflow.tuning.gradient_noise).
    """
    if not b.kinetic:
        return 0.0, max(1.0, pace.h**2 * nu / 8)
    needed = pace.h * nu / 4
    k = min(max(pace.friction(b), needed), MOST_FRICTION)
    return k, max(1.0, needed / k)


def tuned(
    system: BlockSystem,
    pace: Pace,
    curvature: Mapping[str, float],
    friction: Mapping[str, float] | None = None,
) -> BlockSystem:
    """The system with the numbers of a pace in place of those that are to be chosen; the others stay.

    friction   k of each block, where it is not the pace's
    """
    k = {b.name: pace.friction(b) for b in system.blocks} | dict(friction or {})
    steps = {b.name: _step(b, system.h, pace.h, k[b.name], curvature[b.name]) for b in system.blocks}
    first = system.blocks[0]
    h = steps[first.name] if "h" in first.auto else system.h
    blocks = [_chosen(b, steps[b.name], h, pace, k[b.name], curvature[b.name]) for b in system.blocks]
    return BlockSystem(blocks, system.force_field, h=h, start=system.given_start)


def _step(b: Block, reference: float, h: float, k: float, curvature: float) -> float:
    """A block's own step: as given, or so that h^2 eta L is the pace's; one step serves all replicas."""
    if "h" not in b.auto:
        return b.rate * reference
    if not b.kinetic:
        return h**2 / 2 / curvature
    if "eta" not in b.auto:
        return h / math.sqrt(curvature * max(one.eta for one in b.replicas))
    if "gamma" not in b.auto and not isinstance(b, Spread) and b.gamma > 0 and k > 0:
        return h * b.gamma / (k * curvature)  # with its eta it makes gamma eta h the pace's too
    return h


def _chosen(b: Block, h: float, reference: float, pace: Pace, k: float, curvature: float) -> Block:
    """A block with its step h and the numbers that go with it; replicas have eta and gamma of their own."""
    restart = b.restart or (pace.restart and can_restart(b) and "gamma" in b.auto)
    new: dict[str, Any] = {"rate": h / reference, "restart": restart, "auto": ()}
    if isinstance(b, Spread):
        return replace(b, **new, each=tuple(_chosen(one, h, reference, pace, k, curvature) for one in b.each))
    if b.kinetic:
        eta = (pace.h / h) ** 2 / curvature if "eta" in b.auto else b.eta
        gamma = k * math.sqrt(curvature / eta) if "gamma" in b.auto else b.gamma
        new |= {"eta": eta, "gamma": gamma}
    return replace(b, **new)


def can_restart(b: Block) -> bool:
    """Whether a block may take restarts."""
    return b.kinetic and b.temperature == 0 and b.role == "parameters"

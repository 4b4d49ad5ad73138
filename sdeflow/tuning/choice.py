"""From curvature to the numbers of a system's blocks.

Only h^2 eta L and gamma eta h of a block matter, the rest is the unit of its momentum. In the units in which
L = 1 one step h serves all blocks:

    h         share times the largest stable step of the scheme (`Wells.limit`), for a splitting 2 / sqrt(hi);
              less where the particles' stiffest direction would be hotter than the law by more than HEAT
    friction  k = 2 sqrt(lo) for a splitting, critical for the slowest mode; for a scheme whose stable step
              depends on friction the k whose step contracts that mode most
    eta       1 / L, so that h is the step of every block
    gamma     k L
    without a momentum   h = (h^2 / 2) / L

lo and hi are the ends of the spectrum of the joint curvature J^ (sdeflow.tuning.curvature).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from sdeflow.system.block import Block
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import BlockSystem
from sdeflow.system.varying import Spread
from sdeflow.tuning.limits import Wells

FRICTIONS = [10 ** (i / 4) for i in range(-8, 3)]
"""k, in units of the square root of the largest curvature, among which a scheme's best is looked for."""


UNKNOWN_LO = 0.0025
"""The curvature whose friction is taken where the least one is not known: k = 0.1 for a splitting."""

HEAT = 0.25
"""By what share the variance of the particles' stiffest direction may be wrong."""

LIKE, UNKNOWN_LIKE = 0.05, 0.6
"""By what share rates may differ for frictions to count as alike; and where lo is not known."""

LITTLE = 0.02
"""Friction of parameters that restart."""


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
    """
    lo = spectrum.lo if spectrum.known else UNKNOWN_LO
    like = LIKE if spectrum.known else UNKNOWN_LIKE
    parameters = particles = best_friction(wells, lo, spectrum.hi, share, like)
    restart = restart and not spectrum.known
    cool, limit = wells.coolest(particles, HEAT), wells.limit(parameters, particles, spectrum.hi)
    free = wells.limit(LITTLE, particles, spectrum.hi) if restart else 0.0
    if min(share * free, cool) > min(share * limit, cool) / 2:
        parameters, limit = LITTLE, free
    return Pace(min(share * limit, cool), parameters, particles, limit, restart)


def step(wells: Wells, friction: float, highest: float, share: float) -> float:
    """The step at one friction for all."""
    return min(share * wells.limit(friction, friction, highest), wells.coolest(friction, HEAT))


@lru_cache(maxsize=64)
def best_friction(wells: Wells, lo: float, hi: float, share: float, like: float = LIKE) -> float:
    """The friction at which a step contracts a mode of curvature lo most; of those alike the largest.

    The larger it is the sooner stiffer modes come to rest, and the larger the step where friction limits it.
    """

    def rate(k: float) -> float:
        h = step(wells, k, hi, share)
        rho = float(wells.contraction(h, k, k, [(lo, lo, 0.0), (1.0, 1.0, 0.0)]).max()) if h > 0 else 1.0
        return -math.log(rho) if 0 < rho < 1 else 0.0

    rates = {k: rate(k) for k in (2 * math.sqrt(lo), *FRICTIONS)}
    return max(k for k, r in rates.items() if r >= (1 - like) * max(rates.values()))


def evaluations_an_efold(wells: Wells, spectrum: Spectrum, share: float) -> float:
    """Gradient evaluations in which the slowest mode's error falls to 1/e, by the scheme's own step."""
    k = best_friction(wells, spectrum.lo, spectrum.hi, share)
    h = step(wells, k, spectrum.hi, share)
    rho = float(wells.contraction(h, k, k, [(spectrum.lo, spectrum.lo, 0.0)]).max())
    return wells.integrator.evaluations / -math.log(rho) if rho < 1 else math.inf


def tuned(
    system: BlockSystem, integrator: Integrator[Any], pace: Pace, curvature: Mapping[str, float]
) -> BlockSystem:
    """The system with the numbers of a pace in place of those that are to be chosen; the others stay."""
    numbers = {b.name: _numbers(b, system.h, pace, curvature[b.name]) for b in system.blocks}
    first = next(iter(system.blocks))
    h = numbers[first.name]["h"] if "h" in first.auto else system.h
    blocks = [_with(b, numbers[b.name], h, pace.restart) for b in system.blocks]
    return BlockSystem(blocks, system.force_field, h=h, start=system.given_start)


def _numbers(b: Block, reference: float, pace: Pace, curvature: float) -> dict[str, float]:
    """h, eta and gamma of a block: those that are given, and the others so that s and k are the pace's."""
    one = b.of(0)
    given = {"h": one.rate * reference, "eta": one.eta, "gamma": one.gamma}
    free = set(b.auto)
    if not b.kinetic:
        return given | ({"h": pace.h**2 / 2 / curvature} if "h" in free else {})
    s, a = pace.h**2 / curvature, pace.friction(b) * pace.h
    only_gamma = free == {"h", "eta"} and not isinstance(b, Spread)  # replicas share their steps
    if only_gamma and given["gamma"] > 0 and a > 0:
        given["h"], free = given["gamma"] * s / a, free - {"h"}
    if "h" in free and "eta" in free:
        given["eta"], free = 1 / curvature, free - {"eta"}
    if "eta" in free:
        given["eta"] = s / given["h"] ** 2
    if "h" in free:
        given["h"] = math.sqrt(s / given["eta"])
    if "gamma" in free:
        given["gamma"] = a / (given["eta"] * given["h"])
    return given


def _with(b: Block, numbers: Mapping[str, float], reference: float, restart: bool) -> Block:
    restart = b.restart or (restart and can_restart(b) and "gamma" in b.auto)
    rate = numbers["h"] / reference
    if isinstance(b, Spread):
        chosen: dict[str, Any] = {name: numbers[name] for name in b.auto if name != "h"}
        each = tuple(replace(one, rate=rate, **chosen) for one in b.each)
        return replace(b, rate=rate, restart=restart, auto=(), each=each)
    return replace(b, rate=rate, restart=restart, auto=(), eta=numbers["eta"], gamma=numbers["gamma"])


def can_restart(b: Block) -> bool:
    """Whether a block may take restarts."""
    return b.kinetic and b.temperature == 0 and b.role == "parameters"

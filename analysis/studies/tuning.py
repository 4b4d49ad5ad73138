"""Steps and frictions chosen from theory, before anything is run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from sdeflow.analysis.stability import contraction, stability_limit, with_friction
from sdeflow.state import State
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import BlockSystem

FRICTIONS = tuple(np.geomspace(1 / 4, 4, 9))
"""Factors on friction that are tried."""


class Tuning(NamedTuple):
    """Factors on all steps and on all frictions, the contraction a step, and the limit on steps there."""

    step: float
    friction: float
    contraction: float
    limit: float


def tuned(
    system: BlockSystem,
    scheme: Integrator,
    z: State,
    *,
    share: float = 0.5,
    frictions: Iterable[float] = FRICTIONS,
) -> Tuning:
    """For each friction `share` of the largest stable step; of these, what contracts fastest near z.

    Without a kinetic block there is no friction to choose.
    """
    if not any(b.kinetic for b in system.blocks):
        frictions = (1.0,)
    tried = []
    for friction in frictions:
        damped = with_friction(system, float(friction))
        limit = stability_limit(damped, scheme, z)
        tried.append(
            Tuning(share * limit, float(friction), contraction(damped, scheme, z, share * limit), limit)
        )
    return min(tried, key=lambda t: t.contraction)


def retuned(system: BlockSystem, tuning: Tuning) -> BlockSystem:
    """The system with the factors of a tuning on its steps and frictions."""
    damped = with_friction(system, tuning.friction)
    return BlockSystem(damped.blocks, damped.force_field, h=system.h * tuning.step)

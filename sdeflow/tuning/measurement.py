"""What a warm-up measures: curvature of each block, the ends of the joint spectrum, gradient noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from sdeflow.system.system import BlockSystem
from sdeflow.tuning.curvature import Curvature, Vectors, lanczos, particles_of
from sdeflow.tuning.gradient_noise import noise_of

PRODUCTS, JOINT, SETTLED = 4, 24, 3
"""Products of curvature a block; at most for the ends of the joint spectrum; over how many of these the
least end must be still."""


class Measurement(NamedTuple):
    """What was found.

    curvature     L by block, which may be no positive number
    directions    of most curvature, by block, as they are on the first of the minibatches
    noise         nu by block of parameters, with more than one minibatch
    """

    curvature: dict[str, float]
    directions: dict[str, Tensor]
    noise: dict[str, float]


def measure(system: BlockSystem, views: Iterable[Curvature], directions: Mapping[str, Tensor]) -> Measurement:
    """Curvature and noise of a state that is seen on all data, or on one minibatch after another.

    Particles are as stable as the stiffest of any datum lets them be, parameters see the mean.

    directions   to begin from, by block, where they are known
    """
    opposed = system.force_field.opposed  # these need the curvature of the others
    found: dict[str, list[float]] = {b.name: [] for b in system.blocks}
    tops: dict[str, Tensor] = {}
    forces: list[Vectors] = []
    for c in views:
        for b in sorted(system.blocks, key=lambda b: b.name in opposed):
            others = {name: values[-1] for name, values in found.items() if values}
            known = {b.name: directions[b.name].double()} if b.name in directions else c.start([b.name])
            ritz = lanczos(c.of_block(b.name, others), known, PRODUCTS)
            found[b.name].append(float(ritz.values.abs().max()))
            if ritz.top[b.name].isfinite().all():
                tops.setdefault(b.name, ritz.top[b.name])
        forces.append(c.force())
    curvature = {
        b.name: max(found[b.name]) if b.of_data else sum(found[b.name]) / len(forces) for b in system.blocks
    }
    noise: dict[str, float] = {}
    if len(forces) > 1:
        heat = sum(math.prod(b.shape) / particles_of(b) for b in system.particles if b.of_data) / 2
        noise = {
            b.name: noise_of([f[b.name] for f in forces], curvature[b.name], heat) for b in system.parameters
        }
    return Measurement(curvature, tops, noise)


def joint_ends(c: Curvature, curvature: Mapping[str, float]) -> tuple[float, float]:
    """The least and the largest eigenvalue of J^, as far as a few products tell."""
    scale = {name: value**-0.5 for name, value in curvature.items()}

    def product(v: Vectors) -> Vectors:
        w = c.product({name: scale[name] * x for name, x in v.items()})
        return {name: scale[name] * x for name, x in w.items()}

    least: list[float] = []

    def enough(values: Tensor, errors: Tensor) -> bool:
        least.append(float(values[0]))
        if least[-1] < -0.01 * float(values[-1]):
            return True
        # a bound says that some eigenvalue is near, so the least is waited for a little
        still = len(least) > SETTLED and least[-1 - SETTLED] < 1.05 * least[-1]
        return still and bool(errors[0] < 0.05 * values[0])

    force = c.force()
    if not any(bool(f.any()) for f in force.values()):  # the run begins where it is to go
        force = c.start(list(force))
    ritz = lanczos(product, {name: scale[name] * f for name, f in force.items()}, JOINT, enough)
    return float(ritz.values[0]), float(ritz.values[-1])

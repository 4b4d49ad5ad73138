"""The published systems, each a declaration of its blocks.

theta moves under -grad_theta E, the particles X under their scores. Momenta, where there are any, are
m and U. N is the number of particles a datum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sdeflow.block import Block, Role
from sdeflow.errors import SdeflowError
from sdeflow.system import Axes, BlockSystem

if TYPE_CHECKING:
    from sdeflow.model import Model


@dataclass(frozen=True)
class Motion:
    """The numbers of one block: its step h and, with a momentum, eta (inverse mass) and gamma (friction).

    precondition   'rmsprop' divides the force by the root of its running mean square; for parameters at T = 0
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    h: float
    eta: float | None = None
    gamma: float | None = None
    precondition: Literal["rmsprop"] | None = None


@dataclass(frozen=True)
class Dynamics:
    """How a block moves, whatever its numbers."""

    momentum: bool
    temperature: Literal["0", "1", "1/N"]

    def __str__(self) -> str:
        return f"{'kinetic' if self.momentum else 'overdamped'}, T = {self.temperature}"


def overdamped(temperature: Literal["0", "1", "1/N"]) -> Dynamics:
    return Dynamics(False, temperature)


def kinetic(temperature: Literal["0", "1", "1/N"]) -> Dynamics:
    return Dynamics(True, temperature)


@dataclass(frozen=True)
class SystemDeclaration:
    """A system of parameters theta and particles X. Calling it with a model gives a BlockSystem.

    model       what to learn
    particles   N, particles a datum
    theta, x    the blocks' numbers, as `Motion` or a mapping with h, eta, gamma; an overdamped block
                needs h alone, and leaves the others aside so that systems can be exchanged
    h           the reference step of the common clock (default: theta's own)

    Raises SdeflowError for a missing or impossible number.
    """

    name: str
    theta: Dynamics
    x: Dynamics
    source: str

    def __call__(
        self,
        model: Model,
        *,
        particles: int,
        theta: Motion | Mapping[str, Any],
        x: Motion | Mapping[str, Any],
        h: float | None = None,
    ) -> BlockSystem:
        from sdeflow.forces import ModelForces

        forces = ModelForces(model, particles)
        motion = {"theta": _motion("theta", theta), "x": _motion("x", x)}
        reference = motion["theta"].h if h is None else h
        if not 0 < reference < math.inf:
            raise SdeflowError(f"the reference step h must be positive and finite, given {h!r}")

        def block(
            name: str, position: str, momentum: str, axes: Axes, role: Role, dynamics: Dynamics
        ) -> Block:
            m = motion[name]
            if dynamics.momentum and (m.eta is None or m.gamma is None):
                raise SdeflowError(f"{self.name}: block '{name}' has a momentum and needs both eta and gamma")
            return Block(
                name=name,
                position=position,
                shape=axes.shape,
                dims=axes.dims,
                momentum=momentum if dynamics.momentum else None,
                eta=math.nan if m.eta is None else m.eta,
                gamma=math.nan if m.gamma is None else m.gamma,
                temperature={"0": 0.0, "1": 1.0, "1/N": 1 / particles}[dynamics.temperature],
                rate=m.h / reference,
                memory=f"{position}_rms" if m.precondition else None,
                role=role,
            )

        parameters = Axes(("param",), (forces.parameters.size,))
        cloud = Axes(("datum", "particle", "latent"), (forces.data, particles, forces.latent))
        return BlockSystem(
            (
                block("theta", "theta", "m", parameters, "parameters", self.theta),
                block("x", "X", "U", cloud, "particles", self.x),
            ),
            forces,
            h=reference,
        )


def _motion(block: str, numbers: Motion | Mapping[str, Any]) -> Motion:
    if isinstance(numbers, Motion):
        motion = numbers
    else:
        try:
            motion = Motion(**numbers)
        except TypeError:
            raise SdeflowError(
                f"block '{block}' takes h and, with a momentum, eta and gamma; "
                f"given {', '.join(numbers) or 'nothing'}"
            ) from None
    if not isinstance(motion.h, float | int) or not 0 < motion.h < math.inf:
        raise SdeflowError(f"block '{block}': the step h must be positive and finite, given {motion.h!r}")
    return motion


pgd = SystemDeclaration(
    "pgd", overdamped("0"), overdamped("1"), "Kuntz, Lim, Johansen 2023, arXiv:2204.12965"
)
ipla = SystemDeclaration("ipla", overdamped("1/N"), overdamped("1"), "Akyildiz et al. 2023, arXiv:2303.13429")
mpgd = SystemDeclaration("mpgd", kinetic("0"), kinetic("1"), "Lim et al. 2024, arXiv:2312.07335")
mpgd_theta = SystemDeclaration("mpgd-theta", kinetic("0"), overdamped("1"), "Lim et al. 2024, ablation")
mpgd_x = SystemDeclaration("mpgd-x", overdamped("0"), kinetic("1"), "Lim et al. 2024, ablation")
kiplmc = SystemDeclaration("kiplmc", kinetic("1/N"), kinetic("1"), "Oliva, Akyildiz 2024, arXiv:2407.05790")

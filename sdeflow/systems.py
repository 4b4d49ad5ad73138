"""The published systems, each a declaration of its blocks.

theta moves under -grad_theta E, the particles X under their scores. Momenta, where there are any, are
m and U. N is the number of particles a datum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sdeflow.block import Block
from sdeflow.errors import SdeflowError
from sdeflow.system import BlockSystem

if TYPE_CHECKING:
    from sdeflow.model import Model


@dataclass(frozen=True)
class Motion:
    """The numbers of one block: its own step h, and with a momentum eta (inverse mass) and gamma (friction)."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    h: float
    eta: float | None = None
    gamma: float | None = None


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
        theta: Motion | Mapping[str, float],
        x: Motion | Mapping[str, float],
        h: float | None = None,
    ) -> BlockSystem:
        from sdeflow.forces import ModelForces

        forces = ModelForces(model, particles)
        motions = {"theta": self._motion("theta", theta), "x": self._motion("x", x)}
        reference = motions["theta"].h if h is None else h
        temperature = {"0": 0.0, "1": 1.0, "1/N": 1 / particles}

        def numbers(name: str, rule: Dynamics) -> dict[str, float]:
            m = motions[name]
            chosen = {"rate": m.h / reference, "temperature": temperature[rule.temperature]}
            if not rule.momentum:
                return chosen
            if m.eta is None or m.gamma is None:
                raise SdeflowError(f"{self.name}: block '{name}' has a momentum and needs both eta and gamma")
            return chosen | {"eta": m.eta, "gamma": m.gamma}

        blocks = (
            Block(
                "theta",
                "theta",
                (forces.parameters.size,),
                ("param",),
                "m" if self.theta.momentum else None,
                role="parameters",
                **numbers("theta", self.theta),
            ),
            Block(
                "x",
                "X",
                (forces.data, particles, forces.latent),
                ("datum", "particle", "latent"),
                "U" if self.x.momentum else None,
                **numbers("x", self.x),
            ),
        )
        return BlockSystem(blocks, forces, h=reference)

    def _motion(self, name: str, given: Motion | Mapping[str, float]) -> Motion:
        try:
            motion = given if isinstance(given, Motion) else Motion(**given)
        except TypeError:
            raise SdeflowError(
                f"{self.name}: block '{name}' takes h, eta, gamma, given {', '.join(dict(given)) or 'nothing'}"
            ) from None
        if not 0 < motion.h < math.inf:
            raise SdeflowError(f"{self.name}: the step h of block '{name}' must be positive, given {motion.h!r}")
        return motion


pgd = SystemDeclaration("pgd", overdamped("0"), overdamped("1"), "Kuntz, Lim, Johansen 2023, arXiv:2204.12965")
ipla = SystemDeclaration("ipla", overdamped("1/N"), overdamped("1"), "Akyildiz et al. 2023, arXiv:2303.13429")
mpgd = SystemDeclaration("mpgd", kinetic("0"), kinetic("1"), "Lim et al. 2024, arXiv:2312.07335")
mpgd_theta = SystemDeclaration("mpgd-theta", kinetic("0"), overdamped("1"), "Lim et al. 2024, ablation")
mpgd_x = SystemDeclaration("mpgd-x", overdamped("0"), kinetic("1"), "Lim et al. 2024, ablation")
kiplmc = SystemDeclaration("kiplmc", kinetic("1/N"), kinetic("1"), "Oliva, Akyildiz 2024, arXiv:2407.05790")

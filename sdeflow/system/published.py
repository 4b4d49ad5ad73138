"""The published systems, each a declaration of its blocks.

theta moves under -grad_theta E, the particles X under their scores. Momenta, where there are any, are
m and U. N is the number of particles a datum. Systems with an energy-based prior have theta in two blocks,
alpha and beta, and prior particles Z (momenta V) besides, under minus the gradient of their energy.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sdeflow.errors import SdeflowError, expect_count, expect_positive
from sdeflow.state import Axes
from sdeflow.system.block import Block, Inner
from sdeflow.system.motion import CHOSEN, Motion, first, heated, is_auto, motion_of
from sdeflow.system.optimizer_names import rule_of
from sdeflow.system.scheduled import scheduled
from sdeflow.system.system import BlockSystem

if TYPE_CHECKING:
    from sdeflow.model.energy import EnergyModel
    from sdeflow.model.model import Model, ParameterLayout


@dataclass(frozen=True)
class Dynamics:
    """How a block moves, whatever its numbers."""

    momentum: bool
    temperature: Literal["0", "1", "1/N"]

    def __str__(self) -> str:
        return f"{'kinetic' if self.momentum else 'overdamped'}, T = {self.temperature}"


def overdamped(temperature: Literal["0", "1", "1/N"]) -> Dynamics:
    """A block without a momentum, dq = f dt + sqrt(2 T) dW, at T = 0, 1 or 1/N."""
    return Dynamics(False, temperature)


def kinetic(temperature: Literal["0", "1", "1/N"]) -> Dynamics:
    """A block with a momentum, dq = eta p dt, dp = (-gamma eta p + f) dt + sqrt(2 gamma T) dW, likewise."""
    return Dynamics(True, temperature)


class Declaration(ABC):
    """A published system: how its blocks move. Calling it with a model gives a BlockSystem."""

    name: str
    source: str

    @property
    @abstractmethod
    def dynamics(self) -> dict[str, Dynamics | str]:
        """How each variable moves."""


@dataclass(frozen=True)
class SystemDeclaration(Declaration):
    """A system of parameters theta and particles X.

    model         what to learn
    particles     N, [particles] a datum
    theta, x      the block's numbers, as `Motion` or a mapping with h, eta, gamma; an overdamped block
                  needs h alone, and leaves the others aside so that systems can be exchanged
    h             the reference step of the common clock, in units of [time] (default: theta's own)
    inner_steps   K, the [steps] that particles take while theta takes one, where the system has such; others
                  leave it aside

    Raises SdeflowError for a missing or impossible number.
    """

    name: str
    theta: Dynamics
    x: Dynamics
    source: str
    inner: Inner | None = None

    def __call__(
        self,
        model: Model,
        *,
        particles: int,
        theta: Motion | Mapping[str, Any] = CHOSEN,
        x: Motion | Mapping[str, Any] = CHOSEN,
        h: float | None = None,
        inner_steps: int | None = None,
    ) -> BlockSystem:
        from sdeflow.model.energy_forces import refuse_energy
        from sdeflow.model.forces import ModelForces

        particles = expect_count("particles", particles)
        forces = ModelForces(model, particles)
        refuse_energy(forces, self.name)
        motion = {"theta": motion_of("theta", theta), "x": motion_of("x", x)}
        block = _Blocks(motion, first(motion["theta"].h) if h is None else h, particles, forces.layouts)
        inner = self.inner
        if inner is not None and inner_steps is not None:
            inner = replace(inner, steps=expect_count("inner_steps", inner_steps))
        parameters = Axes(("param",), (forces.parameters.size,))
        cloud = Axes(("datum", "particle", "latent"), (forces.n_data, particles, forces.latent))
        theta_x = (
            block("theta", position="theta", momentum="m", axes=parameters, moves=self.theta),
            block("x", position="X", momentum="U", axes=cloud, moves=self.x, inner=inner),
        )
        return BlockSystem(theta_x, forces, h=block.reference)

    @property
    def dynamics(self) -> dict[str, Dynamics | str]:
        return {"theta": self.theta, "X": self.x if self.inner is None else f"{self.x}, {self.inner.short}"}


@dataclass(frozen=True)
class AmortisedDeclaration(Declaration):
    """A system of parameters theta and an encoder's, which maximise the ELBO together.

    model           what to learn
    particles       N, [draws] a datum and step
    theta           the numbers of both networks' block, as `Motion` or a mapping
    encoder         'mlp' or, of images, 'convolutional' (sdeflow.model.amortised)
    encoder_hidden  widths of an mlp's hidden layers
    encoder_width   channels of a convolution
    h               the reference step of the common clock, in units of [time] (default: theta's own)
    x, inner_steps  left aside, so that systems can be exchanged

    X are the normals of which draws are made. Raises SdeflowError for a missing or impossible number.
    """

    name: str
    theta: Dynamics
    source: str

    def __call__(
        self,
        model: Model,
        *,
        particles: int,
        theta: Motion | Mapping[str, Any] = CHOSEN,
        x: Motion | Mapping[str, Any] = CHOSEN,
        h: float | None = None,
        inner_steps: int | None = None,
        encoder: Literal["mlp", "convolutional"] = "mlp",
        encoder_hidden: Sequence[int] = (256, 256),
        encoder_width: int = 32,
    ) -> BlockSystem:
        from sdeflow.model.amortised import Amortised
        from sdeflow.model.energy import EnergyModel

        if isinstance(model, EnergyModel):
            raise SdeflowError(f"system '{self.name}' needs a normalised log-joint, not an energy")
        wrapped = Amortised(model, encoder, encoder_hidden, encoder_width)
        system = SystemDeclaration(self.name, self.theta, overdamped("1"), self.source, Inner(0, fresh=True))
        return system(wrapped, particles=particles, theta=theta, x={"h": 1.0}, h=h)

    @property
    def dynamics(self) -> dict[str, Dynamics | str]:
        return {"theta": self.theta, "X": "drawn by an encoder"}


@dataclass(frozen=True)
class EnergySystemDeclaration(Declaration):
    """A system of an energy-based prior's parameters alpha, a likelihood's beta, particles X and Z.

    model              what to learn, an `EnergyModel`
    particles          N, posterior [particles] a datum
    prior_particles    P, prior [particles]
    alpha, beta, x, z  the block's numbers, as in `SystemDeclaration`; z moves like x unless given. A model
                       without parameters in its energy has no blocks alpha and z, one without parameters in
                       its likelihood no beta
    h                  the reference step of the common clock, in units of [time] (default: x's own)
    theta, inner_steps  left aside, so that systems can be exchanged

    A step h of an average over D data, as it is usually published, is h/D here: theta's forces are sums.
    Raises SdeflowError for a missing or impossible number.
    """

    name: str
    parameters: Dynamics
    particles: Dynamics
    source: str

    def __call__(
        self,
        model: EnergyModel,
        *,
        particles: int,
        prior_particles: int,
        x: Motion | Mapping[str, Any] = CHOSEN,
        alpha: Motion | Mapping[str, Any] = CHOSEN,
        beta: Motion | Mapping[str, Any] = CHOSEN,
        z: Motion | Mapping[str, Any] | None = None,
        h: float | None = None,
        theta: Motion | Mapping[str, Any] = CHOSEN,
        inner_steps: int | None = None,
    ) -> BlockSystem:
        from sdeflow.model.energy_forces import EnergyForces

        particles = expect_count("particles", particles)
        prior_particles = expect_count("prior_particles", prior_particles)
        forces = EnergyForces(model, particles, prior_particles)
        given = {"alpha": alpha, "beta": beta, "x": x, "z": x if z is None else z}
        motion = {name: motion_of(name, numbers) for name, numbers in given.items()}
        block = _Blocks(motion, first(motion["x"].h) if h is None else h, particles, forces.layouts)
        latent = forces.posterior.latent
        cloud = Axes(("datum", "particle", "latent"), (forces.n_data, particles, latent))
        blocks = []
        for name, layout in forces.parameters.items():
            axes = Axes((f"{name}_param",), (layout.size,))
            blocks.append(block(name, position=name, momentum=f"m_{name}", axes=axes, moves=self.parameters))
        blocks.append(block("x", position="X", momentum="U", axes=cloud, moves=self.particles))
        if forces.prior is not None:
            prior = Axes(("prior_particle", "latent"), (prior_particles, latent))
            blocks.append(block("z", position="Z", momentum="V", axes=prior, moves=self.particles))
        return BlockSystem(blocks, forces, h=block.reference)

    @property
    def dynamics(self) -> dict[str, Dynamics | str]:
        return {"alpha, beta": self.parameters, "X, Z": self.particles}


@dataclass(frozen=True)
class _Blocks:
    """Makes blocks out of their numbers on a common clock."""

    motion: Mapping[str, Motion]
    reference: float
    particles: int
    layouts: Mapping[str, ParameterLayout]

    def __post_init__(self) -> None:
        reference = expect_positive("the reference step h", self.reference)
        object.__setattr__(self, "reference", reference)

    def __call__(
        self,
        name: str,
        *,
        position: str,
        momentum: str,
        axes: Axes,
        moves: Dynamics,
        inner: Inner | None = None,
    ) -> Block:
        """The block of that name; vectors of named parameters are 'parameters', clouds 'particles'."""
        m = self.motion[name]
        numbers = ("h", "eta", "gamma") if moves.momentum else ("h",)
        own = {"0": 0.0, "1": 1.0, "1/N": 1 / self.particles}
        made = Block(
            name=name,
            position=position,
            shape=axes.shape,
            dims=axes.dims,
            momentum=momentum if moves.momentum else None,
            eta=first(m.eta) if moves.momentum else math.nan,
            gamma=first(m.gamma) if moves.momentum else math.nan,
            temperature=heated(name, own[moves.temperature], m),
            rate=first(m.h) / self.reference,
            rule=rule_of(name, m, self.layouts.get(axes.dims[0])),
            restart=m.restart and moves.momentum,
            role="parameters" if axes.named else "particles",
            inner=inner,
            auto=tuple(name for name in numbers if is_auto(getattr(m, name))),
        )
        left = () if moves.momentum else ("gamma",)
        return scheduled(made, **{key: by for key, by in m.schedules.items() if key not in left})


pgd = SystemDeclaration(
    "pgd", overdamped("0"), overdamped("1"), "Kuntz, Lim, Johansen 2023, arXiv:2204.12965"
)
"""Particle gradient descent: theta goes down E, particles move by Langevin dynamics under their scores."""
ipla = SystemDeclaration("ipla", overdamped("1/N"), overdamped("1"), "Akyildiz et al. 2023, arXiv:2303.13429")
"""Interacting particle Langevin algorithm: pgd with noise in theta, sqrt(2/N) dB."""
mpgd = SystemDeclaration("mpgd", kinetic("0"), kinetic("1"), "Lim et al. 2024, arXiv:2312.07335")
"""Momentum particle descent: pgd with a momentum for theta, damped, and underdamped Langevin particles."""
mpgd_theta = SystemDeclaration("mpgd-theta", kinetic("0"), overdamped("1"), "Lim et al. 2024, ablation")
"""Only theta has a momentum."""
mpgd_x = SystemDeclaration("mpgd-x", overdamped("0"), kinetic("1"), "Lim et al. 2024, ablation")
"""Only the particles have momenta."""
kiplmc = SystemDeclaration("kiplmc", kinetic("1/N"), kinetic("1"), "Oliva, Akyildiz 2024, arXiv:2407.05790")
"""Kinetic interacting particle Langevin Monte Carlo: mpgd with noise in theta's momentum."""
short_run = SystemDeclaration(
    "short_run",
    overdamped("0"),
    overdamped("1"),
    "Nijkamp et al. 2020, arXiv:1912.01909",
    Inner(20, fresh=True),
)
"""Particles begin anew at each step of theta, from the prior, and take 20 Langevin steps."""
abp = SystemDeclaration(
    "abp", overdamped("0"), overdamped("1"), "Han, Lu, Zhu, Wu 2017, arXiv:1606.08571", Inner(5)
)
"""Alternating back-propagation: particles go on from where they are, 5 Langevin steps a step of theta."""
soul = SystemDeclaration(
    "soul",
    overdamped("0"),
    overdamped("1"),
    "De Bortoli, Durmus, Pereyra, Vidal 2021, arXiv:1906.12281",
    Inner(5, average=True),
)
"""Stochastic optimisation by unadjusted Langevin: theta's force is the mean over the inner steps."""
vi = AmortisedDeclaration("vi", overdamped("0"), "Kingma, Welling 2014, arXiv:1312.6114")
"""Variational inference: an encoder draws the particles, and both networks maximise the ELBO."""
ebipla = EnergySystemDeclaration(
    "ebipla", overdamped("1/N"), overdamped("1"), "Marks, Wang, Akyildiz 2025, arXiv:2510.12311"
)
"""Energy-based ipla: prior particles Z stand for the learned prior beside the posteriors' X."""
kinetic_ebipla = EnergySystemDeclaration(
    "kinetic_ebipla", kinetic("1/N"), kinetic("1"), "sdeflow; after Marks et al. 2025, arXiv:2510.12311"
)
"""ebipla with momenta for all blocks."""

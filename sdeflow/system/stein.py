"""Systems whose particles a kernel moves together, without noise (sdeflow.model.kernels)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sdeflow.errors import SdeflowError
from sdeflow.system.motion import CHOSEN, Motion, is_auto, motion_of
from sdeflow.system.optimizer_names import optimizer_named
from sdeflow.system.published import Declaration, Dynamics, SystemDeclaration, kinetic, overdamped
from sdeflow.system.system import BlockSystem

if TYPE_CHECKING:
    from sdeflow.model.model import Model


@dataclass(frozen=True)
class KernelDeclaration(Declaration):
    """A system of parameters theta and particles X, which feel each other by a kernel and have T = 0.

    model         what to learn
    particles     N, [particles] a datum; with fewer than a latent has coordinates they collapse
    theta, x      the block's numbers, as in `SystemDeclaration`, all to be given; coin_em takes none of them
                  but its option, { optimizer = { name = 'coin', a = 100.0 } }
    h             the reference step of the common clock, in units of [time] (default: theta's own)
    kernel        'rbf', exp(-|x - y|^2 / (2 l^2)), or 'linear', 1 + <x, y>
    bandwidth     l of 'rbf', or 'median': l^2 is the median of |x - y|^2 over all pairs, those of a particle
                  with itself too, over 2 log(N + 1)
    inner_steps   left aside, so that systems can be exchanged

    Where `optimizer` is named it moves both blocks. Raises SdeflowError for a missing or impossible number.
    """

    name: str
    theta: Dynamics
    source: str
    optimizer: str | None = None

    def __call__(
        self,
        model: Model,
        *,
        particles: int,
        theta: Motion | Mapping[str, Any] = CHOSEN,
        x: Motion | Mapping[str, Any] = CHOSEN,
        h: float | None = None,
        inner_steps: int | None = None,
        kernel: Literal["rbf", "linear"] = "rbf",
        bandwidth: float | Literal["median"] = "median",
    ) -> BlockSystem:
        from sdeflow.model.forces import ModelForces
        from sdeflow.model.kernel_forces import KernelForces
        from sdeflow.model.kernels import kernel_named

        combining = kernel_named(kernel, bandwidth)
        of_theta = self._given("theta", motion_of("theta", theta), self.theta)
        of_x = self._given("x", motion_of("x", x), overdamped("0"))
        plain = SystemDeclaration(self.name, self.theta, overdamped("0"), self.source)
        reference = h if self.optimizer is None else None
        system = plain(model, particles=particles, theta=of_theta, x=of_x, h=reference)
        own = system.force_field
        assert isinstance(own, ModelForces)
        forces = KernelForces(own.model, own.n_particles, combining, _layout=own.parameters)
        return BlockSystem(system.blocks, forces, h=system.h)

    def _given(self, block: str, motion: Motion, moves: Dynamics) -> Motion:
        """The numbers of a block, with the system's optimizer; raises SdeflowError where one is missing."""
        if self.optimizer is not None:
            found = optimizer_named(motion.optimizer or self.optimizer)
            if found.name != self.optimizer:
                raise SdeflowError(
                    f"system '{self.name}' moves {block} by '{self.optimizer}', given '{found.name}': take "
                    "svgd_em for another optimizer"
                )
            return replace(motion, optimizer=found)
        needed = ("h", "eta", "gamma") if moves.momentum else ("h",)
        if missing := [name for name in needed if is_auto(getattr(motion, name))]:
            raise SdeflowError(
                f"system '{self.name}' needs {', '.join(missing)} of block '{block}', which a run chooses by "
                "the curvature of a potential, and kernels give none: give numbers, or take coin_em"
            )
        return motion

    @property
    def dynamics(self) -> dict[str, Dynamics | str]:
        if self.optimizer is not None:
            return {"theta": self.optimizer, "X": f"{self.optimizer}, by a kernel"}
        return {"theta": self.theta, "X": f"{overdamped('0')}, by a kernel"}


PAPER = "Sharrock, Dodd, Nemeth 2024, arXiv:2305.14916"

svgd_em = KernelDeclaration("svgd_em", overdamped("0"), f"{PAPER}; Liu, Wang 2016, arXiv:1608.04471")
"""SVGD-EM: theta goes down E, particles follow the Stein variational gradient of a kernel."""
momentum_svgd_em = KernelDeclaration("momentum_svgd_em", kinetic("0"), f"sdeflow; after {PAPER}")
"""svgd_em with a momentum for theta, damped."""
coin_em = KernelDeclaration("coin_em", overdamped("0"), PAPER, optimizer="coin")
"""Coin-EM: svgd_em by coin betting in both blocks, without a step size."""

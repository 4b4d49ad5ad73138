"""What a scheme can do with curvature: its stable steps and its speed, from its own step on quadratic wells.

Blocks are taken in units in which each has 1 as its largest curvature (eta = 1/L). A parameter and a particle
then see a potential with the Hessian [[a, c], [c, b]], and a step without noise is a linear map of both,
their momenta and what the scheme keeps. Its spectral radius is the factor by which an error shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdeflow.state import State
from sdeflow.system.block import Block
from sdeflow.system.increments import noise_of
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import BlockSystem

NEUTRAL = 1e-7
"""How far above one a spectral radius may be and still count as one: a direction that nothing determines."""

SOFT = 1e-3
"""A curvature far below the largest."""

LEAST = 1e-3
"""A step that is as good as none: the stiffest mode would take thousands."""


@dataclass(frozen=True, eq=False)
class Wells:
    """Quadratic wells for one parameter and one particle, in units of their largest curvatures.

    parameter, particle   whether the block has a momentum; None where there is no such block
    """

    integrator: Integrator[Any]
    parameter: bool | None
    particle: bool | None

    def contraction(
        self, h: float, parameter: float, particle: float, hessians: Sequence[tuple[float, float, float]]
    ) -> Tensor:
        """Spectral radius of a step h at each Hessian (a, b, c), [n]; inf where a step overflows.

        parameter, particle   k = gamma eta, the friction of either block where it has a momentum
        """
        a, b, c = torch.tensor(hessians, dtype=torch.float64).T
        n, hessian = len(hessians), {"theta": (a, c), "x": (c, b)}

        def forces(t: float, z: State, names: Sequence[str]) -> dict[str, Tensor]:
            both = [z[name].view(n, -1) if name in z else a.new_zeros(n, 1) for name in ("theta", "X")]
            f = {
                name: -sum(c[:, None] * q for c, q in zip(hessian[name], both, strict=True)) for name in names
            }
            return {name: value.view(-1, *shapes[name]) for name, value in f.items()}

        system = BlockSystem(self._blocks(h, parameter, particle), forces, h=h)
        shapes = {b.name: b.shape for b in system.blocks}
        with torch.no_grad():
            z = {name: torch.zeros(n, *axes.shape, dtype=torch.float64) for name, axes in system.axes.items()}
            z |= self.integrator.init(system, z)
            sizes = [value[0].numel() for value in z.values()]
            eye = torch.eye(sum(sizes), dtype=torch.float64).repeat(n, 1)
            parts = zip(z.items(), eye.split(sizes, 1), strict=True)
            z = {name: part.reshape(-1, *value.shape[1:]) for (name, value), part in parts}
            new = self.integrator.step(system, 0.0, z, h, ({},) * self.integrator.substeps)
        maps = torch.cat([new[name].flatten(1) for name in z], 1).view(n, sum(sizes), -1)  # transposed
        if not maps.isfinite().all():
            return torch.full((n,), torch.inf, dtype=torch.float64)
        return torch.linalg.eigvals(maps).abs().amax(1)

    def limit(self, parameter: float, particle: float, highest: float = 2.0) -> float:
        """The largest step, of 4 at most, that is stable for all curvatures up to 1 a block, to 0.5%.

        Soft modes matter too: where a scheme takes friction k explicitly they leave the stable range at 2/k.

        highest   1 + |c|, the largest eigenvalue of the joint curvature. More blocks than there are wells may
                  have a larger one, for which the units are changed to those in which it is their number
        """
        count = float(len(self._blocks(1.0, parameter, particle)))
        if highest > count:
            unit = (count / highest) ** 0.5
            return unit * self.limit(unit * parameter, unit * particle, count)
        most = highest - 1.0
        hessians = [(1.0, 1.0, share * most) for share in (1.0, 0.9, 0.5, 0.0)]
        hessians += [(1.0, 0.3, 0.0), (0.3, 1.0, 0.0), (SOFT, SOFT, 0.0)]

        def stable(h: float) -> bool:
            return float(self.contraction(h, parameter, particle, hessians).max()) <= 1 + NEUTRAL

        return _largest(stable)

    def heat(self, h: float, friction: float) -> float:
        """By what share the particles' variance in their stiffest direction exceeds the law's under steps h.

        Its stationary variance S solves S = M S M' + G G', with the step's map M of the state and G of its
        normals. inf where there is none.
        """
        if self.particle is None:
            return 0.0
        (block,) = [b for b in self._blocks(h, friction, friction) if b.name == "x"]
        block = replace(block, temperature=1.0)
        system = BlockSystem([block], lambda t, z, names: {"x": -z["X"]}, h=h)
        (channel,), spec = system.channels, self.integrator.noise_spec(h)
        size, many = len(block.variables), channel.normals(spec.kind)
        rows = size + many * spec.substeps
        one = torch.eye(rows, dtype=torch.float64).view(rows, rows, 1, 1, 1)
        z: State = {name: one[:, i] for i, name in enumerate(block.variables)}
        xi = one[:, size:].unflatten(1, (spec.substeps, many)).movedim(0, 2)
        with torch.no_grad():
            z = z | self.integrator.init(system, z)
            z = self.integrator.step(system, 0.0, z, h, noise_of([(channel, xi)], spec))
        whole = torch.stack([z[name].reshape(rows) for name in block.variables])
        m, g = whole[:, :size], whole[:, size:]
        if not whole.isfinite().all() or float(torch.linalg.eigvals(m).abs().max()) >= 1:
            return torch.inf
        identity = torch.eye(size * size, dtype=torch.float64)
        variance, failed = torch.linalg.solve_ex(identity - torch.kron(m, m), (g @ g.T).reshape(-1))
        return torch.inf if int(failed) else float(variance[0]) - 1.0

    def coolest(self, friction: float, most: float) -> float:
        """The largest step under which the particles are not hotter, or colder, than by the share `most`."""
        return _largest(lambda h: abs(self.heat(h, friction)) <= most)

    def _blocks(self, h: float, parameter: float, particle: float) -> list[Block]:
        """Overdamped blocks take h^2/2 of their time in a step, so that all reach their limit together."""
        shapes = {"theta": ((1,), ("param",)), "x": ((1, 1, 1), ("datum", "particle", "latent"))}
        names = {"theta": ("theta", "m", self.parameter, parameter), "x": ("X", "U", self.particle, particle)}
        return [
            Block(
                name,
                position,
                *shapes[name],
                momentum=momentum if kinetic else None,
                eta=1.0,
                gamma=friction,
                temperature=0.0,
                rate=1.0 if kinetic else h / 2,
                role="parameters" if name == "theta" else "particles",
            )
            for name, (position, momentum, kinetic, friction) in names.items()
            if kinetic is not None
        ]


def _largest(good: Callable[[float], bool]) -> float:
    """The step up to which it is good, to 0.5%, where that is one interval from 0; 0 for less than LEAST."""
    low, high = 0.0, 4.0
    while high - low > 0.005 * high:
        if high < LEAST:
            return 0.0
        middle = (low + high) / 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def wells_of(system: BlockSystem, integrator: Integrator[Any]) -> Wells:
    """The wells that stand for a system: its parameters have momenta, and its particles, or not."""
    parameter = [b.kinetic for b in system.parameters]
    particle = [b.kinetic for b in system.particles if b.steps]  # draws that do not move set no limit
    return Wells(integrator, any(parameter) if parameter else None, any(particle) if particle else None)

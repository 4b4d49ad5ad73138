"""The curvature that a system's forces have about a state, by products with vectors.

The forces of a model are minus the gradient of one potential, in coordinates in which particles count less:

    V(theta, x^) = -(1/N) sum_ij l_i(theta, x_ij),    x^ = x / sqrt(N)

so minus their Jacobian, J, is symmetric there. With a minibatch of b data out of D both 1/N are D/(b N).
L_b is the largest eigenvalue of the part of J that belongs to block b, and with it each block has a scale:
J^ = S J S, S = diag(L_b^-1/2), has ones as the largest curvature of every block, and for two blocks no
eigenvalue above 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdeflow.seeds import generator
from sdeflow.state import State
from sdeflow.system.block import Block
from sdeflow.system.system import BlockSystem

Vectors = dict[str, Tensor]
"""A direction by block name, each [R, *shape]; replicas are parts of one large system."""

STEP = {torch.float64: 1e-4, torch.float32: 3e-3}
"""Root mean square of a displacement whose forces are compared, in units of the block's size."""


LEAST_MEAN = 0.01
"""The least mean curvature of opposing particles, as a share of their largest."""

OPPOSED = 5.0
"""How much slower than particles that oppose them parameters move; from 4 on neither swings."""


class Curvature:
    """Products with J at a state, by differences of forces.

    system        whose forces are compared, in `dtype`
    z             the state, in any precision
    dtype         float32 is for models that take no other: products are then good to about 1e-4
    evaluations   how many evaluations of forces were taken so far
    """

    def __init__(self, system: BlockSystem, z: State, dtype: torch.dtype = torch.float64) -> None:
        self._system, self.evaluations = system, 0
        self._dtype = dtype
        self._at = {name: v.to(dtype) if v.is_floating_point() else v for name, v in z.items()}
        scale = system.force_field.scale
        self._weight = {b.name: (scale if b.of_data else 1.0) / particles_of(b) for b in system.blocks}
        self._scale: dict[str, Tensor | float] = {
            b.name: 1.0 if b.preconditioner is None else b.preconditioner.root(b.memory(z))
            for b in system.blocks
        }
        self._forces = self._evaluate({}, [b.name for b in system.blocks])

    def product(self, v: Vectors) -> Vectors:
        """J v on the blocks of v, in coordinates theta and x^; of a preconditioned block as its force is."""
        return self._products(v, list(v))

    def _products(self, v: Vectors, names: list[str]) -> Vectors:
        """J v on the blocks `names`."""
        blocks = [b for b in self._system.blocks if b.name in v]
        moves = {b.name: self._scale[b.name] * v[b.name] * self._weight[b.name] ** -0.5 for b in blocks}
        size = max(float(moves[b.name].square().mean()) ** 0.5 / self._size(b) for b in blocks)
        if size == 0:
            return {name: torch.zeros_like(self._forces[name]) for name in names}
        step = STEP[self._dtype] / size
        forces = self._evaluate({b.name: step * moves[b.name] for b in blocks}, names)
        return {
            name: (self._forces[name] - forces[name]) * (self._scale[name] * self._weight[name] ** 0.5 / step)
            for name in names
        }

    def of_block(self, name: str, others: Mapping[str, float]) -> Callable[[Vectors], Vectors]:
        """Products with the part of J that belongs to a block.

        Of parameters that are opposed by particles (`ForceField.opposed`) it is what they feel through these
        once the particles have followed, J_aa - J_az J_za / l_z, with l_z the particles' mean curvature, and
        OPPOSED times as much: they are then slow enough for the two not to swing around each other.

        others   L of the blocks that were measured before
        """
        against = self._system.force_field.opposed.get(name)
        if against is None:
            return self.product

        mean = max(self.mean(against), LEAST_MEAN * others[against])

        def product(v: Vectors) -> Vectors:
            both = self._products(v, [name, against])
            back = self._products({against: both[against]}, [name])
            return {name: OPPOSED * (both[name] - back[name] / mean)}

        return product

    def mean(self, name: str) -> float:
        """The mean curvature of a block's coordinates, from one random direction."""
        v = self.start([name])
        return float((v[name] * self.product(v)[name]).sum() / v[name].square().sum())

    def force(self) -> Vectors:
        """The forces at the state, in coordinates theta and x^: they excite the directions it is to go in."""
        return {name: f * (self._scale[name] * self._weight[name] ** 0.5) for name, f in self._forces.items()}

    def start(self, names: Sequence[str]) -> Vectors:
        """A random direction in these blocks, the same every time."""
        return {
            b.name: torch.randn(
                self._at[b.position].shape, generator=generator(0, "curvature", b.name), dtype=torch.float64
            ).to(self._at[b.position].device)
            for b in self._system.blocks
            if b.name in names
        }

    def _size(self, b: Block) -> float:
        return float(self._at[b.position].square().mean()) ** 0.5 or 1.0

    def _evaluate(self, moves: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
        self.evaluations += 1
        z = dict(self._at)
        for b in self._system.blocks:
            if b.name in moves:
                z[b.position] = (z[b.position] + moves[b.name]).to(self._dtype)
        with torch.no_grad():
            forces = self._system.force_field(0.0, z, names)
        return {name: f.double() for name, f in forces.items()}


class Ritz(NamedTuple):
    """Estimates of a symmetric operator's eigenvalues, ascending, with bounds on their errors.

    top   the vector of the largest
    """

    values: Tensor
    errors: Tensor
    top: Vectors


def lanczos(
    product: Callable[[Vectors], Vectors],
    start: Vectors,
    most: int,
    enough: Callable[[Tensor, Tensor], bool] = lambda values, errors: False,
) -> Ritz:
    """Lanczos' iteration with full orthogonalisation, `most` products at most.

    The estimate is NaN where a product is not finite, or there is no direction to start from.

    enough   told values and errors after each product, whether to stop
    """
    names = list(start)

    def flat(v: Vectors) -> Tensor:
        return torch.cat([v[name].reshape(-1) for name in names])

    def named(v: Tensor) -> Vectors:
        parts = v.split([start[name].numel() for name in names])
        return {name: part.view_as(start[name]) for name, part in zip(names, parts, strict=True)}

    v = flat(start)
    basis = [v / v.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        w = flat(product(named(basis[-1])))
        if not w.isfinite().all():
            return Ritz(w.new_tensor([torch.nan]), w.new_tensor([torch.nan]), start)
        diagonal.append(float(w @ basis[-1]))
        for _ in range(2):  # twice is enough
            for u in basis:
                w = w - (w @ u) * u
        rest = float(w.norm())
        matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if beside:
            off = torch.tensor(beside, dtype=torch.float64)
            matrix += torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(matrix)
        errors = rest * vectors[-1].abs()
        largest = float(values.abs().max())
        if len(diagonal) == most or rest <= 1e-9 * largest or len(basis) == len(v) or enough(values, errors):
            top = torch.stack(basis).T @ vectors[:, -1].to(basis[0].device)
            return Ritz(values, errors, named(top))
        beside.append(rest)
        basis.append(w / rest)


def particles_of(b: Block) -> int:
    """How many particles the forces on parameters are means over, of a block of particles; else 1."""
    return next((b.shape[b.dims.index(dim)] for dim in ("particle", "prior_particle") if dim in b.dims), 1)

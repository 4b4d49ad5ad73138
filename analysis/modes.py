"""A system near its equilibrium in the coordinates of its modes: fewer of them, and the same contraction.

Near an equilibrium z* forces are J (z - z*), and the derivative of a step depends on no more of them. The
particles' part of J is symmetric where it is a Hessian. Its eigenvectors, the modes, are other coordinates of
the particles, in which schemes are what they were, as they treat all coordinates of a block alike. Of modes
with one eigenvalue at most as many as there are parameters are coupled to these, and the rest are alike and
alone, so that one of them stands for all: of the toy model's 2 D latents two are left. Eigenvalues of the
one-step map, of the drift and of covariances are the same, but for how often each is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sdeflow.analysis.linear_map import (
    MATRIX_BELOW,
    LinearMap,
    Matrix,
    Vector,
    is_derivative,
    random_direction,
    unpacked,
)
from sdeflow.state import State
from sdeflow.system.system import BlockSystem

SAME = 1e-10
"""Differences of eigenvalues, and couplings, that count as none: parts of the largest of a block."""


@dataclass(frozen=True)
class LinearForces:
    """f_a = sum_b J_ab z_b of blocks a, b with positions [R, n, 1].

    alone   whether no coordinate of a particle is coupled to another one's
    """

    linear: ClassVar[bool] = True
    positions: Mapping[str, str]
    jacobian: Mapping[tuple[str, str], Tensor]
    alone: bool

    def __call__(self, t: float, z: State, names: Sequence[str]) -> dict[str, Tensor]:
        at = self.positions.items()
        return {a: reduce(torch.add, (self.jacobian[a, b] @ z[q] for b, q in at)) for a in names}


def in_modes(system: BlockSystem, z: State) -> tuple[BlockSystem, State]:
    """The system near its equilibrium z in its modes, and its equilibrium in these, which is 0.

    As they are given where there are more than MATRIX_BELOW positions, where forces depend on momenta or the
    time too, and where a step has no derivative (a block's `restart`) or draws from a prior.
    """
    sizes = {b.name: z[b.position].numel() for b in system.blocks}
    odd = any(b.restart or (b.inner is not None and b.inner.fresh) for b in system.blocks)
    if odd or sum(sizes.values()) > MATRIX_BELOW:
        return system, z
    positions = {b.name: b.position for b in system.blocks}
    state = {q: z[q] for q in positions.values()} | z

    def forces(t: float, at: State) -> State:
        found = system.force_field(t, at, list(positions))
        return {q: found[name] for name, q in positions.items()}

    whole = _jacobian(partial(forces, 0.0), state)
    if system.model_forces is None and (_jacobian(partial(forces, system.h), state) != whole).any():
        return system, z
    whole, other = whole[:, : len(whole)], whole[:, len(whole) :]
    if other.any():
        return system, z
    ends = dict(zip(sizes, np.cumsum(list(sizes.values())), strict=True))
    parts = {name: slice(ends[name] - size, ends[name]) for name, size in sizes.items()}
    modes = {b.name: _modes(whole, parts[b.name]) for b in system.particles}
    basis = {name: modes[name][1] if name in modes else np.eye(size) for name, size in sizes.items()}
    jacobian = {(a, b): basis[a].T @ whole[parts[a], parts[b]] @ basis[b] for a in sizes for b in sizes}
    jacobian |= {(name, name): np.diag(values) for name, (values, _) in modes.items() if values is not None}
    pulls = [j - (a == b) * np.diag(np.diag(j)) for (a, b), j in jacobian.items() if {a, b} <= modes.keys()]
    alone = not any(j.any() for j in pulls)
    linear = LinearForces(positions, {key: torch.from_numpy(j) for key, j in jacobian.items()}, alone)
    blocks = [replace(b, shape=(basis[b.name].shape[1], 1), dims=("mode", b.name)) for b in system.blocks]
    names = {name: b.shape for b in blocks for name in b.variables}
    rest = {name: torch.zeros(1, *shape, dtype=torch.float64) for name, shape in names.items()}
    return BlockSystem(blocks, linear, h=system.h), rest


def _jacobian(forces: Callable[[State], State], at: State) -> Matrix:
    """The derivative of forces in all of the state, [forces, state], a row a replica.

    As replicas do not mix, one backward pass gives many. Forward passes, and batches of backward ones, make
    torch import what takes longer than all the rest: they are for models whose replicas cannot be batched,
    that have a backward pass of their own, or parts that are not in the graph.
    """
    like = forces(at)
    count = sum(v.numel() for v in like.values())
    rows = []
    try:
        for row in torch.eye(count, dtype=torch.float64).split(256):
            z = {name: v.expand(len(row), *v.shape[1:]).clone().requires_grad_() for name, v in at.items()}
            with torch.enable_grad():
                f = torch.cat([v.flatten(1) for v in forces(z).values()], dim=1)
                found = torch.autograd.grad((f * row).sum(), list(z.values()), materialize_grads=True)
            rows.append(torch.cat([v.flatten(1) for v in found], dim=1))
        whole = torch.cat(rows)
        v = random_direction(whole.shape[1])
        if is_derivative(forces, at, unpacked(v, at), unpacked(whole @ v, like)):
            return whole.numpy()
    except RuntimeError:
        pass
    none = {name: torch.zeros_like(v) for name, v in at.items()}
    return LinearMap(lambda z: none | forces(z), at).matrix()[:count]


def _modes(whole: Matrix, part: slice) -> tuple[Vector | None, Matrix]:
    """Eigenvalues and orthonormal columns, the modes of a block that are kept.

    All coordinates as they are, and no eigenvalues, where the block's part is not symmetric.
    """
    own, size = whole[part, part], part.stop - part.start
    same = SAME * np.abs(own).max()
    if np.abs(own - own.T).max() > same:
        return None, np.eye(size)
    values, vectors = np.linalg.eigh((own + own.T) / 2)
    others = np.delete(np.arange(len(whole)), np.arange(size) + part.start)
    coupling = np.concatenate([whole[others, part], whole[part, others].T])
    none = SAME * np.abs(coupling).max(initial=0.0)
    kept: list[tuple[Vector, Matrix]] = []
    for group in np.split(np.arange(size), np.flatnonzero(np.diff(values) > same) + 1):
        turned, sizes, _ = np.linalg.svd(vectors[:, group].T @ coupling.T)
        count = min(int((sizes > none).sum()) + 1, len(group))  # one of those that are not coupled
        kept.append((np.full(count, values[group].mean()), vectors[:, group] @ turned[:, :count]))
    return np.concatenate([v for v, _ in kept]), np.concatenate([m for _, m in kept], axis=1)

"""What steps do to the particles' stationary law, from the scheme's own step.

With the parameters at rest a step moves the variables s of particles near their equilibrium by an affine map
of s and of the step's standard normals xi, and the dynamics themselves are linear:

    s' = M s + G xi            S_h = M S_h M' + G G'
    ds = A s dt + R dW         A S + S A' + R R' = 0

M, G and A are derivatives of the real step and drift, so that any scheme will do. Parameters are learned from
averages over particles: where S_h is not S, other parameters are learned, whatever the number of particles
and of steps. What N particles do besides, of order 1/N, is not in here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.analysis.linear_map import MATRIX_BELOW, LinearMap, Matrix
from sdeflow.analysis.stability import at_origin
from sdeflow.state import State
from sdeflow.system.increments import noise_of
from sdeflow.system.integrator import KEPT, Integrator
from sdeflow.system.system import BlockSystem

Index = NDArray[np.int64]

_XI, _SEEN = "xi:", "seen:"


def bias(system: BlockSystem, integrator: Integrator, z: State) -> float:
    """The error of a particle's stationary variance over the variance, where it is largest.

    Over all data and directions v of a latent the v' S_h v / v' S v - 1 furthest from 0, at the system's
    steps: above 0 where particles are spread too wide. inf where the scheme is unstable; NaN where the
    dynamics at z have no stationary law of full rank, and where more than MATRIX_BELOW coordinates interact.
    """
    sizes = [b.shape[-1] if system.model_forces else math.prod(b.shape) for b in system.particles]
    if not sizes or sum(sizes) > MATRIX_BELOW:
        return np.nan
    worst = 0.0
    for found, exact in zip(scheme_covariances(system, integrator, z), covariances(system, z), strict=True):
        if not np.isfinite(exact).all() or (np.linalg.eigvalsh(exact) <= 0).any():
            return np.nan
        if not np.isfinite(found).all():
            return np.inf
        root = np.linalg.inv(np.linalg.cholesky(exact))
        errors = np.linalg.eigvalsh(root @ found @ _transposed(root)) - 1
        worst = max(worst, float(errors.min()), float(errors.max()), key=abs)
    return worst


def scheme_covariances(
    system: BlockSystem, integrator: Integrator, z: State, *, at_forces: bool = False
) -> list[Matrix]:
    """S_h of the positions, [particles, d, d] for each block of particles, at the system's steps near z.

    Where forces are a function, whose particles may pull at each other, that of all of them, [1, n, n].
    Infinite where the scheme is unstable.

    at_forces   not at the end of a step but where its last forces are taken, from which parameters are
                learned: for `ubu` in the middle of the step
    """
    seen: list[State] = []
    resting, z = _at_rest(system, z, seen)
    with torch.no_grad():
        z = z | integrator.init(resting, z)
    spec = integrator.noise_spec(resting.h)
    counts = {c: (spec.substeps, c.normals(spec.kind), c.shape[-1]) for c in resting.channels}
    none = {_XI + c.variable: torch.zeros(1, *c.shape[:-1], math.prod(n)).double() for c, n in counts.items()}

    def places(z: State) -> State:
        return {_SEEN + b.position: z[b.position] for b in resting.particles}

    def step(s: State) -> State:
        xi = {c: s[_XI + c.variable].unflatten(-1, n).movedim((-3, -2), (0, 1)) for c, n in counts.items()}
        moved = integrator.step(resting, 0.0, z | s, resting.h, noise_of(xi.items(), spec))
        return moved | {name: torch.zeros_like(value) for name, value in none.items()} | places(seen[-1])

    moving = _moving(resting, z) | none | (places(z) if at_forces else {})
    found = []
    for index, positions in _independent(system, moving):
        size = index.shape[1]
        drawn = np.array([name.startswith(_XI) for name, v in moving.items() for _ in range(v.numel())])
        fresh = drawn[index][:, :, None] * np.eye(size)
        maps = _blocks(LinearMap(step, moving, origin=at_origin(system, moving)), index)
        part = slice(size - positions, size) if at_forces else slice(positions)
        found.append(_lyapunov(maps, fresh)[:, part, part])
    return found


def covariances(system: BlockSystem, z: State) -> list[Matrix]:
    """S of the positions, likewise; infinite where the dynamics themselves do not contract."""
    resting, z = _at_rest(system, z, [])
    moving = {name: v for name, v in _moving(resting, z).items() if name in resting.axes}
    noise = {name: torch.zeros_like(v) for name, v in moving.items()}
    for name, sigma in resting.diffusion(0.0, z).items():
        noise[name] = noise[name] + sigma**2
    flat = torch.cat([v.flatten() for v in noise.values()]).numpy()
    drift = LinearMap(lambda s: resting.drift(0.0, z | s), moving, origin=at_origin(system, moving))
    found = []
    for index, positions in _independent(system, moving):
        a, eye = _blocks(drift, index), np.eye(index.shape[1])
        rates = np.linalg.eigvals(a)
        if rates.real.max() >= 0:
            found.append(np.full((len(index), positions, positions), np.inf))
            continue
        # By Cayley's transform at c the equation is that of a step with M = (1 - c A)^-1 (1 + c A)
        c = 1 / np.abs(rates).max()
        inverse = np.linalg.inv(eye - c * a)
        drawn = 2 * c * inverse @ (flat[index][:, :, None] * eye) @ _transposed(inverse)
        found.append(_lyapunov(inverse @ (eye + c * a), drawn)[:, :positions, :positions])
    return found


def _at_rest(system: BlockSystem, z: State, seen: list[State]) -> tuple[BlockSystem, State]:
    """The system with its parameters held, by no force and no noise, and the state with all momenta zero.

    seen   gets the state at which forces were last taken
    """
    held = {b.name: b.position for b in system.parameters}

    def forces(t: float, z: State, names: Sequence[str]) -> dict[str, Tensor]:
        seen[:] = [z]
        free = [name for name in names if name not in held]
        f = system.force_field(t, z, free) if free else {}
        return f | {name: torch.zeros_like(z[held[name]]) for name in names if name in held}

    blocks = [replace(b, temperature=0.0) if b.name in held else b for b in system.blocks]
    momenta = {b.momentum: torch.zeros_like(z[b.position]) for b in blocks if b.momentum is not None}
    return BlockSystem(blocks, forces, h=system.h), z | momenta


def _moving(system: BlockSystem, z: State) -> State:
    """What of a state moves while the parameters are held: positions of particles first."""
    held = {name for b in system.parameters for name in (*b.variables, KEPT + b.name)}
    first = [b.position for b in system.particles]
    return {name: z[name] for name in dict.fromkeys([*first, *z]) if name not in held}


def _independent(system: BlockSystem, moving: Mapping[str, Tensor]) -> list[tuple[Index, int]]:
    """Where in the flat state what moves on its own lies, [particles, n], and how many of n are positions.

    A model's particles do not pull at each other while parameters are held, nor do modes that are alone;
    those of other forces may, and so may what a scheme keeps that is not of one block.
    """
    alone = getattr(system.definition, "alone", False)
    ends = np.cumsum([v.numel() for v in moving.values()])
    places = {
        name: np.arange(end - v.numel(), end).reshape(-1, v.shape[-1])
        for (name, v), end in zip(moving.items(), ends, strict=True)
    }
    kinds = [(*b.variables, KEPT + b.name, _XI + b.noisy, _SEEN + b.position) for b in system.particles]
    own = [[name for name in names if name in places] for names in kinds]
    if (alone or system.model_forces is not None) and sum(map(len, own)) == len(places):
        return [
            (np.concatenate([places[n] for n in names], 1), b.shape[-1])
            for b, names in zip(system.particles, own, strict=True)
        ]
    positions = sum(places[b.position].size for b in system.particles)
    return [(np.concatenate([p.ravel() for p in places.values()])[None], positions)]


def _blocks(whole: LinearMap, index: Index) -> Matrix:
    """The matrix of each row of entries that move on their own, [particles, n, n]: n products for all."""
    directions = torch.zeros(index.shape[1], whole.size, dtype=torch.float64)
    for one, at in zip(directions, index.T, strict=True):
        one[at] = 1.0
    return np.stack([column[index] for column in whole.products(directions).numpy()], -1)


def _lyapunov(m: Matrix, noise: Matrix) -> Matrix:
    """S = M S M' + noise for each of some matrices [.., n, n]; infinite where an M does not contract."""
    if not np.isfinite(m).all() or np.abs(np.linalg.eigvals(m)).max() >= 1:
        return np.full_like(noise, np.inf)
    s = noise
    while np.abs(m).max() > 1e-20:
        s, m = s + m @ s @ _transposed(m), m @ m
    return s


def _transposed(m: Matrix) -> Matrix:
    return m.swapaxes(-1, -2)

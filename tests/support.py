"""Probing what an integrator really does: on a linear system one step is an affine map of the state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from typing import Any, NamedTuple, Self

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.config.catalogue import entries, find, integrator_named
from sdeflow.config.run import Run
from sdeflow.config.schema import RunSection
from sdeflow.noise.cpp import cpp_kernel
from sdeflow.noise.kernel import NoKernel
from sdeflow.state import Replicas
from sdeflow.system.block import Block
from sdeflow.system.increments import Channel, Noise
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import BlockSystem, System


def _no_kernel() -> str:
    try:
        cpp_kernel()
    except NoKernel as reason:
        return str(reason)
    return ""


needs_kernel = pytest.mark.skipif(bool(_no_kernel()), reason=_no_kernel())


def doubles(seeds: Sequence[int] = (0,), dtype: torch.dtype = torch.float64) -> Replicas:
    """Replicas on the CPU."""
    return Replicas(list(seeds), dtype, torch.device("cpu"))


def declared(system: Any, integrator: Any, **options: Any) -> Run:
    """A run by the names of [run] and Save, Batch, ..., all in one."""
    own = {f.name: options.pop(f.name) for f in fields(RunSection) if f.name in options}
    return Run.declare(system, integrator, RunSection(**own), **options)


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

SE = 4.5
"""Standard errors that a statistic may be off by: a right one is further once in 150 000 times."""

K = 2 + 100 + np.sqrt(100**2 - 4)
"""Half the inverse mass of the gradient-correction experiment, with 100 data."""

Matrix = NDArray[np.float64]

ODE_SCHEMES = ("ghvb", "heavy_ball")
"""Integrators of systems without noise."""

INTEGRATORS = tuple(
    n
    for n, p in entries("integrators").items()
    if p.value.startswith("sdeflow.") and ":" not in n and n not in ODE_SCHEMES
)
SYSTEMS = ("pgd", "ipla", "mpgd", "mpgd-theta", "mpgd-x", "kiplmc")


def accepted_pairs() -> list[tuple[str, str]]:
    """(integrator, system) of the catalogue wherever the integrator takes the published system."""
    from sdeflow.problems.hierarchical import Hierarchical

    motion = {"h": 0.1, "eta": 1.0, "gamma": 1.0}
    built = {
        name: find("systems", name)(Hierarchical(data=2), particles=1, theta=motion, x=motion)
        for name in SYSTEMS
    }
    return [
        (integrator, name)
        for integrator in INTEGRATORS
        for name, system in built.items()
        if integrator_named(integrator).refuses(system) is None
    ]


class AffineMap(NamedTuple):
    """state' = A state + b + G xi with standard normals xi."""

    A: Matrix
    b: Matrix
    G: Matrix

    @property
    def covariance(self) -> Matrix:
        """Covariance of the noise of one step."""
        return self.G @ self.G.T

    @property
    def radius(self) -> float:
        return spectral_radius(self.A)

    @property
    def fixed_point(self) -> Matrix:
        return np.linalg.solve(np.eye(len(self.A)) - self.A, self.b)

    @property
    def stationary(self) -> Matrix:
        """Covariance of the stationary law, from S = A S A' + G G'."""
        return scipy.linalg.solve_discrete_lyapunov(self.A, self.covariance)


def spectral_radius(a: Matrix) -> float:
    return float(np.abs(np.linalg.eigvals(a)).max())


def exponent(errors: Sequence[float]) -> float:
    """The order p of errors at h, h/2, h/4; infinite where they are roundoff.

    log2 of a ratio is p + O(h), so twice the second less the first is p + O(h^2).
    """
    if errors[-1] < 1e-12:
        return np.inf
    first, second = np.log2(errors[0] / errors[1]), np.log2(errors[1] / errors[2])
    return 2 * second - first


def places(system: System) -> dict[str, slice]:
    """Where each variable lies in the flat state."""
    found, at = {}, 0
    for name, axes in system.axes.items():
        size = int(np.prod(axes.shape))
        found[name] = slice(at, at + size)
        at += size
    return found


def pack(system: System, z: dict[str, Tensor]) -> Tensor:
    """The system's own variables as rows [R, dim]; what a scheme keeps beside them is left out."""
    return torch.cat([z[name].flatten(1) for name in system.axes], 1)


def unpack(system: System, rows: Tensor) -> dict[str, Tensor]:
    return {name: rows[:, at].view(-1, *system.axes[name].shape) for name, at in places(system).items()}


def normals_a_step(channels: Sequence[Channel], integrator: Integrator) -> int:
    return integrator.substeps * sum(
        channel.normals(integrator.increments) * int(np.prod(channel.shape)) for channel in channels
    )


def noise_from(system: System, integrator: Integrator, xi: Tensor) -> tuple[Noise, ...]:
    """The noise of one step made of given standard normals [R, normals_a_step]."""
    parts: list[dict] = [{} for _ in range(integrator.substeps)]
    at = 0
    for part in parts:
        for channel in system.channels:
            draws = []
            for _ in range(channel.normals(integrator.increments)):
                size = int(np.prod(channel.shape))
                draws.append(xi[:, at : at + size].reshape(-1, *channel.shape))
                at += size
            h = integrator.noise_spec(system.h).h_substep
            part[channel.variable] = channel.increment(draws, h, integrator.increments)
    assert at == xi.shape[1]
    return tuple(parts)


def one_step(system: System, integrator: Integrator, rows: Tensor, xi: Tensor | None = None) -> Tensor:
    """One real step from each row; forces that the scheme keeps are made afresh from the row."""
    if xi is None:
        xi = torch.zeros(len(rows), normals_a_step(system.channels, integrator), dtype=rows.dtype)
    z = unpack(system, rows)
    with torch.no_grad():
        z = z | integrator.init(system, z)
        z = integrator.step(system, 0.0, z, system.h, noise_from(system, integrator, xi))
    return pack(system, z)


def affine_map(system: System, integrator: str | Integrator) -> AffineMap:
    """The affine map of one step, with every basis vector of state and noise in a replica of its own."""
    scheme = integrator_named(integrator)
    dim = sum(int(np.prod(axes.shape)) for axes in system.axes.values())
    normals = normals_a_step(system.channels, scheme)
    rows = torch.zeros(1 + dim + normals, dim, dtype=torch.float64)
    xi = torch.zeros(1 + dim + normals, normals, dtype=torch.float64)
    rows[1 : 1 + dim] = torch.eye(dim, dtype=torch.float64)
    xi[1 + dim :] = torch.eye(normals, dtype=torch.float64)
    new = one_step(system, scheme, rows, xi).numpy()
    columns = (new[1:] - new[0]).T
    return AffineMap(columns[:, :dim], new[0], columns[:, dim:])


def toy(
    system: str,
    *,
    data: int,
    particles: int = 1,
    scale: float = 1.0,
    latent: int = 1,
    h: float | None = None,
    mle: float = 0.3,
    theta: dict[str, float],
    x: dict[str, float],
) -> System:
    """A published system on the toy hierarchical model."""
    from sdeflow.problems.hierarchical import Hierarchical

    model = Hierarchical(data=data, latent=latent, scale=scale, theta_true=mle, mle=mle)
    return find("systems", system)(model, particles=particles, theta=theta, x=x, h=h)


KAPPA, ETA, T = 2.5, 0.6, 0.7
"""Of the harmonic well: V(q) = kappa q^2 / 2, inverse mass, temperature."""


def harmonic_well(
    h: float, *, gamma: float = 0.9, rate: float = 1.0, momentum: str | None = "p", size: int = 1
) -> BlockSystem:
    """Coordinates in a well each, with their own step rate * h."""
    block = Block("q", "q", (size,), ("x",), momentum, eta=ETA, gamma=gamma, temperature=T, rate=rate)
    start = {"q": torch.zeros(size, dtype=torch.float64)}
    return BlockSystem([block], lambda t, z, names: {"q": -KAPPA * z["q"]}, h=h, start=start)


class Part(NamedTuple):
    """One block as the equations see it: where q and p lie in the flat state, and its numbers."""

    q: slice
    p: slice | None
    h: float
    eta: float
    gamma: float
    T: float

    @property
    def k(self) -> float:
        return self.gamma * self.eta

    @property
    def size(self) -> int:
        return self.q.stop - self.q.start


class ToyEquations:
    """The toy hierarchical model's systems in numpy, from the published equations and from no package code.

        f_theta = (1/N) sum_ij (x_ij - theta)/s^2,    f_x = (theta - x)/s^2 + y - x
        overdamped   dq = f dt + sqrt(2 T) dW
        kinetic      dq = eta p dt,   dp = (-gamma eta p + f) dt + sqrt(2 gamma T) dW

    with the drift of a block multiplied by its step over the reference step h, and the noise's variance too.
    """

    def __init__(
        self,
        system: str,
        y: Matrix,
        *,
        particles: int,
        scale: float,
        theta: dict[str, float],
        x: dict[str, float],
    ) -> None:
        n = y.size * particles
        kinetic_theta = system in ("mpgd", "mpgd-theta", "kiplmc")
        kinetic_x = system in ("mpgd", "mpgd-x", "kiplmc")
        t_theta = 1 / particles if system in ("ipla", "kiplmc") else 0.0
        m_at = slice(1, 2) if kinetic_theta else None
        at = 2 if kinetic_theta else 1
        u_at = slice(at + n, at + 2 * n) if kinetic_x else None
        self.dim = at + n * (2 if kinetic_x else 1)
        self.theta = Part(slice(0, 1), m_at, theta["h"], theta["eta"], theta["gamma"], t_theta)
        self.x = Part(slice(at, at + n), u_at, x["h"], x["eta"], x["gamma"], 1.0)

        self.force = np.zeros((self.dim, self.dim))
        self.constant = np.zeros(self.dim)
        self.force[self.theta.q, self.x.q] = 1 / (particles * scale**2)
        self.force[self.theta.q, self.theta.q] = -y.size / scale**2
        self.force[self.x.q, self.theta.q] = 1 / scale**2
        self.force[self.x.q, self.x.q] = -(1 + 1 / scale**2) * np.eye(n)
        spread = np.broadcast_to(y[:, None, :], (y.shape[0], particles, y.shape[1]))
        self.constant[self.x.q] = spread.ravel()

    @classmethod
    def of(cls, name: str, system: System, numbers: dict) -> Self:
        """The equations of a system made by `toy(name, **numbers)`, which shares its data alone."""
        y = system.model_forces.model.data.numpy()
        return cls(name, y, **{key: numbers[key] for key in ("particles", "scale", "theta", "x")})

    def generator(self, h: float) -> tuple[Matrix, Matrix, Matrix]:
        """L, c and S of d state = (L state + c) dt + noise of covariance S dt, on the reference clock."""
        drift, constant = np.zeros((self.dim, self.dim)), np.zeros(self.dim)
        noise = np.zeros((self.dim, self.dim))
        for b in (self.theta, self.x):
            rate, one, driven = b.h / h, np.eye(b.size), b.q if b.p is None else b.p
            drift[driven] += rate * self.force[b.q]
            constant[driven] += rate * self.constant[b.q]
            friction = 1.0 if b.p is None else b.gamma
            noise[driven, driven] = 2 * friction * b.T * rate * one
            if b.p is not None:
                drift[b.q, b.p] = rate * b.eta * one
                drift[b.p, b.p] = -rate * b.gamma * b.eta * one
        return drift, constant, noise

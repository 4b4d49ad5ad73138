"""Contraction and stability of a scheme on a system, from the scheme's own step.

Near an equilibrium z* a step without noise is  z' - z* = M (z - z*).  Products of M with vectors are
Jacobian-vector products through the real step, so any scheme, any model and any plug-in will do, and its
eigenvalues of largest modulus come from Arnoldi's iteration.

    contraction a step          rho(M), the spectral radius: of the error; of E - E* it is the square
    per gradient evaluation     rho^(1/evaluations)
    stability limit             the largest f so that the scheme with all steps times f has rho <= 1
    of the continuous dynamics  exp(a h) a step, with a the spectral abscissa of the drift's Jacobian

The equilibrium is that of the dynamics without noise: momenta zero, theta and X where all forces vanish.
Two particles a datum carry all modes of a system of N (those that move their mean, and those that move one
against the other), so that is how many are taken.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.optimize
import torch
from safetensors.torch import load_file

from sdeflow.analysis.chosen import chosen, refuse_auto
from sdeflow.analysis.linear_map import LinearMap, Vector, packed, unpacked
from sdeflow.errors import SdeflowError
from sdeflow.model.forces import ModelForces
from sdeflow.model.kernel_forces import KernelForces
from sdeflow.state import Replicas, State
from sdeflow.system.increments import Noise
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import BlockSystem, initial_state
from sdeflow.trajectory.opening import open_run

if TYPE_CHECKING:
    from sdeflow.config.run import Run

NEUTRAL = 1e-7
"""How far above one a contraction may be and still count as one: parameters that nothing determines."""


def equilibrium(system: BlockSystem, *, tolerance: float = 1e-9) -> State:
    """The state [1, ...] in float64 where all forces vanish, found from the system's start.

    Of a model's forces by L-BFGS on minus the log-joint; of any other forces by a Newton-Krylov iteration.
    Raises SdeflowError where none is found, or a model says that there is none.
    """
    z = initial_state(system, Replicas([0], torch.float64, torch.device("cpu")))
    for b in system.blocks:
        if b.momentum is not None:
            z[b.momentum] = torch.zeros_like(z[b.momentum])
    positions = {b.position: z[b.position] for b in system.blocks}
    model = system.force_field if isinstance(system.force_field, ModelForces) else None
    at_end = "linearise at the end of a run, in Python with linearised(run, folder), by command with --at RUN"
    if isinstance(model, KernelForces):
        raise SdeflowError(f"particles that feel each other by a kernel do not rest at a maximum: {at_end}")
    if model is not None and not model.model.joint_maximum:
        raise SdeflowError(
            f"{type(model.model).__name__} has no equilibrium without noise, for its weights grow while the "
            f"latents shrink: {at_end}"
        )

    def at(x: Vector) -> State:
        return z | unpacked(torch.from_numpy(x), positions)

    def forces(x: Vector) -> Vector:
        with torch.no_grad():
            f = system.force_field(0.0, at(x), [b.name for b in system.blocks])
        return packed({b.position: f[b.name] for b in system.blocks}).numpy()

    def energy(x: Vector) -> tuple[float, Vector]:
        assert model is not None
        with torch.no_grad():
            value = float(model.loss(at(x))) * model.n_data
        return value, -forces(x) / weight

    start: Vector = packed(positions).numpy()
    x: Vector
    if model is None:
        find: Any = scipy.optimize.newton_krylov
        try:
            x = find(forces, start, f_tol=tolerance, maxiter=200)
        except scipy.optimize.NoConvergence as error:
            x = error.args[0]
    else:
        # the force on theta is a mean over particles, that on a particle is not
        share = {"theta": 1.0, "X": float(model.n_particles)}
        weight = packed({k: torch.full_like(v, share[k]) for k, v in positions.items()}).numpy()
        limits: Any = {"maxiter": 10_000, "maxfun": 20_000, "ftol": 0.0, "gtol": tolerance, "maxcor": 50}
        x = scipy.optimize.minimize(energy, start, jac=True, method="L-BFGS-B", options=limits).x
    left, first = np.abs(forces(x)).max(), np.abs(forces(start)).max()
    if not left <= 1e-4 * max(first, 1e-6):
        raise SdeflowError(
            f"no equilibrium was found: the largest force is {left:.3g}, and was {first:.3g} at the start. "
            "Give the state of a run to linearise at"
        )
    return at(x)


def linearised(run: Run, at: Path | None = None) -> tuple[BlockSystem, State]:
    """The system in float64 and the state to linearise it at: its equilibrium, or the end of a run.

    Raises SdeflowError for a system without blocks, numbers that are yet to be chosen, an optimizer, a
    preconditioned force (which is singular where the force vanishes), and a run that is of another system.
    """
    system = run.system
    if not isinstance(system, BlockSystem):
        raise SdeflowError("stability is that of a system made of blocks, and this is a plain SDE")
    if at is not None and any(b.auto for b in system.blocks):
        system = chosen(system, open_run(at))
    refuse_auto(system)
    for b in system.blocks:
        if b.optimizer is not None:
            raise SdeflowError(
                "stability is that of blocks that move by an SDE, and the optimizer "
                f"'{b.optimizer.name}' moves {b.name}: leave 'optimizer' out"
            )
    if any(b.preconditioner is not None for b in system.blocks):
        raise SdeflowError(
            "RMSProp divides a force by its own size, which vanishes at the equilibrium: leave "
            "'precondition' out"
        )
    system = system.to(torch.float64, torch.device("cpu"))
    if at is None:
        return system, equilibrium(system)
    return system, _state_of(system, at)


def step_map(system: BlockSystem, integrator: Integrator, z: State, factor: float = 1.0) -> LinearMap:
    """M: the derivative at z of one step without noise, all steps times `factor`."""
    h = system.h * factor
    with torch.no_grad():
        z = z | integrator.init(system, z)
    silent = _silence(system, integrator, h)
    return LinearMap(
        lambda state: integrator.step(system, 0.0, state, h, silent), z, origin=at_origin(system, z)
    )


def drift_map(system: BlockSystem, z: State) -> LinearMap:
    """The Jacobian of the drift at z, on the reference clock."""
    z = {name: z[name] for name in system.axes}
    return LinearMap(lambda state: system.drift(0.0, state), z, origin=at_origin(system, z))


def at_origin(system: BlockSystem, z: State) -> bool:
    """Whether the system's forces are linear and z is 0, as sdeflow.analysis.modes gives them."""
    return getattr(system.definition, "linear", False) and not any(bool(v.any()) for v in z.values())


def contraction(system: BlockSystem, integrator: Integrator, z: State, factor: float = 1.0) -> float:
    """rho(M), the factor by which the slowest error shrinks a step; inf where the step overflows."""
    try:
        return float(abs(step_map(system, integrator, z, factor).eigenvalues()[0]))
    except (ValueError, OverflowError, np.linalg.LinAlgError):  # not finite
        return np.inf


def stability_limit(system: BlockSystem, integrator: Integrator, z: State, *, largest: float = 1e4) -> float:
    """The largest factor on all steps up to which the scheme contracts, to 5 digits; inf above `largest`.

    Factors grow by a tenth from 1e-3 until one is unstable, and the crossing is then bisected: a window of
    instability narrower than that can be missed. 0 where even the smallest is unstable.
    """

    def stable(factor: float) -> bool:
        return contraction(system, integrator, z, factor) <= 1 + NEUTRAL

    low = 1.0 if stable(1.0) else 1e-3
    if low < 1 and not stable(low):
        return 0.0
    while stable(high := low * 1.1):
        low = high
        if low > largest:
            return np.inf
    while high - low > 1e-5 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low


def continuous_contraction(system: BlockSystem, z: State) -> float:
    """exp(a h): what a reference step contracts in the dynamics themselves, a the spectral abscissa."""
    with np.errstate(over="ignore"):  # to infinity
        return float(np.exp(drift_map(system, z).eigenvalues("LR")[0].real * system.h))


def with_friction(system: BlockSystem, factor: float) -> BlockSystem:
    """The system with gamma of every kinetic block times a factor."""
    blocks = [replace(b, gamma=b.gamma * factor) if b.kinetic else b for b in system.blocks]
    return BlockSystem(blocks, system.force_field, h=system.h)


def with_momentum(system: BlockSystem, gamma: float, eta: float) -> BlockSystem:
    """The system with these gamma and eta in every kinetic block."""
    blocks = [replace(b, gamma=gamma, eta=eta) if b.kinetic else b for b in system.blocks]
    return BlockSystem(blocks, system.force_field, h=system.h)


def _state_of(system: BlockSystem, run: Path) -> State:
    """The positions at the end of a run, momenta zero."""
    path = run / "final.safetensors"
    if not path.is_file():
        raise SdeflowError(f"{run} has no final.safetensors: give the folder of a run that has ended")
    stored, model = load_file(path), system.model_forces
    z: State = {}
    for b in system.blocks:
        names = [b.position]
        if model is not None and (layout := model.layouts.get(b.dims[0])) is not None:
            names = [f"{b.position}.{name}" for name in layout.shapes]
        values = [stored[name].reshape(-1) for name in names if name in stored]
        value = torch.cat(values) if values else torch.empty(0)
        if value.numel() != int(np.prod(b.shape)):
            raise SdeflowError(f"{run} holds no {b.position} of shape {b.shape}: it is of another system")
        z[b.position] = value.double().view(1, *b.shape)
        if b.momentum is not None:
            z[b.momentum] = torch.zeros_like(z[b.position])
    return z


def _silence(system: BlockSystem, integrator: Integrator, h: float) -> tuple[Noise, ...]:
    """The noise of a step, all of it zero."""
    none = {c.variable: torch.zeros(1, *c.shape, dtype=torch.float64) for c in system.channels}
    return tuple(
        {
            c.variable: c.increment(
                [none[c.variable]] * c.normals(integrator.noise), h / integrator.substeps, integrator.noise
            )
            for c in system.channels
        }
        for _ in range(integrator.substeps)
    )

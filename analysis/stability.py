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

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.optimize
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from sdeflow.analysis.chosen import chosen, refuse_auto
from sdeflow.errors import SdeflowError
from sdeflow.model.forces import ModelForces
from sdeflow.model.kernel_forces import KernelForces
from sdeflow.state import Replicas
from sdeflow.system.increments import Noise
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import BlockSystem, initial_state
from sdeflow.trajectory.opening import open_run

if TYPE_CHECKING:
    from sdeflow.config.run import Run

State = dict[str, Tensor]
Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Spectrum = NDArray[np.complex128]

DENSE_BELOW, MATRIX_BELOW = 150, 1500
"""Dimensions up to which all eigenvalues are computed, and up to which the matrix is written down."""

_DIFFERENCE = 1e-3
_TINY = 2.0**-200
"""A power of two, by which a product with a linear function changes no digit; its square is no number."""

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
    return LinearMap(lambda state: integrator.step(system, 0.0, state, h, silent), z, origin=at_origin(system, z))


def drift_map(system: BlockSystem, z: State) -> LinearMap:
    """The Jacobian of the drift at z, on the reference clock."""
    z = {name: z[name] for name in system.axes}
    return LinearMap(lambda state: system.drift(0.0, state), z, origin=at_origin(system, z))


def at_origin(system: BlockSystem, z: State) -> bool:
    """Whether the system's forces are linear and z is 0, as sdeflow.analysis.modes gives them."""
    return getattr(system.definition, "linear", False) and not any(bool(v.any()) for v in z.values())


class LinearMap:
    """The derivative of a function of the state at z, [1, ...] by name, by products with vectors.

    origin   whether z is 0 and the function is 0 there: then its values at tiny vectors are products, of
             which nothing is lost by rounding, and replicas take several at once
    """

    def __init__(self, function: Callable[[State], State], z: State, *, origin: bool = False) -> None:
        self._function = function
        self._z = z
        self.size = sum(value.numel() for value in z.values())
        self._origin = origin
        self._differentiable = True
        if origin:
            return
        with warnings.catch_warnings():  # torch's forward mode loads code of its own that it calls deprecated
            warnings.filterwarnings("ignore", r".torch\.jit\.\w+. is deprecated")
            try:
                self.product(torch.zeros(self.size, dtype=torch.float64))
            except RuntimeError:  # a solver that takes gradients in its own way
                self._differentiable = False

    def product(self, v: Tensor) -> Tensor:
        """The derivative in direction v, [size]: in forward mode, else by central differences."""
        if self._origin:
            return self._at_once(v[None])[0]
        direction = unpacked(v, self._z)
        if self._differentiable:
            return packed(torch.func.jvp(self._moved, (self._z,), (direction,))[1])
        with torch.no_grad():
            ahead, behind = (
                self._moved({name: z + step * direction[name] for name, z in self._z.items()})
                for step in (_DIFFERENCE, -_DIFFERENCE)
            )
        return (packed(ahead) - packed(behind)) / (2 * _DIFFERENCE)

    def products(self, directions: Tensor) -> Tensor:
        """The derivatives in all of some directions [k, size], likewise [k, size]."""
        if self._origin:
            return self._at_once(directions)
        try:
            return torch.func.vmap(self.product, chunk_size=256)(directions).detach()
        except RuntimeError:  # a step that vmap cannot batch: one direction after the other
            return torch.stack([self.product(v) for v in directions]).detach()

    def matrix(self) -> Matrix:
        """The whole of it, [size, size]."""
        return self.products(torch.eye(self.size, dtype=torch.float64)).T.numpy()

    def eigenvalues(self, which: Literal["LM", "LR"] = "LM", k: int = 4) -> Spectrum:
        """The k eigenvalues of largest modulus (LM) or real part (LR); all of them in few dimensions.

        Raises SdeflowError where Arnoldi's iteration does not settle.
        """
        if self.size <= DENSE_BELOW:
            values = np.linalg.eigvals(self.matrix())
        else:
            import scipy.sparse.linalg

            whole = self.matrix() if self.size <= MATRIX_BELOW else self._operator()
            start = np.random.default_rng(0).standard_normal(self.size)
            try:
                values = scipy.sparse.linalg.eigs(
                    whole, k=k, which=which, v0=start, ncv=40, maxiter=2000, return_eigenvectors=False
                )
            except scipy.sparse.linalg.ArpackError as error:  # many equal eigenvalues, say
                if self.size > MATRIX_BELOW:
                    raise SdeflowError("Arnoldi's iteration for the one-step map does not settle") from error
                values = np.linalg.eigvals(whole)
        order = np.argsort(-(np.abs(values) if which == "LM" else values.real))
        return values[order].astype(np.complex128)

    def _at_once(self, directions: Tensor) -> Tensor:
        count = len(directions)
        parts = (_TINY * directions).split([value.numel() for value in self._z.values()], dim=1)
        at = {name: v.view(count, *self._z[name].shape[1:]) for name, v in zip(self._z, parts, strict=True)}
        with torch.no_grad():
            moved = self._moved(at)
        rows = [v.expand(count, *v.shape[1:]).reshape(count, -1) for v in moved.values()]
        return torch.cat(rows, dim=1) / _TINY

    def _moved(self, z: State) -> State:
        result = self._function(z)
        return {name: result[name] for name in self._z}

    def _operator(self) -> Any:
        def product(v: Vector) -> Vector:
            return self.product(torch.from_numpy(np.ascontiguousarray(np.ravel(v)))).numpy()

        from scipy.sparse.linalg import LinearOperator

        return LinearOperator((self.size, self.size), matvec=product, dtype=np.float64)


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


def packed(z: Mapping[str, Tensor]) -> Tensor:
    """The variables of a state, one after the other, [size]."""
    return torch.cat([value.reshape(-1) for value in z.values()])


def unpacked(v: Tensor, like: Mapping[str, Tensor]) -> State:
    """A state of the given shapes from its numbers."""
    parts = v.split([value.numel() for value in like.values()])
    return {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}


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

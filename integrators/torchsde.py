"""The solvers of the torchsde package, as reference: every system checked by code that is not ours."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sdeflow.system import (
    Integrator,
    Noise,
    State,
    System,
    refuses_memory,
    refuses_restart,
)

if TYPE_CHECKING:
    from torch import Tensor

EXTRA = "torchsde:"
"""Prefix of what a solver keeps in the state from one step to the next."""


class TorchSDE(Integrator[System]):
    """One step of `torchsde.sdeint` on the system's generic drift and diffusion, with diagonal noise.

    The Brownian motion is sdeflow's own, handed over in place of torchsde's: schemes of the same seed share
    their path, and a run can be stopped anywhere. Where a solver asks for it the space-time Levy area
    H ~ N(0, h/12) comes with it; diagonal noise commutes, so no Levy area between coordinates is made. For
    additive noise torchsde has a cheaper srk, which asks for a matrix of n^2 numbers for n coordinates.

    evaluates_at_state   whether the solver needs the drift at the state that a step begins from
    needs_own_noise      whether the diffusion of a coordinate may depend on that alone, since other noise
                         does not commute. An SDE may say so itself, by an attribute `interacting_noise`
    """

    method: ClassVar[str]
    evaluates_at_state: ClassVar[bool] = True
    needs_own_noise: ClassVar[bool] = False
    sde_type: ClassVar[Literal["ito", "stratonovich"]] = "ito"
    minibatches, schedules = False, False
    captured = False  # time is read on the host
    needs = "any SDE"
    source = "Li, Wong, Chen, Duvenaud 2020; the torchsde package"

    def refuses(self, system: System) -> str | None:
        if self.sde_type == "stratonovich" and _state_dependent(system):
            return (
                "it solves Stratonovich SDEs, and yours, whose diffusion depends on the state, is an Itô one"
            )
        if self.needs_own_noise and _interacting_noise(system):
            return "the diffusion of a coordinate must depend on that alone, and yours depends on others too"
        return refuses_memory(system) or refuses_restart(system)

    def step(self, system: System, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        import torch
        import torchsde

        (dW,) = noise
        sde = _Flat(system, t, self.sde_type, z)
        y = sde.pack(z)
        if not self.evaluates_at_state:
            sde.skip(0.0, y)
        kept = tuple(z[name] for name in sorted(z) if name.startswith(EXTRA))
        ys, extra = torchsde.sdeint(
            sde,
            y,
            torch.tensor([0.0, h], dtype=y.dtype, device=y.device),
            bm=_path(sde, y, dW, h),
            method=self.method,
            dt=h,
            extra=True,
            extra_solver_state=kept or None,
        )
        return z | sde.unpack(ys[-1]) | {f"{EXTRA}{i}": value for i, value in enumerate(extra)}


class _Flat:
    """A system as torchsde wants it: one vector y [R, n], drift f and diagonal diffusion g."""

    noise_type = "diagonal"

    def __init__(self, system: System, t: float, sde_type: str, z: State) -> None:
        self.system, self.t, self.sde_type, self.state = system, t, sde_type, z
        self.shapes = {name: z[name].shape for name in system.axes}
        self._drifts: dict[tuple[float, int], tuple[Tensor, Tensor]] = {}

    def pack(self, z: State) -> Tensor:
        import torch

        return torch.cat([z[name].flatten(1) for name in self.shapes], dim=1)

    def unpack(self, y: Tensor) -> State:
        sizes = [prod(shape[1:]) for shape in self.shapes.values()]
        parts = y.split(sizes, dim=1)
        return {name: part.reshape(self.shapes[name]) for name, part in zip(self.shapes, parts, strict=True)}

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """The drift, once at each (t, y): sdeint looks at its shape first, srk asks again at every stage.

        A tensor is told by its identity, and kept so that no other can have that.
        """
        at = float(t), id(y)
        if at not in self._drifts:
            self._drifts[at] = y, self.pack(self.system.drift(self.t + at[0], self.unpack(y)))
        return self._drifts[at][1]

    def skip(self, t: float, y: Tensor) -> None:
        """Gives the look at the shape a tensor of that shape instead of a drift."""
        self._drifts[t, id(y)] = y, y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        z = self.unpack(y)
        sigma = self.system.diffusion(self.t + float(t), z)
        # 0 * z keeps y in the graph, which milstein differentiates
        return self.pack({name: 0 * value + sigma.get(name, 0.0) for name, value in z.items()})


def _path(sde: _Flat, y: Tensor, dW: Noise, h: float) -> Any:
    """The increments of this step as a Brownian motion of torchsde over [0, h]."""
    import torch
    from torchsde import BaseBrownian

    def packed(part: Literal["W", "H"]) -> Tensor:
        given = {name: increment[part] for name, increment in dW.items() if part in increment}
        return sde.pack({name: given.get(name, torch.zeros_like(sde.state[name])) for name in sde.shapes})

    W, H = packed("W"), packed("H")

    class Path(BaseBrownian):
        shape, dtype, device = y.shape, y.dtype, y.device
        levy_area_approximation = "foster"  # all that any solver asks for; A is zero, and never read

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
            parts = [W]
            if return_U:
                parts.append(h * (W / 2 + H))
            if return_A:
                parts.append(W.new_zeros(()))
            return parts[0] if len(parts) == 1 else tuple(parts)

        def __repr__(self) -> str:
            return "sdeflow's increments of one step"

    return Path()


def _state_dependent(system: System) -> bool:
    if system.blocks:
        return False
    import torch

    z = {name: value[None].clone().requires_grad_() for name, value in system.start(0).items()}
    with torch.enable_grad():
        return any(getattr(sigma, "requires_grad", False) for sigma in system.diffusion(0.0, z).values())


def _interacting_noise(system: System) -> bool:
    """Whether the diffusion of a coordinate depends on another, seen by moving those of one path in turn."""
    if system.blocks:
        return False
    declared = getattr(system.definition, "interacting_noise", None)
    if declared is not None:
        return bool(declared)
    z = {name: value[None].clone() for name, value in system.start(0).items()}
    before = system.diffusion(0.0, z)
    for name, k in ((name, k) for name, value in z.items() for k in range(value.shape[-1])):
        moved = z[name].clone()
        first = moved.flatten(0, -2)[0]
        first[k] += 1 + first[k].abs()
        after = system.diffusion(0.0, z | {name: moved})
        changed = {n: (after[n] != before[n]).expand_as(z[n]).flatten(0, -2).clone() for n in before}
        if name in changed:
            changed[name][0, k] = False
        if any(bool(of.any()) for of in changed.values()):
            return True
    return False


class Euler(TorchSDE):
    """torchsde's Euler-Maruyama; on a shared path equal to ours to rounding."""

    name, method = "torchsde:euler", "euler"
    strong_order, weak_order, evaluations = 1.0, 1.0, 1


class Milstein(TorchSDE):
    """torchsde's Milstein scheme; for additive noise the same as Euler-Maruyama."""

    name, method = "torchsde:milstein", "milstein"
    strong_order, weak_order, evaluations = 1.0, 1.0, 1
    needs_own_noise = True


class SRK(TorchSDE):
    """torchsde's stochastic Runge-Kutta scheme of Roessler, with the space-time Levy area."""

    name, method, increments = "torchsde:srk", "srk", "WH"
    strong_order, weak_order, evaluations = 1.5, 2.0, 4
    needs_own_noise = True


class Heun(TorchSDE):
    """torchsde's Heun scheme."""

    name, method, sde_type = "torchsde:heun", "heun", "stratonovich"
    strong_order, weak_order, evaluations = 1.0, 2.0, 2


class Midpoint(TorchSDE):
    """torchsde's midpoint scheme.

    Its inner point carries half of W, of variance h/4 where order 2 needs h/2, so it is of weak order 1
    where the noise enters the force; of 2 where it enters a momentum alone.
    """

    name, method, sde_type = "torchsde:midpoint", "midpoint", "stratonovich"
    strong_order, weak_order, evaluations = 1.0, 1.0, 2


class EulerHeun(TorchSDE):
    """torchsde's Euler-Heun scheme; for additive noise the same as Euler-Maruyama."""

    name, method, sde_type = "torchsde:euler_heun", "euler_heun", "stratonovich"
    strong_order, weak_order, evaluations = 1.0, 1.0, 1


class LogODE(TorchSDE):
    """torchsde's log-ODE scheme; for diagonal additive noise the midpoint scheme."""

    name, method, sde_type = "torchsde:log_ode", "log_ode", "stratonovich"
    strong_order, weak_order, evaluations = 1.0, 1.0, 2


class ReversibleHeun(TorchSDE):
    """torchsde's reversible Heun scheme; keeps a second copy of the state between steps.

    Made for reversing, not for long runs: a drift that pulls back makes it diverge sooner or later.
    """

    name, method, sde_type = "torchsde:reversible_heun", "reversible_heun", "stratonovich"
    strong_order, weak_order, evaluations = 1.0, 2.0, 1
    evaluates_at_state = False  # but at the second copy

    def init(self, system: System, z: State, t: float = 0.0) -> State:
        import torch

        flat = _Flat(system, t, self.sde_type, z)
        y, now = flat.pack(z), torch.zeros(())
        return {f"{EXTRA}{i}": value for i, value in enumerate((flat.f(now, y), flat.g(now, y), y))}

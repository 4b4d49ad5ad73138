"""Systems: a generic drift and diffusion on one reference clock, and systems made of blocks.

State z is a dict of tensors by variable name, each [R, ...] with R replicas. A system owns every
scale: means over particles, temperatures, clocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sdeflow.errors import SdeflowError, expect_positive
from sdeflow.model.force_field import ForceField, FunctionField, ModelField
from sdeflow.state import Axes, Replicas, State
from sdeflow.system.block import AUTO, Block, span

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from sdeflow.system.increments import Channel


@runtime_checkable
class System(Protocol):
    """dz = drift(t, z) dt + diffusion(t, z) dW, with diagonal noise, on the reference clock.

    blocks   what the system is made of; none for a plain SDE
    """

    h: float

    @property
    def blocks(self) -> Sequence[Block]:
        return ()

    @property
    def model_forces(self) -> ModelField | None:
        """The forces of the system's model; None where there is no model."""
        return None

    @property
    def definition(self) -> Any:
        """What the user wrote: a model, a function of forces, an SDE, or the system itself."""
        return self

    def in_run(self, steps: int, begun: int) -> System:
        """The system in a run of so many steps that was begun with `begun`; raises SdeflowError where it
        cannot be in one.
        """
        return self

    def drift(self, t: float, z: State) -> State:
        """Drift by variable, each like its variable."""

    def diffusion(self, t: float, z: State) -> dict[str, Any]:
        """Diffusion by noisy variable, each a number or a tensor that broadcasts against it."""

    @property
    def axes(self) -> Mapping[str, Axes]:
        """The variables of the state."""

    @property
    def channels(self) -> Sequence[Channel]:
        """Where noise enters."""

    @property
    def clocks(self) -> Mapping[str, float | NDArray[np.float64]]:
        """Rates of the blocks' own clocks by block name, [R] where replicas have each their own."""

    def to(self, dtype: torch.dtype, device: torch.device) -> System:
        """The same system on another device or in another precision."""

    def start(self, seed: int, replica: int = 0) -> State:
        """The state at the start of one replica, without the replica axis."""

    def check(self, z: State) -> None:
        """Raises SdeflowError where what the user wrote does not fit the state."""

    def observe(self, t: float, z: State) -> dict[str, Tensor]:
        """Scalars to record, each [R]."""


class BlockSystem:
    """A system made of named blocks and the forces on them.

    forces(t, z, names) gives forces by block name; they need not come from one potential. A model's are
    a `sdeflow.model.force_field.ForceField`; any function will do, with `start` for the positions.

    h       the reference step: block b moves by b.rate * h of its own time in one step
    scheduled   whether a block has numbers that are schedules: `at(n)` is the system in step n
    start   positions [*shape] by name, or a function of the seed that gives them (default: the forces')
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        forces: Callable[[float, State, Sequence[str]], dict[str, Tensor]] | ForceField,
        *,
        h: float,
        start: Callable[[int], State] | State | None = None,
    ) -> None:
        h = expect_positive("the reference step h", h)
        held = [name for b in blocks for name in (*b.variables, *b.kept.values())]
        for names in ([b.name for b in blocks], held):
            if len(set(names)) < len(names):
                raise SdeflowError(f"blocks and their variables must have names of their own, given {names}")
        self.blocks = tuple(blocks)
        self.parameters = tuple(b for b in blocks if b.role == "parameters")
        self.particles = tuple(b for b in blocks if b.role == "particles")
        self.scheduled = any(b.schedules for b in blocks)
        self.h = h
        positions = {b.name: b.position for b in blocks}
        self.force_field = forces if isinstance(forces, ForceField) else FunctionField(forces, positions)
        self.given_start = start

    def __str__(self) -> str:
        return "; ".join(
            f"{b.name}: {b.optimizer or ('kinetic' if b.kinetic else 'overdamped')}, h={self.step_of(b)}, "
            + (f"eta={b.number('eta')}, gamma={b.number('gamma')}, " if b.kinetic else "")
            + f"T={b.number('temperature')}, {' x '.join(map(str, b.shape))} ({', '.join(b.dims)})"
            + ("" if b.inner is None else f", {b.inner}")
            for b in self.blocks
        ) + (f"; {self.force_field.about}" if self.force_field.about else "")

    def step_of(self, b: Block) -> str:
        """A block's own step in words."""
        if b.optimizer is not None and b.optimizer.stepless:
            return "none"
        if "h" in b.schedules:
            return b.number("h")
        return AUTO if "h" in b.auto else span([one.rate * self.h for one in b.replicas])

    def at(self, n: int) -> BlockSystem:
        """The system with the numbers of step n; itself where none is a schedule."""
        return self.with_blocks([b.at(n) for b in self.blocks]) if self.scheduled else self

    def in_run(self, steps: int, begun: int) -> BlockSystem:
        """The system in a run of so many steps that was begun with `begun`, over which schedules go that do
        not say; raises SdeflowError where one leaves the range of its number in a step.
        """
        return self.with_blocks([b.in_run(steps, begun) for b in self.blocks]) if self.scheduled else self

    def with_blocks(self, blocks: Sequence[Block]) -> BlockSystem:
        """The same system with the same blocks of other numbers."""
        own = copy(self)
        own.blocks = tuple(blocks)
        own.parameters = tuple(b for b in blocks if b.role == "parameters")
        own.particles = tuple(b for b in blocks if b.role == "particles")
        own.scheduled = any(b.schedules for b in blocks)
        return own

    # The generic SDE -------------------------------------------------------------------------------

    def forces(self, t: float, z: State, blocks: Sequence[Block]) -> dict[str, Tensor]:
        """Forces on the given blocks at (t, z), by block name; nothing is evaluated for no blocks.

        A preconditioned one is changed by its rule, whose new memory comes under its names in the state.
        """
        return self.preconditioned(
            self.force_field(t, z, [b.name for b in blocks]) if blocks else {}, z, blocks
        )

    def preconditioned(self, f: dict[str, Tensor], z: State, blocks: Sequence[Block]) -> dict[str, Tensor]:
        """Forces on the given blocks, by block name, as `forces` gives them."""
        f = dict(f)
        for b in blocks:
            if (rule := b.preconditioner) is not None:
                f[b.name], memory = rule(f[b.name], b.memory(z))
                f |= b.remember(memory)
        return f

    def drift(self, t: float, z: State) -> State:
        """The drift by variable; raises SdeflowError where an optimizer moves a block: it has none."""
        for b in self.blocks:
            if b.optimizer is not None:
                raise SdeflowError(
                    f"block '{b.name}' has no drift: the optimizer '{b.optimizer.name}' moves it"
                )
        return self.drift_under(self.forces(t, z, self.blocks), z)

    def drift_under(self, f: Mapping[str, Tensor], z: State) -> State:
        """The drift of forces f by block name, of all blocks but those that an optimizer moves."""
        drift: State = {}
        for b in self.blocks:
            if b.optimizer is not None:
                continue
            rate = b.rate * b.steps
            if b.momentum is None:
                drift[b.position] = rate * f[b.name]
            else:
                p = z[b.momentum]
                drift[b.position] = rate * b.eta * p
                drift[b.momentum] = rate * (f[b.name] - b.gamma * b.eta * p)
        return drift

    def diffusion(self, t: float, z: State) -> dict[str, Any]:
        return {b.noisy: math.sqrt(b.steps) * b.diffusion for b in self.blocks if b.heated}

    # What a run needs to know ----------------------------------------------------------------------

    @property
    def axes(self) -> Mapping[str, Axes]:
        return {name: Axes(b.dims, b.shape) for b in self.blocks for name in b.variables}

    @property
    def channels(self) -> Sequence[Channel]:
        from sdeflow.system.increments import Channel

        return [Channel(b.name, b.noisy, b.shape, b, b.first) for b in self.blocks if b.heated]

    @property
    def clocks(self) -> Mapping[str, float | NDArray[np.float64]]:
        return {b.name: b.clock for b in self.blocks}

    @property
    def model_forces(self) -> ModelField | None:
        return self.force_field if isinstance(self.force_field, ModelField) else None

    @property
    def definition(self) -> Any:
        return self.force_field.definition

    def observing(self, functions: Mapping[str, Callable[..., Any]]) -> BlockSystem:
        """The same system with functions of (theta, x, y) as further observables of its model, by name."""
        own = copy(self)
        if functions and self.model_forces is not None:
            own.force_field = self.model_forces.observing(functions)
        return own

    def in_bf16(self, on: bool = True) -> BlockSystem:
        """The same system under forces whose model takes products in bfloat16, or in its own dtype."""
        own = copy(self)
        if self.model_forces is not None:
            own.force_field = self.model_forces.in_bf16(on)
        return own

    def minibatch(self, index: Tensor, first: int = 0) -> BlockSystem:
        """The system of a minibatch: data `index` [R, b], with theta's force scaled by D/b.

        first   which of all data of the step is the first here, where this process has a part of them

        Raises SdeflowError where the forces are not a model's.
        """
        return self.on_data(self.force_field.minibatch(index), index.shape[1], first)

    def on_data(self, forces: ForceField, count: int, first: int = 0) -> BlockSystem:
        """The system under the forces of `count` data, of which there are `first` before."""
        blocks = [
            replace(b, shape=(count, *b.shape[1:]), first=first * prod(b.shape[1:])) if b.of_data else b
            for b in self.blocks
        ]
        return BlockSystem(blocks, forces, h=self.h)

    def see(self, index: Tensor, uniform: Tensor | None = None, fetched: Sequence[Any] | None = None) -> None:
        """Shows a minibatch's system, made by `minibatch`, other data, as many; in place.

        uniform   numbers for a model that says what data are `at_access`, [R, b, transforms, ...]
        fetched   what the force field's `fetch` has read of data that are not in memory
        """
        self.force_field.see(index, uniform, fetched)

    def to(self, dtype: torch.dtype, device: torch.device) -> BlockSystem:
        blocks = [b.to(dtype, device) for b in self.blocks]
        forces = self.force_field.to(dtype, device)
        return BlockSystem(blocks, forces, h=self.h, start=self.given_start)

    def start(self, seed: int, replica: int = 0) -> State:
        """Positions as given, momenta from N(0, T/eta)."""
        import torch

        from sdeflow.seeds import generator

        if callable(self.given_start):
            z = dict(self.given_start(seed))
        elif self.given_start is not None:
            z = dict(self.given_start)
        else:
            z = self.force_field.start(seed)
        for b in self.blocks:
            if b.rule is not None:
                z |= b.remember(b.rule.start(b))
            if b.momentum is not None:
                g = generator(seed, "start", b.momentum)
                z[b.momentum] = b.of(replica).momentum_std * torch.randn(
                    b.shape, generator=g, dtype=torch.float64
                )
        return z

    def check(self, z: State) -> None:
        self.force_field.check(z)
        if any(b.inner is not None and b.inner.fresh for b in self.blocks):
            self.force_field.check_prior(z)

    def observe(self, t: float, z: State) -> dict[str, Tensor]:
        """The model's loss and own observables; by block, kinetic energy and size of the force.

        kinetic_b   eta |p|^2 / 2, for particles the mean over them
        force_b     |f|, for particles the root mean square over them
        """
        values = self.force_field.observe(z)
        f = self.force_field(t, z, [b.name for b in self.blocks])
        own: dict[str, Tensor] = {}
        of_data: dict[str, Tensor] = {}
        for b in self.blocks:
            count, means = prod(b.shape[:-1]), of_data if b.of_data else own
            if b.momentum is not None:
                energy = b.eta / 2 * z[b.momentum].square()
                means[f"kinetic_{b.name}"] = energy.flatten(1).sum(1) / count
            means[f"force_{b.name}"] = f[b.name].flatten(1).square().sum(1) / count
        means = own | self.force_field.over_data(of_data)
        return values | {name: v.sqrt() if name.startswith("force_") else v for name, v in means.items()}


def initial_state(system: System, replicas: Replicas) -> State:
    """The state at the start of all replicas, each variable [R, ...]; drawn in float64 on the host."""
    import torch

    z: State = {}
    for replica, seed in enumerate(replicas.seeds):
        start = system.start(seed, replica)
        for name, axes in system.axes.items():
            given = tuple(start[name].shape) if name in start else None
            if given != axes.shape:
                raise SdeflowError(
                    f"the start gives {name} the shape {given}, expected {axes.shape}: {axes.dims}"
                )
        for name in list(start):
            value = start.pop(name)
            if replica == 0:
                shape = (replicas.count, *value.shape)
                dtype = replicas.dtype if value.is_floating_point() else value.dtype  # a count stays one
                z[name] = torch.empty(shape, dtype=dtype, device=replicas.device)
            z[name][replica] = value
    for name, value in z.items():
        if not value.isfinite().all():
            raise SdeflowError(f"the start of {name} is not finite in {replicas.dtype}")
    return z

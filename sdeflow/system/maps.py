"""The maps that integrators are made of, each one line of the equations it stands for.

A map takes blocks, the state z, forces f by block name, the reference step h and the noise of the
step, and returns only what it changed, to be merged as `z | map(...)`. Nothing is changed in place
that a caller can see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sdeflow.state import NUMBER, State, add_to, plus
from sdeflow.system.increments import FusableIncrement

if TYPE_CHECKING:
    from torch import Tensor

    from sdeflow.state import Coefficient
    from sdeflow.system.block import Block
    from sdeflow.system.increments import Noise

    Forces = Mapping[str, Tensor]


def free_flight(blocks: Sequence[Block], z: State, h: Coefficient) -> State:
    """q + (1-w)/gamma p: where a block would be without force or noise. Empty for overdamped blocks."""
    return {
        b.position: plus(z[b.position], (b.flow(h).free, z[b.momentum]))
        for b in blocks
        if b.momentum is not None
    }


def U(blocks: Sequence[Block], z: State, h: Coefficient, noise: Noise) -> State:
    """The exact force-free flow: q + (1-w)/gamma p + sqrt(T) Q and w p + sqrt(T) P.

    Without a momentum only the noise is left: q + sqrt(2 T r) W.
    """
    new: State = {}
    for b in blocks:
        new |= _fused(b, z, None, h, noise) or _free(b, z, h, noise)
    return new


def exponential(blocks: Sequence[Block], z: State, f: Forces, h: Coefficient, noise: Noise) -> State:
    """The exponential integrator: U, and the share of a force that is frozen over the step.

    q' = q + (1-w)/gamma p + (h - (1-w)/k)/gamma f + sqrt(T) Q,    p' = w p + (1-w)/k f + sqrt(T) P

    Without a momentum this is Euler-Maruyama: q' = q + r h f + sqrt(2 T r) W. A block that an optimizer moves
    is moved by it.
    """
    new = optimized(blocks, z, f, h)
    for b in blocks:
        if b.optimizer is not None:
            continue
        if moved := _fused(b, z, f[b.name], h, noise):
            new |= moved
            continue
        new |= _free(b, z, h, noise)
        if b.momentum is None:
            new[b.position] = plus(new[b.position], (b.rate * h, f[b.name]))
        else:
            new[b.position] = plus(new[b.position], (b.flow(h).push, f[b.name]))
            new[b.momentum] = restarted(b, plus(new[b.momentum], (b.flow(h).kick, f[b.name])), f[b.name])
    return new | remembered(blocks, f)


def _fused(b: Block, z: State, f: Tensor | None, h: Coefficient, noise: Noise) -> State | None:
    """The exponential integrator of one block, where its noise can draw itself."""
    xi = noise.get(b.noisy)
    return xi.exponential(b, z, f, h) if isinstance(xi, FusableIncrement) else None


def _free(b: Block, z: State, h: Coefficient, noise: Noise) -> State:
    q, xi = z[b.position], noise.get(b.noisy)
    if b.momentum is None:
        return {b.position: q if xi is None else plus(q, (b.diffusion, xi["W"]))}
    p, c, root = z[b.momentum], b.flow(h), b.root_temperature
    new = {b.position: plus(q, (c.free, p)), b.momentum: c.w * p}
    if xi is not None:
        add_to(new[b.position], root, xi["Q"])
        add_to(new[b.momentum], root, xi["P"])
    return new


def optimized(blocks: Sequence[Block], z: State, f: Forces, h: Coefficient) -> State:
    """Those of the blocks that an optimizer moves, at learning rate r h, with its memory; once a step."""
    new: State = {}
    for b in blocks:
        if b.optimizer is not None:
            assert isinstance(h, NUMBER), "an optimizer takes steps of one length"
            q, memory = b.optimizer(z[b.position], f[b.name], b.memory(z), b.rate * h)
            new |= {b.position: q, **b.remember(memory)}
    return new


def remembered(blocks: Sequence[Block], f: Forces) -> State:
    """What preconditioned forces leave in the state, to be kept once a step."""
    return {name: f[name] for b in blocks if b.preconditioner is not None for name in b.kept.values()}


def restarted(b: Block, p: Tensor, f: Tensor) -> Tensor:
    """p of a block that restarts: 0 in replicas where it points against the force, <f, p> < 0.

    A descent with less than critical friction swings past the valley; this ends the swing (the gradient
    scheme of O'Donoghue, Candes 2015).
    """
    if not b.restart:
        return p
    ahead = (f * p).flatten(1).sum(1) >= 0
    return p * ahead.view(-1, *(1 for _ in b.shape)).to(p.dtype)


def A(blocks: Sequence[Block], z: State, h: Coefficient) -> State:
    """q + r h eta p, the drift of kinetic blocks alone."""
    return {b.position: plus(z[b.position], (b.rate * h * b.eta, z[b.noisy])) for b in blocks}


def B(blocks: Sequence[Block], z: State, f: Forces, h: Coefficient) -> State:
    """p + r h f, the force alone."""
    return {b.noisy: restarted(b, plus(z[b.noisy], (b.rate * h, f[b.name])), f[b.name]) for b in blocks}


def O(blocks: Sequence[Block], z: State, h: Coefficient, noise: Noise) -> State:  # noqa: E743 (its name in the field)
    """w p + sqrt(T) P, the friction and the noise alone (an Ornstein-Uhlenbeck process)."""
    new: State = {}
    for b in blocks:
        xi = noise.get(b.noisy)
        if isinstance(xi, FusableIncrement) and (moved := xi.friction(b, z, h)) is not None:
            new |= moved
            continue
        new[b.noisy] = b.flow(h).w * z[b.noisy]
        if xi is not None:
            add_to(new[b.noisy], b.root_temperature, xi["P"])
    return new

"""Several steps that torch makes one function of: the scheme, the forces and their gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor

from sdeflow.engine.kept import Function, KeptStep, make_beside, used
from sdeflow.engine.step import strides
from sdeflow.engine.tape import Tape, Unkeepable, record
from sdeflow.errors import Uncompilable
from sdeflow.state import State

GRADIENTS = 10
"""Evaluations of gradients in one function at most; compiling takes longer the more there are."""

NORMALS = 2**21
"""Normals drawn for one function at most: more than a cache holds are better drawn a step at a time."""


class NotKept(Uncompilable):
    """A step that is not there in compiled form, and what is done about it."""


class CompiledSteps:
    """Steps as a function of the state and of what is drawn for them, compiled when it is first called.

        z_{n+1} = transition(z_n, draws_n),    draws_n, ..., draws_{n+count-1} = draw(n, count)

    Draws are tensors [count, ...], made outside, so the numbers are those of the other engines to rounding.
    As a function of `stride` steps may have other rounding than one of a single step, a run takes the same
    ones wherever it is cut: see sdeflow.engine.step.strides. A function is loaded where it is kept, else
    compiled by another process, which takes up to a minute, and kept (sdeflow.engine.kept). What cannot be
    kept, as the step does more than torch's operations on tensors, torch.compile traces in this process.

    evaluations   of gradients in one transition
    every         steps from one snapshot to the next, which whole strides are to fill
    begin         called with the first state, before what is drawn for its steps
    elsewhere     normals of a step that other processes draw, so that all take as many steps at once
    keeps         whether functions are kept: not where other processes take part in a step

    Raises Uncompilable where torch cannot compile what the model does.
    """

    def __init__(
        self,
        transition: Callable[[State, Sequence[Tensor]], State],
        draw: Callable[[int, int], Sequence[Tensor]],
        evaluations: int,
        every: int = 1,
        begin: Callable[[State], None] | None = None,
        elsewhere: int = 0,
        *,
        keeps: bool = True,
    ) -> None:
        self._begin, self._keeps = begin, keeps
        self.stride = stride_for(evaluations, elsewhere + sum(x.numel() for x in draw(0, 1)), every)
        self._transition, self._draw = transition, draw
        self._functions: dict[int, Function] = {}
        self._tape: Tape | None = None

    def __call__(self, z: State, n: int, count: int = 1) -> State:
        z = self._begun(z)
        draws = [x.contiguous() for x in self._draw(n, count)]
        if count in self._functions:
            return self._functions[count](z, draws)
        if (function := self._kept(z, count)) is not None:
            self._functions[count] = function
            return function(z, draws)
        compiled = self._compile(count)
        with warnings.catch_warnings():  # torch warns of what it does itself, such as looking through caches
            warnings.simplefilter("ignore")
            try:
                after = compiled(z, draws)
            except Exception as error:
                reason = next((line for line in str(error).splitlines() if line.strip()), "")
                raise Uncompilable(
                    f"this model's step cannot be compiled, {type(error).__name__}: {reason.strip()}; "
                    "give engine 'eager' or 'fused'"
                ) from error
        if after.keys() != z.keys():  # torch would not look again what the next state has
            raise Uncompilable(
                "a step cannot be compiled that changes which variables the state has "
                f"({', '.join(sorted(after.keys() ^ z.keys()))}); give engine 'eager' or 'fused'"
            )
        self._functions[count] = compiled
        return after

    def require_kept(self, z: State, targets: Sequence[int], *, beside: bool) -> None:
        """Loads what takes a state to each of so many steps; raises NotKept where that is not kept.

        beside   whether it is compiled beside the run then, for the next one
        """
        z = self._begun(z)
        ways = (strides(n, end, self.stride) for n, end in pairwise([0, *targets]))
        counts = {count for way in ways for _, count in way}
        try:
            steps = {count: self._step(z, count) for count in counts}
            found = {count: step.load() for count, step in steps.items()}
        except Unkeepable as error:
            raise NotKept(str(error)) from error
        missing = [steps[count] for count, function in found.items() if function is None]
        if missing and beside and make_beside(missing):
            raise NotKept("a compiled step is being made beside this run, for the next one")
        if missing:
            raise NotKept("no compiled step is kept")
        self._functions |= {count: function for count, function in found.items() if function is not None}

    def _begun(self, z: State) -> State:
        """The state as functions take it: what is compiled is for tensors that lie so."""
        if self._begin is not None:
            self._begin(z)
            self._begin = None
        return {name: value.contiguous() for name, value in z.items()}

    def _step(self, z: State, count: int) -> KeptStep:
        """Raises Unkeepable where the step cannot be kept."""
        if not self._keeps or not used():
            raise Unkeepable("other processes take part in the step, or SDEFLOW_KEPT_STEPS is 0")
        if self._tape is None:
            draws = [x[0] for x in self._draw(0, 1)]
            try:
                self._tape = record(self._transition, z, draws)
            except Unkeepable:
                raise
            except Exception as error:  # of the model, or of what cannot be recorded: torch.compile tells
                raise Unkeepable(f"recording the step fails with {type(error).__name__}: {error}") from error
        return KeptStep(self._tape, count)

    def _kept(self, z: State, count: int) -> Function | None:
        """The function out of what is kept, where need be compiled before; None where it cannot be kept."""
        try:
            step = self._step(z, count)
            return step.load() or step.make()
        except Unkeepable:
            return None

    def _compile(self, count: int) -> Function:
        """A function of `count` steps by torch.compile.

        torch gives up on a code object that it has compiled a few times (`recompile_limit`). All runs would
        share that of `steps` below, so each function gets a copy of its own.
        """
        from sdeflow.engine.products import QuickProducts  # its compiler takes torch a while to import

        transition = self._transition

        def steps(z: State, draws: Sequence[Tensor]) -> State:
            for i in range(count):
                z = transition(z, [x[i] for x in draws])
            return {name: value.contiguous() for name, value in z.items()}

        made = cast(FunctionType, steps)
        own = FunctionType(made.__code__.replace(), made.__globals__, closure=made.__closure__)
        how: dict[str, Any] = {"fullgraph": True, "dynamic": False}
        try:  # what torch would look at before each call never changes: one system, shapes and layouts
            options: dict[str, Any] = {
                "guard_filter_fn": lambda guards: [False] * len(guards),
                "post_grad_custom_post_pass": QuickProducts(),
            }
            done = torch.compile(own, **how, options=options)
        except RuntimeError:  # a torch that has no such options
            done = torch.compile(own, **how)
        return cast("Callable[..., State]", done)


def stride_for(evaluations: int, normals: int, every: int) -> int:
    """How many steps one function takes, by gradients and normals a step and steps between snapshots.

    As many as GRADIENTS and NORMALS allow, or a divisor of `every` where one is at least half of that: then
    whole strides fill the way to a snapshot. With 2 gradients a step 5 steps fit, which fill 10; of 8 steps
    they would leave 3 single ones, so it is 4.
    """
    most = max(1, min(GRADIENTS // max(1, evaluations), NORMALS // max(1, normals)))
    filling = max(k for k in range(1, most + 1) if every % k == 0)
    return filling if 2 * filling >= most else most

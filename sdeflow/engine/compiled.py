"""Several steps that torch.compile makes one function of: the scheme, the forces and their gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.state import State

GRADIENTS = 10
"""Evaluations of gradients in one function at most; compiling takes longer the more there are."""

NORMALS = 2**21
"""Normals drawn for one function at most: more than a cache holds are better drawn a step at a time."""


class Uncompilable(SdeflowError):
    """A model whose step torch cannot compile (a branch on a value, say)."""


class CompiledSteps:
    """Steps as a function of the state and of what is drawn for them, compiled when it is first called.

        z_{n+1} = transition(z_n, draws_n),    draws_n, ..., draws_{n+count-1} = draw(n, count)

    Draws are tensors [count, ...], made outside, so the numbers are those of the other engines to rounding.
    As a function of `stride` steps may have other rounding than one of a single step, a run takes the same
    ones wherever it is cut: see sdeflow.engine.step.strides. Compiling takes seconds to a minute of a CPU the
    first time, and less where torch finds it in its cache on the disk.

    evaluations   of gradients in one transition
    every         steps from one snapshot to the next, which whole strides are to fill
    begin         called with the first state, before what is drawn for its steps
    elsewhere     normals of a step that other processes draw, so that all take as many steps at once

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
    ) -> None:
        self._begin = begin
        self.stride = stride_for(evaluations, elsewhere + sum(x.numel() for x in draw(0, 1)), every)
        self._transition, self._draw = transition, draw
        self._compiled: dict[int, Callable[[State, Sequence[Tensor]], State]] = {}

    def __call__(self, z: State, n: int, count: int = 1) -> State:
        if self._begin is not None:
            self._begin(z)
            self._begin = None
        # what is compiled is for tensors that lie as those of the first call did
        draws, z = self._draw(n, count), {name: value.contiguous() for name, value in z.items()}
        if count in self._compiled:
            return self._compiled[count](z, draws)
        compiled = self._compile(count)
        with warnings.catch_warnings():  # torch warns of what it does itself, such as looking through caches
            warnings.simplefilter("ignore")
            try:
                z = compiled(z, draws)
            except Exception as error:
                reason = next((line for line in str(error).splitlines() if line.strip()), "")
                raise Uncompilable(
                    f"this model's step cannot be compiled, {type(error).__name__}: {reason.strip()}; "
                    "give engine 'eager' or 'fused'"
                ) from error
        self._compiled[count] = compiled
        return z

    def _compile(self, count: int) -> Callable[[State, Sequence[Tensor]], State]:
        """A compiled function of `count` steps.

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

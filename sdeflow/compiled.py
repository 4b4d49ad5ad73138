"""Steps that torch.compile makes one function of: the scheme, the forces and their gradients."""

from __future__ import annotations

import warnings
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.integrator import Integrator
from sdeflow.noise import NormalSource
from sdeflow.system import BlockSystem, System

State = dict[str, Tensor]


class CompiledStep:
    """Step n of a scheme on a system of a model, compiled when it is first taken.

    Normals are drawn outside, so the numbers are those of the other engines to rounding. Compiling takes half
    a minute of a CPU the first time, and seconds where torch finds it in its cache on the disk.

    Raises SdeflowError for a system without a model, whose forces may depend on time, and where torch cannot
    compile what the model does (a branch on a value, say).
    """

    def __init__(self, system: System, scheme: Integrator[Any], noise: NormalSource) -> None:
        if not isinstance(system, BlockSystem) or system.model_forces is None:
            raise SdeflowError("engine 'compiled' needs a system made of a model: give 'auto' or 'eager'")
        self._noise = noise
        channels, h, substeps = list(system.channels), system.h, scheme.substeps

        def step(z: State, normals: list[Tensor]) -> State:
            parts: list[dict[str, Any]] = [{} for _ in range(substeps)]
            for channel, xi in zip(channels, normals, strict=True):
                for i, part in enumerate(parts):
                    draws = xi[:, :, i].unbind(1)
                    part[channel.variable] = channel.increment(draws, h / substeps, scheme.noise)
            return scheme.step(system, 0.0, z, h, tuple(parts))

        # A code object of its own: torch compiles one no more than a few times.
        own = FunctionType(step.__code__.replace(), step.__globals__, closure=step.__closure__)
        self._step = torch.compile(own, fullgraph=True, dynamic=False)
        self._new = True

    def __call__(self, z: State, n: int) -> State:
        normals = [xi for _, xi in self._noise.normals(n)]
        if not self._new:
            return cast(State, self._step(z, normals))
        with warnings.catch_warnings():  # torch warns of what it does itself, such as looking through caches
            warnings.simplefilter("ignore")
            try:
                z = self._step(z, normals)
            except Exception as error:
                reason = next((line for line in str(error).splitlines() if line.strip()), "")
                raise SdeflowError(
                    f"this model's step cannot be compiled, {type(error).__name__}: {reason.strip()}; "
                    "give engine 'eager' or 'fused'"
                ) from error
        self._new = False
        return z

"""An exponential moving average of the parameters, kept in the state beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch

from sdeflow.state import Axes, State
from sdeflow.system.integrator import Integrator

if TYPE_CHECKING:
    from sdeflow.system.increments import Noise
    from sdeflow.system.system import System

AVERAGE = "average."
"""Prefix of what an average keeps in a state."""

WEIGHT = AVERAGE + "total_weight"
"""State variable [R]: the sum of the weights of the steps so far, which tends to 1/(1 - decay)."""


def averaged(system: System) -> Sequence[str]:
    """The positions whose average can be kept: those of the parameter blocks."""
    return [b.position for b in system.blocks if b.role == "parameters"]


def average_axes(system: System) -> Mapping[str, Axes]:
    """The averages in the state, each like its position."""
    return {AVERAGE + name: system.axes[name] for name in averaged(system)}


def average_start(system: System, z: State) -> State:
    """The averages before the first step: the start, of weight 0.

    They are in float64: in float32, with a decay of 0.9999, steps of an average would be rounded away some
    3e-4 of its value before its limit.
    """
    start = {AVERAGE + name: z[name].to(torch.float64, copy=True) for name in averaged(system)}
    replicas = next(iter(start.values()))
    return start | {WEIGHT: replicas.new_zeros(len(replicas))}


def averaging(scheme: Integrator[Any], decay: float) -> Integrator[Any]:
    """The scheme, whose step is followed by one of the averages, so that all engines take it like any other.

        w' = d w + 1,    average' = average + (theta' - average) / w'

    from w = 0: after n steps the average is sum_k d^(n-k) theta_k / sum_k d^(n-k) over k = 1 .. n. So it has
    no bias to the start, which has no weight, at any n; the first is theta_1. With d = 1 it is the mean.
    """
    own = copy(scheme)

    def step(system: System, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        after = scheme.step(system, t, z, h, noise)
        weight = decay * z[WEIGHT] + 1
        moved: State = {WEIGHT: weight}
        for name in averaged(system):
            before = z[AVERAGE + name]
            column = weight.view(-1, *(1 for _ in before.shape[1:]))
            moved[AVERAGE + name] = before.addcdiv(after[name] - before, column)
        return after | moved

    own.step = step  # type: ignore[method-assign]
    return own

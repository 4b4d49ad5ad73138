"""What Lion-K brings down: a function of parameters and memory, for an objective f and a convex kernel K.

    m' = -a g - gamma m,    x' = grad K(m - e (a g + gamma m)) - lam x,    g = grad f(x)

    H = a f(x) + (gamma/lam) K*(lam x) + (1 - e gamma)/(1 + e lam) (K*(lam x) + K(m) - lam m.x)

K* is the convex conjugate. H never rises where e gamma <= 1 and lam x is in the domain of K*, though f may,
and a f + K(m) too where lam > 0. Lion itself has K = |.|_1, whose K* is 0 in the box |.|_inf <= 1 and
infinite out of it: it minimises f over |x|_inf <= 1/lam. With K = |.|^2/2 and lam = e = 0 H is the energy of
a block with momentum. Lion's steps end in a cycle as wide as they are, and bring H down up to that.

Source: Chen, Liu, Liang, Liu 2023, arXiv:2310.05898.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.system.optimizers import Lion


class Kernel(NamedTuple):
    """A convex K and its conjugate, each [...] of [..., p]; K*(0) = 0."""

    value: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]


def _in_box(y: Tensor) -> Tensor:
    out = y.abs().amax(-1) > 1 + 1e-9  # steps go along the walls, up to rounding
    return torch.where(out, torch.inf, 0.0).to(y.dtype)


ABSOLUTE = Kernel(lambda m: m.abs().sum(-1), _in_box)
SQUARE = Kernel(lambda m: m.square().sum(-1) / 2, lambda y: y.square().sum(-1) / 2)


def lion_k(
    f: Tensor, x: Tensor, m: Tensor, *, a: float, gamma: float, e: float, lam: float, kernel: Kernel
) -> Tensor:
    """H [...] of f(x) [...], x and m [..., p].

    Raises SdeflowError where e gamma > 1, of which H is not known to fall, or a number is negative.
    """
    if min(a, gamma, e, lam) < 0 or e * gamma > 1 + 1e-12:
        raise SdeflowError(
            "a, gamma, e and lam must not be negative, and e gamma be at most 1, given "
            f"a = {a:g}, gamma = {gamma:g}, e = {e:g}, lam = {lam:g}"
        )
    wall = kernel.conjugate(lam * x)
    outer = gamma / lam * wall if lam else 0 * wall  # as K* is flat at 0
    coupled = wall + kernel.value(m) - lam * (m * x).sum(-1)
    return a * f + outer + (1 - e * gamma) / (1 + e * lam) * coupled


def lion(rule: Lion, h: float, f: Tensor, x: Tensor, exp_avg: Tensor) -> Tensor:
    """H [...] of the optimizer `lion` with learning rate h, of its own memory [..., p].

    In a step its memory, minus m, moves by (1 - b2)(g - exp_avg): so a = gamma = (1 - b2)/h, and
    e gamma = 1 - b1. The state of a run has the memory as `theta_exp_avg`, the trajectory does not.
    """
    b1, b2 = rule.betas
    gamma = (1 - b2) / h
    numbers = {"a": gamma, "gamma": gamma, "e": (1 - b1) / gamma, "lam": rule.weight_decay}
    return lion_k(f, x, -exp_avg, **numbers, kernel=ABSOLUTE)

"""The exact force-free flow of a kinetic block: its coefficients, and the noise that goes with it.

Over a step h the linear part of

    dq = eta p dt,    dp = (-gamma eta p + f) dt + sqrt(2 gamma T) dB        (f frozen)

is solved exactly. With k = gamma eta, a = k h, w = exp(-a):

    q' = q + (1-w)/gamma p + (h - (1-w)/k)/gamma f + sqrt(T) Q
    p' = w p + (1-w)/k f + sqrt(T) P

Every coefficient is a power of h times one of the entire functions below, so that nothing cancels
for small a and gamma = 0 is an ordinary value.
"""

from __future__ import annotations

import math
from functools import lru_cache
from math import factorial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sdeflow.state import Coefficient


_SERIES_BELOW = 0.5
_TERMS = range(24)


def _horner(coefficients: list[float], a: float) -> float:
    value = 0.0
    for c in reversed(coefficients):
        value = value * a + c
    return value


_PHI2 = [(-1.0) ** n / factorial(n + 2) for n in _TERMS]
# Taylor coefficients of a (1 - w^2) - 2 (1 - w)^2 from a^4 on.
_RHO = [
    -((-2.0) ** (n - 1)) / factorial(n - 1) + (4 * (-1.0) ** n - 2 * (-2.0) ** n) / factorial(n)
    for n in (m + 4 for m in _TERMS)
]


def phi1(a: float) -> float:
    """(1 - e^-a) / a, and 1 at a = 0."""
    return -math.expm1(-a) / a if a > 0 else 1.0


def phi2(a: float) -> float:
    """(a - 1 + e^-a) / a^2, and 1/2 at a = 0."""
    return _horner(_PHI2, a) if a < _SERIES_BELOW else (a + math.expm1(-a)) / a**2


def rho(a: float) -> float:
    """(a (1 - w^2) - 2 (1 - w)^2) / a^4 with w = e^-a, and 1/6 at a = 0."""
    if a < _SERIES_BELOW:
        return _horner(_RHO, a)
    one_minus_w = -math.expm1(-a)
    return one_minus_w * (a * (1 + math.exp(-a)) - 2 * one_minus_w) / a**4


class Flow(NamedTuple):
    """Coefficients over one step, computed in float64; tensors where data take steps of different lengths.

    The noise is built from two standard normals, xi1 and xi2, so that W comes first and alone where
    a scheme needs nothing else:

        B(h) = sqrt(h) xi1,  P = p1 xi1 + p2 xi2,  Q = q1 xi1 + q2 xi2,  P + gamma Q = sqrt(2 gamma) B(h)
    """

    w: Coefficient  # e^-a: what is left of the momentum
    free: Coefficient  # (1-w)/gamma: position per momentum, the free flight
    kick: Coefficient  # (1-w)/k: momentum per force
    push: Coefficient  # (h - (1-w)/k)/gamma: position per force
    p1: Coefficient
    p2: Coefficient
    q1: Coefficient
    q2: Coefficient
    p_std: Coefficient  # sqrt((1-w^2)/eta): standard deviation of P


@lru_cache(maxsize=1024)
def kinetic_flow(gamma: float, eta: float, h: float) -> Flow:
    """The flow of a kinetic block over a step `h` of its own clock; gamma >= 0, eta > 0, h > 0."""
    a = gamma * eta * h
    sigma = math.sqrt(2 * gamma)
    residual = eta * math.sqrt(h**3 * rho(a) / 2)
    return Flow(
        w=math.exp(-a),
        free=eta * h * phi1(a),
        kick=h * phi1(a),
        push=eta * h**2 * phi2(a),
        p1=sigma * math.sqrt(h) * phi1(a),
        p2=-sigma * gamma * residual,
        q1=sigma * eta * h * math.sqrt(h) * phi2(a),
        q2=sigma * residual,
        p_std=math.sqrt(-math.expm1(-2 * a) / eta),
    )

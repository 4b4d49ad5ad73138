"""Plain SDEs: a class with drift and diffusion, nothing else."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class OrnsteinUhlenbeck:
    """Ornstein-Uhlenbeck process.

    dx = -rate (x - mean) dt + sigma dW; stationary law N(mean, sigma^2 / (2 rate)).

    rate    of the way back to the mean, positive
    mean    where the drift is 0
    sigma   coefficient of the noise
    """

    def __init__(self, rate: float = 1.0, mean: float = 0.0, sigma: float = 1.0) -> None:
        if rate <= 0 or sigma < 0:
            raise ValueError(f"rate must be positive and sigma not negative, given {rate} and {sigma}")
        self.rate, self.mean, self.sigma = rate, mean, sigma

    def drift(self, t: float, x: Tensor) -> Tensor:
        return -self.rate * (x - self.mean)

    def diffusion(self, t: float, x: Tensor) -> float:
        return self.sigma


class DoubleWell:
    """Overdamped Langevin dynamics in a double well.

    dx = -V'(x) dt + sqrt(2 T) dW with V(x) = barrier (x^2 - 1)^2; stationary density ~ exp(-V/T).

    barrier       height of V between the wells at -1 and 1
    temperature   T
    """

    def __init__(self, barrier: float = 1.0, temperature: float = 0.5) -> None:
        if barrier <= 0 or temperature < 0:
            raise ValueError(
                f"barrier must be positive and temperature not negative, given {barrier} and {temperature}"
            )
        self.barrier, self.sigma = barrier, sqrt(2 * temperature)

    def drift(self, t: float, x: Tensor) -> Tensor:
        return -4 * self.barrier * x * (x * x - 1)

    def diffusion(self, t: float, x: Tensor) -> float:
        return self.sigma

"""Strong and weak orders of convergence, measured on Brownian paths that schemes and step sizes share.

The finest increments of a path are drawn jointly and composed upward exactly. With z the fine reference and
z_l the scheme's end at h = 2^-l, over a batch of paths from time 0 to 1,

    strong   (E |z_l - z|^2)^(1/2)                       weak   |E F(z_l) - E F(z)|

where F collects all products of two variables and the cosines of twice each. The slope of log2 of either
against -l is the order. Source: Milstein, Tretyakov, Stochastic Numerics for Mathematical Physics (2004).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.config.catalogue import integrator_named
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.errors import SdeflowError, attempt
from sdeflow.seeds import generator
from sdeflow.system.increments import Channel, Increment, compose
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import System

if TYPE_CHECKING:
    from sdeflow.state import State
    from sdeflow.system.increments import Noise

Array = NDArray[np.float64]

MakeSystem = Callable[[float, int], System]
"""A system of so many independent paths, from the reference step h and their number."""

# One path on all levels ----------------------------------------------------------------------------

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(3)


def joint_increment(channel: Channel, h: float, xi: Tensor) -> Increment:
    """W, H, K and, for a kinetic block, P and Q over steps of length h, from three normals each, [3, ...].

    All are integrals of known functions against one Brownian motion. With dB at the nodes u_i of a Gauss
    rule, sqrt(h w_i) xi_i, their covariances are the rule's integrals: exact for W, H and K, else off by
    (k h)^4 in relative size.
    """
    after = h * (1 - _NODES) / 2  # from the node to the end of the step
    dB = np.sqrt(h * _WEIGHTS / 2)
    left = after / h
    rows = {"W": dB, "H": dB * (left - 1 / 2), "K": dB * (1 / 12 - left * (1 - left) / 2)}
    if channel.kinetic:
        assert channel.block is not None
        b = channel.block
        k, scale = b.gamma * b.eta * b.rate, math.sqrt(2 * b.gamma * b.rate)
        rows["P"] = scale * np.exp(-k * after) * dB
        rows["Q"] = -scale / b.gamma * np.expm1(-k * after) * dB
    return {n: torch.tensordot(torch.from_numpy(row), xi, dims=1) for n, row in rows.items()}


class SRA1(Integrator[System]):
    """Roessler's stochastic Runge-Kutta scheme for additive noise, the reference where momenta lack.

        z' = z + h (b(z)/3 + 2 b(z + 3h/4 b(z) + 3/2 sigma (W/2 + H))/3) + sigma W

    Strong order 1.5, weak order 2.
    """

    name = "sra1"
    strong_order, weak_order, evaluations = 1.5, 2.0, 2
    noise, needs = "WH", "any SDE with additive noise"
    source = "Roessler 2010"

    def refuses(self, system: System) -> str | None:
        return None

    def step(self, system: System, t: float, z: State, h: float, noise: tuple[Noise, ...]) -> State:
        (dW,) = noise
        sigma, first = system.diffusion(t, z), system.drift(t, z)
        inner = z | {name: z[name] + 0.75 * h * b for name, b in first.items()}
        inner |= {n: inner[n] + 1.5 * s * (dW[n]["W"] / 2 + dW[n]["H"]) for n, s in sigma.items()}
        second = system.drift(t + 0.75 * h, inner)
        new = z | {name: z[name] + h * (b + 2 * second[name]) / 3 for name, b in first.items()}
        return new | {name: new[name] + s * dW[name]["W"] for name, s in sigma.items()}


class SharedPaths:
    """Brownian paths of a system over [0, 1], on every level from `coarsest` to `finest`.

    `levels[l][variable]` holds the increments over the 2^l steps of that level, each [2^l, R, paths, 1] for
    R batches. In each batch the second half of the paths is the mirror image of the first, which takes the
    part that is odd in the noise out of a mean; batches are independent.
    """

    def __init__(
        self, make: MakeSystem, *, finest: int, coarsest: int, batches: int, paths: int, seed: int = 0
    ) -> None:
        self.make, self.paths, self.shape = make, paths, (batches, paths, 1)
        self.levels: dict[int, dict[str, Increment]] = {n: {} for n in range(coarsest, finest + 1)}
        for channel in make(1.0, paths).channels:
            g = generator(seed, "orders", channel.key)
            xi = torch.randn(3, 2**finest, batches, paths // 2, 1, generator=g, dtype=torch.float64)
            steps = joint_increment(channel, 2.0**-finest, torch.cat([xi, -xi], dim=3))
            self.levels[finest][channel.variable] = steps
            for level in reversed(range(coarsest, finest)):
                pair = [{n: value[i::2] for n, value in steps.items()} for i in (0, 1)]
                steps = compose(channel, pair[0], pair[1], 2.0 ** -(level + 1))
                self.levels[level][channel.variable] = steps

    def end(self, integrator: Integrator, level: int) -> Tensor:
        """The state at time 1 with steps of 2^-level from 1/2 in every variable, [R, variable, path].

        Raises SdeflowError where the scheme's parts of a step are no power of two, or it fails.
        """
        system, parts = self.make(2.0**-level, self.paths), integrator.substeps
        if parts & (parts - 1):
            raise SdeflowError(f"its {parts} parts of a step are no power of two")
        steps = self.levels[level + parts.bit_length() - 1]

        def noise(n: int) -> tuple[Noise, ...]:
            return tuple(
                {v: {kind: value[parts * n + i] for kind, value in dW.items()} for v, dW in steps.items()}
                for i in range(parts)
            )

        def run() -> State:
            z = {name: torch.full(self.shape, 0.5, dtype=torch.float64) for name in system.axes}
            z |= integrator.init(system, z)
            return advance(EagerSteps(system, integrator, noise), z, 0, 2**level)

        z = attempt(integrator.name, run)
        return torch.stack([z[name].flatten(1) for name in system.axes], dim=1)

    @property
    def reference(self) -> Integrator:
        """QUICSORT where every block has a momentum, else SRA1."""
        quicsort = integrator_named("quicsort")
        return SRA1() if quicsort.refuses(self.make(1.0, self.paths)) else quicsort


# Errors and slopes ---------------------------------------------------------------------------------

STRONG_LEVELS, STRONG_REFERENCE = (4, 5, 6, 7), 10
WEAK_LEVELS, WEAK_REFERENCE = (2, 3, 4, 5), 7
BATCHES, PATHS = 16, 131072
"""Of the weak error."""


def strong_errors(
    make: MakeSystem,
    integrators: Sequence[Integrator],
    levels: Sequence[int] = STRONG_LEVELS,
    *,
    reference: int = STRONG_REFERENCE,
    batches: int = 10,
    paths: int = 100,
) -> list[Array]:
    """For each integrator, the root mean square error at time 1 by batch of paths and level, [batch, level].

    The reference takes steps of 2^-reference. NaN or infinite where a scheme diverges; raises SdeflowError
    where one fails.
    """
    shared = SharedPaths(make, finest=reference + 1, coarsest=min(levels), batches=batches, paths=paths)
    truth = shared.end(shared.reference, reference)
    found = []
    for scheme in integrators:
        errors = [(shared.end(scheme, n) - truth).square().mean((1, 2)).sqrt() for n in levels]
        found.append(torch.stack(errors, dim=1).numpy())
    return found


def functions(z: Tensor) -> Tensor:
    """Batch means of the test functions: products of two variables, cosines of twice one; [R, function]."""
    i, j = torch.triu_indices(z.shape[1], z.shape[1])
    return torch.cat([z[:, i] * z[:, j], (2 * z).cos()], dim=1).mean(2)


def weak_errors(
    make: MakeSystem,
    integrators: Sequence[Integrator],
    levels: Sequence[int] = WEAK_LEVELS,
    *,
    reference: int = WEAK_REFERENCE,
    batches: int = BATCHES,
    paths: int = PATHS // BATCHES,
) -> list[Array]:
    """For each integrator, means of F(scheme) - F(reference) at time 1, [batch, level, function].

    The reference's means on two levels are extrapolated to a higher order than its own. NaN or infinite where
    a scheme diverges; raises SdeflowError where one fails.
    """

    def batch(seed: int) -> Iterator[Array]:
        shared = SharedPaths(
            make, finest=reference + 1, coarsest=min(levels), batches=1, paths=paths, seed=seed
        )
        fine, half = (functions(shared.end(shared.reference, n)) for n in (reference, reference - 1))
        gain = 2**shared.reference.weak_order
        truth = (gain * fine - half) / (gain - 1)
        for scheme in integrators:
            yield torch.cat([functions(shared.end(scheme, n)) - truth for n in levels]).numpy()

    return [np.stack(each) for each in zip(*map(batch, range(batches)), strict=True)]


class Slope(NamedTuple):
    """A measured order and its 99.9% interval; NaN where the scheme diverges."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return (
            f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]" if math.isfinite(self.value) else "diverges"
        )

    def against(self, declared: float, margin: float) -> str:
        """'yes' where `declared` lies in the interval widened by `margin`, else 'lower' or 'higher'."""
        if math.isnan(declared):
            return "not declared"
        if not math.isfinite(self.value):
            return "diverges"
        if declared > self.high + margin:
            return "lower"
        return "higher" if declared < self.low - margin else "yes"


DIVERGED = Slope(math.nan, math.nan, math.nan)
STRONG_MARGIN, WEAK_MARGIN = 0.03, 0.1
"""What is left of the next term of the error, of relative size h, in the slope."""


def fit(errors: Array, levels: Sequence[int]) -> Array:
    """Least-squares slopes of -log2 of errors [..., level], [...]."""
    centred = np.asarray(levels) - np.mean(levels)
    result: Array = -np.log2(np.maximum(errors, 1e-300)) @ centred / (centred @ centred)
    return result


def _interval(values: Array) -> Slope:
    """The mean of independent values and its interval by Student's t."""
    n, mean = len(values), float(values.mean())
    half = float(scipy.stats.t.ppf(0.9995, n - 1) * values.std(ddof=1)) / math.sqrt(n)
    return Slope(mean, mean - half, mean + half)


def strong_slope(errors: Array, levels: Sequence[int] = STRONG_LEVELS) -> Slope:
    """The strong order from `strong_errors`, [batch, level]: the mean of the batches' slopes."""
    return _interval(fit(errors, levels)) if np.isfinite(errors).all() else DIVERGED


def weak_slope(errors: Array, levels: Sequence[int] = WEAK_LEVELS) -> Slope:
    """The weak order from `weak_errors`, [batch, level, function]; the error is the norm over functions.

    A batch alone is too noisy for a logarithm, so the batches' pseudo-values of the jackknife are used: a
    level whose error drowns in sampling noise widens the interval.
    """
    if not np.isfinite(errors).all():
        return DIVERGED
    n, total = len(errors), errors.sum(0)
    whole = fit(np.linalg.norm(total / n, axis=-1), levels)
    without = fit(np.linalg.norm((total - errors) / (n - 1), axis=-1), levels)
    return _interval(n * whole - (n - 1) * without)

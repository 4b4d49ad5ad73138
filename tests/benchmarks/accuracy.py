"""What a gradient evaluation buys: errors of sdeflow's and of Diffrax's schemes with momentum, on one path.

    python tests/benchmarks/accuracy.py --out accuracy.json

Prints root mean square errors at time 1 of two coupled quartic wells, each on its own clock and under its own
friction, over 1000 Brownian paths that all schemes and steps share. Columns are gradient evaluations in all.
The reference is quicsort with steps of 2^-11. Needs the `bench` extra.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from sdeflow.analysis.convergence_orders import SharedPaths
from sdeflow.analysis.studies.wells import WELLS
from sdeflow.config.catalogue import integrator_named
from sdeflow.terminal import table

OURS = ("baoab", "ubu", "quicsort")
PEERS = {"Diffrax ALIGN": ("ALIGN", 1), "Diffrax ShOULD": ("ShOULD", 2), "Diffrax QUICSORT": ("QUICSORT", 2)}
"""Diffrax's solvers, with their gradient evaluations a step."""

EVALUATIONS = (8, 16, 32, 64, 128, 256)


class OurPath(diffrax.AbstractBrownianPath):
    """The Brownian path of a level of `SharedPaths`: W, H and K, [step, ...] each, of steps of length h."""

    W: Any
    H: Any
    K: Any
    h: float
    levy_area = diffrax.SpaceTimeTimeLevyArea
    t0 = 0.0
    t1 = 1.0

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        n = jnp.round(t0 / self.h).astype(int)
        return diffrax.SpaceTimeTimeLevyArea(dt=t1 - t0, W=self.W[n], H=self.H[n], K=self.K[n])


def end_by_diffrax(shared: SharedPaths, solver: str, level: int) -> Tensor:
    """As `SharedPaths.end` on the coupled wells; to be called with JAX in float64.

    A block of rate r is dx = v dt, dv = -c v dt + (u/T) f dt + sqrt(2 c u) dW with v = r eta p,
    c = r gamma eta and u = r^2 eta T.
    """
    h, (theta, x) = 2.0**-level, shared.make(2.0**-level, shared.paths).blocks
    replicas, paths, _ = shared.shape

    def column(values: Sequence[float]) -> Any:
        return jnp.array(values)[:, None] * jnp.ones(replicas * paths)

    def gradient(q: Any, args: Any) -> Any:
        return -(q - q**3 + q[::-1] / 2) / temperature

    per_momentum = column([b.rate * b.eta for b in (theta, x)])
    temperature = column([b.temperature for b in (theta, x)])
    c = per_momentum * column([theta.gamma, x.gamma])
    u = per_momentum * column([theta.rate, x.rate]) * temperature
    parts = [
        jnp.stack([shared.levels[level][b.noisy][part].reshape(2**level, -1).numpy() for b in (theta, x)], 1)
        for part in "WHK"
    ]
    terms = diffrax.MultiTerm(
        diffrax.UnderdampedLangevinDriftTerm(c, u, gradient),
        diffrax.UnderdampedLangevinDiffusionTerm(c, u, OurPath(*parts, h)),
    )
    start = jnp.full((2, replicas * paths), 0.5)
    found = diffrax.diffeqsolve(
        terms,
        getattr(diffrax, solver)(taylor_threshold=0.0),  # the series is good to 1e-9 alone
        *(0.0, 1.0, h),
        (start, per_momentum * start),
        saveat=diffrax.SaveAt(t1=True),
        adjoint=diffrax.DirectAdjoint(),
    )
    q, p = found.ys[0][0], found.ys[1][0] / per_momentum
    ends = np.stack([q[0], p[0], q[1], p[1]])
    return torch.from_numpy(ends).view(4, replicas, paths).transpose(0, 1)


def errors(
    evaluations: Sequence[int] = EVALUATIONS, *, reference: int = 11, paths: int = 100
) -> dict[str, list[float]]:
    """By scheme and by evaluations in all."""
    shared = SharedPaths(WELLS["coupled wells"], finest=reference, coarsest=2, batches=10, paths=paths)
    truth = shared.end(shared.reference, reference)

    def ours(name: str) -> tuple[int, Callable[[int], Tensor]]:
        scheme = integrator_named(name)
        return scheme.evaluations, lambda level: shared.end(scheme, level)

    schemes = {name: ours(name) for name in OURS}
    for name, (solver, each) in PEERS.items():
        schemes[name] = each, lambda level, solver=solver: end_by_diffrax(shared, solver, level)
    return {
        name: [float((end((n // each).bit_length() - 1) - truth).square().mean().sqrt()) for n in evaluations]
        for name, (each, end) in schemes.items()
    }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--out", type=Path, help="file to write, .json")
    out = options.parse_args().out
    jax.config.update("jax_enable_x64", True)
    found = errors()
    table(
        "Root mean square errors at time 1, by gradient evaluations",
        ("scheme", *map(str, EVALUATIONS)),
        [[name, *(f"{error:.2e}" for error in row)] for name, row in found.items()],
    )
    if out is not None:
        written = json.dumps({"evaluations": EVALUATIONS, "errors": found}, indent=1)
        out.write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

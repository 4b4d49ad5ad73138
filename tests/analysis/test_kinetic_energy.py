"""The kinetic energy of a path.

Oracles: closed forms and quadrature for one Gaussian, whose flow multiplies by sigma_t/sigma_0; W_2^2, which
no path is below.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, sin, sqrt
from typing import Any, Literal

import numpy as np
import pytest
import scipy.integrate
import xarray as xr
from support import SE

from sdeflow import Save, SDESystem, simulate
from sdeflow.analysis.distances import wasserstein
from sdeflow.analysis.kinetic_energy import kinetic_energy
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.problems.interpolant import Interpolant
from sdeflow.simulation.solve import solve


def linear(t: float, s: float) -> float:
    return sqrt((1 - t) ** 2 + (t * s) ** 2)


def cosine(t: float, s: float) -> float:
    return sqrt(cos(pi * t / 2) ** 2 + (s * sin(pi * t / 2)) ** 2)


def optimal(t: float, s: float) -> float:
    return 1 - t + t * s


CASES: list[tuple[Callable[[float, float], float], float, float]] = [
    (linear, 1.0, 2 - pi / 2),
    (linear, 2.0, 1.858),
    (cosine, 1.0, 0.0),
    (cosine, 2.0, 1.234),
    (optimal, 1.0, 0.0),
    (optimal, 2.0, 1.0),
    (optimal, 0.3, 0.49),
]


def trajectory(x: Any, time: Any) -> xr.Dataset:
    return xr.Dataset({"X": (("time", "particle", "latent"), x)}, coords={"time": time})


@pytest.mark.parametrize(("spread", "s", "expected"), CASES)
def test_paths_of_one_gaussian(spread: Callable[[float, float], float], s: float, expected: float) -> None:
    """From N(0, 1) to N(0, s^2): the flow x_0 sigma_t of two paths at +-1, whose mean square is the law's."""
    time = np.linspace(0, 1, 2001)
    sigma = np.array([spread(t, s) for t in time])
    found = kinetic_energy(trajectory(sigma[:, None, None] * np.array([[1.0], [-1.0]]), time))
    assert found.spent.value == pytest.approx(expected, abs=5e-4)
    slope = lambda t: (spread(t + 1e-6, s) - spread(t - 1e-6, s)) / 2e-6  # noqa: E731
    exact = scipy.integrate.quad(lambda t: slope(t) ** 2, 1e-6, 1 - 1e-6)[0]
    assert found.spent.value == pytest.approx(exact, abs=1e-5)
    assert found.straight.value == pytest.approx((1 - s) ** 2, abs=1e-12)
    assert found.spent.value >= found.straight.value - 1e-12


@pytest.mark.parametrize(
    ("path", "s", "expected"),
    [("linear", 1.0, 2 - pi / 2), ("linear", 2.0, 1.858), ("cosine", 1.0, 0.0), ("cosine", 2.0, 1.234)],
)
def test_of_a_run_from_drawn_starts(path: Literal["linear", "cosine"], s: float, expected: float) -> None:
    """Within 4.5 of its standard errors, and 1e-3 for the time between snapshots."""
    system = SDESystem(Interpolant([[0.0]], s, noise=0.0, path=path), paths=2000)
    scheme = {"name": "ghvb", "order": 4, "beta": 1.0}
    run = simulate(system, scheme, steps=80, dtype="float64", save=Save(every=1, particles="all"))
    found = kinetic_energy(run)
    assert abs(found.spent.value - expected) < SE * found.spent.error + 1e-3
    assert abs(found.straight.value - (1 - s) ** 2) < SE * found.straight.error + 1e-5


@pytest.mark.parametrize("variant", [None, "straight", "cosine"])
def test_no_path_is_below_w2(variant: str | None) -> None:
    """In the plane, between what was sampled at the start and the end; and conditional optimal transport
    spends less than the path of a diffusion."""
    tables = {"system": {"paths": 400}, "save": {"every": 1}}
    run = solve(build(load_config(problem_file("interpolant"), variant=variant, overrides=[tables]))).dataset
    found = kinetic_energy(run)
    least = wasserstein(run.X[0].values, run.X[-1].values) ** 2
    assert found.spent.value >= found.straight.value >= least - 1e-9
    assert found.straight.value < 1.5 * least
    assert found.spent.value > 1.01 * least


def test_replicas_are_pooled() -> None:
    x = np.random.default_rng(0).normal(size=(1, 6, 2)) * np.linspace(0, 1, 9)[:, None, None]
    whole = kinetic_energy(trajectory(x, np.linspace(0, 2, 9)))
    parts = xr.Dataset(
        {"X": (("time", "replica", "particle", "latent"), x.reshape(9, 2, 3, 2))},
        coords={"time": np.linspace(0, 2, 9)},
    )
    assert kinetic_energy(parts) == whole
    assert whole.spent.value == pytest.approx(float((x[-1] ** 2).sum(-1).mean()) / 2)


@pytest.mark.parametrize("epsilon", [0.05, 0.2])
def test_a_little_noise_is_refused_too(epsilon: float) -> None:
    """Beside the energy of two modes far apart, which is larger than the noise's."""
    system = SDESystem(Interpolant([[4.0, 0.0], [4.0, 2.0]], epsilon=epsilon), paths=300)
    noisy = simulate(system, steps=80, save=Save(every=2, particles="all"))
    with pytest.raises(SdeflowError, match="rough between snapshots"):
        kinetic_energy(noisy)


def test_what_has_no_energy_is_refused() -> None:
    noisy = simulate(
        SDESystem(Interpolant([[0.0]], epsilon=1.0), paths=100),
        steps=64,
        save=Save(every=1, particles="all"),
    )
    with pytest.raises(SdeflowError, match="rough between snapshots: take those of an ODE"):
        kinetic_energy(noisy)
    with pytest.raises(SdeflowError, match="at least 5 snapshots"):
        kinetic_energy(noisy.isel(time=slice(3)))
    with pytest.raises(SdeflowError, match="a plain SDE's paths X"):
        kinetic_energy(noisy.rename(X="Y"))
    with pytest.raises(SdeflowError, match="not finite"):
        kinetic_energy(noisy * np.nan)

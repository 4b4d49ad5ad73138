"""Whole runs: the published systems reach the MLE and the posterior of the toy model, plain SDEs their law.

Oracles: theta* = mean y; posterior x_i ~ N(v (y_i + theta*/s^2), v) with v = 1/(1 + 1/s^2); the stationary
variance (1 + s^2)/(D N) of theta where it has noise of temperature 1/N. Means are exact at any step of a
scheme; for variances the steps are such that the bias, known from the affine map, is below a quarter of
the standard error. Standard errors come from independent replicas, each averaged over time, so they hold
whatever the autocorrelation.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
import xarray as xr
from support import SE, toy

from sdeflow import Save, simulate
from sdeflow.problems.generic import DoubleWell, OrnsteinUhlenbeck
from sdeflow.system.sde import SDESystem

DATA, PARTICLES, SCALE, MLE, REPLICAS = 4, 12, 1.5, 3.0, 12
V = 1 / (1 + 1 / SCALE**2)
SEED = 0

RUNS = {
    "pgd, euler_maruyama": ({"h": 0.008}, {"h": 0.004}, 6000),
    "ipla, euler_maruyama": ({"h": 0.008}, {"h": 0.004}, 6000),
    "mpgd, expint": ({"h": 0.01, "eta": 1.0, "gamma": 1.5}, {"h": 0.006, "eta": 1.0, "gamma": 1.5}, 5000),
    "kiplmc, expint": ({"h": 0.01, "eta": 1.0, "gamma": 1.5}, {"h": 0.006, "eta": 1.0, "gamma": 1.5}, 5000),
    "mpgd, ubu": ({"h": 0.1, "eta": 1.0, "gamma": 1.5}, {"h": 0.06, "eta": 1.0, "gamma": 1.5}, 800),
    "kiplmc, obabo": ({"h": 0.1, "eta": 1.0, "gamma": 1.5}, {"h": 0.06, "eta": 1.0, "gamma": 1.5}, 800),
}
"""Steps and constants of theta and X, and the number of steps; the second half of a run counts."""


@cache
def run(case: str) -> tuple[xr.Dataset, np.ndarray]:
    """The whole run and the data y."""
    name, integrator = case.split(", ")
    theta, x, steps = RUNS[case]
    system = toy(name, data=DATA, particles=PARTICLES, scale=SCALE, mle=MLE, theta=theta, x=x)
    save = Save(every=steps // 200, data="all", particles="all")
    dataset = simulate(
        system,
        integrator,
        steps=steps,
        seed=SEED,
        replicas=REPLICAS,
        save=save,
        dtype="float64",
        device="cpu",
    )
    return dataset, system.model_forces.model.data.numpy().ravel()


def later(case: str) -> xr.Dataset:
    return run(case)[0].isel(time=slice(101, None))


def assert_mean(independent: np.ndarray, truth: float, resolution: float) -> None:
    """The 99.99% interval of the mean holds the truth, and is no wider than `resolution`."""
    n = len(independent)
    half = scipy.stats.t.ppf(1 - 0.5e-4, n - 1) * independent.std(ddof=1) / np.sqrt(n)
    assert abs(independent.mean() - truth) < half
    assert half < resolution


@pytest.mark.parametrize("case", RUNS)
def test_theta_reaches_the_mle(case: str) -> None:
    dataset = run(case)[0]
    assert dataset.attrs["retcode"] == "success"
    assert (dataset.theta[0] == 0).all()
    assert_mean(later(case).theta.mean("time").values[:, 0], MLE, 0.35)


@pytest.mark.parametrize("case", RUNS)
def test_particles_have_the_posterior_mean(case: str) -> None:
    _, y = run(case)
    means = later(case).X.mean(("time", "particle", "latent")).values
    for i in range(DATA):
        assert_mean(means[:, i], V * (y[i] + MLE / SCALE**2), 0.35)


@pytest.mark.parametrize("case", RUNS)
def test_particles_have_the_posterior_variance(case: str) -> None:
    """The sample variance over a datum's particles; theta drops out, so data are independent too."""
    variances = later(case).X.var("particle", ddof=1).mean(("time", "latent")).values
    assert_mean(variances.ravel(), V, 0.15 * V)


@pytest.mark.parametrize("case", [case for case in RUNS if case.startswith(("ipla", "kiplmc"))])
def test_theta_with_noise_has_its_stationary_variance(case: str) -> None:
    truth = (1 + SCALE**2) / (DATA * PARTICLES)
    squares = ((later(case).theta - MLE) ** 2).mean("time").values[:, 0]
    assert_mean(squares, truth, 1.5 * truth)


@pytest.mark.parametrize("case", [case for case in RUNS if case.startswith("kiplmc")])
def test_momenta_have_their_stationary_variance(case: str) -> None:
    """1/(N eta) for theta's, 1/eta for the particles'; eta is 1."""
    assert_mean((later(case).m ** 2).mean("time").values[:, 0], 1 / PARTICLES, 1 / PARTICLES)
    assert_mean((later(case).U ** 2).mean(("time", "datum", "particle", "latent")).values, 1.0, 0.15)


# Plain SDEs ----------------------------------------------------------------------------------------

PATHS = 20_000


def end_of(sde: object, *, h: float, steps: int, start: float) -> torch.Tensor:
    system = SDESystem(sde, h=h, paths=PATHS, start=(start,))
    dataset = simulate(
        system,
        "euler_maruyama",
        steps=steps,
        seed=SEED,
        save=Save(every=steps, particles="all"),
        dtype="float64",
        device="cpu",
    )
    return dataset.X[-1].values.ravel()


@pytest.mark.parametrize("h", [0.01, 0.4, 0.9])
@pytest.mark.parametrize("steps", [1, 5, 400], ids=["one step", "on the way", "stationary"])
def test_ornstein_uhlenbeck(h: float, steps: int) -> None:
    """Moments of Euler-Maruyama itself, at any step: with a = 1 - rate h, from x0 after n steps,

    mean + a^n (x0 - mean) and sigma^2 h (1 - a^2n)/(1 - a^2), the paths being independent Gaussians.
    """
    rate, mean, sigma, x0 = 1.5, 0.7, 0.8, 2.0
    x = end_of(OrnsteinUhlenbeck(rate, mean, sigma), h=h, steps=steps, start=x0)
    a = 1 - rate * h
    variance = sigma**2 * h * (1 - a ** (2 * steps)) / (1 - a**2)
    assert x.mean() == pytest.approx(mean + a**steps * (x0 - mean), abs=SE * np.sqrt(variance / PATHS))
    assert x.var(ddof=1) == pytest.approx(variance, rel=SE * np.sqrt(2 / (PATHS - 1)))


def test_double_well_slides_down_its_potential() -> None:
    """drift = -V' and diffusion^2 / 2 = T, to roundoff."""
    barrier, temperature = 1.7, 0.3
    x = torch.linspace(-3, 3, 61, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad((barrier * (x**2 - 1) ** 2).sum(), x)
    well = DoubleWell(barrier, temperature)
    assert torch.allclose(well.drift(0.0, x), -slope, rtol=1e-14, atol=1e-14)
    assert well.diffusion(0.0, x) ** 2 / 2 == pytest.approx(temperature, rel=1e-14)


def test_double_well() -> None:
    """Second and fourth moment against quadrature of exp(-V/T), and symmetry, from a start on the barrier."""
    barrier, temperature = 1.0, 0.5

    def density(x: float) -> float:
        return np.exp(-barrier * (x * x - 1) ** 2 / temperature)

    def moment(k: int) -> float:
        return (
            scipy.integrate.quad(lambda x: x**k * density(x), -4, 4)[0]
            / scipy.integrate.quad(density, -4, 4)[0]
        )

    x = end_of(DoubleWell(barrier, temperature), h=0.001, steps=3000, start=0.0)
    for k in (1, 2, 3, 4):
        assert abs((x**k).mean() - moment(k)) < SE * np.sqrt((moment(2 * k) - moment(k) ** 2) / PATHS), k

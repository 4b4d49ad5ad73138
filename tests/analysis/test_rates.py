"""Fitted decays: series of known rates, and the toy model's real runs against the scheme's own spectrum."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import sdeflow
from sdeflow import Save, simulate
from sdeflow.analysis.free_energy import energy_along, toy_minimum
from sdeflow.analysis.rates import fit_decay, over_replicas
from sdeflow.analysis.stability import contraction, equilibrium, step_map
from sdeflow.config.catalogue import find, integrator_named
from sdeflow.errors import DivergenceWarning, SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.linear_energy import LinearEnergy

T = np.arange(2000.0)


@pytest.mark.parametrize(("rate", "frequency"), [(0.01, 0.03), (0.01, 0.0), (0.004, 0.1), (0.03, 0.005)])
@pytest.mark.parametrize("known", [True, False])
def test_a_rate_is_found_among_noise_and_faster_modes(rate: float, frequency: float, known: bool) -> None:
    """32 series with noise of 1e-4 of the start: mean within 4 standard errors, and the errors are small."""
    rng, found = np.random.default_rng(0), []
    for phase in np.linspace(0, 1, 32):
        wave = np.cos(frequency * T + phase)
        clean = 3 + 100 * np.exp(-rate * T) * wave + 40 * np.exp(-20 * rate * T)
        found.append(fit_decay(T, clean + 0.01 * rng.standard_normal(len(T)), limit=3.0 if known else None))
    rates = over_replicas([d.rate for d in found])
    assert abs(rates.mean - rate) < 4 * rates.error + 1e-5 * rate
    assert rates.error < 4e-3 * rate
    if frequency > 0.01:
        waves = over_replicas([d.frequency for d in found])
        assert abs(waves.mean - frequency) < 4 * waves.error + 1e-5 * frequency
        assert {d.regime for d in found} == {"underdamped"}
    else:
        assert {d.regime for d in found} == {"overdamped"}


def test_the_window_leaves_out_the_start_and_the_noise() -> None:
    y = 100 * np.exp(-0.01 * T) + 0.01 * np.random.default_rng(0).standard_normal(len(T))
    fit = fit_decay(T, y)
    assert fit.start == pytest.approx(200, abs=2)  # two e-folds
    assert fit.end == pytest.approx(100 * np.log(100 / 0.08), abs=15)  # 8 standard deviations
    assert abs(fit.limit) < 0.01


def test_what_holds_no_rate_is_refused() -> None:
    noise = np.random.default_rng(0).standard_normal(len(T))
    for y, sentence in (
        (noise, "no rate can be told"),
        (np.where(T > 1000, np.nan, noise), "finite values: this run diverged"),
        (noise[:10], "at least 20 points"),
        (T, "no rate can be told"),
    ):
        with pytest.raises(SdeflowError, match=sentence):
            fit_decay(T[: len(y)], y)
    with pytest.raises(SdeflowError, match="two replicas or more, given 1"):
        over_replicas([0.1])


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """2000 intervals of 8 normals: 95% of them, within 4 standard errors of that share."""
    rng = np.random.default_rng(1)
    hits = [
        low <= 0 <= high for _, _, low, high in (over_replicas(rng.standard_normal(8)) for _ in range(2000))
    ]
    assert abs(np.mean(hits) - 0.95) < 4 * (0.95 * 0.05 / 2000) ** 0.5


# The toy model ------------------------------------------------------------------------------------------

QUICK = [("overdamped", "expint"), ("overdamped", "euler_maruyama"), ("underdamped", "expint")]
GAMMAS = {"underdamped": 0.05, "critical": 0.1, "overdamped": 2.0}
REPLICAS = 8


def regime(gamma: float, particles: int) -> sdeflow.BlockSystem:
    motion = {"eta": 2000.0, "gamma": gamma}
    model = Hierarchical(data=100)
    return sdeflow.mpgd(model, particles=particles, theta={"h": 1e-4, **motion}, x={"h": 1e-2, **motion})


@cache
def slowest(name: str, integrator: str) -> complex:
    """The eigenvalue of largest modulus of the scheme's step."""
    system = regime(GAMMAS[name], 2).to(torch.float64, torch.device("cpu"))
    return complex(step_map(system, integrator_named(integrator), equilibrium(system)).eigenvalues()[0])


PAIRS = [
    pytest.param(name, integrator, marks=() if (name, integrator) in QUICK else pytest.mark.slow)
    for name in GAMMAS
    for integrator in ("expint", "expint_shared", "expint_nc", "nag", "baoab", "ubu", "euler_maruyama")
]


@pytest.mark.parametrize(("name", "integrator"), PAIRS)
def test_predicted_and_fitted_rates_of_theta(name: str, integrator: str) -> None:
    """|fitted - predicted| < 4 standard errors over 8 replicas, or the pair is unstable and diverges."""
    value = slowest(name, integrator)
    system = regime(GAMMAS[name], 50 if name == "overdamped" else 5)  # slow, so noise must be small
    steps = 3000 if name == "overdamped" else 2000
    options: dict[str, Any] = {"steps": steps, "replicas": REPLICAS, "save": Save(2, data=1, particles=1)}
    if abs(value) > 1:
        with pytest.warns(DivergenceWarning):
            run = simulate(system, integrator, **options)
        assert all(f"replica {r}: " in run.attrs["message"] for r in range(REPLICAS))
        return
    run = simulate(system, integrator, **options)
    assert system.model_forces is not None
    mle = float(system.model_forces.model.data.mean())
    fits = [fit_decay(run.step.values, run.theta[:, r, 0].values, limit=mle) for r in range(REPLICAS)]
    rate = over_replicas([fit.rate for fit in fits])
    assert abs(rate.mean + np.log(abs(value))) < 4 * rate.error
    assert rate.error < 0.02 * rate.mean
    if name != "overdamped":
        frequency = over_replicas([fit.frequency for fit in fits])
        assert abs(frequency.mean - abs(np.angle(value))) < 4 * frequency.error
        assert all(fit.regime == "underdamped" for fit in fits)
    else:
        assert all(fit.regime == "overdamped" for fit in fits)


@pytest.mark.parametrize("integrator", ["expint", pytest.param("ubu", marks=pytest.mark.slow)])
def test_the_free_energy_falls_at_twice_the_rate(integrator: str) -> None:
    """E - E* of the overdamped regime from the particles' moments: within 4 standard errors, 8 replicas."""
    value = slowest("overdamped", integrator)
    system = regime(GAMMAS["overdamped"], 50)
    save = Save(10, data="all", particles="all")
    run = simulate(system, integrator, steps=3000, replicas=REPLICAS, save=save)
    assert system.model_forces is not None
    model = system.model_forces.model
    excess = energy_along(run, model) - toy_minimum(model.data.numpy(), 1.0)
    fits = [fit_decay(run.step.values, excess[:, r].values, limit=0.0) for r in range(REPLICAS)]
    rate = over_replicas([fit.rate for fit in fits])
    assert abs(rate.mean + 2 * np.log(abs(value))) < 4 * rate.error
    assert rate.error < 0.02 * rate.mean


@pytest.mark.parametrize("name", [pytest.param("ebipla", marks=pytest.mark.slow), "kinetic_ebipla"])
@pytest.mark.parametrize(
    "integrator",
    [
        pytest.param("euler_maruyama", marks=pytest.mark.slow),
        "expint",
        pytest.param("expint_shared", marks=pytest.mark.slow),
    ],
)
def test_fitted_rates_are_those_predicted(name: str, integrator: str) -> None:
    """alpha's way to its limit, 8 replicas, against the spectrum of the scheme's step: 4 standard errors."""
    if name == "kinetic_ebipla":
        alpha, x = {"h": 8e-3, "eta": 125.0, "gamma": 1.0}, {"h": 0.05, "eta": 10.0, "gamma": 0.5}
    else:
        alpha, x = {"h": 8e-3}, {"h": 0.05}
    model = LinearEnergy(10, alpha_true=300.0)
    system = find("systems", name)(model, particles=20, prior_particles=200, alpha=alpha, x=x)
    small = find("systems", name)(model, particles=2, prior_particles=2, alpha=alpha, x=x)
    predicted = -np.log(contraction(small, integrator_named(integrator), equilibrium(small)))
    run = simulate(system, integrator, steps=1200, replicas=8, save=Save(every=2, data=1), dtype="float64")
    series, steps = run["alpha"][..., 0].to_numpy(), run["step"].to_numpy().astype(float)
    rates = over_replicas([fit_decay(steps, one).rate for one in series.T])
    assert abs(rates.mean - predicted) < 4 * rates.error
    assert rates.error < 0.02 * predicted

"""Fitted decays: series of known rates, and the toy model's real runs against the scheme's own spectrum."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support import Matrix, affine_map, places

import sdeflow
from sdeflow import Save, simulate
from sdeflow.analysis.free_energy import energy_along, toy_minimum
from sdeflow.analysis.rates import decay, fit_decay, fit_power, over_replicas
from sdeflow.analysis.stability import contraction, equilibrium, step_map
from sdeflow.config.catalogue import find, integrator_named
from sdeflow.errors import DivergenceWarning, SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.linear_energy import LinearEnergy

T = np.arange(2000.0)


@pytest.mark.parametrize(("rate", "frequency"), [(0.01, 0.03), (0.01, 0.0), (0.004, 0.1), (0.03, 0.005)])
@pytest.mark.parametrize("known", [True, False])
def test_a_rate_is_found_among_noise_and_faster_modes(rate: float, frequency: float, known: bool) -> None:
    """32 series with noise of 1e-4 of the start: within 4 standard errors, and the errors are small."""
    rng, phases = np.random.default_rng(0), np.linspace(0, 1, 32)
    wave = np.cos(frequency * T[:, None] + phases) * np.exp(-rate * T)[:, None]
    clean = 3 + 100 * wave + 40 * np.exp(-20 * rate * T)[:, None]
    fit = fit_decay(T, clean + 0.01 * rng.standard_normal(clean.shape), limit=3.0 if known else None)
    assert abs(fit.rate.mean - rate) < 4 * fit.rate.error
    assert fit.rate.error < 4e-3 * rate
    assert abs(fit.frequency.mean - frequency) < 4 * fit.frequency.error + 1e-12
    assert fit.regime == ("underdamped" if frequency > rate else "overdamped")


def test_of_two_close_modes_the_slower_is_found() -> None:
    """Rates 0.01 and 0.015, the slower one tenth of the faster at first: one mode alone would lie between."""
    rng = np.random.default_rng(0)
    clean = 10 * np.exp(-0.01 * T) + 100 * np.exp(-0.015 * T)
    fit = fit_decay(T, clean[:, None] + 0.003 * rng.standard_normal((len(T), 8)))
    assert fit.modes == 2
    assert fit.rate.low < 0.01 < fit.rate.high < 0.012


def test_noise_of_the_modes_themselves_is_not_taken_for_more_of_them() -> None:
    """An autoregression of the modes exp(-0.01 n) and exp(-0.05 n), from far off."""
    rng, poles = np.random.default_rng(0), np.exp([-0.01, -0.05])
    y = np.full((len(T), 8), 0.0)
    y[0] = y[1] = 1000.0
    for n in range(2, len(T)):
        y[n] = poles.sum() * y[n - 1] - poles.prod() * y[n - 2] + 0.005 * rng.standard_normal(8)
    fit = fit_decay(T, y)
    assert fit.modes <= 2
    assert fit.rate.low < 0.01 < fit.rate.high
    assert fit.rate.error < 0.01 * 0.01


def test_the_window_leaves_out_the_start_and_the_noise() -> None:
    y = 100 * np.exp(-0.01 * T) + 0.01 * np.random.default_rng(0).standard_normal(len(T))
    fit = fit_decay(T, y)
    assert fit.start == pytest.approx(100, abs=2)  # an e-fold
    assert fit.end == pytest.approx(100 * np.log(100 / 0.05), abs=40)  # 5 standard deviations
    assert fit.rate.mean == pytest.approx(0.01, rel=1e-3)
    assert np.isnan(fit.rate.error)  # of one replica


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


def test_a_way_that_bends_has_not_settled() -> None:
    """A fall that slows down has a rate of its own in each window."""
    way = np.exp(-np.where(T < 500, 0.01 * T, 2.5 + 0.005 * T))
    y = way[:, None] + 1e-3 * np.random.default_rng(0).standard_normal((len(T), 8))
    with pytest.raises(SdeflowError, match="has not settled to one mode, as windows"):
        fit_decay(T, y)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_a_power_is_found_and_has_no_rate(p: float, known: bool) -> None:
    """8 series (1 + t/10)^-p beside a quick mode and noise of 1e-4: the interval holds p, and is near."""
    clean = 3 + (1 + T / 10)[:, None] ** -p * np.linspace(1, 2, 8) + np.exp(-0.2 * T)[:, None]
    y = clean + 1e-4 * np.random.default_rng(0).standard_normal(clean.shape)
    limit = 3.0 if known else None
    fit = fit_power(T, y, limit=limit)
    assert fit.exponent.low < p < fit.exponent.high
    assert abs(fit.exponent.mean - p) < 0.1 * p
    with pytest.raises(
        SdeflowError, match=rf"no rate can be told: from .* falls like t\^-{fit.exponent.mean:.2f}"
    ):
        fit_decay(T, y, limit=limit)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_decays_is_no_power(seed: int) -> None:
    """60 or 180 sums of one to three modes of random rates and amplitudes, with and without noise."""
    rng = np.random.default_rng(seed)
    for count in range(60 + 120 * seed):
        modes = 1 + count % 3
        rates = np.exp(rng.uniform(np.log(0.003), np.log(0.1), modes))
        clean = np.exp(-np.outer(T, rates)) @ rng.uniform(0.2, 2, modes)
        y = clean + (count % 2) * 1e-3 * rng.standard_normal(len(T))
        with pytest.raises(SdeflowError, match="no power can be told"):
            fit_power(T, y, limit=0.0)


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
    fit = fit_decay(run.step.values, run.theta[..., 0].values, limit=mle)
    assert abs(fit.rate.mean + np.log(abs(value))) < 4 * fit.rate.error
    assert fit.rate.error < 0.02 * fit.rate.mean
    if name != "overdamped":
        assert abs(fit.frequency.mean - abs(np.angle(value))) < 4 * fit.frequency.error
    assert fit.regime == ("overdamped" if name == "overdamped" else "underdamped")


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
    rate = fit_decay(run.step.values, excess.values, limit=0.0).rate
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
    rates = decay(run).rate
    assert abs(rates.mean - predicted) < 4 * rates.error
    assert rates.error < 0.02 * predicted


# Settings of the toy model at random ------------------------------------------------------------------


class Toy(NamedTuple):
    """D, s, gamma, eta, and the steps of theta and x."""

    data: int
    scale: float
    gamma: float
    eta: float
    h: float
    h_x: float

    def system(self, particles: int) -> sdeflow.BlockSystem:
        model = Hierarchical(data=self.data, scale=self.scale)
        motion = {"gamma": self.gamma, "eta": self.eta}
        return sdeflow.mpgd(
            model, particles=particles, theta={"h": self.h, **motion}, x={"h": self.h_x, **motion}
        )

    def means(self) -> tuple[Matrix, Matrix]:
        """Of a real step of expint with one particle, what it does to theta, m and the means of X and U.

        The map of these four, and a root of its noise's covariance: other directions in X and U are
        orthogonal to the means and do not move them. Of N particles the covariance is N times less.
        """
        system = self.system(1)
        step = affine_map(system, "expint")
        means = np.zeros((4, 2 + 2 * self.data))
        for row, name in zip(means, ("theta", "X", "m", "U"), strict=True):
            at = places(system)[name]
            row[at] = 1 / (at.stop - at.start)
        alike = (means > 0).T.astype(float)
        matrix = means @ step.A @ alike
        np.testing.assert_allclose(step.A @ alike, alike @ matrix, atol=1e-12)
        values, vectors = np.linalg.eigh(means @ step.covariance @ means.T)
        return matrix, vectors * np.sqrt(np.maximum(values, 0))


def rate_of(matrix: Matrix) -> float:
    return -float(np.log(np.abs(np.linalg.eigvals(matrix)).max()))


def random_toy(rng: np.random.Generator) -> tuple[Toy, Matrix, Matrix]:
    """Settings whose error falls by four e-folds in the 2000 steps of a run, at least, and their step."""
    while True:
        data = int(np.exp(rng.uniform(np.log(5), np.log(40))))
        bounds = [(0.3, 3.0), (0.01, 5.0), (100.0, 50_000.0), (1e-5, 1e-3), (1e-3, 5e-2)]
        toy = Toy(data, *(float(np.exp(rng.uniform(np.log(low), np.log(high)))) for low, high in bounds))
        matrix, root = toy.means()
        if rate_of(matrix) > 0.002:
            return toy, matrix, root


def coverage(seed: int, settings: int, particles: int = 20, replicas: int = 8) -> tuple[int, int]:
    """How many of random settings are given a rate, and how many of those intervals hold the truth.

    theta's path is drawn from its own law, by the means' recursion: the same, for Gaussian noise, as a run's.
    """
    rng, given, held = np.random.default_rng(seed), 0, 0
    for _ in range(settings):
        toy, matrix, root = random_toy(rng)
        z = np.zeros((replicas, 4))
        z[:, 0] = z[:, 1] = -100.0  # from the MLE
        z[:, 1] += rng.standard_normal(replicas) / np.sqrt(toy.data * particles)
        path = [z[:, 0]]
        for noise in rng.standard_normal((2000, replicas, 4)):
            z = z @ matrix.T + noise @ root.T / np.sqrt(particles)
            path.append(z[:, 0])
        try:
            rate = fit_decay(np.arange(0.0, 2001.0, 2.0), np.array(path[::2])).rate
        except SdeflowError:
            continue
        given += 1
        held += rate.low <= rate_of(matrix) <= rate.high
    return given, held


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_intervals_hold_the_true_rate(seed: int) -> None:
    """Four fifths of 40 settings are given a rate, and 88% of those intervals, stated as 95%, hold it."""
    given, held = coverage(seed, 40)
    assert given >= 0.8 * 40
    assert held >= 0.88 * given


@pytest.mark.parametrize(
    "toy",
    [Toy(60, 0.7, 0.0317, 2500.0, 2e-4, 1e-3), Toy(20, 1.7, 0.0893, 500.0, 8e-4, 3e-3)],
    ids=["D=60", "D=20"],
)
def test_a_slowest_mode_that_theta_hardly_shows(toy: Toy) -> None:
    """One exponential in one window is off by 44% and by 5%, with intervals of less than 1% either way."""
    run = simulate(toy.system(20), "expint", steps=800, replicas=8, save=Save(2, data=1, particles=1))
    rate = decay(run).rate
    assert rate.low <= rate_of(toy.means()[0]) <= rate.high
    assert rate.high - rate.low < 0.2 * rate.mean

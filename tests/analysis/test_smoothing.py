"""Sums of paths, EM by Kalman, PaRIS and particle Gibbs.

Oracles: scores of the problem on paths themselves; Kalman's score, and numbers of an independent calculation;
the exact law of paths given y, a Gaussian by numpy from the equations.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sdeflow.analysis import kalman
from sdeflow.analysis.path_statistics import Statistics, maximiser, score
from sdeflow.analysis.smoothing import paris
from sdeflow.errors import SdeflowError
from sdeflow.problems.state_space import StateSpace

Array = NDArray[np.float64]

T = np.arange(50.0)
WAVES = (2 * np.sin(0.3 * T) + np.cos(7 * T**2))[None, :, None]
SMOOTH = (np.sin(0.7 * T) + 0.3 * np.cos(2.1 * T) + 0.02 * T)[None, :, None]
START = {"a": np.array([[0.8]]), "log_q": np.log([0.5]), "log_r": np.log([0.3]), "c": np.zeros(1)}
NAMES = ("a", "log_q", "log_r")


def somewhere(d: int) -> dict[str, Array]:
    rng = np.random.default_rng(d)
    return {
        "a": 0.4 * rng.standard_normal((d, d)),
        "log_q": 0.5 * rng.standard_normal(d),
        "log_r": 0.5 * rng.standard_normal(d),
        "c": rng.standard_normal(d),
    }


def sums(path: Array, y: Array) -> Statistics:
    """Of paths [rows, T, d] themselves, a row each."""
    z = np.concatenate([path[:, 1:], path[:, :-1], np.ones_like(path[:, 1:, :1])], -1)
    return Statistics(np.einsum("rtk,rtl->rkl", z, z), np.square(y - path).sum(1), path.shape[1])


def off(values: Array, exact: float) -> float:
    """How many standard errors the mean of independent values is from what it should be."""
    return float(abs(values.mean() - exact) / (values.std(ddof=1) / len(values) ** 0.5))


# What depends on sums alone ------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2])
def test_the_score_of_a_path_is_that_of_the_problem(d: int) -> None:
    rng = np.random.default_rng(3)
    theta, y, path = somewhere(d), rng.standard_normal((1, 6, d)), rng.standard_normal((1, 6, d))
    model = StateSpace(y, learn=list(theta))
    own = {name: torch.as_tensor(value) for name, value in theta.items()}
    expected = model.score_theta(own, torch.as_tensor(path)[:, None], model.data)
    for name, value in score(sums(path, y), theta).items():
        np.testing.assert_allclose(value[0], expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("learn", [("a",), ("c",), ("a", "c"), ("a", "log_q", "log_r"), tuple(START)])
def test_the_score_vanishes_at_the_maximiser(learn: tuple[str, ...]) -> None:
    """Of what is learned; the others stay. Each row of sums, with parameters of its own, as if alone."""
    rng = np.random.default_rng(3)
    path, y = rng.standard_normal((2, 3, 9, 2))
    held = [somewhere(2), somewhere(3) | somewhere(2), {k: 1.1 * v for k, v in somewhere(2).items()}]
    theta = {name: np.stack([h[name] for h in held]) for name in START}
    found = maximiser(sums(path, y), theta, learn)
    for name, value in score(sums(path, y), found).items():
        if name in learn:
            np.testing.assert_allclose(value, 0, atol=1e-10)
        else:
            assert found[name] is theta[name]
    alone = maximiser(sums(path[2:], y[2:]), held[2], learn)
    for name in learn:
        np.testing.assert_allclose(found[name][2], np.reshape(alone[name], found[name][2].shape), rtol=1e-12)


def test_em_by_kalman_reaches_the_mle_of_an_independent_calculation() -> None:
    """Its likelihood never falls; the numbers were found by comparing values, to 1e-6."""
    theta, along = START, []
    for _ in range(300):
        path = kalman.smoothed(WAVES, theta)
        along.append(path.log_likelihood.sum())
        theta = maximiser(kalman.expected(WAVES, path), theta, NAMES)
    assert np.diff(along).min() > -1e-11
    assert theta["a"].item() == pytest.approx(0.885114, abs=1e-6)
    assert np.exp(theta["log_q"]).item() == pytest.approx(0.665339, abs=1e-6)
    assert np.exp(theta["log_r"]).item() == pytest.approx(0.131864, abs=1e-6)
    assert along[-1] == pytest.approx(-68.013977365, abs=1e-9)
    assert max(abs(kalman.score(WAVES, theta)[name].item()) for name in NAMES) < 1e-4


# Particle smoothers --------------------------------------------------------------------------------


def exact_law(y: Array, theta: dict[str, Array]) -> tuple[Array, Array]:
    """Mean and covariance [T d] of the path given y [T, d], by the equations."""
    times, d = y.shape
    solve = np.linalg.inv(np.eye(times * d) - np.kron(np.diag(np.ones(times - 1), -1), theta["a"]))
    drift = np.concatenate([np.zeros(d), np.tile(theta["c"], times - 1)])
    noise = np.concatenate([np.ones(d), np.tile(np.exp(theta["log_q"]), times - 1)])
    prior = solve @ np.diag(noise) @ solve.T
    gain = prior @ np.linalg.inv(prior + np.diag(np.tile(np.exp(theta["log_r"]), times)))
    return solve @ drift + gain @ (y.ravel() - solve @ drift), prior - gain @ prior


@pytest.mark.parametrize(("d", "particles"), [(1, 2), (2, 4)])
def test_particle_gibbs_keeps_the_law_of_paths_and_is_unbiased_over_it(d: int, particles: int) -> None:
    """However few particles there are: 20,000 paths from the exact law, and a sweep of each.

    Within 4 standard errors each: the means, variances and lag-one products of the paths after it, and the
    estimated score. Without the paths the same few particles are far off.
    """
    theta, rows, rng = somewhere(d), 20_000, np.random.default_rng(1)
    y = rng.standard_normal((1, 4, d))
    mean, covariance = exact_law(y[0], theta)
    path = (mean + rng.standard_normal((rows, 4 * d)) @ np.linalg.cholesky(covariance).T).reshape(rows, 4, d)
    data = np.repeat(y, rows, 0)
    swept = paris(data, theta, particles, rng, path=path)
    after = swept.path.reshape(rows, -1)
    assert 0.2 < (swept.path != path).mean() < 0.95
    away = after - mean
    for k in range(4 * d):
        assert off(after[:, k], mean[k]) < 4
        for j in {k, max(0, k - d)}:
            assert off(away[:, j] * away[:, k], covariance[j, k]) < 4
    exact = kalman.score(y, theta)
    found, free = (score(s, theta) for s in (swept.statistics, paris(data, theta, particles, rng).statistics))
    for name, value in exact.items():
        for index in np.ndindex(value.shape):
            assert off(found[name][:, *index], value[index]) < 4
    assert max(off(free[name][:, *i], v[i]) for name, v in exact.items() for i in np.ndindex(v.shape)) > 10


def test_a_path_that_is_drawn_is_of_the_particles_and_their_estimate_of_as_many_steps() -> None:
    """Of one particle there is no choice: the estimate is its path's sums; so where it is held."""
    theta, y = somewhere(2), np.random.default_rng(0).standard_normal((3, 5, 2))
    found = paris(y, theta, 1, np.random.default_rng(0))
    again = paris(y, theta, 1, np.random.default_rng(1), path=found.path)
    np.testing.assert_array_equal(again.path, found.path)
    for one in (found, again):
        own = sums(one.path, y)
        np.testing.assert_allclose(one.statistics.pairs, own.pairs, rtol=1e-12)
        np.testing.assert_allclose(one.statistics.misfit, own.misfit, rtol=1e-12)
        assert one.statistics.times == 5


@pytest.mark.parametrize(("y", "particles"), [(WAVES[0], 10), (WAVES, 0)])
def test_what_is_no_series_or_no_particle_is_refused(y: Array, particles: int) -> None:
    with pytest.raises(SdeflowError, match=rf"were expected, given \[.*\] and {particles}$"):
        paris(y, START, particles, np.random.default_rng(0))


def test_rows_have_parameters_of_their_own() -> None:
    """As a pass over each alone would: of so many particles that sums are near the exact ones, to a tenth."""
    both = [somewhere(2), {name: 0.5 * value for name, value in somewhere(2).items()}]
    y = np.random.default_rng(0).standard_normal((1, 4, 2))
    theta = {name: np.stack([one[name] for one in both]) for name in START}
    found = paris(np.repeat(y, 2, 0), theta, 800, np.random.default_rng(0)).statistics
    for k, one in enumerate(both):
        exact = kalman.expected(y, kalman.smoothed(y, one))
        np.testing.assert_allclose(found.pairs[k], exact.pairs, atol=0.1 * np.abs(exact.pairs).max())
        np.testing.assert_allclose(found.misfit[k], exact.misfit, rtol=0.1)


def test_the_score_by_paris_has_the_bias_of_an_independent_calculation_which_falls_as_1_over_n() -> None:
    """On T = 50 of a smooth series: -.33(6), .09(6), .88(7) with 20 particles, whose one estimate has a
    standard deviation of 1.2 to 1.4. Four standard errors of both. With 60 it is less than half as large.
    """
    exact, rng = kalman.score(SMOOTH, START), np.random.default_rng(0)
    few, more = (
        {
            n: v.ravel() - exact[n].item()
            for n, v in score(paris(rows, START, N, rng).statistics, START).items()
        }
        for rows, N in ((np.repeat(SMOOTH, 400, 0), 20), (np.repeat(SMOOTH, 150, 0), 60))
    )
    told = {"a": (-0.33, 0.06), "log_q": (0.09, 0.06), "log_r": (0.88, 0.07)}
    for name, (bias, error) in told.items():
        own = few[name].std(ddof=1) / 400**0.5
        assert abs(few[name].mean() - bias) < 4 * np.hypot(own, error)
        assert 1.0 < few[name].std() < 1.6
    assert off(few["log_r"], 0) > 8
    assert more["log_r"].mean() < few["log_r"].mean() / 2


@pytest.mark.slow
def test_the_bias_of_paris_falls_as_1_over_n() -> None:
    """20 and 80 particles: N times the bias is the same, within 4 standard errors and a part of order 1/N."""
    exact, rng = kalman.score(SMOOTH, START)["log_r"].item(), np.random.default_rng(2)
    scaled, errors = [], []
    for rows, particles in ((1000, 20), (500, 80)):
        found = paris(np.repeat(SMOOTH, rows, 0), START, particles, rng).statistics
        gaps = particles * (score(found, START)["log_r"].ravel() - exact)
        scaled.append(gaps.mean())
        errors.append(gaps.std() / rows**0.5)
    assert abs(scaled[0] - scaled[1]) < 4 * np.hypot(*errors)
    assert scaled[1] > 4 * errors[1]


def test_of_20_particles_gibbs_has_no_bias_to_be_seen() -> None:
    """Where PaRIS has one of 4 to 9 standard errors: 15 sweeps after 5, 80 times, 4 standard errors."""
    exact, rng, y = kalman.score(SMOOTH, START), np.random.default_rng(3), np.repeat(SMOOTH, 80, 0)
    kept: list[dict[str, Array]] = []
    path = None
    for sweep in range(20):
        found = paris(y, START, 20, rng, path=path)
        path = found.path
        if sweep >= 5:
            kept.append(score(found.statistics, START))
    for name in NAMES:
        assert off(np.mean([k[name].ravel() for k in kept], 0), exact[name].item()) < 4

"""Kalman's filter and smoother.

Oracles: numbers of an independent calculation; the dense joint Gaussian of paths and series, by numpy from
the equations; differences of the likelihood.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdeflow.analysis.kalman import maximum, score, smoothed
from sdeflow.errors import SdeflowError

Array = NDArray[np.float64]

T = np.arange(50.0)
WAVES = (2 * np.sin(0.3 * T) + np.cos(7 * T**2))[None, :, None]
START = {"a": [[0.8]], "log_q": [np.log(0.5)], "log_r": [np.log(0.3)], "c": [0.0]}


def test_numbers_of_an_independent_calculation() -> None:
    path = smoothed(WAVES, START)
    assert path.log_likelihood == pytest.approx([-70.1673272042], abs=1e-10)
    at = [0, 25, 49]
    assert path.mean[0, at, 0] == pytest.approx([0.907718, 1.633452, 2.331836], abs=1e-6)
    assert path.covariance[at, 0, 0] == pytest.approx([0.192291, 0.172784, 0.203233], abs=1e-6)
    found = score(WAVES, START)
    expected = {"a": 23.0690901, "log_q": 3.2215872, "log_r": -2.3743773, "c": 8.1047152}
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize(
    ("learn", "expected", "value"),
    [
        (["a"], {"a": 0.910161954}, -68.881820956),
        (["a", "log_q", "log_r"], {"a": 0.885114, "log_q": 0.665339, "log_r": 0.131864}, -68.013977365),
        (["c"], {"c": 0.0858166121}, None),
    ],
)
def test_the_mle_of_an_independent_calculation(
    learn: list[str], expected: dict[str, float], value: float | None
) -> None:
    found = maximum(WAVES, START, learn)
    digits = 1e-6 if len(learn) > 1 else 1e-8  # of the calculation, which compared values
    for name, number in found.theta.items():
        own = np.exp(number) if name.startswith("log") else number
        held = np.exp(START[name]) if name.startswith("log") else START[name]
        assert own.item() == pytest.approx(expected.get(name, np.squeeze(held)), abs=digits)
    assert found.log_likelihood == pytest.approx(smoothed(WAVES, found.theta).log_likelihood.sum(), abs=1e-12)
    if value is not None:
        assert found.log_likelihood == pytest.approx(value, abs=1e-9)
    assert max(abs(score(WAVES, found.theta)[name].item()) for name in learn) < 1e-7


def somewhere(d: int) -> dict[str, Array]:
    rng = np.random.default_rng(d)
    return {
        "a": 0.4 * rng.standard_normal((d, d)),
        "log_q": rng.standard_normal(d),
        "log_r": rng.standard_normal(d),
        "c": rng.standard_normal(d),
    }


def dense(times: int, theta: dict[str, Array]) -> tuple[Array, Array]:
    """Mean and covariance of a path [T d], by the equations: x = (I - shift A)^-1 (c.., noise)."""
    d = len(theta["c"])
    solve = np.linalg.inv(np.eye(times * d) - np.kron(np.diag(np.ones(times - 1), -1), theta["a"]))
    drift = np.concatenate([np.zeros(d), np.tile(theta["c"], times - 1)])
    noise = np.concatenate([np.ones(d), np.tile(np.exp(theta["log_q"]), times - 1)])
    return solve @ drift, solve @ np.diag(noise) @ solve.T


@pytest.mark.parametrize(("d", "times"), [(1, 4), (2, 6), (3, 2)])
def test_of_several_series_and_coordinates_the_dense_gaussian(d: int, times: int) -> None:
    theta, y = somewhere(d), np.random.default_rng(7).standard_normal((3, times, d))
    mean, covariance = dense(times, theta)
    noise = np.diag(np.tile(np.exp(theta["log_r"]), times))
    gain = covariance @ np.linalg.inv(covariance + noise)
    residual = y.reshape(3, -1) - mean
    posterior = (covariance - gain @ covariance).reshape(times, d, times, d)
    path = smoothed(y, theta)
    at = np.arange(times)
    np.testing.assert_allclose(path.mean.reshape(3, -1), mean + residual @ gain.T, atol=1e-12)
    np.testing.assert_allclose(path.covariance, posterior[at, :, at, :], atol=1e-12)
    np.testing.assert_allclose(path.lagged, posterior[at[1:], :, at[:-1], :], atol=1e-12)
    squares = (residual * np.linalg.solve(covariance + noise, residual.T).T).sum(1)
    value = -(squares + np.linalg.slogdet(2 * np.pi * (covariance + noise))[1]) / 2
    np.testing.assert_allclose(path.log_likelihood, value, rtol=1e-12)


@pytest.mark.parametrize("d", [1, 2])
def test_the_score_is_the_slope_of_the_likelihood(d: int) -> None:
    theta, y = somewhere(d), np.random.default_rng(7).standard_normal((3, 6, d))
    for name, slopes in score(y, theta).items():
        for index in np.ndindex(slopes.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = theta | {name: theta[name].copy()}
                moved[name][index] += step
                ends.append(smoothed(y, moved).log_likelihood.sum())
            assert slopes[index] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-7)


def test_a_likelihood_whose_log_runs_off_has_no_maximum() -> None:
    """Of a smooth series r tends to 0."""
    y = (np.sin(0.7 * T) + 0.3 * np.cos(2.1 * T) + 0.02 * T)[None, :, None]
    with pytest.raises(SdeflowError, match=r"still grows at .*log_r = \[-1\d"):
        maximum(y, START, ["a", "log_q", "log_r"])


def test_a_parameter_that_is_not_there() -> None:
    with pytest.raises(SdeflowError, match=r"log_r is not there: give what StateSpace.complete"):
        smoothed(WAVES, {name: START[name] for name in ("a", "log_q", "c")})


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: smoothed(WAVES[0, :, 0], START), r"series \[D, T, 1\] were expected.*given \(50,\)"),
        (lambda: smoothed(np.concatenate([WAVES, WAVES], 2), START), "d = 1 of the parameters"),
        (lambda: score(np.where(WAVES > 1, np.nan, WAVES), START), "values that are not finite"),
        (lambda: maximum(WAVES, START, ["b"]), "out of a, log_q, log_r, c, given b"),
        (lambda: maximum(WAVES, START, []), "given none"),
    ],
)
def test_mistakes_are_told_in_a_sentence(mistake: Callable[[], Any], words: str) -> None:
    with pytest.raises(SdeflowError, match=words):
        mistake()

"""What a step gains by its batch, and the laws that follow.

Oracles: expected losses of random steps, by exact moments or by drawing; a system's own minibatches; laws
that fits are to find again.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import SE

from sdeflow import SdeflowError, pgd
from sdeflow.analysis.batch_laws import (
    LAWS,
    REACH,
    Fit,
    fit,
    fitted,
    gradient_optimum,
    gradient_variance,
    sign_optimum,
    with_replacement,
)
from sdeflow.problems.hierarchical import Hierarchical

BATCHES = 2.0 ** np.arange(8)


def symmetric(seed: int, p: int = 4) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((p, p))
    return a @ a.T / p + np.eye(p)


@pytest.mark.parametrize("b", [1, 7, 64])
def test_the_gradient_law_is_exact_on_a_quadratic(b: int) -> None:
    """Two-point gradient noise has exact moments: the mean loss of g +- the columns of the root of S p/b."""
    hessian, covariance = symmetric(0), 30 * symmetric(1)
    g = np.array([1.0, -2.0, 0.5, 3.0])
    away = np.linalg.cholesky(covariance * len(g) / b).T
    drawn = np.concatenate([g + away, g - away])
    h = gradient_optimum(g, hessian, covariance, b)

    def loss(h: float) -> float:
        return float(np.mean([-h * d @ g + h**2 * d @ hessian @ d / 2 for d in drawn]))

    # a parabola through three points
    low, mid, high = loss(h - 0.01), loss(h), loss(h + 0.01)
    assert (high - low) / 0.02 == pytest.approx(0, abs=1e-10 * (high + low - 2 * mid) / 0.01**2)
    law = Fit("gradient", g @ g / (g @ hessian @ g), np.trace(hessian @ covariance) / (g @ hessian @ g), 0.0)
    assert law(b) == pytest.approx(h, rel=1e-12)


def test_the_sign_law_is_exact_for_one_step_of_signs() -> None:
    """Against 4e5 draws of the gradients of b data; the error is that of a ratio of means."""
    hessian, rng = symmetric(2), np.random.default_rng(3)
    g, spread, b = np.array([0.3, -0.1, 0.5, 0.2]), np.array([4.0, 2.0, 5.0, 1.0]), 20
    signs = np.sign(g + rng.standard_normal((400_000, 4)) * spread / np.sqrt(b))
    gain, cost = signs @ g, np.einsum("ni,ij,nj->n", signs, hessian, signs)
    h = gain.mean() / cost.mean()
    error = np.std(gain - h * cost) / cost.mean() / np.sqrt(len(signs))
    assert error < 0.02 * h
    assert abs(sign_optimum(g, hessian, spread**2, b) - h) < SE * error


def test_the_sign_law_has_a_peak_where_curvature_couples_and_none_where_it_is_diagonal() -> None:
    """For small signals it is at (pi/2) tr H / sum_{i != j} H_ij g_i g_j / (sigma_i sigma_j)."""
    hessian = np.ones((6, 6)) + 0.01 * np.eye(6)
    g, spread = np.full(6, 1e-3), np.full(6, 1.0)
    noise = np.pi / 2 * np.trace(hessian) / (30 * 1e-6)
    batches = noise * np.geomspace(1e-3, 0.01, 5)
    least = sign_optimum(g, hessian, spread**2, 1e-3 * noise)
    peak = Fit("sign", least * (1000**0.5 + 1000**-0.5) / 2, noise, 0.0)
    h = [sign_optimum(g, hessian, spread**2, b) for b in batches]
    np.testing.assert_allclose(h, peak(batches), rtol=1e-2)
    wide = np.geomspace(1, 1e9, 200)
    coupled, alone = (
        np.array([sign_optimum(g, k, spread**2, b) for b in wide])
        for k in (hessian, np.diag(np.diag(hessian)))
    )
    assert coupled.max() > 1.2 * coupled[-1]
    assert (np.diff(alone) >= -1e-15).all()


def test_one_parameter_under_signs_saturates_as_its_law_says() -> None:
    h = [sign_optimum([0.5], [[2.0]], [9.0], b) for b in BATCHES]
    np.testing.assert_allclose(Fit("sign, one parameter", 0.25, 2 * 9 / 0.25, 0)(BATCHES), h, rtol=1e-12)


def test_the_variance_of_theta_is_that_of_minibatches_and_of_particles() -> None:
    """Of a system's own forces: 109.3 + 25 for D = 50, b = 10, N = 5, posteriors' means of variance 0.5465.

    The toy's posteriors have variance 1/2, so that the second part is (D^2/b)/(2 N) = 25.
    """
    data, b, n, draws = 50, 10, 5, 10_000
    model, g = Hierarchical(data=data), torch.Generator().manual_seed(0)
    theta = float(model.data.mean())
    model.data = theta + (model.data - theta) * (4 * 0.5465 / model.data.var()).sqrt()
    means = (model.data[:, 0] + theta) / 2
    x = means[:, None] + 0.5**0.5 * torch.randn(draws, data, n, generator=g, dtype=torch.float64)
    parts = np.array([gradient_variance(one.numpy() - theta, b) for one in x[:1000]])
    errors = parts.std(0) / len(parts) ** 0.5
    assert errors.max() < 1.5
    assert (np.abs(parts.mean(0) - [109.3, 25]) < SE * errors).all()
    index = torch.rand(draws, data, generator=g).argsort(1)[:, :b].sort(1).values
    system = pgd(model, particles=n, theta={"h": 0.1}, x={"h": 0.1}).to(torch.float64, torch.device("cpu"))
    seen = x.gather(1, index[..., None].expand(-1, -1, n))
    z = {"theta": torch.full((draws, 1), theta, dtype=torch.float64), "X": seen[..., None]}
    part = system.minibatch(index)
    force = part.forces(0.0, z, part.parameters)["theta"][:, 0].numpy()
    assert abs(force.var(ddof=1) - 134.3) < SE * 134.3 * (2 / draws) ** 0.5


def test_drawn_without_replacement_a_batch_has_the_noise_of_a_larger_one() -> None:
    """The variance of the mean over all 10 pairs of 5 numbers, of draws one by one s^2/b."""
    values = np.array([1.0, 4.0, -2.0, 0.5, 7.0])
    means = [(values[i] + values[j]) / 2 for i in range(5) for j in range(i)]
    assert np.var(means) == pytest.approx(values.var(ddof=1) / float(with_replacement(2, 5)), rel=1e-12)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_is_found_again(law: str) -> None:
    h = Fit(law, 0.3, 11.0, 0.0)(BATCHES)
    found = fit(law, BATCHES, h)
    assert (found.h, found.noise) == pytest.approx((0.3, 11.0), rel=1e-5)
    others = [fit(other, BATCHES, h).aic for other in LAWS if other != law]
    assert found.aic < min(others) - 50


def test_criterion_by_hand() -> None:
    """Residuals of log h that no law takes up: +-0.1 in turn about a root, whose B is at the edge."""
    batches = np.array([1.0, 1.0, 4.0, 4.0, 16.0, 16.0])
    found = fit("sign", batches, np.sqrt(batches) * np.exp(0.1 * np.array([1, -1] * 3)))
    assert found.noise > 0.99 * 16 * REACH
    assert found.aic == pytest.approx(6 * np.log(0.01) + 4, abs=1e-3)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of log h with noise of 0.1 and 12 draws a batch: 95% of 120 intervals of B, four standard errors."""
    rng = np.random.default_rng(5)
    truth = np.log(Fit("gradient", 0.3, 11.0, 0.0)(BATCHES))
    held = 0
    for _ in range(120):
        seeds = truth[:, None] + 0.35 * rng.standard_normal((len(truth), 12))
        picked = rng.integers(12, size=(60, *seeds.shape))
        again = np.take_along_axis(seeds[None], picked, 2).mean(2)
        low, high = fitted("gradient", BATCHES, np.exp(seeds.mean(1)), np.exp(again)).noise
        held += low < 11.0 < high
    # 60 draws and 12 seeds make a percentile interval too short: 0.93 at best
    assert held / 120 > 0.93 - 4 * (0.93 * 0.07 / 120) ** 0.5


def test_refusals() -> None:
    with pytest.raises(SdeflowError, match="three batches or more"):
        fit("sign", [1, 2, 2], [1, 2, 3])
    with pytest.raises(SdeflowError, match="positive steps"):
        fit("sign", [1, 2, 4], [1, 2, np.inf])
    with pytest.raises(SdeflowError, match="a batch is 1 to D = 3, given 4"):
        gradient_variance(np.zeros((3, 2)), 4)
    with pytest.raises(SdeflowError, match=r"two data and particles or more were expected, given \(3, 1\)"):
        gradient_variance(np.zeros((3, 1)), 2)

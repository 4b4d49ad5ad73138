"""The badly conditioned problem and the one of two modes.

Oracles: autograd; torch's distributions; sums over modes and quadrature.
"""

from __future__ import annotations

from math import cosh, exp, log, pi, sqrt

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import Normal

from sdeflow import Save, pgd, simulate
from sdeflow.config.arguments import call
from sdeflow.errors import SdeflowError
from sdeflow.problems.ill_conditioned import IllConditioned
from sdeflow.problems.two_modes import TwoModes

G = torch.Generator().manual_seed(3)
MODELS = [IllConditioned(data=3, latent=4, condition=50.0), TwoModes(data=3, latent=2, prior=1.3, noise=0.7)]


def points(model: IllConditioned | TwoModes) -> tuple[Tensor, Tensor]:
    """theta [p] and x [3, 5, d] in float64."""
    shape = model.latent_shape
    return torch.randn(shape, generator=G).double(), torch.randn(3, 5, *shape, generator=G).double()


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_scores_are_the_gradients_of_the_log_joint(model: IllConditioned | TwoModes) -> None:
    theta, x = (v.requires_grad_() for v in points(model))
    log_joint = model.log_joint({"theta": theta}, x, model.data)
    assert log_joint.shape == (3, 5)
    by_theta, by_x = torch.autograd.grad(log_joint.sum(), (theta, x))
    with torch.no_grad():
        torch.testing.assert_close(
            model.score_x({"theta": theta}, x, model.data), by_x, rtol=1e-10, atol=1e-10
        )
        found = model.score_theta({"theta": theta}, x, model.data)["theta"]
    torch.testing.assert_close(found, by_theta, rtol=1e-10, atol=1e-10)


def test_ill_conditioned_is_its_distributions() -> None:
    model = MODELS[0]
    theta, x = points(model)
    assert float(model.scale[0] ** 2 / model.scale[-1] ** 2) == pytest.approx(50, rel=1e-12)
    expected = Normal(theta, model.scale).log_prob(x) + Normal(x, model.scale).log_prob(model.data[:, None])
    torch.testing.assert_close(
        model.log_joint({"theta": theta}, x, model.data), expected.sum(-1), rtol=1e-10, atol=1e-10
    )
    mle = model.data.mean(0)
    least = -Normal(mle, sqrt(2) * model.scale).log_prob(model.data).sum()
    assert model.minimum == pytest.approx(float(least), rel=1e-12)
    # E at the MLE with exact posteriors, where log q - l is a constant: log-joint less log-posterior at any x
    posterior = Normal((model.data[:, None] + mle) / 2, model.scale / sqrt(2)).log_prob(x).sum(-1)
    evidence = model.log_joint({"theta": mle}, x, model.data) - posterior
    torch.testing.assert_close(evidence, evidence[:, :1].expand(3, 5), rtol=1e-10, atol=1e-8)
    assert -float(evidence[:, 0].sum()) == pytest.approx(model.minimum, rel=1e-10)


def test_two_modes_is_its_distributions() -> None:
    model = MODELS[1]
    theta, x = points(model)
    y = model.data[:, None]
    parts = [Normal(theta + sign * x, 0.7).log_prob(y).sum(-1) - log(2) for sign in (1, -1)]
    expected = Normal(0.0, 1.3).log_prob(x).sum(-1) + torch.logaddexp(*parts)
    torch.testing.assert_close(
        model.log_joint({"theta": theta}, x, model.data), expected, rtol=1e-6, atol=1e-6
    )
    far = 100 * x  # where cosh overflows
    assert model.log_joint({"theta": theta}, far, 100 * model.data).isfinite().all()
    least = -Normal(model.mle, sqrt(1.3**2 + 0.7**2)).log_prob(model.data).sum()
    assert model.minimum == pytest.approx(float(least), rel=1e-12)


def test_two_modes_have_half_the_mass_each_and_the_mle_is_the_mean() -> None:
    """By quadrature in one coordinate: the marginal, its maximum, and the share of each mode."""
    model = TwoModes(data=4, latent=1, prior=1.3, noise=0.7)

    def marginal(theta: float, y: float, low: float = -12.0, high: float = 12.0) -> float:
        def joint(x: float) -> float:
            r = y - theta
            flat = exp(-(x**2) / (2 * 1.69) - (r**2 + x**2) / (2 * 0.49)) * cosh(x * r / 0.49)
            return flat / (2 * pi * 1.3 * 0.7)

        return quad(joint, low, high, points=[0.0], epsabs=1e-13)[0]

    def minus_log_likelihood(theta: float) -> float:
        return -sum(log(marginal(theta, float(y))) for y in model.data)

    mle = float(model.mle)
    assert minus_log_likelihood(mle) == pytest.approx(model.minimum, rel=1e-9)
    assert minus_log_likelihood(mle + 0.01) > model.minimum < minus_log_likelihood(mle - 0.01)
    y = float(model.data[0])
    assert marginal(mle, y, 0.0) / marginal(mle, y) == pytest.approx(0.5, rel=1e-9)


def test_all_particles_begin_in_one_mode() -> None:
    model = TwoModes()
    x = model.init_x(torch.Generator().manual_seed(0), 8, 500)
    assert float(model.observables({}, x, model.data)["other_mode"]) == 0
    assert float(model.observables({}, -x, model.data)["other_mode"]) == 1


def test_particles_end_with_half_in_each_mode_and_theta_at_the_mle() -> None:
    """With low barriers, from replicas averaged over time: 4 standard errors, after 3000 steps of h = 0.02.

    The bias of Euler-Maruyama's variance is 1%, and of the share none, by symmetry.
    """
    model = TwoModes(data=3, latent=2, prior=1.0, noise=1.0)
    system = pgd(model, particles=40, theta={"h": 0.01}, x={"h": 0.02})
    run = simulate(
        system, "euler_maruyama", steps=3000, replicas=10, save=Save(every=20), device="cpu", dtype="float64"
    ).isel(time=slice(50, None))  # fmt: skip
    share = run.other_mode.mean("time").values
    assert abs(share.mean() - 0.5) < 4 * share.std(ddof=1) / sqrt(10)
    assert share.std(ddof=1) / sqrt(10) < 0.02
    theta = run.theta.mean("time").values
    assert (np.abs(theta.mean(0) - model.mle.numpy()) < 4 * theta.std(0, ddof=1) / sqrt(10)).all()


@pytest.mark.parametrize(
    ("function", "table", "message"),
    [
        (IllConditioned, {"latent": 1}, "latent at least 2"),
        (IllConditioned, {"condition": 0.5}, "condition must be at least 1"),
        (TwoModes, {"data": 1}, "at least 2"),
        (TwoModes, {"noise": 0.0}, "must be positive"),
    ],
)
def test_impossible_arguments(function: type, table: dict[str, float], message: str) -> None:
    with pytest.raises(SdeflowError, match=message):
        call(function, table, "model")

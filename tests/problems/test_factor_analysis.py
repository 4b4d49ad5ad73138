"""Factor analysis and probabilistic PCA.

Oracles: torch's distributions; autograd; the eigenvalues of the data's covariance; Fisher's identity with the
exact posterior; numbers of an independent calculation.
"""

from __future__ import annotations

from math import log, pi

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from sdeflow.config.arguments import call
from sdeflow.errors import SdeflowError
from sdeflow.problems.factor_analysis import FactorAnalysis, LinearGaussian
from sdeflow.problems.ppca import PPCA

MODELS = [PPCA(), PPCA(data=12, latent=3), FactorAnalysis(), FactorAnalysis(data=60, observed=5, latent=1)]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{type(m).__name__}{m.latent_shape[0]}")


def somewhere(model: LinearGaussian) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {name: torch.randn(v.shape, generator=g).double() for name, v in model.mle.items()}


def posterior(model: LinearGaussian, theta: dict[str, Tensor]) -> MultivariateNormal:
    """Of all data, by conditioning the joint Gaussian of (x, y)."""
    w, k = theta["weight"], model.latent_shape[0]
    covariance = w @ w.mT + theta["log_noise"].exp().expand(len(w)).diag()
    gain = w.mT @ torch.linalg.inv(covariance)
    return MultivariateNormal((model.data - theta["mean"]) @ gain.mT, torch.eye(k).double() - gain @ w)


@every_model
def test_log_joint_is_that_of_its_distributions(model: LinearGaussian) -> None:
    theta, k = somewhere(model), model.latent_shape[0]
    x = torch.randn(len(model.data), 5, k, generator=torch.Generator().manual_seed(1)).double()
    mean = x @ theta["weight"].mT + theta["mean"]
    noise = Normal(mean, (theta["log_noise"] / 2).exp().expand(mean.shape[-1]))
    expected = Normal(0.0, 1.0).log_prob(x).sum(-1) + noise.log_prob(model.data[:, None]).sum(-1)
    found = model.log_joint(theta, x, model.data)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)
    # the log-joint less the log-posterior is the evidence, at any x
    evidence = found - posterior(model, theta).log_prob(x.movedim(1, 0)).mT
    torch.testing.assert_close(evidence, evidence[:, :1].expand_as(evidence), rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(evidence[:, 0].sum(), model.log_likelihood(theta), rtol=1e-10, atol=1e-8)


@every_model
def test_scores_are_the_gradients(model: LinearGaussian) -> None:
    theta = {name: v.requires_grad_() for name, v in somewhere(model).items()}
    g = torch.Generator().manual_seed(2)
    x = torch.randn(len(model.data), 3, *model.latent_shape, generator=g).double().requires_grad_()
    total = model.log_joint(theta, x, model.data).sum()
    by_x, *by_theta = torch.autograd.grad(total, (x, *theta.values()))
    with torch.no_grad():
        torch.testing.assert_close(model.score_x(theta, x, model.data), by_x, rtol=1e-10, atol=1e-10)
        found = model.score_theta(theta, x, model.data)
    for name, expected in zip(theta, by_theta, strict=True):
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-9)


@every_model
def test_the_marginal_log_likelihood(model: LinearGaussian) -> None:
    theta = somewhere(model)
    w = theta["weight"]
    covariance = w @ w.mT + theta["log_noise"].exp().expand(len(w)).diag()
    expected = MultivariateNormal(theta["mean"], covariance).log_prob(model.data).sum()
    torch.testing.assert_close(model.log_likelihood(theta), expected, rtol=1e-12, atol=1e-10)


def test_ppca_has_the_eigenvalues_and_the_maximum_of_an_independent_calculation() -> None:
    model = PPCA()
    y = model.data.numpy()
    values = np.linalg.eigvalsh(np.cov(y.T, bias=True))[::-1]
    np.testing.assert_allclose(values, [2.53713531, 0.77050912, 0.26324734, 0.12544962], atol=5e-9)
    assert float(model.mle["log_noise"].exp()) == pytest.approx(0.1943484772, abs=5e-11)
    assert -model.minimum == pytest.approx(-174.912703470, abs=5e-10)
    s2 = values[2:].mean()
    closed = 20 * (4 * log(2 * pi) + np.log(values[:2]).sum() + 2 * log(s2) + 4)
    assert model.minimum == pytest.approx(closed, abs=1e-11)


@pytest.mark.parametrize(
    ("model", "tolerance"), [(MODELS[0], 1e-13), (MODELS[1], 1e-13), (MODELS[2], 1e-11), (MODELS[3], 1e-11)]
)
def test_gradients_vanish_at_the_mle(model: LinearGaussian, tolerance: float) -> None:
    """Of the marginal by autograd, and of theta's force by Fisher's identity; both for a datum.

    The scores are quadratic in x, so that over the points m +- sqrt(k) L e_c their mean is exact.
    """
    theta = {name: v.clone().requires_grad_() for name, v in model.mle.items()}
    gradients = torch.autograd.grad(model.log_likelihood(theta), list(theta.values()))
    assert max(float(g.abs().max()) for g in gradients) / len(model.data) < tolerance
    law, k = posterior(model, model.mle), model.latent_shape[0]
    away = k**0.5 * law.scale_tril.mT.expand(len(model.data), k, k)
    x = law.mean[:, None] + torch.cat([away, -away], 1)
    forces = model.score_theta(model.mle, x, model.data)
    assert max(float(f.abs().max()) for f in forces.values()) / x[..., 0].numel() < tolerance


@every_model
def test_the_mle_is_a_maximum_but_for_rotations(model: LinearGaussian) -> None:
    """The Hessian has k (k-1)/2 zeros, of the rotations of W, and is negative otherwise."""
    sizes = [v.numel() for v in model.mle.values()]

    def value(flat: Tensor) -> Tensor:
        parts = zip(model.mle.items(), flat.split(sizes), strict=True)
        return model.log_likelihood({name: part.view(v.shape) for (name, v), part in parts})

    flat = torch.cat([v.flatten() for v in model.mle.values()])
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(value, flat))
    k = model.latent_shape[0]
    free = k * (k - 1) // 2
    assert eigenvalues[-free:].abs().max() < 1e-8 if free else True
    assert eigenvalues[: len(flat) - free].max() < -1e-3


@every_model
def test_observables(model: LinearGaussian) -> None:
    x = torch.zeros(len(model.data), 1, *model.latent_shape)
    best = model.observables(model.mle, x, model.data)
    assert float(best["excess"]) == pytest.approx(0, abs=1e-9)
    assert float(best["noise"]) == pytest.approx(float(model.mle["log_noise"].exp().mean()), rel=1e-12)
    theta = somewhere(model)
    expected = -model.minimum - float(model.log_likelihood(theta))
    assert expected > 0
    single = model.to(torch.float32, torch.device("cpu"))
    found = single.observables({n: v.float() for n, v in theta.items()}, x, single.data)
    assert float(found["excess"]) == pytest.approx(expected, rel=1e-5)
    for away in (float("nan"), float("inf"), 1e200):  # a run that diverges is told so, by no traceback
        lost = model.observables({n: v * away for n, v in theta.items()}, x, model.data)
        assert not lost["excess"].isfinite()


def test_samples_have_the_marginal_moments() -> None:
    """20,000 draws, five standard errors: of a covariance's entry sqrt((C_ii C_jj + C_ij^2)/n) each."""
    model, n = MODELS[2], 20_000
    g = torch.Generator().manual_seed(5)
    theta = {name: v.float() for name, v in model.mle.items()}
    y = model.sample_data(theta, model.sample_prior(theta, n, g), g).double()
    w = model.mle["weight"]
    expected = w @ w.mT + model.mle["log_noise"].exp().diag()
    d = expected.diag()
    error = ((torch.outer(d, d) + expected**2) / n).sqrt()
    assert ((y.mT.cov() - expected).abs() < 5 * error).all()
    assert ((y.mean(0) - model.mle["mean"]).abs() < 5 * (d / n).sqrt()).all()


@pytest.mark.parametrize(
    ("function", "table", "message"),
    [
        (PPCA, {"data": 5}, "data must be at least 6"),
        (PPCA, {"latent": 4}, "latent must be from 1 to 3"),
        (FactorAnalysis, {"latent": 0}, "latent must be from 1 to 5"),
        (FactorAnalysis, {"data": 1}, "at least 2"),
        (FactorAnalysis, {"data": 3, "observed": 3}, "do not determine 2 factors"),
    ],
)
def test_impossible_arguments(function: type, table: dict[str, int], message: str) -> None:
    with pytest.raises(SdeflowError, match=message):
        call(function, table, "model")

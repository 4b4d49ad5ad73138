"""Density estimation on a line, and draws of a mixture made of normals.

Oracles: torch.distributions; the mixture's own distribution function; scipy's Wasserstein distance.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import wasserstein_distance
from support import SE
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.problems.density import Density
from sdeflow.problems.networks import of_normals
from sdeflow.seeds import generator

SMALL: dict[str, Any] = {"hidden": [7], "pseudo_points": 4, "latent": 3}
MEAN = torch.tensor([[-2.0, 0.5], [0.5, 1.0], [0.7, -1.0]], dtype=torch.float64)
VARIANCE = torch.tensor([[0.3, 1.0], [0.01, 2.0], [1.5, 0.2]], dtype=torch.float64)


def mixture(mean: Tensor, variance: Tensor) -> MixtureSameFamily:
    weights = Categorical(torch.ones(len(mean), dtype=mean.dtype))
    return MixtureSameFamily(weights, Independent(Normal(mean, variance.sqrt()), 1))


def made(**arguments: Any) -> tuple[Density, dict[str, Tensor]]:
    """A small model in float64 and its parameters at the start."""
    model = Density(**(SMALL | arguments)).to(torch.float64, torch.device("cpu"))
    torch.manual_seed(0)
    theta = model.init_theta(generator(0))
    assert isinstance(theta, torch.nn.Module)
    return model, {name: value.detach().double() for name, value in theta.named_parameters()}


def components(model: Density, theta: dict[str, Tensor]) -> MixtureSameFamily:
    return mixture(*torch.func.functional_call(model.network, theta, (None,)))


# Mixtures made of normals --------------------------------------------------------------------------


def test_the_first_coordinate_has_the_mixture_s_distribution() -> None:
    """Of normals at n equally likely places the draws are at most 1/n from it anywhere, without chance."""
    n = 3000
    xi = Normal(0, 1).icdf((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    drawn = of_normals(MEAN[:, :1], VARIANCE[:, :1], xi).sort(0).values
    cdf = Normal(MEAN[:, 0], VARIANCE[:, 0].sqrt()).cdf(drawn).mean(1)
    empirical = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert float((cdf - empirical).abs().max()) < 3 / n


def test_draws_have_the_mixture_s_moments() -> None:
    """Means, products and squares of 10^5 draws within 4.5 standard errors; single numbers in float32 too."""
    xi = torch.randn(100_000, 2, generator=generator(1), dtype=torch.float64)
    law = mixture(MEAN, VARIANCE)
    assert law.mean.shape == (2,)
    for draws in (of_normals(MEAN, VARIANCE, xi), of_normals(MEAN.float(), VARIANCE.float(), xi.float())):
        draws = draws.double()
        products = torch.stack([draws[:, 0] * draws[:, 1], draws[:, 0] ** 2, draws[:, 1] ** 2], 1)
        expected = torch.stack(
            [
                (MEAN[:, 0] * MEAN[:, 1]).mean(),
                *((MEAN**2 + VARIANCE).mean(0)),
            ]
        )
        for values, truth in ((draws, MEAN.mean(0)), (products, expected)):
            error = values.std(0) / len(values) ** 0.5
            assert bool(((values.mean(0) - truth).abs() < SE * error).all())
        within = law.log_prob(draws).mean() - law.log_prob(law.sample((100_000,))).mean()
        assert abs(float(within)) < SE * 2 * float(law.log_prob(draws).std()) / 100_000**0.5


def test_normals_far_out_stay_finite() -> None:
    for dtype in (torch.float32, torch.float64):
        xi = torch.tensor([[-40.0, 0.0], [40.0, 0.0], [-6.0, 1.0], [0.0, 0.0]], dtype=dtype)
        assert bool(of_normals(MEAN.to(dtype), VARIANCE.to(dtype), xi).isfinite().all())


# The model -----------------------------------------------------------------------------------------


def test_log_joint_against_torch_distributions() -> None:
    model, theta = made(sigma=0.3, data=5)
    x = torch.randn(5, 2, 3, generator=generator(1), dtype=torch.float64)
    prior = components(model, theta)
    value, _ = torch.func.functional_call(model.network, theta, (x,))
    expected = prior.log_prob(x) + Normal(value, 0.3).log_prob(model.data[:, None]).sum(-1)
    torch.testing.assert_close(model.log_joint(theta, x, model.data), expected, rtol=1e-11, atol=1e-10)
    flat = x.flatten(0, 1)
    torch.testing.assert_close(model.log_prior(theta, flat), prior.log_prob(flat), rtol=1e-11, atol=1e-10)
    drawn = model.sample_data(theta, flat[:1].expand(4000, -1), generator(2))
    z = (drawn - value[0, 0]) / 0.3
    assert abs(float(z.mean())) < SE / 4000**0.5
    assert abs(float(z.var()) - 1) < SE * (2 / 4000) ** 0.5


def test_samples_are_of_the_prior() -> None:
    """The mean of its log-density, within 4.5 standard errors of two samples."""
    model, theta = made()
    prior = components(model, theta)
    ours, theirs = model.sample_prior(theta, 20_000, generator(3)), prior.sample((20_000,))
    a, b = prior.log_prob(ours), prior.log_prob(theirs)
    assert abs(float(a.mean() - b.mean())) < SE * float((a.var() + b.var()) / 20_000) ** 0.5


def test_the_data_are_the_published_mixture() -> None:
    """Mean 0, variance 4 + 1/4 and mean |y| of 2 of the fresh data; those that are learned are others."""
    model = Density(**SMALL)
    assert model.data.shape == (100, 1)
    test = model.test
    n = len(test)
    assert n == 10_000
    assert abs(float(test.mean())) < SE * float(test.std()) / n**0.5
    assert abs(float((test**2).mean()) - 4.25) < SE * float((test**2).std()) / n**0.5
    assert abs(float((test.abs() - 2).square().mean()) - 0.25) < SE * 0.25 * 2**0.5 / n**0.5 + 1e-3
    assert not set(model.data.flatten().tolist()) & set(test.tolist())
    distance = wasserstein_distance(model.data.flatten(), test)
    assert 0.05 < distance < 0.6  # 0.23 in the mean, of 100 to many


def test_w1_is_scipy_s_distance_of_samples_to_fresh_data() -> None:
    model, theta = made(test=300)
    found = float(model.observables(theta, torch.empty(0), torch.empty(0))["w1"])
    xi, noise = model._normals[:, :3], model._normals[:, 3]
    value, _ = torch.func.functional_call(model.network, theta, (model.draw_prior(theta, xi)[:, None],))
    assert found == pytest.approx(wasserstein_distance(value.flatten() + 0.1 * noise, model.test), rel=1e-12)


def test_momenta_of_the_file_are_the_published_ones() -> None:
    """Coefficient 1 - h gamma eta of 0.1 in both; theta's force over 100 is eta/100 and 100 gamma."""
    system = load_config(problem_file("mixture_1d")).system.arguments
    theta, x = system["theta"], system["x"]
    for block in (theta, x):
        assert 1 - block["h"] * block["gamma"] * block["eta"] == pytest.approx(0.1, rel=1e-12)
    assert (theta["h"], theta["gamma"] / 100, x["h"], x["gamma"]) == (1e-3, 0.4, 1e-4, 0.4)
    pgd = load_config(problem_file("mixture_1d"), variant="pgd").system.arguments
    assert pgd["theta"]["h"] == pytest.approx(theta["h"] / 100)
    run = build(load_config(problem_file("mixture_1d"), variant="mpgd-x", overrides=[{"model": SMALL}]))
    assert {b.name: b.kinetic for b in run.system.blocks} == {"theta": False, "x": True}


def test_what_does_not_fit_is_refused() -> None:
    for arguments, sentence in (({"sigma": 0.0}, "sigma must be positive"), ({"test": 0}, "at least 1")):
        with pytest.raises(SdeflowError, match=sentence):
            Density(**arguments)

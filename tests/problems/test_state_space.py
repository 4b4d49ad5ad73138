"""State space models.

Oracles: torch's distributions; autograd; Kalman's recursions, which share no code with the model; the affine
map of a scheme's real step; of the volatility a quadrature of its likelihood.
"""

from __future__ import annotations

from math import exp, log, pi
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from numpy.typing import NDArray
from small import CPU, FLOAT64
from support import affine_map, places
from torch import Tensor
from torch.distributions import Normal

from sdeflow import Save, mpgd, pgd, simulate
from sdeflow.analysis.kalman import maximum, smoothed
from sdeflow.config.arguments import call
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.problems.state_space import Autoregression, StateSpace, StochasticVolatility
from sdeflow.simulation.solve import solve

EVERY = ("a", "log_q", "log_r", "c")
GRID = torch.linspace(-1, 2, 24, dtype=torch.float64).sin().view(2, 6, 2)
"""Two series of six times and two coordinates."""

MODELS: list[Autoregression] = [
    StateSpace(data=9, series=3, learn=EVERY),
    StateSpace(data=GRID, learn=("log_r", "a")),
    StochasticVolatility(data=7, series=2),
    StochasticVolatility(data=GRID, learn=("c",), a=0.9),
]
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{type(m).__name__}{len(m.start)}")


def somewhere(model: Autoregression) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {name: v + torch.randn(v.shape, generator=g).double() / 3 for name, v in model.start.items()}


def paths(model: Autoregression, particles: int) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.randn(len(model.data), particles, *model.latent_shape, generator=g, dtype=torch.float64)


@every_model
def test_log_joint_is_that_of_its_distributions(model: Autoregression) -> None:
    theta, x, y = somewhere(model), paths(model, 4), model.data[:, None]
    own = model.complete(theta)
    assert own.keys() == {*EVERY} - ({"log_r"} if isinstance(model, StochasticVolatility) else set())
    expected = Normal(0.0, 1.0).log_prob(x[..., 0, :]).sum(-1)
    for t in range(1, x.shape[2]):
        mean = torch.einsum("kl,bnl->bnk", own["a"], x[..., t - 1, :]) + own["c"]
        expected += Normal(mean, (own["log_q"] / 2).exp()).log_prob(x[..., t, :]).sum(-1)
    if isinstance(model, StochasticVolatility):
        observed = Normal(0.0, (x / 2).exp()).log_prob(y)
    else:
        observed = Normal(x, (own["log_r"] / 2).exp()).log_prob(y)
    found = model.log_joint(theta, x, model.data)
    torch.testing.assert_close(found, expected + observed.sum((-1, -2)), rtol=1e-12, atol=1e-11)


@every_model
def test_scores_are_the_gradients(model: Autoregression) -> None:
    theta = {name: v.requires_grad_() for name, v in somewhere(model).items()}
    x = paths(model, 3).requires_grad_()
    total = model.log_joint(theta, x, model.data).sum()
    by_x, *by_theta = torch.autograd.grad(total, (x, *theta.values()))
    with torch.no_grad():
        torch.testing.assert_close(model.score_x(theta, x, model.data), by_x, rtol=1e-11, atol=1e-11)
        found = model.score_theta(theta, x, model.data)
    assert found.keys() == theta.keys()
    for name, expected in zip(theta, by_theta, strict=True):
        torch.testing.assert_close(found[name], expected, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("model", MODELS[:2], ids=["waves", "own"])
def test_likelihood_and_path_are_kalman_s(model: StateSpace) -> None:
    theta = somewhere(model)
    path = smoothed(model.data, model.complete(theta))
    assert float(model.log_likelihood(theta)) == pytest.approx(path.log_likelihood.sum(), abs=1e-10)
    times, d = model.latent_shape
    covariance = torch.linalg.inv(model.precision(theta)).view(times, d, times, d)
    for t in range(times):
        np.testing.assert_allclose(covariance[t, :, t], path.covariance[t], atol=1e-12)
    for t in range(1, times):
        np.testing.assert_allclose(covariance[t, :, t - 1], path.lagged[t - 1], atol=1e-12)
    # at the smoother's mean the score vanishes
    mean = torch.from_numpy(path.mean)[:, None]
    assert model.score_x(theta, mean, model.data).abs().max() < 1e-11


def test_the_observable_in_single_precision_and_after_a_divergence() -> None:
    model = MODELS[0]
    theta, x = somewhere(model), paths(model, 1)
    exact = float(model.observables(theta, x, model.data)["log_likelihood"])
    single = model.to(torch.float32, CPU)
    found = single.observables({n: v.float() for n, v in theta.items()}, x, single.data)
    assert float(found["log_likelihood"]) == pytest.approx(exact, rel=1e-5)
    for away in (float("nan"), float("inf"), 1e200):
        lost = model.observables({n: v * away for n, v in theta.items()}, x, model.data)
        assert not lost["log_likelihood"].isfinite()


@pytest.mark.parametrize(
    ("r", "conditions", "digits"), [(0.3, [3.270, 3.276, 3.277], 5e-4), (100.0, [398, 495, 507], 0.5)]
)
def test_the_path_s_condition_does_not_grow_with_time(
    r: float, conditions: list[float], digits: float
) -> None:
    """Of T = 50, 200 and 800, at a = .95, q = .5: numbers of an independent calculation."""
    for times, expected in zip((50, 200, 800), conditions, strict=True):
        model = StateSpace(data=times, a=0.95, q=0.5, r=r)
        values = torch.linalg.eigvalsh(model.precision(model.start))
        assert float(values[-1] / values[0]) == pytest.approx(expected, abs=digits)
        assert 0.05**2 / 0.5 + 1 / r < values[0]
        assert values[-1] < 1.95**2 / 0.5 + 1 / r


# Runs of which c alone is learned: affine maps --------------------------------------------------------

MLE = 0.0858166121
X = {"h": 0.1, "eta": 1.0, "gamma": 3.0}
C = {"h": 0.1, "eta": 0.02, "gamma": 150.0}


def drift(name: str, particles: int) -> Any:
    model = StateSpace(learn=("c",))
    if name == "pgd":
        return pgd(model, particles=particles, theta={"h": 0.001}, x={"h": 0.05}).to(**FLOAT64)
    return mpgd(model, particles=particles, theta=C, x=X).to(**FLOAT64)


@pytest.mark.parametrize(
    ("name", "integrator"),
    [("pgd", "euler_maruyama"), ("pgd", "expint"), ("mpgd", "expint"), ("mpgd", "baoab"), ("mpgd", "nag")],
)
def test_means_rest_at_the_mle_and_at_the_smoother_s(name: str, integrator: str) -> None:
    """Whatever the steps: of the affine map of a real step, which contracts."""
    system = drift(name, 1)
    step, at = affine_map(system, integrator), places(system)
    assert step.radius < 1
    assert step.fixed_point[at["theta"]] == pytest.approx(MLE, abs=1e-9)
    model = StateSpace(learn=("c",))
    best = maximum(model.data, model.complete(model.start), ["c"])
    path = smoothed(model.data, best.theta)
    np.testing.assert_allclose(step.fixed_point[at["X"]], path.mean[0, :, 0], atol=1e-9)


def test_steps_of_euler_maruyama_spread_the_path_too_wide() -> None:
    """Its stationary covariance is (J - h J^2/2)^-1: at h = .05 variances are 9% to 32% too large."""
    system, h = drift("pgd", 1), 0.05
    step, at = affine_map(system, "euler_maruyama"), places(system)["X"]
    # with c held the map of X is its own part
    found = scipy.linalg.solve_discrete_lyapunov(step.A[at, at], step.covariance[at, at])
    model = StateSpace(learn=("c",))
    j = model.precision(model.start).numpy()
    np.testing.assert_allclose(found, np.linalg.inv(j - h * j @ j / 2), atol=1e-12)
    along, vectors = np.linalg.eigh(j)
    excess = np.diag(vectors.T @ found @ vectors) * along - 1
    assert (excess.min(), excess.max()) == (pytest.approx(0.09, abs=0.005), pytest.approx(0.32, abs=0.005))


@pytest.mark.parametrize(("name", "integrator"), [("pgd", "euler_maruyama"), ("mpgd", "baoab")])
def test_a_run_learns_the_drift(name: str, integrator: str) -> None:
    """16 replicas of 50 paths: within 4 standard errors, which the map's stationary law gives.

    Paths are moved alike and theta by their mean, so that N of them leave one N-th of the variance of one.
    """
    particles, replicas, one = 50, 16, drift(name, 1)
    step = affine_map(one, integrator)
    at = places(one)["theta"]
    steps = int(np.ceil(log(1e-5) / log(step.radius)))
    error = (step.stationary[at, at].item() / particles / replicas) ** 0.5
    run = simulate(
        drift(name, particles),
        integrator,
        steps=steps,
        replicas=replicas,
        save=Save(every=steps),
        dtype="float64",
    )
    assert error < 1e-3
    assert abs(float(run.theta[-1].mean()) - MLE) < 4 * error


# Runs of the packaged file ----------------------------------------------------------------------------


def learned(variant: str | None) -> dict[str, float]:
    """The parameters at the end of the packaged run, averaged over its last quarter."""
    run = solve(build(load_config(problem_file("state_space"), variant=variant))).dataset
    assert run.attrs["retcode"] == "success"
    last = run.theta[-(len(run.time) // 4) :].mean("time")
    return {str(name).partition("[")[0]: float(v) for name, v in zip(run.param.values, last, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("variant", [None, "fixed"])
def test_the_packaged_run_learns_the_mle(variant: str | None) -> None:
    """Within 0.02 nats of the maximum, from 2.2 below."""
    theta = {
        name: torch.full((1, 1) if name == "a" else (1,), v).double() for name, v in learned(variant).items()
    }
    assert -68.013977365 - float(StateSpace().log_likelihood(theta)) < 0.02


def quadrature(y: NDArray[np.float64], a: float, log_q: float, c: float) -> float:
    """log p(y) of the stochastic volatility of one series [T], by sums over a grid of x in [-9, 9]."""
    x, width = np.linspace(-9, 9, 361, retstep=True)
    step = np.exp(-((x[:, None] - a * x - c) ** 2) / (2 * exp(log_q))) * width / (2 * pi * exp(log_q)) ** 0.5
    law, value = np.exp(-(x**2) / 2) / (2 * pi) ** 0.5, 0.0
    for t, observed in enumerate(y):
        law = step @ law if t else law
        law = law * np.exp(-(x + observed**2 * np.exp(-x)) / 2) / (2 * pi) ** 0.5
        total = law.sum() * width
        law, value = law / total, value + log(total)
    return value


def test_the_quadrature_is_that_of_the_log_joint() -> None:
    """Of three times, whose paths a grid of 61^3 holds."""
    model = StochasticVolatility(data=3)
    x = torch.linspace(-9, 9, 61).double()
    grid = torch.cartesian_prod(x, x, x)[None, :, :, None]
    theta = {"a": torch.tensor([[0.7]]), "log_q": torch.tensor([0.2]), "c": torch.tensor([0.1])}
    total = model.log_joint({n: v.double() for n, v in theta.items()}, grid, model.data).logsumexp(1)
    expected = quadrature(model.data[0, :, 0].numpy(), 0.7, 0.2, 0.1)
    assert float(total) + 3 * log(0.3) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_the_packaged_volatility_is_learned() -> None:
    """Within 0.01 nats of the maximum of the quadrature, from more than 5 below."""
    y = StochasticVolatility().data[0, :, 0].numpy()
    best = scipy.optimize.minimize(lambda v: -quadrature(y, *v), [0.9, -1.5, 0.0], method="Nelder-Mead")
    found = learned("volatility")
    assert -quadrature(y, 0.8, log(0.5), 0.0) - best.fun > 5
    assert -quadrature(y, found["a"], found["log_q"], found["c"]) - best.fun < 0.01


# Data and mistakes ------------------------------------------------------------------------------------


def test_the_waves() -> None:
    t = np.arange(50.0)
    np.testing.assert_allclose(StateSpace().data[0, :, 0], 2 * np.sin(0.3 * t) + np.cos(7 * t**2), atol=1e-13)
    two = StochasticVolatility(data=5, series=2).data
    expected = np.exp(np.sin(0.1 * t[:5] + 1)) * np.sqrt(2) * np.cos(7 * t[:5] ** 2 + 1)
    np.testing.assert_allclose(two[1, :, 0], expected, atol=1e-13)


def test_data_of_one_s_own(tmp_path: Any) -> None:
    """A CSV is one series of T times and d coordinates."""
    (tmp_path / "y.csv").write_text("up,down\n1,2\n3,4\n5,6\n")
    model = StateSpace(data=str(tmp_path / "y.csv"))
    assert model.latent_shape == (3, 2)
    assert model.data.tolist() == [[[1, 2], [3, 4], [5, 6]]]
    assert torch.equal(StateSpace(data=[1.0, 2.0]).data, torch.tensor([[[1.0], [2.0]]]).double())


@pytest.mark.parametrize(
    ("function", "table", "message"),
    [
        (StateSpace, {"data": 1}, "data must be at least 2"),
        (StateSpace, {"series": 0}, "series at least 1, given 50 and 0"),
        (StateSpace, {"data": [[1.0, 2.0]]}, r"of at least 2 times, given \(1, 2\)"),
        (StateSpace, {"data": [1.0, 2.0], "series": 2}, "data of your own have theirs"),
        (StateSpace, {"q": 0.0}, "q is a variance and must be positive, given 0.0"),
        (StateSpace, {"r": -1.0}, "r is a variance"),
        (StateSpace, {"learn": []}, "learn names no parameter: give some of a, log_q, log_r, c"),
        (StateSpace, {"learn": ["q"]}, "learn cannot have 'q'"),
        (StochasticVolatility, {"learn": ["log_r"]}, "learn cannot have 'log_r'"),
        (StochasticVolatility, {"r": 0.3}, "unknown key 'model.r'"),
    ],
)
def test_impossible_arguments(function: type, table: dict[str, Any], message: str) -> None:
    with pytest.raises(SdeflowError, match=message):
        call(function, table, "model")

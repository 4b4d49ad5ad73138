"""Entropy, free energy and evidence against closed forms, each within the error that it states.

Errors are judged over many draws: no deviation beyond 4 stated errors, and their root mean square within
bounds that hold for an honest error (1) and catch one that is off by a factor.
"""

from __future__ import annotations

from collections.abc import Callable
from math import e, lgamma, log, pi

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.integrate import quad
from scipy.stats import multivariate_normal
from torch import Tensor

import sdeflow
from sdeflow import Save, simulate
from sdeflow.analysis.entropy import Estimate, gaussian_entropy, knn_entropy
from sdeflow.analysis.evidence import Evidence, Gaussian, annealed, fitted, importance, standard
from sdeflow.analysis.free_energy import (
    energy,
    energy_along,
    enriched_along,
    enriched_energy,
    gaussian_energy,
    toy_energy,
    toy_minimum,
)
from sdeflow.config.catalogue import find
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical


def judge(found: list[Estimate], truth: float, least: float, most: float) -> None:
    """Deviations in units of the stated error: none beyond 4, root mean square from `least` to `most`."""
    z = np.array([(value - truth) / error for value, error in found])
    assert np.abs(z).max() < 4
    assert least < np.sqrt((z**2).mean()) < most


# Entropy -------------------------------------------------------------------------------------------


def shear(d: int) -> np.ndarray:
    """A fixed, far from round, linear map."""
    return np.tril(np.random.default_rng(d).standard_normal((d, d))) + np.diag(np.linspace(1, 5, d))


@pytest.mark.parametrize(("d", "n"), [(1, 10), (1, 1000), (2, 40), (2, 1000), (10, 30), (10, 1000)])
def test_gaussian_entropy_of_gaussian_clouds(d: int, n: int) -> None:
    """100 clouds: the error is exact, so rms 1 +- 0.07, taken within 4 of that; and no bias is left."""
    rng, a = np.random.default_rng(n), shear(d)
    truth = d / 2 * log(2 * pi * e) + np.log(np.abs(np.diag(a))).sum()
    found = [gaussian_entropy(3 + rng.standard_normal((n, d)) @ a.T) for _ in range(100)]
    judge(found, truth, 0.72, 1.28)
    values = np.array(found)[:, 0]
    assert abs(values.mean() - truth) < 4 * found[0].error / np.sqrt(100)


@pytest.mark.parametrize(("d", "n"), [(1, 40), (1, 1000), (2, 40), (2, 1000), (10, 100), (10, 1000)])
def test_knn_entropy_of_gaussian_clouds(d: int, n: int) -> None:
    """60 clouds (15 where n = 1000), at the smallest sizes allowed too.

    In 10 coordinates the bias estimate is most of the error, and some 3 times what the bias is.
    """
    rng, a = np.random.default_rng(n), shear(d)
    truth = d / 2 * log(2 * pi * e) + np.log(np.abs(np.diag(a))).sum()
    found = [knn_entropy(3 + rng.standard_normal((n, d)) @ a.T) for _ in range(60 if n < 1000 else 15)]
    judge(found, truth, 0.2 if d == 10 else 0.4, 1.3)


MIXTURE = log(2) + log(2 * pi * e) / 2


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng: rng.exponential(size=400), 1.0),
        (lambda rng: rng.choice([-20, 20], 400) + rng.standard_normal(400), MIXTURE),
    ],
    ids=["exponential", "two modes"],
)
def test_knn_entropy_of_other_clouds(draw: Callable, truth: float) -> None:
    """400 points; a Gaussian fit is many of its errors too high there."""
    rng = np.random.default_rng(0)
    clouds = [draw(rng) for _ in range(60)]
    judge([knn_entropy(x) for x in clouds], truth, 0.4, 1.3)
    fits = np.array([gaussian_entropy(x) for x in clouds])
    assert (fits[:, 0] > truth + 4 * fits[:, 1]).all()


@pytest.mark.parametrize("entropy", [gaussian_entropy, knn_entropy])
def test_entropy_under_linear_maps(entropy: Callable) -> None:
    """H(A x + c) = H(x) + log |det A|, to rounding, and the error stays."""
    x, a = np.random.default_rng(1).standard_normal((60, 3)), shear(3)
    before, after = entropy(x), entropy(x @ a.T - 7)
    assert after.value == pytest.approx(before.value + np.log(np.abs(np.linalg.det(a))), rel=1e-10)
    assert after.error == pytest.approx(before.error, rel=1e-8)


# Energy on the toy model ---------------------------------------------------------------------------


def toy(d: int, data: int, scale: float) -> tuple[Hierarchical, np.ndarray]:
    model = Hierarchical(data=data, latent=d, scale=scale, theta_true=2.0)
    return model, model.data.numpy()


def posterior(y: np.ndarray, theta: float, scale: float) -> tuple[np.ndarray, float]:
    v = 1 / (1 + 1 / scale**2)
    return v * (y + theta / scale**2), v


def log_joint(model: Hierarchical, theta: float, x: np.ndarray) -> np.ndarray:
    return model.log_joint(
        {"theta": torch.tensor(theta, dtype=torch.float64)}, torch.from_numpy(x), model.data
    ).numpy()


@pytest.mark.parametrize("d", [1, 3])
def test_toy_energy_by_quadrature_of_moments(d: int) -> None:
    """E_q[log q - l] of a Gaussian q, each term from its own formula; E* at the posterior and mean y."""
    scale, theta = 1.5, 0.7
    _, y = toy(d, 2, scale)
    rng = np.random.default_rng(d)
    mean, a = rng.standard_normal((2, d)), rng.standard_normal((2, d, d))
    covariance = a @ a.swapaxes(1, 2) + 0.2 * np.eye(d)
    truth = 0.0
    for i in range(2):
        spread = np.trace(covariance[i])
        far = ((y[i] - mean[i]) ** 2).sum() + spread + (((mean[i] - theta) ** 2).sum() + spread) / scale**2
        entropy = multivariate_normal(mean[i], covariance[i]).entropy()
        truth += -entropy + d * log(2 * pi * scale) + far / 2
    assert toy_energy(mean, covariance, theta, y, scale) == pytest.approx(truth, rel=1e-12)

    best, v = posterior(y, y.mean(), scale)
    least = toy_energy(best, np.broadcast_to(v * np.eye(d), (2, d, d)), y.mean(), y, scale)
    marginal = -multivariate_normal(np.full(2 * d, y.mean()), (1 + scale**2) * np.eye(2 * d)).logpdf(
        y.ravel()
    )
    assert least == pytest.approx(marginal, rel=1e-12)
    assert toy_minimum(y, scale) == pytest.approx(marginal, rel=1e-12)


@pytest.mark.parametrize(
    ("d", "n", "knn"), [(1, 100, True), (2, 20, False), (2, 200, True), (10, 40, False), (10, 200, True)]
)
@pytest.mark.parametrize("away", [0.0, 0.5], ids=["posterior", "away"])
def test_energy_of_gaussian_clouds(d: int, n: int, knn: bool, away: float) -> None:
    """E - E* of 20 data at the posterior (0), and with means, theta and spread off it, over 25 draws."""
    scale, data = 1.5, 20
    model, y = toy(d, data, scale)
    rng = np.random.default_rng(n)
    theta, spread = y.mean() + away, 1 + away
    mean, v = posterior(y, y.mean(), scale)
    mean = mean - away
    covariance = np.broadcast_to(v * spread**2 * np.eye(d), (data, d, d))
    truth = toy_energy(mean, covariance, theta, y, scale) - toy_minimum(y, scale)
    assert truth == pytest.approx(0, abs=1e-10) if away == 0 else truth > 5
    by_moments, by_fit, plain, neighbours = [], [], [], []
    for _ in range(25):
        x = mean[:, None] + v**0.5 * spread * rng.standard_normal((data, n, d))
        logs = log_joint(model, theta, x)
        by_moments.append(gaussian_energy(x, theta, y, scale))
        by_fit.append(energy(x, logs))
        plain.append(gaussian_energy(x, theta, y, scale, debiased=False))
        if knn:
            neighbours.append(energy(x, logs, "knn"))
    least = toy_minimum(y, scale)
    # 25 draws: rms 1 +- 0.14. The plain moments' error is mostly their bias, so nearly constant.
    judge([Estimate(v - least, s) for v, s in by_moments], truth, 0.45, 1.55)
    judge([Estimate(v - least, s) for v, s in plain], truth, 0.45, 1.55)
    if knn:
        judge([Estimate(v - least, s) for v, s in neighbours], truth, 0.1, 1.6)
    # The unbiased moments and the mean of log q - l are the same number by two roads.
    for one, other in zip(by_moments, by_fit, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("estimator", ["gaussian", "knn"])
def test_enriched_energy(estimator: str) -> None:
    """F = E* + eta_theta |m|^2 / 2 at the posterior with u ~ N(0, I/eta); N = 400, 20 draws.

    With u of another variance w it is larger by D d (eta w - 1 - log(eta w)) / 2.
    """
    scale, data, n, d, eta = 1.5, 5, 400, 1, 3.0
    model, y = toy(d, data, scale)
    theta, m = float(y.mean()), np.array([2.0])
    mean, v = posterior(y, theta, scale)
    rng = np.random.default_rng(3)
    for w in (1 / eta, 1.0):
        truth = toy_minimum(y, scale) + 0.25 * 4 / 2 + data * d * (eta * w - 1 - log(eta * w)) / 2
        found = []
        for _ in range(20):
            x = mean[:, None] + v**0.5 * rng.standard_normal((data, n, d))
            u = w**0.5 * rng.standard_normal((data, n, d))
            logs = log_joint(model, theta, x)
            found.append(enriched_energy(x, u, logs, m=m, eta_theta=0.25, eta_x=eta, estimator=estimator))
        judge(found, truth, 0.2, 1.6)


# Along a trajectory --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run() -> tuple[xr.Dataset, Hierarchical]:
    model = Hierarchical(data=4, latent=2, scale=1.0, theta_true=3.0)
    motion = {"h": 0.05, "eta": 2.0, "gamma": 1.0}
    system = find("systems", "mpgd")(model, particles=60, theta=motion, x=motion)
    save = Save(every=100, data="all", particles="all")
    return simulate(system, steps=400, replicas=2, save=save, dtype="float64", device="cpu"), model


@pytest.mark.parametrize("estimator", ["gaussian", "knn"])
def test_energy_along_a_trajectory(run: tuple[xr.Dataset, Hierarchical], estimator: str) -> None:
    dataset, model = run
    found = energy_along(dataset, model, estimator)
    assert found.dims == ("time", "replica")
    assert found.attrs["units"] == "nat"
    x = dataset["X"].isel(time=2, replica=1).transpose("datum", "particle", "latent").values
    theta = float(dataset["theta"].isel(time=2, replica=1, param=0))
    expected = energy(x, log_joint(model, theta, x), estimator)
    assert (found.values[2, 1], found["error"].values[2, 1]) == pytest.approx(expected, rel=1e-12)
    # The end is at the minimum up to h and noise, the start far above it: a descent that theory promises.
    least = toy_minimum(model.data.numpy(), 1.0)
    assert (found[0] > least + 10).all()
    assert (np.abs(found[-1] - least) < 4 * found["error"][-1] + 0.5).all()

    lone = energy_along(dataset.isel(replica=0, drop=True), model, estimator)
    assert lone.dims == ("time",)
    np.testing.assert_array_equal(lone, found.isel(replica=0))


def test_enriched_energy_along_a_trajectory(run: tuple[xr.Dataset, Hierarchical]) -> None:
    dataset, model = run
    found = enriched_along(dataset, model, eta_theta=2.0, eta_x=2.0)
    s = {name: dataset[name].isel(time=1, replica=0).values for name in ("X", "U", "theta", "m")}
    logs = log_joint(model, float(s["theta"][0]), s["X"])
    expected = enriched_energy(s["X"], s["U"], logs, m=s["m"], eta_theta=2.0, eta_x=2.0)
    assert found.values[1, 0] == pytest.approx(expected.value, rel=1e-12)


def test_energy_is_nan_where_the_state_is_not_finite(run: tuple[xr.Dataset, Hierarchical]) -> None:
    dataset, model = run
    broken = dataset.copy(deep=True)
    broken["theta"][3, 1] = np.inf
    found = energy_along(broken, model)
    assert np.isnan(found.values[3, 1])
    assert np.isnan(found.values).sum() == 1


def test_what_is_not_saved_is_named(run: tuple[xr.Dataset, Hierarchical]) -> None:
    dataset, model = run
    with pytest.raises(SdeflowError, match=r"all 4 entries of the axis 'datum'.*has 3.*data='all'"):
        energy_along(dataset.isel(datum=[0, 1, 3]), model)
    with pytest.raises(SdeflowError, match="no theta"):
        energy_along(dataset.drop_vars("theta"), model)
    with pytest.raises(SdeflowError, match="no m, U"):
        enriched_along(dataset.drop_vars(["m", "U"]), model, eta_theta=1.0, eta_x=1.0)
    with pytest.raises(SdeflowError, match="axis 'latent'"):
        energy_along(dataset, Hierarchical(data=4, latent=3))


# Evidence ------------------------------------------------------------------------------------------


def judge_evidence(found: list[Evidence], truth: np.ndarray) -> None:
    """Each datum within 4.5 errors, the total within 4, and rms near 1 over 100 or more deviations."""
    z = np.stack([(one.value - truth) / one.error for one in found])
    assert np.abs(z).max() < 4.5
    assert 0.75 < np.sqrt((z**2).mean()) < 1.3
    for one in found:
        assert abs(one.total.value - truth.sum()) < 4 * one.total.error


def marginals(y: np.ndarray, theta: float, scale: float) -> np.ndarray:
    """log N(y_i; theta, 1 + s^2), summed over coordinates."""
    return (-np.log(2 * pi * (1 + scale**2)) / 2 - (y - theta) ** 2 / (2 * (1 + scale**2))).sum(1)


@pytest.mark.parametrize("d", [1, 10])
@pytest.mark.parametrize("method", ["fitted", pytest.param("prior", marks=pytest.mark.slow), "importance"])
def test_evidence_on_the_toy_model(d: int, method: str) -> None:
    """20 data, 5 seeds, references fitted to 200 particles of the posterior or N(0, I)."""
    scale, theta, data = 1.5, 1.3, 20
    model, y = toy(d, data, scale)
    named = {"theta": torch.tensor(theta, dtype=torch.float64)}
    mean, v = posterior(y, theta, scale)
    rng = np.random.default_rng(d)
    x = mean[:, None] + v**0.5 * rng.standard_normal((data, 200, d))
    if method == "importance":
        found = [importance(model, named, fitted(x), samples=2000, seed=s) for s in range(5)]
    elif method == "fitted":
        found = [annealed(model, named, fitted(x), chains=48, temperatures=30, seed=s) for s in range(5)]
    else:
        kind = {"chains": 64, "temperatures": 100 if d == 1 else 300, "power": 3.0}
        found = [annealed(model, named, standard(data, d), seed=s, **kind) for s in range(5)]
    judge_evidence(found, marginals(y, theta, scale))
    assert (
        np.mean([one.error for one in found])
        < {"fitted": 0.015, "importance": 0.01, "prior": 0.09}[method] * d
    )
    assert min(one.ess.min() for one in found) > 10


class Counts(sdeflow.Model):
    """x_i ~ N(mean, 1), y_i ~ Poisson(exp x_i): no closed form, and no analytic score."""

    latent_shape = (1,)

    def __init__(self) -> None:
        self.data = torch.tensor([[0.0], [1.0], [4.0], [30.0]])

    def init_theta(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"mean": torch.zeros(())}

    def log_joint(self, theta: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        y = y[:, None]
        prior = -((x - theta["mean"]) ** 2) / 2 - log(2 * pi) / 2
        return (prior + y * x - x.exp() - torch.lgamma(y + 1)).sum(-1)


def test_evidence_of_counts_by_quadrature() -> None:
    """A skewed posterior, by autograd, from a reference a standard deviation off; one datum alone too."""
    mean, model = 0.5, Counts()

    def density(x: float, y: float) -> float:
        return np.exp(-((x - mean) ** 2) / 2 + y * x - np.exp(x) - lgamma(y + 1)) / np.sqrt(2 * pi)

    truth = np.array(
        [np.log(quad(density, -8, 6, (y,), points=[0, 3], epsabs=1e-14)[0]) for y in (0, 1, 4, 30)]
    )
    centre = torch.log(model.data.double() + 1)
    reference = Gaussian(centre, torch.full((4, 1, 1), 0.7, dtype=torch.float64))
    named = {"mean": torch.tensor(mean, dtype=torch.float64)}
    judge_evidence([annealed(model, named, reference, seed=s) for s in range(25)], truth)
    alone = Gaussian(centre[2:3], reference.factor[2:3])
    one = annealed(model, named, alone, data=[2], seed=1)
    assert abs(one.value[0] - truth[2]) < 4 * one.error[0]
    assert annealed(model, named, alone, data=[2], seed=1).value == one.value


def test_weights_are_exact_where_the_reference_is_the_posterior() -> None:
    """All weights equal the evidence: no error, a full sample, whatever the path."""
    model, y = toy(2, 3, 1.5)
    mean, v = posterior(y, 1.0, 1.5)
    reference = Gaussian(
        torch.from_numpy(mean), (v**0.5 * torch.eye(2, dtype=torch.float64)).expand(3, -1, -1)
    )
    named = {"theta": torch.tensor(1.0)}
    for found, size in (
        (importance(model, named, reference, samples=10), 10),
        (annealed(model, named, reference, chains=8), 8),
    ):
        assert found.value == pytest.approx(marginals(y, 1.0, 1.5), rel=1e-12)
        assert found.error == pytest.approx(0, abs=1e-12)
        assert found.ess == pytest.approx(size, rel=1e-9)


def test_importance_is_a_bound_from_below_in_expectation() -> None:
    """Few samples from a wide proposal: the mean over 400 seeds is below the truth, by more with fewer."""
    model, y = toy(1, 1, 1.5)
    named, truth = {"theta": torch.tensor(1.0)}, marginals(y, 1.0, 1.5)[0]
    few, more = (
        np.array([importance(model, named, standard(1, 1), samples=k, seed=s).value[0] for s in range(400)])
        for k in (4, 64)
    )
    assert few.mean() + 4 * few.std() / 20 < truth
    assert few.mean() < more.mean() < truth + 4 * more.std() / 20


def test_fitted_references() -> None:
    """Moments and widening; a pooled covariance is the average of the data's own."""
    x = np.random.default_rng(5).standard_normal((3, 6, 2)) * [1, 3]
    own = fitted(x, widen=2.0)
    covariances = np.stack([np.cov(cloud.T) for cloud in x])
    np.testing.assert_allclose(own.factor @ own.factor.mT, 4 * covariances, rtol=1e-12)
    np.testing.assert_allclose(own.mean, x.mean(1), rtol=1e-12)
    pooled = fitted(x, widen=1.0, pooled=True)
    for factor in pooled.factor.numpy():
        np.testing.assert_allclose(factor @ factor.T, covariances.mean(0), rtol=1e-12)


# Refusals ------------------------------------------------------------------------------------------

SMALL = Hierarchical(data=2)
THETA = {"theta": torch.tensor(0.0)}
GOOD = standard(2, 1)


class Broken(Hierarchical):
    """A log-joint that is not a number anywhere."""

    def log_joint(self, theta: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return super().log_joint(theta, x, y) * torch.nan


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: gaussian_entropy(np.eye(3)), "at least 5 points, given 3"),
        (lambda: gaussian_entropy(np.repeat(np.arange(9.0)[:, None], 2, 1)), "lies in a plane"),
        (lambda: gaussian_entropy(np.zeros((3, 4, 5))), "shape"),
        (lambda: knn_entropy(np.arange(39.0)), "= 40 points, given 39"),
        (lambda: knn_entropy(np.random.default_rng(0).random((99, 10))), "= 100 points, given 99"),
        (lambda: knn_entropy(np.arange(99.0), k=0), "k >= 1"),
        (lambda: knn_entropy(np.append(np.arange(60.0), 7.0)), "1 of 61 points are exact copies"),
        (lambda: knn_entropy(np.append(np.arange(60.0), np.nan)), "must be finite, 1 of 61"),
        (lambda: energy(np.zeros((2, 5, 1)), np.zeros((2, 4))), "one log-joint a particle"),
        (lambda: energy(np.ones((2, 5, 1)), np.full((2, 5), np.inf)), "log-joint must be finite"),
        (lambda: energy(np.ones((2, 5, 1)), np.zeros((2, 5)), "kn"), "did you mean 'knn'"),
        (lambda: gaussian_energy(np.zeros((2, 5, 1)), 0.0, np.zeros(2), 1.0), "y \\[data, coordinates\\]"),
        (
            lambda: enriched_energy(np.eye(3), np.eye(3), np.eye(3), m=0, eta_theta=1, eta_x=1),
            "shape of the clouds",
        ),
        (lambda: fitted(np.zeros((2, 3))), "particles, coordinates"),
        (lambda: fitted(np.zeros((2, 2, 1))), "at least 3 points"),
        (lambda: annealed(SMALL, THETA, GOOD, chains=1), "chains must be a whole number of at least 2"),
        (lambda: annealed(SMALL, THETA, GOOD, power=0), "power must be positive"),
        (lambda: annealed(SMALL, THETA, standard(3, 1)), "data, coordinates"),
        (lambda: annealed(SMALL, torch.zeros(1), GOOD), "mapping from names"),
        (lambda: importance(SMALL, THETA, GOOD, data=[0]), "expected shape \\(1, 1\\)"),
        (lambda: importance(Broken(data=2), THETA, GOOD), "log weight of datum 0 is nan"),
    ],
)
def test_refusals(call: Callable, sentence: str) -> None:
    with pytest.raises(SdeflowError, match=sentence):
        call()

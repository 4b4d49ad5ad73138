"""Paths between laws on which all is known: diffusions, interpolants, PFGM++.

Oracles: autograd of the log-density by torch.distributions, and the equation of continuity; quantiles, which
an exact flow in one dimension keeps; the map of one Gaussian; Student t laws; numbers computed independently.
float64. Errors of schemes are by a Runge-Kutta scheme of order 4 written here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch
from support import SE, Matrix, exponent
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from sdeflow import SDESystem, simulate
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.errors import SdeflowError
from sdeflow.integrators.ghvb import GHVB
from sdeflow.options import Save
from sdeflow.problems.diffusion import Diffusion
from sdeflow.problems.interpolant import Interpolant
from sdeflow.problems.mixture_path import MixturePath
from sdeflow.problems.pfgmpp import PFGMpp
from sdeflow.simulation.solve import solve

QUANTILES = np.linspace(0.01, 0.99, 50)
WEIGHTS, MEANS, SCALE = [0.3, 0.7], [-2.0, 1.0], 0.5


def on_a_line(**numbers: Any) -> Diffusion:
    return Diffusion([[m] for m in MEANS], SCALE, WEIGHTS, **numbers)


def between(**numbers: Any) -> Interpolant:
    """From two components to two, on a line; the end has the mean 3.25 and the variance 2.0125."""
    return Interpolant(
        [[2.0], [4.5]], [0.3, 0.9], [0.5, 0.5], [[-1.0], [0.5]], [0.6, 0.4], [0.4, 0.6], **numbers
    )


def in_the_plane(kind: str) -> MixturePath:
    means = [[1.0, 0.5], [-0.5, 1.2], [0.3, -1.0]]
    if kind == "diffusion":
        return Diffusion(means, [0.3, 0.6, 0.4], [0.2, 0.5, 0.3], sigma_max=3.0, sigma_min=0.1)
    noise, path = (0.0, "cosine") if kind == "cosine" else (1.7, "linear")
    ends = [[0.0, 0.4], [-1.0, 0.2]]
    return Interpolant(means, [0.3, 0.6, 0.4], [0.2, 0.5, 0.3], ends, 0.8, noise=noise, path=path)  # type: ignore[arg-type]


def density(path: MixturePath, t: float) -> MixtureSameFamily:
    means, _, variances, _ = path.law(t)
    scales = variances.sqrt()[:, None].expand_as(means)
    return MixtureSameFamily(Categorical(logits=path.log_weights), Independent(Normal(means, scales), 1))


def cdf(path: MixturePath, t: float) -> Callable[[Any], Any]:
    means, _, variances, _ = path.law(t)
    parts = zip(path.log_weights.exp().tolist(), means[:, 0].tolist(), variances.sqrt().tolist(), strict=True)
    kept = list(parts)
    return lambda x: sum(w * scipy.stats.norm.cdf(x, m, s) for w, m, s in kept)


def quantiles(law: Callable[[Any], Any], at: Matrix = QUANTILES, reach: float = 1e3) -> Matrix:
    """The inverse of a distribution function, to 1e-13."""

    def found(q: float) -> float:
        return float(scipy.optimize.brentq(lambda x: law(x) - q, -reach, reach, xtol=1e-13))

    return np.array([found(q) for q in at])


def runge_kutta(drift: Callable[[float, Tensor], Tensor], x: Tensor, steps: int, time: float) -> Tensor:
    h = time / steps
    for n in range(steps):
        t = n * h
        a = drift(t, x)
        b = drift(t + h / 2, x + h / 2 * a)
        c = drift(t + h / 2, x + h / 2 * b)
        x = x + h / 6 * (a + 2 * b + 2 * c + drift(t + h, x + h * c))
    return x


def off(path: MixturePath, steps: int) -> float:
    """How far quantiles are from the end's that were carried along the flow from the start's."""
    x = torch.tensor(quantiles(cdf(path, 0.0)))[:, None]
    x = runge_kutta(path.drift, x, steps, 1.0)
    return float(np.abs(x[:, 0].numpy() - quantiles(cdf(path, 1.0))).max())


# Velocity and score ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["diffusion", "linear", "cosine"])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_score_and_velocity(kind: str, t: float) -> None:
    """s = grad log p by autograd; (d/dt) log p + div u + u.s = 0, by autograd and differences in t.

    Of steps of 1e-4 the difference is right to 1e-5.
    """
    path, g = in_the_plane(kind), torch.Generator().manual_seed(0)
    x = (2 * torch.randn(40, 2, generator=g, dtype=torch.float64)).requires_grad_()
    log_p = density(path, t).log_prob(x)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    torch.testing.assert_close(path.score(t, x), score, rtol=1e-10, atol=1e-10)
    u = path.velocity(t, x)
    divergence = sum(torch.autograd.grad(u[:, i].sum(), x, retain_graph=True)[0][:, i] for i in (0, 1))
    after, before = (density(path, t + dt).log_prob(x) for dt in (1e-4, -1e-4))
    change = (after - before) / 2e-4
    terms = torch.stack([change, divergence, (u * score).sum(-1)]).detach()
    assert float(terms.sum(0).abs().max() / terms.abs().max()) < 1e-5


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_velocity_and_score_are_conditional_means(kind: str) -> None:
    """E[(x' - u) phi(x)] = 0 and E[(z + g s) phi(x)] = 0 for x_t = a x_0 + b x_1 + g z, within 4.5 errors.

    An error of 0.05 is seen.
    """
    path, t, n = in_the_plane(kind), 0.3, 50_000
    assert isinstance(path, Interpolant)
    g = torch.Generator().manual_seed(3)
    k = torch.multinomial(path.log_weights.exp(), n, replacement=True, generator=g)
    xi = torch.randn(3, n, 2, generator=g, dtype=torch.float64)
    x0, x1 = (
        m[k] + c[k, None].sqrt() * e for (m, c), e in zip((path.starts, path.ends), xi[:2], strict=True)
    )
    a, b, da, db = (0.7, 0.3, -1.0, 1.0)
    if kind == "cosine":
        angle = np.pi * t / 2
        a, b = np.cos(angle), np.sin(angle)
        da, db = -np.pi / 2 * b, np.pi / 2 * a
    root = sqrt(path.noise * t * (1 - t))
    slope = path.noise * (1 - 2 * t) / (2 * root) if root else 0.0
    x = a * x0 + b * x1 + root * xi[2]
    ways = da * x0 + db * x1 + slope * xi[2]
    of_way = ways - path.velocity(t, x)
    of_noise = [xi[2] + root * path.score(t, x)] if root else []
    tries = torch.stack([x[:, 0] * 0 + 1, x[:, 0], torch.sin(2 * x[:, 1]), x.square().sum(-1)])

    def furthest(rest: Tensor) -> float:
        """From 0, of the means, in standard errors."""
        value = tries[..., None] * rest
        return float((value.mean(1) / (value.std(1) / sqrt(n))).abs().max())

    assert max(map(furthest, [of_way, *of_noise])) < SE
    assert furthest(of_way - 0.05) > SE


def test_karras_grid() -> None:
    """sigma at equal steps is the published formula, and beta is -d(sigma^2)/dt."""
    path = on_a_line(sigma_max=80.0)
    i, n = np.arange(19), 18
    published = (80 ** (1 / 7) + i / n * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose([path.sigma(t) for t in i / n], published, rtol=1e-12)
    slope = (path.sigma(0.3 - 1e-5) ** 2 - path.sigma(0.3 + 1e-5) ** 2) / 2e-5
    assert path.beta(0.3) == pytest.approx(slope, rel=1e-8)


# Flows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "expected"), [(20, 2.8e-4), (40, 2.0e-5), (80, 1.3e-6)])
def test_quantiles_along_the_flow_of_a_diffusion(steps: int, expected: float) -> None:
    """By Runge-Kutta as far from the end's as was computed independently, to the digits given."""
    assert off(on_a_line(), steps) == pytest.approx(expected, rel=0.02)


def test_quantiles_along_the_flow_of_an_interpolant() -> None:
    """They tend to the end's at the scheme's order, 4."""
    errors = [off(between(), steps) for steps in (40, 80, 160)]
    assert errors[0] < 1e-4
    assert exponent(errors) == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize(
    ("order", "beta", "expected"),
    [
        (2, 1.0, [1.2, 0.33, 0.055, 0.013]),
        (2, 0.8, [1.3, 0.56, 0.073, 0.017]),
        (2, 0.5, [1.9, 0.92, 0.14, 0.029]),
        (3, 1.0, [0.32, 0.042, 0.0050, 0.00057]),
        (3, 0.8, [0.43, 0.053, 0.0065, 0.00074]),
        (4, 1.0, [0.090, 0.0073, 0.00054, 0.000072]),
        (4, 0.8, [0.10, 0.0093, 0.00055, 0.000083]),
    ],
)
def test_what_momentum_costs_on_a_diffusion(order: int, beta: float, expected: list[float]) -> None:
    """The table of integrators/README.md: errors of quantiles in 10, 20, 40 and 80 steps."""
    path, errors = on_a_line(), []
    x, scheme = torch.tensor(quantiles(cdf(path, 0.0)))[None, :, None], GHVB(order, beta)
    for steps in (10, 20, 40, 80):
        system = SDESystem(path, h=1 / steps, paths=len(QUANTILES))
        z = {"X": x} | scheme.init(system, {"X": x})
        z = advance(EagerSteps(system, scheme, lambda n: ({},)), z, 0, steps)
        errors.append(np.abs(z["X"][0, :, 0].numpy() - quantiles(cdf(path, 1.0))).max())
    assert errors == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ghvb_takes_the_flow_of_one_gaussian(order: int) -> None:
    """x(t) = mu + (x(0) - mu) sqrt((s^2 + sigma(t)^2)/(s^2 + sigma_max^2)), an affine map, at order r."""
    errors, mu, s = [], 0.7, 0.5
    for n in (320, 640, 1280):
        path = Diffusion([[mu]], s, sigma_max=10.0, sigma_min=0.01)
        scheme = {"name": "ghvb", "order": order, "beta": 0.8}
        system = SDESystem(path, paths=1, start=[3.0])
        run = simulate(system, scheme, steps=n, dtype="float64", save=Save(every=n))
        exact = mu + (3.0 - mu) * sqrt((s**2 + 0.01**2) / (s**2 + 100.0))
        errors.append(abs(run.X[-1].item() - exact))
    assert exponent(errors) == pytest.approx(order, abs=0.1)


# Noise on the way ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [on_a_line(kappa=1.0, sigma_max=5.0, sigma_min=0.02), between(epsilon=0.5), between(epsilon=2.0)],
    ids=["kappa 1", "epsilon 0.5", "epsilon 2"],
)
def test_marginals_for_every_noise(path: MixturePath) -> None:
    """Half way and at the end, of 20,000 paths in 300 steps of Euler-Maruyama: mean and variance within 4.5
    standard errors and the bias of the scheme, Kolmogorov's distance within its 99.9% point, 1.95/sqrt(n).
    """
    n, steps = 20_000, 300
    run = simulate(
        SDESystem(path, paths=n),
        "euler_maruyama",
        steps=steps,
        dtype="float64",
        save=Save(every=steps // 2, particles="all"),
    )
    for i, t in ((1, 0.5), (2, 1.0)):
        x, law = run.X[i].values[:, 0], density(path, t)
        mean, variance = float(law.mean), float(law.variance)
        fourth = float(np.mean((x - x.mean()) ** 4))
        assert abs(x.mean() - mean) < SE * sqrt(variance / n)
        assert abs(x.var() - variance) < SE * sqrt((fourth - variance**2) / n) + 0.01 * variance
        assert scipy.stats.kstest(x, cdf(path, t)).statistic < 1.95 / sqrt(n)


def test_the_end_has_the_moments_of_its_mixture() -> None:
    law = density(between(), 1.0)
    assert (float(law.mean), float(law.variance)) == pytest.approx((3.25, 2.0125))


@pytest.mark.parametrize("path", [on_a_line(), between(), PFGMpp([[-2.0], [1.0]], [0.3, 0.7], 3)])
def test_the_start_has_its_law(path: Any) -> None:
    x = path.start(torch.Generator().manual_seed(1), 20_000)[:, 0].numpy()
    law = student(path, 0.0) if isinstance(path, PFGMpp) else cdf(path, 0.0)
    assert scipy.stats.kstest(x, law).statistic < 1.95 / sqrt(len(x))


# PFGM++ ----------------------------------------------------------------------------------------------


def student(path: PFGMpp, t: float) -> Callable[[Any], Any]:
    """The distribution function at time t, on a line."""
    parts = list(zip(path.log_weights.exp().tolist(), path.points[:, 0].tolist(), strict=True))
    scale, freedom = path.sigma(t), path.dimensions
    return lambda x: sum(w * scipy.stats.t.cdf(x, freedom, m, scale) for w, m in parts)


@pytest.mark.parametrize(("dimensions", "within"), [(1, 2e-9), (128, 2.4e-10)])
def test_quantiles_along_the_flow_of_pfgmpp(dimensions: int, within: float) -> None:
    """Of mixtures of Student t, against the flow solved to 1e-12."""
    path = PFGMpp([[-2.0], [1.0]], WEIGHTS, dimensions, sigma_max=10.0, sigma_min=0.5)
    first, last = (quantiles(student(path, t), reach=1e6) for t in (0.0, path.final_time))

    def right(t: float, x: Matrix) -> Matrix:
        return path.drift(t, torch.tensor(x)[:, None])[:, 0].numpy()

    found = scipy.integrate.solve_ivp(right, (0, path.final_time), first, "DOP853", rtol=1e-12, atol=1e-12)
    assert np.abs(found.y[:, -1] - last).max() < within


def test_pfgmpp_tends_to_the_diffusion() -> None:
    """sqrt(D) times dx/dr is EDM's dx/dsigma, to 1/D: what is left besides the term of 1/D is of 1/D^2.

    By an expansion of the logarithm of the weights, -g^2/(2 sigma^2) - (N g^2/2 sigma^2 - g^4/4 sigma^4)/D.
    """
    points, sigma = [[-2.0, 0.3], [1.0, -0.5], [0.2, 1.0]], 0.8
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edm = Diffusion(points, 1e-9, sigma_max=1.0, sigma_min=sigma)
    limit = edm.drift(1.0, x) / (edm.beta(1.0) / (2 * sigma))  # -dx/dsigma
    gap = x[:, None] - torch.tensor(points, dtype=torch.float64)
    g2 = gap.square().sum(-1) / sigma**2
    q = (-g2 / 2).softmax(-1)
    change = g2.square() / 4 - g2  # N = 2
    first = (q * (change - (q * change).sum(-1, keepdim=True)))[..., None] * gap
    gaps, left = [], []
    for dimensions in (128, 512, 2048):
        field = PFGMpp(points, None, dimensions, sigma_max=sigma, sigma_min=sigma / 2).drift(0.0, x) / sigma
        gaps.append(float((field - limit).abs().max()))
        left.append(float((field - limit + first.sum(-2) / sigma / dimensions).abs().max()))
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.05)
    assert left[1] / left[2] == pytest.approx(16, rel=0.1)
    assert left[2] < 0.01 * gaps[2]


# As problems -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "variant"),
    [
        ("diffusion", None),
        ("diffusion", "sde"),
        ("interpolant", None),
        ("interpolant", "sde"),
        ("pfgmpp", None),
    ],
)
def test_a_packaged_run_ends_in_its_law(problem: str, variant: str | None) -> None:
    """The share of paths nearest to each component is its weight, their mean is its, within 4.5 errors."""
    run = build(load_config(problem_file(problem), variant=variant))
    solution = solve(run)
    x = torch.tensor(solution.dataset["X"][-1].values)
    path = run.system.definition
    if isinstance(path, PFGMpp):
        means, weights = path.points, path.log_weights.exp()
    else:
        means, weights = path.law(1.0)[0], path.log_weights.exp()
    means, which = means.unique(dim=0, return_inverse=True)
    weights = torch.zeros(len(means), dtype=torch.float64).index_add(0, which, weights)
    nearest = torch.cdist(x, means).argmin(1)
    for k, w in enumerate(weights.tolist()):
        own = x[nearest == k]
        assert abs(len(own) / len(x) - w) < SE * sqrt(w * (1 - w) / len(x))
        assert float(((own.mean(0) - means[k]) / (own.std(0) / sqrt(len(own)))).abs().max()) < SE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Diffusion([[0.0]], kappa=-1.0), "kappa must not be negative"),
        (
            lambda: Diffusion([[0.0]], sigma_min=2.0, sigma_max=1.0),
            "sigma_min must be positive and below sigma_max",
        ),
        (lambda: Diffusion([], 0.1), "means must be points of the same dimension"),
        (lambda: Diffusion([[0.0], [0.0, 1.0]]), "means must be points of the same dimension"),
        (lambda: Diffusion([[0.0]], [0.1, 0.2]), "scales must be positive, one number or 1"),
        (lambda: Diffusion([[0.0]], 0.1, [0.0]), "weights must be 1 positive numbers"),
        (lambda: Interpolant([[0.0]], epsilon=-1.0), "epsilon must not be negative"),
        (lambda: Interpolant([[0.0]], path="straight"), "path must be 'linear' or 'cosine'"),  # type: ignore[arg-type]
        (lambda: Interpolant([[0.0]], start_means=[[0.0, 0.0]]), "both ends must be of one dimension"),
        (lambda: PFGMpp([[0.0]], dimensions=0), "dimensions must be at least 1"),
    ],
)
def test_what_is_no_path_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SdeflowError, match=message):
        make()


def test_a_flow_is_refused_by_nothing_and_a_noisy_path_by_ghvb() -> None:
    assert simulate(SDESystem(on_a_line(), paths=2), "torchsde:heun", steps=3).attrs["retcode"] == "success"
    with pytest.raises(SdeflowError, match="it is for systems without noise, and noise enters X"):
        simulate(SDESystem(on_a_line(kappa=0.5)), "ghvb", steps=3)
    assert SDESystem(PFGMpp([[0.0]])).final_time == pytest.approx(log(5000))

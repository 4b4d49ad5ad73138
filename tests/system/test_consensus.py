"""Consensus-based optimisation.

Oracles: the recursion of the second moments with alpha = 0, in closed form; the consensus of a Gaussian cloud
on a quadratic, an implicit gradient step; moment matrices from the SDE's own matrices; MLEs in closed form.
Samples are compared within SE standard errors of their own.
"""

from __future__ import annotations

from math import nan, pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import command
from support import SE
from torch import Tensor

import sdeflow
from sdeflow import Save, SDESystem, cbo, consensus_hopping, kinetic_cbo, mpgd, pgd, simulate
from sdeflow.config.catalogue import integrator_named
from sdeflow.errors import SdeflowError, StabilityWarning
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.landscape import Rastrigin
from sdeflow.problems.linear_energy import LinearEnergy
from sdeflow.problems.ppca import PPCA
from sdeflow.system.consensus import CBO, KineticCBO

EULER = integrator_named("euler_maruyama")


def bowl(x: Tensor) -> Tensor:
    return x.square().sum(-1) / 2


def stepped(system: SDESystem, z: dict[str, Tensor], steps: int, seed: int = 0) -> dict[str, Tensor]:
    """Euler-Maruyama from a state, with normals of torch's."""
    g, h = torch.Generator().manual_seed(seed), system.h
    for n in range(steps):
        noise = {
            c.variable: {"W": sqrt(h) * torch.randn(z["X"].shape, generator=g, dtype=torch.float64)}
            for c in system.channels
        }
        z = EULER.step(system, n * h, z, h, (noise,))
    return z


def end(system: Any, steps: int = 400, replicas: int = 1, **options: Any) -> Any:
    save = Save(every=steps, particles="all")
    return simulate(system, steps=steps, replicas=replicas, dtype="float64", save=save, **options)


# The cloud without a function -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "spread", "shift"), [("anisotropic", 0.176376, 0.035680), ("isotropic", 0.240875, None)]
)
def test_moments_follow_their_recursion(noise: Any, spread: float, shift: float | None) -> None:
    """With alpha = 0, d' = 1 or d, and V the mean square distance from the mean, at first 1,

        E V_{n+1} = E V_n ((1 - lambda h)^2 + sigma^2 h (1 - 1/N) d')
        E|mean_n - mean_0|^2 = sigma^2 h d'/N sum_k E V_k

    over 20 steps of 5 points in the plane, of 40,000 clouds.
    """
    system = cbo(bowl, dimension=2, particles=5, sigma=0.6, noise=noise, alpha=0.0)
    angle = 2 * pi * torch.arange(5, dtype=torch.float64) / 5
    start = torch.stack([angle.cos(), angle.sin()], -1).expand(40_000, 5, 2)
    x = stepped(system, {"X": start}, 20)["X"]
    middle = x.mean(1, keepdim=True)
    many = 1 if noise == "anisotropic" else 2
    factor = 0.95**2 + 0.36 * 0.05 * 0.8 * many
    assert factor**20 == pytest.approx(spread, abs=1e-6)
    for found, expected in (
        ((x - middle).square().sum(-1).mean(1), spread),
        (middle.square().sum((1, 2)), 0.36 * 0.05 * many / 5 * (1 - factor**20) / (1 - factor)),
    ):
        assert abs(float(found.mean()) - expected) < SE * float(found.std()) / 200
    if shift is not None:
        assert 0.36 * 0.05 / 5 * (1 - factor**20) / (1 - factor) == pytest.approx(shift, abs=1e-6)


def moments(drift: Any, noise: Any, h: float) -> float:
    """The spectral radius of E M (x) M, by which second moments go over a step M = I + h A + sqrt(h) B xi."""
    step = np.eye(len(drift)) + h * np.asarray(drift)
    return float(np.abs(np.linalg.eigvals(np.kron(step, step) + h * np.kron(noise, noise))).max())


@pytest.mark.parametrize("h", [1e-3, 0.05, 0.3])
def test_the_factor_of_a_step_is_that_of_its_moment_matrix(h: float) -> None:
    """Of a coordinate with noise of its own; isotropic noise is as d coordinates' where all are alike."""
    g = np.random.default_rng(0)
    for _ in range(5):
        eta, gamma, pull, sigma = g.uniform(0.3, 2, 4)
        own = {"pull": pull, "sigma": sigma, "alpha": 0.0, "noise": "anisotropic", "dimension": 3}
        assert CBO(bowl, **own).contraction(h) == pytest.approx(moments([[-pull]], [[sigma]], h), rel=1e-12)
        kinetic = KineticCBO(bowl, eta=eta, gamma=gamma, **own)
        drift, noise = [[0, eta], [-pull, -gamma * eta]], [[0, 0], [sigma, 0]]
        assert kinetic.contraction(h) == pytest.approx(moments(drift, noise, h), rel=1e-9)
        loud = CBO(bowl, **own | {"noise": "isotropic"})
        assert loud.contraction(h) == pytest.approx(moments([[-pull]], [[sigma * sqrt(3)]], h), rel=1e-12)


@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_where_the_cloud_contracts(noise: Any) -> None:
    """For short steps where sigma^2 d' < 2 lambda, with a momentum where it is < 2 gamma lambda."""
    g = np.random.default_rng(1)
    for _ in range(5):
        eta, gamma, pull = g.uniform(0.3, 2, 3)
        for share, contracts in ((0.95, True), (1.05, False)):
            many = 4 if noise == "isotropic" else 1
            own = {"pull": pull, "alpha": 0.0, "noise": noise, "dimension": 4}
            plain = CBO(bowl, sigma=sqrt(share * 2 * pull / many), **own)
            assert (plain.contraction(1e-4) < 1) is contracts
            sigma = sqrt(share * 2 * gamma * pull / many)
            kinetic = KineticCBO(bowl, eta=eta, gamma=gamma, sigma=sigma, **own)
            assert (kinetic.contraction(1e-4) < 1) is contracts


def test_a_cloud_that_spreads_is_warned_of() -> None:
    with pytest.warns(StabilityWarning, match=r"mean square spread by 1\.05.*lower sigma or h"):
        cbo(bowl, dimension=2, sigma=1.74)
    with pytest.warns(StabilityWarning, match="may not contract"):
        kinetic_cbo(bowl, dimension=2, gamma=0.4)


# The consensus ----------------------------------------------------------------------------------------


def test_the_consensus_of_a_gaussian_cloud_on_a_quadratic() -> None:
    """c = m/(1 + alpha a V) for f = a x^2/2 and N(m, V): 1/4 here, of a million points."""
    x = 1 + sqrt(0.5) * torch.randn(
        1, 1_000_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    sde = cbo(lambda x: 1.5 * bowl(x), dimension=1, alpha=4.0).sde
    c, w = sde.consensus(x), (-4 * 1.5 * bowl(x)).exp()[..., None]
    error = float((w * (x - c)).square().sum().sqrt() / w.sum())
    assert abs(float(c) - 0.25) < SE * error
    assert error < 1e-3


def test_consensus_hopping_is_an_implicit_gradient_step_on_a_quadratic() -> None:
    """c = (I + alpha radius^2 A)^-1 m of points about m: two hops without the noise of the last."""
    a = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    alpha, radius, many = 4.0, 0.4, 400_000
    system = consensus_hopping(
        lambda x: ((x @ a) * x).sum(-1) / 2, dimension=2, particles=many, radius=radius, alpha=alpha
    )
    m = torch.tensor([1.0, -2.0], dtype=torch.float64)
    xi = torch.randn(1, many, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = m + radius * xi
    hop = EULER.step(system, 0.0, {"X": x}, 1.0, ({"X": {"W": 0 * x}},))["X"]
    expected = torch.linalg.solve(torch.eye(2, dtype=torch.float64) + alpha * radius**2 * a, m)
    w = (-alpha * (system.sde.value(x) - system.sde.value(x).min())).exp()[..., None]
    error = (w * (x - hop[:, :1])).square().sum(1).sqrt() / w.sum(1)
    assert (hop - hop[:, :1]).abs().max() < 1e-12  # the points come together
    assert ((hop[0, 0] - expected).abs() < SE * error[0]).all()
    assert error.max() < 0.01


def steps_of_a_grid(x: Tensor) -> Tensor:
    """Values that have few digits, so that sums with them are exact."""
    return (bowl(x) * 2**10).round() / 2**10


@pytest.mark.parametrize("declared", [cbo, kinetic_cbo, consensus_hopping])
def test_a_constant_beside_f_changes_no_bit(declared: Any) -> None:
    runs = [
        end(declared(lambda x, c=c: steps_of_a_grid(x) + c, dimension=2, particles=20), steps=50)
        for c in (0.0, 2.0**30)
    ]
    np.testing.assert_array_equal(runs[0].X, runs[1].X)
    assert float(runs[0].least_f[-1]) < float(runs[0].least_f[0])


def test_a_large_alpha_takes_the_best_point_and_none_overflows() -> None:
    x = torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for scale in (1.0, 1e300):
        sde = cbo(lambda x, scale=scale: scale * bowl(x) - 1e6, dimension=2, alpha=1e8).sde
        best = x.gather(1, bowl(x).argmin(1)[:, None, None].expand(-1, 1, 2))
        torch.testing.assert_close(sde.consensus(x), best, rtol=0, atol=0)
    mean = cbo(bowl, dimension=2, alpha=0.0).sde.consensus(x)
    torch.testing.assert_close(mean, x.mean(1, keepdim=True), rtol=1e-14, atol=1e-15)


def test_points_without_a_number_do_not_count() -> None:
    x = torch.tensor([[[0.0], [1.0], [-1.0], [2.0]]], dtype=torch.float64)
    found = cbo(lambda x: x.log()[..., 0], dimension=1, alpha=1e3).sde.consensus(x[:, 1:])
    assert float(found) == 1.0


def test_a_step_takes_one_value_a_point() -> None:
    """Drift and diffusion ask for the same consensus; other points have another."""
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return bowl(x)

    system = cbo(f, dimension=2, particles=7)
    x = system.start(0)["X"][None]
    stepped(system, {"X": x}, 3)
    assert seen == [(1, 7, 2)] * 3
    assert not torch.equal(system.sde.consensus(x), system.sde.consensus(x + 1))


def test_points_start_in_the_box() -> None:
    x = cbo(bowl, dimension=2, particles=2000, low=[-1.0, 2.0], high=[0.0, 6.0]).start(3)["X"]
    low, high = torch.tensor([-1.0, 2.0]), torch.tensor([0.0, 6.0])
    assert ((x >= low) & (x <= high)).all()
    assert ((x.mean(0) - (low + high) / 2).abs() < SE * (high - low) / sqrt(12 * 2000)).all()
    still = kinetic_cbo(bowl, dimension=2, particles=5).start(3)
    assert (still["U"] == 0).all()


# What they find ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("declared", "least"), [(cbo, 19), (kinetic_cbo, 19)])
def test_rastrigin_in_the_plane(declared: Any, least: int) -> None:
    """All of 20 seeds find the least minimum (the next has f = 1); one may miss it."""
    run = end(declared(Rastrigin()), replicas=20)
    assert int((run.consensus_f[-1] < 0.5).sum()) >= least


def test_rastrigin_in_ten_dimensions_is_beyond_a_hundred_points() -> None:
    """As the docstring says: the cloud has come to rest, and in 2 of 20 runs at most at the minimum."""
    run = end(cbo(Rastrigin(10)), replicas=20)
    assert int((run.consensus_f[-1] < 0.5).sum()) <= 2
    assert float(run.spread[-1].max()) < 1e-3


def test_the_gradient_stops_at_the_nearest_minimum() -> None:
    """pgd of the same model, each of whose minima solves x + 10 pi sin 2 pi x = 0."""
    run = simulate(
        pgd(Rastrigin(1), particles=2, theta={"h": 1e-3}, x={"h": 0.1}),
        steps=60,
        replicas=5,
        dtype="float64",
    )
    x = run.theta[-1].values
    np.testing.assert_allclose(x + 10 * pi * np.sin(2 * pi * x), 0, atol=1e-9)
    assert (abs(x) > 0.5).any()
    np.testing.assert_allclose(run.f[-1], x[:, 0] ** 2 + 10 - 10 * np.cos(2 * pi * x[:, 0]), rtol=1e-12)


def test_the_mle_of_the_toy_model() -> None:
    """The mean of the data, within the distance at which the likelihood is 0.01 nats below its maximum."""
    model = Hierarchical(theta_true=100.0)
    run = end(cbo(model, low=0.0, high=200.0), replicas=5)
    nats = len(model.data) / (2 * (1 + model.variance))
    assert (abs(run.consensus_0[-1] - float(model.data.mean())) < sqrt(0.01 / nats)).all()
    expected = -float(
        model.log_likelihood({"theta": torch.tensor(float(run.consensus_0[-1, 0]), dtype=torch.float64)})
    )
    assert float(run.consensus_f[-1, 0]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_the_mle_of_principal_components() -> None:
    """13 parameters, up to a rotation: within 0.05 nats with a momentum, more than 0.5 below without."""
    model = PPCA()
    own = {"particles": 500, "low": -2.0, "high": 2.0}
    kinetic, plain = (
        end(declared(model, **own), replicas=2).consensus_f[-1] for declared in (kinetic_cbo, cbo)
    )
    assert (kinetic - model.minimum < 0.05).all()
    assert (kinetic - model.minimum > 0).all()
    assert (plain - model.minimum > 0.5).all()


def test_the_toy_model_s_likelihood() -> None:
    model = Hierarchical(data=7, latent=3, scale=0.5)
    law = torch.distributions.Normal(*torch.tensor([98.0, sqrt(1.25)], dtype=torch.float64))
    found = model.log_likelihood({"theta": torch.tensor(98.0, dtype=torch.float64)})
    assert float(found) == pytest.approx(float(law.log_prob(model.data).sum()), rel=1e-12)


# In a run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["torchsde:milstein", "torchsde:srk"])
@pytest.mark.parametrize("declared", [cbo, kinetic_cbo])
def test_schemes_refuse_noise_that_couples_points(scheme: str, declared: Any) -> None:
    """It is said, and not tried: with a large alpha a point that is moved changes its own noise alone."""
    system = declared(bowl, dimension=2, alpha=1e8)
    with pytest.raises(
        SdeflowError, match=r"depend on that alone.*These can: euler_maruyama, torchsde:euler$"
    ):
        simulate(system, scheme, steps=1)
    found, reference = (end(system, steps=20, integrator=s) for s in ("euler_maruyama", "torchsde:euler"))
    np.testing.assert_allclose(found.X, reference.X, rtol=1e-11, atol=1e-13)


def test_hopping_has_noise_of_its_own() -> None:
    assert integrator_named("torchsde:srk").refuses(consensus_hopping(bowl, dimension=2)) is None


@pytest.mark.parametrize("variant", ["", "kinetic"])
def test_a_cut_run_goes_on_to_the_bit(tmp_path: Path, variant: str) -> None:
    """From a file, in replicas, and single precision, in which the model's parameters are too."""
    own = [
        "--set",
        "run.dtype=float32",
        "--set",
        "run.replicas=2",
        *(["--variant", variant] if variant else []),
    ]
    for name, steps in (("whole", 12), ("pieces", 7)):
        assert command("run", "cbo", "--quiet", "--steps", steps, "--out", tmp_path / name, *own) == 0
    assert command("resume", tmp_path / "pieces", "-q", "--steps", 5) == 0
    whole, pieces = (sdeflow.open_run(tmp_path / name) for name in ("whole", "pieces"))
    assert whole.X.dtype == np.float32
    np.testing.assert_array_equal(whole.X[-1], pieces.X[-1])


class Own:
    """Neither a model nor a function."""


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (Decoder(images=10), {}, r"Decoder has no log_likelihood\(theta\).*pgd"),
        (LinearEnergy(), {}, r"LinearEnergy has no log_likelihood\(theta\)"),
        (Own(), {}, r"a model, or a function of points \[\.\.\., d\], was expected"),
        (Rastrigin, {}, "was expected, given <class"),
        (bowl, {"dimension": None}, "how many coordinates they have: give dimension"),
        (Rastrigin(), {"dimension": 2}, "Rastrigin has the dimension of its parameters: leave it out"),
        (bowl, {"alpha": -1.0}, "alpha must be at least 0"),
        (bowl, {"sigma": -1.0}, "sigma must be at least 0 and finite, given -1"),
        (bowl, {"sigma": nan}, "sigma must be at least 0 and finite, given nan"),
        (bowl, {"alpha": "much"}, "alpha must be a number"),
        (bowl, {"pull": 0.0}, "pull must be positive"),
        (bowl, {"sigma": "loud"}, "sigma must be a number"),
        (bowl, {"noise": "other"}, "noise must be 'anisotropic' or 'isotropic'"),
        (bowl, {"low": 3.0}, "low must be below high"),
        (bowl, {"low": [0.0]}, "low has 1 numbers for 2 coordinates"),
        (bowl, {"particles": 0}, "particles must be at least 1"),
    ],
)
def test_a_mistake_is_a_sentence(model: Any, options: dict[str, Any], words: str) -> None:
    own = {"dimension": 2} if model is bowl else {}
    with pytest.raises(SdeflowError, match=words):
        cbo(model, **own | options)


def test_a_function_of_another_shape_is_a_sentence() -> None:
    with pytest.raises(
        SdeflowError, match=r"the function gives shape \(1, 100, 2\), expected shape \(1, 100\)"
    ):
        end(cbo(lambda x: x, dimension=2))


def test_systems_with_a_model_of_their_own_take_a_landscape() -> None:
    """Its posterior is N(0, 1) whatever theta is, and E* is 0."""
    run = end(
        mpgd(
            Rastrigin(),
            particles=2,
            theta={"h": 1e-3, "eta": 1.0, "gamma": 1.0},
            x={"h": 0.1, "eta": 1.0, "gamma": 1.0},
        ),
        steps=2,
    )
    assert run.attrs["retcode"] == "success"

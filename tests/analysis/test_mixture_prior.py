"""Mixtures fitted to particles: their density, law and fit against closed forms, and the run folder's file.

The oracle is a model whose aggregate posterior is a mixture: with x ~ N(0, I), y | x ~ N(x, s2 I) and data
that are `CENTRES`, each `TIMES` as often, its means are y/(1 + s2) and its variances s2/(1 + s2).
"""

from __future__ import annotations

from math import log, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from commands import Cli, command
from pieces import flip
from safetensors.torch import load_file
from scipy.special import logsumexp
from scipy.stats import norm
from support import SE

import sdeflow.analysis.mixture_prior as mixture_prior
from sdeflow.analysis.mixture_prior import Mixture, components_of, fit_mixture
from sdeflow.errors import SdeflowError

S2 = 0.1
CENTRES, TIMES = np.array([[2.0, 0.0], [-2.0, 3.0], [-2.0, -6.0]]), np.array([3, 2, 1])
WEIGHTS, MEANS, VARIANCE = TIMES / 6, CENTRES / (1 + S2), S2 / (1 + S2)

MODEL = f"""
import torch
import sdeflow


class Clusters(sdeflow.Model):
    latent_shape = (2,)

    def __init__(self):
        centres = torch.tensor({CENTRES.tolist()}, dtype=torch.float64)
        self.data = centres.repeat_interleave(torch.tensor({(10 * TIMES).tolist()}), 0)

    def init_theta(self, generator):
        return {{"mean": torch.zeros(2)}}

    def log_joint(self, theta, x, y):
        likelihood = -((y[:, None] - x) ** 2).sum(-1) / {2 * S2} - {log(2 * pi * S2)}
        return likelihood + self.log_prior(theta, x.flatten(0, 1)).view(x.shape[:2])

    def log_prior(self, theta, x):
        return -((x - theta["mean"]) ** 2).sum(-1) / 2 - {log(2 * pi)}
"""
PROBLEM = """
model.use = "clusters.py:Clusters"
run = { integrator = "baoab", steps = 150, dtype = "float64" }
save.every = 50

[system]
use = "mpgd"
particles = 100
theta = { h = 1e-9, eta = 1.0, gamma = 1.0 }
x = { h = 0.2, eta = 1.0, gamma = 1.0 }
"""


def known() -> Mixture:
    variances = torch.full((3, 2), VARIANCE, dtype=torch.float64)
    return Mixture(torch.from_numpy(np.log(WEIGHTS)), torch.from_numpy(MEANS), variances)


def aggregate(n: int, seed: int) -> torch.Tensor:
    """Independent draws from the mixture, by NumPy."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(MEANS[rng.choice(3, n, p=WEIGHTS)] + VARIANCE**0.5 * rng.normal(size=(n, 2)))


def evidence(y: Any, weights: Any, means: Any, variances: Any) -> Any:
    """log sum_k pi_k N(y; m_k, v_k + s2) of each row of y."""
    parts = norm.logpdf(y[:, None], means, np.sqrt(np.broadcast_to(variances, means.shape) + S2)).sum(-1)
    return logsumexp(parts + np.log(weights), axis=-1)


def vars_of(found: Mixture) -> list[torch.Tensor]:
    return [found.log_weights, found.means, found.variances]


def sorted_by_weight(found: Mixture) -> tuple[Any, Any, Any]:
    order = found.log_weights.argsort(descending=True)
    return tuple(v[order].numpy() for v in (found.log_weights.exp(), found.means, found.variances))


# Density, samples, fit -------------------------------------------------------------------------------


def test_density() -> None:
    """That of SciPy's normals, for any shape; its gradient that of differences; of far points too."""
    rng = np.random.default_rng(0)
    variances = rng.uniform(0.2, 2, (3, 2))
    found = Mixture(*map(torch.from_numpy, (np.log(WEIGHTS), MEANS, variances)))
    x = torch.from_numpy(rng.normal(scale=40, size=(4, 5, 2))).requires_grad_()
    parts = norm.logpdf(x.detach().numpy()[..., None, :], MEANS, np.sqrt(variances)).sum(-1)
    value = found.log_density(x)
    np.testing.assert_allclose(value.detach(), logsumexp(parts + np.log(WEIGHTS), axis=-1), rtol=1e-13)
    assert torch.autograd.gradcheck(found.log_density, x)
    assert found.log_density(x.detach().float()).dtype == torch.float32


def test_samples_have_the_law_of_the_mixture() -> None:
    """Shares, means and variances of the components, apart by 14 deviations, within 4.5 errors of 30,000."""
    n, draw = 30_000, lambda seed: known().sample(30_000, torch.Generator().manual_seed(seed)).numpy()
    x = draw(0)
    nearest = np.linalg.norm(x[:, None] - MEANS, axis=-1).argmin(1)
    for k, weight in enumerate(WEIGHTS):
        own = x[nearest == k]
        assert abs(len(own) / n - weight) < SE * (weight * (1 - weight) / n) ** 0.5
        assert np.all(abs(own.mean(0) - MEANS[k]) < SE * (VARIANCE / len(own)) ** 0.5)
        assert np.all(abs(own.var(0) - VARIANCE) < SE * VARIANCE * (2 / len(own)) ** 0.5)
    np.testing.assert_array_equal(x, draw(0))
    assert not np.array_equal(x, draw(1))


def test_a_fit_finds_the_aggregate_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20,000 draws and, where there are more than MOST, of as many spread evenly; 4.5 errors."""
    x = aggregate(20_000, seed=0)
    by_datum = x[(x[:, None] - torch.from_numpy(MEANS)).norm(dim=-1).argmin(1).argsort(stable=True)]
    for most, points in ((20_000, x), (5000, by_datum)):
        monkeypatch.setattr(mixture_prior, "MOST", most)
        weights, means, variances = sorted_by_weight(fit_mixture(points, 3))
        n = (most * WEIGHTS)[:, None]
        assert np.all(abs(weights - WEIGHTS) < SE * (WEIGHTS * (1 - WEIGHTS) / most) ** 0.5)
        assert np.all(abs(means - MEANS) < SE * (VARIANCE / n) ** 0.5)
        assert np.all(abs(variances - VARIANCE) < SE * VARIANCE * (2 / n) ** 0.5)
    first, second = (fit_mixture(x, 20, seed) for seed in (0, 0))
    assert torch.equal(first.means, second.means)
    assert not torch.equal(first.means, fit_mixture(x, 20, 1).means)


def test_the_evidence_rises_by_what_the_closed_form_says() -> None:
    """Nats a datum over N(0, I): with the fitted prior, by a grid over x, against the known mixture's.

    Of 8 fits to 3000 draws each: their mean within 4.5 of its errors.
    """

    def normal(y: Any, mean: Any, variance: float) -> Any:
        return -(np.square(y - mean).sum(-1) / variance + 2 * log(2 * pi * variance)) / 2

    before = normal(CENTRES, 0.0, 1 + S2)
    after = logsumexp(normal(CENTRES[:, None], MEANS, VARIANCE + S2) + np.log(WEIGHTS), axis=1)
    rise = float((WEIGHTS * (after - before)).sum())
    assert rise > 5

    axis, cell = np.linspace(-3, 3, 121), (6 / 120) ** 2
    grid = CENTRES[:, None] + np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    likelihood = normal(CENTRES[:, None], grid, S2)

    def found(seed: int) -> float:
        prior = fit_mixture(aggregate(3000, seed), 3).log_density(torch.from_numpy(grid)).numpy()
        return float((WEIGHTS * (logsumexp(prior + likelihood, axis=1) + log(cell) - before)).sum())

    rises = np.array([found(seed) for seed in range(8)])
    error = rises.std(ddof=1) / 8**0.5
    assert error < 0.01
    assert abs(rises.mean() - rise) < SE * error


# A run's ---------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run whose particles have come to their posteriors, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("clusters.py").write_text(MODEL)
    Path("clusters.toml").write_text(PROBLEM)
    assert command("run", "clusters.toml", "--quiet", "--out", "run") == 0
    return Path("run")


def values(*arguments: object) -> xr.DataArray:
    assert command("sample", "run", "--prior", "gmm:3", *arguments) == 0
    with xr.open_dataset("run/samples.nc") as found:
        return found["x"].load()


def test_samples_of_a_run_are_of_its_aggregate_posterior(run: Path, cli: Cli) -> None:
    """6000 particles and 20,000 samples of the mixture fitted to them; 4.5 errors of both."""
    told = cli("sample", "run", "--prior", "gmm:3", "--n", 20_000)
    assert told.code == 0
    assert told.out.splitlines() == ["run/prior-gmm3.safetensors", "run/samples.nc"]
    with xr.open_dataset("run/samples.nc") as found:
        assert found.attrs["prior"] == "gmm:3"
        x = found["x"].values
    nearest = np.linalg.norm(x[:, None] - MEANS, axis=-1).argmin(1)
    for k, weight in enumerate(WEIGHTS):
        own = x[nearest == k]
        one = 1 / len(own) + 1 / (6000 * weight)
        assert abs(len(own) / 20_000 - weight) < SE * (weight * (1 - weight) / 20_000) ** 0.5
        assert np.all(abs(own.mean(0) - MEANS[k]) < SE * (VARIANCE * one) ** 0.5)
        assert np.all(abs(own.var(0) - VARIANCE) < SE * VARIANCE * (2 * one) ** 0.5)


def test_the_fitted_mixture_is_a_file_that_is_used_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is damaged or the run has gone on; the seed is of the samples alone."""
    fits: list[int] = []

    def counted(x: torch.Tensor, components: int) -> Mixture:
        fits.append(components)
        return fit_mixture(x, components)

    monkeypatch.setattr(mixture_prior, "fit_mixture", counted)
    file = run / "prior-gmm3.safetensors"
    first = values()
    kept = file.read_bytes()
    assert values().equals(first)
    assert not values("--seed", 1).equals(first)
    assert fits == [3]
    flip(file, 0.9)
    assert values().equals(first)
    assert fits == [3] * 2
    assert file.read_bytes() == kept
    assert command("resume", "run", "--steps", 50, "--quiet") == 0
    assert not values().equals(first)
    assert fits == [3] * 3
    assert file.read_bytes() != kept


def test_what_is_not_what_was_written_is_fitted_anew(tmp_path: Path) -> None:
    """Any flipped byte, a part of the file, other particles."""
    x = aggregate(60, 0).view(6, 10, 2)
    found, path = mixture_prior.mixture_of(tmp_path, x, 3)
    kept = path.read_bytes()
    assert mixture_prior._read(path, x.flatten(0, 1)) is not None
    assert mixture_prior._read(path, x.flatten(0, 1) + 1e-9) is None
    for at in range(len(kept)):
        path.write_bytes(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :])
        same = mixture_prior._read(path, x.flatten(0, 1))
        assert same is None or all(
            torch.equal(a, b) for a, b in zip(*map(vars_of, (same, found)), strict=True)
        )
    path.write_bytes(kept[:-9])
    assert mixture_prior._read(path, x.flatten(0, 1)) is None


def test_replicas_have_mixtures_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents of a model that cannot draw from its own prior."""
    monkeypatch.chdir(tmp_path)
    assert command("run", "hierarchical", "--replicas", 2, "--steps", 5, "--quiet", "--out", "run") == 0
    first, second = values("--replica", 0), values("--replica", 1)
    assert not first.equals(second)
    files = {path.name for path in Path("run").glob("prior*")}
    assert files == {"prior-gmm3.safetensors", "prior-gmm3-replica1.safetensors"}


def normal_evidence(y: Any, weights: Any, means: Any, variances: Any) -> Any:
    """log sum_k pi_k N(y; m_k, v_k + s2) of each row of y."""
    parts = norm.logpdf(y[:, None], means, np.sqrt(variances + S2)).sum(-1)
    return logsumexp(parts + np.log(weights), axis=-1)


def evaluated(*arguments: object) -> xr.Dataset:
    options = ["--temperatures", 50, "--data", 12, "--quiet"]  # of which each centre has its share
    assert command("evaluate", "run", *options, *arguments) == 0
    return xr.load_dataset("run/evaluation.nc")


def score(found: xr.Dataset, name: str) -> list[float]:
    """Value, and errors over data and over chains."""
    one = found.sel(parameters="last", score=name)
    return [float(one[key]) for key in ("value", "error_over_data", "error_over_chains")]


DRAWS = f"""
    def sample_prior(self, theta, n, generator):
        return theta["mean"] + torch.randn(n, 2, generator=generator, dtype=torch.float64)

    def sample_data(self, theta, x, generator):
        return x + {S2**0.5} * torch.randn(x.shape, generator=generator, dtype=x.dtype)
"""


def test_evidence_rises_by_what_the_closed_form_says(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the fitted and the known mixture as prior it is the closed form's, within 4 of its errors.

    Many chains, for they do not travel between the clusters.
    """
    y = np.repeat(CENTRES, 2 * TIMES, axis=0)
    many = ("--chains", 200)
    found = evaluated("--prior", "gmm:3", *many)
    x = load_file("run/final.safetensors")["X"]
    fitted, _ = mixture_prior.mixture_of(run, x, 3)
    weights, means, variances = (v.numpy() for v in vars_of(fitted))
    value, _, error = score(found, "evidence")
    assert abs(value - evidence(y, np.exp(weights), means, variances).mean()) < 4 * error < 0.2
    assert found.attrs["prior"] == "gmm:3"
    assert command("report", "run", "--out", "page", "--quiet") == 0
    assert "baoab, prior gmm:3" in Path("page/report.html").read_text()

    monkeypatch.setattr(mixture_prior, "fit_mixture", lambda x, components: known())
    truth = evidence(y, WEIGHTS, MEANS, VARIANCE)
    value, _, error = score(evaluated("--prior", "gmm:4", *many), "evidence")
    assert abs(value - truth.mean()) < 4 * error < 0.2
    Path("clusters.py").write_text(f"{MODEL}{DRAWS}")
    plain, _, plain_error = score(evaluated(), "evidence")
    rise = truth - evidence(y, np.ones(1), np.zeros((1, 2)), 1.0)
    assert abs(value - plain - rise.mean()) < 4 * np.hypot(error, plain_error)
    assert rise.mean() > 5


def test_the_gap_of_bounds_is_of_the_mixture_too(run: Path) -> None:
    """Of one Gaussian: data drawn from it have its negative entropy as evidence, within 4.5 errors."""
    Path("clusters.py").write_text(f"{MODEL}{DRAWS}")
    found = evaluated("--prior", "gmm:1", "--temperatures", 300)
    x = load_file("run/final.safetensors")["X"].flatten(0, 1).numpy()
    entropy = norm(0, np.sqrt(x.var(0) + S2)).entropy().sum()
    below = found.simulated_below
    assert abs(below.mean() + entropy) < SE * below.std(ddof=1) / below.size**0.5
    assert entropy > 1 + 2 * norm(0, (1 + S2) ** 0.5).entropy()  # the model's own prior
    gap, error, _ = score(found, "gap")
    assert -4 * error < gap < 0.1


def test_samples_of_images_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    size = ["--set", "model.images=40", "--set", "system.particles=5", "--steps", 3]
    assert command("run", "digits", *size, "--quiet", "--out", "run") == 0
    assert command("sample", "run", "--prior", "gmm:3", "--n", 9) == 0
    assert {path.name for path in Path("run").glob("*.png")} == {"samples.png", "reconstructions.png"}


def test_what_is_wrong_is_said(run: Path, cli: Cli) -> None:
    small = ["--set", "model.data=4", "--set", "system.particles=2", "--steps", 2, "--quiet", "--out"]
    assert command("run", "hierarchical", *small, "few") == 0
    assert command("run", "linear_energy", *small, "energy", "--set", "system.prior_particles=3") == 0
    assert command("run", "double_well", "--steps", 2, "--quiet", "--out", "plain") == 0
    for folder, prior, sentence in (
        ("run", "gmm", "a prior is gmm:K, a mixture of K Gaussians, for example gmm:100; given 'gmm'"),
        ("run", "gmm:0", "given 'gmm:0'"),
        ("run", "kde:3", "given 'kde:3'"),
        (
            "run",
            "gmm:601",
            "needs 6,010 particles, 10 for each component, and there are 6,000: give gmm:600 or",
        ),
        ("few", "gmm:3", "and there are 8: it needs more particles"),
        ("energy", "gmm:3", "the prior of energy is an energy that it learned, with particles of its own"),
        ("plain", "gmm:3", "is of a system without a model: there is nothing to sample"),
        ("nothing", "gmm:3", "has no config.toml"),
    ):
        told = cli("sample", folder, "--prior", prior)
        assert told.code == 2
        assert sentence in told.err
        assert told.err.count("\n") == 1
        if folder != "nothing":
            again = cli("evaluate", folder, "--prior", prior)
            assert (again.code, sentence in again.err, again.err.count("\n")) == (2, True, 1)
        assert not list(Path(folder).glob("prior*"))
    silent = MODEL.replace("log_prior", "own_prior")
    Path("clusters.py").write_text(silent)
    told = cli("evaluate", "run", "--prior", "gmm:3")
    assert told.code == 2
    assert "Clusters has no log_prior, whose place a mixture would take" in told.err
    with pytest.raises(SdeflowError, match="needs particles that differ, and all 50 are the same"):
        fit_mixture(torch.ones(50, 2), 2)
    with pytest.raises(SdeflowError, match="the particles must be finite"):
        fit_mixture(torch.full((50, 2), torch.nan), 2)
    with pytest.raises(SdeflowError, match="components must be a whole number of at least 1, given 0"):
        fit_mixture(aggregate(50, 0), 0)
    assert components_of("gmm:100") == 100

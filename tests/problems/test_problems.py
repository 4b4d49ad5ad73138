"""The packaged problems: all of them run, their numbers are the formulas', their models are what they say.

float64 throughout. Where a number is compared with a closed form the tolerance is roundoff (1e-10
relative unless said); where sampling is compared with a law it is four or five standard errors.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from math import exp, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import K, affine_map
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from sdeflow.config.arguments import call
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file, problem_files
from sdeflow.config.run import Run
from sdeflow.config.schema import Config, load_config, variant_tables
from sdeflow.errors import SdeflowError
from sdeflow.model.forces import ModelForces
from sdeflow.model.model import Model
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.logistic import Logistic
from sdeflow.simulation.solve import solve
from sdeflow.state import TUNING
from sdeflow.system.system import System


def variants(name: str) -> list[str]:
    return list(variant_tables(tomllib.loads(problem_file(name).read_text(encoding="utf-8"))))


def configured(name: str, variant: str | None = None, **tables: Mapping[str, Any]) -> Config:
    return load_config(problem_file(name), variant=variant, overrides=[tables])


def built(name: str, variant: str | None = None, **tables: Mapping[str, Any]) -> Run:
    return build(configured(name, variant, **tables))


def one_particle(name: str, variant: str | None = None, **system: Any) -> System:
    """The system of a problem in float64 with N = 1, which has the same map of the means as any N."""
    problem = built(name, variant, system={"particles": 1, **system})
    return problem.system.to(torch.float64, torch.device("cpu"))


# Every problem runs ----------------------------------------------------------------------------------

FETCHED = {"cifar10", "cifar10_small", "cifar16", "fashion14", "mnist", "fashion_mnist"}
"""Problems whose data must be fetched; test_images runs them on made-up images."""

BUNDLED = [name for name in problem_files() if name not in FETCHED]
WITH_VARIANTS = [(name, variant) for name in BUNDLED for variant in [None, *variants(name)]]


def test_the_catalogue_of_problems_is_complete() -> None:
    expected = {
        "hierarchical": ["tuned", "svgd_em", "coin_em"],
        "momentum_grid": [],
        "regimes": ["underdamped", "critical", "overdamped", "tuned"],
        "gradient_correction": ["f0.99", "f1.00", "f1.01", "tuned"],
        "nesterov": ["mu0.99", "mu0.9", "mu0.5", "tuned"],
        "enrichment": ["start-5", "start-20", "start-100"],
        "mixture_1d": ["pgd", "mpgd-theta", "mpgd-x"],
        "breast_cancer": ["fixed", "svgd_em", "coin_em"],
        "digits": ["fixed", "energy"],
        "ill_conditioned": ["fixed", "pgd"],
        "two_modes": ["fixed", "pgd"],
        "matrix_sensing": ["spare"],
        "state_space": ["fixed", "pgd", "drift", "volatility"],
        "double_well": [],
        "ornstein_uhlenbeck": [],
    }
    found = {name: variants(name) for name in problem_files()}
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "variant"), WITH_VARIANTS)
def test_problem_runs_to_finite_values(name: str, variant: str | None, dtype: str) -> None:
    smaller = {"model": {"hidden": [8], "test": 50}} if name == "mixture_1d" else {}
    solution = solve(built(name, variant, run={"steps": 3, "dtype": dtype}, save={"every": 1}, **smaller))
    assert solution.retcode == "success"
    assert solution.dataset.sizes["time"] == 4
    for variable in {*solution.dataset.data_vars, "time"} - {"curvature_least"}:  # NaN where it is not known
        assert np.isfinite(solution.dataset[variable]).all(), variable
    own = {name: value for name, value in solution.state.items() if not name.startswith(TUNING)}
    assert all(value.isfinite().all() for value in own.values())
    assert {str(value.dtype) for value in own.values()} == {f"torch.{dtype}"}
    assert solution.dataset["X"].dtype == dtype
    moved = np.abs(solution.dataset["X"].isel(time=-1) - solution.dataset["X"].isel(time=0))
    if solution.dataset.attrs["system"].startswith(("CBO", "KineticCBO")):  # the best point is the consensus
        assert ((moved == 0).any("latent").sum("particle") <= 1).all()
    else:
        assert (moved > 0).all()


@pytest.mark.parametrize("name", BUNDLED)
def test_problem_says_what_it_is(name: str) -> None:
    assert built(name).config.title


def test_what_is_made_for_a_cpu_is_there() -> None:
    notes = {name: configured(name).cpu_note for name in problem_files()}
    told = {name: re.findall("'sdeflow run (.*?)'", note) for name, note in notes.items() if note}
    assert told == {"cifar10": ["cifar10_small", "cifar16"]}
    assert not notes["cifar10_small"] + notes["cifar16"]


# Numbers in the files --------------------------------------------------------------------------------


def motion(name: str, variant: str | None = None) -> tuple[dict[str, float], dict[str, float]]:
    arguments = configured(name, variant).system.arguments
    return arguments["theta"], arguments["x"]


@pytest.mark.parametrize(("variant", "gamma"), [("underdamped", 0.05), ("critical", 0.1), ("overdamped", 2)])
def test_regimes_are_the_published_ones(variant: str, gamma: float) -> None:
    config = configured("regimes", variant)
    theta, x = motion("regimes", variant)
    assert theta == {"h": 1e-4, "eta": 2000, "gamma": gamma}
    assert x == {"h": 1e-2, "eta": 2000, "gamma": gamma}
    assert config.model is not None
    assert (config.model.arguments["data"], config.system.arguments["particles"]) == (100, 100)
    assert (config.model.arguments["theta_true"], config.run.steps) == (100, 2000)


@pytest.mark.parametrize("f", [0.99, 1.00, 1.01])
def test_gradient_correction_numbers_are_their_formulas(f: float) -> None:
    theta, x = motion("gradient_correction", f"f{f:.2f}")
    assert theta == pytest.approx({"h": f * 6.68e-3, "eta": 2 * K, "gamma": 0.293}, rel=1e-7)
    assert x == pytest.approx({"h": f * 2.18e-3, "eta": 2 * K, "gamma": 0.293}, rel=1e-7)


@pytest.mark.parametrize("mu", [0.99, 0.9, 0.5])
def test_nesterov_numbers_are_their_formulas(mu: float) -> None:
    theta, x = motion("nesterov", f"mu{mu:g}")
    h = sqrt(1e-3 / 100)
    assert theta == pytest.approx({"h": h, "eta": 1 / h, "gamma": 1 - mu}, rel=1e-6)
    assert 1 - theta["h"] * theta["gamma"] * theta["eta"] == pytest.approx(mu, abs=1e-6)
    assert x == pytest.approx({"h": 1e-3, "eta": 2 * K, "gamma": 1}, rel=1e-7)


@pytest.mark.parametrize("shift", [5, 20, 100])
def test_enrichment_numbers_are_their_formulas(shift: int) -> None:
    config = configured("enrichment", f"start-{shift}")
    eta = (1 - 0.9) / (1e-3 * 0.09)
    for block in motion("enrichment", f"start-{shift}"):
        assert block == pytest.approx({"h": 1e-3, "eta": eta, "gamma": 0.09}, rel=1e-6)
    assert config.model is not None
    assert config.model.arguments["x_start"] == -shift
    model = Hierarchical(**config.model.arguments)
    assert model.data.mean().item() == pytest.approx(10, rel=1e-14)
    assert (model.variance, model.data.shape) == (144, (100, 1))
    start = model.init_x(torch.Generator().manual_seed(0), 100, 10)
    # 1000 draws from N(-shift, 1): five standard errors
    assert abs(start.mean().item() + shift) < 5 / sqrt(1000)
    assert config.run.steps == 5000
    assert config.system.arguments["particles"] == 10


@pytest.mark.parametrize("name", ["breast_cancer", "digits"])
def test_momentum_that_the_comments_tell_is_what_the_numbers_give(name: str) -> None:
    lines = problem_file(name).read_text(encoding="utf-8").splitlines()
    told = [float(line.split("exp(-gamma eta h) = ")[1].split()[0]) for line in lines if "exp(-gamma" in line]
    given = [exp(-b["gamma"] * b["eta"] * b["h"]) for b in motion(name, "fixed")]
    assert told
    assert all(a == pytest.approx(b, abs=0.005) for a, b in zip(told, given, strict=False))


# What the toy settings do, from the exact map of one real step ---------------------------------------

SPECTRAL_RADII = [  # published settings; values derived independently, to the digits given
    ("regimes", "underdamped", "expint", 0.99351, 5e-6),
    ("regimes", "critical", "expint", 0.98712, 5e-6),
    ("regimes", "overdamped", "expint", 0.99808, 5e-6),
    ("gradient_correction", "f1.00", "expint", 0.992339, 5e-7),
    ("gradient_correction", "f1.00", "expint_shared", 0.992357, 5e-7),
    ("gradient_correction", "f1.00", "expint_nc", 0.997404, 5e-7),
    ("gradient_correction", "f1.00", "nag", 1.120, 5e-4),
    ("gradient_correction", "f1.00", "euler_maruyama", 1.419, 5e-4),
]


@pytest.mark.parametrize(("name", "variant", "integrator", "radius", "digits"), SPECTRAL_RADII)
def test_toy_settings_contract_as_derived(
    name: str, variant: str, integrator: str, radius: float, digits: float
) -> None:
    assert affine_map(one_particle(name, variant), integrator).radius == pytest.approx(radius, abs=digits)


def test_the_edge_of_stability_is_where_the_gradient_correction_file_says() -> None:
    radius = {
        (f, integrator): affine_map(one_particle("gradient_correction", f), integrator).radius
        for f in ("f0.99", "f1.01")
        for integrator in ("expint", "expint_nc")
    }
    # With correction a longer step converges faster; without, the limit f = 1.012 is near and it is slower.
    assert radius["f1.01", "expint"] < radius["f0.99", "expint"] < 0.9925
    assert radius["f0.99", "expint_nc"] < 0.996
    assert 0.999 < radius["f1.01", "expint_nc"] < 1


def test_pgd_at_the_steps_of_regimes() -> None:
    assert affine_map(one_particle("regimes", use="pgd"), "euler_maruyama").radius == pytest.approx(
        0.99618, abs=5e-6
    )


@pytest.mark.parametrize("mu", [0.99, 0.9, 0.5])
def test_nag_on_the_nesterov_settings_is_the_textbook_map(mu: float) -> None:
    # Means over coordinates as a 4 x 4 matrix on (theta, v, x, u), with v = h eta m and l = h^2 eta = h:
    # v' = mu v + l 100 (x - theta - mu v), theta' = theta + v', then x, u with gamma = 1.
    h, h_x, eta_x = sqrt(1e-3 / 100), 1e-3, 2 * K
    w = exp(-eta_x * h_x)
    v = np.array([-100 * h, mu - 100 * h * mu, 100 * h, 0])
    theta = np.array([1, 0, 0, 0]) + v
    score = theta + np.array([0, 0, -2, 0])  # (theta' - x) + (y - x), y = 0
    x = np.array([0, 0, 1, 1 - w]) + (h_x - (1 - w) / eta_x) * score
    u = np.array([0, 0, 0, w]) + (1 - w) / eta_x * score
    expected = np.linalg.eigvals(np.stack([theta, v, x, u]))
    step = affine_map(one_particle("nesterov", f"mu{mu:g}"), "nag")
    found = np.linalg.eigvals(step.A)
    # 1e-5: the file has seven digits of h and eta, and two of the eigenvalues lie close together.
    assert np.abs(found - expected[:, None]).min(1).max() < 1e-5
    assert np.abs(found).max() == pytest.approx(np.abs(expected).max(), abs=1e-6)
    assert np.abs(found).max() < 1


@pytest.mark.parametrize("system", ["pgd", "mpgd-theta", "mpgd-x", "mpgd"])
def test_every_system_of_the_enrichment_settings_tends_to_its_mle(system: str) -> None:
    step = affine_map(one_particle("enrichment", use=system), "expint")
    assert step.radius < 1
    assert step.fixed_point[0] == pytest.approx(10, rel=1e-10)


def test_momenta_in_both_blocks_are_fastest_in_the_enrichment_settings() -> None:
    radius = {
        s: affine_map(one_particle("enrichment", use=s), "expint").radius
        for s in ("pgd", "mpgd-theta", "mpgd-x", "mpgd")
    }
    assert radius["mpgd"] < 0.995 < min(radius["mpgd-theta"], radius["mpgd-x"])
    assert max(radius["mpgd-theta"], radius["mpgd-x"]) < radius["pgd"] < 1


# Models ----------------------------------------------------------------------------------------------


def x_like(model: Model, data: int, particles: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(data, particles, *model.latent_shape, generator=g, dtype=torch.float64)


MODELS = [
    Hierarchical(data=3, latent=2, scale=1.7, theta_true=2.0),
    Hierarchical(data=1, latent=5, scale=0.4, theta_true=2.0, mle=-1.0),
    Logistic(),
    Logistic(variance=0.3, held_out=0.5, split_seed=7),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_analytic_scores_are_the_gradients_of_the_log_joint(model: Hierarchical | Logistic) -> None:
    x = x_like(model, len(model.data), 4).requires_grad_()
    theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    total = model.log_joint({"theta": theta}, x, model.data).sum()
    by_theta, by_x = torch.autograd.grad(total, (theta, x))
    with torch.no_grad():
        torch.testing.assert_close(
            model.score_x({"theta": theta}, x, model.data), by_x, rtol=1e-10, atol=1e-10
        )
        scores = model.score_theta({"theta": theta}, x, model.data)
    torch.testing.assert_close(scores["theta"], by_theta, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("model", MODELS[:2])
def test_hierarchical_log_joint_is_that_of_its_distributions(model: Hierarchical) -> None:
    x, s = x_like(model, len(model.data), 4), sqrt(model.variance)
    expected = Normal(0.7, s).log_prob(x).sum(-1) + Normal(x, 1.0).log_prob(model.data[:, None]).sum(-1)
    found = model.log_joint({"theta": torch.tensor(0.7)}, x, model.data)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)  # theta = 0.7 in float32 above


@pytest.mark.parametrize(("variance", "seed"), [(5.0, 0), (0.3, 4)])
def test_logistic_log_joint_is_that_of_labels_and_standardised_features(variance: float, seed: int) -> None:
    from sklearn.datasets import load_breast_cancer

    model = Logistic(variance=variance, split_seed=seed)
    raw, benign = load_breast_cancer(return_X_y=True)
    order = torch.randperm(569, generator=torch.Generator().manual_seed(seed)).numpy()
    test, train = order[:114], order[114:]
    features = torch.from_numpy((raw - raw[train].mean(0)) / raw[train].std(0))
    malignant = torch.from_numpy(1.0 - benign)

    x, theta = x_like(model, 1, 3) / 3, torch.tensor(0.7, dtype=torch.float64)
    expected = Normal(theta, sqrt(variance)).log_prob(x).sum(-1)
    expected += Bernoulli(logits=x @ features[train].T).log_prob(malignant[train]).sum(-1)
    found = model.log_joint({"theta": theta}, x, model.data)
    assert found.shape == (1, 3)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    predictive = torch.sigmoid(x[0] @ features[test].T).mean(0)
    right = (predictive > 0.5) == malignant[test].bool()
    observed = model.observables({"theta": theta}, x, model.data)
    assert observed["held_out_error"].item() == pytest.approx(1 - right.double().mean().item(), abs=1e-14)
    log_loss = -Bernoulli(probs=predictive).log_prob(malignant[test]).mean()
    torch.testing.assert_close(observed["held_out_log_loss"], log_loss, rtol=1e-10, atol=1e-10)


def test_logistic_split_follows_its_share_and_seed() -> None:
    model = Logistic(held_out=0.3, split_seed=1)
    assert (model.data.shape, model.unseen.shape) == ((1, 398, 30), (171, 30))
    assert torch.equal(model.data, Logistic(held_out=0.3, split_seed=1).data)
    assert not torch.equal(model.data, Logistic(held_out=0.3, split_seed=2).data)


def test_decoder_log_joint_is_that_of_its_distributions() -> None:
    model = Decoder(latent=3, hidden=(7, 5), sigma=0.2, images=4).to(torch.float64, torch.device("cpu"))
    forces = ModelForces(model, particles=6)
    z = forces.start(seed=3)
    theta, x = forces.parameters.views(z["theta"]), z["X"]
    hidden = x
    for layer in ("0", "2"):
        hidden = hidden @ theta[f"{layer}.weight"].T + theta[f"{layer}.bias"]
        hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    image = hidden @ theta["4.weight"].T + theta["4.bias"]
    expected = Normal(0.0, 1.0).log_prob(x).sum(-1) + Normal(image, 0.2).log_prob(model.data[:, None]).sum(-1)
    found = model.log_joint(theta, x, model.data)
    assert found.shape == (4, 6)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-10)
    error = model.observables(theta, x, model.data)["reconstruction_error"]
    torch.testing.assert_close(error, ((model.data - image.mean(1)) ** 2).mean(), rtol=1e-12, atol=0)


def test_decoder_data_are_the_digits_scaled_to_minus_one_and_one() -> None:
    from sklearn.datasets import load_digits

    images = load_digits().images
    data = Decoder().data
    np.testing.assert_allclose(data.view(-1, 8, 8), 2 * images / images.max() - 1, atol=1e-15)
    assert (data.min().item(), data.max().item(), len(data)) == (-1, 1, 1797)
    assert torch.equal(Decoder(images=10).data, data[:10])


def test_decoder_starts_from_its_seed_alone() -> None:
    forces = ModelForces(Decoder(images=2), particles=1)
    assert torch.equal(forces.start(1)["theta"], forces.start(1)["theta"])
    assert not torch.equal(forces.start(1)["theta"], forces.start(2)["theta"])


@pytest.mark.parametrize(
    ("use", "integrator", "h"),
    [
        ("mpgd", "expint", 2e-5),
        ("mpgd", "expint_shared", 2e-5),
        ("mpgd", "baoab", 2e-5),
        ("pgd", "euler_maruyama", 5e-5),
        ("pgd", "expint", 5e-5),
    ],
)
def test_digits_are_learnt(use: str, integrator: str, h: float) -> None:
    """From the numbers of 'fixed', on 200 images, where theta's force is 9 times smaller and h larger.

    At the start a pixel's squared error is 0.75, so that the loss is about 64 * 0.75 / (2 * 0.3^2) = 267;
    the mean image leaves 0.29, and 8 principal components of all images 0.096. 300 steps must take nine
    tenths of the loss at least, and get below the principal components.
    """
    tables = {"system": {"use": use, "theta": {"h": h}}, "run": {"integrator": integrator, "steps": 300}}
    dataset = solve(built("digits", "fixed", model={"images": 200}, **tables)).dataset
    loss, error = dataset["loss"].values, dataset["reconstruction_error"].values
    assert dataset.attrs["retcode"] == "success"
    assert loss[0] == pytest.approx(64 * error[0] / (2 * 0.3**2), rel=0.05)
    assert (np.diff(loss) < 0).all()
    assert loss[-1] < 0.1 * loss[0]
    assert error[-1] < 0.096


def test_final_state_of_digits_loads_into_the_decoder_s_module(tmp_path: Path) -> None:
    problem = built(
        "digits", model={"images": 20}, run={"steps": 5, "dtype": "float64"}, save={"data": "all"}
    )
    solution = solve(problem, out=tmp_path / "run")
    final = load_file(tmp_path / "run" / "final.safetensors")
    model = Decoder(images=20)
    network = model.network.double()
    network.load_state_dict({k.removeprefix("theta."): v for k, v in final.items() if k.startswith("theta.")})
    with torch.no_grad():
        image = network(final["X"])
    error = ((model.data - image.mean(1)) ** 2).mean().item()
    assert error == pytest.approx(float(solution.dataset["reconstruction_error"][-1]), rel=1e-12)
    # The trajectory's last theta is the same, by its labels.
    label = "2.weight[63,0]"
    assert solution.dataset["theta"].sel(param=label)[-1].item() == final["theta.2.weight"][63, 0].item()


@pytest.mark.parametrize(
    ("function", "table", "message"),
    [
        (Logistic, {"variance": 0.0}, "variance must be positive"),
        (Logistic, {"held_out": 1.0}, "share between 0 and 1"),
        (Logistic, {"held_out": 1e-9}, "no observation on one side"),
        (Logistic, {"variance": "wide"}, "model.variance"),
        (Decoder, {"sigma": -1.0}, "sigma must be positive"),
        (Decoder, {"latent": 0}, "at least 1"),
        (Decoder, {"hidden": [64, 0]}, "at least 1"),
        (Decoder, {"hidden": 64}, "model.hidden"),
        (Decoder, {"images": 1798}, "1..1797"),
        (Decoder, {"hiden": [64]}, "hidden"),
    ],
)
def test_models_refuse_impossible_arguments(function: Any, table: dict[str, Any], message: str) -> None:
    with pytest.raises(SdeflowError, match=message.replace(".", r"\.")):
        call(function, table, "model")


def test_decoder_takes_its_arguments_from_toml() -> None:
    model = call(Decoder, {"hidden": [10, 20], "latent": 3, "sigma": 1, "images": 5}, "model")
    shapes = [tuple(p.shape) for p in model.init_theta(torch.Generator()).parameters()]
    assert shapes == [(10, 3), (10,), (20, 10), (20,), (64, 20), (64,)]


# Plain SDEs ------------------------------------------------------------------------------------------


def test_ornstein_uhlenbeck_has_the_law_of_its_recursion() -> None:
    config = configured("ornstein_uhlenbeck", run={"dtype": "float64"}, save={"particles": "all"})
    own = config.system.arguments
    x = solve(build(config)).dataset["X"].isel(latent=0)
    paths, a = x.sizes["particle"], 1 - own["rate"] * own["h"]
    for at in (0.5, 1.0, 5.0):
        n = round(at / own["h"])
        mean = own["mean"] + a**n * (own["start"][0] - own["mean"])
        variance = own["sigma"] ** 2 * own["h"] * (1 - a ** (2 * n)) / (1 - a**2)
        (now,) = x.values[x["step"].values == n]
        assert abs(now.mean() - mean) < 4 * sqrt(variance / paths)
        assert abs(now.var() / variance - 1) < 4 * sqrt(2 / paths)


def test_double_well_fills_both_wells_as_its_density_says() -> None:
    config = configured("double_well", run={"dtype": "float64"}, save={"particles": "all"})
    own = config.system.arguments
    x = solve(build(config)).dataset["X"].isel(latent=0)
    paths = x.sizes["particle"]
    assert (x.isel(time=0) == -1).all()
    last = x.isel(time=-1).values
    grid = np.linspace(-4, 4, 4001)
    density = np.exp(-own["barrier"] * (grid**2 - 1) ** 2 / own["temperature"])
    density /= density.sum()
    # The escape rate is about 0.12 a unit of time and well, so that after 20 units exp(-4.8) of the start is
    # left, a quarter of the standard error below.
    assert abs((last > 0).mean() - 0.5) < 4 * sqrt(0.25 / paths)
    for power in (2, 4):
        mean = (density * grid**power).sum()
        spread = sqrt((density * grid ** (2 * power)).sum() - mean**2)
        assert abs((last**power).mean() - mean) < 4 * spread / sqrt(paths)


# Kernels ---------------------------------------------------------------------------------------------------


def test_particles_of_a_kernel_learn_the_mean_and_not_the_spread() -> None:
    """theta of the toy model is the MLE; of the posterior's variance 1/2 20 particles keep 0.87."""
    run = solve(built("hierarchical", "svgd_em", run={"steps": 500}, save={"every": 100})).dataset
    assert abs(run.theta[-1].item() - Hierarchical().data.mean().item()) < 1e-4
    assert run.X[-1].var("particle").mean().item() / 0.5 == pytest.approx(0.87, abs=0.02)


@pytest.mark.slow  # 10 s
def test_where_a_kernel_ends_on_real_data() -> None:
    """At 0.68, whatever moves theta, where the MLE is 0.9: a quarter of the variance is left."""
    variances = []
    for variant, steps in (("svgd_em", 4000), ("coin_em", 1500)):
        run = solve(built("breast_cancer", variant, run={"steps": steps}, save={"every": 500})).dataset
        assert run.theta[-1].item() == pytest.approx(0.68, abs=0.005)
        variances.append(run.X[-1].var("particle").mean().item())
    noisy = solve(
        built("breast_cancer", run={"steps": 1000}, save={"every": 500, "particles": "all"})
    ).dataset
    assert variances == pytest.approx([0.25 * noisy.X[-1].var("particle").mean().item()] * 2, rel=0.2)

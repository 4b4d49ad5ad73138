"""Image models, on made-up images so that nothing need be fetched.

Oracles: torch.distributions for the mixture prior, counted weights for the decoder.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.problems.images import Images
from sdeflow.problems.networks import convolutional
from sdeflow.seeds import generator
from sdeflow.simulation.solve import solve

SHAPES = {"cifar10": (3, 32, 32), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28)}


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred random images in place of a data set."""

    def load(name: str, split: str = "train") -> tuple[Any, Any]:
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (200, *SHAPES[name]), np.uint8), np.zeros(200, np.uint8)

    monkeypatch.setattr("sdeflow.data.images.load_images", load)


SMALL = {
    "cifar10": {"model": {"width": 1, "latent": 4, "pseudo_points": 3, "held_out": 7}, "batch": {"size": 10}}
}
SMALL["mnist"] = SMALL["fashion_mnist"] = {
    "model": {"hidden": [8], "latent": 4, "held_out": 7},
    "batch": {"size": 10},
}
SMALL["fashion14"] = {
    "model": {"images": 100, "hidden": [8], "latent": 4, "held_out": 7},
    "batch": {"size": 10},
}
SMALL["cifar16"] = {
    "model": {"images": 100, "width": 1, "latent": 4, "held_out": 7},
    "batch": {"size": 10},
}
SMALL["cifar10_small"] = {
    "model": {"images": 100, "latent": 4, "held_out": 7},
    "batch": {"size": 10},
    "evaluate": {"every": 3},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("scheme", ["expint", "expint_shared"])
def test_problems_run(name: str, scheme: str) -> None:
    """Each packaged problem with its own settings but for the sizes."""
    run = {"run": {"steps": 6, "integrator": scheme}, "save": {"every": 3}}
    problem = build(load_config(problem_file(name), overrides=[SMALL[name], run]))
    solution = solve(problem)
    assert solution.retcode == "success"
    assert float(solution.dataset.loss[-1]) < float(solution.dataset.loss[0])


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *(("cifar10", v) for v in ("as_published", "pgd", "width128", "width128_mixture")),
        ("cifar10", "width128_energy"),
        ("mnist", "literature"),
        ("mnist", "literature_energy"),
        ("fashion14", "energy"),
        ("cifar16", "energy"),
    ],
)
def test_variants_run(name: str, variant: str) -> None:
    """Each with its own settings but for the sizes; those of `literature` are below."""
    run = {"run": {"steps": 4}, "save": {"every": 4}, "model": {"images": 100}}
    over = [SMALL[name], run, {"model": {"pseudo_points": 0}} if "energy" in variant else {}]
    assert solve(build(load_config(problem_file(name), variant=variant, overrides=over))).retcode == "success"


def test_numbers_of_the_full_size_files() -> None:
    """As published: steps, inverse masses, frictions, N and catch-up; the particle literature's sizes."""

    def tables(name: str, variant: str) -> dict[str, Any]:
        return load_config(problem_file(name), variant=variant).tables()

    published = tables("cifar10", "as_published")
    for block in ("theta", "x"):
        motion = published["system"][block]
        assert (motion["h"], motion["eta"], motion["gamma"]) == (1e-4, 500, 0.9)
    assert published["system"]["theta"]["precondition"] == "rmsprop"
    assert (published["system"]["particles"], published["model"]["width"]) == (5, 256)
    assert (published["batch"]["catch_up"], published["run"]["integrator"]) == ("one_step", "expint")
    pgd = tables("cifar10", "pgd")
    assert (pgd["system"]["theta"]["h"], pgd["system"]["x"]["h"]) == (1e-4, 1e-3)
    assert pgd["batch"]["catch_up"] == "off"
    for variant in ("as_published", "pgd"):
        model = tables("cifar10", variant)["model"]
        assert (model["latent"], model["sigma"]) == (128, 0.3)
    literature = tables("mnist", "literature")
    assert (literature["model"]["images"], literature["model"]["hidden"]) == (10_000, [512, 512, 512])
    assert literature["model"]["latent"] == 64
    assert (literature["system"]["particles"], literature["batch"]["size"]) == (10, 128)


@pytest.mark.parametrize("dataset", ["cifar10", "mnist"])
def test_pooled_pixels_are_means_of_squares(dataset: Any) -> None:
    """Of the bytes, by numpy; then scaled and dequantised, and so are images that are compared."""
    raw, _ = __import__("sdeflow.data.images", fromlist=["load_images"]).load_images(dataset)
    model = Images(dataset, images=20, held_out=5, decoder="mlp", hidden=[3], latent=2, pool=2)
    n, channels, side, _ = raw.shape
    means = raw.reshape(n, channels, side // 2, 2, side // 2, 2).astype(np.float64).mean((3, 5)) / 127.5 - 1
    assert model.image_shape == means.shape[1:]
    real = model.real_images("train")
    np.testing.assert_allclose(real, means, rtol=0, atol=1e-6)
    assert -1 <= float(real.min()) <= float(real.max()) <= 1
    for data, expected in ((model.data, means[:20]), (model.held_out, means[:5])):
        added = data.numpy() - expected.reshape(len(data), -1)
        assert added.min() > -1e-6
        assert added.max() < 1 / 256 + 1e-6
        assert added.std() > 1e-4


def test_the_convolutional_decoder_begins_at_a_quarter_of_the_side() -> None:
    model = Images("cifar10", images=3, width=2, latent=5, pool=2)
    shapes = {name: tuple(value.shape) for name, value in model.network.named_parameters()}
    assert shapes == {
        "decoder.1.weight": (5, 16, 4, 4),
        "decoder.3.weight": (16, 8, 4, 4),
        "decoder.5.weight": (8, 4, 4, 4),
        "decoder.7.weight": (3, 4, 3, 3),
    }
    theta = dict(model.network.named_parameters())
    assert model.decode(theta, torch.zeros(2, 5)).shape == (2, 3 * 16 * 16)
    with pytest.raises(SdeflowError, match="images of 10 × 10 are no multiple of 4"):
        Images("cifar10", images=3, width=2, latent=5, pool=3)


def test_the_published_decoder_has_its_weights() -> None:
    """ngf = 256 without biases: d 8f 8^2 + 8f 4f 4^2 + 4f 2f 4^2 + 2f 3 3^2, counted on the meta device."""
    with torch.device("meta"):
        network = convolutional(64, 256, 3)
    f = 256
    weights = 64 * 8 * f * 64 + 8 * f * 4 * f * 16 + 4 * f * 2 * f * 16 + 2 * f * 3 * 9
    assert sum(p.numel() for p in network.parameters()) == weights
    assert network(torch.empty(2, 64, device="meta")).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_decoder_has_its_channels_last_and_the_numbers_that_it_had(replicas: int) -> None:
    """Of images and gradients, of replicas at once too; the oracle has its channels first, in float64."""
    g = torch.Generator().manual_seed(0)
    network = convolutional(5, 4, 3, 8)
    first = deepcopy(nn.Sequential(nn.Unflatten(1, (5, 1, 1)), *network[1:])).double()
    x = torch.randn(replicas, 6, 5, generator=g)
    assert network(x[0]).is_contiguous(memory_format=torch.channels_last)

    def total(x: Any, network: Any, weights: Any) -> Any:
        return functional_call(network, weights, (x,)).square().sum()

    weights = {name: v.detach() for name, v in network.named_parameters()}
    exact = {name: v.double() for name, v in weights.items()}
    gradients = vmap(grad(total, (0, 2)), in_dims=(0, None, None))
    found = gradients(x, network, weights) if replicas > 1 else grad(total, (0, 2))(x[0], network, weights)
    for r in range(replicas):
        expected = grad(total, (0, 2))(x[r].double(), first, exact)
        own = tree_map(lambda v, r=r: v[r], found) if replicas > 1 else found
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_pixels_are_scaled_dequantised_and_clipped() -> None:
    model = Images("cifar10", images=50, width=1, latent=2)
    raw, _ = __import__("sdeflow.data.images", fromlist=["load_images"]).load_images("cifar10")
    plain = torch.from_numpy(raw[:50].reshape(50, -1)).float() / 127.5 - 1
    added = model.data - plain
    assert model.data.min() >= -1
    assert model.data.max() <= 1
    inside = model.data < 1
    assert bool((added[inside] >= -1e-6).all())
    assert bool((added <= 1 / 256 + 1e-6).all())
    mean, error = added[inside].mean().item(), (1 / 256) / 12**0.5 / inside.sum().item() ** 0.5
    assert abs(mean - 1 / 512) < 5 * error + 1e-6
    assert torch.equal(model.data, Images("cifar10", images=50, width=1, latent=2).data)


def test_pixels_may_be_dequantised_at_each_visit() -> None:
    """Data are then pixels as published; what steps see has U(0, 1/256) added, and held-out data have it."""
    small: Any = {"width": 1, "latent": 2, "held_out": 5}
    model, once = (Images("cifar10", images=50, dequantise=d, **small) for d in ("each_visit", "once"))
    raw, _ = __import__("sdeflow.data.images", fromlist=["load_images"]).load_images("cifar10")
    plain = torch.from_numpy(raw[:50].reshape(50, -1)).float() / 127.5 - 1
    torch.testing.assert_close(model.data, plain, rtol=0, atol=1e-6)
    u = torch.rand(model.data.shape, generator=generator(0))
    torch.testing.assert_close(model.at_access(model.data, u), (plain + u / 256).clamp(-1, 1))
    assert once.at_access is None
    added = model.held_out - torch.from_numpy(raw[:5].reshape(5, -1)).float().div(127.5).sub(1)
    assert float(added.max()) > 1 / 300
    with pytest.raises(SdeflowError, match="dequantise must be 'once' or 'each_visit', given 'never'"):
        Images("mnist", dequantise="never")  # type: ignore[arg-type]


def test_log_joint_against_torch_distributions() -> None:
    """The mixture prior and the Gaussian likelihood, in float64."""
    model = Images("mnist", images=5, decoder="mlp", hidden=[7], latent=3, pseudo_points=4, sigma=0.3)
    model = model.to(torch.float64, torch.device("cpu"))  # type: ignore[assignment]
    torch.manual_seed(0)
    theta = {k: v.detach().double() for k, v in model.init_theta(generator(0)).named_parameters()}  # type: ignore[union-attr]
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    mean, variance = torch.func.functional_call(model.network, theta, (None,))
    components = Independent(Normal(mean, variance.sqrt()), 1)
    prior = MixtureSameFamily(Categorical(torch.ones(4, dtype=torch.float64)), components)
    image = model.decode(theta, x.flatten(0, 1)).view(5, 2, -1)
    expected = prior.log_prob(x) + Normal(image, 0.3).log_prob(model.data[:, None]).sum(-1)
    torch.testing.assert_close(model.log_joint(theta, x, model.data), expected, rtol=1e-10, atol=1e-8)
    flat = x.flatten(0, 1)
    torch.testing.assert_close(model.log_prior(theta, flat), prior.log_prob(flat), rtol=1e-10, atol=1e-8)
    drawn = model.sample_data(theta, flat[:1].expand(400, -1), generator(2))
    z = (drawn - model.decode(theta, flat[:1])) / 0.3
    assert abs(float(z.var()) - 1) < 4.5 * (2 / z.numel()) ** 0.5
    plain = Images("mnist", images=5, decoder="mlp", hidden=[7], latent=3)
    torch.testing.assert_close(plain.log_prior({}, flat), Normal(0, 1).log_prob(flat).sum(1))


def test_samples_of_the_mixture_have_its_moments() -> None:
    """4000 draws: mean within 5 standard errors."""
    model = Images("mnist", images=5, decoder="mlp", hidden=[7], latent=2, pseudo_points=3)
    torch.manual_seed(0)
    theta = {k: v.detach() for k, v in model.init_theta(generator(0)).named_parameters()}  # type: ignore[union-attr]
    mean, variance = torch.func.functional_call(model.network, theta, (None,))
    x = model.sample_prior(theta, 4000, generator(1))
    spread = (variance + mean**2).mean(0) - mean.mean(0) ** 2
    assert bool(((x.mean(0) - mean.mean(0)).abs() < 5 * (spread / 4000).sqrt()).all())


def test_what_does_not_fit_is_refused() -> None:
    for arguments, sentence in (
        ({"dataset": "mnist", "pool": 2}, "images of 14 × 14 are no multiple of 4"),
        ({"dataset": "mnist", "pool": 0}, r"pool must lie in 1\.\.8, given 0"),
        ({"dataset": "cifar10", "images": 201}, r"1\.\.200, given 201"),
        ({"dataset": "cifar10", "sigma": 0.0}, "sigma must be positive"),
        ({"dataset": "cifar10", "width": 0}, "at least 1"),
        (
            {"dataset": "mnist", "decoder": "mlp", "held_out": 201},
            r"held_out must lie in 0\.\.200, given 201",
        ),
    ):
        with pytest.raises(SdeflowError, match=sentence):
            Images(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SHAPES)
def test_real_images_are_the_bytes_as_published(name: Any) -> None:
    """All of them, of which the model's data are the first, dequantised; rounding gives back each byte."""
    from sdeflow.analysis.features import as_bytes

    small: Any = {"width": 1} if name == "cifar10" else {"hidden": [3], "decoder": "mlp"}
    model = Images(name, images=30, held_out=4, latent=2, **small)
    raw, _ = __import__("sdeflow.data.images", fromlist=["load_images"]).load_images(name)
    for split, data in (("train", model.data), ("test", model.held_out)):
        real = model.real_images(split)
        assert real.dtype == torch.uint8
        assert torch.equal(real, torch.from_numpy(raw))
        assert torch.equal(as_bytes(data.reshape(-1, *model.image_shape)), real[: len(data)])

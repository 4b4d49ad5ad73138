"""The Bayesian network, on made-up images so that nothing need be fetched.

Oracles: torch.distributions for the log-joint, numpy for features, closed forms for the prior's parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal

from sdeflow import Save, SdeflowError, pgd, simulate
from sdeflow.problems.bayesian_network import BayesianNetwork


def made(name: str = "mnist", split: str = "train") -> tuple[Any, Any]:
    """Labels go round from 0 to 9; images of a 9 are brighter below, and one pixel is always 0."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 200, (400, 1, 28, 28), np.uint8), (np.arange(400) % 10).astype(np.uint8)
    images[labels == 9, :, 14:] += 50
    images[:, :, 0, 0] = 0
    return images, labels


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdeflow.data.images.load_images", made)


THETA = {"alpha": torch.tensor(0.3, dtype=torch.float64), "beta": torch.tensor(-0.4, dtype=torch.float64)}


def test_features_are_standardised_pixels_of_two_classes_in_order() -> None:
    model = BayesianNetwork(images=50, skip=10, pool=2)
    images, labels = made()
    own = np.flatnonzero((labels == 4) | (labels == 9))[10:60]
    pixels = images[own].reshape(50, 14, 2, 14, 2).astype(np.float64).mean((2, 4)).reshape(50, -1)
    rows = torch.cat([model.data[0], model.unseen]).numpy()
    np.testing.assert_allclose(rows[:, :-1], (pixels - pixels.mean(0)) / pixels.std(0), atol=1e-10)
    np.testing.assert_array_equal(rows[:, -1], np.where(labels[own] == 9, 1, -1))
    assert (len(model.data[0]), len(model.unseen)) == (40, 10)
    assert (BayesianNetwork(images=20).data[0, :, 0] == 0).all()  # a pixel that is always alike


def test_log_joint_is_that_of_torch_distributions() -> None:
    model = BayesianNetwork(images=20, hidden=3, pool=7)
    g = torch.Generator().manual_seed(0)
    x = 0.5 * torch.randn(1, 4, *model.latent_shape, generator=g, dtype=torch.float64)
    found = model.log_joint(THETA, x, model.data)
    assert found.shape == (1, 4)
    for j in range(4):
        w, v = x[0, j, : 3 * 16].view(3, 16), x[0, j, 3 * 16 :].view(2, 3)
        outputs = torch.tanh(model.data[0, :, :-1] @ w.mT) @ v.mT
        label = (model.data[0, :, -1] > 0).long()
        expected = Categorical(logits=outputs).log_prob(label).sum()
        expected += Normal(0, THETA["alpha"].exp()).log_prob(w).sum()
        expected += Normal(0, THETA["beta"].exp()).log_prob(v).sum()
        assert float(found[0, j]) == pytest.approx(float(expected), rel=1e-12)


def test_draws_of_the_prior_have_its_scales() -> None:
    model = BayesianNetwork(images=20, hidden=3, pool=7)
    xi = torch.randn(5, *model.latent_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made, d = model.draw_prior(THETA, xi), model.latent_shape[0]
    change = -3 * 16 * 0.3 + 6 * 0.4 - d * np.log(2 * np.pi) / 2
    expected = -xi.square().sum(-1) / 2 + change
    torch.testing.assert_close(model.log_prior(THETA, made), expected, rtol=1e-12, atol=0)
    assert model.sample_prior(THETA, 2, torch.Generator()).shape == (2, d)


def test_held_out_measures_are_those_of_the_averaged_probability() -> None:
    model = BayesianNetwork(images=30, hidden=2, pool=14)
    x = torch.randn(
        1, 6, *model.latent_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    p = torch.stack([torch.sigmoid(model.logits(one, model.unseen)) for one in x[0]]).mean(0)
    seen = model.observables(THETA, x, model.data)
    assert float(seen["held_out_log_loss"]) == pytest.approx(float(-p.log().mean()), rel=1e-12)
    assert float(seen["held_out_error"]) == float((p < 0.5).double().mean())


def test_it_learns_to_tell_them_apart() -> None:
    """Replicas as one by one; the MLE of a scale given weights is their root mean square."""
    model = BayesianNetwork(images=60, hidden=4, pool=7)
    system = pgd(model, particles=3, theta={"h": 1e-3}, x={"h": 0.01})
    run = simulate(system, steps=60, replicas=2, save=Save(every=60, particles=1), dtype="float64")
    late = run["held_out_error"].isel(time=-1)
    assert (late < 0.2).all()
    alone = simulate(system, steps=60, seed=1, save=Save(every=60, particles=1), dtype="float64")
    np.testing.assert_allclose(run["theta"][-1, 1], alone["theta"][-1], rtol=1e-9)
    x = torch.randn(
        1, 2, *model.latent_shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    w, v = x[..., : model.weights], x[..., model.weights :]
    scales = {"alpha": w.square().mean().log() / 2, "beta": v.square().mean().log() / 2}
    parts = {k: value.requires_grad_() for k, value in scales.items()}
    model.log_joint(parts, x, model.data).sum().backward()
    assert all(abs(float(value.grad)) < 1e-9 for value in parts.values())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": [4, 4]}, "two labels"),
        ({"held_out": 1.0}, "share between 0 and 1"),
        ({"hidden": 0}, "at least 1 and skip at least 0"),
        ({"images": 100}, "and 80 of these classes are left of mnist after 0"),
        ({"images": 60, "skip": 30}, "and 50 of these classes are left of mnist after 30"),
        ({"images": 2, "held_out": 0.1}, "an image or more on each side"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SdeflowError, match=message):
        BayesianNetwork(**arguments)

"""The noise of minibatches' forces: its measure on known samples, and the loss that it adds under real steps.

Oracles: sample covariances by NumPy; the stationary law of a damped well that is kicked, by simulation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sdeflow
from sdeflow import Batch, Save, mpgd, pgd, simulate
from sdeflow.errors import StabilityWarning
from sdeflow.system.block import Block
from sdeflow.tuning.choice import MOST_FRICTION, Pace, quiet
from sdeflow.tuning.gradient_noise import noise_of

PACE = Pace(h=1.2, parameters=0.1, particles=0.1, limit=1.5)


def block(*, kinetic: bool = True) -> Block:
    return Block(
        "theta",
        "theta",
        (3,),
        ("param",),
        momentum="m" if kinetic else None,
        eta=1.0,
        gamma=1.0,
        temperature=0.0,
        role="parameters",
    )


def test_noise_is_the_variance_over_heat_and_signal() -> None:
    forces = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]]), torch.tensor([[2.0, -4.0]])]
    sample = np.array([[1, 2], [3, 2], [2, -4]], float)
    variance = sample.var(0, ddof=1).sum()
    signal = max(0.0, float((sample.mean(0) ** 2).sum() - variance / 3))
    assert noise_of(forces, 5.0, 7.0) == pytest.approx(variance / (5 * 7 + signal / 2))
    assert noise_of([forces[0]] * 3, 5.0, 7.0) == 0.0


def test_friction_first_and_then_shorter_steps() -> None:
    assert quiet(block(), PACE, 0.0) == (0.1, 1.0)
    assert quiet(block(), PACE, 1.0) == (pytest.approx(0.3), 1.0)
    assert quiet(block(), PACE, 20.0) == (MOST_FRICTION, pytest.approx(1.2 * 20 / 4 / MOST_FRICTION))
    assert quiet(block(kinetic=False), PACE, 1.0) == (0.0, 1.0)
    assert quiet(block(kinetic=False), PACE, 50.0) == (0.0, pytest.approx(1.2**2 * 50 / 8))


@pytest.mark.parametrize("k", [0.5, 1.5])
def test_noise_adds_the_loss_that_it_is_said_to(k: float) -> None:
    """A well of curvature L under baoab at h = 0.3 in units of L = 1, its force off by normals of variance S.

    The mean potential is h S / (4 gamma); 20,000 wells, 5 standard errors and 3% for a step that is not 0.
    """
    curvature, s, h = 4.0, 9.0, 0.3
    eta, gamma = 1 / curvature, k * curvature
    g = torch.Generator().manual_seed(0)
    q, p = torch.zeros(20_000, dtype=torch.float64), torch.zeros(20_000, dtype=torch.float64)

    def force(q: Tensor) -> Tensor:
        return -curvature * q + s**0.5 * torch.randn(q.shape, generator=g, dtype=torch.float64)

    f = force(q)
    for _ in range(400):
        p = p + h / 2 * f
        q = q + h / 2 * eta * p
        p = float(np.exp(-gamma * eta * h)) * p
        q = q + h / 2 * eta * p
        f = force(q)
        p = p + h / 2 * f
    potential = curvature * q.square() / 2
    error = float(potential.std()) / len(q) ** 0.5
    expected = h * s / (4 * gamma)
    assert abs(float(potential.mean()) - expected) < 5 * error + 0.03 * expected


class Counts(sdeflow.Model):
    """y ~ Poisson(exp x), x ~ N(theta, 1): curvature grows as exp x on the way to the data."""

    latent_shape = (1,)

    def __init__(self, data: int = 100, mean: float = 3.0) -> None:
        g = torch.Generator().manual_seed(0)
        x = mean + torch.randn(data, 1, generator=g, dtype=torch.float64)
        self.data = torch.poisson(x.exp(), generator=g)

    def init_theta(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"mean": torch.zeros(())}

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return (y[:, None] * x - x.exp() - (x - theta["mean"]).square() / 2).sum(-1)


@pytest.mark.parametrize("system", [mpgd, pgd])
@pytest.mark.parametrize("mean", [3.0, 6.0])
def test_curvature_that_grows_by_orders_of_magnitude_on_the_way(system: Any, mean: float) -> None:
    """A step that suits the start is e^20 too long; the run gets to the data all the same, or near."""
    for seed in (0, 1):
        run = simulate(system(Counts(mean=mean), particles=10), steps=600, seed=seed)
        assert abs(float(run["theta"][-1, 0]) - mean) < 0.5
        assert run["tuning_returns"].values[-1] < 10


def test_minibatches_find_it_where_curvature_grows_less() -> None:
    for seed in (0, 1, 2):
        run = simulate(mpgd(Counts(1000, 1.0), particles=10), steps=1000, seed=seed, batch=Batch(50, "off"))
        assert abs(float(run["theta"][-1, 0]) - 1.0) < 0.7
        assert run["noise_theta"].values[-1] > 0


def test_a_run_does_not_depend_on_when_it_is_saved() -> None:
    """With returns from states that are not finite, too; nor therefore on where chunks end."""
    runs = [
        simulate(mpgd(Counts(30, 6.0), particles=3), steps=120, save=Save(every=every), dtype="float64")
        for every in (1, 40, 120)
    ]
    assert runs[0]["tuning_returns"].values[-1] > 0
    for run in runs[1:]:
        for name in ("theta", "X", "tuning_margin", "eta_x"):
            np.testing.assert_array_equal(run[name][-1], runs[0][name][-1])


class Raising(Counts):
    """As torch's distributions do, it refuses a rate that is no number."""

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        if not bool((x.exp() < 1e30).all()):
            raise ValueError("the rate is out of range")
        return super().log_joint(theta, x, y)


def test_a_model_that_raises_far_from_its_data_is_led_back() -> None:
    model = mpgd(Raising(50, 5.0), particles=4)
    run = simulate(model, steps=300, save=Save(every=7))
    assert run["tuning_returns"].values[-1] > 0
    assert abs(float(run["theta"][-1, 0]) - 5.0) < 0.6


def test_a_loss_that_ends_far_above_its_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdeflow.tuning.warm_up import WarmUp

    monkeypatch.setattr(WarmUp, "_allowed", lambda self, good: 1e-9)
    monkeypatch.setattr(WarmUp, "next", lambda self, n: None)
    with pytest.warns(StabilityWarning, match=r"the loss rose from .* give h, eta and gamma"):
        run = simulate(mpgd(Counts(30, 3.0), particles=3), steps=3)
    assert "the loss rose from" in run.attrs["warnings"]


class OnePrecision(Counts):
    """With a constant that has a precision of its own."""

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return super().log_joint(theta, x, y) + 0 * (x @ torch.ones(1, 1)).sum(-1)


def test_a_model_of_one_precision_is_measured_in_it() -> None:
    run = simulate(mpgd(OnePrecision(50, 0.0), particles=4), steps=100)
    same = simulate(mpgd(Counts(50, 0.0), particles=4), steps=100)
    np.testing.assert_allclose(run["curvature_theta"][0], same["curvature_theta"][0], rtol=2e-3)
    np.testing.assert_allclose(run["curvature_x"][0], same["curvature_x"][0], rtol=2e-3)

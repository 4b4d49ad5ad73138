"""W_2 to the posterior: against the general formula, its floor, and its rate, which is the state's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from support import doubles

from sdeflow import Save, mpgd, simulate
from sdeflow.analysis.distances import gaussian_w2
from sdeflow.analysis.posterior import posterior_w2
from sdeflow.analysis.rates import over_replicas
from sdeflow.analysis.stability import contraction, equilibrium
from sdeflow.config.catalogue import integrator_named
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.system import initial_state


def clouds(x: np.ndarray) -> xr.Dataset:
    return xr.Dataset({"X": (("time", "datum", "particle", "latent"), x[None])})


def test_is_the_distance_of_gaussians() -> None:
    model = Hierarchical(data=3, scale=0.7)
    x = torch.randn(3, 20, 1, generator=torch.Generator().manual_seed(0)).double().numpy()
    v, mle, y = 1 / (1 + 1 / 0.49), float(model.data.mean()), model.data.numpy()
    squares = [
        gaussian_w2(x[i].mean(0), x[i].var(0, ddof=1), v * (y[i] + mle / 0.49), v) ** 2 for i in range(3)
    ]
    assert float(posterior_w2(clouds(x), model)[0]) == pytest.approx(sum(squares) ** 0.5, rel=1e-10)
    with pytest.raises(SdeflowError, match="all 3 data"):
        posterior_w2(clouds(x[:2]), model)


def test_draws_of_the_posterior_are_at_the_floor() -> None:
    """3 v D/(2 N), the sum of D = 400 terms of relative spread sqrt(2.5)/1.5, about 1.1; 4 of its errors."""
    model = Hierarchical(data=400, scale=0.7)
    v, mle = 1 / (1 + 1 / 0.49), float(model.data.mean())
    noise = torch.randn(400, 100, 1, generator=torch.Generator().manual_seed(1)).double().numpy()
    x = (v * (model.data.numpy() + mle / 0.49))[:, None] + v**0.5 * noise
    assert float(posterior_w2(clouds(x), model)[0]) ** 2 == pytest.approx(6 * v, rel=4 * 1.1 / 20)


def test_falls_as_the_means_do() -> None:
    """W_2^2 is the squared distance of the noiseless means plus the floor, 3 v D/(2 N) to 1/N, on the way.

    Overdamped, over 8 replicas: at 7 times from 0.3 to 10^-5 of the start within 4.5 standard errors; and the
    noiseless means fall at the rate of the scheme's slowest mode in the end, to 10^-3.
    """
    data, particles = 20, 200
    motion = {"eta": 2000.0, "gamma": 2.0}
    model, h = Hierarchical(data=data), {"theta": {"h": 5e-4, **motion}, "x": {"h": 1e-2, **motion}}
    options: dict = {"steps": 5000, "save": Save(every=50, data="all", particles="all"), "dtype": "float64"}
    noisy = simulate(mpgd(model, particles=particles, **h), "expint", replicas=8, **options)
    squares = (posterior_w2(noisy, model) ** 2).transpose("time", "replica").to_numpy()

    single = mpgd(model, particles=1, **h)
    scheme, silent = integrator_named("expint"), {"U": {k: torch.zeros(1, data, 1, 1) for k in "PQ"}}
    z = initial_state(single, doubles())
    z = {name: torch.zeros_like(value) for name, value in z.items()}
    target = (model.data + model.data.mean()) / 2
    gaps = [float((z["X"][0, :, 0] - target).norm())]
    for k in range(100):
        z = advance(EagerSteps(single, scheme, lambda n: (silent,)), z, 50 * k, 50)
        gaps.append(float((z["X"][0, :, 0] - target).norm()))

    floor = 1.5 * 0.5 * data / particles
    for i in (6, 15, 25, 35, 45, 55, 65):
        found = over_replicas(squares[i])
        assert abs(found.mean - gaps[i] ** 2 - floor) < 4.5 * found.error + floor / particles
    rate = np.log(gaps[90] / gaps[100]) / 500
    few = mpgd(model, particles=2, **h)
    assert rate == pytest.approx(-np.log(contraction(few, scheme, equilibrium(few))), rel=1e-3)

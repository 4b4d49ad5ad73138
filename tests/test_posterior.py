"""W_2 to the posterior: against the general formula, its floor, and its rate, which is the state's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from sdeflow import Save, mpgd, simulate
from sdeflow.analysis.distances import gaussian_w2
from sdeflow.analysis.posterior import posterior_w2
from sdeflow.analysis.rates import fit_decay, over_replicas
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical


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


def test_falls_at_the_state_s_rate() -> None:
    """Overdamped, over 6 replicas: the difference of the two fitted rates within 4 of its standard errors."""
    motion = {"eta": 2000.0, "gamma": 2.0}
    model = Hierarchical(data=20)
    system = mpgd(model, particles=200, theta={"h": 5e-4, **motion}, x={"h": 1e-2, **motion})
    run = simulate(
        system,
        "expint",
        steps=4000,
        replicas=6,
        save=Save(every=10, data="all", particles="all"),
        device="cpu",
    )
    steps = run["step"].to_numpy().astype(float)
    w2 = posterior_w2(run, model).transpose("time", "replica").to_numpy()
    theta = run.theta.isel(param=0).to_numpy()
    pairs = [(fit_decay(steps, w2[:, r]).rate, fit_decay(steps, theta[:, r]).rate) for r in range(6)]
    gap = over_replicas([a - b for a, b in pairs])
    assert abs(gap.mean) < 4 * gap.error
    assert gap.error < 0.02 * np.mean(pairs)

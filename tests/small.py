"""Small models and systems, and runs of them that save everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from support import declared
from torch import Tensor, nn

import sdeflow
from sdeflow import EnergyModel, Save
from sdeflow.config.catalogue import find
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.ending import Solution
from sdeflow.simulation.solve import solve
from sdeflow.system.system import BlockSystem

D, N, R = 5, 4, 8
"""Data, particles, replicas."""

THETA = {"h": 2e-3, "eta": 3.0, "gamma": 0.7}
X = {"h": 1e-2, "eta": 2.0, "gamma": 0.5}
"""Motions of the two blocks of `system_of`."""

MOTION = {"h": 0.1, "eta": 2.0, "gamma": 0.5}
LIGHT = {"h": 1e-3, "eta": 300.0, "gamma": 1.0}
"""Motions of any block, the second of a small mass."""

SIZES = {"points": 12, "held_out": 4, "energy_hidden": [8]}
"""Of a LatentEBM."""

CPU = torch.device("cpu")
FLOAT64 = {"dtype": torch.float64, "device": CPU}


class Autograd(Hierarchical):
    """The toy model without its analytic scores."""

    score_x = score_theta = None


class Net(sdeflow.Model):
    """y_i ~ N(A x_i + b, 1) with latents x_i [2, 3] from N(0, I); its parameters are those of a module."""

    latent_shape = (2, 3)

    def __init__(self) -> None:
        self.data = torch.linspace(-1, 1, 2 * D, dtype=torch.float64).view(D, 2)

    def init_theta(self, generator: torch.Generator) -> nn.Module:
        return nn.Linear(6, 2)

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        mean = nn.functional.linear(x.flatten(-2), theta["weight"], theta["bias"])
        return -((y[:, None] - mean) ** 2).sum(-1) / 2 - x.square().sum((-2, -1)) / 2

    def observables(self, theta: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"spread": x.std()}


class Precision(EnergyModel):
    """x ~ N(0, e^-alpha), y | x ~ N(x, 1): an energy whose gradient in alpha is not linear in x."""

    latent_shape = (1,)

    def __init__(self) -> None:
        self.data = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)

    def energy(self, alpha: Any, x: Tensor) -> Tensor:
        return alpha["log"].exp() * x.square().sum(-1) / 2

    def log_likelihood(self, beta: Any, x: Tensor, y: Tensor) -> Tensor:
        return -(y[:, None] - x).square().sum(-1) / 2

    def init_alpha(self, generator: torch.Generator) -> Any:
        return {"log": torch.tensor(0.5)}


class Ramp:
    """A user's SDE: drift and diffusion, nothing else."""

    def drift(self, t: float, x: Tensor) -> Tensor:
        return t - x

    def diffusion(self, t: float, x: Tensor) -> float:
        return 0.3


def system_of(model: sdeflow.Model, name: str = "mpgd") -> BlockSystem:
    return find("systems", name)(model, particles=N, theta=THETA, x=X)


def tiny(model: sdeflow.Model | None = None, **options: Any) -> BlockSystem:
    """pgd with two particles, on three data unless another model is given."""
    return sdeflow.pgd(model or Hierarchical(data=3), particles=2, theta={"h": 0.01}, x={"h": 0.1}, **options)


def run(system: Any, integrator: str = "expint", **options: Any) -> Solution:
    """A run in float64 that saves all data and particles after every step, unless told otherwise."""
    chosen = {
        "steps": 6,
        "seed": 0,
        "replicas": 1,
        "save": Save(every=1, data="all", particles="all"),
        "dtype": "float64",
        "device": "cpu",
        "noise": "torch",
    }
    out = options.pop("out", None)
    return solve(declared(system, integrator, **(chosen | options)), out=out)


def assert_same(a: xr.Dataset, b: xr.Dataset) -> None:
    """All variables and coordinates equal to the bit; text of a file that xarray itself opens is objects."""
    assert dict(a.sizes) == dict(b.sizes)
    assert {*a.variables} == {*b.variables}
    for name in a.variables:
        np.testing.assert_array_equal(a[name], b[name], err_msg=str(name))
        assert a[name].dtype == b[name].dtype or {a[name].dtype.kind, b[name].dtype.kind} == {"O", "U"}, name

"""Valid problems as text, from which bad ones are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Refused = Callable[..., str]
"""What the fixture `refused` gives: `sdeflow run`, which must fail, and its sentence."""


VALID: dict[str, Any] = {
    "title": "A valid problem",
    "model": {"use": "hierarchical", "data": 3, "scale": 0.5},
    "system": {
        "use": "mpgd",
        "particles": 2,
        "theta": {"h": 1e-3, "eta": 2.0, "gamma": 0.5},
        "x": {"h": 1e-2, "eta": 2.0, "gamma": 0.5},
    },
    "run": {"integrator": "expint", "steps": 2, "seed": 0, "replicas": 1, "dtype": "float32"},
    "save": {"every": 1, "data": "all", "particles": [0, 1], "theta_max": 10},
    "variants": {"fast": {"run": {"steps": 1}}},
}

SDE = "[run]\nintegrator = 'euler_maruyama'\nsteps = 1\n[system]\nuse = 'double_well'\n"

MODEL = """
import torch
import sdeflow

class Mine(sdeflow.Model):
    latent_shape = (2,)

    def __init__(self):
        self.data = torch.zeros(3, 2)

    def init_theta(self, generator):
        return {"w": torch.zeros(2)}

    def log_joint(self, theta, x, y):
        return -((x - theta["w"]) ** 2).sum(-1) - ((y[:, None] - x) ** 2).sum(-1)

"""
MODEL_TOML = """
[model]
use = "mine.py:Mine"
[system]
use = "mpgd"
particles = 4
theta = {h = 1e-3, eta = 1.0, gamma = 1.0}
x = {h = 1e-3, eta = 1.0, gamma = 1.0}
[run]
steps = 1
"""

MINE = """
class Mine:
    def drift(self, t, x):
        return -x

    def diffusion(self, t, x):
        return 1.0

"""
SDE_TOML = (
    "[system]\nuse = 'mine.py:Mine'\nh = 0.1\npaths = 3\nstart = [0.0, 1.0]\n" + SDE.partition("[system]")[0]
)
INTEGRATOR_TOML = SDE.replace("euler_maruyama", "mine.py:Mine") + "h = 0.1\n"

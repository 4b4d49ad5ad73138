"""The run that is stopped, damaged and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import sdeflow
from sdeflow import Save
from sdeflow.problems.hierarchical import Hierarchical

STEPS = 11
MOTION = {"eta": 20.0, "gamma": 0.5}
WHOLE: dict[str, Any] = {"steps": STEPS, "save": Save(every=3, checkpoint=0.0), "dtype": "float64"}


def toy(declaration: Any = sdeflow.mpgd, model: Any = None, **theta: Any) -> sdeflow.BlockSystem:
    """Six data and four held-out ones, three particles."""
    model = model or Hierarchical(data=6, theta_true=2.0)
    model.held_out = torch.linspace(-1, 1, 4)[:, None]
    return declaration(model, particles=3, theta={"h": 1e-3, **MOTION, **theta}, x={"h": 1e-2, **MOTION})


def flip(path: Path, at: float) -> None:
    """One bit of the byte that lies so far into the file."""
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)

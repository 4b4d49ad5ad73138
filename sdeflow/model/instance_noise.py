"""Instance noise: Gaussian noise that is added to a model's data once, before anything is learned.

Where data lie on a surface that a model can reach, the likelihood has no maximum: it grows without bound as
the model's own noise tends to 0. Of data y_i + tau xi_i it has one, where that noise is about tau.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.model.model import Model
from sdeflow.seeds import generator

M = TypeVar("M", bound=Model)


def with_instance_noise(model: M, tau: float, seed: int = 0) -> M:
    """The model with tau xi added to its data, and to those held out; xi of standard normals like them.

    tau    standard deviation of the noise, in the data's own units
    seed   of the noise, which depends on nothing else and is the same in every replica

    Raises SdeflowError where the data are not one tensor of real numbers, or are made anew at each visit.
    """
    name = type(model).__name__
    if not tau > 0:
        raise SdeflowError(f"instance_noise is a standard deviation and must be positive, given {tau}")
    if model.at_access is not None:
        raise SdeflowError(
            f"{name} makes its data anew at each visit (at_access), which would not leave instance_noise as "
            "it was added: take one of the two, of images model.dequantise = 'once'"
        )
    noisy: dict[str, Tensor | None] = {}
    for part in ("data", "held_out"):
        y = getattr(model, part)
        if y is None and part == "held_out":
            noisy[part] = None
        elif isinstance(y, Tensor) and y.is_floating_point():
            g = generator(seed, "instance_noise", part)
            noisy[part] = y + tau * torch.randn(y.shape, generator=g, dtype=torch.float64).to(y)
        else:
            given = f"a tensor of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise SdeflowError(
                f"instance_noise needs data in memory that are one tensor of real numbers, and {name}.{part} "
                f"is {given}: leave instance_noise out, or add noise in the model"
            )
    return model.with_data(**noisy)

"""How noisy the forces of minibatches are, and what keeps that noise from drowning what is learned.

A force on parameters from b of D data has a covariance S about that of all. Under steps h of a block without
noise of its own this keeps direction j at a temperature T = h S_jj / (2 gamma), overdamped h S_jj / 2, and so
the potential, a sum over data, in the mean

    h tr S / (4 gamma)    or    h tr S / 4

above its minimum. That is to be below the particles' heat, D d / 2, or while there is much to gain below what
a step along the mean force gains, |f|^2 / (2 L). In units in which L = 1 the ratio of the two is
h nu / (4 k), or h^2 nu / 8 for a step of h^2 / 2, with

    nu = tr S / (L D d / 2 + |f|^2 / 2)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def noise_of(forces: Sequence[Tensor], curvature: float, heat: float) -> float:
    """nu, from the forces of some minibatches at one state, each [R, *shape]; the mean over replicas.

    heat   D d / 2
    """
    f = torch.stack([force.double().flatten(1) for force in forces])  # [batches, R, p]
    variance = f.var(0).sum(1)
    signal = (f.mean(0).square().sum(1) - variance / len(f)).clamp_min(0.0)
    return float((variance / (curvature * heat + signal / 2)).mean())

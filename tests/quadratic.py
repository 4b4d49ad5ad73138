"""Linear-Gaussian problems, whose curvature is the same everywhere, and that curvature by dense matrices."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from small import FLOAT64
from torch import Tensor

from sdeflow.analysis.stability import equilibrium
from sdeflow.config.catalogue import find
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.ill_conditioned import IllConditioned
from sdeflow.state import State
from sdeflow.system.system import BlockSystem

PARTICLES = 2
"""As many carry all modes of any number of them (sdeflow.analysis.stability)."""

MODELS = {
    "hierarchical": lambda: Hierarchical(data=10),
    "ill_conditioned": lambda: IllConditioned(data=3, latent=3, condition=1000.0),
}
"""The models of packaged problems, with fewer data: J^ is the same for any number of them."""


def open_system(name: str, declaration: str = "mpgd", **numbers: Any) -> BlockSystem:
    """A system of a problem whose numbers are 'auto', but for those that are given."""
    return find("systems", declaration)(MODELS[name](), particles=PARTICLES, **numbers).to(**FLOAT64)


def curvatures(system: BlockSystem) -> tuple[dict[str, float], NDArray[np.float64]]:
    """The largest curvature by block, and all eigenvalues of J^, from differences of the linear forces."""
    z: State = equilibrium(system)
    names = [b.name for b in system.blocks]
    places = {b.name: b.position for b in system.blocks}
    sizes = [z[q].numel() for q in places.values()]
    weights = [1.0 if b.role == "parameters" else 1 / PARTICLES for b in system.blocks]
    root = torch.cat(
        [torch.full((n,), w**0.5, dtype=torch.float64) for n, w in zip(sizes, weights, strict=True)]
    )

    def forces(q: Tensor) -> Tensor:
        parts = zip(places.values(), (q / root).split(sizes), strict=True)
        f = system.force_field(0.0, z | {name: v.view_as(z[name]) for name, v in parts}, names)
        return torch.cat([f[name].flatten() for name in names]) * root

    zero = torch.zeros(sum(sizes), dtype=torch.float64)
    eye = torch.eye(len(zero), dtype=torch.float64)
    j = torch.stack([forces(zero) - forces(e) for e in eye], 1).numpy()
    np.testing.assert_allclose(j, j.T, rtol=0, atol=1e-9 * np.abs(j).max())
    ends = np.cumsum([0, *sizes])
    parts = [slice(a, b) for a, b in pairwise(ends)]
    largest = {b: float(np.linalg.eigvalsh(j[at, at])[-1]) for b, at in zip(names, parts, strict=True)}
    scale = np.concatenate([np.full(n, largest[b] ** -0.5) for b, n in zip(names, sizes, strict=True)])
    return largest, np.linalg.eigvalsh(scale[:, None] * j * scale)

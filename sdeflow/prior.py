"""Samples of a learned energy-based prior: its particles, moved on with the parameters held fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sdeflow.energy_forces import EnergyForces
from sdeflow.engine import FullBatch, advance
from sdeflow.integrator import Integrator
from sdeflow.noise import TorchNoise
from sdeflow.system import BlockSystem

State = dict[str, Tensor]


def continued(
    system: BlockSystem, scheme: Integrator, state: State, n: int, steps: int, seed: int = 0
) -> Tensor:
    """n latents [n, d] of exp(-U_alpha)/Z, from prior particles that take `steps` more steps of the scheme.

    Each sample starts from a particle of `state` (alpha [a], Z [P, d], and V like it with momenta); where
    there are more samples than particles some start alike and part by their noise.
    """
    forces = system.force_field
    assert isinstance(forces, EnergyForces)
    (block,) = (b for b in system.blocks if b.name == "z")
    block = replace(block, shape=(n, *block.shape[1:]))
    alpha = state["alpha"][None]

    def of_z(t: float, z: State, names: Sequence[str]) -> State:
        return forces(t, {"alpha": alpha, "Z": z["Z"]}, names)

    alone = BlockSystem([block], of_z, h=system.h)
    count = len(state["Z"])
    take = torch.arange(n) % count if n > count else torch.linspace(0, count - 1, n).round().long()
    z = {name: state[name][None, take] for name in block.variables}
    noise = TorchNoise(
        [replace(channel, key="z/samples") for channel in alone.channels],
        kind=scheme.noise,
        substeps=scheme.substeps,
        h=system.h,
        seeds=[seed],
        dtype=z["Z"].dtype,
        device=z["Z"].device,
    )
    with torch.no_grad():
        z |= scheme.init(alone, z)
    return advance(FullBatch(alone, scheme, noise), z, 0, steps)["Z"][0]

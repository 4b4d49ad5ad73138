"""Samples of a learned energy-based prior: its particles, moved on with the parameters held fixed."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sdeflow.energy_forces import EnergyForces
from sdeflow.maps import exponential
from sdeflow.noise import TorchNoise
from sdeflow.system import BlockSystem

State = dict[str, Tensor]


def continued(system: BlockSystem, state: State, n: int, steps: int, seed: int = 0) -> Tensor:
    """n latents [n, d] of exp(-U_alpha)/Z, from prior particles that take `steps` more steps.

    Each sample starts from a particle of `state` (alpha [a], Z [P, d], and V like it with momenta); where
    there are more samples than particles some start alike and part by their noise. Steps are of the size of
    the run's, by the exponential integrator (Euler-Maruyama without momenta).
    """
    forces = system.force_field
    assert isinstance(forces, EnergyForces)
    assert forces.prior is not None
    (block,) = (b for b in system.blocks if b.name == "z")
    block = replace(block, shape=(n, *block.shape[1:]))
    take = torch.linspace(0, len(state["Z"]) - 1, n).round().long()
    if n > len(state["Z"]):
        take = torch.arange(n) % len(state["Z"])
    z = {name: state[name][None, take] for name in block.variables} | {"alpha": state["alpha"][None]}
    (channel,) = BlockSystem([block], forces, h=system.h).channels
    noise = TorchNoise(
        [replace(channel, key="z/samples")],
        kind="PQ",
        substeps=1,
        h=system.h,
        seeds=[seed],
        dtype=z["Z"].dtype,
        device=z["Z"].device,
    )
    with torch.no_grad():
        for k in range(steps):
            (increments,) = noise(k)
            z |= exponential([block], z, forces(0.0, z, ["z"]), system.h, increments)
    return z["Z"][0]

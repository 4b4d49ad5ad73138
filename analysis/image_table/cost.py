"""What a step costs, in gradient evaluations of the decoder on a minibatch."""

from __future__ import annotations

import torch

from sdeflow.config.run import Run
from sdeflow.machine import operations
from sdeflow.model.amortised import Amortised
from sdeflow.model.energy import ALPHA, named, part
from sdeflow.model.energy_forces import EnergyForces
from sdeflow.model.energy_prior import EnergyPrior
from sdeflow.model.model import Model
from sdeflow.system.system import BlockSystem


def evaluations(run: Run) -> float:
    """Gradient evaluations of a step: those of the decoder, and what other networks add.

    A pass of an encoder, or of an energy on posterior and prior particles, counts as its floating-point
    operations over those of the decoder's pass over the particles of a minibatch.
    """
    assert isinstance(run.system, BlockSystem)
    forces = run.system.model_forces
    assert forces is not None
    model, data = forces.model, run.batch.size if run.batch is not None else forces.n_data
    if isinstance(model, Amortised):  # whose encoder the run itself counts as much as the decoder
        theta = _parameters(model)
        return 1 + operations(lambda: model.law(theta, model.data[:data].float())) / _decoder(
            model.plain, forces.n_particles, data
        )
    if isinstance(forces, EnergyForces) and isinstance(model, EnergyPrior):
        alpha = part(_parameters(model), ALPHA)
        z = torch.zeros(data * forces.n_particles + forces.n_prior_particles, *model.latent_shape)
        added = operations(lambda: model.energy(alpha, z)) / _decoder(model.plain, forces.n_particles, data)
        return run.gradient_evaluations * (1 + added)
    return float(run.gradient_evaluations)


def _decoder(model: Model, particles: int, data: int) -> int:
    """Operations of a model's log-joint of so many data."""
    model = model.to(torch.float32, torch.device("cpu"))
    theta, x = _parameters(model), torch.zeros(data, particles, *model.latent_shape)
    return operations(lambda: model.log_joint(theta, x, model.data[:data]))


def _parameters(model: Model) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        theta = named(model.init_theta(torch.Generator()))
    return {name: value.detach().float() for name, value in theta.items()}

"""Evidence under an energy-based prior: the linear model's closed form, and a quadrature in the plane."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.stats
import torch
from small import SIZES

from sdeflow.analysis.energy_evidence import energy_evidence
from sdeflow.analysis.evidence import fitted, standard
from sdeflow.problems.latent_ebm import LatentEBM
from sdeflow.problems.linear_energy import LinearEnergy


def test_evidence_of_the_linear_model_is_the_closed_form() -> None:
    """log N((y1, y2); (alpha, alpha + beta), 1 + s^2 I) of 4 data: within 4 of the mean's standard errors."""
    model = LinearEnergy(4, noise=0.8, offset=True)
    theta = {"alpha.mean": torch.tensor([0.7]), "beta.offset": torch.tensor([-1.5])}
    found = energy_evidence(model, theta, standard(4, 1), standard(1, 1), chains=500, temperatures=30)
    law = scipy.stats.multivariate_normal([0.7, 0.7 - 1.5], np.ones((2, 2)) + 0.8**2 * np.eye(2))
    truth = law.logpdf(model.data.numpy()[..., 0])
    assert abs(found.log_z.value - np.log(2 * np.pi) / 2) < 4 * found.log_z.error
    assert abs(found.mean.value - truth.mean()) < 4 * found.mean.error
    assert found.mean.error < 0.03


def test_evidence_of_a_neural_energy_is_the_quadrature() -> None:
    """log Z and log p(y) in the plane on a fine grid, 5 data: within 4 of the estimate's standard errors."""
    model = LatentEBM(**(SIZES | {"points": 5, "sigma": 0.3, "gain": 1.5})).to(
        torch.float64, torch.device("cpu")
    )
    theta = {f"alpha.{k}": v.double() for k, v in model.f.named_parameters()}
    axis = torch.linspace(-7, 7, 701, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_w = -model.energy({k.removeprefix("alpha."): v for k, v in theta.items()}, points)
    area = 2 * np.log(14 / 700)
    log_z = float(torch.logsumexp(log_w, 0)) + area
    near = -torch.cdist(model.data, points).square() / (2 * 0.3**2) - np.log(2 * np.pi * 0.3**2)
    truth = (torch.logsumexp(near + log_w, 1) + area - log_z).numpy()
    spread = torch.randn(5, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = model.data[:, None] + 0.3 * spread
    found = energy_evidence(model, theta, fitted(y), standard(1, 2), chains=400, temperatures=40)
    assert abs(found.log_z.value - log_z) < 4 * found.log_z.error
    assert (abs(found.value - truth) < 4 * np.hypot(found.joint.error, found.log_z.error)).all()
    assert found.mean.error < 0.05

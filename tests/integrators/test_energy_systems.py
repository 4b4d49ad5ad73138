"""Schemes on ebipla and kinetic_ebipla for the linear-Gaussian model, where every step is affine.

Oracles: matrices written here from the published equations and from no package code; closed forms of the
model; exact samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from small import Precision
from support import INTEGRATORS, Matrix, affine_map, exponent, places

from sdeflow import ebipla
from sdeflow.config.catalogue import find, integrator_named
from sdeflow.model.energy_forces import EnergyForces
from sdeflow.problems.linear_energy import LinearEnergy
from sdeflow.system.block import Block
from sdeflow.system.system import BlockSystem

D, N, P, NOISE = 3, 2, 4, 1.5
V = 1 / (1 + 2 / NOISE**2)
"""Posterior variance of a coordinate with two observations."""

BLOCKS = {
    "alpha": {"h": 0.02, "eta": 1.3, "gamma": 4.0},
    "beta": {"h": 0.03, "eta": 1.1, "gamma": 0.9},
    "x": {"h": 0.05, "eta": 0.7, "gamma": 1.4},
    "z": {"h": 0.04, "eta": 0.9, "gamma": 1.2},
}
SYSTEMS = ["ebipla", "kinetic_ebipla"]
LATENT = ["alpha", "beta", "x", "z"]


def build(name: str, f: float = 1.0) -> BlockSystem:
    """The system on the model with an offset, all steps times f."""
    blocks = {block: numbers | {"h": f * numbers["h"]} for block, numbers in BLOCKS.items()}
    return find("systems", name)(
        LinearEnergy(D, noise=NOISE, offset=True), particles=N, prior_particles=P, **blocks
    )


def data_of(system: BlockSystem) -> Matrix:
    return system.model_forces.model.data.numpy()[..., 0]


def mle(system: BlockSystem) -> tuple[float, float]:
    y = data_of(system)
    return y[:, 0].mean(), (y[:, 1] - y[:, 0]).mean()


def generator(name: str, system: BlockSystem) -> tuple[Matrix, Matrix, Matrix]:
    """L, c, S of d state = (L state + c) dt + noise of covariance S dt, with averages as they are published:

    d alpha = -( mean_ij (alpha - x_ij) - mean_p (alpha - z_p) ) D dt + sqrt(2/N) dW, and so on; block b's
    drift and noise times h_b over the reference step; kinetic blocks with their momenta.
    """
    y, at = data_of(system), places(system)
    dim = max(place.stop for place in at.values())
    force, constant = np.zeros((dim, dim)), np.zeros(dim)
    alpha, beta, x, z = (at[v] for v in ("alpha", "beta", "X", "Z"))
    force[alpha, alpha] = -D + D
    force[alpha, x], force[alpha, z] = D / (D * N), -D / P
    force[beta, beta], force[beta, x] = -D / NOISE**2, -D / (D * N) / NOISE**2
    constant[beta] = D * y[:, 1].mean() / NOISE**2
    force[x, x] = -np.eye(D * N) * (1 + 2 / NOISE**2)
    force[x, alpha], force[x, beta] = 1.0, -1 / NOISE**2
    constant[x] = np.repeat(y.sum(1) / NOISE**2, N)
    force[z, z], force[z, alpha] = -np.eye(P), 1.0
    drift, shift, noise = np.zeros((dim, dim)), np.zeros(dim), np.zeros((dim, dim))
    for block, position, momentum in zip(
        LATENT, ("alpha", "beta", "X", "Z"), ("m_alpha", "m_beta", "U", "V"), strict=True
    ):
        numbers, q = BLOCKS[block], at[position]
        one, rate = np.eye(q.stop - q.start), numbers["h"] / BLOCKS["x"]["h"]
        temperature = 1 / N if block in ("alpha", "beta") else 1.0
        driven = at[momentum] if name == "kinetic_ebipla" else q
        drift[driven] += rate * force[q]
        shift[driven] += rate * constant[q]
        friction = numbers["gamma"] if name == "kinetic_ebipla" else 1.0
        noise[driven, driven] = 2 * friction * temperature * rate * one
        if name == "kinetic_ebipla":
            drift[q, driven] += rate * numbers["eta"] * one
            drift[driven, driven] -= rate * numbers["gamma"] * numbers["eta"] * one
    return drift, shift, noise


PAIRS = [
    (integrator, name)
    for integrator in INTEGRATORS
    for name in SYSTEMS
    if integrator_named(integrator).refuses(build(name)) is None
]


def test_every_block_integrator_takes_the_kinetic_form() -> None:
    assert {i for i, name in PAIRS if name == "kinetic_ebipla"} == {*INTEGRATORS} - {"nag"}
    all_momenta = {"nag", "obabo", "baoab", "ubu", "quicsort"}
    assert {i for i, name in PAIRS if name == "ebipla"} == {*INTEGRATORS} - all_momenta


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_step_of_euler_maruyama_is_the_equations(name: str) -> None:
    system = build(name)
    drift, shift, noise = generator(name, system)
    probed = affine_map(system, "euler_maruyama")
    h = BLOCKS["x"]["h"]
    assert np.allclose(probed.A, np.eye(len(drift)) + h * drift, rtol=0, atol=1e-13)
    assert np.allclose(probed.b, h * shift, rtol=0, atol=1e-13)
    assert np.allclose(probed.covariance, h * noise, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("integrator", "name"), PAIRS)
def test_means_rest_at_the_maximum_of_the_likelihood(integrator: str, name: str) -> None:
    """Whatever the step: alpha and beta at the MLE, particles at posterior and prior means, momenta zero."""
    system = build(name, 3.0)
    rest, at = affine_map(system, integrator).fixed_point, places(system)
    alpha, beta = mle(system)
    y = data_of(system)
    posterior = V * (alpha + (y.sum(1) - beta) / NOISE**2)
    assert rest[at["alpha"]] == pytest.approx(alpha, abs=1e-11)
    assert rest[at["beta"]] == pytest.approx(beta, abs=1e-11)
    assert rest[at["X"]] == pytest.approx(np.repeat(posterior, N), abs=1e-11)
    assert rest[at["Z"]] == pytest.approx(alpha, abs=1e-11)
    for momentum in {"m_alpha", "m_beta", "U", "V"} & at.keys():
        assert rest[at[momentum]] == pytest.approx(0, abs=1e-11)


@pytest.mark.parametrize(("integrator", "name"), PAIRS)
def test_stationary_bias_has_the_weak_order(integrator: str, name: str) -> None:
    """The stationary covariance tends to that of the equations, by Lyapunov's, at the declared weak order."""
    order = integrator_named(integrator).weak_order
    drift, _, noise = generator(name, build(name))
    truth = scipy.linalg.solve_continuous_lyapunov(drift, -noise)
    deviation = np.sqrt(np.diag(truth))
    errors = [
        (
            np.abs(affine_map(build(name, f), integrator).stationary - truth) / np.outer(deviation, deviation)
        ).max()
        for f in (0.5, 0.25, 0.125)
    ]
    assert exponent(errors) == pytest.approx(order, abs=0.01)


@pytest.mark.parametrize(("particles", "ratio"), [(1, "28"), (20, "3.6"), (1000, "2.33")])
def test_noise_of_the_prior_particles_reaches_alpha(particles: int, ratio: str) -> None:
    """Var alpha over that of p_theta(y)^N, 2/(D N), for D = 5, N = 4, one observation, as h goes to 0.

    Prior particles enter by their mean m alone, dm = (alpha - m) dt + sqrt(2/P) dW: so do 2 of them at the
    temperature 2/P, which keeps the matrix small.
    """
    h, few = 1e-6, min(particles, 2)
    system = ebipla(
        LinearEnergy(5), particles=4, prior_particles=few, alpha={"h": h / 5}, x={"h": h}, z={"h": h}
    )
    drift, noise = generator_by_probing(system, h)
    at = places(system)["Z"]
    noise[at, at] *= few / particles
    law = scipy.linalg.solve_continuous_lyapunov(drift, -noise)
    value = law[places(system)["alpha"], places(system)["alpha"]].item() / (2 / 20)
    digits = len(ratio.partition(".")[2])
    assert f"{value:.{digits}f}" == ratio


def generator_by_probing(system: BlockSystem, h: float) -> tuple[Matrix, Matrix]:
    probed = affine_map(system, "euler_maruyama")
    return (probed.A - np.eye(len(probed.A))) / h, probed.covariance / h


def test_forces_are_unbiased_under_exact_samples() -> None:
    """The mean force on alpha and beta over 20,000 replicas is the score of the marginal likelihood.

    sum_i (E x_i - alpha) and sum_i (y_i2 - beta - E x_i)/s^2, within 4 standard errors.
    """
    system, replicas = build("ebipla"), 20_000
    y, g = data_of(system), torch.Generator().manual_seed(0)
    alpha, beta = 0.4, -0.2
    mean = torch.from_numpy(V * (alpha + (y.sum(1) - beta) / NOISE**2))
    kind: Any = {"generator": g, "dtype": torch.float64}
    z = {
        "alpha": torch.full((replicas, 1), alpha, dtype=torch.float64),
        "beta": torch.full((replicas, 1), beta, dtype=torch.float64),
        "X": mean[:, None, None] + V**0.5 * torch.randn(replicas, D, N, 1, **kind),
        "Z": alpha + torch.randn(replicas, P, 1, **kind),
    }
    found = system.forces(0.0, z, system.parameters)
    truth = {
        "alpha": (mean - alpha).sum(),
        "beta": (torch.from_numpy(y[:, 1]) - beta - mean).sum() / NOISE**2,
    }
    for name, value in truth.items():
        error = found[name].std() / replicas**0.5
        assert abs(found[name].mean() - value) < 4 * error
        assert error < 0.05


@pytest.mark.parametrize(
    ("integrator", "kinetic", "order"),
    [
        ("euler_maruyama", False, 1),
        ("expint", True, 1),
        ("obabo", True, 2),
        ("ubu", True, 2),
        ("quicsort", True, 3),
    ],
)
def test_forces_are_biased_at_the_order_of_the_scheme_under_its_law(
    integrator: str, kinetic: bool, order: int
) -> None:
    """E force on alpha under the law of prior particles that move alone, against that under exp(-U).

    The force is D e^alpha E z^2 / 2 up to what X gives, so its bias is that of the variance, from the
    probed step; of Euler-Maruyama 1/(a (1 - h a/2)) in closed form.
    """
    a, biases = np.exp(0.5), []
    for h in (0.1, 0.05, 0.025):
        block = Block("z", "Z", (1,), ("latent",), "V" if kinetic else None, eta=1.5, gamma=1.2)
        forces = EnergyForces(Precision(), 1, 1)
        alpha = torch.tensor([[0.5]], dtype=torch.float64)

        def force(t: float, z: Any, names: Any, forces: EnergyForces = forces, alpha: Any = alpha) -> Any:
            wide = {"alpha": alpha.expand(len(z["Z"]), 1), "Z": z["Z"][:, None]}
            return {"z": forces(t, wide, ["z"])["z"][:, 0]} if names else {}

        law = affine_map(BlockSystem([block], force, h=h), integrator).stationary[0, 0]
        if not kinetic:
            assert law == pytest.approx(1 / (a * (1 - h * a / 2)), rel=1e-12)
        biases.append(abs(2 * a * (law - 1 / a) / 2))
    assert exponent(biases) == pytest.approx(order, abs=0.1)

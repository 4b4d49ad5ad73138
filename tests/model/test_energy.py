"""Energy-based priors: ebipla and kinetic_ebipla on the linear-Gaussian model, where every step is affine.

Oracles: matrices written here from the published equations and from no package code; closed forms of the
model; exact samples; and of what cannot be had in closed form, a quadrature in the plane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from support import INTEGRATORS, Matrix, affine_map, exponent, places

import sdeflow
from sdeflow import EnergyModel, Save, ebipla, kinetic_ebipla, simulate
from sdeflow.analysis.energy_evidence import energy_evidence
from sdeflow.analysis.evidence import fitted, standard
from sdeflow.analysis.rates import fit_decay, over_replicas
from sdeflow.analysis.stability import contraction, equilibrium
from sdeflow.config.catalogue import find, integrator_named
from sdeflow.errors import DivergenceWarning, SdeflowError
from sdeflow.model.energy_forces import EnergyForces
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.latent_ebm import LatentEBM
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
    assert {i for i, name in PAIRS if name == "ebipla"} == {*INTEGRATORS} - {"nag", "obabo", "baoab", "ubu"}


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


class Precision(EnergyModel):
    """x ~ N(0, e^-alpha), y | x ~ N(x, 1): an energy whose gradient in alpha is not linear in x."""

    latent_shape = (1,)

    def __init__(self) -> None:
        self.data = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)

    def energy(self, alpha: Any, x: torch.Tensor) -> torch.Tensor:
        return alpha["log"].exp() * x.square().sum(-1) / 2

    def log_likelihood(self, beta: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -(y[:, None] - x).square().sum(-1) / 2

    def init_alpha(self, generator: torch.Generator) -> Any:
        return {"log": torch.tensor(0.5)}


@pytest.mark.parametrize(
    ("integrator", "kinetic", "order"),
    [("euler_maruyama", False, 1), ("expint", True, 1), ("obabo", True, 2), ("ubu", True, 2)],
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


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("integrator", ["euler_maruyama", "expint", "expint_shared"])
def test_fitted_rates_are_those_predicted(name: str, integrator: str) -> None:
    """alpha's way to its limit, 8 replicas, against the spectrum of the scheme's step: 4 standard errors."""
    if name == "kinetic_ebipla":
        alpha, x = {"h": 8e-3, "eta": 125.0, "gamma": 1.0}, {"h": 0.05, "eta": 10.0, "gamma": 0.5}
    else:
        alpha, x = {"h": 8e-3}, {"h": 0.05}
    model = LinearEnergy(10, alpha_true=300.0)
    system = find("systems", name)(model, particles=20, prior_particles=200, alpha=alpha, x=x)
    small = find("systems", name)(model, particles=2, prior_particles=2, alpha=alpha, x=x)
    predicted = -np.log(contraction(small, integrator_named(integrator), equilibrium(small)))
    run = simulate(system, integrator, steps=1200, replicas=8, save=Save(every=2, data=1), dtype="float64")
    series, steps = run["alpha"][..., 0].to_numpy(), run["step"].to_numpy().astype(float)
    rates = over_replicas([fit_decay(steps, one).rate for one in series.T])
    assert abs(rates.mean - predicted) < 4 * rates.error
    assert rates.error < 0.02 * predicted


# What a run of it is -------------------------------------------------------------------------------


SMALL = {"points": 12, "held_out": 4, "energy_hidden": [8]}
MOTION = {"h": 1e-3, "eta": 300.0, "gamma": 1.0}


def small(name: str = "kinetic_ebipla", **more: Any) -> BlockSystem:
    model = LatentEBM(**(SMALL | more))
    return find("systems", name)(model, particles=2, prior_particles=5, alpha=MOTION, beta=MOTION, x=MOTION)


@pytest.mark.parametrize("batch", [None, sdeflow.Batch(4, "one_step", cap=3)])
@pytest.mark.parametrize("decoder", ["identity", "mlp"])
@pytest.mark.parametrize("integrator", ["expint", "expint_shared", "baoab", "ubu"])
def test_runs_stop_and_go_on(tmp_path: Any, integrator: str, decoder: str, batch: Any) -> None:
    """Saved with the prior particles, stopped by the number of steps, and taken up to the same numbers."""
    options: Any = {"save": Save(every=2), "batch": batch, "replicas": 2, "seed": 3}
    system = small(decoder=decoder)
    whole = simulate(system, integrator, steps=11, **options)
    simulate(system, integrator, steps=5, out=tmp_path / "run", **options)
    again = simulate(system, integrator, steps=11, out=tmp_path / "run", resume=True, **options)
    assert whole["Z"].dims == ("time", "replica", "prior_particle", "latent")
    assert ("beta" in whole) == (decoder == "mlp")
    assert str(whole["alpha_param"].values[0]) == "0.weight[0,0]"
    for variable in whole.data_vars:
        np.testing.assert_array_equal(whole[variable], again[variable])
    assert np.isfinite(whole["Z"]).all()
    assert float(abs(whole["Z"][-1] - whole["Z"][0]).min()) > 0


def test_minibatches_leave_the_forces_on_parameters_unbiased() -> None:
    """Over all batches of one datum the mean forces on alpha and beta are those of all data, exactly."""
    system = small("ebipla", decoder="affine")
    z = {k: v[None] for k, v in system.start(0).items()}
    whole = system.forces(0.0, z, system.parameters)
    parts = []
    for i in range(SMALL["points"]):
        index = torch.tensor([[i]])
        parts.append(system.on(index).forces(0.0, z | {"X": z["X"][:, i : i + 1]}, system.parameters))
    for name in ("alpha", "beta"):
        mean = torch.stack([part[name] for part in parts]).mean(0)
        torch.testing.assert_close(mean, whole[name], rtol=1e-5, atol=1e-5)


def test_forces_are_those_of_automatic_differentiation() -> None:
    """Of the sums in the docstring, written out for one replica of a neural model."""
    system = small("ebipla", decoder="affine").to(torch.float64, torch.device("cpu"))
    model, layouts = system.model_forces.model, system.model_forces.layouts
    z = {k: v[None] for k, v in system.start(1).items()}
    found = system.forces(0.0, z, system.blocks)
    leaves = {k: z[k][0].clone().requires_grad_() for k in ("alpha", "beta", "X", "Z")}
    alpha = layouts["alpha_param"].views(leaves["alpha"])
    beta = layouts["beta_param"].views(leaves["beta"])
    at_data = model.energy(alpha, leaves["X"].flatten(0, 1)).sum()
    at_prior = model.energy(alpha, leaves["Z"]).sum()
    likelihood = model.log_likelihood(beta, leaves["X"], model.data).sum()

    def gradient(value: torch.Tensor, of: str) -> torch.Tensor:
        return torch.autograd.grad(value, leaves[of], retain_graph=True)[0]

    expected = {
        "alpha": -gradient(at_data, "alpha") / 2 + 12 * gradient(at_prior, "alpha") / 5,
        "beta": gradient(likelihood, "beta") / 2,
        "x": gradient(likelihood - at_data, "X"),
        "z": -gradient(at_prior, "Z"),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name][0], value, rtol=1e-10, atol=1e-10)
    assert set(system.forces(0.0, z, system.blocks[:1])) == {"alpha"}


def test_a_prior_that_runs_away_is_named() -> None:
    """An energy without a minimum: its chain diverges, and the run says which variable did."""

    class Unbounded(Precision):
        def energy(self, alpha: Any, x: torch.Tensor) -> torch.Tensor:
            return (alpha["log"] * x.tanh() - x.square() / 2).sum(-1)

    motions = {"alpha": {"h": 1e-6}, "x": {"h": 1e-6}, "z": {"h": 0.5}}
    system = ebipla(Unbounded(), particles=1, prior_particles=2, **motions)
    with pytest.warns(DivergenceWarning, match="energy_z is .* past the bound"):
        run = simulate(system, "euler_maruyama", steps=300)
    assert run.attrs["retcode"] == "diverged"
    with pytest.warns(DivergenceWarning, match="Z is not finite"):
        simulate(system, "euler_maruyama", steps=300, save=Save(every=300))


def test_without_an_energy_to_learn_it_is_an_ordinary_model() -> None:
    """The baseline: ebipla has no blocks alpha and z then, and is ipla on beta, to the bit."""
    model = LatentEBM(**(SMALL | {"energy_hidden": [], "decoder": "affine"}))
    baseline = ebipla(model, particles=2, prior_particles=5, beta=MOTION, x=MOTION)
    assert [b.name for b in baseline.blocks] == ["beta", "x"]
    z = {k: v[None] for k, v in baseline.start(0).items()}
    plain = sdeflow.ipla(model, particles=2, theta=MOTION, x=MOTION)
    theirs = plain.forces(0.0, {"theta": z["beta"], "X": z["X"]}, plain.blocks)
    mine = baseline.forces(0.0, z, baseline.blocks)
    assert torch.equal(mine["beta"], theirs["theta"])
    assert torch.equal(mine["x"], theirs["x"])


def test_what_does_not_fit_is_said() -> None:
    model, motion = LatentEBM(**SMALL), {"h": 0.1}
    with pytest.raises(SdeflowError, match="cannot learn the energy of LatentEBM's prior"):
        sdeflow.pgd(model, particles=1, theta=motion, x=motion)
    with pytest.raises(SdeflowError, match="EnergyModel was expected, given Hierarchical"):
        ebipla(Hierarchical(), particles=1, prior_particles=1, alpha=motion, x=motion)
    with pytest.raises(SdeflowError, match="block 'alpha' has no step"):
        ebipla(model, particles=1, prior_particles=1, x=motion)
    with pytest.raises(SdeflowError, match="prior_particles must be at least 1, given 0"):
        ebipla(model, particles=1, prior_particles=0, alpha=motion, x=motion)
    with pytest.raises(SdeflowError, match="an energy without log Z"):
        simulate(small(), steps=2, save=Save(every=1), evaluate=sdeflow.Evaluate(1))
    with pytest.raises(SdeflowError, match="needs both eta and gamma"):
        kinetic_ebipla(model, particles=1, prior_particles=1, alpha=motion, x=motion)

    class Summed(Precision):
        def energy(self, alpha: Any, x: torch.Tensor) -> torch.Tensor:
            return super().energy(alpha, x).sum()

    wrong = ebipla(Summed(), particles=1, prior_particles=2, alpha=motion, x=motion)
    with pytest.raises(SdeflowError, match=r"Summed.energy gives shape \(\), expected shape \(2,\)"):
        simulate(wrong, "euler_maruyama", steps=1)


# Evidence ------------------------------------------------------------------------------------------


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
    model = LatentEBM(**(SMALL | {"points": 5, "sigma": 0.3, "gain": 1.5})).to(
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

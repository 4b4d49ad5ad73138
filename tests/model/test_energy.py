"""Models with an energy-based prior: their forces, runs of them, and what does not fit.

Oracles: automatic differentiation of the sums; all data for minibatches; ipla where there is no energy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small import LIGHT, SIZES, Precision

import sdeflow
from sdeflow import Save, ebipla, simulate
from sdeflow.config.catalogue import find
from sdeflow.errors import DivergenceWarning, SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.latent_ebm import LatentEBM
from sdeflow.system.system import BlockSystem


def small(name: str = "kinetic_ebipla", **more: Any) -> BlockSystem:
    model = LatentEBM(**(SIZES | more))
    return find("systems", name)(model, particles=2, prior_particles=5, alpha=LIGHT, beta=LIGHT, x=LIGHT)


@pytest.mark.parametrize("batch", [None, sdeflow.Batch(4, "one_step", cap=3)])
@pytest.mark.parametrize("decoder", ["identity", "mlp"])
@pytest.mark.parametrize(
    "integrator",
    [
        "expint",
        pytest.param("expint_shared", marks=pytest.mark.slow),
        pytest.param("baoab", marks=pytest.mark.slow),
        "ubu",
    ],
)
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
    for i in range(SIZES["points"]):
        index = torch.tensor([[i]])
        parts.append(system.minibatch(index).forces(0.0, z | {"X": z["X"][:, i : i + 1]}, system.parameters))
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
    model = LatentEBM(**(SIZES | {"energy_hidden": [], "decoder": "affine"}))
    baseline = ebipla(model, particles=2, prior_particles=5, beta=LIGHT, x=LIGHT)
    assert [b.name for b in baseline.blocks] == ["beta", "x"]
    z = {k: v[None] for k, v in baseline.start(0).items()}
    plain = sdeflow.ipla(model, particles=2, theta=LIGHT, x=LIGHT)
    theirs = plain.forces(0.0, {"theta": z["beta"], "X": z["X"]}, plain.blocks)
    mine = baseline.forces(0.0, z, baseline.blocks)
    assert torch.equal(mine["beta"], theirs["theta"])
    assert torch.equal(mine["x"], theirs["x"])


def test_what_does_not_fit_is_said() -> None:
    model, motion = LatentEBM(**SIZES), {"h": 0.1}
    with pytest.raises(SdeflowError, match="cannot learn the energy of LatentEBM's prior"):
        sdeflow.pgd(model, particles=1, theta=motion, x=motion)
    with pytest.raises(SdeflowError, match="EnergyModel was expected, given Hierarchical"):
        ebipla(Hierarchical(), particles=1, prior_particles=1, alpha=motion, x=motion)
    with pytest.raises(SdeflowError, match="prior_particles must be at least 1, given 0"):
        ebipla(model, particles=1, prior_particles=0, alpha=motion, x=motion)
    with pytest.raises(SdeflowError, match="an energy without log Z"):
        simulate(small(), steps=2, save=Save(every=1), evaluate=sdeflow.Evaluate(1))

    class Summed(Precision):
        def energy(self, alpha: Any, x: torch.Tensor) -> torch.Tensor:
            return super().energy(alpha, x).sum()

    wrong = ebipla(Summed(), particles=1, prior_particles=2, alpha=motion, x=motion)
    with pytest.raises(SdeflowError, match=r"Summed.energy gives shape \(\), expected shape \(2,\)"):
        simulate(wrong, "euler_maruyama", steps=1)

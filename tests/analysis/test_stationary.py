"""The bias of schemes in the particles' stationary law.

Oracles: closed forms of the harmonic well; the probed affine map of the real step, whose covariance scipy
finds from Lyapunov's equation; exact posteriors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import command
from support import ETA, KAPPA, T, accepted_pairs, affine_map, harmonic_well, places, toy

from sdeflow import Block, BlockSystem, mpgd, pgd, simulate
from sdeflow.analysis import stationary
from sdeflow.analysis.stability import equilibrium, linearised
from sdeflow.analysis.stationary import bias, covariances, scheme_covariances
from sdeflow.config.build import build
from sdeflow.config.catalogue import integrator_named, problem_file
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.problems.ill_conditioned import IllConditioned
from sdeflow.problems.ppca import PPCA
from sdeflow.system.flow import kinetic_flow

MOTION = {"eta": 1.3, "gamma": 0.8}


def double(system: Any) -> Any:
    return system.to(torch.float64, torch.device("cpu"))


def biased(system: Any, integrator: str) -> float:
    return bias(system, integrator_named(integrator), equilibrium(system))


@pytest.mark.parametrize("rate", [1.0, 0.7])
@pytest.mark.parametrize("h", [0.1, 0.5])
def test_closed_forms_in_a_harmonic_well(h: float, rate: float) -> None:
    """Of its own step: Euler-Maruyama T/(k (1 - hk/2)), OBABO T/(k (1 - h^2 eta k/4)), BAOAB exact."""
    bare, heavy = (harmonic_well(h, rate=rate, momentum=m, size=2) for m in (None, "p"))
    own = rate * h
    assert biased(bare, "euler_maruyama") == pytest.approx(1 / (1 - own * KAPPA / 2) - 1, rel=1e-10)
    assert biased(bare, "expint") == pytest.approx(1 / (1 - own * KAPPA / 2) - 1, rel=1e-10)
    assert biased(heavy, "obabo") == pytest.approx(1 / (1 - own**2 * ETA * KAPPA / 4) - 1, rel=1e-10)
    assert abs(biased(heavy, "baoab")) < 1e-13
    (exact,) = covariances(heavy, equilibrium(heavy))
    np.testing.assert_allclose(exact, T / KAPPA * np.eye(2)[None], atol=1e-13)


@pytest.mark.parametrize(("integrator", "system"), accepted_pairs())
def test_against_the_probed_affine_map(integrator: str, system: str) -> None:
    """Half the variance of x_ij - x_ij', from which theta drops out, is a particle's with theta at rest."""
    built = toy(system, data=3, particles=2, scale=1.5, theta={"h": 0.02, **MOTION}, x={"h": 0.2, **MOTION})
    law, at = affine_map(built, integrator).stationary, places(built)["X"].start
    pair = law[at : at + 2, at : at + 2]
    variance, v = (pair[0, 0] + pair[1, 1] - 2 * pair[0, 1]) / 2, 1 / (1 + 1 / 1.5**2)
    z = equilibrium(built)
    (found,) = scheme_covariances(built, integrator_named(integrator), z)
    np.testing.assert_allclose(found, np.full((6, 1, 1), variance), rtol=1e-9)
    np.testing.assert_allclose(covariances(built, z)[0], np.full((6, 1, 1), v), rtol=1e-12)
    assert biased(built, integrator) == pytest.approx(variance / v - 1, rel=1e-7, abs=1e-9)


def test_the_worst_direction_is_told() -> None:
    """Coordinates of curvature 2/s^2 each, the least s^2 being 1/20: Euler-Maruyama's closed form there."""
    model, h = IllConditioned(data=2, latent=3, condition=20.0), 0.01
    system = double(pgd(model, particles=2, theta={"h": h}, x={"h": h}))
    assert biased(system, "euler_maruyama") == pytest.approx(1 / (1 - h * 40 / 2) - 1, rel=1e-9)
    (exact,) = covariances(system, equilibrium(system))
    np.testing.assert_allclose(
        exact, np.tile(np.diag(model.scale.numpy() ** 2 / 2), (4, 1, 1)), rtol=1e-10, atol=1e-15
    )


def test_particles_that_pull_at_each_other() -> None:
    """Forces that are a function: the covariance of all positions, and the inverse of the stiffness."""
    stiffness = torch.tensor([[2.0, -0.9], [-0.9, 1.0]], dtype=torch.float64)

    def forces(t: float, z: Any, names: Any) -> Any:
        return {"x": -(z["X"].squeeze(-1) @ stiffness).unsqueeze(-1)}

    block = Block("x", "X", (2, 1), ("particle", "latent"), "U", **MOTION, temperature=0.6)
    system = BlockSystem([block], forces, h=0.3, start={"X": torch.zeros(2, 1, dtype=torch.float64)})
    z = equilibrium(system)
    for name in ("expint", "ubu", "baoab"):
        at = places(system)["X"]
        (found,) = scheme_covariances(system, integrator_named(name), z)
        np.testing.assert_allclose(found[0], affine_map(system, name).stationary[at, at], atol=1e-11)
    (exact,) = covariances(system, z)
    np.testing.assert_allclose(exact[0], 0.6 * np.linalg.inv(stiffness.numpy()), atol=1e-12)


def test_where_forces_are_taken() -> None:
    """For ubu after half a step of the flow, from the probed law of (q, p); else at the ends of steps."""
    h = 0.6
    well = harmonic_well(h)
    z, flow = equilibrium(well), kinetic_flow(0.9, ETA, h / 2)
    ((qq, qp), (_, pp)) = affine_map(well, "ubu").stationary
    middle = qq + 2 * flow.free * qp + flow.free**2 * pp + T * (flow.q1**2 + flow.q2**2)
    (found,) = scheme_covariances(well, integrator_named("ubu"), z, at_forces=True)
    assert found.item() == pytest.approx(middle, rel=1e-10)
    assert abs(middle - qq) > 0.05 * qq
    for name in ("expint", "obabo", "baoab", "euler_maruyama"):
        scheme = integrator_named(name)
        there, at_end = (scheme_covariances(well, scheme, z, at_forces=f)[0].item() for f in (True, False))
        assert there == pytest.approx(at_end, rel=1e-10)


def test_solvers_of_torchsde_keep_what_they_will() -> None:
    """srk is far less biased than Euler; reversible Heun keeps a second copy, which is of no block."""
    built = toy("mpgd", data=2, particles=2, theta={"h": 0.02, **MOTION}, x={"h": 0.2, **MOTION})
    euler, srk = biased(built, "torchsde:euler"), biased(built, "torchsde:srk")
    assert euler == pytest.approx(biased(built, "euler_maruyama"), rel=1e-9)
    assert abs(srk) < 0.05 * euler
    assert not np.isnan(biased(built, "torchsde:reversible_heun"))


def test_what_has_no_stationary_law(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.isinf(biased(harmonic_well(2.1 / KAPPA, momentum=None), "euler_maruyama"))
    hill = BlockSystem(
        [Block("x", "X", (1,), ("latent",))], lambda t, z, names: {"x": z["X"]}, h=0.1,
        start={"X": torch.zeros(1, dtype=torch.float64)},
    )  # fmt: skip
    z = {"X": torch.zeros(1, 1, dtype=torch.float64)}
    assert np.isnan(bias(hill, integrator_named("expint"), z))
    lone = Block("theta", "theta", (1,), ("param",), temperature=0.0, role="parameters")
    still = BlockSystem([lone], lambda t, z, names: {"theta": -z["theta"]}, h=0.1)
    assert np.isnan(bias(still, integrator_named("expint"), {"theta": torch.zeros(1, 1).double()}))
    monkeypatch.setattr(stationary, "MATRIX_BELOW", 1)
    assert np.isnan(biased(harmonic_well(0.1, size=2), "baoab"))


# The command -----------------------------------------------------------------------------------------


def test_the_column(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """hierarchical's X has curvature 2, its pgd a step of 0.01: 1/(1 - 0.01) - 1."""
    monkeypatch.setenv("COLUMNS", "140")
    few = ["--set", "model.data=2"]
    for system, name, shown in (
        ("pgd", "expint", "+1%"),
        ("mpgd", "baoab", "none"),
        ("mpgd", "expint", "+11%"),
    ):
        assert command("stability", "hierarchical", "--system", system, *few, "--integrators", name) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(name))
        assert line.split()[-1] == shown


def test_a_model_without_equilibrium_is_linearised_at_the_end_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PPCA's curvatures are 1 + the eigenvalues of W'W/s2 for all X; the greatest has the largest bias."""
    monkeypatch.setenv("COLUMNS", "140")
    assert command("stability", "ppca", "--variant", "fixed", "--integrators", "expint") == 2
    assert "PPCA has no equilibrium without noise" in capsys.readouterr().err
    motion = {"h": 0.01}
    system = pgd(PPCA(data=6), particles=3, theta=motion, x=motion)
    simulate(system, "expint", steps=20, out=tmp_path / "run", dtype="float64")
    small = ["--set", "model.data=6", "--set", "system.particles=3", "--variant", "pgd"]
    at_end = ["--at", tmp_path / "run", "--integrators", "expint"]
    assert command("stability", "ppca", *small, *at_end) == 0
    shown = capsys.readouterr().out
    over = {"model": {"data": 6}, "system": {"particles": 3}}
    built = build(load_config(problem_file("ppca"), variant="pgd", overrides=[over]))
    at, z = linearised(built, tmp_path / "run")
    theta = at.model_forces.parameters.views(z["theta"][0])
    kappa = float(torch.linalg.matrix_norm(theta["weight"], 2) ** 2 / theta["log_noise"].exp()) + 1
    expected = 1 / (1 - 0.02 * kappa / 2) - 1
    assert bias(at, integrator_named("expint"), z) == pytest.approx(expected, rel=1e-9)
    assert f"{100 * expected:+.2g}%" in shown


def test_decoders_have_no_equilibrium_either() -> None:
    from sdeflow.problems.decoder import Decoder

    motion = {"h": 0.01, "eta": 1.0, "gamma": 1.0}
    system = double(mpgd(Decoder(images=2), particles=2, theta=motion, x=motion))
    with pytest.raises(SdeflowError, match="weights grow while the latents shrink"):
        equilibrium(system)

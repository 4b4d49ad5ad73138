"""Contraction and stability by the generic tool.

Oracles: the affine map of the real step, probed with basis vectors; published and closed-form numbers of the
toy model; the matrix exponential; finite differences of the real step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import command
from support import K, accepted_pairs, affine_map, spectral_radius, toy
from torch import Tensor

import sdeflow
from sdeflow import Block, BlockSystem, simulate
from sdeflow.analysis import linear_map
from sdeflow.analysis.comparison.stability_map import draw, friction_step_map, rows
from sdeflow.analysis.linear_map import LinearMap
from sdeflow.analysis.stability import (
    continuous_contraction,
    contraction,
    drift_map,
    equilibrium,
    linearised,
    stability_limit,
    step_map,
    with_friction,
)
from sdeflow.config.build import build
from sdeflow.config.catalogue import integrator_named, problem_file
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical

D = 100
CORRECTION = {"eta": 2 * K, "gamma": 0.293}


@pytest.fixture(scope="module")
def correction() -> tuple[BlockSystem, dict[str, Tensor]]:
    """The gradient-correction experiment, s = 1."""
    system = sdeflow.mpgd(
        Hierarchical(data=D), particles=2, theta={"h": 6.68e-3, **CORRECTION}, x={"h": 2.18e-3, **CORRECTION}
    ).to(torch.float64, torch.device("cpu"))
    return system, equilibrium(system)


def test_the_equilibrium_is_the_mle_and_the_posterior_means(correction: Any) -> None:
    system, z = correction
    y = system.model_forces.model.data
    torch.testing.assert_close(z["theta"].squeeze(), y.mean(), rtol=1e-9, atol=0)
    expected = ((y + y.mean()) / 2)[:, None].expand(D, 2, 1)
    torch.testing.assert_close(z["X"][0], expected, rtol=1e-8, atol=0)
    assert not bool(z["m"].any()) and not bool(z["U"].any())  # noqa: PT018


@pytest.mark.parametrize(
    ("integrator", "rho"),
    [
        ("expint", 0.992339),
        ("expint_shared", 0.992357),
        ("expint_nc", 0.997404),
        ("nag", 1.120),
        ("euler_maruyama", 1.419),
    ],
)
def test_contractions_of_the_gradient_correction_experiment(
    correction: Any, integrator: str, rho: float
) -> None:
    system, z = correction
    digits = 6 if rho < 1 else 3
    assert round(contraction(system, integrator_named(integrator), z), digits) == rho


@pytest.mark.parametrize(
    ("integrator", "limit"),
    [
        ("expint", 1.305),
        ("expint_shared", 1.305),
        ("expint_nc", 1.011),
        ("expint_nc2", 1.008),
        ("nag", 0.965),
        ("euler_maruyama", 0.438),
    ],
)
def test_stability_limits_to_three_digits(correction: Any, integrator: str, limit: float) -> None:
    system, z = correction
    assert round(stability_limit(system, integrator_named(integrator), z), 3) == limit


@pytest.mark.parametrize(("integrator", "system"), accepted_pairs())
def test_against_the_probed_affine_map(integrator: str, system: str) -> None:
    """Every scheme on every published system; the probe moves the real state, the tool differentiates."""
    motion = {"eta": 1.3, "gamma": 0.8}
    built = toy(system, data=3, particles=2, scale=1.5, theta={"h": 0.05, **motion}, x={"h": 0.2, **motion})
    scheme = integrator_named(integrator)
    tool = step_map(built, scheme, equilibrium(built)).eigenvalues()
    probed = affine_map(built, integrator).A
    assert abs(tool[0]) == pytest.approx(spectral_radius(probed), rel=1e-9)


def test_arnoldi_and_the_whole_matrix_agree(correction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    system, z = correction
    found = {}
    for sizes in ((1000, 1000), (10, 1000), (10, 10)):
        monkeypatch.setattr(linear_map, "DENSE_BELOW", sizes[0])
        monkeypatch.setattr(linear_map, "MATRIX_BELOW", sizes[1])
        found[sizes] = contraction(system, integrator_named("expint"), z)
    assert np.ptp(list(found.values())) < 1e-10


def test_differences_where_torch_cannot_differentiate(correction: Any) -> None:
    """torchsde's Milstein takes gradients of its own; its noise being additive, it is Euler's map."""
    motion = {"eta": 1.3, "gamma": 0.8}
    built = toy("mpgd", data=3, particles=2, scale=1.5, theta={"h": 0.05, **motion}, x={"h": 0.2, **motion})
    z = equilibrium(built)
    milstein = contraction(built, integrator_named("torchsde:milstein"), z)
    assert milstein == pytest.approx(contraction(built, integrator_named("torchsde:euler"), z), rel=1e-9)


def test_the_continuous_rate_is_approached_at_the_order_of_the_scheme(correction: Any) -> None:
    """log rho per unit of step against the spectral abscissa: the gap halves with h, or quarters for UBU."""
    system, z = correction
    rate = np.log(continuous_contraction(system, z))
    for name, order in (("expint", 1), ("expint_shared", 1), ("expint_nc", 1), ("ubu", 2), ("obabo", 2)):
        scheme = integrator_named(name)
        gaps = [np.log(contraction(system, scheme, z, f)) / f - rate for f in (0.1, 0.05, 0.025)]
        first, second = np.log2(gaps[0] / gaps[1]), np.log2(gaps[1] / gaps[2])
        assert 2 * second - first == pytest.approx(order, abs=0.05)


def test_the_drift_against_its_closed_form() -> None:
    """The toy model's drift matrix in theta, m and the mean of X, U, on clocks of ratio 2."""
    motion = {"eta": 1.3, "gamma": 0.8}
    built = toy("mpgd", data=1, particles=1, scale=2.0, theta={"h": 0.1, **motion}, x={"h": 0.2, **motion})
    theta, x = motion["eta"], 2 * motion["eta"]
    k = motion["eta"] * motion["gamma"]
    expected = np.array(
        [
            [0, theta, 0, 0],
            [-1 / 4, -k, 1 / 4, 0],
            [0, 0, 0, x],
            [2 / 4, 0, -2 * (1 + 1 / 4), -2 * k],
        ]
    )
    found = drift_map(built, equilibrium(built)).matrix()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_nonlinear_model_and_a_scheme_of_the_users(tmp_path: Path) -> None:
    """Breast cancer's logistic regression: the derivative against differences of the real step."""

    class Halved(sdeflow.Integrator):
        """Two Euler steps of half the size."""

        def step(self, system: Any, t: float, z: Any, h: float, noise: Any) -> Any:
            for _ in range(2):
                z = z | {name: z[name] + h / 2 * b for name, b in system.drift(t, z).items()}
            return z

    config = load_config(
        problem_file("breast_cancer"), variant="fixed", overrides=[{"system": {"particles": 2}}]
    )
    run = build(config)
    system, z = linearised(run)
    forces = system.forces(0.0, z, system.blocks)
    assert max(float(f.abs().max()) for f in forces.values()) < 1e-5
    tool = step_map(system, Halved(), z)
    v = torch.randn(tool.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tangent = tool.product(v)
    tool._differentiable = False
    # differences over 1e-3 are off by its square times a third derivative of order one
    torch.testing.assert_close(tangent, tool.product(v), rtol=1e-5, atol=3e-6)
    assert 0 < contraction(system, Halved(), z) < 1


def test_forces_that_are_a_function_have_an_equilibrium() -> None:
    """Two wells pulled together: forces from no log-joint, found by Newton's method, at their closed form."""

    def forces(t: float, z: Any, names: Any) -> Any:
        return {"x": 1.0 - z["X"] ** 3 + 0.0 * z["X"]}

    block = Block("x", "X", (2, 1), ("particle", "latent"), "U", eta=1.0, gamma=1.0)
    system = BlockSystem([block], forces, h=0.1, start={"X": torch.full((2, 1), 0.5, dtype=torch.float64)})
    z = equilibrium(system)
    torch.testing.assert_close(z["X"], torch.ones(1, 2, 1, dtype=torch.float64), rtol=1e-7, atol=0)
    # x'' = -3 x - x' about it: the spectral abscissa is -1/2
    assert continuous_contraction(system, z) == pytest.approx(np.exp(-0.05), rel=1e-9)


def test_a_neutral_direction_is_not_unstable() -> None:
    """Nothing determines one of two parameters: rho is 1, and the limit is that of the other, 2/h."""

    def forces(t: float, z: Any, names: Any) -> Any:
        return {"theta": torch.tensor([-1.0, 0.0], dtype=torch.float64) * z["theta"]}

    block = Block("theta", "theta", (2,), ("param",), temperature=0.0, role="parameters")
    start = {"theta": torch.zeros(2, dtype=torch.float64)}
    system = BlockSystem([block], forces, h=0.5, start=start)
    z = {"theta": torch.zeros(1, 2, dtype=torch.float64)}
    euler = integrator_named("euler_maruyama")
    assert contraction(system, euler, z) == pytest.approx(1.0, abs=1e-12)
    assert stability_limit(system, euler, z) == pytest.approx(4.0, rel=2e-5)


def test_friction_is_scaled(correction: Any) -> None:
    system, z = correction
    assert [b.gamma for b in with_friction(system, 3.0).blocks] == pytest.approx([3 * 0.293] * 2)
    assert contraction(with_friction(system, 3.0), integrator_named("expint"), z) > contraction(
        system, integrator_named("expint"), z
    )


def test_a_map_and_its_picture(correction: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sdeflow.analysis.comparison.stability_map.FRICTIONS", np.array([0.5, 1.0, 2.0]))
    monkeypatch.setattr("sdeflow.analysis.comparison.stability_map.STEPS", np.array([0.5, 1.0, 1.4]))
    system, z = correction
    found = friction_step_map(system, z, integrator_named("expint"))
    assert found.contraction[1, 1] == pytest.approx(0.992339**0.5, abs=1e-6)
    assert found.contraction[1, 2] > 1
    draw([found], "title").savefig(tmp_path / "map.svg")
    assert (tmp_path / "map.svg").stat().st_size > 1000


# The command -----------------------------------------------------------------------------------------


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert command("stability", "gradient_correction", "--integrators", "expint,expint_nc,nag,baoab") == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert lines["expint"] == ["0.992339", "130.0", "0.996162", "1.305", "+0.75%"]
    assert lines["expint_nc"][-2] == "1.011"
    assert lines["nag"][1] == "never"
    assert lines["continuous"][1:3] == ["0.992387", "130.9"]
    assert command("stability", "hierarchical", "--system", "pgd", "--integrators", "ubu,expint") == 0
    out = capsys.readouterr().out
    assert "refused: it needs a momentum in every block" in " ".join(out.split())


def test_mistakes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for arguments, sentence in (
        (("double_well",), "stability is that of a system made of blocks"),
        (("hierarchical", "--integrators", "expnt"), "did you mean 'expint'"),
        (("hierarchical", "--at", str(tmp_path)), "has no final.safetensors"),
        (("hierarchical", "--set", "system.theta.precondition=rmsprop"), "RMSProp divides a force"),
    ):
        assert command("stability", *arguments) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert sentence in err


def test_at_the_end_of_a_run(tmp_path: Path) -> None:
    """The toy model being quadratic, its contraction is the same there."""
    run = build(load_config(problem_file("gradient_correction"), overrides=[{"system": {"particles": 2}}]))
    simulate(run.system, "expint", steps=20, out=tmp_path / "run")
    system, z = linearised(run, tmp_path / "run")
    (row,) = rows(system, z, ["expint"])
    assert row.contraction == pytest.approx(0.992339, abs=1e-6)
    other = build(load_config(problem_file("gradient_correction"), overrides=[{"system": {"particles": 3}}]))
    with pytest.raises(SdeflowError, match=r"holds no X of shape \(100, 3, 1\)"):
        linearised(other, tmp_path / "run")


def test_a_function_that_is_not_batched_is_taken_one_by_one() -> None:
    def looks(z: Any) -> Any:
        assert float(z["a"].detach().sum()) < 1e9
        return {"a": 2 * z["a"]}

    found = LinearMap(looks, {"a": torch.ones(1, 3, dtype=torch.float64)}).matrix()
    np.testing.assert_allclose(found, 2 * np.eye(3))


def test_a_function_that_leaves_the_graph_is_taken_by_differences() -> None:
    """A derivative of 1 + 3 + 2 a of which 3 is detached, and a small variable by a large one."""

    def leaves(z: Any) -> Any:
        return {"a": z["a"] + 3 * z["a"].detach() + z["a"] ** 2, "b": z["b"] * 1e-9 * z["a"].detach()}

    z = {name: torch.ones(1, 2, dtype=torch.float64) for name in "ab"}
    expected = np.block([[6 * np.eye(2), np.zeros((2, 2))], [1e-9 * np.eye(2), 1e-9 * np.eye(2)]])
    np.testing.assert_allclose(LinearMap(leaves, z).matrix(), expected, rtol=1e-9, atol=1e-20)


@pytest.mark.parametrize("at", [0.0, 1e-6])
def test_kinks_are_no_sign_that_a_function_leaves_the_graph(at: float) -> None:
    """At a kink and a jump, or less than a difference from them, the derivative is that of torch."""
    z = {"a": torch.full((1, 3), at, dtype=torch.float64)}
    found = LinearMap(lambda z: {"a": 2 * torch.relu(z["a"]) - z["a"].sign()}, z)
    np.testing.assert_allclose(found.matrix(), (2.0 if at else 0.0) * np.eye(3), rtol=1e-12)

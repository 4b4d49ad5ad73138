"""A system in its modes: what steps do to it is what they do to the system.

Oracles: the affine map of the real step, probed; the derivative of the real step in the real coordinates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import accepted_pairs, affine_map, toy

import sdeflow
from sdeflow import Block, BlockSystem, mpgd
from sdeflow.analysis.modes import in_modes
from sdeflow.analysis.stability import (
    continuous_contraction,
    contraction,
    drift_map,
    equilibrium,
    stability_limit,
    step_map,
)
from sdeflow.analysis.stationary import bias
from sdeflow.config.catalogue import integrator_named
from sdeflow.problems.hierarchical import Hierarchical

MOTION = {"eta": 1.3, "gamma": 0.8}


def double(system: Any) -> Any:
    return system.to(torch.float64, torch.device("cpu"))


class Quartic(sdeflow.Model):
    """Two latents a datum, pulled to theta, to the datum, to each other and, by a fourth power, to 0."""

    latent_shape = (2,)

    def __init__(self) -> None:
        self.data = torch.tensor([[3.0], [0.5], [-1.0]])

    def init_theta(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"mean": torch.tensor([0.3, 0.7])}

    def log_joint(self, theta: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        pulls = (x - theta["mean"]) ** 2 + (y[:, None] - x.sum(-1, keepdim=True)) ** 2 + x**4 / 6
        return -pulls.sum(-1) / 2 - theta["mean"].square().sum() / 3


def quartic(model: Any = None) -> Any:
    return double(mpgd(model or Quartic(), particles=2, theta={"h": 0.01, **MOTION}, x={"h": 0.05, **MOTION}))


def assert_same_set(a: Any, b: Any) -> None:
    """Each value of one is a value of the other; of double ones rounding leaves half of the digits."""
    gaps = np.abs(np.asarray(a)[:, None] - np.asarray(b)[None])
    assert max(gaps.min(0).max(), gaps.min(1).max()) < 1e-6


@pytest.mark.parametrize(("integrator", "system"), accepted_pairs())
def test_a_step_has_the_eigenvalues_of_the_probed_map(integrator: str, system: str) -> None:
    """All that are there, and no others; of three data and two particles two modes are left."""
    built = toy(system, data=3, particles=2, scale=1.5, theta={"h": 0.05, **MOTION}, x={"h": 0.2, **MOTION})
    near, z = in_modes(built, equilibrium(built))
    assert [b.shape for b in near.blocks] == [(1, 1), (2, 1)]
    scheme = integrator_named(integrator)
    found = step_map(near, scheme, z).eigenvalues()
    probed = np.linalg.eigvals(affine_map(built, integrator).A)
    assert abs(found[0]) == pytest.approx(np.abs(probed).max(), rel=1e-9)
    kept = found[np.abs(found) > 1e-9]  # a force that is kept from step to step is a coordinate more
    assert_same_set(kept, probed[np.abs(probed) > 1e-9])


@pytest.mark.parametrize("integrator", ["expint", "baoab", "quicsort", "ubu"])
def test_a_model_that_is_not_linear(integrator: str) -> None:
    """Contraction, limit and bias are those of the step where it is taken, with all its coordinates.

    Up to forces at the equilibrium, which is found to 1e-9.
    """
    system, scheme = quartic(), integrator_named(integrator)
    z = equilibrium(system)
    near, origin = in_modes(system, z)
    assert near.definition.alone
    for measure in (contraction, bias):
        expected = measure(system, scheme, z)
        assert measure(near, scheme, origin) == pytest.approx(expected, rel=1e-7, abs=1e-9)
    limit = stability_limit(near, scheme, origin)
    assert (
        contraction(system, scheme, z, 0.9999 * limit) <= 1 < contraction(system, scheme, z, 1.0001 * limit)
    )
    assert continuous_contraction(near, origin) == pytest.approx(continuous_contraction(system, z), rel=1e-9)


def test_a_model_that_replicas_cannot_be_batched_of() -> None:
    """Its derivative is taken in forward mode, to the same modes."""

    class Looks(Quartic):
        def log_joint(self, theta: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            assert float(x.detach().sum()) < 1e9
            return super().log_joint(theta, x, y)

    found = [
        drift_map(*in_modes(built, equilibrium(built))).eigenvalues("LR")
        for built in (quartic(Quartic()), quartic(Looks()))
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)


class NoGraphX(Hierarchical):
    score_x = torch.no_grad()(Hierarchical.score_x)


class NoGraphTheta(Hierarchical):
    score_theta = torch.no_grad()(Hierarchical.score_theta)


class NoGraph(NoGraphX):
    score_theta = torch.no_grad()(Hierarchical.score_theta)


class Detached(Hierarchical):
    """The pull of theta on the particles, and not the rest of their force, is out of the graph."""

    def score_x(self, theta: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().score_x({"theta": theta["theta"].detach()}, x, y)


class ByNumpy(Hierarchical):
    def score_x(self, theta: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        at, mean = x.detach().numpy(), theta["theta"].detach().numpy()
        return torch.from_numpy((mean - at) / self.variance + y[:, None].numpy() - at)


@pytest.mark.parametrize("model", [NoGraphX, NoGraphTheta, NoGraph, Detached, ByNumpy])
def test_forces_that_are_not_all_in_the_graph(model: Any) -> None:
    """What torch takes as constant is not: contraction and drift are those of the plain model."""
    motion = {"theta": {"h": 0.05, **MOTION}, "x": {"h": 0.2, **MOTION}}
    plain, own = (
        double(mpgd(kind(data=3, scale=1.5), particles=2, **motion)) for kind in (Hierarchical, model)
    )
    z, scheme = equilibrium(plain), integrator_named("expint")
    expected = in_modes(plain, z)
    near, rest = in_modes(own, z)
    rho = contraction(expected[0], scheme, expected[1])
    assert contraction(near, scheme, rest) == pytest.approx(rho, rel=1e-8)
    assert contraction(own, scheme, z) == pytest.approx(rho, rel=1e-8)
    assert_same_set(drift_map(near, rest).eigenvalues(), drift_map(*expected).eigenvalues())


def test_a_model_in_the_graph_is_asked_for_few_forces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for sizes, once for all rows of the derivative, four times to check it; not in forward mode."""
    system = toy("mpgd", data=20, particles=2, theta={"h": 0.05, **MOTION}, x={"h": 0.2, **MOTION})
    z, given, asked = equilibrium(system), Hierarchical.score_x, []

    def counted(self: Any, theta: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        asked.append(x.shape)
        return given(self, theta, x, y)

    monkeypatch.setattr(Hierarchical, "score_x", counted)
    monkeypatch.delattr("sdeflow.analysis.modes.LinearMap")
    in_modes(system, z)
    assert len(asked) == 6


def test_forces_that_have_no_potential() -> None:
    """A particle's coordinates turn around each other: they stay as they are, and its eigenvalues too."""
    turn = torch.tensor([[-1.0, 0.3], [-0.3, -1.0]], dtype=torch.float64)

    def forces(t: float, z: Any, names: Any) -> Any:
        return {"x": z["X"] @ turn.T - z["X"] ** 3}

    block = Block("x", "X", (3, 2), ("particle", "latent"), "U", eta=1.3, gamma=0.8)
    system = BlockSystem([block], forces, h=0.1, start={"X": torch.full((3, 2), 0.1, dtype=torch.float64)})
    z = {name: torch.zeros(1, 3, 2, dtype=torch.float64) for name in ("X", "U")}
    near, origin = in_modes(system, z)
    assert [b.shape for b in near.blocks] == [(6, 1)]
    scheme = integrator_named("expint")
    assert_same_set(step_map(near, scheme, origin).eigenvalues(), step_map(system, scheme, z).eigenvalues())
    assert bias(near, scheme, origin) == pytest.approx(bias(system, scheme, z), rel=1e-9)


def test_a_scheme_that_is_not_linear_in_forces() -> None:
    """A tamed force, f / (1 + h |f|), is f where it vanishes."""

    class Tamed(sdeflow.Integrator):
        """Euler with forces that are bounded."""

        def step(self, system: Any, t: float, z: Any, h: float, noise: Any) -> Any:
            f = system.forces(t, z, system.blocks)
            new = {b.position: h * f[b.name] / (1 + h * f[b.name].abs()) for b in system.blocks}
            return z | {name: z[name] + moved for name, moved in new.items()}

    system = toy("pgd", data=3, particles=2, theta={"h": 0.05}, x={"h": 0.05})
    z = equilibrium(system)
    near, origin = in_modes(system, z)
    expected = contraction(system, Tamed(), z)
    assert contraction(near, Tamed(), origin) == pytest.approx(expected, rel=1e-9)


def test_what_is_not_in_modes_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that restart, forces that depend on momenta or time, more coordinates than fit in a matrix."""

    def dragged(t: float, z: Any, names: Any) -> Any:
        return {"x": -z["X"] - 0.1 * z["U"]}

    z = {name: torch.zeros(1, 3, 1, dtype=torch.float64) for name in ("X", "U")}
    block = Block("x", "X", (3, 1), ("particle", "latent"), "U", eta=1.0, gamma=1.0)
    still = replace(block, role="parameters", temperature=0.0, restart=True)
    for given in (
        BlockSystem([block], dragged, h=0.1),
        BlockSystem([block], lambda t, z, names: {"x": -(1 + t) * z["X"]}, h=0.1),
        BlockSystem([still], lambda t, z, names: {"x": -z["X"]}, h=0.1),
    ):
        assert in_modes(given, z) == (given, z)
    monkeypatch.setattr("sdeflow.analysis.modes.MATRIX_BELOW", 12)
    large = quartic()
    assert in_modes(large, rest := equilibrium(large)) == (large, rest)


def test_curvatures_of_other_sizes_are_told_apart() -> None:
    """A parameter that sees 1e12 makes curvatures of 1 and 1 + 1e-6 no less different."""
    stiff = torch.tensor([1.0, 1.0 + 1e-6, 1.0 + 1e-6], dtype=torch.float64)[:, None]

    def forces(t: float, z: Any, names: Any) -> Any:
        return {"theta": -1e12 * z["theta"], "x": -stiff * z["X"]}

    parameter = Block("theta", "theta", (1,), ("param",), temperature=0.0, role="parameters")
    block = Block("x", "X", (3, 1), ("particle", "latent"), "U", eta=1.0, gamma=1.0)
    system = BlockSystem([parameter, block], forces, h=0.1)
    z = {"theta": torch.zeros(1, 1, dtype=torch.float64)}
    z |= {name: torch.zeros(1, 3, 1, dtype=torch.float64) for name in ("X", "U")}
    near, _ = in_modes(system, z)
    assert [b.shape for b in near.blocks] == [(1, 1), (2, 1)]
    assert near.definition.jacobian["x", "x"].diagonal().tolist() == pytest.approx([-1 - 1e-6, -1], abs=1e-12)

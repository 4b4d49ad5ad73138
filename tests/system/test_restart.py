"""Momenta that are set to zero where they point against the force.

Oracles: the definition, by replica; the closed form of velocity Verlet on a harmonic well; a descent without.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from math import acos, cos, floor, pi
from typing import Any

import numpy as np
import pytest
import torch
from small import run
from support import SYSTEMS, integrator_named
from torch import Tensor
from valid import Refused

import sdeflow
from sdeflow import Block, BlockSystem, Save, simulate
from sdeflow.config.catalogue import entries
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.linear_energy import LinearEnergy
from sdeflow.state import State
from sdeflow.system.maps import restarted

ALL = tuple(entries("integrators"))
HEED = (
    "alternating",
    "expint",
    "expint_nc",
    "expint_nc2",
    "expint_shared",
    "nag",
    "obabo",
    "baoab",
    "ubu",
    "quicsort",
)


def block(size: int = 1, **numbers: Any) -> Block:
    """Parameters with a momentum at T = 0 that restart."""
    options: dict[str, Any] = {"eta": 1.0, "gamma": 0.0, "temperature": 0.0, "restart": True} | numbers
    return Block("q", "q", (size,), ("x",), "p", role="parameters", **options)


def well(curvature: Tensor, **numbers: Any) -> BlockSystem:
    """Quadratic wells of these curvatures, started at 1 with no momentum."""
    b = block(len(curvature), **numbers)
    start = {"q": torch.ones(len(curvature), dtype=torch.float64)}
    return BlockSystem([b], lambda t, z, names: {"q": -curvature * z["q"]}, h=0.1, start=start)


def ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64)


# The map ---------------------------------------------------------------------------------------------


def test_momenta_against_the_force_are_zero_and_others_as_they_were() -> None:
    """By replica, from the sum over all axes; a right angle is not against it."""
    b = Block(
        "q",
        "q",
        (2, 2),
        ("i", "j"),
        "p",
        eta=1.0,
        gamma=1.0,
        temperature=0.0,
        role="parameters",
        restart=True,
    )
    f = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]] * 4)
    p = torch.tensor(
        [
            [[-3.0, 1.0], [1.0, 0.5]],  # <f, p> = -0.5
            [[-3.0, 1.0], [1.0, 1.5]],
            [[-1.0, 1.0], [0.0, 0.0]],
            [[0.1, 0.1], [0.1, -0.4]],
        ]
    )
    expected = p.clone()
    expected[[0, 3]] = 0.0
    assert torch.equal(restarted(b, p, f), expected)
    assert restarted(replace(b, restart=False), p, f) is p


# Schemes ---------------------------------------------------------------------------------------------


def stepped(name: str, z: State, *, restart: bool) -> State:
    system, own = well(ones(2), gamma=0.3, restart=restart), integrator_named(name)
    z = z | own.init(system, z)
    return own.step(system, 0.0, z, 0.1, ({},) * own.substeps)


@pytest.mark.parametrize("name", HEED)
def test_schemes_restart_by_replica(name: str) -> None:
    """The first moves uphill and stops, the second downhill and goes on to the same bits.

    Splittings that end with a force of their own begin anew with it: with no more than h/2 f.
    """
    z = {
        "q": torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64),
        "p": torch.tensor([[2.0, 1.0], [-1.0, 0.5]], dtype=torch.float64),
    }
    with_it, without = stepped(name, z, restart=True), stepped(name, z, restart=False)
    stopped, force = with_it["p"][0], -with_it["q"][0]
    if name in ("obabo", "baoab", "quicsort"):
        torch.testing.assert_close(stopped, 0.05 * force, rtol=0.05, atol=0)
    else:
        assert stopped.tolist() == [0.0, 0.0]
    assert float(without["p"][0] @ force) < -2
    for variable in ("q", "p"):
        assert torch.equal(with_it[variable][1], without[variable][1])


@pytest.mark.parametrize("name", ALL)
def test_every_scheme_restarts_or_refuses(name: str) -> None:
    own, system = integrator_named(name), well(ones(2))
    assert own.restarts == (name in HEED)
    refusal = own.refuses(system)
    assert (refusal is None) == own.restarts
    if refusal is not None:
        assert "restarts no momenta, and that of q is to: leave 'restart' out" in refusal
        assert own.refuses(well(ones(2), restart=False)) is None


def test_a_refusal_names_those_that_can(refused: Refused) -> None:
    sentence = refused("--set", "system.theta.restart=true", "--integrator", "euler_maruyama")
    for fragment in (
        "'euler_maruyama'",
        "that of theta is to",
        "leave 'restart' out",
        "These can: alternating, baoab",
    ):
        assert fragment in sentence


# Who may ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        ({"theta": {"restart": True}}, "kiplmc"),
        ({"x": {"restart": True}}, "mpgd"),
        ({"x": {"restart": True}}, "mpgd-x"),
    ],
)
def test_noise_and_particles_do_not(given: dict[str, Any], numbers: str) -> None:
    declaration = getattr(sdeflow, numbers.replace("-", "_"))
    name = next(iter(given))
    with pytest.raises(
        SdeflowError, match=f"block '{name}': only parameters with a momentum and T = 0 restart"
    ):
        declaration(Hierarchical(data=3), particles=2, **given)


def test_an_energys_parameters_have_noise() -> None:
    with pytest.raises(SdeflowError, match="block 'alpha': only parameters"):
        sdeflow.kinetic_ebipla(LinearEnergy(data=3), particles=2, prior_particles=2, alpha={"restart": True})


@pytest.mark.parametrize("wrong", [{"momentum": None}, {"temperature": 1.0}, {"role": "particles"}])
def test_blocks_that_cannot(wrong: dict[str, Any]) -> None:
    with pytest.raises(SdeflowError, match="only parameters with a momentum and T = 0 restart, given True"):
        replace(block(), **wrong)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_bare_block_leaves_it_aside(name: str) -> None:
    """As it does eta and gamma, so that systems can be exchanged."""
    if name in ("pgd", "ipla", "mpgd-x"):
        system = getattr(sdeflow, name.replace("-", "_"))(
            Hierarchical(data=3), particles=2, theta={"restart": True}
        )
        assert not system.blocks[0].restart


# Engines ---------------------------------------------------------------------------------------------


def descent(engine: str, integrator: str, **options: Any) -> Any:
    """The toy model with little friction, which swings several times in 60 steps."""
    motion = {"eta": 0.2, "gamma": 0.05}
    system = sdeflow.mpgd(
        Hierarchical(data=5, theta_true=3.0),
        particles=4,
        theta={"h": 0.5, **motion, "restart": True},
        x={"h": 0.5, "eta": 0.5, "gamma": 2.0},
    )
    chosen: dict[str, Any] = {
        "steps": 60,
        "seed": 3,
        "replicas": 3,
        "save": Save(every=1),
        "dtype": "float64",
    }
    return simulate(system, integrator, engine=engine, noise="philox", **(chosen | options))


@pytest.mark.parametrize("integrator", ["baoab", "expint", "ubu"])
def test_engines_agree(integrator: str) -> None:
    """Bit by bit between eager and fused, and some momenta were set to zero, in some replicas alone."""
    eager, fused = (descent(engine, integrator) for engine in ("eager", "fused"))
    for name in ("theta", "m", "X"):
        np.testing.assert_allclose(fused[name], eager[name], rtol=1e-12, atol=1e-12, err_msg=name)
    stopped = (eager.m.values == 0).reshape(61, 3)[1:]
    assert 0 < stopped.sum() < stopped.size / 2
    assert (stopped.any(1) & ~stopped.all(1)).any()


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="torch.compile needs a C++ compiler"
)
def test_the_compiled_engine_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdeflow.engine.compiled.GRADIENTS", 4)
    options: dict[str, Any] = {"steps": 24, "save": Save(every=12)}
    eager, compiled = (descent(engine, "baoab", **options) for engine in ("eager", "compiled"))
    for name in ("theta", "m", "X"):
        np.testing.assert_allclose(compiled[name], eager[name], rtol=1e-9, atol=1e-9, err_msg=name)


# What it is for --------------------------------------------------------------------------------------


@pytest.mark.parametrize("h", [0.1, 0.45, 1.1])
def test_a_swing_ends_where_it_has_passed_the_valley(h: float) -> None:
    """BAOAB without friction is velocity Verlet, q_n = cos(n W) with cos W = 1 - h^2/2: its first n past a
    quarter of a period has no momentum, and the next swing begins there."""
    system = well(ones(1))
    moved = BlockSystem(system.blocks, system.force_field, h=h, start=system.given_start)
    ds = run(moved, "baoab", steps=200).dataset
    angle = acos(1 - h * h / 2)
    first = floor(pi / 2 / angle) + 1
    np.testing.assert_allclose(ds.q[: first + 1, 0], np.cos(np.arange(first + 1) * angle), atol=1e-12)
    assert float(ds.p[first, 0]) == 0
    assert bool((ds.p[1:first] != 0).all())
    np.testing.assert_allclose(
        ds.q[first : 2 * first + 1, 0], cos(first * angle) * np.cos(np.arange(first + 1) * angle), atol=1e-12
    )
    ends = [abs(float(ds.q[n * first, 0])) for n in range(5)]
    assert all(after < abs(cos(first * angle)) * before + 1e-12 for before, after in pairwise(ends))


def evaluations_to(share: float, **numbers: Any) -> int:
    """Steps of BAOAB, one evaluation each, after which all coordinates stay below a share of the start."""
    system, own = well(torch.logspace(-2, 0, 8, dtype=torch.float64), **numbers), integrator_named("baoab")
    z: State = {"q": torch.ones(1, 8, dtype=torch.float64), "p": torch.zeros(1, 8, dtype=torch.float64)}
    z, far = z | own.init(system, z), 0
    for n in range(1, 2000):
        z = own.step(system, 0.0, z, 1.3, ({},))
        far = n if float(z["q"].abs().max()) > share else far
    return far + 1


def test_a_descent_with_little_friction_needs_fewer_evaluations() -> None:
    """Condition 100: less than half of those without restarts, and fewer than with too much friction."""
    quick = evaluations_to(0.01, gamma=0.01)
    assert quick < evaluations_to(0.01, gamma=0.01, restart=False) / 2
    assert quick < evaluations_to(0.01, gamma=1.0, restart=False)

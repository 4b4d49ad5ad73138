"""A warm-up where there is little to go by: one block, no curvature, a start at rest, no numbers, any system.

Oracles: quadratic wells, whose curvature is written down; the law of momenta.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from support import SE
from torch import Tensor

from sdeflow import Block, BlockSystem, Grid, Save, Tune, mpgd, simulate
from sdeflow.config.catalogue import integrator_named
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.state import State
from sdeflow.system.varying import spread
from sdeflow.tuning.warm_up import WarmUp, highest, rescaled

AUTO = ("h", "eta", "gamma")


def parameters(name: str = "q", size: int = 3, **numbers: Any) -> Block:
    options: dict[str, Any] = {"eta": 1.0, "gamma": 1.0, "temperature": 0.0, "auto": AUTO} | numbers
    return Block(name, name, (size,), (f"of_{name}",), f"m_{name}", role="parameters", **options)


def system_of(force: Any, start: Any, **numbers: Any) -> BlockSystem:
    """One block of parameters under a function of its position."""
    block = parameters(size=len(start), **numbers)
    at = {"q": torch.as_tensor(start, dtype=torch.float64)}
    return BlockSystem([block], lambda t, z, names: {"q": force(z["q"])}, h=0.1, start=at)


def found(system: BlockSystem, integrator: str = "baoab", **options: Any) -> dict[str, float]:
    """The numbers of a block q that are chosen at the start, and what they were chosen by."""
    tune, save = Tune(until=0), Save(every=2)
    run = simulate(system, integrator, steps=2, save=save, tune=tune, **({"dtype": "float64"} | options))
    return {str(name): float(value[-1]) for name, value in run.items() if value.ndim == 1}


# What is found ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 5, 12])
@pytest.mark.parametrize("condition", [1e2, 1e4])
def test_a_force_that_hardly_shows_the_softest_mode(size: int, condition: float) -> None:
    """From equal displacements the force is all in the stiffest mode, whose eigenvalue is near at once: the
    softest is found all the same, to 5%, and with it friction 2 sqrt(lo) L."""
    curvature = torch.logspace(0, np.log10(condition), size, dtype=torch.float64)
    numbers = found(system_of(lambda q: -curvature * q, [1.0] * size))
    assert numbers["curvature_q"] == pytest.approx(condition, rel=0.02)  # 4 products
    assert numbers["curvature_least"] == pytest.approx(1 / condition, rel=0.05)
    assert numbers["gamma_q"] == pytest.approx(2 * sqrt(condition), rel=0.03)
    assert numbers["restart_q"] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_block_sees_no_more_than_its_own_curvature(dtype: str) -> None:
    """hi = 1 of one block, so that h = share 2: a run in float32 is measured in float64 too."""
    curvature = torch.tensor([1.0, 9.0, 100.0])
    numbers = found(system_of(lambda q: -curvature.to(q) * q, [1.0, 1.0, 1.0]), dtype=dtype)
    assert numbers["curvature_most"] == pytest.approx(1.0, rel=1e-5)
    assert numbers["h_q"] == pytest.approx(0.65 * 2, rel=0.0051)
    assert numbers["eta_q"] == pytest.approx(0.01, rel=1e-5)


def test_a_start_at_rest() -> None:
    """Where there is no force a direction at random shows the spectrum."""
    curvature = torch.tensor([1.0, 100.0], dtype=torch.float64)
    numbers = found(system_of(lambda q: -curvature * q, [0.0, 0.0]))
    assert numbers["curvature_least"] == pytest.approx(0.01, rel=1e-6)


def test_a_hill() -> None:
    """Negative curvature alone: its size sets the mass, and what is slowest is not known."""
    numbers = found(system_of(lambda q: 4.0 * q, [0.1, 0.1]))
    assert numbers["curvature_q"] == pytest.approx(4.0, rel=1e-6)
    assert numbers["eta_q"] == pytest.approx(0.25, rel=1e-6)
    assert np.isnan(numbers["curvature_least"])
    assert numbers["restart_q"] == 1


def test_a_scheme_that_restarts_nothing_keeps_its_friction() -> None:
    """torchsde's Heun would swing for ever with the little friction of one that restarts."""
    hill = system_of(lambda q: 4.0 * q, [0.1, 0.1])
    little, much = (found(hill, name) for name in ("baoab", "torchsde:heun"))
    assert (little["restart_q"], much["restart_q"]) == (1, 0)
    assert much["gamma_q"] > 3 * little["gamma_q"]


@pytest.mark.parametrize(
    ("force", "curvature"),
    [(lambda q: 0 * q + 1, "0"), (lambda q: q / 0 * 0, "nan"), (lambda q: q * 1e308, "inf|nan")],
    ids=["none", "no number", "no end"],
)
def test_curvature_that_tells_no_step(force: Any, curvature: str) -> None:
    """One sentence, where torch had an error of its own."""
    with pytest.raises(
        SdeflowError, match=f"block 'q' sees a curvature of ({curvature}) at the start.*give its h"
    ):
        found(system_of(force, [1e3, 1e3]))


def test_a_block_without_curvature_whose_numbers_are_given() -> None:
    """It is left as it is, and the other gets its own."""
    given = {"eta": 2.0, "gamma": 0.5, "rate": 3.0, "auto": ()}
    blocks = [parameters("flat", 2, **given), parameters("q", 2)]

    def forces(t: float, z: State, names: Any) -> State:
        f = {"flat": 0 * z["flat"] + 1, "q": -9 * z["q"]}
        return {name: f[name] for name in names}

    start = {"flat": torch.zeros(2), "q": torch.ones(2)}
    system = BlockSystem(blocks, forces, h=0.1, start=start)
    run = simulate(system, "baoab", steps=60, save=Save(every=20), dtype="float64")
    for name, value in (("eta", 2.0), ("gamma", 0.5), ("h", 0.3)):
        np.testing.assert_allclose(run[f"{name}_flat"], value, rtol=1e-12)
    np.testing.assert_allclose(run["eta_q"], 1 / 9, rtol=1e-6)


# Any system ------------------------------------------------------------------------------------------


def three(coupling: float) -> BlockSystem:
    """Three blocks of one curvature each, all coupled: J^ has the eigenvalue 1 + 2 c."""
    names = ("a", "b", "c")

    def forces(t: float, z: State, wanted: Any) -> State:
        total = sum(z[name] for name in names)
        return {name: -((1 - coupling) * z[name] + coupling * total) for name in wanted}

    start = {name: torch.ones(1, dtype=torch.float64) for name in names}
    return BlockSystem([parameters(name, 1) for name in names], forces, h=0.1, start=start)


def test_three_blocks_may_see_three() -> None:
    """1 + 2 c = 2.8 of three, where two see 2 at most: h is below 2/sqrt(2.8), and the run comes to rest."""
    assert highest(three(0.9)) == 3
    run = simulate(
        three(0.9), "baoab", steps=400, save=Save(every=20), dtype="float64", tune=Tune(share=0.95)
    )
    assert run.attrs["retcode"] == "success"
    assert float(run["curvature_most"][-1]) == pytest.approx(2.8, rel=0.03)
    assert float(run["h_a"][-1]) == pytest.approx(0.95 * 2 / sqrt(2.8), rel=0.02)
    assert abs(float(run["a"][-1, 0])) < 1e-6
    assert float(run["tuning_returns"][-1]) == 0


def test_the_scheme_may_be_a_users_dataclass() -> None:
    """Which has no hash."""
    from dataclasses import dataclass

    @dataclass
    class Own(type(integrator_named("baoab"))):  # type: ignore[misc]
        strength: float = 1.0

    curvature = torch.tensor([1.0, 4.0], dtype=torch.float64)
    run = simulate(system_of(lambda q: -curvature * q, [1.0, 1.0]), Own(), steps=2, tune=Tune(until=0))
    assert float(run["eta_q"][-1]) == pytest.approx(0.25, rel=1e-5)


def test_a_system_whose_forces_are_a_function_stays_on_its_device() -> None:
    """The copy in double precision, whose curvature is measured, goes where the state is."""
    asked: list[Any] = []
    system = system_of(lambda q: -q, [1.0, 1.0])
    own = system.to

    def to(dtype: torch.dtype, device: Any) -> Any:
        asked.append((dtype, device))
        return own(dtype, torch.device("cpu"))

    system.to = to  # type: ignore[method-assign]
    warm_up = WarmUp(system, integrator_named("baoab"), Tune(), 100)
    z = {name: torch.ones(1, 2, dtype=torch.float32) for name in ("q", "m_q")}
    warm_up.begin(z)
    assert asked == [(torch.float64, z["q"].device)]


# Momenta ---------------------------------------------------------------------------------------------


def test_momenta_keep_their_law_when_masses_change() -> None:
    """p ~ N(0, T/eta) becomes N(0, T/eta'), variances within SE standard errors; p sqrt(eta/eta') exactly."""
    n, t = 40_000, 0.7
    before = (parameters(eta=3.0, temperature=t), parameters("r", eta=1.0, temperature=t))
    after = (parameters(eta=0.02, temperature=t), parameters("r", eta=1.0, temperature=t))
    g = torch.Generator().manual_seed(0)
    z = {b.momentum: b.momentum_std * torch.randn(n, 3, generator=g, dtype=torch.float64) for b in before}
    new = rescaled(z, before, after)
    torch.testing.assert_close(new["m_q"], z["m_q"] * (3.0 / 0.02) ** 0.5)
    assert torch.equal(new["m_r"], z["m_r"])
    variance = float(new["m_q"].var())
    assert abs(variance / (t / 0.02) - 1) < SE * (2 / (3 * n)) ** 0.5
    assert float(z["m_q"].var()) == pytest.approx(t / 3.0, rel=SE * (2 / (3 * n)) ** 0.5)


def test_momenta_of_a_grid_change_by_replica() -> None:
    system = mpgd(
        Hierarchical(data=2), particles=3, theta={"h": 0.1, "gamma": 1.0}, x={"h": 0.1, "gamma": 1.0}
    )
    before = spread(system, Grid(eta=[1.0, 4.0]), 1).blocks
    after = spread(system, Grid(eta=[2.0, 16.0]), 1).blocks
    z = {"m": torch.ones(2, 1, dtype=torch.float64), "U": torch.ones(2, 2, 3, 1, dtype=torch.float64)}
    factor = torch.tensor([0.5**0.5, 0.5], dtype=torch.float64)
    new = rescaled(z, before, after)
    torch.testing.assert_close(new["m"], factor[:, None])
    torch.testing.assert_close(new["U"], factor[:, None, None, None].expand(2, 2, 3, 1))


def test_an_overdamped_block_has_no_momentum_to_change() -> None:
    bare = (Block("q", "q", (2,), ("i",)),)
    z: dict[str, Tensor] = {"q": torch.ones(1, 2)}
    assert rescaled(z, bare, bare) == {}


def test_a_run_whose_masses_change_keeps_its_temperature() -> None:
    """Momenta of particles at T = 1 are N(0, 1/eta) at the start, and after steps of BAOAB, whose momenta are
    colder by h^2/4; within SE standard errors over 4000 particles."""
    system = mpgd(Hierarchical(data=400), particles=10, theta={"h": 1e-6, "eta": 1.0, "gamma": 1.0})
    run = simulate(system, "baoab", steps=80, save=Save(every=80), seed=2, dtype="float64")
    for at, exact in ((0, 0.5), (-1, 0.5 * (1 - float(run["h_x"][-1]) ** 2 / 4))):
        assert abs(float(run["kinetic_x"][at]) / exact - 1) < SE * (2 / 4000) ** 0.5

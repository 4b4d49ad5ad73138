"""Coin betting.

Oracles: its equations in numpy, coordinate by coordinate, in the order in which they were published; its
first step; scales of forces that change no bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pieces import toy
from torch import Tensor

import sdeflow
from sdeflow import Save, simulate
from sdeflow.errors import SdeflowError
from sdeflow.system.block import Block
from sdeflow.system.optimizer_names import optimizer_named

Array = NDArray[np.float64]


def steps_of(forces: Tensor, start: Tensor, a: float = 0.0) -> Tensor:
    """The positions of the rule under forces [n, p] that are given, after each."""
    rule = optimizer_named({"name": "coin", "a": a})
    block = Block("theta", "theta", (len(start),), ("param",), temperature=0.0, role="parameters", rule=rule)
    memory = {slot: value[None].to(start.dtype) for slot, value in rule.start(block).items()}
    q, found = start[None], []
    for f in forces:
        q, memory = rule(q, f[None], memory, 0.3)
        found.append(q[0])
    return torch.stack(found)


def by_hand(forces: Array, start: float, a: float) -> Array:
    """One coordinate, as published: q0 + G / (L max(A + L, a L)) (L + R)."""
    q, largest, net, total, reward = start, 0.0, 0.0, 0.0, 0.0
    found = []
    for c in forces:
        largest = max(largest, abs(c))
        net += c
        total += abs(c)
        reward = max(reward + (q - start) * c, 0.0)
        if largest > 0:
            q = start + net / (largest * max(total + largest, a * largest)) * (largest + reward)
        found.append(q)
    return np.array(found)


def some_forces(n: int = 40, p: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    start = torch.randn(p, generator=g, dtype=torch.float64)
    forces = torch.randn(n, p, generator=g, dtype=torch.float64).exp() - 1
    forces[:7, 0] = 0.0  # a coordinate that feels nothing for a while, and one that never does
    forces[:, 1] = 0.0
    return forces, start


@pytest.mark.parametrize("a", [0.0, 2.5, 100.0])
def test_each_coordinate_bets_by_itself(a: float) -> None:
    forces, start = some_forces()
    found = steps_of(forces, start, a)
    for i in range(len(start)):
        expected = by_hand(forces[:, i].numpy(), start[i].item(), a)
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-12, err_msg=str(i))
    assert found[:7, 0].eq(start[0]).all()
    assert found[:, 1].eq(start[1]).all()


@pytest.mark.parametrize(("a", "size"), [(0.0, 0.5), (2.0, 0.5), (4.0, 0.25), (100.0, 0.01)])
def test_the_first_step_has_one_size(a: float, size: float) -> None:
    forces = torch.tensor([[3.7, -1e-30, 1e30]], dtype=torch.float64)
    found = steps_of(forces, torch.zeros(3, dtype=torch.float64), a)
    assert found[0].tolist() == [size, -size, size]


@pytest.mark.parametrize("a", [0.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_power_of_two_changes_no_bit(a: float, dtype: torch.dtype) -> None:
    """By 7 it is rounding that changes."""
    forces, start = (v.to(dtype) for v in some_forces())
    plain = steps_of(forces, start, a)
    for scale in (2.0**-60, 2.0**-3, 2.0**9, 2.0**60):
        assert steps_of(scale * forces, start, a).equal(plain)
    torch.testing.assert_close(steps_of(7 * forces, start, a), plain)


def test_theta_of_another_system_needs_no_h() -> None:
    """What is given of one is left aside, a schedule too; its clock counts steps, and X has its own h."""
    options: dict[str, Any] = {"steps": 8, "dtype": "float64", "save": Save(every=2)}
    plain = sdeflow.pgd(toy().definition, particles=3, theta={"optimizer": "coin"}, x={"h": 0.01})
    run = simulate(plain, "expint_nc2", **options)
    for h in (0.3, "auto", {"kind": "linear", "from": 1.0, "to": 0.1}):
        theta = {"h": h, "optimizer": "coin"}
        other = sdeflow.pgd(toy().definition, particles=3, theta=theta, x={"h": 0.01})
        np.testing.assert_array_equal(simulate(other, "expint_nc2", **options).theta, run.theta)
    assert run.time_theta.values.tolist() == [0, 2, 4, 6, 8]
    np.testing.assert_allclose(run.time_x, 0.01 * run.time_theta)
    assert "theta: coin(a=0.0), h=none" in run.attrs["system"]
    assert abs(run.theta[0] - simulate(plain, "expint", steps=1, dtype="float64").theta[-1]).item() == 0.5


def test_particles_may_choose_their_steps_beside_it() -> None:
    system = sdeflow.pgd(toy().definition, particles=5, theta={"optimizer": "coin"})
    run = simulate(system, steps=60, save=Save(every=30))
    assert 0.1 < float(run.h_x[-1]) < 1  # of curvature 2


@pytest.mark.parametrize("a", [-1.0, float("inf"), "much"])
def test_what_a_cannot_be(a: Any) -> None:
    with pytest.raises(SdeflowError, match="optimizer 'coin': a must be"):
        optimizer_named({"name": "coin", "a": a})

"""What a step is said to cost on several processes, against arithmetic by hand."""

from __future__ import annotations

from typing import Any

import pytest
from commands import Cli
from processes import D, deep, toy
from support import declared, needs_kernel

import sdeflow
from sdeflow import Batch, SdeflowError
from sdeflow.config.catalogue import find
from sdeflow.simulation.scaling import Link, Work, counted, reduced_bytes, reductions, shares

PRODUCT = 6 * 2 * 3
"""Multiplications in the linear map of `deep`, from 6 to 2 for 3 particles; an addition goes with each."""


@pytest.mark.parametrize(
    ("integrator", "more", "products"),
    [
        ("expint_shared", {}, 3),  # forward, and backward to weights and to particles
        ("expint", {}, 4),  # forward and backward for each
        ("baoab", {}, 3),
        ("baoab", {"batch": Batch(size=6)}, 6),  # whose forces another batch makes useless
        ("expint", {"batch": Batch(size=6, catch_up="substeps", cap=5)}, 4 + 5 * 2),
    ],
)
def test_operations_of_a_step(integrator: str, more: dict[str, Any], products: int) -> None:
    work = counted(declared(deep(), integrator, **more))
    assert (work.once, work.datum) == (0, 2 * PRODUCT * products)


@pytest.mark.parametrize(
    ("system", "integrator", "more", "times"),
    [
        (deep, "expint", {}, 1),
        (deep, "expint_shared", {}, 1),
        (deep, "baoab", {}, 1),
        (deep, "baoab", {"batch": Batch(size=6)}, 2),
        (deep, "quicsort", {}, 2),
        (lambda: deep(find("systems", "soul"), inner_steps=5), "alternating", {}, 5),
        (lambda: deep(sdeflow.pgd, theta={"h": 1e-2, "optimizer": "adam"}), "euler_maruyama", {}, 1),
    ],
)
def test_how_often_forces_are_added_up(
    system: Any, integrator: str, more: dict[str, Any], times: int
) -> None:
    assert reductions(declared(system(), integrator, **more)) == times


def test_replicas_count_each() -> None:
    one, three = (counted(declared(deep(), "expint", replicas=r)) for r in (1, 3))
    assert three.datum == 3 * one.datum


def test_a_reduction_by_its_bytes() -> None:
    """A ring moves 2 (R - 1)/R of them; messages take the latency of a tree."""
    link = Link(1e9, 1e-5)
    assert link.reduction(1e6, 1) == 0
    assert link.reduction(1e6, 2) == pytest.approx(1e-3 + 2e-5)
    assert link.reduction(1e6, 1024) == pytest.approx(2 * 1023 / 1024 * 1e-3 + 20e-5)


def test_shares_of_a_step() -> None:
    """12 data at 1 ms each and 2 ms besides; 14 parameters in float64, sent as 112 bytes."""
    run = declared(deep(), "expint", batch=Batch(size=12), dtype="float64")
    assert reduced_bytes(run) == 14 * 8
    one, three = shares(run, [1, 3], Link(112e3, 0.0), Work(2e-3, 1e-3))
    assert (one.seconds, one.efficiency) == (pytest.approx(14e-3), 1)
    assert three.compute == pytest.approx(6e-3)
    assert three.reduction == pytest.approx(2 * 2 / 3 * 1e-3)
    assert three.efficiency == pytest.approx(14 / (3 * (6 + 4 / 3)))
    particles = 2 * D * 3 * 6 * 8  # X and U
    assert one.state - three.state == pytest.approx(particles * 2 / 3)
    assert three.state == pytest.approx(2 * 14 * 8 + particles / 3)


def test_more_processes_than_data_are_refused() -> None:
    with pytest.raises(SdeflowError, match="30 processes cannot share the 24 data of a step"):
        shares(declared(toy(), "expint"), [30], Link(1e9), Work(0.0, 1.0))


@needs_kernel
def test_the_table(cli: Cli) -> None:
    """Of steps timed here the share that is of use is 100% for one process."""
    done = cli("show", "hierarchical", "--ranks", "1,4", "--link", "1GB/s")
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines() if line[:1].isdecimal()]
    assert [row[:2] for row in rows] == [["1", "100"], ["4", "25"]]
    assert "100%" in rows[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ranks", "2,x"], "--ranks takes numbers of processes as 8,64,1024, given '2,x'"),
        (["--ranks", "0"], "--ranks takes numbers of processes"),
        (["--ranks", "2", "--link", "fast"], "--link takes a positive number as 40GB/s, given 'fast'"),
        (["--ranks", "2", "--flops", "1e12"], "no matrix products whose operations could be counted"),
        (["--ranks", "2", "--flops", "-1"], "--flops takes a positive number as 4e14"),
        (["--ranks", "1000"], "1000 processes cannot share the 100 data"),
    ],
)
def test_what_makes_no_table(cli: Cli, options: list[str], words: str) -> None:
    done = cli("show", "hierarchical", *options)
    assert done.code == 2
    assert words in done.err

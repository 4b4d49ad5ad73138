"""From curvature to the numbers of blocks.

Oracles: a search over step and friction by the real one-step map; the contraction of the real step on linear
problems (sdeflow.analysis.stability); h^2 eta L and gamma eta h, which alone decide what a block does.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import inf, isnan, log, nan, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from quadratic import MODELS, curvatures, open_system
from support import ODE_SCHEMES

import sdeflow
from sdeflow import BlockSystem, Grid
from sdeflow.analysis.stability import contraction, equilibrium, stability_limit
from sdeflow.config.catalogue import entries, integrator_named
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.varying import Spread, spread
from sdeflow.tuning.choice import HEAT, LITTLE, UNKNOWN_LO, Pace, Spectrum, evaluations_an_efold, pace, tuned
from sdeflow.tuning.limits import Wells, wells_of

SPLITTINGS = ("baoab", "obabo", "ubu")
SHARE = 0.65
KINETIC = [n for n in entries("integrators") if n not in ("torchsde:reversible_heun", *ODE_SCHEMES)]


def wells(name: str, parameter: bool | None = True, particle: bool | None = True) -> Wells:
    return Wells(integrator_named(name), parameter, particle)


@pytest.fixture(scope="module", params=MODELS)
def problem(request: pytest.FixtureRequest) -> Any:
    """A problem's name, the largest curvatures of its blocks, and the ends of J^."""
    largest, values = curvatures(open_system(request.param))
    return request.param, largest, Spectrum(float(values[0]), float(values[-1]))


def real_rate(system: BlockSystem, scheme: str) -> float:
    """-log of what the slowest error shrinks by in a gradient evaluation, from the Jacobian of the step."""
    own = integrator_named(scheme)
    return -log(contraction(system, own, equilibrium(system))) / own.evaluations


# The pace --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SPLITTINGS)
def test_a_splittings_numbers_are_the_closed_form(problem: Any, scheme: str) -> None:
    """h = share 2/sqrt(hi), less for heat; k = 2 sqrt(lo) in both blocks; eta = 1/L and gamma = k L."""
    name, largest, ends = problem
    found = pace(wells(scheme), ends, SHARE, restart=True)
    assert found.parameters == found.particles == pytest.approx(2 * sqrt(ends.lo), rel=1e-12)
    assert not found.restart
    if scheme == "baoab":
        assert found.h == pytest.approx(SHARE * 2 / sqrt(ends.hi), rel=0.0051)
    moved = tuned(open_system(name), found, largest)
    for b in moved.blocks:
        assert b.rate * moved.h == pytest.approx(found.h)
        assert b.eta == pytest.approx(1 / largest[b.name])
        assert b.gamma == pytest.approx(2 * sqrt(ends.lo) * largest[b.name])
        assert b.auto == ()


def test_a_search_finds_little_better(problem: Any) -> None:
    """Over both frictions and the ratio of the blocks' h^2 eta, at the same share of the real step's limit.

    The closed form has 90% of the best rate, and the others are worse by up to a half.
    """
    name, largest, ends = problem
    scheme, closed = integrator_named("baoab"), pace(wells("baoab"), ends, SHARE, restart=False)
    rates = []
    for ratio in (0.7, 1.0, 1.4):
        system = tuned(open_system(name), closed, {"theta": largest["theta"] / ratio, "x": largest["x"]})
        h = SHARE * system.h * stability_limit(system, scheme, equilibrium(system))
        for theta in (0.6, 0.85, 1.2):
            for x in (0.6, 0.85, 1.2):
                blocks = [
                    replace(b, gamma=b.gamma * k) for b, k in zip(system.blocks, (theta, x), strict=True)
                ]
                rates.append(real_rate(BlockSystem(blocks, system.force_field, h=h), "baoab"))
    own = real_rate(tuned(open_system(name), closed, largest), "baoab")
    assert 0.9 * max(rates) < own
    assert min(rates) < 0.7 * own


@pytest.mark.parametrize(
    "scheme", ["baoab", "obabo", "ubu", "quicsort", "expint_nc", "expint_nc2", "euler_maruyama"]
)
@pytest.mark.parametrize("declaration", ["mpgd", "pgd"])
def test_predicted_evaluations_are_those_of_the_real_step(
    problem: Any, scheme: str, declaration: str
) -> None:
    """Within 2%, with the numbers that are chosen; schemes that take x after theta see less than is said."""
    name, largest, ends = problem
    system, own = open_system(name, declaration), integrator_named(scheme)
    if own.refuses(system) is not None:
        return
    limits = wells_of(system, own)
    moved = tuned(system, pace(limits, ends, SHARE, restart=False), largest)
    said = evaluations_an_efold(limits, ends, SHARE)
    after = scheme == "expint_nc" and declaration == "pgd"
    assert 1 / real_rate(moved, scheme) == pytest.approx(said, rel=0.2 if after else 0.02)


@pytest.mark.parametrize("scheme", ["expint", "expint_shared", "nag"])
def test_predictions_for_a_gradient_ahead(problem: Any, scheme: str) -> None:
    name, largest, ends = problem
    moved = tuned(open_system(name), pace(wells(scheme), ends, SHARE, restart=False), largest)
    assert 1 / real_rate(moved, scheme) == pytest.approx(
        evaluations_an_efold(wells(scheme), ends, SHARE), rel=0.05
    )


@pytest.mark.parametrize("share", [0.5, 0.65, 0.8])
def test_baoab_needs_the_root_of_the_condition_number(problem: Any, share: float) -> None:
    """sqrt(hi/lo) / (2 share) evaluations an e-fold, within 10%, by the real step."""
    name, largest, ends = problem
    moved = tuned(open_system(name), pace(wells("baoab"), ends, share, restart=False), largest)
    assert 1 / real_rate(moved, "baoab") == pytest.approx(sqrt(ends.hi / ends.lo) / (2 * share), rel=0.1)


@pytest.mark.parametrize("scheme", KINETIC)
def test_every_scheme_gets_finite_numbers(scheme: str) -> None:
    """Stable, with a law that is off by no more than HEAT; and a prediction, whether lo is known or not."""
    own = wells(scheme)
    all_of_them = (Spectrum(0.01, 1.8), Spectrum())
    for ends in all_of_them[:1] if scheme.startswith("torchsde") else all_of_them:  # these take seconds
        found = pace(own, ends, SHARE, restart=True)
        assert 0.01 < found.h <= SHARE * found.limit * 1.0001
        assert (
            float(
                own.contraction(found.h, found.parameters, found.particles, [(1.0, 1.0, ends.hi - 1)]).max()
            )
            <= 1 + 1e-7
        )
        assert abs(own.heat(found.h, found.particles)) <= HEAT + 1e-6
        assert found.restart == isnan(ends.lo)
        assert 10 < evaluations_an_efold(own, Spectrum(0.01, 1.8), SHARE) < 2000


def test_a_scheme_that_is_stable_under_no_step_is_refused() -> None:
    own = wells("torchsde:reversible_heun")
    assert evaluations_an_efold(own, Spectrum(0.1), SHARE) == inf
    with pytest.raises(
        SdeflowError, match=r"'torchsde:reversible_heun' is stable under no step.*take another"
    ):
        pace(own, Spectrum(), SHARE, restart=False)


def test_friction_where_the_least_curvature_is_not_known() -> None:
    """That of UNKNOWN_LO; parameters that restart need little, unless a scheme's step does."""
    assert not Spectrum().known and not Spectrum(-0.1).known and Spectrum(0.1).known  # noqa: PT018
    slow = pace(wells("baoab"), Spectrum(), SHARE, restart=False)
    assert slow.parameters == slow.particles == pytest.approx(2 * sqrt(UNKNOWN_LO))
    quick = pace(wells("baoab"), Spectrum(nan), SHARE, restart=True)
    assert (quick.parameters, quick.particles, quick.h) == (LITTLE, slow.particles, slow.h)
    frozen = pace(wells("expint_nc2"), Spectrum(), SHARE, restart=True)
    assert frozen.restart
    assert frozen.parameters == frozen.particles > 1


def test_a_scheme_need_not_be_hashable() -> None:
    """As a user's may be that is a dataclass."""

    class Own(type(integrator_named("baoab"))):  # type: ignore[misc]
        __hash__ = None  # type: ignore[assignment]

    assert pace(Wells(Own(), True, True), Spectrum(0.1), SHARE, restart=False).parameters == 2 * sqrt(0.1)


# Blocks ----------------------------------------------------------------------------------------------

PACE = Pace(h=0.9, parameters=0.3, particles=0.5, limit=1.4)
L = {"theta": 40.0, "x": 7.0}
GIVEN = {"h": 0.02, "eta": 3.0, "gamma": 0.8}
SUBSETS = [subset for n in range(4) for subset in combinations(GIVEN, n)]


def s_and_a(system: BlockSystem, name: str) -> tuple[float, float]:
    """h^2 eta L and gamma eta h of a block."""
    (b,) = [b for b in system.blocks if b.name == name]
    h = b.rate * system.h
    return h * h * b.eta * L[name], b.gamma * b.eta * h


@pytest.mark.parametrize("name", ["theta", "x"])
@pytest.mark.parametrize("given", SUBSETS, ids="-".join)
def test_what_is_given_stays_and_the_rest_goes_with_it(name: str, given: tuple[str, ...]) -> None:
    """h^2 eta L is the pace's unless h and eta are given, and gamma eta h is k sqrt(h^2 eta L) where gamma is
    free or given alone: k is the friction in the time in which the stiffest mode has frequency 1."""
    numbers = {key: GIVEN[key] for key in given}
    other = "x" if name == "theta" else "theta"
    moved = tuned(open_system("hierarchical", **{name: numbers}), PACE, L)
    (b,) = [b for b in moved.blocks if b.name == name]
    own = {"h": b.rate * moved.h, "eta": b.eta, "gamma": b.gamma}
    assert {key: own[key] for key in given} == pytest.approx(numbers, rel=1e-12)
    k = {"theta": PACE.parameters, "x": PACE.particles}
    s, a = s_and_a(moved, name)
    if not {"h", "eta"} <= set(given):
        assert s == pytest.approx(PACE.h**2, rel=1e-12)
    if "gamma" not in given or given == ("gamma",):
        assert a == pytest.approx(k[name] * sqrt(s), rel=1e-12)
    assert s_and_a(moved, other) == pytest.approx((PACE.h**2, k[other] * PACE.h), rel=1e-12)


def test_the_dynamics_are_the_same_whichever_one_is_given() -> None:
    """The real step contracts alike, since a momentum's unit is all that is free."""
    largest, values = curvatures(open_system("hierarchical"))
    found = pace(wells("baoab"), Spectrum(float(values[0]), float(values[-1])), SHARE, restart=False)
    rates = [
        real_rate(tuned(open_system("hierarchical", theta=theta, x=x), found, largest), "baoab")
        for theta, x in (
            ({}, {}),
            ({"h": 0.02}, {"eta": 3.0}),
            ({"gamma": 0.8}, {"h": 7.0}),
            ({"eta": 9.0}, {"gamma": 2.0}),
        )
    ]
    np.testing.assert_allclose(rates, rates[0], rtol=1e-9)


def test_overdamped_blocks_take_half_the_square_of_the_step() -> None:
    """h = (h^2/2)/L, unless it is given; and their clocks agree."""
    moved = tuned(open_system("hierarchical", "pgd", x={"h": 0.3}), PACE, L)
    assert moved.h == pytest.approx(0.9**2 / 2 / 40)
    assert [b.rate * moved.h for b in moved.blocks] == pytest.approx([0.9**2 / 2 / 40, 0.3])
    mixed = tuned(open_system("hierarchical", "mpgd-x"), PACE, L)
    assert mixed.blocks[0].rate * mixed.h == pytest.approx(0.9**2 / 2 / 40)
    assert s_and_a(mixed, "x") == pytest.approx((0.81, 0.45))


def test_nothing_is_changed_where_all_is_given() -> None:
    system = open_system("hierarchical", theta=GIVEN, x={**GIVEN, "h": 0.5})
    moved = tuned(system, PACE, {"theta": nan, "x": 0.0})
    assert moved.blocks == system.blocks
    assert moved.h == system.h
    half = tuned(open_system("hierarchical", theta=GIVEN), PACE, {"theta": nan, "x": 7.0})
    assert half.blocks[0] == system.blocks[0]
    assert s_and_a(half, "x") == pytest.approx((0.81, 0.45))


def test_who_restarts() -> None:
    """Parameters at T = 0 whose friction is chosen; others where they are told to."""
    quick = replace(PACE, restart=True)

    def restart(system: BlockSystem, pace: Pace) -> list[bool]:
        return [b.restart for b in tuned(system, pace, L).blocks]

    assert restart(open_system("hierarchical"), quick) == [True, False]
    assert restart(open_system("hierarchical"), PACE) == [False, False]
    assert restart(open_system("hierarchical", theta={"gamma": 1.0}), quick) == [False, False]
    assert restart(open_system("hierarchical", theta={"gamma": 1.0, "restart": True}), PACE) == [True, False]
    assert restart(open_system("hierarchical", "kiplmc"), quick) == [False, False]
    assert restart(open_system("hierarchical", "pgd"), quick) == [False, False]


# Grids -----------------------------------------------------------------------------------------------


def grid_of(grid: Grid, **numbers: Any) -> BlockSystem:
    return tuned(spread(open_system("hierarchical", **numbers), grid, 1), PACE, L)


def test_a_grid_keeps_its_points() -> None:
    """eta and gamma are the grid's, and one step serves all replicas: that of the largest eta."""
    moved = grid_of(Grid(gamma=[0.1, 5.0], eta=[1.0, 16.0]))
    for b in moved.blocks:
        assert isinstance(b, Spread)
        assert [(one.gamma, one.eta) for one in b.each] == [(0.1, 1.0), (0.1, 16.0), (5.0, 1.0), (5.0, 16.0)]
        assert b.auto == ()
        assert b.eta.flatten().tolist() == [1.0, 16.0, 1.0, 16.0]
        assert (b.rate * moved.h) ** 2 * 16 * L[b.name] == pytest.approx(PACE.h**2)


def test_a_grid_of_eta_alone_has_a_friction_for_each() -> None:
    """gamma = k sqrt(L/eta), by replica."""
    moved = grid_of(Grid(eta=[1.0, 16.0]))
    for b, k in zip(moved.blocks, (PACE.parameters, PACE.particles), strict=True):
        assert [one.gamma for one in b.replicas] == pytest.approx(
            [k * sqrt(L[b.name]), k * sqrt(L[b.name] / 16)]
        )
        assert all(one.rate == b.rate for one in b.replicas)


def test_a_grid_of_gamma_alone_has_one_mass() -> None:
    moved = grid_of(Grid(gamma=[0.1, 5.0]))
    for b in moved.blocks:
        assert [(one.gamma, one.eta) for one in b.replicas] == [
            (0.1, pytest.approx(1 / L[b.name])),
            (5.0, pytest.approx(1 / L[b.name])),
        ]
        assert b.rate * moved.h == pytest.approx(PACE.h)


def test_every_point_of_a_grid_is_stable() -> None:
    """By the real step of each, at the share that was asked for or less."""
    largest, values = curvatures(open_system("hierarchical"))
    found = pace(wells("baoab"), Spectrum(float(values[0]), float(values[-1])), SHARE, restart=False)
    whole = tuned(spread(open_system("hierarchical"), Grid(eta=[0.5, 1.0, 30.0]), 1), found, largest)
    factors = []
    for r in range(3):
        one = BlockSystem([b.of(r) for b in whole.blocks], whole.force_field, h=whole.h)
        factors.append(stability_limit(one, integrator_named("baoab"), equilibrium(one)))
    assert factors == pytest.approx([sqrt(60) / SHARE, sqrt(30) / SHARE, 1 / SHARE], rel=0.0051)


def test_float32_blocks_keep_their_precision() -> None:
    system = spread(sdeflow.mpgd(Hierarchical(data=3), particles=2), Grid(eta=[1.0, 2.0]), 2)
    for b in tuned(system.to(torch.float32, torch.device("cpu")), PACE, L).blocks:
        assert isinstance(b, Spread)
        assert (b.eta.dtype, b.gamma.dtype, len(b.replicas)) == (torch.float32, torch.float32, 4)

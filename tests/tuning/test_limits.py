"""What a scheme can do with curvature.

Oracles: closed forms of the splittings, of Euler-Maruyama and of the exponential integrator on a harmonic
well; the stability and the stationary law of the real step on packaged problems (sdeflow.analysis).
"""

from __future__ import annotations

from math import exp, inf, isfinite, sqrt, tanh
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from quadratic import MODELS, curvatures, open_system
from support import ODE_SCHEMES

from sdeflow import Block, BlockSystem, Integrator
from sdeflow.analysis.stability import contraction, equilibrium, stability_limit
from sdeflow.analysis.stationary import bias
from sdeflow.config.catalogue import entries, integrator_named
from sdeflow.tuning.choice import Pace, tuned
from sdeflow.tuning.limits import Wells, wells_of

TO = 0.0051
"""The half percent to which a limit is found."""

SCHEMES = tuple(entries("integrators"))
GROWS = "torchsde:reversible_heun"
"""A scheme whose second copy of the state makes every well unstable."""


def wells(name: str, parameter: bool | None = True, particle: bool | None = True) -> Wells:
    return Wells(integrator_named(name), parameter, particle)


# Stable steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["baoab", "obabo"])
@pytest.mark.parametrize("hi", [1.0, 1.3, 2.0])
@pytest.mark.parametrize("k", [0.0, 0.02, 1.0, 3.0])
def test_splittings_are_stable_up_to_two_over_the_root_of_the_curvature(
    name: str, hi: float, k: float
) -> None:
    """Their map has the trace (1 + w)(1 - h^2 hi/2) and the determinant w, whatever the friction."""
    assert wells(name).limit(k, k, hi) == pytest.approx(2 / sqrt(hi), rel=TO)


@pytest.mark.parametrize("k", [0.01, 0.5, 1.5])
def test_ubus_limit_grows_with_friction(k: float) -> None:
    """Trace 1 + w - h (1-w)/k, determinant w: stable while h tanh(k h/2) < 2 k, that is h < 2 for k = 0."""
    h = wells("ubu").limit(k, k, 1.0)
    assert h * (1 - TO) * tanh(k * h * (1 - TO) / 2) < 2 * k
    assert h * (1 + TO) * tanh(k * h * (1 + TO) / 2) > 2 * k


@pytest.mark.parametrize("hi", [1.0, 1.5, 2.0])
def test_overdamped_euler(hi: float) -> None:
    """h^2/2 of its time a step, below 2/hi: again h < 2/sqrt(hi)."""
    assert wells("euler_maruyama", False, False).limit(0, 0, hi) == pytest.approx(2 / sqrt(hi), rel=TO)
    assert wells("expint_nc2", False, False).limit(0, 0, hi) == pytest.approx(2 / sqrt(hi), rel=TO)


@pytest.mark.parametrize("k", [0.3, 0.8, 1.1])
def test_kinetic_euler_and_the_exponential_integrator(k: float) -> None:
    """Of 2 x 2 maps, stable where |trace| < 1 + determinant < 2. Euler's has trace 2 - k h and determinant
    1 - k h + h^2, so that h < k, and soft modes need h < 2/k; the exponential integrator's is written out."""
    one = wells("euler_maruyama", True, None)
    assert one.limit(k, k, 1.0) == pytest.approx(min(k, 2 / k), rel=TO)
    h = wells("expint_nc2", True, None).limit(k, k, 1.0)
    for factor, stable in ((1 - TO, True), (1 + TO, False)):
        t = factor * h
        w = exp(-k * t)
        free, push = (1 - w) / k, (t - (1 - w) / k) / k
        trace, determinant = 1 - push + w, w * (1 - push) + free * free
        assert (abs(trace) < 1 + determinant < 2) == stable


def test_more_than_two_blocks_may_see_more_than_two() -> None:
    """A Hessian of ones on n blocks has the curvature n: BAOAB is stable to 2/sqrt(n), UBU by its step."""
    for n in (3, 5):
        for own in (wells("baoab"), wells("baoab", True, None), wells("baoab", None, True)):
            assert own.limit(0.5, 0.5, n) == pytest.approx(2 / sqrt(n), rel=TO)
    blocks = [
        Block(f"b{i}", f"q{i}", (1,), ("i",), f"p{i}", eta=1.0, gamma=0.5, temperature=0.0) for i in range(3)
    ]
    system = BlockSystem(
        blocks, lambda t, z, names: dict.fromkeys(names, -(z["q0"] + z["q1"] + z["q2"])), h=1.0
    )
    z = {name: torch.zeros(1, 1, dtype=torch.float64) for b in blocks for name in b.variables}
    expected = stability_limit(system, integrator_named("ubu"), z)
    assert wells("ubu").limit(0.5, 0.5, 3.0) == pytest.approx(expected, rel=TO)


def able(name: str) -> list[tuple[bool, bool]]:
    """Which of the kinds of wells, parameter and particle with a momentum or not, a scheme takes."""
    kinds = [(a, b) for a in (True, False) for b in (True, False)]
    scheme = integrator_named(name)
    return [
        kind
        for kind in kinds
        if scheme.refuses(BlockSystem(Wells(scheme, *kind)._blocks(0.1, 1, 1), dict, h=0.1)) is None
    ]


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_of_the_catalogue_has_a_limit(name: str) -> None:
    """Finite and positive wherever it takes the wells, and it contracts below it and not above."""
    kinds = able(name)
    assert kinds
    for kind in kinds:
        own = wells(name, *kind)
        limit = own.limit(1.0, 1.0)
        if name == GROWS:
            assert limit == 0
            continue
        assert 0.1 < limit < 4
        hessians = [(1.0, 1.0, c) for c in (1.0, 0.9, 0.5, 0.0)] + [(1.0, 0.3, 0.0), (0.3, 1.0, 0.0)]
        assert float(own.contraction(limit, 1.0, 1.0, hessians).max()) <= 1 + 1e-7
        assert float(own.contraction(1.01 * limit, 1.0, 1.0, hessians).max()) > 1 + 1e-7
        assert name in ODE_SCHEMES or isfinite(own.heat(min(0.1, limit), 1.0))


def test_contraction_is_that_of_the_real_step_with_what_it_keeps() -> None:
    """Against analysis, which takes the Jacobian of the step in all that is in the state."""
    for name in ("baoab", "nag", "expint", "torchsde:heun", GROWS):
        own, h, k = wells(name), 0.3, 0.8
        blocks = own._blocks(h, k, 2 * k)

        def forces(t: float, z: Any, names: Any) -> Any:
            q, x = z["theta"], z["X"].flatten(1)
            f = {"theta": -(0.9 * q + 0.4 * x), "x": -(0.4 * q + 0.5 * x).view(-1, 1, 1, 1)}
            return {name: f[name] for name in names}

        system = BlockSystem(blocks, forces, h=h)
        z = {n: torch.zeros(1, *axes.shape, dtype=torch.float64) for n, axes in system.axes.items()}
        found = own.contraction(h, k, 2 * k, [(0.2, 0.1, 0.0), (0.9, 0.5, 0.4)])
        assert float(found[1]) == pytest.approx(contraction(system, integrator_named(name), z), rel=1e-9)


class Overflows(Integrator[BlockSystem]):
    def step(self, system: Any, t: float, z: Any, h: float, noise: Any) -> Any:
        return {name: value / 0.0 for name, value in z.items()}


def test_a_step_that_overflows_contracts_nothing() -> None:
    own = Wells(Overflows(), True, True)
    assert own.contraction(0.1, 1.0, 1.0, [(1.0, 1.0, 0.0)]).tolist() == [inf]
    assert (own.limit(1.0, 1.0), own.heat(0.1, 1.0), own.coolest(1.0, 0.25)) == (0.0, inf, 0.0)


# Real problems ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=MODELS)
def problem(request: pytest.FixtureRequest) -> Any:
    """A problem's systems, mpgd and pgd, the largest curvatures of their blocks, and the ends of J^."""
    largest, values = curvatures(open_system(request.param))
    return request.param, largest, float(values[0]), float(values[-1])


SHARE = 0.7


def moved_by(declaration: str, scheme: str, problem: Any, share: float, k: float | None) -> Any:
    """A problem's system with the numbers for a share of the limit at the friction k, or at 2 sqrt(lo)."""
    name, largest, lo, hi = problem
    system, k = open_system(name, declaration), 2 * sqrt(lo) if k is None else k
    limit = wells_of(system, integrator_named(scheme)).limit(k, k, hi)
    return tuned(system, Pace(share * limit, k, k, limit), largest)


EXACT = ("baoab", "obabo", "ubu", "quicsort", "expint_nc2", "expint_shared", "euler_maruyama")


@pytest.mark.parametrize("k", [None, 2.0])
@pytest.mark.parametrize("scheme", [*EXACT, "expint", "expint_nc", "nag"])
def test_a_share_of_the_limit_is_that_share_of_the_real_steps_limit(
    problem: Any, scheme: str, k: float | None
) -> None:
    """All steps of the system that has the numbers may grow by 1/share, to 0.5%, and no more.

    Wells stand for all problems whose J^ has these ends: schemes that take one block before the other, or
    friction by differences, may bear up to 1.4 times more on one of them, and never less.
    """
    moved = moved_by("mpgd", scheme, problem, SHARE, k)
    factor = SHARE * stability_limit(moved, integrator_named(scheme), equilibrium(moved))
    most = 1 + TO if scheme in EXACT and (k is None or not scheme.startswith("euler")) else 1.4
    assert 1 - TO < factor < most


@pytest.mark.parametrize(
    ("scheme", "most"), [("euler_maruyama", 1 + TO), ("expint_nc2", 1 + TO), ("expint", 1.4)]
)
def test_without_momenta_time_grows_as_the_square_of_the_step(problem: Any, scheme: str, most: float) -> None:
    """Whose limit is 2/hi of time for these; expint takes theta before x, and bears 2."""
    moved = moved_by("pgd", scheme, problem, SHARE, None)
    factor = SHARE * stability_limit(moved, integrator_named(scheme), equilibrium(moved)) ** 0.5
    assert 1 - TO < factor < most


@pytest.mark.parametrize(
    "scheme", ["expint", "expint_nc", "expint_nc2", "expint_shared", "nag", "euler_maruyama"]
)
@pytest.mark.parametrize("declaration", ["mpgd-theta", "mpgd-x"])
def test_blocks_of_two_kinds_are_stable_up_to_the_limit(problem: Any, declaration: str, scheme: str) -> None:
    own = integrator_named(scheme)
    if own.refuses(open_system(problem[0], declaration)) is not None:
        assert (scheme, declaration) == ("nag", "mpgd-x")
        return
    for k in (None, 1.0):
        moved = moved_by(declaration, scheme, problem, 1.0, k)
        assert contraction(moved, own, equilibrium(moved)) <= 1 + 1e-7


# The law of the particles ----------------------------------------------------------------------------


@pytest.mark.parametrize("h", [0.2, 0.9, 1.7])
@pytest.mark.parametrize("k", [0.1, 1.5])
def test_heat_of_the_splittings(h: float, k: float) -> None:
    """OBABO's variance is 1/(1 - h^2/4) and BAOAB's exact, at any friction."""
    assert wells("obabo").heat(h, k) == pytest.approx(h**2 / 4 / (1 - h**2 / 4), rel=1e-9)
    assert abs(wells("baoab").heat(h, k)) < 1e-12


@pytest.mark.parametrize("h", [0.2, 0.9, 1.7])
def test_heat_of_euler_maruyama_without_momenta(h: float) -> None:
    """1/(1 - h'/2) under a step of h' = h^2/2 of time."""
    for name in ("euler_maruyama", "expint"):
        assert wells(name, False, False).heat(h, 7.0) == pytest.approx(h**2 / 4 / (1 - h**2 / 4), rel=1e-9)


@pytest.mark.parametrize("h", [0.1, 0.8])
def test_heat_of_the_exponential_integrator(h: float) -> None:
    """From its map and the covariance of its noise, which are integrals written out, by scipy's solver."""
    k = 1.3
    w = exp(-k * h)
    free, push = (1 - w) / k, (h - (1 - w) / k) / k
    m = np.array([[1 - push, free], [-free, w]])
    pp = 1 - w**2  # 2 k times the integrals of e^-2kt, of e^-kt (1 - e^-kt)/k and of (1 - e^-kt)^2/k^2
    pq = (1 - w) ** 2 / k
    qq = (2 * h - (3 - 4 * w + w**2) / k) / k
    s = scipy.linalg.solve_discrete_lyapunov(m, np.array([[qq, pq], [pq, pp]]))
    assert wells("expint").heat(h, k) == pytest.approx(s[0, 0] - 1, rel=1e-9)


def test_heat_where_no_law_is_left_and_where_there_are_no_particles() -> None:
    assert wells("obabo").heat(2.1, 1.0) == inf
    assert wells("euler_maruyama").heat(0.5, 0.1) == inf
    assert wells("obabo", True, None).heat(1.0, 1.0) == 0


@pytest.mark.parametrize(
    "scheme", ["obabo", "ubu", "expint", "expint_shared", "nag", "quicsort", "euler_maruyama"]
)
def test_heat_is_the_bias_of_the_real_step(problem: Any, scheme: str) -> None:
    """In the stiffest direction of the particles, which is where the variance is furthest from the law's."""
    moved = moved_by("mpgd", scheme, problem, 0.25, 1.5)
    h = moved.h * sqrt(moved.blocks[0].eta * problem[1]["theta"])  # in the units of the wells
    own = integrator_named(scheme)
    heat = wells_of(moved, own).heat(h, 1.5)
    assert bias(moved, own, equilibrium(moved)) == pytest.approx(heat, rel=1e-6)


@pytest.mark.parametrize("most", [0.05, 0.25])
def test_the_coolest_step(most: float) -> None:
    """OBABO: h^2/4 = most/(1 + most). BAOAB is exact up to where it is unstable. Cold counts as heat does."""
    assert wells("obabo").coolest(1.0, most) == pytest.approx(2 * sqrt(most / (1 + most)), rel=TO)
    assert wells("baoab").coolest(1.0, most) == pytest.approx(2, rel=TO)
    own = wells("ubu")
    assert own.heat(own.coolest(1.0, most), 1.0) == pytest.approx(-most, rel=0.02)


def test_wells_of_a_system() -> None:
    for declaration, expected in (
        ("mpgd", (True, True)),
        ("mpgd-theta", (True, False)),
        ("pgd", (False, False)),
    ):
        found = wells_of(open_system("hierarchical", declaration), integrator_named("expint"))
        assert (found.parameter, found.particle) == expected
    block = Block("q", "q", (2,), ("i",), "p", eta=1.0, gamma=1.0)
    alone = wells_of(BlockSystem([block], dict, h=0.1), integrator_named("baoab"))
    assert (alone.parameter, alone.particle) == (None, True)

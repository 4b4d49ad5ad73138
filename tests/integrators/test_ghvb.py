"""Adams-Bashforth with a momentum: GHVB and the heavy ball, on systems without noise.

Oracles: the published weights; the recursion with a velocity, in numpy; a Runge-Kutta solution to 1e-12;
closed forms of the largest stable step, from a root at -1 of the characteristic polynomial.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from support import Matrix, declared, exponent, spectral_radius

from sdeflow import Block, BlockSystem, Save, SDESystem, SystemDeclaration, mpgd, simulate
from sdeflow.config.build import build
from sdeflow.config.catalogue import compatible, integrator_named
from sdeflow.config.schema import load_config
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.errors import SdeflowError
from sdeflow.integrators.ghvb import GHVB
from sdeflow.integrators.heavy_ball import HeavyBall
from sdeflow.options import Batch
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.system import System

BETAS = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)
ORDERS = (1, 2, 3, 4)
CASES = [(order, beta) for order in ORDERS for beta in (1.0, 0.8, 0.3)]

Field = Callable[[float, Any], Any]


def pendulum(t: float, x: Any) -> Any:
    """Two coupled coordinates under a force that depends on time."""
    right = (x[..., 1] + 0.3 * np.cos(t), -np.sin(1.3) * x[..., 0] ** 3 - 0.4 * x[..., 1] + np.sin(2 * t))
    return torch.stack(right, -1) if isinstance(x, torch.Tensor) else np.stack(right, -1)


START = (1.1, -0.4)


def ode(field: Field, h: float, size: int = 2) -> BlockSystem:
    """x' = field(t, x), a block without noise."""
    block = Block("x", "x", (size,), ("param",), temperature=0.0, role="parameters")
    return BlockSystem([block], lambda t, z, names: {"x": field(t, z["x"])}, h=h)


def path(scheme: GHVB, system: System, steps: int, z: dict[str, Any]) -> list[Any]:
    """x_0, x_1, ... of the scheme as an engine takes it."""
    z, found = z | scheme.init(system, z), [z["x"]]
    for n in range(steps):
        z = advance(EagerSteps(system, scheme, lambda n: ({},)), z, n, 1)
        found.append(z["x"])
    return found


def points(scheme: GHVB, field: Field, h: float, steps: int) -> Matrix:
    z = {"x": torch.tensor([START], dtype=torch.float64)}
    return torch.cat(path(scheme, ode(field, h), steps, z)).numpy()


def runge_kutta(field: Field, t: float, x: Matrix, h: float) -> Matrix:
    a = field(t, x)
    b = field(t + h / 2, x + h / 2 * a)
    c = field(t + h / 2, x + h / 2 * b)
    d = field(t + h, x + h * c)
    return x + h / 6 * (a + 2 * b + 2 * c + d)


def published(order: int, beta: float) -> Matrix:
    """The weights of arXiv:2307.11118."""
    b = beta
    return np.array(
        {
            1: [b],
            2: [(2 + b) / 2, -(2 - b) / 2],
            3: [(18 + 5 * b) / 12, -(24 - 8 * b) / 12, (6 - b) / 12],
            4: [(46 + 9 * b) / 24, -(78 - 19 * b) / 24, (42 - 5 * b) / 24, -(10 - b) / 24],
        }[order]
    )


# What a step is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("beta", BETAS)
def test_weights(order: int, beta: float) -> None:
    np.testing.assert_allclose(GHVB(order, beta).weights, published(order, beta), rtol=1e-13, atol=1e-15)
    of_ball = beta * published(order, 1.0)
    np.testing.assert_allclose(HeavyBall(order, beta).weights, of_ball, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("order", "beta"), CASES)
def test_a_step_is_that_of_the_recursion_with_a_velocity(order: int, beta: float) -> None:
    """v_n = (1 - beta) v_{n-1} + beta f_n, x_{n+1} = x_n + h/beta sum c_k v_{n-k}, with v_{-k} = f_0.

    The memory of that start is x_{-1} = x_0 - h f_0 and f_{-k} = f_0.
    """
    h, x = 0.05, np.array(START)
    v, c, expected = [pendulum(0.0, x)] * order, published(order, beta), [x]
    for n in range(40):
        v = [(1 - beta) * v[0] + beta * pendulum(n * h, x), *v[: order - 1]]
        x = x + h / beta * sum(ck * vk for ck, vk in zip(c, v, strict=True))
        expected.append(x)
    scheme, first = GHVB(order, beta), torch.tensor([START], dtype=torch.float64)
    f = pendulum(0.0, first)
    z = {"x": first, "before:x": first - h * f} | {f"past{k}:x": f for k in range(1, order)}
    found, system = [first], ode(pendulum, h)
    for n in range(40):
        z = scheme.step(system, n * h, z, h, ({},))
        found.append(z["x"])
    np.testing.assert_allclose(torch.cat(found), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [GHVB, HeavyBall])
@pytest.mark.parametrize(("order", "beta"), CASES)
def test_the_first_steps_are_those_of_runge_kutta(kind: type[GHVB], order: int, beta: float) -> None:
    """r - 1 of them; at r = 1, which needs none, the first is Euler's."""
    h, x = 0.1, np.array(START)
    expected = [x]
    for n in range(order - 1):
        expected.append(x := runge_kutta(pendulum, n * h, x, h))
    if order == 1:
        expected.append(x + h * pendulum(0.0, x))
    found = points(kind(order, beta), pendulum, h, len(expected) - 1)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", [GHVB, HeavyBall])
@pytest.mark.parametrize("order", ORDERS)
def test_beta_one_is_adams_bashforth(kind: type[GHVB], order: int) -> None:
    """From the same Runge-Kutta steps, to rounding; the weights are integrals of Lagrange's polynomials."""
    h, nodes = 0.1, -np.arange(order)
    lagrange = [np.atleast_1d(np.poly(np.delete(nodes, k))) for k in range(order)]
    weights = [np.polyval(np.polyint(p), 1.0) / np.polyval(p, -k) for k, p in enumerate(lagrange)]
    x = [np.array(START)]
    for n in range(order - 1):
        x.append(runge_kutta(pendulum, n * h, x[-1], h))
    for n in range(order - 1, 30):
        f = [pendulum((n - k) * h, x[n - k]) for k in range(order)]
        x.append(x[n] + h * sum(w * fk for w, fk in zip(weights, f, strict=True)))
    np.testing.assert_allclose(points(kind(order, 1.0), pendulum, h, 30), x, rtol=1e-12, atol=1e-12)


# Orders ----------------------------------------------------------------------------------------------


def errors(scheme: GHVB, cold: bool = False, time: float = 2.0) -> list[float]:
    exact = scipy.integrate.solve_ivp(pendulum, (0, time), START, method="DOP853", rtol=1e-13, atol=1e-13)
    found = []
    for steps in (160, 320, 640):
        h = time / steps
        system, z = ode(pendulum, h), {"x": torch.tensor([START], dtype=torch.float64)}
        f = pendulum(0.0, z["x"])
        past = {f"past{k}:x": f for k in range(1, scheme.order)} | {"before:x": z["x"] - h * f}
        z |= past if cold else scheme.init(system, z)
        z = advance(EagerSteps(system, scheme, lambda n: ({},)), z, 0, steps)
        found.append(np.abs(z["x"].numpy()[0] - exact.y[:, -1]).max())
    return found


@pytest.mark.parametrize(("order", "beta"), CASES)
def test_order(order: int, beta: float) -> None:
    """The declared one: r for every beta. What is left of O(h^2) on the exponent was below 0.017."""
    scheme = GHVB(order, beta)
    assert scheme.strong_order == scheme.weak_order == order
    assert exponent(errors(scheme)) == pytest.approx(order, abs=0.02)


@pytest.mark.parametrize(("order", "beta"), CASES)
def test_order_of_the_heavy_ball(order: int, beta: float) -> None:
    """One for every beta below 1, of whatever order it is made."""
    scheme = HeavyBall(order, beta)
    assert scheme.weak_order == (order if beta == 1 else 1)
    assert exponent(errors(scheme)) == pytest.approx(scheme.weak_order, abs=0.02)


@pytest.mark.parametrize("order", [3, 4])
def test_a_cold_start_has_order_two(order: int) -> None:
    """As f_{-k} = f_0 is wrong by O(h): what the start by Runge-Kutta is for."""
    assert exponent(errors(GHVB(order, 0.8), cold=True)) == pytest.approx(2, abs=0.02)


# Stability -------------------------------------------------------------------------------------------


def limit(scheme: GHVB) -> float:
    """The largest stable h of x' = -x, by bisection on the spectral radius of the step that is taken."""

    def radius(h: float) -> float:
        system = ode(lambda t, x: -x, h, size=1)
        z = {"x": torch.zeros(1, 1, dtype=torch.float64)}
        names = [*(z | scheme.init(system, z))]
        rows = torch.eye(len(names), dtype=torch.float64)
        new = scheme.step(system, 0.0, {n: rows[:, i, None] for i, n in enumerate(names)}, h, ({},))
        return spectral_radius(torch.cat([new[n] for n in names], 1).numpy().T)

    low, high = 0.0, 20.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if radius(middle) <= 1 + 1e-12 else (low, middle)
    return low


def closed(order: int, b: float) -> float:
    return {1: (4 - 2 * b) / b, 2: 2 - b, 3: (12 - 6 * b) / (12 - b), 4: (6 - 3 * b) / (11 - b)}[order]


def closed_of_ball(order: int, b: float) -> float:
    return (4 - 2 * b) / b / {1: 1, 2: 2, 3: 11 / 3, 4: 20 / 3}[order]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("order", ORDERS)
def test_largest_stable_step(order: int, beta: float) -> None:
    """A root of the characteristic polynomial is -1 there, and none is larger before."""
    assert limit(GHVB(order, beta)) == pytest.approx(closed(order, beta), rel=1e-5)
    assert limit(HeavyBall(order, beta)) == pytest.approx(closed_of_ball(order, beta), rel=1e-5)


@pytest.mark.parametrize(
    ("order", "expected"),
    [(3, [0.546, 0.595, 0.643, 0.691, 0.783, 0.872]), (4, [0.301, 0.327, 0.353, 0.379, 0.429, 0.477])],
)
def test_largest_stable_steps_of_another_computation(order: int, expected: list[float]) -> None:
    """Found independently on a grid of steps, to 0.0015."""
    assert [limit(GHVB(order, beta)) for beta in BETAS] == pytest.approx(expected, abs=0.0015)


# What it takes ---------------------------------------------------------------------------------------


def toy(declaration: SystemDeclaration = mpgd, **numbers: Any) -> BlockSystem:
    motion = {"h": 0.01, "eta": 1.0, "gamma": 1.0} | numbers
    return declaration(Hierarchical(data=2), particles=2, theta=motion, x=motion)


@pytest.mark.parametrize(
    ("system", "reason"),
    [
        (toy, "it is for systems without noise, and noise enters U"),
        (lambda: toy(h="auto"), "noise enters U"),
        (
            lambda: BlockSystem([Block("q", "q", (1,), ("i",), temperature=0.0, auto=("h",))], dict, h=0.1),
            "it remembers steps of the same numbers, and h of q is 'auto'",
        ),
    ],
)
def test_it_refuses(system: Callable[[], System], reason: str) -> None:
    with pytest.raises(SdeflowError, match=f"integrator 'ghvb' cannot take this system: .*{reason}"):
        compatible("ghvb", system())


def test_it_takes_no_minibatches() -> None:
    """Whose particles are of other data in each step, and have no past in common."""
    warm = toy()
    system = warm.with_blocks([replace(b, temperature=0.0) for b in warm.blocks])
    with pytest.raises(SdeflowError, match="integrator 'ghvb' takes no minibatches: its steps are of all"):
        simulate(system, "ghvb", steps=2, batch=Batch(1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "ghvb", "order": 5}, "order must be 1, 2, 3 or 4, given 5"),
        ({"name": "ghvb", "beta": 0.0}, "beta must lie in .0, 1., given 0.0"),
        ({"name": "heavy_ball", "beta": 1.1}, "beta must lie in .0, 1., given 1.1"),
        ({"name": "ghvb", "order": 2.5}, "run.integrator.order"),
        ({"name": "ghvb", "bta": 0.5}, "unknown key 'run.integrator.bta': did you mean 'beta'"),
        ({"name": "baoab", "order": 2}, "unknown key 'run.integrator.order'"),
        ({"order": 2}, "a table as {name = 'ghvb', order = 3}; given a table of order"),
    ],
)
def test_options_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SdeflowError, match=message):
        integrator_named(given)


PROBLEM = """
[model]
use = "hierarchical"
[system]
use = "pgd"
particles = 2
theta = { h = 1e-3 }
x = { h = 1e-3 }
[run]
steps = 3
integrator = { name = "FILE", order = 3 }
"""


def test_options_stand_in_a_table_of_the_problem(tmp_path: Path) -> None:
    """And can be set; a file is relative to the problem's."""
    (tmp_path / "mine.py").write_text(
        "from sdeflow.integrators.expint import ExpInt\n"
        "class Mine(ExpInt):\n"
        "    name = 'mine'\n"
        "    def __init__(self, order: int, shift: float = 0.0) -> None:\n"
        "        self.given = order, shift\n"
    )
    problem = tmp_path / "problem.toml"
    problem.write_text(PROBLEM.replace("FILE", "mine.py:Mine"))
    run = build(load_config(problem, overrides=[{"run": {"integrator": {"shift": 0.5}}}]))
    assert getattr(run.integrator, "given", None) == (3, 0.5)
    assert 'name = "' + str(tmp_path / "mine.py") in run.toml
    other = build(load_config(problem, overrides=[{"run": {"integrator": "expint"}}]))
    assert other.integrator.name == "expint"


def test_a_resumed_run_has_the_same_options(tmp_path: Path) -> None:
    system = ode(lambda t, x: -x, 0.1)
    system.given_start = {"x": torch.ones(2, dtype=torch.float64)}
    simulate(system, GHVB(3, 0.8), steps=5, out=tmp_path / "run")
    with pytest.raises(SdeflowError, match="integrator"):
        simulate(system, GHVB(3, 0.7), steps=9, out=tmp_path / "run", resume=True)
    assert str(declared(system, GHVB(3, 0.8), steps=1).settings["integrator"]) == "ghvb of order 3, beta 0.8"


@pytest.mark.parametrize("scheme", [GHVB(4, 0.8), HeavyBall(2, 0.5)])
def test_a_run_in_pieces_is_the_run(tmp_path: Path, scheme: GHVB) -> None:
    """Cut within its start too: the memory is in the state."""

    def system() -> BlockSystem:
        own = ode(pendulum, 0.1)
        own.given_start = {"x": torch.tensor(START, dtype=torch.float64)}
        return own

    whole = simulate(system(), scheme, steps=9, dtype="float64")
    for cut in (1, 2, 6):
        simulate(system(), scheme, steps=cut, dtype="float64", out=tmp_path / str(cut))
        run = simulate(system(), scheme, steps=9, dtype="float64", out=tmp_path / str(cut), resume=True)
        np.testing.assert_array_equal(run["x"][-1], whole["x"][-1])


@pytest.mark.parametrize("order", [3, 4])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_few_steps_ends_at_the_final_time(order: int, steps: int) -> None:
    """By Runge-Kutta's own steps; the field is not asked for what is past the end."""

    class Decay:
        final_time = 1.0
        diffusion = None

        def drift(self, t: float, x: Any) -> Any:
            assert t <= 1 + 1e-12
            return -x * math.sqrt(max(1 - t, 0.0) + 1)

    def slope(t: float, x: float) -> float:
        return -x * math.sqrt(max(1 - t, 0.0) + 1)

    run = simulate(
        SDESystem(Decay(), start=[1.0]), GHVB(order), steps=steps, save=Save(every=1), dtype="float64"
    )
    x, h = 1.0, 1 / steps
    for n in range(min(steps, order - 1)):
        k1 = slope(n * h, x)
        k2 = slope((n + 0.5) * h, x + h / 2 * k1)
        k3 = slope((n + 0.5) * h, x + h / 2 * k2)
        x += h / 6 * (k1 + 2 * k2 + 2 * k3 + slope((n + 1) * h, x + h * k3))
    if steps < order:
        assert run.X[-1].item() == pytest.approx(x, rel=1e-12)
    assert run.attrs["retcode"] == "success"

"""Catching up by one stabilised step.

Oracles: matrices written from the equations; Chebyshev's polynomials by numpy; the Gaussian law of the exact
dynamics in a harmonic well, and stationary laws in closed form; the Ito-Taylor series with the generator by
autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.polynomial.chebyshev import Chebyshev
from numpy.polynomial.hermite_e import hermegauss
from support import Matrix
from torch import Tensor

from sdeflow.engine.stabilised import StabilisedStep, stabilised
from sdeflow.system.block import Block
from sdeflow.system.system import BlockSystem

ETA, T, RATE = 0.7, 1.3, 0.8
STAGES = [2, 3, 5, 9, 20]
LENGTHS = {None: (0.5,), 0.0: (0.01, 2.0), 0.9: (0.01, 1.0, 10.0, 1e3)}
"""Steps by friction; with one, from few frictions to hundreds."""

Force = Callable[[Tensor], Tensor]


def block(size: int, gamma: float | None) -> Block:
    momentum = None if gamma is None else "p"
    numbers = {} if gamma is None else {"eta": ETA, "gamma": gamma}
    dims = ("datum", "particle", "latent")
    return Block("q", "q", (size, 1, 1), dims, momentum, temperature=T, rate=RATE, **numbers)


def step(b: Block, force: Force, q: Tensor, p: Tensor, xi: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """(q', p') of rows of states [R, size] after one step h; xi [s, R, size]."""
    q, p, xi = q[..., None, None], p[..., None, None], xi[..., None, None]
    system = BlockSystem([b], lambda t, z, names: {"q": force(z["q"][..., 0, 0])[..., None, None]}, h=h)
    z = {"q": q} if b.momentum is None else {"q": q, "p": p}
    one = StabilisedStep(b, h, 1, len(xi), torch.device("cpu"))
    times = torch.ones(q.shape[:2], dtype=torch.long)
    new = stabilised(system, [one], z, times, {b.noisy: xi}, len(xi))
    assert new.keys() == z.keys()
    return new["q"][..., 0, 0], new.get("p", torch.zeros_like(q))[..., 0, 0]


def linear(b: Block, curvatures: Matrix, h: float, s: int) -> tuple[Matrix, Matrix]:
    """[c, 2, 2]: M and the covariance of the noise of (q, p) in wells of the given curvatures."""
    c = torch.from_numpy(np.asarray(curvatures, dtype=float))
    rows = torch.eye(2 + s, dtype=torch.float64)[:, :, None].expand(-1, -1, len(c))
    q, p, *xi = rows.unbind(1)
    new = torch.stack(step(b, lambda q: -c * q, q, p, torch.stack(xi), h))  # [2, row, c]
    maps = new.permute(2, 0, 1).numpy()
    return maps[:, :, :2], maps[:, :, 2:] @ maps[:, :, 2:].transpose(0, 2, 1)


def push(gamma: float | None, h: float) -> float:
    """What a held force of 1 moves q by."""
    if not gamma:
        return RATE * h if gamma is None else ETA * (RATE * h) ** 2 / 2
    k = gamma * ETA
    return (RATE * h - (1 - math.exp(-k * RATE * h)) / k) / gamma


def frictions(gamma: float | None, h: float) -> float:
    return math.inf if gamma is None else gamma * ETA * RATE * h


def substep(gamma: float | None, h: float, s: int) -> tuple[float, float]:
    """eta tau^2 and w; over more than 6 frictions by powers of BAOAB's matrix in (q, p, 1), f = 1."""
    w, m = math.exp(-min(6.0, frictions(gamma, h)) / (s - 1)), s - 1
    if gamma is not None and frictions(gamma, h) <= 6:
        return ETA * (RATE * h / m) ** 2, w
    kick, drift = np.array([[1, 0, 0], [0, 1, 0.5], [0, 0, 1]]), np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 1]])
    one = kick @ drift @ np.diag([1, w, 1]) @ drift @ kick
    return push(gamma, h) / np.linalg.matrix_power(one, m)[0, 2], w


def exact(gamma: float | None, c: float, h: float) -> tuple[Matrix, Matrix]:
    """Of the continuous dynamics, with one row and column of zeros where there is no momentum."""
    if gamma is None:
        m, law = np.diag([math.exp(-c * RATE * h), 0.0]), np.diag([T / c, 0.0])
    else:
        m = scipy.linalg.expm(RATE * h * np.array([[0, ETA], [-c, -gamma * ETA]]))
        law = np.diag([T / c, T / ETA])
    return m, law - m @ law @ m.T


@pytest.mark.parametrize("gamma", LENGTHS)
@pytest.mark.parametrize("s", STAGES)
def test_step_is_its_matrices(s: int, gamma: float | None) -> None:
    for h in LENGTHS[gamma]:
        square, w = substep(gamma, h, s)
        c = np.linspace(0.1, 4.2, 9) / square
        found, noise = linear(block(9, gamma), c, h, s)
        eta = 1.0 if gamma is None else ETA
        tau = math.sqrt(square / eta)
        for i in range(9):
            kick, drift = np.array([[1, 0], [-tau / 2 * c[i], 1]]), np.array([[1, tau * eta / 2], [0, 1]])
            m, covariance = np.eye(2), np.diag([0.0, T if gamma is None else 0.0])
            for _ in range(s - 1):
                first, last = np.diag([1, w]) @ drift @ kick, kick @ drift
                m, covariance = last @ first @ m, first @ covariance @ first.T
                covariance = last @ (covariance + np.diag([0, (1 - w**2) * T / eta])) @ last.T
            if gamma is None:
                m, covariance = np.diag([m[0, 0], 0.0]), np.diag([covariance[0, 0], 0.0])
            scale = np.abs(m).max()
            np.testing.assert_allclose(found[i], m, rtol=1e-9, atol=1e-11 * scale)
            np.testing.assert_allclose(noise[i], covariance, rtol=1e-9, atol=1e-11 * np.abs(covariance).max())


@pytest.mark.parametrize("gamma", LENGTHS)
@pytest.mark.parametrize("s", STAGES)
def test_a_held_force_and_no_force_move_as_they_should(s: int, gamma: float | None) -> None:
    """Over more than 6 frictions f moves q by g f, as the exact flow does.

    Without a force the mean square displacement, from momenta of their law, is 2 T g, whatever h.
    """
    for h in LENGTHS[gamma]:
        zero = torch.zeros(1, 1, dtype=torch.float64)
        g, _ = step(block(1, gamma), lambda q: 1 + 0 * q, zero, zero, zero.expand(s, 1, 1), h)
        assert frictions(gamma, h) <= 6 or g.item() == pytest.approx(push(gamma, h), rel=1e-9)
        m, noise = linear(block(1, gamma), np.array([0.0]), h, s)
        assert m[0, 0, 0] == pytest.approx(1, abs=1e-12)
        assert m[0, 0, 1] ** 2 * T / ETA + noise[0, 0, 0] == pytest.approx(2 * T * g.item(), rel=1e-9)


@pytest.mark.parametrize("s", STAGES)
def test_without_friction_it_is_chebyshevs_polynomial(s: int) -> None:
    """q' = T_m(1 - c g/m^2) q, that of first-order Chebyshev methods, inside the stable range and out."""
    m, h = s - 1, 2.0
    c = np.linspace(0, 2.2 * m**2 / push(0.0, h), 50)
    found, noise = linear(block(50, 0.0), c, h, s)
    expected = Chebyshev.basis(m)(1 - c * push(0.0, h) / m**2)
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=1e-9, atol=1e-9)
    assert not noise.any()


@pytest.mark.parametrize("gamma", LENGTHS)
@pytest.mark.parametrize("s", STAGES)
def test_stable_range(s: int, gamma: float | None) -> None:
    """No mode grows for c eta tau^2 < 4, which is at least c g = 0.55 m^2.

    Beyond one with a momentum does; q alone does a little later, after friction has damped it.
    """
    for h in LENGTHS[gamma]:
        square, _ = substep(gamma, h, s)
        limit = 4 / square
        assert limit * push(gamma, h) > (1.99 if gamma == 0 else 0.55) * (s - 1) ** 2
        m, _ = linear(block(401, gamma), np.append(np.linspace(0.001, 0.999, 400), 1.5) * limit, h, s)
        radius = np.abs(np.linalg.eigvals(m)).max(-1)
        assert radius[:-1].max() <= 1 + 1e-7  # a double eigenvalue has half of the digits
        assert gamma is None or radius[-1] > 1.001
    if gamma is None and s >= 5:  # what a mode of c g > 6 keeps, whatever is stable
        assert radius[:-1][np.linspace(0.001, 0.999, 400) * limit * push(None, h) > 6].max() < 0.2


@pytest.mark.parametrize("gamma", LENGTHS)
@pytest.mark.parametrize("s", STAGES)
def test_stationary_law(s: int, gamma: float | None) -> None:
    """N(0, T/c) and N(0, T/eta (1 - c eta tau^2/4)) to rounding, however long the step.

    Without a momentum the former to 1%, with 5 stages or more.
    """
    for h in LENGTHS[gamma]:
        square, _ = substep(gamma, h, s)
        shares = np.linspace(0.001, 0.75, 100)
        c = shares * 4 / square
        m, noise = linear(block(100, gamma), c, h, s)
        if gamma is None:
            if s >= 5:
                variance = noise[:, 0, 0] / (1 - m[:, 0, 0] ** 2)
                np.testing.assert_allclose(variance, T / c, rtol=0.01)
            continue
        law = np.zeros((100, 2, 2))
        law[:, 0, 0], law[:, 1, 1] = T / c, T / ETA * (1 - shares)
        scale = np.sqrt(np.stack([c, np.full(100, ETA)], 1))
        change = m @ law @ m.transpose(0, 2, 1) + noise - law
        np.testing.assert_allclose(change * scale[:, :, None] * scale[:, None, :], 0, atol=1e-11)


@pytest.mark.parametrize(("gamma", "order"), [(None, 1), (0.9, 2)])
@pytest.mark.parametrize("s", STAGES)
def test_order_against_the_exact_gaussian_law(s: int, gamma: float | None, order: int) -> None:
    """Mean and covariance of one step are off by h^(order + 1)."""
    c, errors = 1.7, []
    for h in (0.004, 0.002):
        m, noise = linear(block(1, gamma), np.array([c]), h, s)
        mean, covariance = exact(gamma, c, h)
        errors.append([np.abs(m[0] - mean).max(), np.abs(noise[0] - covariance).max()])
    slopes = np.log2(np.array(errors[0]) / errors[1])
    np.testing.assert_allclose(slopes, order + 1, atol=0.1)


@pytest.mark.parametrize(("gamma", "order"), [(None, 1), (0.9, 2)])
@pytest.mark.parametrize("s", [2, 3])
def test_weak_order_where_the_force_is_not_linear(s: int, gamma: float | None, order: int) -> None:
    """E phi after one step, by Gauss-Hermite, against phi + h L phi + ..., is off by h^(order + 1)."""
    start = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)

    def force(q: Tensor) -> Tensor:
        return q - q**3

    def phi(z: Tensor) -> Tensor:
        return z[0] ** 3 + torch.sin(z[0]) + (0 if gamma is None else z[0] * z[1] ** 2 + z[1] ** 3)

    def generator(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def applied(z: Tensor) -> Tensor:
            (first,) = torch.autograd.grad(function(z), z, create_graph=True)
            i = 0 if gamma is None else 1
            (second,) = torch.autograd.grad(first[i], z, create_graph=True)
            if gamma is None:
                return RATE * (force(z[0]) * first[0] + T * second[0])
            drift = ETA * z[1] * first[0] + (force(z[0]) - gamma * ETA * z[1]) * first[1]
            return RATE * (drift + gamma * T * second[1])

        return applied

    points, weights = (torch.from_numpy(a) for a in hermegauss(16))
    xi = torch.cartesian_prod(*[points] * s).view(-1, s).T[..., None]
    weight = torch.cartesian_prod(*[weights / math.sqrt(2 * math.pi)] * s).view(-1, s).prod(1)
    errors = []
    for h in (0.004, 0.002):
        q, p = (start[i].detach().expand(len(weight), 1) for i in (0, 1))
        new = step(block(1, gamma), force, q, p, xi, h)
        found = (weight * phi(torch.stack([new[0][:, 0], new[1][:, 0]]))).sum()
        term, series = phi, phi(start)
        for i in range(1, order + 1):
            term = generator(term)
            series = series + h**i / math.factorial(i) * term(start)
        errors.append(abs((found - series).item()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.15), errors


@pytest.mark.parametrize("gamma", [None, 40.0])
def test_many_steps_at_once_are_many_steps_where_they_are_soft(gamma: float | None) -> None:
    """100 steps of 1e-3, or with friction of as much on a clock of h/gamma; curvatures 1 and 1000; 18 stages.

    In the soft well q has the exact mean and variance, from momenta of their law, to 1% of where it was and
    of the stationary variance; in the stiff one it forgets, and has the stationary variance to 1%. A step of
    Euler-Maruyama would take it 99 times as far off as it was.
    """
    h = 0.1 / RATE * (1 if gamma is None else gamma)
    m, noise = linear(block(2, gamma), np.array([1.0, 1000.0]), h, 18)
    mean, covariance = exact(gamma, 1.0, h)
    variance = noise[:, 0, 0] + m[:, 0, 1] ** 2 * T / ETA
    assert m[0, 0, 0] == pytest.approx(mean[0, 0], abs=0.01)
    assert variance[0] == pytest.approx(covariance[0, 0] + mean[0, 1] ** 2 * T / ETA, abs=0.01 * T)
    assert abs(m[1, 0, 0]) < 0.1
    assert variance[1] / (1 - m[1, 0, 0] ** 2) == pytest.approx(T / 1000, rel=0.01)

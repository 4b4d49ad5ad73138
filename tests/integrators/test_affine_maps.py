"""One step of every integrator on a quadratic model, against matrices written here from the equations.

The real step is probed with basis vectors of state and noise, so a test compares exact affine maps and
exact noise covariances, with no sampling. The references below use the published formulas in numpy and
nothing of the package. The table of contraction rates is for the toy hierarchical model under mpgd; its
numbers were found by an independent calculation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support import (
    Part,
    ToyEquations,
    accepted_pairs,
    affine_map,
    noise_from,
    normals_a_step,
    one_step,
    pack,
    places,
    spectral_radius,
    toy,
    unpack,
)

from sdeflow.config.catalogue import integrator_named
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.integrators.expint import ExpInt
from sdeflow.system.increments import NoiseSpec
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import System

# The table of contraction rates --------------------------------------------------------------------


def symmetric_map(system: System, integrator: str) -> list[np.ndarray]:
    """The linear part of a step on its invariant subspaces, probed by the real step.

    With one latent coordinate a datum and N = 1 the step commutes with permutations of the data, so it maps
    (theta, m, all X alike, all U alike) to itself, and so it does (X, U) of one datum minus another's. The
    state is a sum of the first and of copies of the second. That each is mapped to itself is asserted.
    """
    at = places(system)
    dim = max(place.stop for place in at.values())
    parameters = [name for name in ("theta", "m") if name in at]
    particles = [name for name in ("X", "U") if name in at]

    def vectors(names: list[str], pattern: Callable[[int], list[float]]) -> np.ndarray:
        basis = np.zeros((len(names), dim))
        for row, name in zip(basis, names, strict=True):
            row[at[name]] = pattern(at[name].stop - at[name].start)
        return basis

    mean = np.vstack([vectors(parameters, lambda n: [1.0] * n), vectors(particles, lambda n: [1.0] * n)])
    difference = vectors(particles, lambda n: [1.0, -1.0] + [0.0] * (n - 2))
    rows = np.vstack([np.zeros((1, dim)), mean, difference])
    new = one_step(system, integrator_named(integrator), torch.from_numpy(rows)).numpy()
    images = new[1:] - new[0]

    parts = []
    for basis, image in ((mean, images[: len(mean)]), (difference, images[len(mean) :])):
        a = np.linalg.lstsq(basis.T, image.T, rcond=None)[0]
        assert np.allclose(basis.T @ a, image.T, rtol=0, atol=1e-11 * np.abs(image).max())
        parts.append(a)
    return parts


def contraction(system: System, integrator: str) -> float:
    return max(spectral_radius(a) for a in symmetric_map(system, integrator))


D = 100


def published(f: float, data: int = D) -> System:
    """mpgd on the toy model with the paper's constants, both steps f times the paper's."""
    constant = 2 + data + np.sqrt(data**2 - 4)
    motion = {"eta": 2 * constant, "gamma": 0.293}
    return toy("mpgd", data=data, theta={"h": f * 6.68e-3, **motion}, x={"h": f * 2.18e-3, **motion})


TABLE = [
    ("expint", 0.5, "0.996176"),
    ("expint", 0.9, "0.993108"),
    ("expint", 1.0, "0.992339"),
    ("expint", 1.1, "0.991569"),
    ("expint", 1.3, "0.990026"),
    ("expint", 1.4, "1.290"),
    ("expint_shared", 0.5, "0.996179"),
    ("expint_shared", 0.9, "0.993122"),
    ("expint_shared", 1.0, "0.992357"),
    ("expint_shared", 1.1, "0.991593"),
    ("expint_shared", 1.3, "0.990064"),
    ("expint_shared", 1.4, "1.291"),
    ("expint_nc", 0.9, "0.993072"),
    ("expint_nc", 1.0, "0.997404"),
    ("expint_nc", 1.1, "1.021"),
    ("nag", 0.5, "0.996173"),
    ("nag", 0.9, "0.993087"),
    ("nag", 1.0, "1.120"),
    ("nag", 1.1, "1.441"),
    ("nag", 1.3, "1.959"),
    ("nag", 1.4, "2.134"),
    ("euler_maruyama", 1.0, "1.419"),
]


def rounded(value: float, like: str) -> str:
    return f"{value:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize(("integrator", "f", "rho"), TABLE)
def test_contraction_with_the_published_constants(integrator: str, f: float, rho: str) -> None:
    assert rounded(contraction(published(f), integrator), rho) == rho


@pytest.mark.parametrize(
    ("integrator", "limit"),
    [
        ("expint", "1.305"),
        ("expint_shared", "1.305"),
        ("expint_nc", "1.011"),
        ("expint_nc2", "1.008"),
        ("nag", "0.965"),
        ("euler_maruyama", "0.438"),
    ],
)
def test_stability_limit(integrator: str, limit: str) -> None:
    """The factor of both steps at which the spectral radius passes 1, by bisection to 1e-5."""
    stable, unstable = 0.1, 2.0
    while unstable - stable > 1e-5:
        middle = (stable + unstable) / 2
        if contraction(published(middle), integrator) < 1:
            stable = middle
        else:
            unstable = middle
    assert rounded(stable, limit) == rounded(unstable, limit) == limit


@pytest.mark.parametrize("integrator", ["expint", "nag", "euler_maruyama"])
def test_invariant_subspaces_give_the_radius_of_the_whole_map(integrator: str) -> None:
    system = published(1.2, data=30)
    assert contraction(system, integrator) == pytest.approx(affine_map(system, integrator).radius, rel=1e-10)


def regime(gamma: float) -> System:
    motion = {"eta": 2000.0, "gamma": gamma}
    return toy("mpgd", data=D, theta={"h": 1e-4, **motion}, x={"h": 1e-2, **motion})


@pytest.mark.parametrize(
    ("gamma", "rho"), [(0.05, "0.99351"), (0.1, "0.98712"), (2.0, "0.99808")], ids=["under", "paper", "over"]
)
def test_damping_regimes(gamma: float, rho: str) -> None:
    assert rounded(contraction(regime(gamma), "expint"), rho) == rho


def test_pgd_with_the_same_steps() -> None:
    system = toy("pgd", data=D, theta={"h": 1e-4}, x={"h": 1e-2})
    assert rounded(contraction(system, "euler_maruyama"), "0.99618") == "0.99618"


def test_best_damping() -> None:
    """rho has a kink at its minimum over gamma: the grid of 0.001 brackets it."""
    gammas = np.arange(0.2, 0.26, 0.001)
    radii = [contraction(regime(gamma), "expint") for gamma in gammas]
    assert gammas[np.argmin(radii)] == pytest.approx(0.226, abs=0.0015)
    assert rounded(min(radii), "0.9625") == "0.9625"


# References from the equations ---------------------------------------------------------------------


class Stage(NamedTuple):
    """state' = A state + b + noise of covariance C."""

    A: np.ndarray
    b: np.ndarray
    C: np.ndarray

    def then(self, later: Stage) -> Stage:
        return Stage(later.A @ self.A, later.A @ self.b + later.b, later.A @ self.C @ later.A.T + later.C)


class Reference(ToyEquations):
    """The schemes' maps on the toy model, as matrices on the flat state."""

    def none(self) -> Stage:
        return Stage(np.eye(self.dim), np.zeros(self.dim), np.zeros((self.dim, self.dim)))

    def linear(self, *entries: tuple[slice, slice, float]) -> Stage:
        """The identity with the blocks (to, from) set to multiples of the identity."""
        s = self.none()
        for to, source, value in entries:
            s.A[to, source] = value * np.eye(to.stop - to.start)
        return s

    def forced(self, kicks: list[tuple[Part, slice, float]], at: Stage | None = None) -> Stage:
        """state += c f(at state): c and the target of every kick; `at` is where the force is taken."""
        at = at or self.none()
        s = self.none()
        for part, to, c in kicks:
            s.A[to] += c * (self.force[part.q] @ at.A)
            s.b[to] += c * (self.force[part.q] @ at.b + self.constant[part.q])
        return s

    # maps

    def flight(self, b: Part, h: float) -> Stage:
        if b.p is None:
            return self.none()
        return self.linear((b.q, b.p, (1 - np.exp(-b.k * h)) / b.gamma))

    def exact(self, b: Part, h: float) -> Stage:
        """The force-free flow with its noise; Brownian motion without momentum."""
        one = np.eye(b.size)
        if b.p is None:
            s = self.none()
            s.C[b.q, b.q] = 2 * b.T * h * one
            return s
        w, k, gamma = np.exp(-b.k * h), b.k, b.gamma
        s = self.linear((b.q, b.p, (1 - w) / gamma), (b.p, b.p, w))
        s.C[b.q, b.q] = b.T * (2 * h - 3 / k + 4 * w / k - w**2 / k) / gamma * one
        s.C[b.p, b.p] = b.T * (1 - w**2) / b.eta * one
        s.C[b.q, b.p] = s.C[b.p, b.q] = b.T * (1 - w) ** 2 / k * one
        return s

    def frozen(self, b: Part) -> list[tuple[Part, slice, float]]:
        """What a force that is constant over the step adds."""
        if b.p is None:
            return [(b, b.q, b.h)]
        w = np.exp(-b.k * b.h)
        return [(b, b.q, (b.h - (1 - w) / b.k) / b.gamma), (b, b.p, (1 - w) / b.k)]

    def exponential(self, blocks: list[Part], at: Stage | None = None) -> Stage:
        """Force taken at `at` of the old state, then everything linear exactly."""
        flow = self.none()
        for b in blocks:
            flow = flow.then(self.exact(b, b.h))
        kicks = self.forced([kick for b in blocks for kick in self.frozen(b)], at)
        return Stage(flow.A + kicks.A - np.eye(self.dim), kicks.b, flow.C)

    def each(self, share: float, one: Callable[[Part, float], Stage]) -> Stage:
        return one(self.theta, share * self.theta.h).then(one(self.x, share * self.x.h))

    def kick(self, share: float) -> Stage:
        return self.forced([(b, b.p, share * b.h) for b in (self.theta, self.x)])

    def drift(self, share: float) -> Stage:
        return self.each(share, lambda b, h: self.linear((b.q, b.p, h * b.eta)))

    def friction(self, share: float) -> Stage:
        def one(b: Part, h: float) -> Stage:
            w = np.exp(-b.k * h)
            s = self.linear((b.p, b.p, w))
            s.C[b.p, b.p] = b.T * (1 - w**2) / b.eta * np.eye(b.size)
            return s

        return self.each(share, one)

    # schemes

    def expint(self) -> Stage:
        first = self.exponential([self.theta], self.flight(self.theta, self.theta.h))
        return first.then(self.exponential([self.x]))

    def expint_nc(self) -> Stage:
        return self.exponential([self.theta]).then(self.exponential([self.x]))

    def expint_nc2(self) -> Stage:
        return self.exponential([self.theta, self.x])

    def expint_shared(self) -> Stage:
        return self.exponential([self.theta, self.x], self.flight(self.theta, self.theta.h))

    def alternating(self) -> Stage:
        at = self.flight(self.theta, self.theta.h)
        return self.exponential([self.x], at).then(self.exponential([self.theta], at))

    def euler_maruyama(self) -> Stage:
        s, kicks = self.none(), []
        for b in (self.theta, self.x):
            if b.p is None:
                kicks.append((b, b.q, b.h))
                s.C[b.q, b.q] = 2 * b.T * b.h * np.eye(b.size)
            else:
                kicks.append((b, b.p, b.h))
                s.A[b.q, b.p] = b.h * b.eta * np.eye(b.size)
                s.A[b.p, b.p] = (1 - b.h * b.gamma * b.eta) * np.eye(b.size)
                s.C[b.p, b.p] = 2 * b.gamma * b.T * b.h * np.eye(b.size)
        forces = self.forced(kicks)
        return Stage(s.A + forces.A - np.eye(self.dim), forces.b, s.C)

    def nag(self) -> Stage:
        """In (theta, v) with v = h eta m: v' = mu v + h^2 eta f(theta + mu v), theta' = theta + v'."""
        b = self.theta
        mu = 1 - b.h * b.gamma * b.eta
        to_v = self.linear((b.p, b.p, b.h * b.eta))
        ahead = self.linear((b.q, b.p, mu))
        step = self.forced([(b, b.p, b.h**2 * b.eta)], ahead)
        step.A[b.p, b.p] += mu - 1
        to_m = self.linear((b.p, b.p, 1 / (b.h * b.eta)))
        nesterov = to_v.then(step).then(self.linear((b.q, b.p, 1.0))).then(to_m)
        return nesterov.then(self.exponential([self.x]))

    def obabo(self) -> Stage:
        half_o, half_b = self.friction(0.5), self.kick(0.5)
        return half_o.then(half_b).then(self.drift(1)).then(half_b).then(half_o)

    def baoab(self) -> Stage:
        half_b, half_a = self.kick(0.5), self.drift(0.5)
        return half_b.then(half_a).then(self.friction(1)).then(half_a).then(half_b)

    def ubu(self) -> Stage:
        half_u = self.each(0.5, self.exact)
        return half_u.then(self.kick(1)).then(half_u)

    def quicsort(self) -> Stage:
        """As published: by positions x and velocities v = eta p, with c = gamma eta and u = eta.

        The columns of x and v are those of the state, of normals for W, H and K, and of a state of zeros.
        """
        parts, every = (self.theta, self.x), np.arange(self.dim)
        at_x = np.concatenate([every[b.q] for b in parts])
        at_v = np.concatenate([every[b.p] for b in parts])
        h, c, u, T = (
            np.concatenate([np.full((b.size, 1), getattr(b, name)) for b in parts])
            for name in ("h", "k", "eta", "T")
        )
        n, rho = len(at_x), np.sqrt(2 * c * u * T)
        columns = np.eye(self.dim + 3 * n, self.dim + 3 * n + 1)
        x, v = columns[at_x], u * columns[at_v]
        W, H, K = np.split(columns[self.dim :], 3)
        W, H, K = np.sqrt(h) * W, np.sqrt(h / 12) * H, np.sqrt(h / 720) * K
        one = np.zeros(columns.shape[1])
        one[-1] = 1.0
        left, right = (3 - np.sqrt(3)) / 6, (3 + np.sqrt(3)) / 6

        def beta(s: float) -> np.ndarray:
            return np.exp(-s * c * h)

        def a(s: float) -> np.ndarray:
            return (1 - beta(s)) / c

        def b(s: float) -> np.ndarray:
            return (beta(s) + s * c * h - 1) / (c**2 * h)

        def uh_force(x: np.ndarray) -> np.ndarray:
            return u * h * (self.force[np.ix_(at_x, at_x)] @ x + self.constant[at_x, None] * one)

        v1 = v + rho * (H + 6 * K)
        f1 = uh_force(x + a(left) * v1 + b(left) * rho * (W - 12 * K))
        f2 = uh_force(x + a(right) * v1 + b(right) * rho * (W - 12 * K) + a(1 / 3) * f1)
        v2 = beta(1) * v1 + (beta(right) * f1 + beta(left) * f2) / 2 + a(1) / h * rho * (W - 12 * K)
        new = np.empty((self.dim, columns.shape[1]))
        new[at_x] = x + a(1) * v1 + b(1) * rho * (W - 12 * K) + (a(right) * f1 + a(left) * f2) / 2
        new[at_v] = (v2 - rho * (H - 6 * K)) / u
        G = new[:, self.dim : -1]
        return Stage(new[:, : self.dim], new[:, -1], G @ G.T)


# k h is 0.3 or more: the published formula of Var Q loses (k h)^-3 roundoffs, a thousand at a half step.
SETTINGS = {
    "equal": {
        "data": 3, "particles": 1, "latent": 1, "scale": 1.0,
        "theta": {"h": 0.3, "eta": 1.0, "gamma": 1.0}, "x": {"h": 0.3, "eta": 1.0, "gamma": 1.0},
    },
    "particles, clocks": {
        "data": 2, "particles": 3, "latent": 1, "scale": 0.7,
        "theta": {"h": 0.06, "eta": 12.0, "gamma": 0.6}, "x": {"h": 0.2, "eta": 0.8, "gamma": 2.5},
    },
    "latent of 4, reference clock apart": {
        "data": 1, "particles": 2, "latent": 4, "scale": 2.0, "h": 0.05,
        "theta": {"h": 0.15, "eta": 0.9, "gamma": 3.0}, "x": {"h": 0.02, "eta": 40.0, "gamma": 0.9},
    },
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("integrator", "system"), accepted_pairs())
def test_step_is_the_written_map(integrator: str, system: str, setting: str) -> None:
    """A and b to a relative 1e-12, entry by entry; the noise covariance to that of the two deviations."""
    numbers = SETTINGS[setting]
    built = toy(system, **numbers)
    A, b, C = getattr(Reference.of(system, built, numbers), integrator)()
    probed = affine_map(built, integrator)
    assert np.allclose(probed.A, A, rtol=1e-12, atol=1e-14)
    assert np.allclose(probed.b, b, rtol=1e-12, atol=1e-14)
    deviation = np.sqrt(np.diag(C))
    assert (np.abs(probed.covariance - C) <= 1e-12 * np.outer(deviation, deviation)).all()


@pytest.mark.parametrize(("integrator", "system"), accepted_pairs())
def test_step_is_affine_in_state_and_noise(integrator: str, system: str) -> None:
    """Random states move as the probed map says, for one step and for three in a row.

    In three steps a scheme's kept forces are made once and then carried; probing makes them afresh.
    """
    built, scheme = toy(system, **SETTINGS["particles, clocks"]), integrator_named(integrator)
    step = affine_map(built, scheme)
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(5, len(step.A), generator=g, dtype=torch.float64)
    xi = torch.randn(3, 5, normals_a_step(built.channels, scheme), generator=g, dtype=torch.float64)

    expected = rows.numpy()
    for n in range(3):
        expected = expected @ step.A.T + step.b + xi[n].numpy() @ step.G.T
        if n == 0:
            assert np.allclose(one_step(built, scheme, rows, xi[0]), expected, rtol=0, atol=1e-12)
    z = unpack(built, rows)
    z |= scheme.init(built, z)
    z = advance(EagerSteps(built, scheme, lambda n: noise_from(built, scheme, xi[n])), z, 0, 3)
    assert np.allclose(pack(built, z), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("integrator", "system"), accepted_pairs())
def test_gradients_of_the_log_joint_give_the_same_map(integrator: str, system: str) -> None:
    """Without the model's analytic scores, forces come from automatic differentiation of l_i."""
    built = toy(system, **SETTINGS["particles, clocks"])
    analytic = affine_map(built, integrator)
    model = built.model_forces.model
    model.score_x = model.score_theta = None
    automatic = affine_map(built, integrator)
    for one, other in zip(analytic, automatic, strict=True):
        assert np.allclose(one, other, rtol=1e-12, atol=1e-14)


def test_the_old_name_of_the_increments_still_declares_them() -> None:
    """`noise` was what `increments` is; a scheme written before moves as it did."""

    class Before(ExpInt):
        noise = "WPQ"

    class After(ExpInt):
        increments = "WPQ"

    class Later(ExpInt):
        def __init__(self) -> None:
            self.noise = "WPQ"

    class Mixin:
        noise = "WPQ"

    class Mixed(Mixin, Integrator):
        def step(self, system: Any, t: float, z: Any, h: float, noise: Any) -> Any:
            return z

    assert Later().noise_spec(0.1) == Mixed().noise_spec(0.1) == NoiseSpec("WPQ", 1, 0.1)
    assert Before().noise_spec(0.1) == After().noise_spec(0.1) == NoiseSpec("WPQ", 1, 0.1)
    assert Before.noise == After.noise == "WPQ"
    assert ExpInt.noise == ExpInt.increments == "PQ"


# Schedules -----------------------------------------------------------------------------------------------


FACTORS = {"h": (1.0, 0.4, 1.7, 0.9), "gamma": (1.0, 2.5, 0.6, 1.3), "T": (1.0, 3.0, 0.5, 2.0)}
"""On a block's h, gamma and temperature, by step."""


def by_step(numbers: dict[str, Any], n: int, *, scheduled: bool) -> dict[str, Any]:
    """Motions of step n; or as schedules of all steps, theta's in reverse order but for step 0."""

    def of(block: str, key: str, at: int) -> float:
        first, *others = FACTORS[key]
        return (first, *(others if block == "x" else reversed(others)))[at]

    found: dict[str, Any] = {}
    for block in ("theta", "x"):
        own = numbers[block]
        if scheduled:
            piecewise = {"kind": "piecewise", "at": [1, 2, 3]}
            found[block] = own | {
                key: piecewise | {"values": [own[key] * of(block, key, i) for i in range(4)]}
                for key in ("h", "gamma")
            }
        else:
            found[block] = own | {key: own[key] * of(block, key, n) for key in ("h", "gamma")}
    return numbers | found


@pytest.mark.parametrize("setting", ["particles, clocks", "latent of 4, reference clock apart"])
@pytest.mark.parametrize(("integrator", "system"), accepted_pairs())
def test_steps_by_schedules_are_the_product_of_the_written_maps(
    integrator: str, system: str, setting: str
) -> None:
    """State and covariance after 4 steps, each with its own h and gamma in both blocks and its own T of x.

    Oracle: each step's matrices from the equations, by a block's own step; the schedules' rates on the common
    clock do not enter them. Replicas have the basis of state and noise.
    """
    numbers = SETTINGS[setting]
    given = by_step(numbers, 0, scheduled=True)
    given["x"]["temperature"] = lambda n: FACTORS["T"][n]
    built, scheme = toy(system, **given), integrator_named(integrator)

    dim, many = (
        sum(int(np.prod(a.shape)) for a in built.axes.values()),
        normals_a_step(built.channels, scheme),
    )
    rows = torch.zeros(1 + dim + 4 * many, dim, dtype=torch.float64)
    rows[1 : 1 + dim] = torch.eye(dim, dtype=torch.float64)
    xi = torch.zeros(4, len(rows), many, dtype=torch.float64)
    for n in range(4):
        xi[n, 1 + dim + n * many : 1 + dim + (n + 1) * many] = torch.eye(many, dtype=torch.float64)
    z = unpack(built, rows)
    z |= scheme.init(built, z)
    z = advance(EagerSteps(built, scheme, lambda n: noise_from(built.at(n), scheme, xi[n])), z, 0, 4)
    new = pack(built, z).numpy()
    probed = (new[1:] - new[0]).T

    A, b, C = np.eye(dim), np.zeros(dim), np.zeros((dim, dim))
    for n in range(4):
        equations = Reference.of(system, built, by_step(numbers, n, scheduled=False))
        equations.x = equations.x._replace(T=FACTORS["T"][n])
        step = getattr(equations, integrator)()
        A, b, C = step.A @ A, step.A @ b + step.b, step.A @ C @ step.A.T + step.C
    assert np.allclose(probed[:, :dim], A, rtol=1e-11, atol=1e-13)
    assert np.allclose(new[0], b, rtol=1e-11, atol=1e-13)
    deviation = np.sqrt(np.diag(C))
    G = probed[:, dim:]
    assert (np.abs(G @ G.T - C) <= 1e-11 * np.outer(deviation, deviation) + 1e-30).all()

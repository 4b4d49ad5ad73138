"""The exact force-free flow against its closed forms, and the increments of its noise.

Oracles: the textbook formulas evaluated with 60 digits, where nothing cancels; the identities that tie
(W, P, Q) together; samples in float32, whose covariances are known; and the integrals that define H and K.
"""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from support import doubles

from sdeflow.noise.source import TorchNoise
from sdeflow.system.block import Block
from sdeflow.system.flow import kinetic_flow
from sdeflow.system.increments import Channel, NoiseSpec, compose
from sdeflow.system.maps import U

EPS = 2.0**-52
KH = [1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.499, 0.5, 0.501, 0.7, 1.0, 3.0, 10.0, 50.0]


def exact(gamma: float, eta: float, h: float) -> dict[str, mpf]:
    """Coefficients and covariances at unit temperature, as published, with 60 digits."""
    with mpmath.workdps(60):
        gamma, eta, h = mpf(gamma), mpf(eta), mpf(h)
        k = gamma * eta
        w = mpmath.exp(-k * h)
        return {
            "w": w,
            "free": (1 - w) / gamma,
            "kick": (1 - w) / k,
            "push": (h - (1 - w) / k) / gamma,
            "Var Q": (2 * h - 3 / k + 4 * w / k - w**2 / k) / gamma,
            "Var P": (1 - w**2) / eta,
            "Cov(Q, P)": (1 - w) ** 2 / k,
            "Cov(W, P)": mpmath.sqrt(2 * gamma) * (1 - w) / k,
            "Cov(W, Q)": mpmath.sqrt(2 * gamma) / gamma * (h - (1 - w) / k),
        }


def relative(value: float, truth: mpf) -> float:
    with mpmath.workdps(60):
        return float(abs(mpf(float(value)) / truth - 1))


@pytest.mark.parametrize("gamma", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("kh", KH)
def test_coefficients(kh: float, gamma: float) -> None:
    """To 4 roundoffs; w carries the one of k h, and push twice as many, for a - 1 + w cancels down to 1/5."""
    eta = 7.3
    h = kh / (gamma * eta)
    c, truth = kinetic_flow(gamma, eta, h), exact(gamma, eta, h)
    assert relative(c.w, truth["w"]) < 2 * (1 + kh) * EPS
    assert relative(c.free, truth["free"]) < 4 * EPS
    assert relative(c.kick, truth["kick"]) < 4 * EPS
    assert relative(c.push, truth["push"]) < 8 * EPS


@pytest.mark.parametrize("gamma", [0.05, 1.0, 30.0])
@pytest.mark.parametrize("kh", KH)
def test_covariances(kh: float, gamma: float) -> None:
    """The noise coefficients reproduce every variance and covariance of (W, P, Q).

    To 8 roundoffs; more where terms cancel: Cov(Q, P) is a difference, and the closed form of the part of
    Q that is independent of W cancels to 1/50 where it takes over from the series, at k h = 1/2.
    """
    eta = 7.3
    h = kh / (gamma * eta)
    c, truth = kinetic_flow(gamma, eta, h), exact(gamma, eta, h)
    root = np.sqrt(h)
    assert relative(c.q1**2 + c.q2**2, truth["Var Q"]) < 30 * EPS
    assert relative(c.p1**2 + c.p2**2, truth["Var P"]) < 8 * EPS
    assert relative(c.p_std**2, truth["Var P"]) < 8 * EPS
    assert relative(c.q1 * c.p1 + c.q2 * c.p2, truth["Cov(Q, P)"]) < 16 * EPS
    assert relative(root * c.p1, truth["Cov(W, P)"]) < 8 * EPS
    assert relative(root * c.q1, truth["Cov(W, Q)"]) < 8 * EPS


@pytest.mark.parametrize("kh", KH)
def test_p_plus_gamma_q_is_the_brownian_motion(kh: float) -> None:
    gamma, eta = 0.8, 2.5
    h = kh / (gamma * eta)
    c = kinetic_flow(gamma, eta, h)
    size = np.sqrt(2 * gamma * h)
    assert c.p1 + gamma * c.q1 == pytest.approx(size, rel=8 * EPS)
    assert c.p2 + gamma * c.q2 == pytest.approx(0, abs=4 * EPS * abs(c.p2))


def test_without_friction_nothing_is_lost_and_nothing_is_random() -> None:
    eta, h = 2.5, 0.3
    c = kinetic_flow(0.0, eta, h)
    assert (c.w, c.free, c.kick) == (1.0, eta * h, h)
    assert c.push == pytest.approx(eta * h**2 / 2, rel=2 * EPS)
    assert (c.p1, c.p2, c.q1, c.q2, c.p_std) == (0, 0, 0, 0, 0)


def test_friction_to_zero_is_continuous() -> None:
    """At gamma = 1e-14 all differ from gamma = 0 by a relative k h or less; the noise by sqrt(2 gamma)."""
    at_zero, near = kinetic_flow(0.0, 1.0, 1.0), kinetic_flow(1e-14, 1.0, 1.0)
    assert np.allclose(at_zero[:4], near[:4], rtol=1e-13, atol=0)
    assert near.p_std == pytest.approx(np.sqrt(2e-14), rel=1e-12)
    assert near.q1**2 + near.q2**2 == pytest.approx(2 / 3 * 1e-14, rel=1e-12)


# Samples -------------------------------------------------------------------------------------------


def channel(kh: float, h: float, *, gamma: float = 0.8, rate: float = 1.0, size: int = 1) -> Channel:
    """A kinetic channel with friction times own step k r h = kh."""
    block = Block("x", "X", (size,), ("x",), "U", eta=kh / (gamma * rate * h), gamma=gamma, rate=rate)
    return Channel("x", "U", (size,), block)


def draw(c: Channel, h: float, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    source = TorchNoise([c], NoiseSpec("WPQ", 1, h), doubles([seed], dtype))
    (noise,) = source(0)
    return {name: value[0] for name, value in noise["U"].items()}


@pytest.mark.parametrize("kh", [1e-6, 1e-3, 1e-2, 1.0, 50.0])
def test_float32_noise_is_finite_with_the_right_covariance(kh: float) -> None:
    """All six entries of Cov(W, P, Q) from 2^18 samples of mean zero, within 4.5 standard errors.

    The mean product of two Gaussians with covariance c and variances a, b has variance (a b + c^2)/n.
    """
    n, h, gamma = 2**18, 0.02, 0.8
    c = channel(kh, h, gamma=gamma, size=n)
    drawn = draw(c, h, torch.float32)
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in drawn.values())
    truth = exact(gamma, c.block.eta, h) | {"Var W": mpf(h)}
    samples = {name: v.double().numpy() for name, v in drawn.items()}
    for a, b in itertools.combinations_with_replacement("WPQ", 2):
        names = {f"Var {a}"} if a == b else {f"Cov({a}, {b})", f"Cov({b}, {a})"}
        cov = float(truth[names.intersection(truth).pop()])
        variances = float(truth[f"Var {a}"]), float(truth[f"Var {b}"])
        error = np.sqrt((variances[0] * variances[1] + cov**2) / n)
        assert abs((samples[a] * samples[b]).mean() - cov) < 4.5 * error, (a, b)
    for name, values in samples.items():
        assert abs(values.mean()) < 4.5 * np.sqrt(float(truth[f"Var {name}"]) / n), name


@pytest.mark.parametrize("rate", [1.0, 0.25], ids=["common clock", "slower clock"])
@pytest.mark.parametrize("kh", [1e-4, 0.5, 20.0])
def test_drawn_increments_are_tied(kh: float, rate: float) -> None:
    """P + gamma Q = sqrt(2 gamma r) W path by path, W being on the reference clock: to 10 roundoffs."""
    h, n = 0.02, 1000
    c = channel(kh, h, rate=rate, size=n)
    d = draw(c, h, torch.float64)
    gamma = c.block.gamma
    assert d["W"].var() == pytest.approx(h, rel=5 * np.sqrt(2 / n))
    size = d["P"].abs() + gamma * d["Q"].abs()
    assert ((d["P"] + gamma * d["Q"] - np.sqrt(2 * gamma * rate) * d["W"]).abs() < 10 * EPS * size).all()


# Composition ---------------------------------------------------------------------------------------


def linear_in_normals(c: Channel, h: float, of: int, at: int) -> dict[str, torch.Tensor]:
    """W, P, Q over h as rows of coefficients of `of` normals, using those from `at` on."""
    basis = torch.eye(of, dtype=torch.float64)
    return c.increment([basis[at], basis[at + 1]], h, "WPQ")


@pytest.mark.parametrize("kh", [1e-6, 1e-3, 0.3, 2.0, 40.0])
@pytest.mark.parametrize("share", [0.5, 0.1], ids=["halves", "tenth"])
@pytest.mark.parametrize("rate", [1.0, 3.0], ids=["common clock", "faster clock"])
def test_two_parts_have_the_covariance_of_the_whole(kh: float, share: float, rate: float) -> None:
    """Entry by entry to 1e-13 of the standard deviations' product, by linearity without samples."""
    h = 0.02
    c = channel(kh, h, rate=rate)
    first = linear_in_normals(c, share * h, 4, 0)
    second = linear_in_normals(c, (1 - share) * h, 4, 2)
    composed = compose(c, first, second, (1 - share) * h)
    whole = linear_in_normals(c, h, 2, 0)
    g, g2 = (np.stack([parts[name] for name in "WPQ"]) for parts in (whole, composed))
    scale = np.sqrt(np.diag(g @ g.T))
    assert np.abs((g2 @ g2.T - g @ g.T) / np.outer(scale, scale)).max() < 1e-13


def test_composition_is_associative_and_keeps_the_tie() -> None:
    c, h, n = channel(0.7, 0.02, size=50), 0.02, 50
    c1, c2, c3 = (draw(c, share * h, torch.float64, seed) for seed, share in enumerate((0.2, 0.3, 0.5)))
    left = compose(c, compose(c, c1, c2, 0.3 * h), c3, 0.5 * h)
    right = compose(c, c1, compose(c, c2, c3, 0.5 * h), 0.8 * h)
    for name in "WPQ":
        assert torch.allclose(left[name], right[name], rtol=0, atol=20 * EPS * left[name].abs().max())
    tie = left["P"] + c.block.gamma * left["Q"] - np.sqrt(2 * c.block.gamma) * left["W"]
    assert tie.abs().max() < 20 * EPS * left["P"].abs().max() + 20 * EPS * left["W"].abs().max()
    assert left["W"].shape == (n,)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_two_flows_are_the_flow_of_the_composed_path(temperature: float) -> None:
    """U over h with the composed increments ends where U over its two unequal parts ends."""
    h, part, n = 0.4, 0.15, 20
    block = Block("x", "X", (n,), ("x",), "U", eta=2.0, gamma=0.7, temperature=temperature, rate=1.6)
    c = Channel("x", "U", (n,), block)
    first, second = draw(c, part, torch.float64, 1), draw(c, h - part, torch.float64, 2)
    g = torch.Generator().manual_seed(0)
    z = {name: torch.randn(n, generator=g, dtype=torch.float64) for name in ("X", "U")}
    in_two = U([block], U([block], z, part, {"U": first}), h - part, {"U": second})
    in_one = U([block], z, h, {"U": compose(c, first, second, h - part)})
    for name in ("X", "U"):
        assert torch.allclose(in_one[name], in_two[name], rtol=0, atol=20 * EPS * in_one[name].abs().max())


@pytest.mark.parametrize("steps", [1, 2, 64])
def test_composed_areas_are_the_integrals_that_define_them(steps: int) -> None:
    """H = 1/h int b ds and K = 1/h^2 int (h/2 - s) b ds of one path, b = B - s/h W, by Simpson's rule.

    The path is straight between 64 points, where its bridge, H and K vanish: so Simpson's rule is exact.
    """
    n, h = 64, 0.7
    c, g = channel(1.0, h, size=5), torch.Generator().manual_seed(0)
    W = (h / n) ** 0.5 * torch.randn(n, 5, generator=g, dtype=torch.float64)
    level = [{"W": w, "H": torch.zeros(5), "K": torch.zeros(5)} for w in W]
    while len(level) > n // steps:
        length = h / len(level)
        level = [compose(c, *pair, length) for pair in zip(level[::2], level[1::2], strict=True)]

    length, ends = h / len(level), np.linspace(0, 1, 2 * steps + 1)[:, None]
    weights = np.array([1, *[4, 2] * (steps - 1), 4, 1])[:, None] / (6 * steps)
    for part, w in zip(level, W.view(-1, steps, 5).numpy(), strict=True):
        at_ends = np.concatenate([np.zeros((1, 5)), w.cumsum(0)])
        path = np.empty((2 * steps + 1, 5))
        path[::2], path[1::2] = at_ends, (at_ends[1:] + at_ends[:-1]) / 2
        bridge = path - ends * path[-1]
        truth = {"W": path[-1], "H": (weights * bridge).sum(0), "K": (weights * (0.5 - ends) * bridge).sum(0)}
        for name, value in truth.items():
            assert part[name].numpy() == pytest.approx(value, abs=50 * EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momentum", ["U", None])
def test_areas_are_independent_with_their_variances(momentum: str | None, dtype: torch.dtype) -> None:
    """All of Cov(W, H, K) = diag(h, h/12, h/720) from 2^18 samples, within 4.5 standard errors."""
    n, h = 2**18, 0.3
    block = Block("x", "X", (n,), ("x",), momentum, eta=2.0, gamma=0.5)
    (noise,) = TorchNoise(
        [Channel("x", block.noisy, (n,), block)], NoiseSpec("WHK", 1, h), doubles([0], dtype)
    )(0)
    drawn = {name: value[0].double().numpy() for name, value in noise[block.noisy].items()}
    assert set(drawn) == set("WHK")
    variance = {"W": h, "H": h / 12, "K": h / 720}
    for a, b in itertools.combinations_with_replacement("WHK", 2):
        truth = variance[a] if a == b else 0.0
        error = np.sqrt((variance[a] * variance[b] + truth**2) / n)
        assert abs((drawn[a] * drawn[b]).mean() - truth) < 4.5 * error, (a, b)


@pytest.mark.parametrize("kind", ["WH", "WHK"])
def test_areas_of_halves_have_the_covariance_of_the_whole(kind: str) -> None:
    """Entry by entry to 1e-15 of the step, by linearity without samples."""
    c, h, many = channel(1.0, 0.02), 0.02, len(kind)
    basis = torch.eye(2 * many, dtype=torch.float64)
    halves = [c.increment(list(part), h / 2, kind) for part in (basis[:many], basis[many:])]
    whole = compose(c, *halves, h / 2)
    rows = np.stack([whole[name] for name in kind])
    assert np.abs(rows @ rows.T - np.diag([h, h / 12, h / 720][:many])).max() < 1e-15 * h * many * 10


def test_without_momentum_only_w_composes() -> None:
    c = Channel("x", "X", (3,), Block("x", "X", (3,), ("x",)))
    xi = torch.eye(3, dtype=torch.float64)
    assert set(compose(c, {"W": xi}, {"W": 2 * xi}, 0.1)) == {"W"}
    assert torch.equal(compose(c, {"W": xi}, {"W": 2 * xi}, 0.1)["W"], 3 * xi)

"""Distances between clouds: closed forms, one algorithm against another, and the axioms of a metric."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import norm

from sdeflow.analysis import distances
from sdeflow.analysis.distances import (
    along,
    entropic_w2,
    ess,
    gaussian_w2,
    mmd,
    rhat,
    sliced_w2,
    w2_to_gaussian_1d,
    wasserstein,
)
from sdeflow.analysis.studies import transport
from sdeflow.errors import SdeflowError

FINITE = st.floats(-100, 100)


def points(rows: int, columns: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, (rows, columns), elements=FINITE)


def assigned(a: np.ndarray, b: np.ndarray, p: float) -> float:
    """W_p of equally many points by the best assignment."""
    cost = cdist(a, b) ** p
    return cost[linear_sum_assignment(cost)].mean() ** (1 / p)


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


# Wasserstein ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2, 3.5])
@pytest.mark.parametrize(("n", "m"), [(7, 7), (6, 4), (5, 12)])
def test_one_coordinate_by_assignment_of_copies(p: float, n: int, m: int) -> None:
    """n points copied m times each, and m copied n times, are the same two laws in equal sizes."""
    rng = np.random.default_rng(n * m)
    a, b = rng.standard_normal((n, 1)), 1 + 2 * rng.standard_normal((m, 1))
    truth = assigned(np.repeat(a, m, 0), np.repeat(b, n, 0), p)
    assert wasserstein(a, b, p) == pytest.approx(truth, rel=1e-12)
    assert wasserstein(a[:, 0], b[:, 0], p) == wasserstein(a, b, p)


@pytest.mark.parametrize("p", [1, 2])
def test_unequal_sizes_by_assignment_of_copies(p: float) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((9, 3)), 1 + rng.standard_normal((6, 3))
    truth = assigned(np.repeat(a, 2, 0), np.repeat(b, 3, 0), p)
    assert wasserstein(a, b, p) == pytest.approx(truth, rel=1e-9)


def test_affine_image_of_a_cloud_is_gaussians_distance() -> None:
    """A symmetric positive map moves a cloud optimally, so two empirical laws have W_2 in closed form.

    With y = A x + c and a cloud of mean 0 and covariance I (divisor n), it is that of N(0, I) and N(c, A^2).
    """
    rng = np.random.default_rng(1)
    x = rng.standard_normal((60, 3))
    x -= x.mean(0)
    x = np.linalg.solve(np.linalg.cholesky(x.T @ x / len(x)), x.T).T
    a = rng.standard_normal((3, 3))
    a, c = a @ a.T + 0.1 * np.eye(3), np.array([1.0, -2.0, 0.5])
    truth = gaussian_w2(np.zeros(3), np.eye(3), c, a @ a)
    assert wasserstein(x, x @ a + c) == pytest.approx(truth, rel=1e-10)


def test_gaussian_against_the_textbook_formula() -> None:
    rng = np.random.default_rng(2)
    for d in (1, 2, 6):
        a, b = rng.standard_normal((2, d, d))
        a, b, shift = a @ a.T, b @ b.T, rng.standard_normal(d)
        cross = root(root(a) @ b @ root(a))
        truth = shift @ shift + np.trace(a + b - 2 * cross)
        assert gaussian_w2(shift, a, np.zeros(d), b) ** 2 == pytest.approx(truth, rel=1e-10)
    assert gaussian_w2(1.0, 4.0, 4.0, 1.0) == pytest.approx(np.sqrt(9 + 1))
    singular = np.diag([1.0, 0.0])
    assert gaussian_w2([0, 0], singular, [0, 0], np.eye(2)) == pytest.approx(1.0)


def test_gaussian_keeps_its_digits_between_near_equals() -> None:
    """N(0, s^2) and N(0, (s + e)^2) are e apart; the textbook formula subtracts it away."""
    assert gaussian_w2(0.0, 1.0, 0.0, (1 + 1e-9) ** 2) == pytest.approx(1e-9, rel=1e-6)


def test_cloud_to_gaussian_in_one_coordinate() -> None:
    """Against the integral over quantiles, piece by piece."""
    x = np.sort(np.random.default_rng(3).exponential(size=6))
    mean, std = 0.4, 1.7

    def piece(i: int) -> float:
        gap = lambda t: (x[i] - norm.ppf(t, mean, std)) ** 2  # noqa: E731
        return quad(gap, i / 6, (i + 1) / 6, epsabs=1e-10)[0]

    truth = np.sqrt(sum(map(piece, range(6))))
    assert w2_to_gaussian_1d(x, mean, std) == pytest.approx(truth, rel=1e-6)
    assert w2_to_gaussian_1d([3.0], 1.0, 2.0) == pytest.approx(np.sqrt(4 + 4))


def test_cloud_to_gaussian_tends_to_the_closed_form() -> None:
    """The cloud of the quantiles of N(1, 4) tends to it, at W_2 sqrt(9 + 1) from N(-2, 1)."""
    x = norm.ppf((np.arange(4000) + 0.5) / 4000, 1, 2)
    assert w2_to_gaussian_1d(x, 1, 2) < 0.02
    assert w2_to_gaussian_1d(x, -2, 1) == pytest.approx(np.sqrt(10), abs=0.02)


def test_sliced_is_exact_in_one_coordinate() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal(50), rng.standard_normal(80) + 1
    assert sliced_w2(a, b) == (pytest.approx(wasserstein(a, b), rel=1e-12), 0.0)


@pytest.mark.parametrize("d", [2, 10])
def test_sliced_of_a_shift(d: int) -> None:
    """Shifted by c, projections are u.c apart: SW_2^2 = |c|^2 / d. Within 4 errors, and the errors are right.

    Over 40 seeds the deviations in units of the error must have a variance near 1 (0.5 to 1.8 has 3.5 of
    its standard errors on each side).
    """
    rng = np.random.default_rng(5)
    x, c = rng.standard_normal((30, d)), rng.standard_normal(d)
    truth = np.linalg.norm(c) / np.sqrt(d)
    found = np.array([sliced_w2(x, x + c, projections=300, seed=s) for s in range(40)])
    deviations = (found[:, 0] - truth) / found[:, 1]
    assert np.abs(deviations).max() < 4
    assert 0.5 < (deviations**2).mean() < 1.8


# Metric properties ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(points(5, 2), points(5, 2), points(5, 2), st.sampled_from([1, 2]))
def test_wasserstein_is_a_metric(a: np.ndarray, b: np.ndarray, c: np.ndarray, p: int) -> None:
    ab, ba = wasserstein(a, b, p), wasserstein(b, a, p)
    assert wasserstein(a, a[::-1], p) == pytest.approx(0, abs=1e-6)
    assert ab == pytest.approx(ba, rel=1e-9, abs=1e-9)
    assert ab <= wasserstein(a, c, p) + wasserstein(c, b, p) + 1e-9
    assert wasserstein(a, b, 1) <= wasserstein(a, b, 2) + 1e-9
    assert np.linalg.norm(a.mean(0) - b.mean(0)) <= ab + 1e-9


@settings(max_examples=60, deadline=None)
@given(points(4, 1), points(7, 1), points(3, 1), FINITE)
def test_wasserstein_of_unequal_sizes_in_one_coordinate(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, shift: float
) -> None:
    assert wasserstein(a, b) == pytest.approx(wasserstein(b, a), rel=1e-9, abs=1e-9)
    assert wasserstein(a, b) <= wasserstein(a, c) + wasserstein(c, b) + 1e-9
    assert wasserstein(a, a + shift) == pytest.approx(abs(shift), abs=1e-9)
    assert wasserstein(a, np.repeat(a, 3)) == 0


@settings(max_examples=40, deadline=None)
@given(points(6, 3), points(6, 3))
def test_sliced_is_below_exact(a: np.ndarray, b: np.ndarray) -> None:
    """Every projection shortens."""
    assert sliced_w2(a, b, projections=20).value <= wasserstein(a, b) + 1e-9


@settings(max_examples=60, deadline=None)
@given(points(3, 3), points(3, 3), points(1, 3))
def test_gaussian_distance_is_symmetric_and_sees_shifts(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    a, b, zero, shift = a @ a.T, b @ b.T, np.zeros(3), c[0]
    assert gaussian_w2(zero, a, shift, a) == pytest.approx(np.linalg.norm(shift), rel=1e-6, abs=1e-4)
    assert gaussian_w2(zero, a, shift, b) == pytest.approx(gaussian_w2(shift, b, zero, a), rel=1e-6, abs=1e-4)


# MMD -----------------------------------------------------------------------------------------------


def test_mmd_is_unbiased_with_an_honest_error() -> None:
    """x ~ N(0, I), y ~ N(c, I) in d coordinates: E k(x, y) = (s^2/(s^2+2))^(d/2) exp(-|c|^2 / (2 (s^2+2))).

    60 pairs of clouds of 40 and 60 points: the mean within 4 standard errors of the truth, the variance in
    units of the error squared near 1.
    """
    rng, d, s = np.random.default_rng(6), 2, 1.3
    c = np.array([0.8, -0.3])
    truth = 2 * (s**2 / (s**2 + 2)) ** (d / 2) * (1 - np.exp(-(c @ c) / (2 * (s**2 + 2))))
    pairs = [(rng.standard_normal((40, d)), c + rng.standard_normal((60, d))) for _ in range(60)]
    found = np.array([mmd(a, b, bandwidth=s) for a, b in pairs])
    spread = found[:, 0].std(ddof=1)
    assert abs(found[:, 0].mean() - truth) < 4 * spread / np.sqrt(60)
    assert 0.6 < (found[:, 1] ** 2).mean() / spread**2 < 1.7


def test_mmd_against_its_definition() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((5, 2)), rng.standard_normal((4, 2))
    k = lambda u, v: np.exp(-(cdist(u, v) ** 2) / 2 / 0.7**2)  # noqa: E731
    off = lambda g: (g.sum() - np.trace(g)) / (len(g) * (len(g) - 1))  # noqa: E731
    truth = lambda a, b: off(k(a, a)) + off(k(b, b)) - 2 * k(a, b).mean()  # noqa: E731
    value, error = mmd(a, b, 0.7)
    assert value == pytest.approx(truth(a, b), rel=1e-12)
    left = [
        [truth(np.delete(a, i, 0), b) for i in range(5)],
        [truth(a, np.delete(b, i, 0)) for i in range(4)],
    ]
    assert error**2 == pytest.approx(4 * np.var(left[0]) + 3 * np.var(left[1]), rel=1e-10)
    # The median heuristic: the kernel is a function of distance over distance, so scaling changes nothing.
    assert mmd(10 * a, 10 * b).value == pytest.approx(mmd(a, b).value, rel=1e-10)


# Along a trajectory, optional packages, refusals ----------------------------------------------------


def test_along_a_trajectory() -> None:
    rng = np.random.default_rng(8)
    dims = ("time", "replica", "datum", "particle", "latent")
    x = xr.DataArray(rng.standard_normal((3, 2, 2, 6, 2)), dims=dims, coords={"time": [0.0, 0.1, 0.2]})
    target = rng.standard_normal((6, 2))
    found = along(x, lambda cloud: wasserstein(cloud, target))
    assert found.dims == dims[:3]
    assert "error" not in found.coords
    assert found.values[2, 1, 0] == wasserstein(x.values[2, 1, 0], target)
    sliced = along(x.isel(datum=0), lambda cloud: sliced_w2(cloud, target, projections=10))
    expected = sliced_w2(x.values[1, 1, 0], target, projections=10)
    assert (sliced.values[1, 1], sliced["error"].values[1, 1]) == expected
    assert sliced["error"].dims == ("time", "replica")
    with pytest.raises(SdeflowError, match="latent"):
        along(x.isel(latent=0), lambda cloud: 0.0)


def test_chain_diagnostics_pass_arrays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(ess=lambda a: np.float64(a.shape[0]), rhat=lambda a: np.float64(a.shape[1]))
    monkeypatch.setitem(sys.modules, "arviz", fake)
    assert (ess(np.zeros((2, 9))), rhat(np.zeros((2, 9)))) == (2.0, 9.0)
    with pytest.raises(SdeflowError, match=r"\(9,\)"):
        ess(np.zeros(9))


@pytest.mark.parametrize(
    ("call", "package"),
    [
        (lambda: ess(np.zeros((2, 9))), "arviz"),
        (lambda: rhat(np.zeros((2, 9))), "arviz"),
        (lambda: entropic_w2(np.eye(3), np.eye(3)), "POT"),
    ],
)
def test_packages_that_are_not_there(call: object, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("arviz", "ot"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SdeflowError, match=f"pip install {package}"):
        call()


def test_entropic_tends_to_exact_from_above() -> None:
    pytest.importorskip("ot")
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal((40, 2)), rng.standard_normal((50, 2)) + 1
    exact = wasserstein(a, b)
    loose, close = (entropic_w2(a, b, regularisation=r) for r in (0.2, 0.01))
    assert exact - 1e-5 < close < loose
    assert close == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: wasserstein(np.zeros((3, 2)), np.zeros((3, 1))), "same number of coordinates"),
        (lambda: wasserstein(np.zeros((3, 2)), np.full((3, 2), np.nan)), "must be finite, 6 of 6"),
        (lambda: wasserstein(np.zeros((3, 2)), np.zeros((0, 2))), "shape"),
        (lambda: wasserstein(np.zeros((3, 2)), np.zeros((3, 2)), 0.5), "at least 1"),
        (lambda: wasserstein(np.zeros((600, 2)), np.zeros((601, 2)), 3), "use sliced_w2"),
        (lambda: sliced_w2(np.zeros((3, 2)), np.zeros((3, 2)), projections=1), "at least 2"),
        (lambda: gaussian_w2([0.0], [[-1.0]], [0.0], [[1.0]]), "no negative eigenvalue"),
        (lambda: gaussian_w2([0, 0], [[1, 1], [0, 1]], [0, 0], np.eye(2)), "symmetric"),
        (lambda: gaussian_w2([0.0], [[1.0]], [0, 0], np.eye(2)), "one number of coordinates"),
        (lambda: w2_to_gaussian_1d(np.zeros((4, 2))), "one coordinate"),
        (lambda: mmd(np.zeros((2, 1)), np.zeros((4, 1))), "at least 3"),
        (lambda: mmd(np.zeros((4, 1)), np.zeros((4, 1))), "bandwidth"),
        (lambda: entropic_w2(np.eye(2), np.eye(2), regularisation=0), "positive"),
    ],
)
def test_refusals(call: object, sentence: str) -> None:
    with pytest.raises(SdeflowError, match=sentence):
        call()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 50)])
def test_larger_clouds_are_taken_by_pot(p: int, n: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same distances as by the plain ways."""
    pytest.importorskip("ot")
    rng = np.random.default_rng(10)
    a, b = rng.standard_normal((n, 3)), rng.standard_normal((m, 3)) + 1
    plain = wasserstein(a, b, p)
    monkeypatch.setattr(distances, "POT_FROM", 0)
    monkeypatch.setattr(distances, "linear_sum_assignment", None)
    monkeypatch.setattr(distances, "linprog", None)
    assert wasserstein(a, b, p) == pytest.approx(plain, rel=1e-9)
    assert wasserstein(a, a, p) == pytest.approx(0, abs=1e-6)


def test_pot_is_asked_for_two_clouds_and_its_failure_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is called, with another in its place: any p but 1 and 2 goes the plain way."""
    asked = []

    def solver(x: np.ndarray, y: np.ndarray, metric: str, **options: object) -> tuple[float, dict]:
        asked.append((len(x), len(y), metric))
        return (9.0, {"warning": None if metric == "sqeuclidean" else "no end"})

    monkeypatch.setitem(sys.modules, "ot", SimpleNamespace(lp=SimpleNamespace(emd2_lazy=solver)))
    a, b = np.zeros((600, 2)), np.ones((500, 2))
    assert wasserstein(a, b) == 3
    with pytest.raises(SdeflowError, match="no end"):
        wasserstein(a, b, 1)
    assert asked == [(600, 500, "sqeuclidean"), (600, 500, "euclidean")]
    assert wasserstein(a[:4], b[:4]) == pytest.approx(np.sqrt(2))
    with pytest.raises(SdeflowError, match=r"network simplex \(up to 400,000,000 pairs\): use sliced_w2"):
        wasserstein(np.zeros((20_001, 2)), np.zeros((20_000, 2)))
    with pytest.raises(SdeflowError, match="linear programme"):
        wasserstein(a, b, 3)
    assert len(asked) == 2


def test_without_pot_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(SdeflowError, match=r"programme .*pip install 'POT>=0\.9\.7', or use sliced_w2"):
        wasserstein(np.zeros((600, 2)), np.zeros((601, 2)))


def test_limits_are_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(distances.MOST_PAIRS, "assignment", 8)
    with pytest.raises(SdeflowError, match="assignment"):
        wasserstein(np.zeros((3, 2)), np.zeros((3, 2)))
    assert wasserstein(np.zeros((3, 1)), np.ones((3, 1))) == 1


def test_what_distances_cost_is_measured() -> None:
    """The entropic way is above the exact one; a way is left where its next size would take too long."""
    pytest.importorskip("ot")
    first, second = transport.measure([30, 40], limit=60)
    assert (first["n"], second["n"]) == ("30", "40")
    for row in (first, second):
        assert all(re.match(r"[\d.e-]+ s", row[name]) for name in transport.WAYS)
        assert ", +" in row["entropic"]
    first, second = transport.measure([30, 40], limit=1e-12)
    assert "" not in first.values()
    assert [second[name] for name in transport.WAYS] == [""] * 4

"""Forces that a kernel makes of scores.

Oracles: sums over pairs, with the kernel's gradient by autograd; the closed form of where two particles rest;
gradient ascent for one particle; numpy's median; variances where particles come to rest, from an independent
computation.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.model.kernel_forces import KEPT_VARIANCE, KernelForces
from sdeflow.model.kernels import RBF, Kernel, Linear, kernel_named, median_of
from sdeflow.problems.hierarchical import Hierarchical


def normals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_pairs(k: Callable[[Tensor, Tensor], Tensor], x: Tensor, s: Tensor) -> Tensor:
    """phi_l = (1/N) sum_j [k(x_j, x_l) s_j + grad_1 k(x_j, x_l)] of one datum's particles [N, d]."""
    rows = []
    for at in x:
        total = torch.zeros_like(at)
        for one, score in zip(x, s, strict=True):
            leaf = one.clone().requires_grad_()
            value = k(leaf, at)
            (gradient,) = torch.autograd.grad(value, leaf)
            total = total + value.detach() * score + gradient
        rows.append(total / len(x))
    return torch.stack(rows)


def rbf(l2: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: torch.exp(-(x - y).square().sum() / (2 * l2))


def median_l2(x: Tensor) -> float:
    apart = (x[:, None] - x).square().sum(-1)
    return float(np.median(apart.numpy())) / (2 * log(len(x) + 1))


@pytest.mark.parametrize("n", [2, 3, 5, 8])
@pytest.mark.parametrize("d", [1, 4])
def test_a_force_is_the_sum_over_pairs(n: int, d: int) -> None:
    x, s = normals(2, 3, n, d), normals(4, 3, n, d)[:2].flip(2)
    for kernel, of in (
        (RBF(0.7), lambda at: rbf(0.49)),
        (RBF(), lambda at: rbf(median_l2(at))),
        (Linear(), lambda at: lambda x, y: 1 + (x * y).sum()),
    ):
        found = kernel.force(x, s)
        for r in range(2):
            for i in range(3):
                expected = by_pairs(of(x[r, i]), x[r, i], s[r, i])
                torch.testing.assert_close(found[r, i], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n", range(1, 10))
def test_the_median_is_over_all_pairs(n: int) -> None:
    """Those of a particle with itself too: of two particles it is half of their distance."""
    x = normals(2, n, 3)
    apart = (x[:, :, None] - x[:, None]).square().sum(-1)
    np.testing.assert_allclose(median_of(apart), np.median(apart.flatten(1), axis=1), rtol=1e-15)


def test_one_particle_feels_its_own_score() -> None:
    x, s = normals(2, 3, 1, 4), normals(5, 3, 1, 4)[:2]
    assert RBF().force(x, s).equal(s)
    assert RBF(0.3).force(x, s).equal(s)


@pytest.mark.parametrize(("l2", "rest"), [(0.5, 0.634318), (1.0, 0.741152), (2.0, 0.832555)])
def test_where_two_particles_rest(l2: float, rest: float) -> None:
    """At +-a under N(0, 1), a^2 = (l^2/2) log(1 + 2/l^2)."""
    x, kernel = torch.tensor([[-0.2], [1.0]], dtype=torch.float64), RBF(sqrt(l2))
    for _ in range(400):
        x = x + 0.5 * kernel.force(x, -x)
    np.testing.assert_allclose(x[:, 0], [-rest, rest], atol=5e-7)
    np.testing.assert_allclose(x[1, 0], sqrt(l2 / 2 * log(1 + 2 / l2)), rtol=1e-10)


def test_far_from_zero_no_digits_are_lost() -> None:
    x, s = normals(6, 2), normals(7, 2)[1:]
    shifted = RBF().force(x + 1e6, s)
    torch.testing.assert_close(shifted, RBF().force(x, s), rtol=1e-8, atol=1e-8)  # x + 1e6 has 1e-10 of x


def test_particles_at_one_place_stay_together() -> None:
    x, s = torch.ones(2, 5, 3, dtype=torch.float64), normals(2, 5, 3)
    torch.testing.assert_close(RBF().force(x, s), s.mean(1, keepdim=True).expand(2, 5, 3), rtol=1e-14, atol=0)


@pytest.mark.parametrize("at", [(10, 1), (10, 2), (10, 10), (10, 50), (50, 50)], ids=str)
def test_how_much_variance_is_left(at: tuple[int, int]) -> None:
    """The table of the warning, to its last digit and the 0.01 that another start changes."""
    (n, d), kernel = at, RBF()
    x = normals(n, d)
    for _ in range(3000):
        force = kernel.force(x, -x)
        if force.abs().max() < 2e-4:
            break
        x = x + 0.5 * force
    else:
        raise AssertionError("particles do not come to rest")
    digit = 0.0005 if KEPT_VARIANCE[at] < 0.1 else 0.005
    assert x.var(0, correction=0).mean().item() == pytest.approx(
        KEPT_VARIANCE[at], abs=digit + 0.01 * (d > 2)
    )


def forces(latent: int, n: int, kernel: Kernel = RBF()) -> KernelForces:  # noqa: B008 (frozen)
    return KernelForces(Hierarchical(data=2, latent=latent), n, kernel)


def test_a_collapse_is_told_by_the_nearest_figure() -> None:
    assert forces(5, 5).warning == ""
    told = forces(60, 7).warning
    assert told.startswith(
        "N = 7 particles under the rbf kernel with median bandwidth collapse in d = 60 dimensions"
    )
    assert (
        "at N = 10 and d = 50, of a normal law and with the median bandwidth, 0.043 of the variance" in told
    )
    assert "at N = 50 and d = 50, of" in forces(51, 49).warning
    assert "a plane of 3 dimensions" in forces(5, 4, Linear()).warning


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("rbf", -1.0), "bandwidth must be a positive number or 'median', given -1.0"),
        (("rbf", "mean"), "bandwidth must be a positive number or 'median', given 'mean'"),
        (("rbf", float("nan")), "bandwidth must be a positive number or 'median', given nan"),
        (("liner",), "unknown kernel 'liner': did you mean 'linear'"),
        (("linear", 1.0), "kernel 'linear' has no bandwidth, given 1.0: leave it out"),
    ],
)
def test_what_is_no_kernel(given: Any, words: str) -> None:
    with pytest.raises(SdeflowError) as found:
        kernel_named(*given)
    assert words in str(found.value)

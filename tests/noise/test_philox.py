"""Philox normals and the compiled kernels: known answers, the kernels against the oracle, independence.

Distributions are held to 4.5 standard errors of the statistic, as those of the other source are.
"""

from __future__ import annotations

import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from philox import LANES, normals, philox
from scipy.stats import kstest
from support import SE, needs_kernel
from torch import Tensor

from sdeflow.noise.cpp import CppKernel, cpp_kernel
from sdeflow.noise.kernel import Draw, kinetic_numbers
from sdeflow.system.flow import kinetic_flow

KERNEL = cpp_kernel()
NAMES = ("free", "push", "w", "kick")
DTYPES = (torch.float32, torch.float64)
KEYS = (0x9E3779B97F4A7C15, 3, 2**64 - 1)


def keys(*values: int) -> Tensor:
    return torch.tensor([k - (k >> 63 << 64) for k in values])


def drawn(
    size: int, step: int = 0, slot: int = 0, *, of: CppKernel | None = None, dtype: torch.dtype
) -> Tensor:
    """Normals of all KEYS from the kernel, [3, size]."""
    kernel = of or KERNEL
    assert not isinstance(kernel, str)
    out = torch.empty(1, 1, len(KEYS), size, dtype=dtype)
    kernel.normals(out, Draw(keys(*KEYS), step, slot))
    return out[0, 0]


# The generator -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0_A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(counter: list[int], key: int, answer: str) -> None:
    """The vectors that were published with the generator."""
    words = philox(torch.tensor(counter), key)
    assert " ".join(f"{int(word):08x}" for word in words) == answer


@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_and_shape_of_the_oracle(dtype: torch.dtype) -> None:
    x = normals(1, 2, 3, 200_000, dtype).numpy()
    for k, mean, square in ((1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105)):
        assert abs((x**k).mean() - mean) < SE * np.sqrt((square - mean**2) / x.size), k
    assert kstest(x, "norm").pvalue > 1e-5


# The kernel ----------------------------------------------------------------------------------------


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("step", "slot"), [(0, 0), (3, 1), (2**32 - 1, 2), (10**15, 7), (2**63, 2**31)])
def test_kernel_agrees_with_the_oracle(step: int, slot: int, dtype: torch.dtype) -> None:
    """To 4 units in the last place of the radius, which is where an error of sine or cosine comes from."""
    x = drawn(10_001, step, slot, dtype=dtype)
    for row, key in zip(x, KEYS, strict=True):
        exact = normals(key, step, slot, 10_001, dtype)
        assert (row.double() - exact).abs().max() < 4 * torch.finfo(dtype).eps * exact.abs().max()


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_number_does_not_depend_on_how_many_there_are(dtype: torch.dtype) -> None:
    whole = drawn(1000, dtype=dtype)
    for size in (1, 15, 16, 33, 64, 127, 999):
        assert torch.equal(drawn(size, dtype=dtype), whole[:, :size])


@needs_kernel
@pytest.mark.parametrize("first", [0, 1, 16, 63, 64, 65, 130])
@pytest.mark.parametrize("size", [1, 20, 64, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_part_has_the_numbers_and_updates_of_the_whole(dtype: torch.dtype, size: int, first: int) -> None:
    """Elements first, first + 1, ... of a variable, drawn and moved alone: to the bit, and nothing beside."""
    g = torch.Generator().manual_seed(0)
    q, p, f = (torch.randn(len(KEYS), 500, generator=g, dtype=dtype) for _ in range(3))
    part = slice(first, first + size)
    own = [x[:, part].contiguous() for x in (q, p, f)]
    whole, cut = Draw(keys(*KEYS), 5, 2), Draw(keys(*KEYS), 5, 2, first=first)
    rows = torch.tensor([kinetic_numbers(kinetic_flow(0.3, 2.0, 0.1), kinetic_flow(0.3, 2.0, 0.2), 0.7)])
    line, numbers = torch.tensor([[0.9, 0.2, 0.7, 0.5]], dtype=dtype), rows.to(dtype)
    room = torch.full((1, 1, len(KEYS), size), torch.nan, dtype=dtype)
    KERNEL.normals(room, cut)
    assert torch.equal(room[0, 0], drawn(500, 5, 2, dtype=dtype)[:, part])
    assert torch.equal(KERNEL.linear(own[0], own[2], line, cut), KERNEL.linear(q, f, line, whole)[:, part])
    for one, other in zip(
        KERNEL.kinetic(*own, numbers, cut), KERNEL.kinetic(q, p, f, numbers, whole), strict=True
    ):
        assert torch.equal(one, other[:, part])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_matter(dtype: torch.dtype) -> None:
    """400 000 numbers a replica are enough for several threads, whose borders fall within replicas."""
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(drawn(400_001, dtype=dtype))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_tails_and_correlations(dtype: torch.dtype) -> None:
    """As [step, slot, key, number]: no two of them correlate, and the tail has its share."""
    x = torch.stack([torch.stack([drawn(500, n, slot, dtype=dtype) for slot in (0, 1)]) for n in range(200)])
    x = x.double().numpy()
    for k, mean, square in ((1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105)):
        assert abs((x**k).mean() - mean) < SE * np.sqrt((square - mean**2) / x.size), k
    pairs = {
        "step": (x[1:], x[:-1]),
        "slot": (x[:, 1], x[:, 0]),
        "key": (x[:, :, 1:], x[:, :, :-1]),
        "neighbour": (x[..., 1:], x[..., :-1]),
        "sine and cosine": (x[..., 16:], x[..., :-16]),
        "squares of sine and cosine": (x[..., 16:] ** 2 - 1, x[..., :-16] ** 2 - 1),
    }
    for name, (a, b) in pairs.items():
        spread = np.sqrt((a**2).mean() * (b**2).mean() / a.size)
        assert abs((a * b).mean()) < SE * spread, name
    assert kstest(x.ravel(), "norm").pvalue > 1e-5
    beyond = 2.699796063260189e-3  # P(|x| > 3)
    assert abs((abs(x) > 3).mean() - beyond) < SE * np.sqrt(beyond / x.size)


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_pairs_of_a_call_point_everywhere_alike(dtype: torch.dtype) -> None:
    """Octants have as many pairs each, and pairs as long: |x|^2 has mean 2 and standard deviation 2."""
    x = drawn(640_000, dtype=dtype).double().view(-1, 2, LANES)
    length, turn = x.square().sum(1).flatten(), torch.atan2(x[:, 1], x[:, 0]).flatten() / (2 * np.pi) % 1
    n = len(turn)
    for octant in range(8):
        inside = (turn * 8).long() == octant
        assert abs(int(inside.sum()) - n / 8) < SE * (n * 7 / 64) ** 0.5
        assert abs(float(length[inside].mean()) - 2) < SE * 2 / (n / 8) ** 0.5


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_number_comes_twice(dtype: torch.dtype) -> None:
    x = torch.stack([drawn(700, n, slot, dtype=dtype) for n in range(20) for slot in range(4)])
    repeated = x.numel() - x.unique().numel()
    assert repeated == 0 if dtype == torch.float64 else repeated < 0.01 * x.numel()


@needs_kernel
@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_are_their_equations(size: int, own: bool, force: bool, dtype: torch.dtype) -> None:
    """In float64 from the oracle's normals, to 8 units in the last place of the largest term.

    With numbers for all replicas or for each its own.
    """
    assert not isinstance(KERNEL, str)
    g = torch.Generator().manual_seed(size)
    q, p, f = (torch.randn(len(KEYS), size, generator=g, dtype=dtype) for _ in range(3))
    before = q.clone(), p.clone(), f.clone()
    draw, given = Draw(keys(*KEYS), 5, 2), f if force else None
    noise = kinetic_flow(0.3, 2.0, 0.2)
    xi1, xi2 = (torch.stack([normals(key, 5, slot, size, dtype) for key in KEYS]) for slot in (2, 3))
    Q, P = noise.q1 * xi1 + noise.q2 * xi2, noise.p1 * xi1 + noise.p2 * xi2
    a, b, shove = q.double(), p.double(), f.double() * force
    close = 8 * torch.finfo(dtype).eps * 5

    flows = [kinetic_flow(gamma, 2.0, 0.1) for gamma in ((0.3, 0.7, 0.0) if own else (0.3,))]
    free, push, w, kick = (torch.tensor([[getattr(c, n)] for c in flows], dtype=torch.float64) for n in NAMES)
    numbers = torch.tensor([kinetic_numbers(c, noise, 0.7) for c in flows], dtype=dtype)
    q_new, p_new = KERNEL.kinetic(q, p, given, numbers, draw)
    assert (q_new.double() - (a + free * b + 0.7 * Q + push * shove)).abs().max() < close
    assert (p_new.double() - (w * b + 0.7 * P + kick * shove)).abs().max() < close
    numbers = torch.cat([w, kick, push + 0.7, w - 0.4], 1)
    new = KERNEL.linear(q, given, numbers.to(dtype), draw)
    w, kick, s, t = numbers.T[..., None]
    assert (new.double() - (w * a + s * t * xi1 + kick * shove)).abs().max() < close
    assert all(torch.equal(one, other) for one, other in zip((q, p, f), before, strict=True))


@pytest.mark.slow
@needs_kernel
def test_every_instruction_set_gives_the_same_bits(tmp_path: Path) -> None:
    """The file built for one set alone against what is installed, which takes the best that is there.

    By both compilers, where they are there; the one for all sets too.
    """
    source = Path(__file__).parents[2] / "sdeflow" / "noise" / "philox.cpp"
    compilers = [found for name in ("g++", "clang++") if (found := shutil.which(name))]
    if not compilers:
        pytest.skip("no compiler")
    flags = "-std=c++17 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -pthread -shared -fPIC"
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    sets = {
        "the best": ("", ""),
        "no vectors of its own": ("fma", "-DSDEFLOW_ONE_SET -U__SSE2__ -mfma"),
        "SSE2": ("sse2", "-DSDEFLOW_ONE_SET -march=x86-64"),
        "AVX2": ("avx2", "-DSDEFLOW_ONE_SET -march=x86-64-v3"),
        "AVX-512": ("avx512vl", "-DSDEFLOW_ONE_SET -march=x86-64-v4"),
    }
    expected = [drawn(20_000, dtype=dtype) for dtype in DTYPES]
    for compiler, (level, (needs, option)) in product(compilers, sets.items()):
        if needs not in known:
            continue
        built = tmp_path / f"{Path(compiler).name} {level}.so"
        subprocess.run([compiler, *flags.split(), *option.split(), str(source), "-o", str(built)], check=True)
        one = CppKernel(built)
        assert one.fast == (level != "SSE2"), built.name
        for dtype, numbers in zip(DTYPES, expected, strict=True):
            assert torch.equal(drawn(20_000, of=one, dtype=dtype), numbers), built.name

"""The kernels of philox.cpp for CUDA, in Triton: the same counters and normals, to the last digits.

On an H200 they give the CPU's numbers to 8 units of rounding, and a kinetic update of 10^8 numbers in float32
took 0.65 ms, 73% of a copy's bandwidth (tests/device/accept.py); nothing was tuned yet.

A program takes `GROUPS` groups of one replica, that is as many calls of Philox, and as many normals of
each of the 4 kinds (2 in float64) that a call gives; sdeflow.noise.kernel has which element they belong to.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdeflow.noise.kernel import Draw, row_stride

GROUPS = 256
_LOOSE = ["first", "low", "high", "slot"]
"""Integers that change from step to step, for which no kernel is to be compiled anew."""


@triton.jit
def _philox(group, step, slot, key):
    """Four words a group."""
    k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    a = group.to(tl.uint32)
    b, c, d = a * 0 + step.to(tl.uint32), a * 0 + (step >> 32).to(tl.uint32), a * 0
    d += slot.to(tl.uint32)
    for _ in tl.static_range(10):
        high_a, low_a = tl.umulhi(a, 0xD2511F53), a * 0xD2511F53
        high_c, low_c = tl.umulhi(c, 0xCD9E8D57), c * 0xCD9E8D57
        a, b, c, d = high_c ^ b ^ k0, low_c, high_a ^ d ^ k1, low_a
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return a, b, c, d


@triton.jit
def _radius(u, TERMS: tl.constexpr):
    """sqrt(-2 log u) given u 2^31, or u 2^53 in float64; log m = 2 artanh s, s = (m-1)/(m+1), u = m 2^e."""
    if u.dtype == tl.float32:
        shifted = u.to(tl.int32, bitcast=True) + 0x004AFB0D  # less sqrt(1/2), more 1
        e = ((shifted >> 23) - 127 - 31).to(tl.float32)
        m = ((shifted & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    else:
        shifted = u.to(tl.int64, bitcast=True) + 0x00095F619980C433
        e = ((shifted >> 52) - 1023 - 53).to(tl.float64)
        m = ((shifted & 0xFFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD).to(tl.float64, bitcast=True)
    s = (m - 1) / (m + 1)
    t = s * s
    series = t * 0
    for i in tl.static_range(TERMS):
        series = t * (2.0 / (2 * (TERMS - i) + 1) + series)
    return tl.sqrt(-2 * (e * 0.69314718055994530942 + (s * series + 2 * s)))


@triton.jit
def _polar(r, turn, z, TERMS: tl.constexpr):
    """r cos and r sin of z, |z| <= pi/4, by their series; turned about by the two highest bits of `turn`."""
    s = z * z
    cosine, sine = s * 0 + 1, s * 0 + 1
    for i in tl.static_range(TERMS):
        cosine = 1 - s * cosine * (1.0 / ((2 * (TERMS - i) - 1) * (2 * (TERMS - i))))
        sine = 1 - s * sine * (1.0 / ((2 * (TERMS - i)) * (2 * (TERMS - i) + 1)))
    sine *= z
    cosine = tl.where((turn >> 30 & 1) == 1, -cosine, cosine)
    swap = turn >> 31 == 1
    return r * tl.where(swap, sine, cosine), r * tl.where(swap, cosine, sine)


@triton.jit
def _pair32(a, b):
    u = (a >> 1).to(tl.int32).to(tl.float32) + 0.5
    z = (b << 2).to(tl.int32, bitcast=True).to(tl.float32) * 3.657295198167899e-10
    return _polar(_radius(u, 4), b, z, 4)


@triton.jit
def _pair64(a, b, c, d):
    u = (a >> 5).to(tl.float64) * 67108864.0 + (b >> 6).to(tl.float64) + 1
    rest = (c << 2).to(tl.int32, bitcast=True).to(tl.float64)
    z = (rest + (d >> 1).to(tl.float64) * 1.862645149230957e-09) * 3.657295198167899e-10
    return _polar(_radius(u, 10), c, z, 8)


@triton.jit
def _groups(first, GROUPS: tl.constexpr, DOUBLE: tl.constexpr):
    """This program's groups, counted from those of the block that the first number lies in."""
    each: tl.constexpr = 32 if DOUBLE else 64
    return (first.to(tl.int64) // each) * 16 + tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)


@triton.jit
def _normals(keys, counter, first, low, high, slot, GROUPS: tl.constexpr, DOUBLE: tl.constexpr):
    """The normals of this program's groups, of kinds 0 and 1, and 2 and 3 in float32.

    The step is what the counter says more than the words `high` and `low`.
    """
    step = tl.load(counter) + (high.to(tl.int64) << 32) + low.to(tl.uint32).to(tl.int64)
    group = _groups(first, GROUPS, DOUBLE)
    a, b, c, d = _philox(group, step, slot, tl.load(keys + tl.program_id(1)))
    if DOUBLE:
        x, y = _pair64(a, b, c, d)
        return x, y, x, y
    else:  # noqa: RET505 (to Triton only this makes it one type that is returned)
        x, y = _pair32(a, b)
        v, w = _pair32(c, d)
        return x, y, v, w


@triton.jit
def _place(i, size, first, GROUPS: tl.constexpr, DOUBLE: tl.constexpr):
    """Where normal i of each group lies, and whether it is there."""
    group = _groups(first, GROUPS, DOUBLE)
    each: tl.constexpr = 32 if DOUBLE else 64
    element = (group // 16) * each + i * 16 + group % 16 - first
    return tl.program_id(1).to(tl.int64) * size + element, (element >= 0) & (element < size)


@triton.jit(do_not_specialize=_LOOSE)
def _fill(out, keys, counter, size, first, low, high, slot, GROUPS: tl.constexpr, DOUBLE: tl.constexpr):
    xi = _normals(keys, counter, first, low, high, slot, GROUPS, DOUBLE)
    for i in tl.static_range(2 if DOUBLE else 4):
        at, there = _place(i, size, first, GROUPS, DOUBLE)
        tl.store(out + at, xi[i], there)


@triton.jit(do_not_specialize=_LOOSE)
def _linear(
    out, x, f, c, stride, keys, counter, size, first, low, high, slot,
    FORCE: tl.constexpr, GROUPS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    xi = _normals(keys, counter, first, low, high, slot, GROUPS, DOUBLE)
    c += tl.program_id(1) * stride
    for i in tl.static_range(2 if DOUBLE else 4):
        at, there = _place(i, size, first, GROUPS, DOUBLE)
        v = tl.load(c) * tl.load(x + at, there) + tl.load(c + 2) * (tl.load(c + 3) * xi[i])
        if FORCE:
            v += tl.load(c + 1) * tl.load(f + at, there)
        tl.store(out + at, v, there)


@triton.jit(do_not_specialize=_LOOSE)
def _kinetic(
    q_out, p_out, q, p, f, c, stride, keys, counter, size, first, low, high, slot,
    FORCE: tl.constexpr, GROUPS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    xi = _normals(keys, counter, first, low, high, slot, GROUPS, DOUBLE)
    eta = _normals(keys, counter, first, low, high, slot + 1, GROUPS, DOUBLE)
    c += tl.program_id(1) * stride
    free, push, w, kick, s = tl.load(c), tl.load(c + 1), tl.load(c + 2), tl.load(c + 3), tl.load(c + 4)
    q1, q2, p1, p2 = tl.load(c + 5), tl.load(c + 6), tl.load(c + 7), tl.load(c + 8)
    for i in tl.static_range(2 if DOUBLE else 4):
        at, there = _place(i, size, first, GROUPS, DOUBLE)
        a, b = tl.load(q + at, there), tl.load(p + at, there)
        a = a + free * b + s * (q1 * xi[i] + q2 * eta[i])
        b = w * b + s * (p1 * xi[i] + p2 * eta[i])
        if FORCE:
            g = tl.load(f + at, there)
            a += push * g
            b += kick * g
        tl.store(q_out + at, a, there)
        tl.store(p_out + at, b, there)


class TritonKernel:
    """The Triton kernels; see sdeflow.noise.kernel.Kernel."""

    fast = captures = True

    def normals(self, out: Tensor, draw: Draw, apart: int = 1) -> None:
        for k, by_slot in enumerate(out):
            for i, xi in enumerate(by_slot):
                grid, rest, options = _launch(
                    xi, draw._replace(step=draw.step + k, slot=draw.slot + i * apart)
                )
                _fill[grid](xi, *rest, **options)

    def linear(self, x: Tensor, f: Tensor | None, numbers: Tensor, draw: Draw) -> Tensor:
        out, (grid, rest, options) = torch.empty_like(x), _launch(x, draw)
        arrays = (x, x if f is None else f, numbers, row_stride(numbers))
        _linear[grid](out, *arrays, *rest, FORCE=f is not None, **options)
        return out

    def kinetic(
        self, q: Tensor, p: Tensor, f: Tensor | None, numbers: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        q_out, p_out, (grid, rest, options) = torch.empty_like(q), torch.empty_like(p), _launch(q, draw)
        arrays = (q, p, q if f is None else f, numbers, row_stride(numbers))
        _kinetic[grid](q_out, p_out, *arrays, *rest, FORCE=f is not None, **options)
        return q_out, p_out


@cache
def _zero(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=device)


def _launch(x: Tensor, draw: Draw) -> tuple[tuple[int, int], tuple[Tensor | int, ...], dict[str, int | bool]]:
    replicas, double = len(draw.keys), x.dtype == torch.float64
    size = x.numel() // replicas
    each = 32 if double else 64
    groups = 16 * -(-(draw.first % each + size) // each)
    words = [_signed(draw.step & 0xFFFFFFFF), _signed(draw.step >> 32), _signed(draw.slot)]
    return (
        (-(-groups // GROUPS), replicas),
        (draw.keys, _zero(x.device) if draw.counter is None else draw.counter, size, draw.first, *words),
        {"GROUPS": GROUPS, "DOUBLE": double, "enable_fp_fusion": False},
    )


def _signed(word: int) -> int:
    return word - (word >> 31 << 32)

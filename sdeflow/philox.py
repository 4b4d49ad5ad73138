"""Philox4x32-10 and the normals made of it, in torch integers: the oracle of the kernels, too slow to run by.

Normal e of a replica in a variable depends on a 64-bit key and on the counter

    (group of e, low word of the step, high word of the step, slot)

alone, the slot telling the normals of a step apart. Philox gives four 32-bit words a counter. Box-Muller
makes of them 4 normals in float32, 2 in float64:

    sqrt(-2 log u) cos(2 pi v),  sqrt(-2 log u) sin(2 pi v)        u in (0, 1]

`LANES` groups lie side by side: in blocks of LANES times 4 or 2 numbers, normal i of lane l is number
i LANES + l of the block. A variable may have 2^34 numbers a replica in float32, 2^33 in float64.

Source: Salmon, Moraes, Dror, Shaw 2011, Parallel random numbers: as easy as 1, 2, 3.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

LANES = 16
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF


def _product(x: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word of x times a 32-bit number, by halves of it, as int64 has no 64th bit to spare."""
    low, high = x * (multiplier & 0xFFFF), x * (multiplier >> 16)
    middle = high + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF


def philox(counter: Tensor, key: int) -> Tensor:
    """Four words by counter, both int64 [4, ...] of 32-bit numbers."""
    a, b, c, d = counter
    k0, k1 = key & _WORD, key >> 32 & _WORD
    for _ in range(10):
        (high_a, low_a), (high_c, low_c) = _product(a, _MULTIPLIERS[0]), _product(c, _MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ k0, low_c, high_a ^ d ^ k1, low_a
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return torch.stack([a, b, c, d])


def normals(key: int, step: int, slot: int, size: int, dtype: torch.dtype) -> Tensor:
    """The first `size` normals, [size], to the last digits of float64 (of float32 once cast)."""
    each = 4 if dtype == torch.float32 else 2
    blocks = -(-size // (each * LANES))
    group = torch.arange(blocks * LANES)
    counter = torch.stack([group, *(torch.full_like(group, v) for v in (step & _WORD, step >> 32, slot))])
    a, b, c, d = philox(counter, key)
    if each == 4:
        pairs = [(_uniform32(u), v.double() / 2**32) for u, v in ((a, b), (c, d))]
    else:
        pairs = [((((a >> 5) << 26) + (b >> 6) + 1).double() / 2**53, _turn64(c, d))]
    both = [(-2 * u.log()).sqrt() * of(2 * pi * turn) for u, turn in pairs for of in (torch.cos, torch.sin)]
    return torch.stack([x.view(blocks, LANES) for x in both], 1).flatten()[:size]


def _uniform32(word: Tensor) -> Tensor:
    """(w + 1/2) / 2^32 rounded to float32, whose logarithm is taken."""
    return ((word.double() + 0.5) / 2**32).float().double()


def _turn64(c: Tensor, d: Tensor) -> Tensor:
    """The fraction of a turn in [-1/8, 7/8) with 63 bits, kept small where sine or cosine is."""
    quarter = (c + (1 << 29) & _WORD) >> 30
    rest = (c - (quarter << 30) + (1 << 29) & _WORD) - (1 << 29)
    return quarter.double() / 4 + (rest.double() + (d >> 1).double() / 2**31) / 2**32

"""Philox4x32-10 and the normals made of it, in torch integers: the oracle of the kernels, too slow to run by.

Normal e of a replica in a variable depends on a 64-bit key and on the counter

    (group of e, low word of the step, high word of the step, slot)

alone, the slot telling the normals of a step apart. Philox gives four 32-bit words a counter. Box-Muller
makes of them 4 normals in float32, 2 in float64:

    sqrt(-2 log u) cos v,  sqrt(-2 log u) sin v        u in (0, 1]

where v is in [-pi/4, pi/4) but for two bits: one makes the cosine negative, one lets the two change places.
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
        both = [x for u, v in ((a, b), (c, d)) for x in _pair(_uniform32(u), v, torch.zeros_like(v))]
    else:
        both = [*_pair((((a >> 5) << 26) + (b >> 6) + 1).double() / 2**53, c, d >> 1)]
    return torch.stack([x.view(blocks, LANES) for x in both], 1).flatten()[:size]


def _uniform32(word: Tensor) -> Tensor:
    """(w + 1/2) / 2^31 of 31 bits, rounded to float32 twice."""
    return ((word >> 1).float() + 0.5).double() / 2**31


def _pair(u: Tensor, word: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals by u, the bits of an angle, and 31 more bits for it."""
    rest = word & (1 << 30) - 1
    z = (rest - (rest >> 29 << 30)).double() + more.double() / 2**31  # of 2^29
    z = z * (pi / 4 / 2**29)
    cosine, sine = z.cos() * (1 - 2 * (word >> 30 & 1)), z.sin()
    swap, r = word >> 31 == 1, (-2 * u.log()).sqrt()
    return r * torch.where(swap, sine, cosine), r * torch.where(swap, cosine, sine)

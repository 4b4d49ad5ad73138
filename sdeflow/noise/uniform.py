"""Uniform numbers by address: of a datum in an epoch, whatever else is drawn, made of whole numbers alone.

Philox4x32-10 gives four 32-bit words by a key and by the counter

    (group, low word of the datum, high word of the datum, stage)

They make 4 numbers of float32, of 24 bits each, or 2 of float64, of 53 bits; number e of a datum is in group
e // 4 or e // 2.

Source: Salmon, Moraes, Dror, Shaw 2011, Parallel random numbers: as easy as 1, 2, 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sdeflow.seeds import derive_key
from sdeflow.state import sent

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85


def uniform_of(
    seeds: Sequence[int],
    epoch: int,
    data: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    stages: int = 1,
) -> Tensor:
    """Numbers on [0, 1) for data [R, b] of an epoch, [R, b, stages, *shape], by a seed a replica.

    dtype   float32 or float64
    """
    words = _words(tuple(seeds), epoch, data.device)
    each, size = (2 if dtype == torch.float64 else 4), 1
    for n in shape:
        size *= n
    group = torch.arange(-(-size // each), device=data.device)
    stage = torch.arange(stages, device=data.device)[:, None]
    datum = data[:, :, None, None]
    k0, k1 = (word[:, None, None, None] for word in words)
    a, b, c, d = _philox(group, datum & _WORD, datum >> 32, stage, k0, k1)
    if each == 4:
        drawn = torch.stack([(word >> 8).to(dtype) / 2**24 for word in (a, b, c, d)], -1)
    else:
        pairs = ((a >> 5 << 26) + (b >> 6), (c >> 5 << 26) + (d >> 6))
        drawn = torch.stack([pair.to(dtype) / 2**53 for pair in pairs], -1)
    return drawn.flatten(-2)[..., :size].reshape(*data.shape, stages, *shape)


@lru_cache(maxsize=8)
def _words(seeds: tuple[int, ...], epoch: int, device: torch.device) -> list[Tensor]:
    """Two words of the key of each seed."""
    keys = [derive_key(seed, "data", epoch) for seed in seeds]
    return [sent(torch.tensor([key >> 32 * i & _WORD for key in keys]), device) for i in (0, 1)]


def _philox(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor, k0: Tensor, k1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of a counter of four under a key of two; words are int64 below 2^32."""
    for _ in range(10):
        # a product of int64 keeps its low 64 bits, so that both words of it are there
        p, q = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (q >> 32 & _WORD) ^ b ^ k0, q & _WORD, (p >> 32 & _WORD) ^ d ^ k1, p & _WORD
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return a, b, c, d

"""One key and one generator for each use of a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch


def _mix32(x: int) -> int:
    """A bijection of the 32-bit integers that scatters neighbours (MurmurHash3's finaliser)."""
    x ^= x >> 16
    x = x * 0x85EBCA6B & 0xFFFFFFFF
    x ^= x >> 13
    x = x * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ x >> 16


def derive_key(seed: int, *names: object) -> int:
    """A 128-bit key for one use of a seed; different names give unrelated keys."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one use of a seed."""
    return torch.Generator(device).manual_seed(derive_key(seed, *names) & 0x7FFFFFFFFFFFFFFF)


def step_key(key: int) -> Callable[[int], int]:
    """Maps a step to a 63-bit generator seed. Steps of one key never share their low 32 bits.

    torch's CPU generator looks at the low 32 bits of its seed only, so these are a bijection of the
    step number (up to 2^32 steps) rather than a hash, which would repeat noise within a long run.
    """
    k1, k2, high = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF, (key >> 64 & 0x7FFFFFFF) << 32
    return lambda n: high | _mix32(_mix32(n & 0xFFFFFFFF ^ k1) + k2 & 0xFFFFFFFF)

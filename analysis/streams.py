"""Random numbers with a stream for each datum, so that no datum changes those of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

AHEAD = 20
"""Draws of a stream that are made at once."""

Generators = torch.Generator | Sequence[torch.Generator]
"""One a datum; or one by which those are made."""


def a_datum(g: Generators, data: int) -> list[torch.Generator]:
    """Generators on the CPU, one a datum."""
    if not isinstance(g, torch.Generator):
        return list(g)
    return [
        torch.Generator().manual_seed(seed) for seed in torch.randint(1 << 62, (data,), generator=g).tolist()
    ]


class Streams:
    """Normals and uniforms of each datum, on the device and in the dtype of `like`.

    g   generators on the CPU, one a datum; each seeds one on the device
    """

    def __init__(self, g: Sequence[torch.Generator], like: Tensor) -> None:
        self._kind: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        seeds = [int(torch.randint(1 << 62, (1,), generator=one)) for one in g]
        self._there = [torch.Generator(like.device).manual_seed(seed) for seed in seeds]

    def normals(self, *shape: int) -> Iterator[Tensor]:
        """Endless standard normals [B, *shape]."""
        return self._draws(torch.randn, shape)

    def uniforms(self, *shape: int) -> Iterator[Tensor]:
        """Endless uniforms on [0, 1), [B, *shape]."""
        return self._draws(torch.rand, shape)

    def _draws(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Iterator[Tensor]:
        while True:
            each = [draw(AHEAD, *shape, generator=g, **self._kind) for g in self._there]
            yield from torch.stack(each, 1)

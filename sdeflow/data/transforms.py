"""What a step may see in place of its data: functions for `Model.at_access`, made anew at each visit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Access = Callable[["Tensor", "Tensor"], "Tensor"]
"""Makes of data y [b, ...] others like them, by uniform numbers on [0, 1) like them."""


def dequantise(width: float, low: float = float("-inf"), high: float = float("inf")) -> Access:
    """y + U(0, width), cut off at `low` and `high`: what lies between values that were rounded down."""

    def dequantised(y: Tensor, u: Tensor) -> Tensor:
        return (y + width * u).clamp(low, high)

    return dequantised


def flip(image_shape: Sequence[int]) -> Access:
    """Changes left and right of half of the images (channels, height, width), which may be vectors."""
    shape = tuple(image_shape)

    def flipped(y: Tensor, u: Tensor) -> Tensor:
        turned = y.reshape(-1, *shape).flip(-1).reshape(y.shape)
        first = u.flatten(1)[:, 0] < 0.5
        return turned.where(first.view(-1, *[1] * (y.ndim - 1)), y)

    return flipped

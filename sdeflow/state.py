"""A state: named tensors [R, ...] with R replicas, their axes, and sums of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    Coefficient = float | Tensor

State = dict[str, "Tensor"]
"""Variables by name, each [R, ...] with R replicas."""


class Axes(NamedTuple):
    """The shape of one replica of a variable, and the names of its axes."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def named(self) -> bool:
        """Whether this is a flat vector of parameters that have names."""
        return len(self.dims) == 1 and self.dims[0].endswith("param")


def plus(x: Tensor, *terms: tuple[Coefficient, Tensor]) -> Tensor:
    """x + sum_i c_i y_i; a coefficient may be a tensor that broadcasts, such as one a datum."""
    total = x
    for i, (c, y) in enumerate(terms):
        if isinstance(c, float | int):
            total = total.add(y, alpha=c) if i == 0 else total.add_(y, alpha=c)
        else:
            total = total + c * y
    return total

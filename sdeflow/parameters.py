"""Named parameters as one flat vector, and back."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError
from sdeflow.model import Parameters


class ParameterLayout:
    """How named parameters lie in one flat vector of length p."""

    def __init__(self, theta: Parameters) -> None:
        self.shapes = {name: tuple(value.shape) for name, value in theta.items()}
        self.sizes = [prod(shape) for shape in self.shapes.values()]
        self.size = sum(self.sizes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Named views of a flat vector [..., p]."""
        parts = flat.split_with_sizes(self.sizes, -1)  # torch's `split` takes a detour through Python
        return {
            name: part.view((*flat.shape[:-1], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def flatten(self, theta: Parameters) -> Tensor:
        """The flat vector [p] of named tensors; raises SdeflowError where names or shapes differ."""
        given = {name: tuple(value.shape) for name, value in theta.items()}
        if given != self.shapes:
            raise SdeflowError(f"parameters {self.shapes} were expected by name and shape, given {given}")
        return torch.cat([theta[name].reshape(-1) for name in self.shapes])

    def part(self, prefix: str) -> ParameterLayout:
        """The layout of the parameters whose names begin with a prefix, without it, on their own."""
        chosen = {n.removeprefix(prefix): s for n, s in self.shapes.items() if n.startswith(prefix)}
        return ParameterLayout({name: torch.empty(shape) for name, shape in chosen.items()})

    def labels(self) -> list[str]:
        """A name for each entry of the flat vector: 'weight[0,2]', or the bare name of a scalar."""
        labels: list[str] = []
        for name, shape in self.shapes.items():
            index = (
                torch.cartesian_prod(*(torch.arange(n) for n in shape)).view(-1, len(shape))
                if shape
                else None
            )
            if index is None or prod(shape) == 1:
                labels.append(name)
            else:
                labels += [f"{name}[{','.join(map(str, row))}]" for row in index.tolist()]
        return labels

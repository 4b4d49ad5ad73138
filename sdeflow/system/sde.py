"""A user's own SDE, a class with drift and diffusion, as a system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError, attempt, expect_count, expect_positive, numbers
from sdeflow.model.model import moved
from sdeflow.state import Axes, State
from sdeflow.system.increments import Channel


class SDESystem:
    """A user's own SDE, dX = drift(t, X) dt + diffusion(t, X) dW, as a system of one variable X.

    sde     an object with drift(t, x) and diffusion(t, x), x of shape [R, paths, d]; diagonal noise,
            each gives a number or a tensor that broadcasts against x
    h       the step, in units of [time]
    paths   independent paths a replica
    start   where every path starts, d numbers
    """

    def __init__(self, sde: Any, *, h: float, paths: int = 1, start: Sequence[float] = (0.0,)) -> None:
        for method in ("drift", "diffusion"):
            if not callable(getattr(sde, method, None)):
                raise SdeflowError(
                    f"{type(sde).__name__} has no {method}(t, x): an SDE needs drift and diffusion"
                )
        self.sde, self.h, self.paths = sde, expect_positive("the step h", h), expect_count("paths", paths)
        if not (found := numbers(start)):
            raise SdeflowError(f"start takes a list of at least 1 number, given {start!r}")
        self.blocks, self.model_forces = (), None
        self._start = found

    @property
    def definition(self) -> Any:
        return self.sde

    def __str__(self) -> str:
        return f"{type(self.sde).__name__}, h={self.h:g}, {self.paths} paths from {list(self._start)}"

    def drift(self, t: float, z: State) -> State:
        x = z["X"]
        return {"X": torch.as_tensor(self.sde.drift(t, x), dtype=x.dtype, device=x.device).expand_as(x)}

    def diffusion(self, t: float, z: State) -> dict[str, Any]:
        x = z["X"]
        return {"X": torch.as_tensor(self.sde.diffusion(t, x), dtype=x.dtype, device=x.device)}

    @property
    def axes(self) -> Mapping[str, Axes]:
        return {"X": Axes(("particle", "latent"), (self.paths, len(self._start)))}

    @property
    def channels(self) -> Sequence[Channel]:
        return [Channel("x", "X", self.axes["X"].shape)]

    @property
    def clocks(self) -> Mapping[str, float]:
        return {}

    def to(self, dtype: torch.dtype, device: torch.device) -> SDESystem:
        return SDESystem(moved(self.sde, dtype, device), h=self.h, paths=self.paths, start=self._start)

    def start(self, seed: int, replica: int = 0) -> State:
        return {"X": torch.tensor(self._start, dtype=torch.float64).expand(self.axes["X"].shape)}

    def check(self, z: State) -> None:
        expected = tuple(z["X"].shape)
        for method in (self.sde.drift, self.sde.diffusion):
            what = f"{type(self.sde).__name__}.{method.__name__}"
            value = attempt(what, method, 0.0, z["X"])
            if not isinstance(value, Tensor | float | int):
                raise SdeflowError(f"{what} gives {type(value).__name__}, expected a tensor or a number")
            shape = tuple(torch.as_tensor(value).shape)
            aligned = zip(reversed(shape), reversed(expected), strict=False)
            if len(shape) > len(expected) or any(n not in (1, m) for n, m in aligned):
                raise SdeflowError(
                    f"{what} gives shape {shape}, expected {expected} (replicas, paths, coordinates) or what "
                    "broadcasts to it; noise is diagonal"
                )

    def observe(self, t: float, z: State) -> dict[str, Tensor]:
        return {}

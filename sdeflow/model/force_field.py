"""What a system asks of its forces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from sdeflow.errors import SdeflowError, attempt, expect_shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sdeflow.model.model import Model, ParameterLayout
    from sdeflow.state import State


class ForceField(ABC):
    """Forces by block name, with a start and what is to be recorded beside them.

    definition   what a user wrote: a model, or a function
    layouts      how named parameters lie in a variable, by the name of its axis
    opposed      blocks of parameters that push particles one way and are pushed by them the other, with these
                 particles: no potential has such forces, and the two can swing around each other
    scale        D/b of a minibatch's b data, by which their sum stands for that of all; 1 of all data
    stored       whether some of the data are not in memory
    shared       whether other processes have a part in them
    about        in words, what forces are that are not a model's own; '' where there is no more to say
    warning      what to know of them before a run, '' for nothing
    timed        whether they depend on the time; a model's do not
    """

    opposed: Mapping[str, str] = MappingProxyType({})
    scale: float = 1.0
    stored: bool = False
    shared: bool = False
    about: str = ""
    warning: str = ""
    timed: bool = False

    @property
    @abstractmethod
    def definition(self) -> Any: ...

    @property
    @abstractmethod
    def layouts(self) -> Mapping[str, ParameterLayout]: ...

    @abstractmethod
    def to(self, dtype: torch.dtype, device: torch.device) -> ForceField:
        """The same forces on another device or in another precision."""

    @abstractmethod
    def minibatch(self, index: Tensor) -> ForceField:
        """The forces of a minibatch, data `index` [R, b]: X is [R, b, N, d], gradients of sums times D/b."""

    @abstractmethod
    def see(self, index: Tensor, uniform: Tensor | None = None, fetched: Sequence[Any] | None = None) -> None:
        """Changes the data of forces made by `minibatch`, in place.

        uniform   [R, b, transforms, ...] for those of `Model.at_access`
        fetched   what `fetch` gave for the index; None reads it now
        """

    def fetch(self, index: Tensor) -> Sequence[Any]:
        """Reads the data `index` [R, b] of those that are not in memory; in any thread."""
        return ()

    @abstractmethod
    def start(self, seed: int) -> State:
        """Positions at the start of one replica, in float64."""

    @abstractmethod
    def __call__(self, t: float, z: State, names: Sequence[str]) -> dict[str, Tensor]:
        """Forces on the blocks `names`."""

    def from_prior(self, z: State, xi: Tensor) -> Tensor:
        """Particles from the prior made of standard normals like them; N(0, I) unless a model has another."""
        return xi

    def check_prior(self, z: State) -> None:
        """Raises SdeflowError where `from_prior` is known not to be the model's."""
        return

    @abstractmethod
    def observe(self, z: State) -> dict[str, Tensor]:
        """Scalars to record, each [R]."""

    def over_data(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the field's own data, each [R], as means over all data."""
        return dict(means)

    @abstractmethod
    def check(self, z: State) -> None:
        """Tries what the user wrote once; raises SdeflowError for what does not fit."""


class ModelField(ForceField):
    """The forces of a model.

    n_data, n_particles   D, of a minibatch b, and N
    n_all                 the same of the data of all processes
    bf16                  whether the model takes its products in bfloat16 (`in_bf16`)
    """

    model: Model
    n_data: int
    n_particles: int
    bf16: bool = False

    @property
    def n_all(self) -> int:
        return self.n_data

    @abstractmethod
    def to(self, dtype: torch.dtype, device: torch.device) -> ModelField: ...

    @abstractmethod
    def minibatch(self, index: Tensor) -> ModelField: ...

    def in_bf16(self, on: bool) -> Self:
        """The same forces and losses with the model's products and convolutions in bfloat16, or not so.

        They come in the dtype of the state, in which they are added up and scaled. What else is observed is
        in full precision, and so are draws from a prior.
        """
        own = copy(self)
        own.bf16 = on
        return own

    @abstractmethod
    def part(self, data: slice) -> ModelField:
        """The forces of some of the data, as if there were no others."""

    @abstractmethod
    def means(self, z: State) -> dict[str, Tensor]:
        """Scalars to record that are means over data, the loss among them; each [R]."""

    @abstractmethod
    def others(self, z: State) -> dict[str, Tensor]:
        """Scalars to record that are functions of all data and particles at once, each [R]."""

    def observe(self, z: State) -> dict[str, Tensor]:
        return self.means(z) | self.others(z)

    @abstractmethod
    def observing(self, functions: Mapping[str, Callable[..., Any]]) -> ModelField:
        """The same forces with functions of (theta, x, y) as further observables of the model, by name."""

    @property
    def definition(self) -> Model:
        return self.model

    @property
    def transforms(self) -> tuple[Any, ...]:
        """The functions of `Model.at_access`, in order."""
        given = self.model.at_access
        return () if given is None else tuple(given) if isinstance(given, tuple | list) else (given,)


class FunctionField(ForceField):
    """A function forces(t, z, names) as forces, without data, parameters' names or a start of its own.

    positions   names of the positions in the state, by block
    """

    def __init__(
        self, function: Callable[[float, State, Sequence[str]], dict[str, Tensor]], positions: dict[str, str]
    ) -> None:
        self._function, self._positions = function, positions

    @property
    def definition(self) -> Any:
        return self._function

    @property
    def layouts(self) -> Mapping[str, ParameterLayout]:
        return {}

    def to(self, dtype: torch.dtype, device: torch.device) -> FunctionField:
        from sdeflow.model.model import moved

        return FunctionField(moved(self._function, dtype, device), self._positions)

    def minibatch(self, index: Tensor) -> ForceField:
        raise SdeflowError("minibatches need a model's forces, and this system's are a function")

    def see(self, index: Tensor, uniform: Tensor | None = None, fetched: Sequence[Any] | None = None) -> None:
        raise SdeflowError("minibatches need a model's forces, and this system's are a function")

    def start(self, seed: int) -> State:
        raise SdeflowError("this system has no start: pass start={position: tensor} to BlockSystem")

    def __call__(self, t: float, z: State, names: Sequence[str]) -> dict[str, Tensor]:
        return self._function(t, z, names)

    def observe(self, z: State) -> dict[str, Tensor]:
        return {}

    def check(self, z: State) -> None:
        forces: Any = attempt("the function of forces", self, 0.0, z, list(self._positions))
        for name, position in self._positions.items():
            shape = tuple(z[position].shape)
            expect_shape(f"the force on block '{name}'", forces.get(name), shape, "like its position")

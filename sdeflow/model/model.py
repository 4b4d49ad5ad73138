"""What a user writes: a latent-variable model, as its log-joint."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import FunctionType, MappingProxyType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from sdeflow.errors import SdeflowError, attempt, expect_shape
from sdeflow.model.rows import Rows

Parameters = Mapping[str, Tensor]
Data = Any  # a tensor, or Rows, or a tuple or dict of them; each has the data along its first axis


class Model(ABC):
    """A latent-variable model: l_i(theta, x) = log p_theta(x, y_i), with one latent x_i in R^d a datum.

    `data` is a tensor (or a tuple or dict of tensors) whose first axis runs over the D latents, as
    `sdeflow.data.read` makes them, or what it leaves on the disk. Where all observations share one latent,
    D = 1: give the data a first axis of length 1.
    `latent_shape` is the shape of one x.

    Analytic scores are optional and replace automatic differentiation where they are defined:

        score_x(theta, x, y) -> [B, N, *latent_shape]         grad_x l_i(theta, x_ij)
        score_theta(theta, x, y) -> {name: like theta[name]}  sum_ij grad_theta l_i(theta, x_ij)

    held_out: data of the same kind that the parameters are not to see, for a loss on them
    (`sdeflow.simulation.held_out`); None where there are none.

    at_access: what a step by minibatches sees of its data, at_access(y, u) -> like y, made of data y [b, ...]
    that are one tensor and of u like it, uniform on [0, 1): dequantisation, say, or flips. Or several such,
    which follow one another, each with numbers of its own. The numbers of a datum depend on the seed and the
    epoch, and not on the batch. What is recorded is of the data as they are, and of `held_out`. None where
    steps see them too.

    A model may say how its data come about, for `sdeflow sample`, and one of images what they look like:

        image_shape                                           channels, height, width
        decode(theta, x) -> [n, pixels]                       images in [-1, 1] of x [n, *latent_shape]
        sample_prior(theta, n, generator) -> [n, *latent_shape]   latents from p_theta
        sample_data(theta, x, generator) -> [n, ...]          observations of latents x [n, *latent_shape]
        draw_prior(theta, xi) -> like xi                      latents from p_theta made of standard normals
                                                              xi [..., *latent_shape]; without it N(0, I)
        log_prior(theta, x) -> [n]                            log p_theta(x) of x [n, *latent_shape]
        real_images(split) -> [n, *image_shape]               all images of 'train' or 'test', as bytes or in
                                                              [-1, 1], where data and held_out are not all

    `sdeflow evaluate` needs log_prior and sample_prior, of one law, which it checks, for the evidence of
    data; with sample_data it tells how far that is to be trusted, and with decode how well the model
    reconstructs; with image_shape too it compares images that the model makes with real ones.

    joint_maximum: whether log_joint has a maximum over theta and x together. It has none where a weight can
    grow while the latents that it multiplies shrink; `sdeflow stability` then needs the end of a run.
    """

    data: Data
    latent_shape: tuple[int, ...]
    held_out: Data | None = None
    joint_maximum: bool = True

    score_x: Any = None
    score_theta: Any = None
    at_access: Any = None

    decode: Any = None
    sample_prior: Any = None
    sample_data: Any = None
    draw_prior: Any = None
    log_prior: Any = None
    real_images: Any = None
    image_shape: tuple[int, int, int] | None = None

    _functions: Mapping[str, Callable[..., Any]] = MappingProxyType({})

    @abstractmethod
    def log_joint(self, theta: Parameters, x: Tensor, y: Data) -> Tensor:
        """l_i(theta, x_ij) for a batch: x [B, N, *latent_shape], y `data` or a part of it; gives [B, N].

        Called for one replica, or under torch.func.vmap for several small ones; entry (i, j) may
        depend on theta, x[i, j] and y[i] only.
        """

    @abstractmethod
    def init_theta(self, generator: torch.Generator) -> Parameters | nn.Module:
        """The parameters at the start, as named tensors or as a module whose parameters they are.

        torch's global generator is seeded too while this runs, for the sake of torch.nn's initialisers.
        """

    def init_x(self, generator: torch.Generator, data: int, particles: int) -> Tensor:
        """Particles at the start, [D, N, *latent_shape]; standard normal unless overridden."""
        return torch.randn(data, particles, *self.latent_shape, generator=generator, dtype=torch.float64)

    def observables(self, theta: Parameters, x: Tensor, y: Data) -> dict[str, Tensor]:
        """More scalars to record beside the loss, by name; evaluated where a snapshot is taken."""
        return {}

    def observed(self, theta: Parameters, x: Tensor, y: Data) -> dict[str, Tensor]:
        """Its observables, and those that it was given as functions (`observing`)."""
        found = self.observables(theta, x, y)
        if not self._functions:
            return found
        found = dict(found)
        for name, function in self._functions.items():
            if name in found:
                raise SdeflowError(
                    f"{type(self).__name__} has an observable '{name}' of its own: choose another name"
                )
            value = torch.as_tensor(attempt(what := f"observable '{name}'", function, theta, x, y))
            expect_shape(what, value, (), "a scalar")
            found[name] = value
        return found

    def with_data(self, data: Data, held_out: Data | None) -> Self:
        """A copy that learns from other data of the same kind.

        A model that keeps numbers made of its data, such as an MLE, makes them anew here.
        """
        own = copy.copy(self)
        own.data, own.held_out = data, held_out
        return own

    def to(self, dtype: torch.dtype, device: torch.device) -> Self:
        """A copy with every tensor and module attribute on `device`, its floating-point ones as `dtype`."""
        return moved(self, dtype, device)


def observes(model: Model) -> bool:
    """Whether a model has observables of its own, or of a model within it, or was given some."""
    plain = getattr(model, "plain", None)
    if isinstance(plain, Model):
        return observes(plain)
    return bool(model._functions) or type(model).observables is not Model.observables


def observing(model: Model, functions: Mapping[str, Callable[..., Any]]) -> Model:
    """The model with functions of (theta, x, y) as further observables; one around another with that so."""
    own: Any = copy.copy(model)
    if isinstance(plain := getattr(model, "plain", None), Model):
        own.plain = observing(plain, functions)
    else:
        own._functions = dict(functions)
    return own


T = TypeVar("T")


def moved(thing: T, dtype: torch.dtype, device: torch.device) -> T:
    """A copy of an object with every tensor and module attribute on `device`, as `dtype` where floating."""
    if not hasattr(thing, "__dict__") or isinstance(thing, nn.Module | type | FunctionType):
        return _moved(thing, dtype, device)
    result = copy.copy(thing)
    for name, value in vars(thing).items():
        setattr(result, name, _moved(value, dtype, device))
    return result


def _moved(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, Rows | Model):
        return value.to(dtype, device)
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).to(device, dtype)
    if isinstance(value, tuple | list):
        return type(value)(_moved(v, dtype, device) for v in value)
    if isinstance(value, dict):
        return {k: _moved(v, dtype, device) for k, v in value.items()}
    return value


def data_size(model: Model) -> int:
    """D, the length of the first axis that all tensors of the data share; SdeflowError for other data."""
    data = model.data
    parts = data.values() if isinstance(data, dict) else data if isinstance(data, tuple | list) else [data]
    for part in parts:
        if isinstance(part, Tensor) and part.is_meta:
            raise SdeflowError(
                f"{type(model).__name__}.data holds no numbers: a tensor of it is on device 'meta'"
            )
        numbers = isinstance(part, list | int | float) or hasattr(part, "__array__")
        if numbers and not isinstance(part, Tensor):
            what = f"{type(model).__name__}.data holds {type(part).__name__}"
            raise SdeflowError(f"{what}, and a tensor was expected: give it sdeflow.data.read(data)")
    held = (part.ndim > 0 if isinstance(part, Tensor) else isinstance(part, Rows) for part in parts)
    sizes = {len(part) if right else None for part, right in zip(parts, held, strict=True)}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        raise SdeflowError(
            f"{type(model).__name__}.data must be a tensor, or a tuple or dict of tensors, with one entry a "
            f"datum along the first axis; given {type(data).__name__} of lengths {sorted(map(str, sizes))}"
        )
    (size,) = sizes
    assert size is not None
    return size


class ParameterLayout:
    """How named parameters lie in one flat vector of length p."""

    def __init__(self, theta: Parameters) -> None:
        self.shapes = {name: tuple(value.shape) for name, value in theta.items()}
        self.sizes = [prod(shape) for shape in self.shapes.values()]
        self.size = sum(self.sizes)

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> ParameterLayout:
        """The layout of parameters that are not at hand, by their shapes."""
        return cls({name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()})

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
        return ParameterLayout.of(chosen)

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

"""Forces of a latent-variable model on (theta, X): the one place where gradients are taken and scaled.

    force on theta   -grad_theta E = (1/N) sum_i sum_j grad_theta l_i(theta, x_ij)
    force on x_ij    grad_x l_i(theta, x_ij)

theta is one flat vector per replica; the model sees named views of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from math import log, pi, prod
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sdeflow.errors import SdeflowError, attempt, expect_shape, numbers
from sdeflow.model.check import check_model
from sdeflow.model.force_field import ModelField
from sdeflow.model.model import Data, Model, ParameterLayout, Parameters, data_size, observing
from sdeflow.model.precision import bfloat16_products
from sdeflow.model.rows import Rows, stored
from sdeflow.seeds import derive_key, generator
from sdeflow.state import State

VMAP_BELOW = 50_000
"""Latent coordinates and parameters of one replica up to which replicas are batched by vmap.

Measured on two cores, forward and backward: vmap is 6 times faster than a loop for 64 replicas of 10^4
coordinates, and 3 times slower for 8 replicas of a decoder with 1.4 * 10^5 coordinates.
"""


class ModelForces(ModelField):
    """Forces, start and observables of a model with N particles a datum.

    Positions are theta [R, p] and X [R, D, N, d], with d the size of `latent_shape`. Raises
    SdeflowError where the model does not give what it promises.
    """

    def __init__(self, model: Model, particles: int, *, _layout: ParameterLayout | None = None) -> None:
        if not isinstance(model, Model):
            raise SdeflowError(
                f"a model derived from sdeflow.Model was expected, given {type(model).__name__}"
            )
        name = type(model).__name__
        for attribute in ("data", "latent_shape"):
            if not hasattr(model, attribute):
                raise SdeflowError(f"{name} has no {attribute}: set it in the class or in __init__")
        latent = model.latent_shape
        shape = numbers(latent, Integral)
        if shape is None or not all(n > 0 for n in shape):
            raise SdeflowError(f"{name}.latent_shape must be a tuple of positive integers, given {latent!r}")
        self.model = model
        self.n_data, self.n_particles = data_size(model), particles
        self.latent = prod(shape)
        self._stored = stored(model.data)
        self.stored = bool(self._stored)
        self.parameters = _layout or ParameterLayout(self._named_theta(seed=0))
        coordinates = self.n_data * particles * self.latent + self.parameters.size
        self._vmap = coordinates < VMAP_BELOW
        self._batch: Data = None  # of a minibatch its data, [R, b, ...]; else all replicas share the model's

    @property
    def layouts(self) -> dict[str, ParameterLayout]:
        return {"param": self.parameters}

    def of_model(self, model: Model) -> ModelForces:
        """The forces of a model with the same parameters: of other data, or in another precision."""
        return ModelForces(model, self.n_particles, _layout=self.parameters).in_bf16(self.bf16)

    def to(self, dtype: torch.dtype, device: torch.device) -> ModelForces:
        return self.of_model(self.model.to(dtype, device))

    def observing(self, functions: Mapping[str, Callable[..., Any]]) -> ModelForces:
        part = copy(self)
        part.model = observing(self.model, functions)
        return part

    def part(self, data: slice) -> ModelForces:
        model = copy(self.model)
        model.data = tree_map(lambda v: v.select(data) if isinstance(v, Rows) else v[data], model.data)
        return self.of_model(model)

    def minibatch(self, index: Tensor) -> ModelForces:
        part = copy(self)
        part.see(index)
        part.n_data = index.shape[1]
        part.scale = self.scale * self.n_data / part.n_data
        return part

    def fetch(self, index: Tensor) -> Sequence[Data]:
        return [rows.fetch(index) for rows in self._stored]

    def see(
        self, index: Tensor, uniform: Tensor | None = None, fetched: Sequence[Data] | None = None
    ) -> None:
        if self.stored:
            read = iter(self.fetch(index) if fetched is None else fetched)
            self._batch = tree_map(
                lambda values: values.place(next(read)) if isinstance(values, Rows) else values[index],
                self.model.data,
            )
        else:
            self._batch = tree_map(lambda values: values[index], self.model.data)
        if uniform is not None:
            y, u = self._batch.flatten(0, 1), uniform.flatten(0, 1)
            for i, transform in enumerate(self.transforms):
                y = transform(y, u[:, i]).view_as(y)
            self._batch = y.view_as(self._batch)

    def start(self, seed: int) -> State:
        """Positions at the start of one replica, theta [p] and X [D, N, d], in float64."""
        what = f"{type(self.model).__name__}.init_x"
        x = attempt(what, self.model.init_x, generator(seed, "start", "x"), self.n_data, self.n_particles)
        expect_shape(
            what,
            x,
            (self.n_data, self.n_particles, *self.model.latent_shape),
            "data, particles, the latent's axes",
        )
        return {
            "theta": self.parameters.flatten(self._named_theta(seed)).double(),
            "X": x.reshape(self.n_data, self.n_particles, self.latent).double(),
        }

    def __call__(self, t: float, z: State, names: Sequence[str]) -> dict[str, Tensor]:
        """Forces on the blocks `names`, out of 'theta' and 'x', in one backward pass at most."""
        forces: dict[str, Tensor] = {}
        model, per_particle = self.model, self.scale / self.n_particles
        if "x" in names and model.score_x is not None:
            forces["x"] = self._each(self._score_x, z).view_as(z["X"]).to(z["X"].dtype)
        if "theta" in names and model.score_theta is not None:
            forces["theta"] = self._each(self._score_theta, z).to(z["theta"].dtype) * per_particle
        if rest := [name for name in names if name not in forces]:
            for name, gradient in zip(rest, self._gradients(z, rest), strict=True):
                forces[name] = gradient * per_particle if name == "theta" else gradient
        return forces

    def loss(self, z: State) -> Tensor:
        """Mean over data and particles of -l_i(theta, x_ij), [R]."""
        return -self._each(self._total, z) / (self.n_data * self.n_particles)

    def means(self, z: State) -> dict[str, Tensor]:
        """The loss."""
        return {"loss": self.loss(z)}

    def others(self, z: State) -> dict[str, Tensor]:
        """The model's own observables."""
        own = [
            self._own(self.parameters.views(theta), self._shaped(x), self._data_of(r))
            for r, (theta, x) in enumerate(zip(z["theta"], z["X"], strict=True))
        ]
        return {name: torch.stack([o[name] for o in own]) for name in own[0]}

    def check(self, z: State) -> None:
        """Tries the model's methods once (`check_model`), and whether its replicas can be batched."""
        theta, x = z["theta"][0], z["X"][0]
        check_model(self.model, self.parameters, theta, self._shaped(x), self._data_of(0))
        if self.bf16:  # which not all operations take
            one = {"theta": z["theta"][:1], "X": z["X"][:1]}
            attempt(f"{type(self.model).__name__} in precision 'bf16'", self, 0.0, one, ("theta", "x"))
        if len(z["theta"]) > 1 and self._vmap:
            try:
                self._each(self._total, z)
                self(0.0, z, ("theta", "x"))
            except RuntimeError:  # a model that looks at values, say: its replicas take turns
                self._vmap = False

    def from_prior(self, z: State, xi: Tensor) -> Tensor:
        return xi if self.model.draw_prior is None else self._each(self._draw_prior, z | {"X": xi})

    def check_prior(self, z: State) -> None:
        """Where a model has log_prior and no draw_prior, that its prior is N(0, I) at the particles."""
        model, name = self.model, type(self.model).__name__
        theta, x = self.parameters.views(z["theta"][0]), z["X"][0].reshape(-1, self.latent)
        if model.draw_prior is not None:
            drawn = attempt(f"{name}.draw_prior", model.draw_prior, theta, self._shaped(z["X"][0]))
            expect_shape(f"{name}.draw_prior", drawn, self._shaped(z["X"][0]).shape, "like its normals")
        elif model.log_prior is not None:
            given = model.log_prior(theta, x.view(-1, *model.latent_shape))
            normal = -(x.square().sum(-1) + self.latent * log(2 * pi)) / 2
            if not torch.allclose(given, normal, rtol=1e-3, atol=1e-3):
                raise SdeflowError(
                    f"chains are to begin at draws of the prior, and that of {name} is not N(0, I): give the "
                    "model draw_prior(theta, xi), which makes draws of standard normals"
                )

    def _draw_prior(self, theta: Tensor, xi: Tensor, y: Data) -> Tensor:
        return self.model.draw_prior(self.parameters.views(theta), self._shaped(xi)).view_as(xi)

    def _own(self, theta: Parameters, x: Tensor, y: Data) -> dict[str, Tensor]:
        own = self.model.observed(theta, x, y)
        return {name: torch.as_tensor(value) for name, value in own.items()}

    def _named_theta(self, seed: int) -> dict[str, Tensor]:
        what = f"{type(self.model).__name__}.init_theta"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_key(seed, "start", "modules") & 0x7FFFFFFFFFFFFFFF)
            theta = attempt(what, self.model.init_theta, generator(seed, "start", "theta"))
        if isinstance(theta, nn.Module):
            theta = dict(theta.named_parameters())
        if not isinstance(theta, Mapping) or not theta:
            raise SdeflowError(
                f"{what} gives {type(theta).__name__}, expected a mapping from names to tensors, or a module "
                "with parameters"
            )
        for name, value in theta.items():
            if not isinstance(value, Tensor) or not value.is_floating_point():
                given = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise SdeflowError(f"{what} gives {given} for '{name}', expected a tensor of real numbers")
        return {name: value.detach() for name, value in theta.items()}

    def _shaped(self, x: Tensor) -> Tensor:
        latent = self.model.latent_shape
        return x if len(latent) == 1 else x.view((*x.shape[:-1], *latent))

    def _data_of(self, replica: int) -> Data:
        return (
            self.model.data if self._batch is None else tree_map(lambda values: values[replica], self._batch)
        )

    def _total(self, theta: Tensor, x: Tensor, y: Data) -> Tensor:
        """sum_ij l_i of one replica."""
        values = self._asked(self.model.log_joint, theta, x, y)
        return (values.to(x.dtype) if self.bf16 else values).sum()

    def _score_x(self, theta: Tensor, x: Tensor, y: Data) -> Tensor:
        return self._asked(self.model.score_x, theta, x, y)

    def _score_theta(self, theta: Tensor, x: Tensor, y: Data) -> Tensor:
        scores = self._asked(self.model.score_theta, theta, x, y)
        parts = [scores[name].reshape(-1) for name in self.parameters.shapes]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _asked(self, method: Callable[..., Any], theta: Tensor, x: Tensor, y: Data) -> Any:
        """What a method of the model gives of one replica, in the precision of the forces."""
        arguments = self.parameters.views(theta), self._shaped(x), y
        if not self.bf16:
            return method(*arguments)
        with bfloat16_products(x):
            return method(*arguments)

    def _each(self, one: Callable[[Tensor, Tensor, Data], Tensor], z: State, first: int = 0) -> Tensor:
        """`one(theta, x, y)` of every replica from `first` on; a lone one never goes through vmap."""
        theta, x = z["theta"], z["X"]
        if theta.shape[0] == 1:
            return one(theta.squeeze(0), x.squeeze(0), self._data_of(first)).unsqueeze(0)
        if self._vmap:
            if self._batch is None:
                return torch.func.vmap(one, in_dims=(0, 0, None))(theta, x, self.model.data)
            return torch.func.vmap(one)(theta, x, self._batch)
        return torch.stack([one(theta[r], x[r], self._data_of(r)) for r in range(len(theta))])

    def _gradients(self, z: State, names: Sequence[str]) -> tuple[Tensor, ...]:
        """Gradients of sum_ij l_i in theta or X or both, each like its position; replicas do not mix."""
        replicas = len(z["theta"])
        if self._vmap or replicas == 1:
            return self._backward(z, names)
        each = [
            self._backward({k: z[k][r : r + 1] for k in ("theta", "X")}, names, first=r)
            for r in range(replicas)
        ]
        return tuple(torch.cat(parts) for parts in zip(*each, strict=True))

    def _backward(self, z: State, names: Sequence[str], first: int = 0) -> tuple[Tensor, ...]:
        """One backward pass; where torch tracks gradients the result can be differentiated in its turn."""
        position = {"theta": z["theta"], "x": z["X"]}

        def total(*leaves: Tensor) -> Tensor:
            at = position | dict(zip(names, leaves, strict=True))
            return self._each(self._total, {"theta": at["theta"], "X": at["x"]}, first).sum()

        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return torch.func.grad(total, tuple(range(len(names))))(*(position[name] for name in names))
        leaves = [position[name].detach().requires_grad_() for name in names]
        with torch.enable_grad():
            value = total(*leaves)
        return torch.autograd.grad(value, leaves)


def held_out_forces(forces: ModelField | None) -> ModelForces:
    """The forces on particles of a model's held-out data; raises SdeflowError where it has none."""
    if forces is not None and not isinstance(forces, ModelForces):
        raise SdeflowError(
            "a loss on held-out data needs a normalised log-joint, which an energy without log Z(alpha) does "
            "not give: remove [evaluate], or with a fixed prior take a system such as ipla or kiplmc"
        )
    if forces is None:
        raise SdeflowError("a loss on held-out data needs a system made of a model")
    if forces.model.held_out is None:
        raise SdeflowError(
            f"a loss on held-out data was asked for, and {type(forces.model).__name__} has none: give the "
            "model its 'held_out' data, for images with model.held_out = how many"
        )
    _refuse_other_kind(forces.model)
    model = copy(forces.model)
    model.data = model.held_out
    return forces.of_model(model)


def _refuse_other_kind(model: Model) -> None:
    """Raises SdeflowError where held-out data have another structure, shape or dtype than the data."""

    def kind(data: Data) -> str:
        if isinstance(data, Rows):
            return kind(data.meta)
        if isinstance(data, Mapping):
            return ", ".join(f"{name}: {kind(part)}" for name, part in data.items())
        if isinstance(data, tuple | list):
            return f"({', '.join(map(kind, data))})"
        if not isinstance(data, Tensor) or not data.ndim:
            return type(data).__name__
        numbers = "real" if data.is_floating_point() else str(data.dtype).removeprefix("torch.")
        return f"{numbers} [{', '.join(['D', *map(str, data.shape[1:])])}]"

    given, expected = kind(model.held_out), kind(model.data)
    if given != expected:
        raise SdeflowError(
            f"{type(model).__name__}.held_out must be like the data, {expected}; given {given}"
        )

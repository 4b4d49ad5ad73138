"""Forces of a latent energy-based model on (alpha, beta, X, Z): those of two models, added up.

With D data, N posterior particles x_ij each and P prior particles z_p, in the scales of `ModelForces`:

    force on alpha   -(1/N) sum_ij grad_alpha U_alpha(x_ij) + (D/P) sum_p grad_alpha U_alpha(z_p)
    force on beta     (1/N) sum_ij grad_beta log p_beta(y_i | x_ij)
    force on x_ij     grad_x [ log p_beta(y_i | x) - U_alpha(x) ]
    force on z_p     -grad_z U_alpha(z)

The second sum stands for -D grad_alpha log Z(alpha). No potential has these forces: z_p feels alpha, and
alpha feels z_p with the other sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Self, cast

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError, attempt, expect_shape
from sdeflow.model.energy import ALPHA, BETA, EnergyModel, Prior
from sdeflow.model.force_field import ModelField
from sdeflow.model.forces import ModelForces
from sdeflow.model.model import ParameterLayout
from sdeflow.seeds import generator
from sdeflow.state import State


class EnergyForces(ModelField):
    """Forces, start and observables of an energy model.

    Positions are alpha [R, a], beta [R, b], X [R, D, N, d] and Z [R, P, d]. Without parameters in the energy
    there is no alpha and no Z, and without any in the likelihood no beta.
    Raises SdeflowError where the model does not give what it promises.
    """

    def __init__(
        self,
        model: EnergyModel,
        particles: int,
        prior_particles: int,
        *,
        _layout: ParameterLayout | None = None,
    ) -> None:
        if not isinstance(model, EnergyModel):
            raise SdeflowError(
                "a model derived from sdeflow.EnergyModel was expected, given "
                f"{type(model).__name__}: this system learns the energy of a prior, which the key "
                "model.energy_prior, or EnergyPrior in Python, puts in place of N(0, I)"
            )
        self.posterior = ModelForces(model, particles, _layout=_layout)
        whole = self.posterior.parameters
        parts = {"alpha": whole.part(ALPHA), "beta": whole.part(BETA)}
        self.parameters = {name: layout for name, layout in parts.items() if layout.size}
        self.prior: ModelForces | None = None
        if "alpha" in self.parameters:
            self.prior = ModelForces(Prior(model), prior_particles, _layout=self.parameters["alpha"])
            self.opposed = {"alpha": "z"}
        self.model: EnergyModel = model
        self.n_data, self.n_particles = self.posterior.n_data, particles
        self.n_prior_particles = prior_particles
        self._all_data, self.stored = self.n_data, self.posterior.stored

    @property
    def layouts(self) -> dict[str, ParameterLayout]:
        return {f"{name}_param": layout for name, layout in self.parameters.items()}

    def to(self, dtype: torch.dtype, device: torch.device) -> EnergyForces:
        layout = self.posterior.parameters
        model = self.model.to(dtype, device)
        own = EnergyForces(model, self.n_particles, self.n_prior_particles, _layout=layout)
        return own.in_bf16(self.bf16)

    def in_bf16(self, on: bool) -> Self:
        own = super().in_bf16(on)
        own.posterior = self.posterior.in_bf16(on)
        own.prior = None if self.prior is None else self.prior.in_bf16(on)
        return own

    def observing(self, functions: Mapping[str, Callable[..., Any]]) -> EnergyForces:
        part = copy(self)
        part.posterior = self.posterior.observing(functions)
        part.model = cast(EnergyModel, part.posterior.model)
        return part

    def part(self, data: slice) -> EnergyForces:
        part = copy(self)
        part.posterior = self.posterior.part(data)
        part.model = cast(EnergyModel, part.posterior.model)
        part.n_data = part._all_data = part.posterior.n_data
        return part

    def minibatch(self, index: Tensor) -> EnergyForces:
        part = copy(self)
        part.posterior = self.posterior.minibatch(index)
        part.n_data, part.scale = part.posterior.n_data, part.posterior.scale
        return part

    def fetch(self, index: Tensor) -> Sequence[Any]:
        return self.posterior.fetch(index)

    def see(self, index: Tensor, uniform: Tensor | None = None, fetched: Sequence[Any] | None = None) -> None:
        self.posterior.see(index, uniform, fetched)

    def start(self, seed: int) -> State:
        joint = self.posterior.start(seed)
        start = self._split(joint["theta"]) | {"X": joint["X"]}
        if self.prior is not None:
            what, count = f"{type(self.model).__name__}.init_prior", self.prior.n_particles
            z = attempt(what, self.model.init_prior, generator(seed, "start", "z"), count)
            expect_shape(what, z, (count, *self.model.latent_shape), "particles, the latent's axes")
            start["Z"] = z.reshape(count, self.posterior.latent).double()
        return start

    def __call__(self, t: float, z: State, names: Sequence[str]) -> dict[str, Tensor]:
        """Forces on the blocks `names`, out of 'alpha', 'beta', 'x' and 'z'.

        At most one backward pass over the posterior particles and one over the prior particles.
        """
        forces: dict[str, Tensor] = {}
        theta = ["theta"] if any(name in names for name in self.parameters) else []
        if wanted := [*theta, *(name for name in names if name == "x")]:
            forces |= self.posterior(t, self._joint(z), wanted)
        if theta:
            forces |= self._split(forces.pop("theta"))
        if self.prior is not None and ("alpha" in names or "z" in names):
            wanted = [of for of, name in (("theta", "alpha"), ("x", "z")) if name in names]
            of_prior = self.prior(t, self._of_prior(z), wanted)
            if "alpha" in names:
                forces["alpha"] = forces["alpha"] - self._all_data * of_prior["theta"]
            if "z" in names:
                forces["z"] = of_prior["x"].squeeze(1)
        return {name: forces[name] for name in names}

    def means(self, z: State) -> dict[str, Tensor]:
        """The loss without log Z(alpha), and the mean of U over X.

        Where the likelihood is largest its gradient in alpha is that of the mean over Z, in expectation.
        """
        values = self.posterior.means(self._joint(z))
        return values if self.prior is None else values | {"energy_x": self.mean_energy(z["alpha"], z["X"])}

    def others(self, z: State) -> dict[str, Tensor]:
        """The model's own observables, and the mean of U over Z."""
        values = self.posterior.others(self._joint(z))
        return values if self.prior is None else values | {"energy_z": self.mean_energy(z["alpha"], z["Z"])}

    def mean_energy(self, alpha: Tensor, x: Tensor) -> Tensor:
        """Mean over latents of U_alpha(x), [R] of alpha [R, a] and x [R, ..., d]."""
        latents, alpha_of = x.reshape(len(x), -1, *self.model.latent_shape), self.parameters["alpha"].views
        pairs = zip(alpha, latents, strict=True)
        return torch.stack([self.model.energy(alpha_of(a), one).mean() for a, one in pairs])

    def check(self, z: State) -> None:
        if self.prior is not None:
            what, x = f"{type(self.model).__name__}.energy", z["Z"][0].view(-1, *self.model.latent_shape)
            energy = attempt(what, self.model.energy, self.parameters["alpha"].views(z["alpha"][0]), x)
            expect_shape(what, energy, (len(x),), "one value a latent, summed over its axes")
            self.prior.check(self._of_prior(z))
        self.posterior.check(self._joint(z))

    def _joint(self, z: State) -> State:
        """Where the posterior's model is evaluated: theta = (alpha, beta), X."""
        parts = [z[name] for name in self.parameters]
        return {"theta": parts[0] if len(parts) == 1 else torch.cat(parts, -1), "X": z["X"]}

    def _of_prior(self, z: State) -> State:
        """Where the prior's model is evaluated: its only latent has the particles Z."""
        return {"theta": z["alpha"], "X": z["Z"][:, None]}

    def _split(self, theta: Tensor) -> dict[str, Tensor]:
        sizes = [layout.size for layout in self.parameters.values()]
        return dict(zip(self.parameters, theta.split(sizes, -1), strict=True))


def refuse_energy(forces: ModelForces, system: str) -> None:
    """Raises SdeflowError for a model whose prior is an energy to be learned, in a system that cannot."""
    learned = any(name.startswith(ALPHA) for name in forces.parameters.shapes)
    if isinstance(forces.model, EnergyModel) and learned:
        raise SdeflowError(
            f"system '{system}' cannot learn the energy of {type(forces.model).__name__}'s prior, whose "
            "constant Z(alpha) is not known: take ebipla or kinetic_ebipla, or a fixed prior"
        )

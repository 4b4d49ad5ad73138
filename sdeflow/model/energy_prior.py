"""A neural energy as a prior, and any model whose prior N(0, I) it takes the place of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log, pi, prod
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdeflow.errors import SdeflowError, attempt
from sdeflow.model.energy import ALPHA, BETA, EnergyModel, named, part
from sdeflow.model.model import Data, Model, Parameters


class NeuralEnergy(EnergyModel):
    """U_alpha(x) = |x|^2/2 + d log(2 pi)/2 - f_alpha(x), with f a multilayer perceptron with SiLUs.

    f has no constant at its end, which no energy needs. Without hidden layers it is 0: the prior is N(0, I),
    and has nothing to learn.

    hidden   widths of f's hidden layers
    gain     factor on f's first layer at its start: the larger, the finer its features

    Raises SdeflowError for what is out of range. Source: Pang et al. 2020, arXiv:2006.08205.
    """

    def __init__(self, latent_shape: tuple[int, ...], hidden: Sequence[int], gain: float) -> None:
        if min(hidden, default=1) < 1 or not gain > 0:
            raise SdeflowError(
                "an energy's hidden layers must have a width of at least 1, and its gain be positive; given "
                f"{list(hidden)} and {gain}"
            )
        self.latent_shape, self.gain = latent_shape, gain
        self._widths = [prod(latent_shape), *hidden, 1] if hidden else []
        self._normal_constant = prod(latent_shape) * log(2 * pi) / 2
        with torch.random.fork_rng(devices=[]):
            self.f = self._new_f()  # its structure counts; the values come with alpha

    def _new_f(self) -> nn.Sequential:
        network = silu_perceptron(self._widths, constant=False)
        with torch.no_grad():
            for parameter in network[:1].parameters():
                parameter.mul_(self.gain)
        return network

    def energy(self, alpha: Parameters, x: Tensor) -> Tensor:
        x = x.flatten(1)
        gaussian = self._minus_log_normal(x)
        return gaussian - functional_call(self.f, dict(alpha), (x,)).squeeze(-1) if alpha else gaussian

    def _minus_log_normal(self, x: Tensor) -> Tensor:
        """-log N(x; 0, I) over the last axis, which has all of a latent."""
        return x.square().sum(-1) / 2 + self._normal_constant

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        """n latents [n, *latent_shape] from N(0, I): the prior where f is 0."""
        return torch.randn(n, *self.latent_shape, generator=generator)

    def init_alpha(self, generator: torch.Generator) -> Parameters | nn.Module:
        return self._new_f() if self._widths else {}


class EnergyPrior(NeuralEnergy):
    """A model under a learned prior: p_beta(y_i | x) is the model's, U_alpha a neural energy.

    The prior of the model, which is called plain, must be N(0, I), by its log_prior:

        log p_beta(y_i | x) = l_i(beta, x) - log N(x; 0, I)

    beta are the plain model's parameters, which start as they do without an energy, and so do the particles.

    plain    the model

    Raises SdeflowError for a plain model whose prior is learned, is not N(0, I), or is not stated.
    Source: Pang et al. 2020, arXiv:2006.08205; of its training here: Marks, Wang, Akyildiz 2025,
    arXiv:2510.12311.
    """

    def __init__(self, plain: Model, hidden: Sequence[int] = (64, 64), gain: float = 1.0) -> None:
        super().__init__(plain.latent_shape, hidden, gain)
        self._expect_standard_normal(plain)
        self.plain, self.data, self.held_out = plain, plain.data, plain.held_out
        self.image_shape, self.joint_maximum = plain.image_shape, plain.joint_maximum
        self._pass_on()

    def _expect_standard_normal(self, plain: Model) -> None:
        name, energy = type(plain).__name__, isinstance(plain, EnergyModel)
        if energy or plain.log_prior is None:
            lacks = "is an energy already" if energy else "is not stated by a log_prior"
            raise SdeflowError(f"an energy takes the place of the prior N(0, I), and that of {name} {lacks}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            theta = named(attempt(f"{name}.init_theta", plain.init_theta, torch.Generator().manual_seed(0)))
        theta = {n: v.detach().requires_grad_(v.is_floating_point()) for n, v in theta.items()}
        x = torch.linspace(-3, 3, 8 * prod(plain.latent_shape)).view(8, *plain.latent_shape)
        found = attempt(f"{name}.log_prior", plain.log_prior, theta, x)
        if found.requires_grad or not torch.allclose(
            found, -self._minus_log_normal(x.flatten(1)).to(found), rtol=1e-4, atol=1e-4
        ):
            what = "is learned" if found.requires_grad else "is another"
            raise SdeflowError(
                f"an energy takes the place of the prior N(0, I), and that of {name} {what}: leave it out "
                "(of images by model.pseudo_points = 0), or the energy"
            )

    def _pass_on(self) -> None:
        """What the plain model can do besides, as far as it can."""

        def of_beta(method: Any) -> Callable[..., Any] | None:
            return method and (lambda theta, *rest: method(part(theta, BETA), *rest))

        self.decode, self.sample_data = of_beta(self.plain.decode), of_beta(self.plain.sample_data)
        self.real_images, self.at_access = self.plain.real_images, self.plain.at_access

    def to(self, dtype: torch.dtype, device: torch.device) -> Self:
        own = super().to(dtype, device)
        own.plain = self.plain.to(dtype, device)
        own._pass_on()
        return own

    def log_likelihood(self, beta: Parameters, x: Tensor, y: Data) -> Tensor:
        return self.plain.log_joint(beta, x, y) + self._minus_log_normal(x.flatten(2))

    def init_theta(self, generator: torch.Generator) -> Parameters:
        beta = named(self.init_beta(generator))  # first, so that it starts as without an energy
        alpha = named(self.init_alpha(generator))
        return {ALPHA + n: v for n, v in alpha.items()} | {BETA + n: v for n, v in beta.items()}

    def init_beta(self, generator: torch.Generator) -> Parameters | nn.Module:
        return self.plain.init_theta(generator)

    def init_x(self, generator: torch.Generator, data: int, particles: int) -> Tensor:
        return self.plain.init_x(generator, data, particles)

    def observables(self, theta: Parameters, x: Tensor, y: Data) -> dict[str, Tensor]:
        return self.plain.observed(part(theta, BETA), x, y)


def silu_perceptron(widths: Sequence[int], constant: bool = True) -> nn.Sequential:
    """Linear layers of these widths with SiLUs between them, the last with or without a constant."""
    network = nn.Sequential()
    for fan_in, fan_out in pairwise(widths):
        if len(network):
            network.append(nn.SiLU())
        network.append(nn.Linear(fan_in, fan_out, bias=constant or len(network) < 2 * len(widths) - 4))
    return network

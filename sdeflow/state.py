"""A state: named tensors [R, ...] with R replicas, their axes and sums; and what their names mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Coefficient = float | Tensor

State = dict[str, "Tensor"]
"""Variables by name, each [R, ...] with R replicas."""

LONG_NAMES = {
    "theta": "parameters",
    "m": "momentum of the parameters",
    "X": "particles",
    "U": "momentum of the particles",
    "alpha": "parameters of the energy",
    "m_alpha": "momentum of the energy's parameters",
    "beta": "parameters of the likelihood",
    "m_beta": "momentum of the likelihood's parameters",
    "Z": "prior particles",
    "V": "momentum of the prior particles",
    "loss": "mean over data and particles of minus log p_theta(x, y) at the saved state",
    "held_out_loss": "mean over held-out data and their particles of minus log p_theta(x, y)",
    "step": "integrator steps taken",
    "seed": "seed that gives this replica alone",
    "replica": "replica",
    "datum": "index of the datum",
    "particle": "index of the particle",
    "prior_particle": "index of the prior particle",
    "latent": "coordinate of the latent",
    "param": "parameter by name",
    "alpha_param": "parameter of the energy by name",
    "beta_param": "parameter of the likelihood by name",
    "curvature_least": "least eigenvalue of the joint curvature, in blocks' own units; NaN if unknown",
    "curvature_most": "largest eigenvalue of the joint curvature, in blocks' own units",
    "tuning_evaluations": "gradient evaluations of the warm-up by then",
    "tuning_margin": "factor on curvature since the warm-up went back",
    "tuning_share": "step as a share of the largest stable one",
    "tuning_returns": "how often the warm-up went back to a good state by then",
    "average_theta": "exponential moving average of the parameters over steps",
    "average_alpha": "exponential moving average of the energy's parameters over steps",
    "average_beta": "exponential moving average of the likelihood's parameters over steps",
    "gamma": "gamma of every block with a momentum, in this replica",
    "eta": "eta of every block with a momentum, in this replica",
    "h": "step of every block on its own clock, in this replica",
    "temperature": "factor on the temperature of every block with noise, in this replica",
}
"""What the names in a trajectory mean; a model's own observables have others (see `reserved`)."""


PARAMETERS = ("theta", "alpha", "beta")
"""Variables that are parameters with names of their own."""

TUNED = ("h_", "eta_", "gamma_", "temperature_", "restart_", "curvature_", "noise_", "tuning_")
"""Prefixes of the numbers that a warm-up and schedules record."""

TUNING = "tune."
"""Prefix of what a warm-up (sdeflow.tuning) keeps in a state: a checkpoint holds it, a dataset does not."""


def reserved(name: str) -> bool:
    """Whether a trajectory uses a name itself."""
    return (
        name in LONG_NAMES
        or name.startswith(("time", "kinetic_", "force_", "energy_", *TUNED))
        or name.endswith("_norm")
    )


@dataclass(frozen=True)
class Replicas:
    """Independent copies of a system that move together: the seed of each, and what their numbers are."""

    seeds: Sequence[int]
    dtype: torch.dtype
    device: torch.device

    @property
    def count(self) -> int:
        return len(self.seeds)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without waiting for what the device is doing."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class Axes(NamedTuple):
    """The shape of one replica of a variable, and the names of its axes."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def named(self) -> bool:
        """Whether this is a flat vector of parameters that have names."""
        return len(self.dims) == 1 and self.dims[0].endswith("param")


def parameters_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters in a state by name, by the names that a model gives them."""
    own = [name for name in state if name.partition(".")[0] in PARAMETERS and "." in name]
    return {name.removeprefix("theta."): state[name] for name in own}


NUMBER = (float, int)
"""For isinstance, which the torch.compile of torch 2.8 does not trace with `float | int`."""


def plus(x: Tensor, *terms: tuple[Coefficient, Tensor]) -> Tensor:
    """x + sum_i c_i y_i; a coefficient may be a tensor that broadcasts, such as one a datum."""
    total = x
    for i, (c, y) in enumerate(terms):
        if isinstance(c, NUMBER):
            total = total.add(y, alpha=c) if i == 0 else total.add_(y, alpha=c)
        else:
            total = total + c * y
    return total


def add_to(x: Tensor, c: Coefficient, y: Tensor) -> None:
    """x += c y, in place, of a tensor that nobody else has yet."""
    if isinstance(c, NUMBER):
        x.add_(y, alpha=c)
    else:
        x.add_(c * y)

"""Light systems whose steps are compiled, one of each kind."""

from __future__ import annotations

from typing import Any

from small import LIGHT

from sdeflow import kinetic_ebipla, kiplmc, mpgd
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.latent_ebm import LatentEBM


def decoder() -> Any:
    return mpgd(Decoder(latent=2, hidden=(5,), images=12), particles=3, theta=LIGHT, x=LIGHT)


def toy() -> Any:
    return mpgd(Hierarchical(data=6), particles=4, theta=LIGHT, x=LIGHT)


def energy() -> Any:
    model = LatentEBM(points=12, held_out=0, energy_hidden=(5,), decoder="affine")
    return kinetic_ebipla(model, particles=2, prior_particles=5, alpha=LIGHT, beta=LIGHT, x=LIGHT)


def scheduled() -> Any:
    """Every number that may change does, in both blocks."""
    theta = LIGHT | {"h": {"kind": "cosine", "from": 1e-3, "to": 1e-4}, "gamma": lambda n: 1.0 + n % 3}
    x = theta | {"h": lambda n: 1e-3 / (1 + n), "temperature": {"kind": "exponential", "from": 4, "to": 1}}
    return mpgd(Hierarchical(data=6), particles=4, theta=theta, x=x)


def cooled() -> Any:
    """Of theta alone, so that particles can catch up."""
    theta = LIGHT | {"h": {"kind": "cosine", "from": 1e-3, "to": 1e-4}}
    return kiplmc(Decoder(latent=2, hidden=(5,), images=12), particles=3, theta=theta, x=LIGHT)

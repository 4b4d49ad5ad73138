"""Runs of every kind, small and in float64, as one process takes them and as several that share them.

    torchrun --nproc-per-node 2 tests/processes.py OUT quick

writes what each case of CASES, or of COMPILED, gives into OUT, a pickle of arrays by case and name.
"""

from __future__ import annotations

import math
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

import sdeflow
from sdeflow import Average, Batch, Evaluate, Grid, Parallel, Save
from sdeflow.config.catalogue import find
from sdeflow.model.energy_prior import EnergyPrior
from sdeflow.parallel.ranks import started
from sdeflow.problems.hierarchical import Hierarchical

sys.path.insert(0, str(Path(__file__).parent))

from small import Autograd, Net

Arrays = dict[str, NDArray[Any]]

D = 24
EVEN, UNEVEN = Parallel(strata=6), Parallel()
FIXED = Parallel(strata=6, reduction="fixed")
M = {"h": 0.01, "eta": 100.0, "gamma": 0.1}
SMALL = {"h": 1e-3, "eta": 100.0, "gamma": 0.5}


class Deep(Net):
    """A Net of many data, with more to observe: a function of all of them at once."""

    def __init__(self, data: int = D) -> None:
        self.data = torch.sin(torch.arange(2.0 * data, dtype=torch.float64)).view(data, 2)
        self.held_out = self.data[:5].cos()

    def init_theta(self, generator: torch.Generator) -> Any:
        weight = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        return {"weight": weight, "bias": torch.zeros(2)}

    def log_prior(self, theta: Any, x: Tensor) -> Tensor:
        return -(x.flatten(1).square() + math.log(2 * math.pi)).sum(-1) / 2

    def observables(self, theta: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"median": (x.flatten(2).sum(-1) - y.sum(-1)[:, None]).median()}


class Tanh(sdeflow.Model):
    """A decoder whose products of matrices have odd sides, which round by how their factors lie in memory."""

    latent_shape = (5,)

    def __init__(self) -> None:
        self.data = torch.cos(torch.arange(42 * 9.0, dtype=torch.float64)).view(42, 9)
        self.held_out = self.data[:6].sin()

    def init_theta(self, generator: torch.Generator) -> Any:
        return {"weight": torch.randn(9, 5, generator=generator, dtype=torch.float64)}

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        mean = torch.tanh(x @ theta["weight"].T)
        return -(y[:, None] - mean).square().sum(-1) - x.square().sum(-1) / 2


class Redrawn(Hierarchical):
    """A model that makes its data anew at each visit."""

    def __init__(self, data: int) -> None:
        super().__init__(data=data)
        self.at_access = lambda y, u: y + u


def toy(declaration: Any = sdeflow.mpgd, data: int = D, *, model: Any = None, **more: Any) -> Any:
    theta = M | more.pop("theta", {})
    return declaration(model or Hierarchical(data=data), particles=5, theta=theta, x=M, **more)


def deep(declaration: Any = sdeflow.mpgd, data: int = D, **more: Any) -> Any:
    theta = SMALL | more.pop("theta", {})
    return declaration(Deep(data), particles=3, theta=theta, x=SMALL | more.pop("x", {}), **more)


def tanh() -> Any:
    return sdeflow.mpgd(Tanh(), particles=5, theta=SMALL, x=SMALL)


def energy() -> Any:
    """A prior that is learned too: two networks, and particles of the prior."""
    model = EnergyPrior(Deep(), hidden=[8])
    blocks = {"alpha": SMALL, "beta": SMALL, "x": SMALL, "z": SMALL}
    return sdeflow.kinetic_ebipla(model, particles=3, prior_particles=7, **blocks)


def run(system: Any, integrator: str = "expint", parallel: Parallel = UNEVEN, **more: Any) -> Arrays:
    options = {"steps": 12, "dtype": "float64", "save": Save(every=4, data="all", particles="all")} | more
    found = sdeflow.simulate(system, integrator, parallel=parallel, noise="philox", **options)
    return {str(name): values.values for name, values in found.data_vars.items()}


B = Batch(size=12)
CASES: dict[str, Callable[[], Arrays]] = {
    **{
        name: lambda name=name: run(toy(), name, replicas=2)
        for name in ("expint", "expint_nc", "expint_shared", "nag", "baoab", "obabo", "ubu", "euler_maruyama")
    },
    "pgd": lambda: run(toy(sdeflow.pgd), "euler_maruyama"),
    "uneven": lambda: run(toy(data=25), "baoab"),
    "uneven net": lambda: run(deep(data=25), "baoab"),
    "ipla": lambda: run(toy(sdeflow.ipla), "euler_maruyama"),
    "kiplmc": lambda: run(toy(sdeflow.kiplmc), "baoab"),
    "eager": lambda: run(toy(model=Autograd(data=D)), "expint", engine="eager"),
    "vmap": lambda: run(deep(), "expint", replicas=3),
    "batch": lambda: run(toy(), "expint", EVEN, batch=B, replicas=2),
    "batch baoab": lambda: run(deep(), "baoab", EVEN, batch=B),
    "substeps": lambda: run(toy(), "expint", EVEN, batch=Batch(size=6, catch_up="substeps", cap=3)),
    "one_step": lambda: run(toy(), "expint", EVEN, batch=Batch(size=6, catch_up="one_step", cap=3)),
    "srock": lambda: run(toy(), "expint", EVEN, batch=Batch(size=6, catch_up="srock", cap=3)),
    "at_access": lambda: run(toy(model=Redrawn(D)), "baoab", EVEN, batch=B),
    "grid": lambda: run(toy(), "expint", grid=Grid(gamma=[0.1, 0.3], h=[0.01, 0.02])),
    "average": lambda: run(deep(), "nag", average=Average(0.9)),
    "held out": lambda: run(deep(), "baoab", EVEN, batch=B, evaluate=Evaluate(every=4, steps=2)),
    "rmsprop": lambda: run(deep(theta={"precondition": "rmsprop"}), "expint"),
    "adam": lambda: run(deep(sdeflow.pgd, theta={"h": 1e-2, "optimizer": "adam"}), "euler_maruyama"),
    "svgd_em": lambda: run(toy(sdeflow.svgd_em, model=Hierarchical(data=25, latent=3)), "expint"),
    "coin_em": lambda: run(toy(sdeflow.coin_em), "expint_nc2", EVEN, batch=B, replicas=2, steps=4),
    "schedule": lambda: run(toy(theta={"gamma": {"kind": "linear", "from": 0.1, "to": 1.0}}), "expint"),
    "short run": lambda: run(deep(find("systems", "short_run"), inner_steps=3), "alternating"),
    "soul": lambda: run(deep(find("systems", "soul"), inner_steps=3), "alternating", EVEN, batch=B),
    "energy": lambda: run(energy(), "baoab"),
    "energy batch": lambda: run(energy(), "baoab", EVEN, batch=B),
    "observables": lambda: run(toy(), "expint", observables={"range": lambda theta, x, y: x.max() - y.min()}),
    "fixed": lambda: run(toy(), "expint", FIXED),
    "fixed baoab": lambda: run(deep(data=27), "baoab", FIXED, replicas=2),
    "fixed batch": lambda: run(deep(), "baoab", FIXED, batch=B),
    "fixed coin_em": lambda: run(toy(sdeflow.coin_em), "expint_nc2", FIXED),
    "fixed energy": lambda: run(energy(), "baoab", FIXED),
    "fixed tanh": lambda: run(tanh(), "baoab", FIXED),
    "fixed tanh float32": lambda: run(tanh(), "expint", FIXED, dtype="float32"),
    "fixed held out": lambda: run(tanh(), "baoab", FIXED, evaluate=Evaluate(every=4, steps=2)),
    "stops": lambda: run(tanh(), "baoab", callbacks=lambda snapshot: snapshot.step == 8),
    "fixed float32": lambda: run(deep(), "expint", FIXED, dtype="float32"),
}

COMPILED: dict[str, Callable[[], Arrays]] = {
    "compiled batch": lambda: run(toy(), "baoab", EVEN, engine="compiled", batch=B),
    "compiled uneven": lambda: run(toy(data=25), "baoab", engine="compiled"),
}

STATE = ("theta", "m", "X", "U", "alpha", "beta", "m_alpha", "m_beta", "Z", "V")
"""What is equal to the bit under a fixed reduction; observables are summed in any order."""


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    found = {name: case() for name, case in (COMPILED if sys.argv[2] == "compiled" else CASES).items()}
    if started().leads:
        Path(sys.argv[1]).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main()

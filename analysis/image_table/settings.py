"""What methods are compared on: a problem, its numbers for all of them, a budget, and how they are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

from sdeflow.analysis.image_table.cost import evaluations
from sdeflow.analysis.image_table.methods import METHODS, PLAIN, SHORT, Method, Table
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import Config, load_config, merged

GIVEN, TUNED = "given", "tuned"
"""Bases: the same numbers for all methods, and each one's own."""

GRID = tuple(product((0.1, 0.3, 1.0, 3.0), (0.25, 1.0, 4.0)))
"""Factors on the steps of parameters and of particles, among which each method's are chosen."""

GRID_SEED, FIRST_SEED = 1, 10
"""The seed of the grid, and the first of those that are reported."""

FRICTION, KEPT_THETA, KEPT_X = 0.9, 0.45, 2.25
"""gamma of all blocks with a momentum, and gamma eta h of parameters and of particles: a momentum keeps
exp(-that) of itself in a step, whatever h is."""

MOMENTS, WINDOW = 5, 0.05
"""Times of a run at which its evidence is found, and the part of it that an average of parameters is over."""


SCORES: Table = {"fold": "test", "chains": 8, "temperatures": 200}
QUICK: Table = {
    "fold": "validation",
    "data": 100,
    "chains": 4,
    "temperatures": 100,
    "langevin_steps": 1,
    "particles": 1,
    "pictures": False,
}


@dataclass(frozen=True)
class Setting:
    """A problem on which all methods have the same model, data, minibatches and budget.

    budget   gradient evaluations of a minibatch
    seeds    how many, one after the other from FIRST_SEED
    theta    step of the parameters under a preconditioner, `plain` without one, where forces sum over data
    x        step of the particles
    encoder  of amortised inference, as its system takes it: a network like the decoder
    variant  of the problem, and `energy` that with an energy as prior; None for none
    scores   options by which a run is evaluated in the end, `quick` one of the grid
    images   of each kind for KID, or 0
    labels   of the methods that are run unless others are asked for; None for all
    """

    problem: str
    budget: int
    seeds: int
    plain: float
    theta: float = 1e-3
    x: float = 5e-3
    precondition: str | None = "rmsprop"
    encoder: Table = field(default_factory=dict)
    variant: str | None = None
    energy: str | None = "energy"
    over: Table = field(default_factory=dict)
    scores: Table = field(default_factory=lambda: SCORES)
    quick: Table = field(default_factory=lambda: QUICK)
    mixture: str = "gmm:100"
    images: int = 200
    pixels: str = "exact"
    observable: str = ""
    labels: tuple[str, ...] | None = None

    @property
    def along(self) -> Table:
        """As runs are scored in the end, and at moments on the way unless they record what is looked at."""
        return self.scores | {"along": not self.observable}

    @property
    def of_images(self) -> Table:
        """Options by which images are compared, {} for no images."""
        return {"kid": self.images, "pixels": self.pixels} if self.images else {}

    def entrants(self, labels: Sequence[str] | None = None) -> list[Method]:
        """The methods of some labels, or of the setting's own, which it can have, in the order of METHODS."""
        asked = labels or self.labels
        batched = load_config(problem_file(self.problem), overrides=[self.over]).batch is not None
        return [
            m
            for m in METHODS
            if (asked is None or m.label in asked)
            and (self.energy or not m.energy)
            and (batched or "batch" not in m.over)
            and not (self.precondition is None and m.label == PLAIN)  # which is what the reference is
        ]

    def config(
        self,
        method: Method,
        *,
        theta: float = 1.0,
        x: float = 1.0,
        part: float = 1.0,
        seed: int = FIRST_SEED,
        replicas: int = 1,
        average: bool = False,
        over: Table | None = None,
    ) -> Config:
        """A run of a method.

        theta, x   factors on the steps of parameters and particles
        part       of the budget
        average    whether the average of the parameters is kept, over WINDOW of the run
        over       tables that are merged in last
        """
        variant = self.energy if method.energy else self.variant
        base = load_config(problem_file(self.problem), variant=variant).tables()
        base["system"] = self._system(method, base["system"], theta, x)
        ends: Table = {"run": {"seed": seed, "replicas": replicas, "integrator": method.scheme}}
        for tables in (self.over, method.over, ends, over or {}):
            base = merged(base, tables)

        def of(steps: int) -> Config:
            every = max(1, steps // (2 * MOMENTS))
            more: Table = {"run": {"steps": steps}, "save": {"every": every, "data": 1, "particles": 1}}
            if average:
                more["average"] = {"decay": max(0.0, 1 - 1 / (WINDOW * steps))}
            return Config.of(merged(base, more))

        return of(max(2, int(part * self.budget / evaluations(build(of(1))))))

    def _system(self, method: Method, given: Table, theta: float, x: float) -> Table:
        """The table [system] of a method, with what the problem gives that is no block."""
        rest = {k: v for k, v in given.items() if k in ("particles", "prior_particles")}
        rest |= {"use": method.system} | (self.encoder if method.system == "vi" else {})
        if method.energy:
            factors = {"alpha": theta, "beta": theta, "x": x, "z": x}
            return rest | {name: _scaled(given[name], factors[name]) for name in factors if name in given}
        plain = method.plain or (self.precondition is None and method.optimizer is None)
        step = method.rate if method.optimizer else self.plain if plain else self.theta
        of_theta = _motion(step * theta, KEPT_THETA)
        if method.optimizer:
            of_theta["optimizer"] = method.optimizer
        elif not plain:
            of_theta["precondition"] = self.precondition
        return rest | {"theta": of_theta, "x": _motion(self.x * x, KEPT_X)}


def _motion(h: float, kept: float) -> Table:
    return {"h": h, "eta": kept / (FRICTION * h), "gamma": FRICTION}


def _scaled(numbers: Table, factor: float) -> Table:
    """A block's numbers with another step, whose momentum keeps as much of itself."""
    return numbers | {"h": numbers["h"] * factor, "eta": numbers["eta"] / factor}


KEEP: Table = {"save": {"keep": MOMENTS}}
"""So that the last states of as many moments as are scored stay."""

SETTINGS = {
    "digits": Setting(
        "digits",
        budget=10_000,
        seeds=5,
        plain=1e-5,
        encoder={"encoder_hidden": [64]},
        over=merged(KEEP, {"model": {"held_out": 297}, "batch": {"size": 100}}),
        pixels="clip",
    ),
    "mixture_1d": Setting(
        "mixture_1d",
        budget=1_000,
        seeds=3,
        plain=1e-5,
        x=1e-4,
        precondition=None,
        encoder={"encoder_hidden": [128, 128, 128]},
        energy=None,
        over={"model": {"hidden": [128, 128, 128], "held_out": 200}},
        mixture="",
        images=0,
        observable="w1",
    ),
    "fashion14": Setting(
        "fashion14",
        budget=5_000,
        seeds=3,
        plain=1e-6,
        encoder={"encoder_hidden": [256, 256, 256]},
        over=KEEP,
        scores=SCORES | {"data": 50, "chains": 4, "temperatures": 300, "langevin_steps": 50},
        images=100,
        labels=SHORT,
    ),
    # These two have fewer images than their problems, so that each is seen often, as particles that stay
    # between visits need: 1,500 evaluations are 100 and 37 epochs. On an H200 both took five minutes, with a
    # process a method.
    "mnist": Setting(
        "mnist",
        budget=1_500,
        seeds=3,
        plain=1e-6,
        encoder={"encoder_hidden": [512, 512, 512]},
        variant="literature",
        energy="literature_energy",
        over=merged(KEEP, {"model": {"images": 2000}}),
        scores=SCORES | {"data": 50, "chains": 4, "temperatures": 200, "langevin_steps": 50},
        quick=QUICK | {"data": 50, "temperatures": 50},
        images=100,
        labels=SHORT,
    ),
    "cifar16": Setting(
        "cifar16",
        budget=1_500,
        seeds=3,
        plain=1e-7,
        encoder={"encoder": "convolutional", "encoder_width": 8},
        over=merged(KEEP, {"model": {"images": 2000, "width": 16}}),
        scores=SCORES | {"data": 30, "chains": 4, "temperatures": 150, "langevin_steps": 50},
        quick=QUICK | {"data": 50, "temperatures": 50},
        images=100,
        labels=SHORT,
    ),
}

"""The warm-up of a run: h, eta and gamma chosen anew as the run learns what curvature its blocks see.

At the start, and at steps 20, 60, 180, ... up to `Tune.until`, the curvature L of each block is measured by a
few Lanczos steps that begin from the last direction found. At the start the ends of the joint spectrum are
looked for too: where it is convex they give the friction. Where they are not known friction begins at a
floor, and that of parameters falls while all is quiet.

In between a guard looks at the run: where it is no longer finite, or the loss has risen, it goes back to the
last good state with smaller steps. All that a warm-up knows is part of the state, so that a run that is
resumed goes on to the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sdeflow.errors import RunError, SdeflowError
from sdeflow.options import Tune
from sdeflow.state import TUNING, State
from sdeflow.system.block import Block
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import BlockSystem
from sdeflow.tuning.choice import Spectrum, can_restart, pace, tuned
from sdeflow.tuning.curvature import Curvature, Vectors, lanczos
from sdeflow.tuning.limits import wells_of

NUMBERS, DIRECTION, GOOD = f"{TUNING}numbers", f"{TUNING}direction.", f"{TUNING}good."
"""What a warm-up keeps in the state: its numbers, the directions of most curvature, the last good state."""

WINDOW, GROWTH, LOOK = 20, 3, 20
"""The first window's end, the ratio of one end to the last, and steps between looks of the guard."""

PRODUCTS, JOINT, SETTLED = 4, 24, 3
"""Products of curvature a block at a window; at most at the start for the ends of the joint spectrum; over
how many of these the least end must be still."""

STEADY, STEADY_SHARE = 0.02, 0.8
"""Curvature that changes by less is steady, and lets a run take that share of the largest stable step."""

OPPOSED_LO = 0.25
"""What is taken for the least joint curvature where parameters are opposed by particles: k = 1."""

BACK, LONGEST_WAY_BACK = 1.3, 20
"""What curvature is multiplied by when a run goes back, and how often it may before it is given up."""


@dataclass
class Known:
    """What a warm-up knows besides the blocks' numbers.

    lo, hi                 the ends of the joint spectrum; lo is NaN where it is not known to be convex
    share, margin          of the largest stable step; a factor on curvature
    first, good            the loss at the start, and at the last good state
    evaluations            gradient evaluations that it took
    backs                  how often the run went back
    ends                   the step at which adaptation ends; a run that is made longer keeps it
    """

    share: float
    lo: float = math.nan
    hi: float = 2.0
    margin: float = 1.0
    first: float = math.nan
    good: float = math.nan
    evaluations: float = 0.0
    backs: float = 0.0
    ends: float = 0.0


class WarmUp:
    """Chooses the numbers of a system's blocks that are 'auto' while its run goes on.

    system      as it moves now, by the numbers that were chosen last
    part        gives the system in float64, and the state, on the data that a step sees
    """

    def __init__(
        self,
        system: BlockSystem,
        integrator: Integrator[Any],
        tune: Tune,
        steps: int,
        *,
        part: Callable[[BlockSystem, State, int], tuple[BlockSystem, State]] | None = None,
    ) -> None:
        self.system = self._open = system
        self._wells = wells_of(system, integrator)
        self._part = part or (lambda system, z, n: (system, z))
        self._integrator = integrator
        ends = tune.last(steps, opposed=bool(system.force_field.opposed))
        self._share, self._known = tune.share, Known(tune.share, hi=highest(system), ends=ends)
        self._curvature = {b.name: 1.0 for b in system.blocks}
        self._clock = _Clock(system)
        self.news = ""

    # What the loop of a run asks ---------------------------------------------------------------------

    def begin(self, z: State) -> State:
        """The state at the start with its momenta for the numbers found there."""
        z = self._measure(z, 0, ends=True)
        z = self._choose(z, 0)
        self._known.first = self._known.good = self._loss(z, 0)
        return z

    def next(self, n: int) -> int | None:
        """The step after n at which to `look`; None where there is no more."""
        after = (n // LOOK + 1) * LOOK
        return after if after <= self._known.ends else None

    def look(self, z: State, n: int) -> State:
        """The state to go on from after step n; `system` may have changed."""
        loss, self.news = self._loss(z, n), ""
        if not _finite(z) or not loss <= self._known.good + self._allowed():
            return self.back(z, n)
        self._known.good = loss
        if self._is_window_end(n):
            before = dict(self._curvature)
            z = self._measure(z, n)
            steady = all(abs(self._curvature[k] - then) < STEADY * then for k, then in before.items())
            self._known.share = max(self._share, STEADY_SHARE) if steady else self._share
            self._known.margin = max(1.0, self._known.margin / BACK**0.5)
            z = self._choose(z, n)
        return self.keep(z, n)

    def back(self, z: State, n: int) -> State:
        """The last good state, with smaller steps and more friction."""
        known = self._known
        known.backs += 1
        if known.backs > LONGEST_WAY_BACK:
            raise RunError(
                f"the warm-up went back {LONGEST_WAY_BACK} times by step {n}, and still the loss rises or is "
                "not finite: the model's curvature grows faster than steps can follow. Give h, eta and gamma"
            )
        good = {name.removeprefix(GOOD): value for name, value in z.items() if name.startswith(GOOD)}
        z = {name: good.get(name, value) for name, value in z.items() if not name.startswith(GOOD)}
        z |= {b.momentum: torch.zeros_like(z[b.momentum]) for b in self._still if b.momentum}
        z = self._measure(z, n)
        known.margin *= BACK
        return self.keep(self._choose(z, n), n)

    def keep(self, z: State, n: int) -> State:
        """The state after step n with what the warm-up knows, and while it goes on with itself as good."""
        own = {name: value for name, value in z.items() if not name.startswith(TUNING)}
        like = next(iter(own.values()))
        numbers = [*astuple(self._known), *self._curvature.values(), *self._clock.numbers]
        row = torch.tensor(numbers, dtype=torch.float64, device=like.device).expand(len(like), -1).clone()
        if self.next(n) is None:
            return own | {NUMBERS: row}
        directions = {name: value for name, value in z.items() if name.startswith(DIRECTION)}
        good = {GOOD + name: value.clone() for name, value in own.items()}
        return own | directions | good | {NUMBERS: row}

    def restore(self, z: State) -> None:
        """Takes up what a state of this run keeps."""
        numbers = z[NUMBERS][0].double().cpu().tolist()
        count = len(fields(Known))
        self._known = Known(*numbers[:count])
        self._curvature = dict(zip(self._curvature, numbers[count:], strict=False))
        rest = numbers[count + len(self._curvature) :]
        self._clock.restore(rest)
        self.system = self._chosen()

    def values(self, replicas: int) -> dict[str, Tensor]:
        """What is recorded of the numbers in force, each [R]."""
        known = self._known
        of_all = {"curvature_least": known.lo, "curvature_most": known.hi}
        of_each: dict[str, list[float]] = {}
        for b in self.system.blocks:
            of_all[f"h_{b.name}"] = b.rate * self.system.h
            of_all[f"curvature_{b.name}"] = self._curvature[b.name]
            if b.kinetic:
                each = [b.of(r) for r in range(replicas)]
                of_each |= {
                    f"eta_{b.name}": [one.eta for one in each],
                    f"gamma_{b.name}": [one.gamma for one in each],
                }
            if can_restart(b):
                of_all[f"restart_{b.name}"] = float(b.restart)
        of_all |= {
            "tuning_share": known.share,
            "tuning_evaluations": known.evaluations,
            "tuning_returns": known.backs,
        }
        of_each |= {name: [value] * replicas for name, value in of_all.items()}
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in of_each.items()}

    def times(self, n: int) -> dict[str, float]:
        """Time after step n on the reference clock, '', and on the blocks' own."""
        return self._clock(n)

    # How it does so ----------------------------------------------------------------------------------

    def _is_window_end(self, n: int) -> bool:
        end = WINDOW
        while end < n:
            end *= GROWTH
        return end == n <= self._known.ends

    def _measure(self, z: State, n: int, *, ends: bool = False) -> State:
        """Curvature at z, after step n; the state with the directions that were found."""
        device = next(iter(z.values())).device
        system, part = self._part(self._open.to(torch.float64, device), z, n)
        c = Curvature(system, part)
        last = system.force_field.opposed  # these need the curvature of the others
        for b in sorted(system.blocks, key=lambda b: b.name in last):
            name = DIRECTION + b.name
            start: Vectors = {b.name: part[name].double()} if name in part else c.start([b.name])
            ritz = lanczos(c.of_block(b.name, self._curvature), start, PRODUCTS)
            self._curvature[b.name] = largest = float(ritz.values.abs().max())
            if b.auto and not 0 < largest < math.inf:
                raise SdeflowError(
                    f"block '{b.name}' sees a curvature of {largest:g} after step {n}, which tells no step: "
                    "give its h, eta and gamma"
                )
            z = z | {name: ritz.top[b.name].to(z[b.position].dtype)}
        if system.force_field.opposed:
            self._known.lo = OPPOSED_LO
        elif ends and all(curvature > 0 for curvature in self._curvature.values()):
            self._look_for_ends(c)
        self._known.evaluations += c.evaluations
        return z

    def _look_for_ends(self, c: Curvature) -> None:
        scale = {name: value**-0.5 for name, value in self._curvature.items()}

        def product(v: Vectors) -> Vectors:
            w = c.product({name: scale[name] * x for name, x in v.items()})
            return {name: scale[name] * x for name, x in w.items()}

        least: list[float] = []

        def enough(values: Tensor, errors: Tensor) -> bool:
            least.append(float(values[0]))
            if least[-1] < -0.01 * float(values[-1]):
                return True
            # a bound says that some eigenvalue is near, so the least is waited for a little
            still = len(least) > SETTLED and least[-1 - SETTLED] < 1.05 * least[-1]
            return still and bool(errors[0] < 0.05 * values[0])

        force = c.force()
        if not any(bool(f.any()) for f in force.values()):  # the run begins where it is to go
            force = c.start(list(force))
        start = {name: scale[name] * f for name, f in force.items()}
        ritz = lanczos(product, start, JOINT, enough)
        if ritz.values[0] > 0:
            self._known.lo = float(ritz.values[0])
            self._known.hi = min(self._known.hi, 1.02 * float(ritz.values[-1]))

    def _chosen(self) -> BlockSystem:
        known = self._known
        found = pace(
            self._wells, Spectrum(known.lo, known.hi), known.share, restart=self._integrator.restarts
        )
        curvature = {name: known.margin * value for name, value in self._curvature.items()}
        return tuned(self._open, found, curvature)

    def _choose(self, z: State, n: int) -> State:
        before, self.system = self.system, self._chosen()
        self.news = str(self.system)
        self._clock.change(n, self.system)
        return z | rescaled(z, before.blocks, self.system.blocks)

    def _loss(self, z: State, n: int) -> float:
        """The mean loss of the replicas; 0 where there is none, or it lacks log Z of a learned prior."""
        if self.system.force_field.opposed:
            return 0.0
        system, part = self._part(self.system, z, n)
        self._known.evaluations += 1
        with torch.no_grad():
            loss = system.force_field.observe(part).get("loss")
        return 0.0 if loss is None else float(loss.mean())

    def _allowed(self) -> float:
        """By how much the loss may rise: a quarter of what it fell, and twice what a particle's heat is."""
        heat = sum(math.prod(b.shape[-1:]) for b in self.system.particles)
        return max(0.25 * (self._known.first - self._known.good), float(heat))

    @property
    def _still(self) -> list[Block]:
        """Blocks without noise, whose momenta carry nothing but where they were going."""
        return [b for b in self.system.blocks if b.temperature == 0]


class _Clock:
    """Times of a run whose steps change: at the last change, and what a step adds since."""

    def __init__(self, system: BlockSystem) -> None:
        self._names = ["", *system.clocks]
        self.numbers = [0.0] * (1 + 2 * len(self._names))

    def __call__(self, n: int) -> dict[str, float]:
        changed, *rest = self.numbers
        count = len(self._names)
        return {
            name: then + (n - changed) * h
            for name, then, h in zip(self._names, rest[:count], rest[count:], strict=True)
        }

    def change(self, n: int, system: BlockSystem) -> None:
        now = self(n).values()
        self.numbers = [float(n), *now, system.h, *(system.h * rate for rate in system.clocks.values())]

    def restore(self, numbers: list[float]) -> None:
        self.numbers = numbers


def rescaled(z: State, before: tuple[Block, ...], after: tuple[Block, ...]) -> State:
    """Momenta at other inverse masses: p sqrt(eta / eta'), so that N(0, T/eta) becomes N(0, T/eta')."""
    return {
        b.momentum: z[b.momentum] * (a.eta / b.eta) ** 0.5
        for a, b in zip(before, after, strict=True)
        if b.momentum is not None
    }


def _finite(z: Mapping[str, Tensor]) -> bool:
    own = [v for name, v in z.items() if v.is_floating_point() and not name.startswith(TUNING)]
    return bool(torch.stack([v.isfinite().all() for v in own]).all())


def highest(system: BlockSystem) -> float:
    """What no eigenvalue of the joint curvature exceeds, in blocks' own units: the number of blocks.

    Of an energy model's, half of which are coupled to the other half, 2.
    """
    return 2.0 if system.force_field.opposed else float(len(system.blocks))

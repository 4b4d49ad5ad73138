"""The warm-up of a run: h, eta and gamma chosen anew as the run learns what curvature its blocks see.

At the start, and at steps 20, 40, 80, ... up to `Tune.until`, the curvature L of each block is measured by a
few Lanczos steps that begin from the last direction found. At the start the ends of the joint spectrum are
looked for too: where it is convex they give the friction.

At steps 2, 5, 10, 20, 40, 60, ... a guard looks at the run. Where it is no longer finite, or the loss has
risen beyond what heat explains, it goes back to the last good state, as if curvature were `margin` times
larger: twice after a first return, 4, 8, 16, ... times more after those that follow at once, for curvature
may grow by orders of magnitude within a step. Each good look after that measures anew, and halves the margin.
Looks come at fixed steps after the start or the last return, and all that a warm-up knows is part of the
state, so that numbers depend neither on the machine's speed nor on the pieces in which a run is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, fields, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sdeflow.errors import RunError, SdeflowError
from sdeflow.options import Tune
from sdeflow.state import TUNING, State
from sdeflow.system.block import Block
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import BlockSystem
from sdeflow.tuning.choice import OPPOSED_LO, Spectrum, can_restart, pace, quiet, tuned
from sdeflow.tuning.clock import Clock
from sdeflow.tuning.curvature import Curvature
from sdeflow.tuning.limits import wells_of
from sdeflow.tuning.measurement import joint_ends, measure

NUMBERS, DIRECTION, GOOD = f"{TUNING}numbers", f"{TUNING}direction.", f"{TUNING}good."
"""What a warm-up keeps in the state: its numbers, the directions of most curvature, the last good state."""

WINDOW, GROWTH = 20, 2
"""The first window's end, and the ratio of one end to the last."""

FIRST_LOOKS, LOOK = (2, 5, 10), 20
"""Steps after the start, or after a return, at which the guard looks; then every so many."""

BATCHES = 4  # minibatches that are looked at

STEADY = 0.02
"""Curvature that changes by less is steady."""

VISITED_FRICTION = 0.5
"""The least k of particles that minibatches visit: what they are to follow moves on in between."""

RUIN = 5.0
"""A loss that ends so many times above its start as it may rise from look to look is told."""

OUT_OF_RANGE = (ValueError, ArithmeticError, torch.linalg.LinAlgError)
"""What a model raises that is given numbers far from where it makes sense."""

LONGEST_ROW, MOST_RETURNS = 8, 60
"""Returns in a row, and in all, after which a run is given up."""


@dataclass
class Known:
    """What a warm-up knows besides the blocks' numbers.

    lo, hi                 the ends of the joint spectrum; lo is NaN where it is not known to be convex
    share, margin          of the largest stable step; a factor on curvature
    first, good            the loss at the start, and at the last good state
    evaluations            gradient evaluations that it took
    returns, row           how often the run went back, in all and since the last good look
    since                  the step of the last return, 0 without one
    window                 the step at which curvature is measured next
    ends                   the step at which adaptation ends; a run that is made longer keeps it
    """

    share: float
    ends: float
    lo: float = math.nan
    hi: float = 2.0
    margin: float = 1.0
    first: float = math.nan
    good: float = math.nan
    evaluations: float = 0.0
    returns: float = 0.0
    row: float = 0.0
    since: float = 0.0
    window: float = WINDOW


class WarmUp:
    """Chooses the numbers of a system's blocks that are 'auto' while its run goes on.

    system      as it moves now, by the numbers that were chosen last
    part        gives a system and the state on the data that the step after n sees; None where that is all
    epoch       steps that see all data
    """

    def __init__(
        self,
        system: BlockSystem,
        integrator: Integrator[Any],
        tune: Tune,
        steps: int,
        *,
        part: Callable[[BlockSystem, State, int], tuple[BlockSystem, State]] | None = None,
        epoch: int = 1,
    ) -> None:
        self.system = self._open = system
        self._wells = wells_of(system, integrator)
        self._part, self._epoch = part, epoch
        self._dtype = torch.float64
        self._integrator = integrator
        ends = tune.last(steps, opposed=bool(system.force_field.opposed))
        self._tune, self._known = tune, Known(tune.first_share, ends, hi=highest(system))
        self._curvature = {b.name: 1.0 for b in system.blocks}
        self._noise = {b.name: 0.0 for b in system.parameters}
        self._clock = Clock(system)
        self.news = ""

    # What the loop of a run asks ---------------------------------------------------------------------

    def begin(self, z: State) -> State:
        """The state at the start with its momenta for the numbers found there."""
        try:
            z = self._measure(z, 0, ends=True)
        except (RuntimeError, TypeError):  # a model may hold constants of one precision
            own = next(v.dtype for v in z.values() if v.is_floating_point())
            if own == self._dtype:
                raise
            self._dtype = own
            z = self._measure(z, 0, ends=True)
        z = self._choose(z, 0)
        self._known.first = self._known.good = self._loss(z, 0)
        return z

    def next(self, n: int) -> int | None:
        """The step after n at which to `look`; None where there is no more."""
        since = int(self._known.since)
        after = since + next((k for k in FIRST_LOOKS if since + k > n), ((n - since) // LOOK + 1) * LOOK)
        return None if n >= self._known.ends else int(min(after, self._known.ends))

    def look(self, z: State, n: int) -> State:
        """The state to go on from after step n; `system` may have changed."""
        known, self.news = self._known, ""
        if not _finite(z):
            return self.go_back(z, n)
        # of minibatches, the data that have just moved, then and now
        loss = self._loss(z, n - 1)
        good = known.good if self._part is None else self._loss(kept(z, GOOD), n - 1)
        if not loss <= good + self._allowed(good):
            return self.go_back(z, n)
        known.good, known.row = loss, 0
        due = n >= known.window
        if due or known.margin > 1:
            before = dict(self._curvature)
            z = self._measure(z, n)
            steady = all(abs(self._curvature[k] - then) < STEADY * then for k, then in before.items())
            known.margin = max(1.0, known.margin / 2)
            if due:
                known.share = self._tune.last_share if steady else self._tune.first_share
            z = self._choose(z, n)
        while known.window <= n:
            known.window *= GROWTH
        return self.keep(z, n)

    def go_back(self, z: State, n: int) -> State:
        """The last good state, with smaller steps."""
        known = self._known
        known.returns, known.row, known.since = known.returns + 1, known.row + 1, n
        if known.row > LONGEST_ROW or known.returns > MOST_RETURNS:
            raise RunError(
                f"the warm-up went back {known.returns:.0f} times by step {n}, and still the loss rises or "
                "is not finite: curvature grows faster than steps can follow. Give h, eta and gamma"
            )
        z = z | kept(z, GOOD)
        z |= {b.momentum: torch.zeros_like(z[b.momentum]) for b in self._still if b.momentum}
        if known.row == 1:
            z = self._measure(z, n)
        known.margin *= 2**known.row
        return self.keep(self._choose(z, n), n)

    def keep(self, z: State, n: int) -> State:
        """The state after step n with what the warm-up knows, and while it goes on with itself as good."""
        own = {name: value for name, value in z.items() if not name.startswith(TUNING)}
        like = next(iter(own.values()))
        numbers = [
            *astuple(self._known), *self._curvature.values(), *self._noise.values(), *self._clock.numbers
        ]  # fmt: skip
        row = torch.tensor(numbers, dtype=torch.float64, device=like.device).expand(len(like), -1).clone()
        if self.next(n) is None:
            return own | {NUMBERS: row}
        directions = {name: value for name, value in z.items() if name.startswith(DIRECTION)}
        good = {GOOD + name: value.clone() for name, value in own.items()}
        return own | directions | good | {NUMBERS: row}

    def restore(self, z: State) -> None:
        """Takes up what a state of this run keeps."""
        stored = iter(z[NUMBERS][0].double().cpu().tolist())
        self._known = Known(*islice(stored, len(fields(Known))))
        self._curvature = {name: next(stored) for name in self._curvature}
        self._noise = {name: next(stored) for name in self._noise}
        self._clock.restore(list(stored))
        self.system = self._chosen()

    def verdict(self, loss: float) -> str:
        """What to know where the loss at the end is far above that at the start, else ''."""
        first = self._known.first
        if self.system.force_field.opposed or not loss > first + RUIN * self._allowed(loss):
            return ""
        return (
            f"the loss rose from {first:.6g} to {loss:.6g}, so the numbers that were chosen do not suit the "
            "model: give h, eta and gamma, or a smaller [tune] share"
        )

    def values(self, replicas: int) -> dict[str, Tensor]:
        """What is recorded of the numbers in force, each [R]."""
        known = self._known
        measured = not self.system.force_field.opposed
        of_all = {"curvature_least": known.lo if measured else math.nan, "curvature_most": known.hi}
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
            if self._part is not None and b.name in self._noise:
                of_all[f"noise_{b.name}"] = self._noise[b.name]
            if can_restart(b):
                of_all[f"restart_{b.name}"] = float(b.restart)
        of_all |= {
            "tuning_share": known.share,
            "tuning_margin": known.margin,
            "tuning_evaluations": known.evaluations,
            "tuning_returns": known.returns,
        }
        of_each |= {name: [value] * replicas for name, value in of_all.items()}
        return {name: torch.tensor(values, dtype=torch.float64) for name, values in of_each.items()}

    def times(self, n: int) -> dict[str, float]:
        """Time after step n on the reference clock, '', and on the blocks' own."""
        return self._clock(n)

    # How it does so ----------------------------------------------------------------------------------

    def _seen(self, system: BlockSystem, z: State, n: int) -> tuple[BlockSystem, State]:
        """A system and the state on the data that the step after n sees."""
        return (system, z) if self._part is None else self._part(system, z, n)

    def _measure(self, z: State, n: int, *, ends: bool = False) -> State:
        """Curvature at z, after step n; the state with the directions that were found."""
        system = self._open.in_bf16(False).to(self._dtype, next(iter(z.values())).device)
        count = min(self._epoch, BATCHES)
        views = [Curvature(*self._seen(system, z, n + j), self._dtype) for j in range(count)]
        found = measure(system, views, kept(z, DIRECTION))
        self._noise |= found.noise
        for b in system.blocks:
            largest = found.curvature[b.name]
            if 0 < largest < math.inf or not b.auto:
                self._curvature[b.name] = largest
            elif n == 0:
                raise SdeflowError(
                    f"block '{b.name}' sees a curvature of {largest:g} at the start, which tells no step: "
                    "give its h, eta and gamma"
                )
        if system.force_field.opposed:
            self._known.lo = OPPOSED_LO
        elif ends and all(curvature > 0 for curvature in self._curvature.values()):
            least, most = joint_ends(views[0], self._curvature)
            if least > 0:
                self._known.lo, self._known.hi = least, min(self._known.hi, 1.02 * most)
        self._known.evaluations += sum(c.evaluations for c in views)
        types = {b.name: z[b.position].dtype for b in system.blocks}
        return z | {DIRECTION + name: v.to(types[name]) for name, v in found.directions.items()}

    def _chosen(self) -> BlockSystem:
        known = self._known
        found = pace(
            self._wells, Spectrum(known.lo, known.hi), known.share, restart=self._integrator.restarts
        )
        if self._epoch > 1:
            found = replace(found, particles=max(found.particles, VISITED_FRICTION))
        curvature = {name: known.margin * value for name, value in self._curvature.items()}
        friction = {}
        for b in self._open.parameters:
            friction[b.name], factor = quiet(b, found, self._noise[b.name])
            curvature[b.name] *= factor
        return tuned(self._open, found, curvature, friction)

    def _choose(self, z: State, n: int) -> State:
        before, self.system = self.system, self._chosen()
        self.news = str(self.system)
        self._clock.change(n, self.system)
        return z | rescaled(z, before.blocks, self.system.blocks)

    def _loss(self, z: State, n: int) -> float:
        """The mean loss of the replicas; 0 where there is none, or it lacks log Z of a learned prior."""
        if self.system.force_field.opposed:
            return 0.0
        system, part = self._seen(self.system, z, n)
        self._known.evaluations += 1
        try:
            with torch.no_grad():
                loss = system.force_field.observe(part).get("loss")
        except OUT_OF_RANGE:
            return math.inf
        return 0.0 if loss is None else float(loss.mean())

    def _allowed(self, good: float) -> float:
        """By how much the loss may rise: a quarter of what it fell, and twice what a particle's heat is."""
        heat = sum(math.prod(b.shape[-1:]) for b in self.system.particles)
        return max(0.25 * (self._known.first - good), float(heat))

    @property
    def _still(self) -> list[Block]:
        """Blocks without noise, whose momenta carry nothing but where they were going."""
        return [b for b in self.system.blocks if b.temperature == 0]


def rescaled(z: State, before: tuple[Block, ...], after: tuple[Block, ...]) -> State:
    """Momenta at other inverse masses: p sqrt(eta / eta'), so that N(0, T/eta) becomes N(0, T/eta')."""
    return {
        b.momentum: z[b.momentum] * (a.eta / b.eta) ** 0.5
        for a, b in zip(before, after, strict=True)
        if b.momentum is not None
    }


def kept(z: State, prefix: str) -> State:
    """What a state keeps under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in z.items() if name.startswith(prefix)}


def _finite(z: Mapping[str, Tensor]) -> bool:
    own = [v for name, v in z.items() if v.is_floating_point() and not name.startswith(TUNING)]
    return bool(torch.stack([v.isfinite().all() for v in own]).all())


def highest(system: BlockSystem) -> float:
    """What no eigenvalue of the joint curvature exceeds, in blocks' own units: the number of blocks.

    Of an energy model's, half of which are coupled to the other half, 2.
    """
    return 2.0 if system.force_field.opposed else float(len(system.blocks))

"""Whether a run does what its equations say: identities of energy and of stationarity, along a run.

For a block with inverse mass eta, friction gamma and temperature T, of a momentum p in d coordinates under
the force f, on the block's own clock, over any stretch of it:

    d E[eta |p|^2 / 2] = eta E[p.f] dt - gamma eta^2 E|p|^2 dt + gamma eta d T dt       work and dissipation

E is the mean over particles; a momentum of parameters, which is one, has it where T = 0. The defect, left
less right, is given over the energy turned over, half the sum of the sizes of the four terms. Particles
x that have come to rest under their scores s, at parameters that no longer move, have besides

    eta E|u|^2 / (d T) = 1                            kinetic temperature
    - E[(x - c).s] / (d T) = 1                        virial, c the mean of the datum's other particles
    E|s|^2 / (T E[-div s]) = 1                        configurational temperature

with div s along a random direction of signs v, v.(s(x + e v) - s(x - e v)) / (2 e), e a hundredth of the
clouds' spread. So no second derivative is needed, and kinks of a network count as they must.

Scores are gradients of the log-joint, whatever scores of its own a model has; how far these are from them
is told too. A step, which is no continuous time, leaves a defect that shrinks with it and can change its
sign on the way: so everything is given over several windows. What momenta do may be off by more than what
positions do. Parameters that fluctuate leave a defect of their share in the coordinates of all particles.

Source: Leimkuhler, Matthews 2015, doi:10.1007/978-3-319-16375-8 (the temperatures); Lim et al. 2024,
arXiv:2312.07335 (the free energy, sdeflow.analysis.dissipation).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy.stats
import torch
import xarray as xr

from sdeflow.analysis.dissipation import free_energy_balance, integral
from sdeflow.analysis.entropy import Array
from sdeflow.analysis.snapshots import Snapshots
from sdeflow.errors import SdeflowError
from sdeflow.system.block import Block
from sdeflow.system.system import BlockSystem

WINDOWS, LEAST = 4, 4
"""Windows of a run, of as many snapshots; and intervals between snapshots that each has at least."""

STANDARD_ERRORS, WORTH_TELLING = 4.0, 0.02
"""An identity is off where it misses by more than so many standard errors, or as many more as few particles
ask for by Student's law, and by more than a fiftieth, which steps of use leave."""

SCORE_TOLERANCE = 1e-3
"""Relative difference of a model's own scores from gradients of its log-joint that is not rounding."""

WORK, FREE_ENERGY, SCORE = "work and dissipation", "free energy and dissipation", "own score"
STATIONARY = ("kinetic temperature", "virial", "configurational temperature")


class Identity(NamedTuple):
    """An identity in each window: what it should be, what was found, the errors; and of a ratio of means over
    particles how many of these are free."""

    name: str
    block: str
    expected: float
    values: Array
    errors: Array
    free: float = np.inf

    @property
    def allowed(self) -> Array:
        """How far from what is expected is not told."""
        chance = scipy.stats.norm.sf(STANDARD_ERRORS)
        many = STANDARD_ERRORS if np.isinf(self.free) else float(scipy.stats.t.isf(chance, self.free))
        return np.maximum(many * self.errors, SCORE_TOLERANCE if self.name == SCORE else WORTH_TELLING)


def balance(run: xr.Dataset, system: BlockSystem | None = None, *, windows: int = WINDOWS) -> xr.Dataset:
    """The identities above in windows of a run, one after the other, as long as each other.

    system    of the run (default: that of its configuration, which a run from the command line keeps)

    Gives `value`, `error` and `allowed` over (identity, window), and whether `off`: further than allowed from
    `expected`; coordinates name identity and block, and a window's first and last step. Errors are jackknife
    errors over particles, which are independent but for the parameters, however snapshots hang together; to
    those of integrals is added how much they change if every other snapshot is left out. Energies need steps
    that see all data, and snapshots with gamma eta dt of 1 at most between them; that of parameters needs all
    data and particles saved, and the free energy Gaussian clouds of all data. What needs more is left out.

    Raises SdeflowError for a run that is too short, has fewer than 2 particles, or is not of this system
    (`Snapshots`).
    """
    along = Snapshots(run, system)
    if along.run.sizes["particle"] < 2:
        raise SdeflowError("errors need 2 particles or more: save more, save.particles = 16 say")
    edges = _edges(along.count, windows)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # of a run that is about to diverge
        found = [identity for b in along.system.blocks for identity in _of_block(along, b, edges)]
        if (free := free_energy_balance(along, edges)) is not None:
            found.append(Identity(FREE_ENERGY, "", 0.0, *free))
    return _dataset(found, along.run["step"].to_numpy()[edges])


def warnings(found: xr.Dataset) -> list[str]:
    """What a balance says is wrong, a sentence each; none where all holds."""
    said = []
    for i in range(found.sizes["identity"]):
        one = found.isel(identity=i)
        name, block = str(one["name"].item()), str(one["block"].item())
        values, errors, off = (one[key].to_numpy() for key in ("value", "error", "off"))
        if name == SCORE and off.any():
            said.append(
                f"the model's own score of {block} is {values[off].max():.1%} off the gradient of its "
                "log-joint: mend either"
            )
        elif name in (WORK, FREE_ENERGY) and off.any():
            k = int(np.argmax(np.where(off, np.abs(values), 0)))
            of, steps = f" of {block}" * bool(block), f"{int(one['begin'][k]):,} to {int(one['end'][k]):,}"
            said.append(
                f"{name}{of} differ by {abs(values[k]):.1%} ± {errors[k]:.1%} in steps {steps}: the step is "
                "too large, snapshots are too far apart, or a gradient is wrong"
            )
    blocks = dict.fromkeys(found["block"].to_numpy().tolist())
    return said + [told for block in blocks if (told := _not_stationary(found, block))]


def _not_stationary(found: xr.Dataset, block: str) -> str:
    """What the last window's temperatures of a block say is wrong; '' where all of them are 1."""
    rows = np.flatnonzero((found["block"] == block) & found["name"].isin(STATIONARY))
    own = found.isel(identity=rows)
    off = own["off"].to_numpy()[:, -1]
    if not off.any():
        return ""
    values, errors, allowed = (own[key].to_numpy() for key in ("value", "error", "allowed"))
    names = own["name"].to_numpy().tolist()
    told = ", ".join(
        f"{name} {v[-1]:.4g} ± {e[-1]:.1g}" for name, v, e in zip(names, values, errors, strict=True)
    )
    what = f"{block} is not at rest under its scores, where all of these are 1: {told}"
    if names[0] == STATIONARY[0] and not off[1:].any():
        return f"{what}. Positions are right, momenta are not: of a smaller step these would be too"
    moved = values.shape[1] > 1 and (np.abs(values[:, -1] - values[:, -2]) > np.hypot(*allowed.T[-2:])).any()
    if moved:
        return f"{what}. They still change: particles have not equilibrated, take more steps"
    return f"{what}. They no longer change: the step is too large, or a gradient is wrong"


# Identities of a block -----------------------------------------------------------------------------


def _of_block(along: Snapshots, b: Block, edges: Sequence[int]) -> Iterator[Identity]:
    if (own := _own_score(along, b, edges)) is not None:
        yield own
    if b.optimizer is not None or (b.inner is not None and b.inner.fresh):
        return  # no SDE moves it, or its particles are drawn anew
    if b.role == "parameters":
        pure = b.preconditioner is None and not b.restart and not b.heated
        if pure and along.every and _has_energy(along, b):
            p, f = _cloud(along, b, b.momentum), _clouds_of(along.forces([b.name])[b.name])
            yield _work(along, b, p, f, edges)
        return
    score = _clouds_of(along.forces([b.name])[b.name])
    if _has_energy(along, b):
        yield _work(along, b, _cloud(along, b, b.momentum), score, edges)
    if b.heated and score.shape[-2] > 1:
        yield from _stationary(along, b, score, edges)


def _has_energy(along: Snapshots, b: Block) -> bool:
    """Whether a block has a kinetic energy whose balance snapshots show.

    Not where a step moves some data alone, eta changes, or snapshots are too far apart.
    """
    if not b.kinetic or along.batches or not along.resolves(b):
        return False
    return bool(np.ptp(along.number(b, "eta"), axis=0).max() == 0)


def _cloud(along: Snapshots, b: Block, name: str | None) -> Array:
    return _clouds_of(along.state[name or b.position].numpy())


def _clouds_of(values: Array) -> Array:
    """[T, R, D, N, d], where there are no data or no particles D = 1 or N = 1."""
    lead, own = values.shape[:2], values.shape[2:]
    return values.reshape(*lead, *(1 for _ in range(3 - len(own))), *own)


def _work(along: Snapshots, b: Block, p: Array, f: Array, edges: Sequence[int]) -> Identity:
    """Work and dissipation, of each particle on its own."""
    clock = along.clock(b)
    eta, gamma, temperature = (
        along.number(b, name)[..., None, None] for name in ("eta", "gamma", "temperature")
    )
    energy = eta / 2 * (p**2).sum(-1)
    flows = [
        eta * (p * f).sum(-1),
        -2 * gamma * eta * energy,
        gamma * eta * p.shape[-1] * temperature + 0 * energy,
    ]
    values, errors = [], []
    for i, j in pairwise(edges):
        gained = energy[j] - energy[i]
        fine, coarse = (
            np.array([integral(flow[at], clock[at]) for flow in flows])
            for at in ([*range(i, j + 1)], [*range(i, j, 2), j])
        )
        terms = [abs(float(term.mean())) for term in (gained, *fine)]
        turned = max(sum(terms) / 2, 1e-300)
        value, error = jackknife(gained - fine.sum(0), np.full_like(gained, turned))
        values.append(value)
        errors.append(np.hypot(error, (fine - coarse).sum(0).mean() / turned))
    return Identity(WORK, b.name, 0.0, np.array(values), np.array(errors), _free(p))


def _stationary(along: Snapshots, b: Block, score: Array, edges: Sequence[int]) -> Iterator[Identity]:
    """The three temperatures; each particle's share is its mean over the window."""
    x = _cloud(along, b, b.position)
    *_, n, d = x.shape
    heat = along.number(b, "temperature")[..., None, None] + np.zeros(x.shape[:-1])
    if b.kinetic:
        square = along.number(b, "eta")[..., None, None] * (_cloud(along, b, b.momentum) ** 2).sum(-1)
        yield _ratio(STATIONARY[0], b, square, d * heat, edges, x)
    away = (x - x.mean(-2, keepdims=True)) * n / (n - 1)
    yield _ratio(STATIONARY[1], b, -(away * score).sum(-1), d * heat, edges, x)
    spread = np.sqrt(x.var(-2).mean((-2, -1), keepdims=True))[..., None]
    reach = 1e-2 * np.maximum(spread, 1e-4 * (1 + np.abs(x).mean()))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], x.shape)
    shape = along.state[b.position].shape
    ahead, behind = (
        _clouds_of(along.forces([b.name], moved={b.position: moved.reshape(shape)})[b.name])
        for moved in (torch.from_numpy(x + way * reach * signs) for way in (1, -1))
    )
    divergence = (signs * (ahead - behind)).sum(-1) / (2 * reach[..., 0])
    yield _ratio(STATIONARY[2], b, (score**2).sum(-1), -heat * divergence, edges, x)


def _ratio(name: str, b: Block, above: Array, below: Array, edges: Sequence[int], x: Array) -> Identity:
    pairs = [jackknife(above[i : j + 1].mean(0), below[i : j + 1].mean(0)) for i, j in pairwise(edges)]
    values, errors = np.array(pairs).T
    return Identity(name, b.name, 1.0, values, errors, _free(x))


def _own_score(along: Snapshots, b: Block, edges: Sequence[int]) -> Identity | None:
    """How far the model's own score is from the gradient at the end of each window; None without one."""
    if along.field is along.own:
        return None
    found = []
    for _, j in pairwise(edges):
        right, given = (
            along.forces([b.name], field=field, at=slice(j, j + 1))[b.name]
            for field in (along.field, along.own)
        )
        found.append(np.linalg.norm(given - right) / max(float(np.linalg.norm(right)), 1e-300))
    return Identity(SCORE, b.name, 0.0, np.array(found), np.zeros(len(found)))


# Parts ---------------------------------------------------------------------------------------------


def jackknife(above: Array, below: Array) -> tuple[float, float]:
    """The ratio of two means over all of [..., N], and its error by leaving out each of N particles in turn.

    Particles are independent, and of one law along the last axis alone. NaN for the error of a single one.
    """
    n, strata = above.shape[-1], above.size // above.shape[-1]
    value = float(above.mean() / below.mean())
    if n < 2:
        return value, 0.0
    without = [y.mean() + (y.mean(-1, keepdims=True) - y) / ((n - 1) * strata) for y in (above, below)]
    ratios = without[0] / without[1]
    squares = ((ratios - ratios.mean(-1, keepdims=True)) ** 2).sum()
    return value, float(np.sqrt((n - 1) / n * squares))


def _free(cloud: Array) -> float:
    """How many particles are free, once each datum and replica has its mean; of parameters there is none."""
    *_, n, _ = cloud.shape
    return float((n - 1) * cloud.shape[1] * cloud.shape[2]) if n > 1 else np.inf


def _edges(count: int, windows: int) -> list[int]:
    """Where windows begin and end among snapshots; fewer of them where there are few snapshots."""
    if windows < 1:
        raise SdeflowError(f"windows must be at least 1, given {windows}")
    fitting = min(windows, (count - 1) // LEAST)
    if fitting < 1:
        raise SdeflowError(
            f"a balance needs {LEAST + 1} snapshots, the run has {count}: save more often, or take more steps"
        )
    return np.linspace(0, count - 1, fitting + 1).round().astype(int).tolist()


def _dataset(found: Sequence[Identity], steps: Array) -> xr.Dataset:
    def over(values: Sequence[Array]) -> tuple[tuple[str, str], Array]:
        return ("identity", "window"), np.array(values).reshape(len(found), len(steps) - 1)

    expected = np.array([one.expected for one in found])
    values, allowed = (over([getattr(one, name) for one in found]) for name in ("values", "allowed"))
    return xr.Dataset(
        {
            "value": values,
            "error": over([one.errors for one in found]),
            "allowed": allowed,
            "expected": ("identity", expected),
            "off": (values[0], np.abs(values[1] - expected[:, None]) > allowed[1]),
        },
        {
            "name": ("identity", np.array([one.name for one in found], dtype=str)),
            "block": ("identity", np.array([one.block for one in found], dtype=str)),
            "begin": ("window", steps[:-1]),
            "end": ("window", steps[1:]),
        },
    )

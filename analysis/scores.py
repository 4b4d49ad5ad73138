"""The scores of a model at its parameters: evidence, how far it is to be trusted, and reconstructions.

Scored are held-out data where the model has any, else those that it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log, pi
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from sdeflow.analysis import annealing
from sdeflow.analysis.annealing import SETTLING, Base, Ladder, Tick, no_tick, prior
from sdeflow.analysis.entropy import Estimate
from sdeflow.analysis.evidence import Evidence, fitted
from sdeflow.analysis.mixture_prior import Mixture, WithMixture, components_of
from sdeflow.analysis.prior_check import check_prior
from sdeflow.analysis.reconstruction import langevin, misfit
from sdeflow.analysis.samples import Learned, continued
from sdeflow.config.device import resolve_device
from sdeflow.data.splitting import FOLDS, fold
from sdeflow.engine.minibatch import evenly
from sdeflow.errors import SdeflowError, attempt, expect_count, expect_positive
from sdeflow.model.energy import ALPHA, EnergyModel, Prior, part
from sdeflow.model.model import Data, data_size
from sdeflow.model.rows import one_tensor
from sdeflow.seeds import generator

PILOTS, SIMULATED, CONSTANT_CHAINS = 32, 64, 1000
"""Data that steps are adapted on, data that are drawn from the model, chains of log Z."""

MOVED = 100
"""Steps that prior particles take before anything starts from them, as in `sdeflow sample`."""

FEW, LONE = 10, 2
"""Effective chains of log Z, and of a datum's evidence, below which their errors mean little."""

OWN = "of the model"
"""How evaluation.nc calls the prior where no other is put in its place."""

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is scored, and how. Raises SdeflowError for what is out of range.

    data                   so many at most, spread evenly
    fold                   'validation' or 'test', two halves of the held-out data, every other one each: the
                           first to choose numbers by, the second to report; '' is all
    chains, temperatures   of annealed importance sampling
    particles              that reconstruct a datum, by `langevin_steps` steps of `langevin_h`
    at_once                data whose chains move together, which bounds the memory; scores are the same to
                           rounding, as each datum has noise of its own
    prior                  'gmm:K' for a mixture fitted to the final particles; '' is the model's own
    along                  whether the evidence is found at moments of the run, too
    pictures               whether pictures are drawn
    dtype                  float32 or float64; None is the run's
    """

    data: int = 1000
    fold: str = ""
    chains: int = 16
    temperatures: int = 500
    particles: int = 5
    langevin_steps: int = 500
    langevin_h: float = 1e-3
    at_once: int = 100
    dtype: str | None = None
    device: str = "auto"
    seed: int = 0
    replica: int = 0
    prior: str = ""
    along: bool = False
    pictures: bool = True

    def __post_init__(self) -> None:
        for name in ("data", "particles", "langevin_steps", "at_once"):
            expect_count(name, getattr(self, name))
        for name in ("chains", "temperatures"):  # a jackknife leaves one out; a path has a middle
            if expect_count(name, getattr(self, name)) < 2:
                raise SdeflowError(f"{name} must be at least 2, given {getattr(self, name)}")
        expect_positive("langevin_h", self.langevin_h)
        if self.fold:
            fold(0, self.fold)  # refuses one that is none
        if self.prior:
            components_of(self.prior)
        if self.prior and self.along:
            raise SdeflowError(
                "a mixture is fitted to the last particles, and is no prior of moments before: leave --along "
                "or --prior out"
            )
        if self.dtype not in (None, "float32", "float64"):
            raise SdeflowError(f"dtype must be float32 or float64, given {self.dtype}")


class Score(NamedTuple):
    """A mean over data, with standard errors: as data of one law differ, and as chains do, with their bias.

    An error is NaN where there is none of that kind. `each` has what is behind the mean by name, on an axis.
    """

    name: str
    title: str
    value: float
    over_data: float
    over_chains: float
    axis: str = ""
    each: dict[str, Values] = {}  # noqa: RUF012 (nothing changes it)


class Subject:
    """What is scored: a model at the parameters of a run, in a dtype, on a device, and data y at `index`.

    mixture     takes the place of the model's prior
    stated      the model with the prior that it is scored with, as the run has it; `model` where chains are
    particles   [B, N, *latent_shape], that have reconstructed the first data, once `reconstructions` has

    Raises SdeflowError for a prior that cannot be sampled, or whose log_prior and sample_prior do not agree.
    """

    def __init__(self, found: Learned, options: Options, mixture: Mixture | None = None) -> None:
        self.found, self.options = found, options
        self.stated = found.model if mixture is None else WithMixture(found.model, mixture)
        dtype = found.state["X"].dtype if options.dtype is None else getattr(torch, options.dtype)
        self.like = torch.zeros((), dtype=dtype, device=resolve_device(options.device))
        self.model = self.stated.to(dtype, self.like.device)
        self.theta = {name: value.to(self.like) for name, value in found.theta.items()}
        self.held_out = self.model.held_out is not None
        self.of = "held-out data" if self.held_out else "training data"
        self.of += f", {options.fold}" if options.fold else ""
        whole = self.model.held_out if self.held_out else self.model.data
        self.index = self._index(annealing.size(whole))
        self.y = part_of(whole, self.index)
        self.learns_energy = found.learns_energy
        self.base = self._gaussian() if self.learns_energy else prior(self.stated, found.theta, self.like)
        if not self.learns_energy and mixture is None:
            check_prior(type(found.model).__name__, self.base, self.generator("check"))
        self.path = annealing.Path(self.base, self.model, self.theta)
        self.simulates = bool(found.model.sample_data) and not self.learns_energy
        self.decodes = bool(found.model.decode) and one_tensor(found.model.data)
        self.tick: Tick = no_tick
        self.particles: Tensor | None = None
        self.notes: list[str] = []

    def _index(self, count: int) -> Tensor:
        """Of so many data those that are scored, [B]."""
        name = self.options.fold
        if name and (not self.held_out or count < len(FOLDS)):
            raise SdeflowError(
                f"fold = '{name}' is half of the held-out data, at least {len(FOLDS)} were expected, and "
                f"{type(self.found.model).__name__} has {count * self.held_out}: leave --fold out"
            )
        every = torch.from_numpy(fold(count, name)) if name else torch.arange(count)
        return every[evenly(len(every), self.options.data)]

    @property
    def pieces(self) -> Iterator[slice]:
        return pieces(len(self.index), self.options.at_once)

    def generator(self, *names: object) -> torch.Generator:
        return generator(self.options.seed, "evaluate", *names)

    def a_datum(self, name: str, piece: slice) -> list[torch.Generator]:
        """Generators for some data, one each, whatever other data there are."""
        return [self.generator(name, i) for i in self.index[piece].tolist()]

    def ladder(self, path: annealing.Path, y: Data, chains: int) -> Ladder:
        """Steps that are adapted on data y, which may be anywhere."""
        kind: Any = {"temperatures": self.options.temperatures, "chains": chains, "tick": self.tick}
        return annealing.adapted(path, self.there(y), g=self.generator("pilot"), **kind)

    def there(self, data: Data) -> Data:
        """Data in the dtype and on the device of the chains."""
        return tree_map(lambda v: v.to(self.like) if v.is_floating_point() else v.to(self.like.device), data)

    def prior_draws(self, n: int, g: torch.Generator) -> Tensor:
        """Latents [n, *latent_shape] of the prior: exact, or of a learned energy its particles, moved on."""
        if not self.learns_energy:
            return self.base.sample(n, g)
        found, seed = self.found, int(torch.randint(1 << 31, (1,), generator=g))
        moved = continued(found.system, found.scheme, found.state, n, MOVED, seed)
        return moved.view(n, *self.model.latent_shape).to(self.like)

    def _gaussian(self) -> Base:
        """The Gaussian fitted to draws of the learned prior, a little wider."""
        draws = self.prior_draws(len(self.found.state["Z"]), self.generator("base"))
        mean, factor = (value[0].to(self.like) for value in fitted(draws.cpu()[None]))
        shape, constant = self.model.latent_shape, factor.diagonal().log().sum() + len(mean) * log(2 * pi) / 2

        def log_density(x: Tensor) -> Tensor:
            z = torch.linalg.solve_triangular(factor, (x.flatten(1) - mean).mT, upper=False)
            return -z.square().sum(0) / 2 - constant

        def sample(n: int, g: torch.Generator) -> Tensor:
            z = torch.randn(n, len(mean), generator=g, dtype=torch.float64).to(self.like)
            return (mean + z @ factor.mT).view(n, *shape)

        return Base(log_density, sample)

    @property
    def moves(self) -> int:
        """How many moves all scores take, after each of which `tick` is called."""
        backwards = 2 * self.simulates * (self.options.temperatures - 1)
        return self.moves_of_evidence + backwards + self.decodes * self.batches * self.options.langevin_steps

    @property
    def moves_of_evidence(self) -> int:
        ways, adaptations = 1 + self.batches + 2 * self.learns_energy, 1 + self.learns_energy
        return ways * (self.options.temperatures - 1) + adaptations * SETTLING

    @property
    def batches(self) -> int:
        return -(-len(self.index) // self.options.at_once)


def evidence(subject: Subject) -> tuple[list[Score], Ladder]:
    """log p_theta(y_i), from below in expectation, and log Z where an energy was learned; and the steps."""
    options, scores = subject.options, []
    pilots = part_of(subject.model.data, evenly(data_size(subject.model), PILOTS))
    ladder = subject.ladder(subject.path, pilots, options.chains)
    parts = []
    for piece in subject.pieces:
        y, g = part_of(subject.y, piece), subject.a_datum("chains", piece)
        parts.append(
            annealing.forwards(subject.path, y, ladder, chains=options.chains, g=g, tick=subject.tick)
        )
    found = Evidence(*map(np.concatenate, zip(*parts, strict=True)))
    if (effective := float(np.median(found.ess))) < LONE:
        subject.notes.append(
            f"of half of the data no more than {effective:.1f} of {options.chains} chains count: the "
            "evidence is likely too low, give more --temperatures"
        )
    log_z = Estimate(0.0, 0.0)
    if subject.learns_energy:
        log_z = _log_z(subject)
        scores.append(Score("log_z", "log Z of the energy", log_z.value, np.nan, log_z.error))
    value = found.value - log_z.value
    each = {"log_evidence": value, "log_evidence_error": found.error, "effective_samples": found.ess}
    error = float(np.hypot(found.mean.error, log_z.error))
    title = f"log-evidence, {subject.of}"
    return [_score("evidence", title, value, error, "datum", each), *scores], ladder


def _log_z(subject: Subject) -> Estimate:
    """log Z(alpha), the evidence of the prior as a model of its own."""
    model, alpha = subject.model, part(subject.theta, ALPHA)
    assert isinstance(model, EnergyModel)
    path = annealing.Path(subject.base, Prior(model), alpha)
    nothing = subject.there(torch.zeros(1, 0))
    ladder = subject.ladder(path, nothing, PILOTS * subject.options.chains)
    kind: Any = {"chains": CONSTANT_CHAINS, "g": subject.generator("log Z"), "tick": subject.tick}
    found = annealing.forwards(path, nothing, ladder, **kind)
    if (effective := float(found.ess[0])) < FEW:
        subject.notes.append(
            f"{effective:.1f} of {CONSTANT_CHAINS} chains of log Z count: it is likely too low, the evidence "
            "too high, give more --temperatures"
        )
    return found.mean


def gap(subject: Subject, ladder: Ladder) -> Score:
    """Of data that are drawn from the model, the bound on log p(y) from above less that from below."""
    model, theta, g = subject.stated, subject.found.theta, subject.generator("simulated")
    x = subject.base.sample(SIMULATED, g)
    name = f"{type(subject.found.model).__name__}.sample_data"
    y = subject.there(attempt(name, model.sample_data, theta, x.to(subject.found.state["X"]), g))
    one = part_of(model.data, slice(0, 1))
    given, expected = ([v.shape[1:] for v in tree_leaves(data)] for data in (y, one))
    if given != expected or annealing.size(y) != SIMULATED:
        raise SdeflowError(
            f"{name} gives data of shapes {given} for a latent, and the model's have {expected}"
        )
    kind: Any = {"chains": subject.options.chains, "g": g, "tick": subject.tick}
    below = annealing.forwards(subject.path, y, ladder, **kind).value
    above = -annealing.backwards(subject.path, x, y, ladder, **kind).value
    each = {"simulated_below": below, "simulated_above": above}
    return _score("gap", "gap of bounds, simulated data", above - below, np.nan, "simulated", each)


def reconstructions(subject: Subject) -> list[Score]:
    """Mean squared errors of a pixel: of particles from the prior, and of the run's own for its data."""
    found, options, model, theta = subject.found, subject.options, subject.model, subject.theta
    parts, data = [], len(subject.index)
    start = subject.prior_draws(data * options.particles, subject.generator("reconstruct"))
    start = start.view(data, options.particles, *model.latent_shape)
    how: Any = {"steps": options.langevin_steps, "h": options.langevin_h, "tick": subject.tick}
    for piece in subject.pieces:
        y, g = part_of(subject.y, piece), subject.a_datum("reconstruct", piece)
        x = langevin(model, theta, start[piece], y, g=g, **how)
        subject.particles = x if subject.particles is None else subject.particles
        parts.append(misfit(model, theta, x, y))
    index = evenly(data_size(model), options.data)
    own = []
    for piece in pieces(len(index), options.at_once):
        x = found.state["X"][index[piece]].to(subject.like)
        x = x.view(*x.shape[:2], *model.latent_shape)
        own.append(misfit(model, theta, x, model.data[index[piece]]))
    scores = []
    for name, title, axis, misfits in (
        ("reconstruction", f"reconstruction, {subject.of}", "datum", parts),
        ("own_reconstruction", "reconstruction, own particles", "trained", own),
    ):
        of_mean, of_each = map(np.concatenate, zip(*misfits, strict=True))
        scores.append(_score(name, title, of_mean, np.nan, axis, {name: of_mean}))
        scores.append(
            _score(f"{name}_each", "  of single particles", of_each, np.nan, axis, {f"{name}_each": of_each})
        )
    return scores


def _score(
    name: str, title: str, values: Values, over_chains: float, axis: str, each: dict[str, Values]
) -> Score:
    error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else np.nan
    return Score(name, title, float(values.mean()), error, over_chains, axis, each)


def pieces(n: int, size: int) -> Iterator[slice]:
    """The range of n in pieces of a size."""
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def part_of(data: Data, index: Tensor | slice) -> Data:
    """Some of the data."""
    return tree_map(lambda values: values[index], data)

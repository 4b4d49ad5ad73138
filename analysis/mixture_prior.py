"""A Gaussian mixture fitted to the final particles, to be a prior in place of the model's own.

    p(x) = sum_k pi_k N(x; m_k, diag(v_k)),  fitted by EM to x_ij, all data and particles together

Training pulls the aggregate of the posteriors, (1/D) sum_i p(x | y_i), towards the prior and seldom reaches
it: where the two differ, decoded samples of the prior are of latents that no datum has.
Source: Ghosh et al. 2020, arXiv:1903.12436.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import log, pi
from numbers import Integral
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdeflow.analysis.entropy import refuse_not_finite
from sdeflow.errors import SdeflowError, is_number
from sdeflow.model.model import Data, Model, Parameters
from sdeflow.trajectory import durable

PARTICLES = 10
"""Particles for each component at least."""

MOST = 100_000
"""Particles that are fitted at most, spread evenly over those there are, which bounds the time of EM."""

ITERATIONS, SEED = 500, 0
"""Of EM at most, and what its start is drawn from."""


@dataclass(frozen=True)
class Mixture:
    """sum_k exp(log_weights_k) N(means_k, diag(variances_k)): [K], [K, d] and [K, d], float64."""

    log_weights: Tensor
    means: Tensor
    variances: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) of x [..., d], in its dtype and on its device; it can be differentiated.

        |x - m_k|^2 / v_k by products of matrices, about the mean of all: it holds K numbers for each of x.
        """
        centre = self.log_weights.exp() @ self.means
        means, precisions = self.means - centre, self.variances.reciprocal()
        normaliser = self.means.shape[-1] * log(2 * pi) - precisions.log().sum(-1)
        constants = self.log_weights - (normaliser + (means.square() * precisions).sum(-1)) / 2
        x = x - centre.to(x)
        linear, square, constants = (v.to(x) for v in ((means * precisions).mT, precisions.mT / 2, constants))
        return (x @ linear - x.square() @ square + constants).logsumexp(-1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points [n, d], float64."""
        which = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        normals = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + self.variances[which].sqrt() * normals


class WithMixture(Model):
    """A model with a mixture in place of its prior: l_i(theta, x) - log p_theta(x) + log p_mixture(x).

    Raises SdeflowError for one that does not state its log_prior.
    """

    def __init__(self, model: Model, mixture: Mixture) -> None:
        if model.log_prior is None:
            name = type(model).__name__
            raise SdeflowError(
                f"{name} has no log_prior, whose place a mixture would take: give it log_prior(theta, x) "
                "-> [n], of x [n, *latent_shape], or leave --prior out"
            )
        self.of, self.mixture = model, mixture
        self.data, self.held_out, self.latent_shape = model.data, model.held_out, model.latent_shape
        self.decode, self.sample_data = model.decode, model.sample_data
        self.image_shape, self.real_images = model.image_shape, model.real_images

    def log_prior(self, theta: Parameters, x: Tensor) -> Tensor:
        return self.mixture.log_density(x.flatten(1))

    def sample_prior(self, theta: Parameters, n: int, generator: torch.Generator) -> Tensor:
        return self.mixture.sample(n, generator).view(n, *self.latent_shape)

    def log_joint(self, theta: Parameters, x: Tensor, y: Data) -> Tensor:
        latents = x.flatten(0, 1)
        gain = self.log_prior(theta, latents) - self.of.log_prior(theta, latents)
        return self.of.log_joint(theta, x, y) + gain.view(x.shape[:2])

    def init_theta(self, generator: torch.Generator) -> Parameters | torch.nn.Module:
        return self.of.init_theta(generator)

    def to(self, dtype: torch.dtype, device: torch.device) -> Self:
        return type(self)(self.of.to(dtype, device), self.mixture)


def components_of(prior: str) -> int:
    """K of 'gmm:K'; raises SdeflowError for anything else."""
    found = re.fullmatch(r"gmm:([1-9]\d{0,5})", prior)
    if found is None:
        raise SdeflowError(
            f"a prior is gmm:K, a mixture of K Gaussians, for example gmm:100; given {prior!r}"
        )
    return int(found.group(1))


def fit_mixture(x: Tensor, components: int, seed: int = SEED) -> Mixture:
    """The mixture fitted to points x [n, d] by EM, which begins at k-means from the seed.

    Variances have a floor of 1e-6 of the mean variance of x, so that a component of one point is none of
    infinite density.

    Raises SdeflowError for no component, points that are not finite or are all the same, and fewer than
    PARTICLES for each component.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    if not is_number(components, Integral) or components < 1:
        raise SdeflowError(f"components must be a whole number of at least 1, given {components!r}")
    count = len(x)
    spread = torch.linspace(0, count - 1, min(count, MOST), dtype=torch.float64).round().long()
    points = x.detach().cpu()[spread].double().numpy()
    refuse_not_finite(points, "the particles")
    if count < PARTICLES * components:
        most = count // PARTICLES
        fix = f"give gmm:{most} or fewer" if most else "it needs more particles"
        raise SdeflowError(
            f"a mixture of {components} needs {PARTICLES * components:,} particles, {PARTICLES} for each "
            f"component, and there are {count:,}: {fix}"
        )
    variance = float(points.var(axis=0).mean())
    if not variance > 0:
        raise SdeflowError(f"a mixture needs particles that differ, and all {count:,} are the same")
    found = GaussianMixture(
        components,
        covariance_type="diag",
        reg_covar=1e-6 * variance,
        max_iter=ITERATIONS,
        random_state=seed,
    )
    with warnings.catch_warnings():  # a likelihood that still grows slowly after ITERATIONS is as good a fit
        warnings.simplefilter("ignore", ConvergenceWarning)
        found.fit(points)
    values = (np.log(found.weights_), found.means_, found.covariances_)
    return Mixture(*(torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64)) for v in values))


def mixture_of(run: Path, particles: Tensor, components: int, replica: int = 0) -> tuple[Mixture, Path]:
    """The mixture of a run folder's final particles [D, N, d], and its file; fitted where it is not there.

    A file of other particles, of a run that has gone on since, or one that cannot be read, is replaced.
    Raises as `fit_mixture`.
    """
    of = "" if replica == 0 else f"-replica{replica}"
    path = run / f"prior-gmm{components}{of}.safetensors"
    x = particles.flatten(0, -2)
    found = _read(path, x)
    if found is None:
        found = fit_mixture(x, components)
        durable.write(path, save(asdict(found), metadata={"sha256": _digest(x, found)}))
    return found, path


def _read(path: Path, particles: Tensor) -> Mixture | None:
    """The mixture in a file; None where that is not what was fitted to these particles."""
    with suppress(OSError, SafetensorError, TypeError), safe_open(path, framework="pt") as file:
        found = Mixture(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        if (file.metadata() or {}).get("sha256") == _digest(particles, found):
            return found
    return None


def _digest(particles: Tensor, mixture: Mixture) -> str:
    digest = hashlib.sha256()
    for value in (particles, *asdict(mixture).values()):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().numpy().data)
    return digest.hexdigest()

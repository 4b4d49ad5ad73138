"""Systems of consensus-based optimisation: a model, or a function, and the numbers of a cloud of points.

Each gives an SDESystem of its points, and not of blocks, as nothing is asked for but values: no gradients, no
particles of latents. Their noise depends on all points, so Euler-Maruyama alone takes it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from sdeflow.errors import StabilityWarning, expect_count

if TYPE_CHECKING:
    from sdeflow.system.consensus import CBO, KineticCBO
    from sdeflow.system.sde import SDESystem

Bound = float | Sequence[float]
NoiseOf = Literal["anisotropic", "isotropic"]


def cbo(
    model: Any,
    *,
    particles: int = 100,
    h: float = 0.05,
    pull: float = 1.0,
    sigma: float | None = None,
    noise: NoiseOf = "anisotropic",
    alpha: float = 100.0,
    low: Bound = -3.0,
    high: Bound = 3.0,
    dimension: int | None = None,
) -> SDESystem:
    """Consensus-based optimisation, by values of f alone.

    Points drift to where f is least among them, and explore on the way:

        dX_j = -lambda (X_j - c) dt + sigma D_j dW_j,    D_j = diag(X_j - c), or |X_j - c| where isotropic

    with c the consensus, the mean with weights exp(-alpha (f(X_j) - min f)): N values of f a step. The cloud
    contracts in mean square where 2 lambda > sigma^2 d', with d' = 1, or d where isotropic, and rests then at
    a point whether that is a minimum or not: on Rastrigin's function from U(-3, 3)^d 100 points find the
    least minimum in two dimensions, and as a rule not in ten.

    model       what to learn: a model with log_likelihood(theta), of which f is the negative; or f itself, a
                function of points [..., d]
    particles   N, the points
    h           the step, in units of [time]
    pull        lambda, the rate at which points go to the consensus
    sigma       coefficient of the noise (default: 1, and 1/sqrt(d) where it is isotropic)
    noise       'anisotropic', by coordinate, or 'isotropic'
    alpha       how sharply the least values of f count in the consensus
    low, high   the box from which points are drawn, uniformly: numbers, or lists of one a coordinate
    dimension   d, where the model is a function

    Warns where the cloud does not contract. Raises SdeflowError for a model without log_likelihood(theta),
    and for numbers out of range.
    Source: Pinnau, Totzeck, Tse, Martin 2017; anisotropic: Carrillo, Jin, Li, Zhu 2021.
    """
    from sdeflow.system.consensus import CBO

    sde = CBO(
        model, pull=pull, sigma=sigma, noise=noise, alpha=alpha, dimension=dimension, low=low, high=high
    )
    return _contracting(sde, h, particles)


def kinetic_cbo(
    model: Any,
    *,
    particles: int = 100,
    h: float = 0.05,
    eta: float = 1.0,
    gamma: float = 1.0,
    pull: float = 1.0,
    sigma: float | None = None,
    noise: NoiseOf = "anisotropic",
    alpha: float = 100.0,
    low: Bound = -3.0,
    high: Bound = 3.0,
    dimension: int | None = None,
) -> SDESystem:
    """Consensus-based optimisation with a momentum.

    A swarm that does not remember its best points:

        dX_j = eta U_j dt,    dU_j = (-gamma eta U_j - lambda (X_j - c)) dt + sigma D_j dW_j

    from rest. It contracts in mean square where sigma^2 d' < 2 gamma lambda.

    model       what to learn: a model with log_likelihood(theta), or a function of points [..., d]
    particles   N, the points
    h           the step, in units of [time]
    eta         inverse mass
    gamma       friction
    pull        lambda, of the spring to the consensus
    sigma       coefficient of the noise (default: 1, and 1/sqrt(d) where it is isotropic)
    noise       'anisotropic', by coordinate, or 'isotropic'
    alpha       how sharply the least values of f count in the consensus
    low, high   the box from which points are drawn, uniformly: numbers, or lists of one a coordinate
    dimension   d, where the model is a function

    Warns and raises as `cbo` does. Source: Grassi, Pareschi 2021, arXiv:2012.05613.
    """
    from sdeflow.system.consensus import KineticCBO

    sde = KineticCBO(
        model,
        eta=eta,
        gamma=gamma,
        pull=pull,
        sigma=sigma,
        noise=noise,
        alpha=alpha,
        dimension=dimension,
        low=low,
        high=high,
    )
    return _contracting(sde, h, particles)


def consensus_hopping(
    model: Any,
    *,
    particles: int = 100,
    radius: float = 0.3,
    alpha: float = 100.0,
    low: Bound = -3.0,
    high: Bound = 3.0,
    dimension: int | None = None,
) -> SDESystem:
    """Consensus hopping, a relaxed gradient descent by values.

    A point goes to the consensus of points that are drawn about it:

        X_j' = c + radius xi_j,    xi_j ~ N(0, I)

    Where f is a quadratic and N large, c is the implicit gradient step of size alpha radius^2. As an SDE it
    is dX = (c - X) dt + radius dW with the step h = 1. The points do not contract: what it finds is the
    consensus.

    model       what to learn: a model with log_likelihood(theta), or a function of points [..., d]
    particles   N, the points drawn in a step
    radius      their standard deviation
    alpha       how sharply the least values of f count in the consensus
    low, high   the box from which the first are drawn, uniformly: numbers, or lists of one a coordinate
    dimension   d, where the model is a function

    Raises as `cbo` does. Source: Riedl, Klock, Geldhauser, Fornasier 2023, arXiv:2306.09778.
    """
    from sdeflow.system.consensus import ConsensusHopping
    from sdeflow.system.sde import SDESystem

    sde = ConsensusHopping(model, radius=radius, alpha=alpha, dimension=dimension, low=low, high=high)
    return SDESystem(sde, h=1.0, paths=expect_count("particles", particles))


def _contracting(sde: CBO | KineticCBO, h: float, particles: int) -> SDESystem:
    """The system, with a warning where its cloud spreads."""
    from sdeflow.system.sde import SDESystem

    system = SDESystem(sde, h=h, paths=expect_count("particles", particles))
    if (factor := sde.contraction(h)) >= 1:
        warnings.warn(
            f"a step multiplies the cloud's mean square spread by {factor:.3g} where all points count alike, "
            "so that it may not contract: lower sigma or h",
            StabilityWarning,
            stacklevel=3,
        )
    return system

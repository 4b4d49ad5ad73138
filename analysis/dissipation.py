"""The free energy of a run against what it dissipates, where clouds are Gaussian.

With F of sdeflow.analysis.free_energy, in continuous time and for many particles, under mpgd:

    dF/dt = - gamma_theta eta_theta^2 |m|^2 - gamma_x sum_i E_q | grad_u log q_i(x, u) + eta_x u |^2

each block on its own clock. Of a Gaussian cloud with mean u and covariance S of (x, u) the second is

    tr (S^-1)_uu - 2 eta d + eta^2 E|u|^2

of which N particles give an unbiased estimate with S^-1 (N - 2 d - 2) / (N - 1).

Source: Lim, Kuntz, Power, Johansen 2024, arXiv:2312.07335.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sdeflow.analysis.entropy import LOG_2PI, Array, log_det_bias

if TYPE_CHECKING:
    from sdeflow.analysis.snapshots import Snapshots

GROUPS, GAUSSIAN = 10, 4.0
"""Groups of particles that the jackknife leaves out in turn; standard errors by which the fourth moments of
Gaussian clouds may be off."""


def dissipation(x: Array, u: Array, eta: float) -> Array:
    """sum_i E|grad_u log q_i + eta u|^2 of Gaussian clouds [..., D, N, d], estimated without bias.

    NaN where particles lie in a plane.
    """
    n, d = x.shape[-2:]
    try:
        inverse = np.linalg.inv(_covariance(x, u))[..., d:, d:] * (n - 2 * d - 2) / (n - 1)
    except np.linalg.LinAlgError:  # of particles in a plane, which have no density
        return np.full(x.shape[:-3], np.nan)
    trace = np.trace(inverse, axis1=-2, axis2=-1)
    return (trace - 2 * eta * d + eta**2 * (u**2).sum(-1).mean(-1)).sum(-1)


def free_energy(x: Array, u: Array, log_joint: Array, eta: float) -> Array:
    """F less the energy of theta's momentum, of Gaussian clouds [..., D, N, d] with log-joint [..., D, N].

    As `sdeflow.analysis.free_energy.enriched_energy` by its fit, without a bias either.
    """
    n, d = x.shape[-2:]
    entropy = d * (LOG_2PI + 1) + (np.linalg.slogdet(_covariance(x, u))[1] - log_det_bias(n, 2 * d)) / 2
    log_r = (d * (np.log(eta) - LOG_2PI) - eta * (u**2).sum(-1)) / 2
    return -(entropy + (log_joint + log_r).mean(-1)).sum(-1)


def free_energy_balance(along: Snapshots, edges: Sequence[int]) -> tuple[Array, Array, float] | None:
    """The change of F plus what was dissipated over the larger of both, in each window, with its error.

    The error is the jackknife's over GROUPS of particles, whose number less one is given too, and how much
    the integral changes if every other snapshot is left out. None where F is not the run's: theta and x must
    have momenta, T = 0 and 1, and move by their forces alone; all data must be saved, snapshots be close
    enough, and clouds be Gaussian.
    """
    if not _has_free_energy(along):
        return None
    theta, cloud = along.system.blocks
    (m, x, u) = (along.state[name].numpy() for name in ("m", "X", "U"))
    n, d = x.shape[-2:]
    groups = np.arange(n) % min(n, GROUPS)
    if n - np.bincount(groups).max() < 2 * d + 3 or not _gaussian(x, u, edges):
        return None
    logs, eta = along.log_joint(), float(along.number(cloud, "eta")[0, 0])
    eta_theta = float(along.number(theta, "eta")[0, 0])
    square = (m**2).sum(-1)
    lost = along.number(theta, "gamma") * eta_theta**2 * square
    rate = along.number(cloud, "gamma")

    def defects(kept: Array) -> tuple[Array, Array, Array]:
        """The defect in each window, the size that it is told in, and what a coarser integral adds."""
        f = free_energy(x[..., kept, :], u[..., kept, :], logs[..., kept], eta) + eta_theta / 2 * square
        flows = (
            (lost, along.clock(theta)),
            (rate * dissipation(x[..., kept, :], u[..., kept, :], eta), along.clock(cloud)),
        )
        found = []
        for i, j in pairwise(edges):
            every, other = [*range(i, j + 1)], [*range(i, j, 2), j]
            whole, coarse = (
                sum(float(integral(flow[at], clock[at]).mean()) for flow, clock in flows)
                for at in (every, other)
            )
            gained = float((f[j] - f[i]).mean())
            found.append((gained + whole, max(abs(gained), abs(whole), 1e-300), whole - coarse))
        defect, size, coarser = np.array(found).T
        return defect, size, coarser

    defect, size, coarser = defects(np.ones(n, dtype=bool))
    without = np.array([defects(groups != g)[0] for g in range(groups.max() + 1)])
    count = len(without)
    error = np.sqrt((count - 1) / count * ((without - without.mean(0)) ** 2).sum(0))
    return defect / size, np.hypot(error, coarser) / size, count - 1.0


def _has_free_energy(along: Snapshots) -> bool:
    blocks = along.system.blocks
    of_all = along.whole and not along.batches and not along.own.stored
    if [b.position for b in blocks] != ["theta", "X"] or not of_all:
        return False
    plain = all(b.kinetic and b.rule is None and not b.restart and b.inner is None for b in blocks)
    steady = plain and all(np.ptp(along.number(b, "eta")) == 0 and along.resolves(b) for b in blocks)
    return steady and all(
        (along.number(b, "temperature") == t).all() for b, t in zip(blocks, (0, 1), strict=True)
    )


def _gaussian(x: Array, u: Array, edges: Sequence[int]) -> bool:
    """Whether no fourth moment tells otherwise where windows begin and end."""
    n = x.shape[-2]
    for cloud in (x[list(edges)], u[list(edges)]):
        spread = np.maximum(cloud.std(-2, keepdims=True), 1e-300)
        fourth = (((cloud - cloud.mean(-2, keepdims=True)) / spread) ** 4).mean(-2)
        error = np.sqrt(24 / (n * fourth[0].size))
        means = fourth.reshape(len(edges), -1).mean(1)
        if (np.abs(means - 3 * (n - 1) / (n + 1)) > GAUSSIAN * error).any():
            return False
    return True


def _covariance(x: Array, u: Array) -> Array:
    both = np.concatenate([x, u], -1)
    centred = both - both.mean(-2, keepdims=True)
    return centred.swapaxes(-1, -2) @ centred / (both.shape[-2] - 1)


def integral(flow: Array, clock: Array) -> Array:
    """Over the time clock [n, R], by trapezia, of flow [n, R, ...]."""
    lengths = np.diff(clock, axis=0).reshape(len(clock) - 1, -1, *(1 for _ in flow.shape[2:]))
    return ((flow[1:] + flow[:-1]) / 2 * lengths).sum(0)

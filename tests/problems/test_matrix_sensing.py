"""Matrix sensing.

Oracles: torch's distributions; autograd; Riccati's closed form of the gradient flow, itself compared with an
integration by scipy; the constants of the power laws.
"""

from __future__ import annotations

from math import log, pi
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from support import exponent
from torch import Tensor
from torch.distributions import Normal

from sdeflow import Block, BlockSystem, Save, pgd, simulate
from sdeflow.analysis.decay import Series
from sdeflow.analysis.rates import fit_decay, fit_power
from sdeflow.config.arguments import call
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.problems.matrix_sensing import MatrixSensing
from sdeflow.simulation.solve import solve

MODEL = MatrixSensing(size=3, columns=2, eigenvalues=(2.0,), data_seed=4)


def factor(n: int, k: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 2


def test_log_joint_and_its_marginal() -> None:
    """The log-joint less the log-posterior is -|X X' - M|^2/4 - (n^2/2) log 4 pi, at any Z."""
    theta = {"factor": factor(3, 2)}
    product, m = theta["factor"] @ theta["factor"].mT, MODEL.data[0]
    x = torch.randn(1, 5, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = MODEL.log_joint(theta, x, MODEL.data)
    expected = (Normal(product, 1.0).log_prob(x) + Normal(x, 1.0).log_prob(m)).sum((-1, -2))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)
    posterior = Normal((product + m) / 2, 0.5**0.5).log_prob(x).sum((-1, -2))
    loss = (product - m).square().sum() / 4
    np.testing.assert_allclose(found - posterior, -float(loss) - 4.5 * log(4 * pi), atol=1e-11)
    distance = MODEL.observables(theta, x, MODEL.data)["distance"]
    assert float(distance) == pytest.approx(2 * float(loss) ** 0.5, rel=1e-12)


def test_scores_are_the_gradients_and_at_the_posterior_that_of_the_loss() -> None:
    theta, g = {"factor": factor(3, 2).requires_grad_()}, torch.Generator().manual_seed(2)
    x = torch.randn(1, 5, 3, 3, generator=g, dtype=torch.float64).requires_grad_()
    by_x, by_theta = torch.autograd.grad(MODEL.log_joint(theta, x, MODEL.data).sum(), (x, theta["factor"]))
    with torch.no_grad():
        torch.testing.assert_close(MODEL.score_x(theta, x, MODEL.data), by_x, rtol=1e-12, atol=1e-12)
        found = MODEL.score_theta(theta, x, MODEL.data)["factor"]
        torch.testing.assert_close(found, by_theta, rtol=1e-12, atol=1e-11)
        own, m = theta["factor"], MODEL.data[0]
        mean = ((own @ own.mT + m) / 2)[None, None]
        force = MODEL.score_theta(theta, mean, MODEL.data)["factor"]
        torch.testing.assert_close(force, -(own @ own.mT - m) @ own, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("columns", [2, 4])
def test_the_matrix_has_its_eigenvalues(columns: int) -> None:
    model = MatrixSensing(columns=columns)
    np.testing.assert_allclose(torch.linalg.eigvalsh(model.data[0]), [0, 0, 2, 3], atol=1e-14)
    assert model.init_theta(torch.Generator())["factor"].shape == (4, columns)


# The gradient flow, of blocks with a force made by hand -----------------------------------------------


def riccati(m: Series, x: Series, t: float) -> Series:
    """P(t) = e^(Mt) X (I + X' B X)^-1 X' e^(Mt),  B = (e^(2Mt) - I) M^-1, or 2t where M has none.

    Rounding costs e^(2 lambda t) of its digits.
    """
    values, vectors = np.linalg.eigh(m)
    null = np.abs(values) < 1e-12
    b = np.where(null, 2 * t, np.expm1(2 * values * t) / np.where(null, 1, values))
    grown = vectors * np.exp(values * t) @ vectors.T @ x
    inner = np.eye(x.shape[1]) + x.T @ (vectors * b @ vectors.T) @ x
    return grown @ np.linalg.solve(inner, grown.T)


def sensing(columns: int, h: float, **motion: Any) -> BlockSystem:
    """X. = -(X X' - M) X on the packaged matrix, or with a momentum."""
    m, x = MatrixSensing(columns=columns).data[0], factor(4, columns)

    def forces(t: float, z: Any, names: Any) -> dict[str, Tensor]:
        at = z["theta"].unflatten(1, x.shape)
        return {"theta": -((at @ at.mT - m) @ at).flatten(1)}

    own = {"temperature": 0.0, "role": "parameters", **motion}
    block = Block("theta", "theta", (x.numel(),), ("param",), **own)
    return BlockSystem([block], forces, h=h, start={"theta": x.flatten()})


def followed(system: BlockSystem, integrator: str, steps: int, every: int) -> tuple[Series, Series, Series]:
    """t, X and |X X' - M| along a run."""
    run = simulate(system, integrator, steps=steps, save=Save(every=every), dtype="float64")
    x = run.theta.values.reshape(len(run.time), 4, -1)
    m = MatrixSensing().data[0].numpy()
    return run.time.values, x, np.linalg.norm(x @ x.swapaxes(1, 2) - m, axis=(1, 2))


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_riccati_s_closed_form(columns: int) -> None:
    m, x = MatrixSensing().data[0].numpy(), factor(4, columns).numpy()
    path = scipy.integrate.solve_ivp(
        lambda t, v: -((p := v.reshape(x.shape)) @ p.T @ p - m @ p).ravel(),
        (0, 2), x.ravel(), method="DOP853", rtol=1e-13, atol=1e-14, t_eval=[0.5, 2.0],
    )  # fmt: skip
    for t, v in zip(path.t, path.y.T, strict=True):
        end = v.reshape(x.shape)
        np.testing.assert_allclose(riccati(m, x, t), end @ end.T, rtol=0, atol=1e-11)


@pytest.mark.parametrize("columns", [2, 3])
def test_steps_tend_to_the_closed_form(columns: int) -> None:
    """At t = 1, Euler's by order 1."""
    m, x = MatrixSensing().data[0].numpy(), factor(4, columns).numpy()
    exact, errors = riccati(m, x, 1.0), []
    for n in (200, 400, 800):
        _, path, _ = followed(sensing(columns, 1 / n), "euler_maruyama", n, n)
        errors.append(float(np.abs(path[-1] @ path[-1].T - exact).max()))
    assert exponent(errors) == pytest.approx(1, abs=0.01)


def test_as_many_columns_as_the_rank_give_its_least_eigenvalue_as_rate() -> None:
    """Of steps h the rate is -log(1 - 2 h)/h, which 0.005 makes 2.01, where all but it has died out."""
    h = 0.005
    t, _, distance = followed(sensing(2, h), "euler_maruyama", 2400, 4)
    late = distance < 0.01 * distance[0]
    fit = fit_decay(t[late], distance[late], limit=0.0)
    assert fit.rate.mean == pytest.approx(-log(1 - 2 * h) / h, rel=1e-3)
    with pytest.raises(SdeflowError, match="no power can be told"):
        fit_power(t[late], distance[late], limit=0.0)


@pytest.mark.parametrize(("columns", "constant"), [(3, 0.5), (4, 0.5**0.5)])
def test_spare_columns_leave_no_rate(columns: int, constant: float) -> None:
    """|P - M| t tends to sqrt(k - r)/2 from below, like 1/t."""
    t, x, distance = followed(sensing(columns, 0.1), "euler_maruyama", 4000, 10)
    for series, limit in ((distance, 0.0), (distance, None)):
        with pytest.raises(SdeflowError, match=r"no rate can be told: from .* falls like t\^-"):
            fit_decay(t, series, limit=limit)
    assert fit_power(t, distance, limit=0.0).exponent.mean == pytest.approx(1, abs=0.1)
    assert 0.8 * constant < distance[-1] * t[-1] < constant
    assert distance[len(t) // 2] * t[len(t) // 2] < distance[-1] * t[-1]
    spare = np.linalg.svd(x[-1])[1][2:]
    assert 2 * t[-1] * spare[0] ** 2 == pytest.approx(1, rel=0.05)


def test_a_momentum_does_not_restore_it() -> None:
    """The spare singular value q has q^2 t -> gamma/2."""
    gamma = 1.5
    system = sensing(3, 0.1, momentum="m", eta=1.0, gamma=gamma)
    t, x, distance = followed(system, "expint", 6000, 10)
    with pytest.raises(SdeflowError, match=r"falls like t\^-"):
        fit_decay(t, distance, limit=0.0)
    half, end = (np.linalg.svd(x[at])[1][2] ** 2 * t[at] for at in (len(t) // 2, -1))
    assert end == pytest.approx(gamma / 2, rel=0.02)
    assert gamma / 2 - end == pytest.approx((gamma / 2 - half) / 2, rel=0.2)  # but for a log t


# The model --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_particles_leave_a_distance_that_falls_with_their_number() -> None:
    """100 times as many, a tenth of the distance, within 20%: 1.3/sqrt(N), as measured."""
    left = []
    for particles in (20, 2000):
        system = pgd(MatrixSensing(), particles=particles, theta={"h": 0.02}, x={"h": 0.2})
        run = simulate(
            system, "euler_maruyama", steps=2000, replicas=4, save=Save(every=10), dtype="float64", seed=0
        )
        left.append(float(run.distance[50:].mean()))
    assert left[0] / left[1] == pytest.approx(10, rel=0.2)
    assert left[1] == pytest.approx(1.3 / 2000**0.5, rel=0.1)


def test_the_packaged_run_has_a_rate() -> None:
    """That of the linear system of X and its particle, at M's eigenvalue 2, where all else has died out.

    Between a direction of that eigenvalue and one of none, P is off by e and the particle by z:
    e' = e + 2 (2 h) (z - e), z' = z + h_x (e - 2 z).
    """
    run = solve(build(load_config(problem_file("matrix_sensing")))).dataset
    t, distance = run.time_theta.values, run.distance.values
    late = (distance < 0.01 * distance[0]) & (distance > 1e-12)
    step = np.array([[1 - 0.08, 0.08], [0.2, 1 - 0.4]])
    rate = -log(np.linalg.eigvals(step).max()) / 0.02
    assert fit_decay(t[late], distance[late], limit=0.0).rate.mean == pytest.approx(rate, rel=1e-3)
    assert 1.8 < rate < 2


@pytest.mark.slow
def test_the_packaged_run_with_a_spare_column_has_none() -> None:
    run = solve(build(load_config(problem_file("matrix_sensing"), variant="spare"))).dataset
    t, distance = run.time_theta.values, run.distance.values
    with pytest.raises(SdeflowError, match=r"falls like t\^-1\.00"):
        fit_decay(t, distance, limit=0.0)
    assert distance[-1] * t[-1] == pytest.approx(0.5, rel=0.005)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"columns": 1}, "columns must lie between .*, given 1 of 2 and 4"),
        ({"columns": 5}, "given 5 of 2 and 4"),
        ({"eigenvalues": []}, "there must be an eigenvalue"),
        ({"eigenvalues": [1.0, 0.0]}, "eigenvalues must be positive"),
    ],
)
def test_impossible_arguments(table: dict[str, Any], message: str) -> None:
    with pytest.raises(SdeflowError, match=message):
        call(MatrixSensing, table, "model")

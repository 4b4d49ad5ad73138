"""Catching up by one stabilised step.

Oracles: Chebyshev's polynomials by numpy, and the recursion of SK-ROCK as published; the Gaussian law of the
exact dynamics in a harmonic well; the Ito-Taylor series with the generator by autograd; stationary laws in
closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from commands import Cli
from numpy.polynomial.chebyshev import Chebyshev
from numpy.polynomial.hermite_e import hermegauss
from support import SE, Matrix, doubles, needs_kernel
from torch import Tensor

import sdeflow
from sdeflow import Batch, Save, simulate
from sdeflow.config.catalogue import integrator_named
from sdeflow.engine.catch_up import stabilised
from sdeflow.engine.engine import Engine
from sdeflow.engine.minibatch import MiniBatches
from sdeflow.errors import SdeflowError, StabilityWarning
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.block import Block
from sdeflow.system.flow import kinetic_flow
from sdeflow.system.system import BlockSystem, initial_state

ETA, T, RATE = 0.7, 1.3, 0.8
STAGES = [1, 2, 3, 5, 8]
Force = Callable[[Tensor], Tensor]


def block(size: int, gamma: float | None) -> Block:
    momentum = None if gamma is None else "p"
    numbers = {} if gamma is None else {"eta": ETA, "gamma": gamma}
    return Block("q", "q", (size,), ("x",), momentum, temperature=T, rate=RATE, **numbers)


def step(b: Block, force: Force, q: Tensor, p: Tensor, xi: tuple[Tensor, ...], h: float, s: int) -> Any:
    """(q', p') of rows of states [R, size] and normals."""
    system = BlockSystem([b], lambda t, z, names: {"q": force(z["q"])}, h=h, start={"q": q[0]})
    z = {"q": q} if b.momentum is None else {"q": q, "p": p}
    (channel,) = system.channels
    noise = {channel.variable: channel.increment(xi, h, "PQ")}
    new = stabilised(system, [b], z, h, noise, s)
    return new["q"], new.get("p", torch.zeros_like(q))


def linear(b: Block, curvatures: Matrix, h: float, s: int) -> tuple[Matrix, Matrix]:
    """[c, 2, 2]: M and the covariance of the noise of (q, p) in wells of the given curvatures."""
    c = torch.from_numpy(curvatures)
    rows = torch.eye(4, dtype=torch.float64)[:, :, None].expand(4, 4, len(c))
    q, p, xi1, xi2 = rows.unbind(1)
    new = torch.stack(step(b, lambda q: -c * q, q, p, (xi1, xi2), h, s))  # [2, row, c]
    maps = new.permute(2, 0, 1).numpy()
    return maps[:, :, :2], maps[:, :, 2:] @ maps[:, :, 2:].transpose(0, 2, 1)


def push(gamma: float | None, h: float) -> float:
    return RATE * h if gamma is None else float(kinetic_flow(gamma, ETA, RATE * h).push)


def exact(gamma: float | None, c: float, h: float) -> tuple[Matrix, Matrix]:
    """Of the continuous dynamics, with one row and column of zeros where there is no momentum."""
    if gamma is None:
        drift, law = np.diag([-c, 0.0]), np.diag([T / c, 0.0])
        m = scipy.linalg.expm(RATE * h * drift) @ np.diag([1.0, 0.0])
    else:
        drift, law = np.array([[0, ETA], [-c, -gamma * ETA]]), np.diag([T / c, T / ETA])
        m = scipy.linalg.expm(RATE * h * drift)
    return m, law - m @ law @ m.T


@pytest.mark.parametrize("s", STAGES)
def test_position_is_moved_by_chebyshev_polynomials(s: int) -> None:
    """T_s(x) q + U_{s-1}(x) (1 + x)/(2 s) sqrt(2 T h) xi at x = 1 - c h/s^2, inside the stable range and out."""
    h = 0.5
    c = np.linspace(0, 2.2 * s * s / (RATE * h), 50)
    m, noise = linear(block(50, None), c, h, s)
    x, t = 1 - RATE * h * c / s**2, Chebyshev.basis(s)
    np.testing.assert_allclose(m[:, 0, 0], t(x), rtol=1e-11, atol=1e-11)
    b = t.deriv()(x) / s * (1 + x) / (2 * s)  # T_s' = s U_{s-1}
    np.testing.assert_allclose(noise[:, 0, 0], 2 * T * RATE * h * b**2, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("s", STAGES)
def test_without_damping_sk_rock_is_this_for_a_linear_force(s: int) -> None:
    """Its recursion as published, K_j = mu_j h f(K_{j-1}) + nu_j K_{j-1} + kappa_j K_{j-2}, on common noise."""
    h, g = 0.5, torch.Generator().manual_seed(s)
    c, q, xi = (torch.randn(1, 7, generator=g, dtype=torch.float64) for _ in range(3))
    c = c.abs()
    found, _ = step(block(7, None), lambda q: -c * q, q, q, (xi,), h, s)
    w1, h, noise = 1 / s**2, RATE * h, math.sqrt(2 * T * RATE * h) * xi
    before, k = q, q - w1 * h * c * (q + s * w1 / 2 * noise) + s * w1 * noise
    for _ in range(2, s + 1):
        before, k = k, 2 * k - 2 * w1 * h * c * k - before
    torch.testing.assert_close(found, k, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gamma", [None, 0.0, 0.9])
@pytest.mark.parametrize("s", STAGES)
def test_stable_range(s: int, gamma: float | None) -> None:
    """No mode grows for c g < 2 s^2, and one does just beyond, from few frictions to many."""
    for h in (0.5,) if gamma is None else (1e-2, 1.0, 10.0, 1e3):
        shares = np.append(np.linspace(0.001, 0.999, 300), 1.002)
        m, _ = linear(block(301, gamma), shares * 2 * s**2 / push(gamma, h), h, s)
        radius = np.abs(np.linalg.eigvals(m)).max(-1)
        assert radius[:-1].max() <= 1 + 1e-7, (h, radius)  # a double eigenvalue has half of the digits
        assert radius[-1] > 1 + 1e-5


@pytest.mark.parametrize("gamma", [None, 0.0, 0.9])
@pytest.mark.parametrize("s", STAGES)
def test_stationary_law(s: int, gamma: float | None) -> None:
    """diag(T/c (1 - c g/(2 s^2)), T/eta) is kept to rounding, however long the step."""
    for h in (0.5,) if gamma is None else (1e-2, 1.0, 10.0, 1e3):
        shares = np.linspace(0.001, 0.999, 100)
        c = shares * 2 * s**2 / push(gamma, h)
        m, noise = linear(block(100, gamma), c, h, s)
        law = np.zeros((100, 2, 2))
        law[:, 0, 0] = T / c * (1 - shares)
        law[:, 1, 1] = 0 if gamma is None else T / ETA
        scale = np.sqrt(np.stack([c, np.full(100, ETA)], 1))
        change = m @ law @ m.transpose(0, 2, 1) + noise - law
        change = change * scale[:, :, None] * scale[:, None, :]
        np.testing.assert_allclose(change, 0, atol=1e-11)


@pytest.mark.parametrize(("gamma", "order"), [(None, 1), (0.9, 2)])
@pytest.mark.parametrize("s", STAGES)
def test_order_against_the_exact_gaussian_law(s: int, gamma: float | None, order: int) -> None:
    """Mean and covariance of one step are off by h^(order + 1)."""
    c, errors = 1.7, []
    for h in (0.02, 0.01):
        m, noise = linear(block(1, gamma), np.array([c]), h, s)
        mean, covariance = exact(gamma, c, h)
        errors.append([np.abs(m[0] - mean)[: 2 if gamma else 1].max(), np.abs(noise[0] - covariance).max()])
    slopes = np.log2(np.array(errors[0]) / errors[1])
    assert slopes.min() > order + 0.9, slopes
    if s > 1:  # with one stage the noise without a momentum is right to a higher order
        assert slopes.min() < order + 1.1, slopes


@pytest.mark.parametrize(("gamma", "order"), [(None, 1), (0.9, 2)])
@pytest.mark.parametrize("s", [1, 4])
def test_weak_order_where_the_force_is_not_linear(s: int, gamma: float | None, order: int) -> None:
    """E phi after one step, by Gauss-Hermite, against phi + h L phi + ...: in two wells, off by h^(order + 1)."""
    start = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)

    def force(q: Tensor) -> Tensor:
        return q - q**3

    def phi(z: Tensor) -> Tensor:
        return z[0] ** 3 + torch.sin(z[0]) + (0 if gamma is None else z[0] * z[1] ** 2 + z[1] ** 3)

    def generator(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def applied(z: Tensor) -> Tensor:
            (first,) = torch.autograd.grad(function(z), z, create_graph=True)
            i = 0 if gamma is None else 1
            (second,) = torch.autograd.grad(first[i], z, create_graph=True)
            if gamma is None:
                return RATE * (force(z[0]) * first[0] + T * second[0])
            drift = ETA * z[1] * first[0] + (force(z[0]) - gamma * ETA * z[1]) * first[1]
            return RATE * (drift + gamma * T * second[1])

        return applied

    xi, weights = (torch.from_numpy(a) for a in hermegauss(24))
    xi1, xi2 = (a.reshape(-1, 1) for a in torch.meshgrid(xi, xi, indexing="ij"))
    weight = torch.outer(weights, weights).flatten() / (2 * math.pi)
    errors = []
    for h in (0.004, 0.002):
        q, p = (start[i].detach().expand(len(weight), 1) for i in (0, 1))
        new = step(block(1, gamma), force, q, p, (xi1, xi2), h, s)
        found = (weight * phi(torch.stack([new[0][:, 0], new[1][:, 0]]))).sum()
        term, series = phi, phi(start)
        for i in range(1, order + 1):
            term = generator(term)
            series = series + h**i / math.factorial(i) * term(start)
        errors.append(abs((found - series).item()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.15), errors


def test_a_long_step_forgets_what_it_should_and_grows_nowhere() -> None:
    """Curvatures 1 and 1000 over 100 steps of 1e-3: the soft well's law is the exact one to 4%."""
    h, c = 0.1 / RATE, np.array([1.0, 1000.0])
    m, noise = linear(block(2, None), c, h, 8)
    mean, covariance = exact(None, 1.0, h)
    assert m[0, 0, 0] == pytest.approx(mean[0, 0], abs=0.01)
    assert noise[0, 0, 0] == pytest.approx(covariance[0, 0], rel=0.04)
    assert abs(m[1, 0, 0]) < 1 < abs(1 - 0.1 * c[1])
    # with many frictions it is the same on a clock of h/gamma
    gamma = 40.0
    h = 0.1 * gamma / RATE
    m, noise = linear(block(2, gamma), c, h, 8)
    mean, covariance = exact(gamma, 1.0, h)
    np.testing.assert_allclose(m[0], mean, atol=0.01)
    np.testing.assert_allclose(noise[0], covariance, rtol=0.04, atol=1e-3)
    assert np.abs(np.linalg.eigvals(m[1])).max() < 1


# In minibatches ------------------------------------------------------------------------------------------

H = 0.01
MOTION = {"h": H, "eta": 20.0, "gamma": 0.5}


def toy(declaration: Any = sdeflow.mpgd, data: int = 12, particles: int = 2) -> BlockSystem:
    model = Hierarchical(data=data, theta_true=2.0)
    return declaration(model, particles=particles, theta={**MOTION, "h": H / 10}, x=MOTION)


def catching_up(system: BlockSystem, batch: Batch, dtype: torch.dtype = torch.float64) -> Callable[..., Any]:
    """z and how often each datum was missed, to the state after catching up with the noise of step 3."""
    mini = MiniBatches(system, integrator_named("expint"), batch, doubles(dtype=dtype), Engine())
    mini._part.see(torch.arange(mini.n_data)[None])
    late = [xi[0] for _, xi in mini._catch_up.noise.normals(3)]
    return lambda z, missed: mini._catch_up(z, missed, late)


@pytest.mark.parametrize("declaration", [sdeflow.pgd, sdeflow.mpgd], ids=lambda d: d.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_who_was_not_missed_stays_to_the_bit(declaration: Any, dtype: torch.dtype) -> None:
    system = toy(declaration).to(dtype, torch.device("cpu"))
    z = initial_state(system, doubles(dtype=dtype))
    missed = torch.tensor([[0, 1, 0, 2, 0, 0, 3, 400, 0, 0, 5, 0]])
    new = catching_up(system, Batch(12, "srock", 50), dtype)(z, missed)
    moving = [name for b in system.blocks if b.of_data for name in b.variables]
    for name in moving:
        assert torch.equal(new[name][missed == 0], z[name][missed == 0])
        assert not (new[name] == z[name])[missed > 0].any()
    for name in z.keys() - {*moving}:
        assert torch.equal(new[name], z[name])


@pytest.mark.parametrize("declaration", [sdeflow.pgd, sdeflow.mpgd], ids=lambda d: d.name)
def test_the_law_of_particles_that_were_missed(declaration: Any) -> None:
    """Of the posterior N(m_i, 1/2) that they begin in the variance that the scheme keeps, after 1 to 90 h.

    4,000 particles a datum, by the real noise; tolerance in standard errors.
    """
    n, stages = 4000, 2
    system = toy(declaration, data=4, particles=n)
    z, g = initial_state(system, doubles()), torch.Generator().manual_seed(1)
    mean = (z["theta"] + system.model_forces.model.data) / 2  # type: ignore[union-attr]
    missed = torch.tensor([[1, 9, 90, 200]])
    times = [k * H for k in (1, 9, 90, 90)]
    pushes = times if declaration is sdeflow.pgd else [kinetic_flow(0.5, 20.0, time).push for time in times]
    variance = 0.5 * (1 - 2 * torch.tensor(pushes, dtype=torch.float64) / (2 * stages**2))
    noise = torch.randn(z["X"].shape, generator=g, dtype=torch.float64)
    z["X"] = mean[None, :, None] + variance.sqrt()[None, :, None, None] * noise
    new = catching_up(system, Batch(4, "srock", 90, stages))(z, missed)
    for i in range(4):
        moved, v = new["X"][0, i].flatten() - mean[i], variance[i].item()
        assert abs(moved.mean()) < SE * math.sqrt(v / n)
        assert abs(moved.square().mean() - v) < SE * v * math.sqrt(2 / n)
        if "U" in z:
            u, w = new["U"][0, i].flatten(), 1 / MOTION["eta"]
            assert abs(u.square().mean() - w) < SE * w * math.sqrt(2 / n)
            assert abs((u * moved).mean()) < SE * math.sqrt(v * w / n)


def test_stages_are_told_where_they_are_too_few() -> None:
    """On the toy model every curvature is 2, so that s stages bear k h = s^2 of pgd; the root of cap is enough."""
    system = toy(sdeflow.pgd)
    few, enough = Batch(3, "srock", 450, 2), Batch(3, "srock", 450, 3)
    with pytest.warns(StabilityWarning, match=r"about 2, for which steps up to (399|400) h.*stages = 3 in pl"):
        simulate(system, "expint", steps=2, dtype="float64", batch=few)
    for batch in (enough, Batch(3, "srock", 450)):
        run = simulate(system, "expint", steps=2, dtype="float64", batch=batch)
        assert run.attrs["warnings"] == ""
    kinetic = toy()
    least = math.sqrt(float(kinetic_flow(0.5, 20.0, 450 * H).push))
    with pytest.warns(StabilityWarning, match=rf"450 h.*of X.*stages = {math.ceil(least)} in place of 1"):
        simulate(kinetic, "expint", steps=2, dtype="float64", batch=Batch(3, "srock", 450, 1))


def test_the_curvature_told_is_the_largest_of_any_particle() -> None:
    """In 300 data one sees 50 times the curvature of the others, which no mean over them shows."""

    class OneStiff(sdeflow.Model):
        """l(theta, x) = -(x - theta)^2/2 - c_i x^2/2."""

        latent_shape = (2,)

        def __init__(self) -> None:
            self.data = torch.ones(300, 1)
            self.data[17] = 50.0

        def init_theta(self, generator: torch.Generator) -> Any:
            return {"a": torch.zeros(())}

        def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
            return -((x - theta["a"]).square().sum(-1) + y * x.square().sum(-1)) / 2

    system = sdeflow.pgd(OneStiff(), particles=2, theta={"h": 1e-3}, x={"h": 0.01})
    with pytest.warns(StabilityWarning, match="about 51, for which steps up to"):
        simulate(system, "expint", steps=1, dtype="float64", batch=Batch(300, "srock", 10, 1))


def test_how_many_stages() -> None:
    """Where they are not given, the root of cap, rounded up; each is an evaluation of the score."""
    for cap, stages in ((1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4), (100, 10), (101, 11)):
        assert Batch(3, "srock", cap).extra_evaluations == stages
    assert Batch(3, "srock", 100, 6).extra_evaluations == 6
    run = simulate(toy(), "expint_shared", steps=1, batch=Batch(3, "srock", 20))
    assert run.attrs["gradient_evaluations_per_step"] == 6


def test_what_is_refused() -> None:
    with pytest.raises(SdeflowError, match=r"batch\.stages must be at least 1, given 0"):
        Batch(3, "srock", 10, 0)
    with pytest.raises(SdeflowError, match=r"unknown batch\.catch_up 'srok': did you mean 'srock'"):
        Batch(3, "srok")  # type: ignore[arg-type]
    with pytest.raises(SdeflowError, match=r"batch\.catch_up = 'srock' takes long steps, and numbers that"):
        simulate(sdeflow.mpgd(Hierarchical(data=9), particles=2), steps=2, batch=Batch(3, "srock"))


def test_another_number_of_stages_is_another_run(tmp_path: Path) -> None:
    """And none is what it was before there were any: a run without goes on with the settings of old."""
    options: dict[str, Any] = {"dtype": "float64", "out": tmp_path / "run"}
    simulate(toy(), steps=4, batch=Batch(3, "srock", 9, 2), **options)
    with pytest.raises(SdeflowError, match="batch.stages was 2 and is 4"):
        simulate(toy(), steps=8, batch=Batch(3, "srock", 9, 4), resume=True, **options)
    assert "stages" not in str(Batch(3, "one_step"))


@needs_kernel
def test_resumed_to_the_bit_and_the_same_on_every_engine(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "steps": 12,
        "dtype": "float64",
        "replicas": 2,
        "noise": "philox",
        "batch": Batch(3, "srock", 9),
        "save": Save(every=4, data="all", particles="all"),
    }
    whole = simulate(toy(), "expint", **options)
    simulate(toy(), "expint", **options | {"steps": 7, "out": tmp_path / "run"})
    resumed = simulate(toy(), "expint", **options | {"out": tmp_path / "run", "resume": True})
    for name in whole.variables:
        np.testing.assert_array_equal(resumed[name], whole[name], err_msg=str(name))
    eager = simulate(toy(), "expint", **options, engine="eager")
    for name in ("theta", "X", "U"):
        np.testing.assert_allclose(eager[name], whole[name], rtol=1e-11, atol=1e-11)


def test_a_problem_from_its_file(cli: Cli, tmp_path: Path) -> None:
    """With the settings on the command line; its config.toml has them, and a key that is none is refused."""
    chosen = ["--set", "batch.size=20", "--set", "batch.catch_up=srock", "--set", "batch.cap=30"]
    given = ["run", "hierarchical", "--steps", "20", "--device", "cpu", "--quiet", *chosen]
    code, _, err = cli(*given, "--set", "batch.stages=4", "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    config = (tmp_path / "run/config.toml").read_text()
    assert 'catch_up = "srock"' in config
    assert "stages = 4" in config
    assert sdeflow.open_run(tmp_path / "run").attrs["gradient_evaluations_per_step"] == 6
    code, _, err = cli(*given, "--set", "batch.catch_up=rock", "--out", tmp_path / "other")
    assert code == 2
    assert "srock" in err
    assert not (tmp_path / "other").exists()

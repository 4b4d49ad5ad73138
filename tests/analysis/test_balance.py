"""The balance of a run: against moments followed exactly, laws of schemes, and runs that are wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from commands import Cli
from small import SIZES, Autograd, Net, system_of
from support import SE, affine_map
from torch import Tensor

from sdeflow import Batch, Model, Save, kinetic_ebipla, mpgd, pgd, short_run, simulate
from sdeflow.analysis.balance import STATIONARY, balance, jackknife, warnings
from sdeflow.analysis.comparison.run_page import page
from sdeflow.analysis.dissipation import dissipation, free_energy
from sdeflow.analysis.free_energy import enriched_energy
from sdeflow.analysis.snapshots import Snapshots
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.latent_ebm import LatentEBM
from sdeflow.system.block import Block
from sdeflow.system.system import BlockSystem
from sdeflow.trajectory.opening import open_run

SLOW = {"h": 1e-3, "eta": 2.0, "gamma": 0.5}

GAMMA, ETA = 0.9, 2.0
"""Of both blocks; with these the note on such monitors has its numbers."""

ALL = Save(every=1, data="all", particles="all")
EXACT: dict[str, Any] = {"save": ALL, "dtype": "float64"}


def every(steps: int) -> dict[str, Any]:
    """The same, with snapshots so many steps apart."""
    return EXACT | {"save": Save(every=steps, data="all", particles="all")}


class Four(Hierarchical):
    """Four data apart."""

    def __init__(self) -> None:
        super().__init__(data=4)
        self.data = torch.tensor([[-1.0], [1.0], [2.0], [6.0]], dtype=torch.float64)


def toy(h: float, particles: int, model: Model | None = None, gamma: float = GAMMA) -> BlockSystem:
    motion = {"h": h, "eta": ETA, "gamma": gamma}
    return mpgd(model or Four(), particles=particles, theta=motion, x=motion)


def of(found: xr.Dataset, name: str, block: str = "x") -> xr.Dataset:
    (row,) = np.flatnonzero((found["name"] == name) & (found["block"] == block))
    return found.isel(identity=row)


def names(found: xr.Dataset) -> set[tuple[str, str]]:
    return {*zip(found["name"].values.tolist(), found["block"].values.tolist(), strict=True)}


# Exact moments -------------------------------------------------------------------------------------


class Moments:
    """expint on `Four` with infinitely many particles: F, what is dissipated, and theta's energy, in numpy.

    Clouds are Gaussian with one covariance S of (x, u); the particles' scores are (theta - x) + (y - x).
    """

    def __init__(self, h: float, end: float, pushed: float = 0.0) -> None:
        y, k = np.array([-1.0, 1.0, 2.0, 6.0]), GAMMA * ETA
        w = np.exp(-k * h)
        free, kick, push = (1 - w) / GAMMA, (h - (1 - w) / k) / GAMMA, (1 - w) / k
        step = np.array([[1 - 2 * kick, free], [-2 * push, w]])
        noise = np.array(
            [
                [(2 * h - 3 / k + 4 * w / k - w**2 / k) / GAMMA, (1 - w) ** 2 / k],
                [(1 - w) ** 2 / k, (1 - w**2) / ETA],
            ]
        )
        s, theta, m, x, u = np.diag([1.0, 1 / ETA]), 0.0, pushed, np.zeros(4), np.zeros(4)
        rows = []
        for _ in range(round(end / h) + 1):
            f, (a, b, c) = (x - theta).sum(), (s[0, 0], s[0, 1], s[1, 1])
            det = a * c - b**2
            kl = 2 * (2 * a + ETA * c - 2 - np.log(2 * ETA * det))
            kl += (2 * (x - (y + theta) / 2) ** 2 + ETA * u**2).sum() / 2
            energy = kl + (y - theta) @ (y - theta) / 4 + ETA * m**2 / 2
            lost = 4 * (a / det - 2 * ETA + ETA**2 * c) + ETA**2 * u @ u
            rows.append(
                (energy, GAMMA * (ETA**2 * m**2 + lost), ETA * m**2 / 2, ETA * m * f, GAMMA * ETA**2 * m**2)
            )
            bar = theta + free * m
            f = (x - bar).sum()
            theta, m = bar + kick * f, w * m + push * f
            score = theta + y - 2 * x
            x, u = x + free * u + kick * score, w * u + push * score
            s = step @ s @ step.T + noise
        self.energy, self.lost, *self.of_theta = np.array(rows).T
        self._h = h

    def integral(self, flow: np.ndarray) -> float:
        return self._h * float(flow.sum() - (flow[0] + flow[-1]) / 2)

    @property
    def defect(self) -> float:
        gained, lost = self.energy[-1] - self.energy[0], self.integral(self.lost)
        return (gained + lost) / max(abs(gained), abs(lost))

    @property
    def defect_of_theta(self) -> float:
        kinetic, work, friction = self.of_theta
        terms = kinetic[-1] - kinetic[0], self.integral(work), self.integral(friction)
        return (terms[0] - terms[1] + terms[2]) / (sum(map(abs, terms)) / 2)


@pytest.mark.parametrize(
    ("h", "nats"), [(0.4, 0.716), (0.2, 0.132), (0.1, 0.0286), (0.05, 0.0066), (0.025, 0.0016)]
)
def test_expint_ends_above_the_minimum_by_what_its_law_says(h: float, nats: float) -> None:
    """4 KL(S_h | S) of a scheme's stationary law in a well of curvature 2; F of the toy rests there."""
    block = Block("q", "q", (1,), ("x",), "p", eta=ETA, gamma=GAMMA)
    start = {"q": torch.zeros(1, dtype=torch.float64)}
    well = BlockSystem([block], lambda t, z, names: {"q": -2 * z["q"]}, h=h, start=start)
    ratio = np.diag([2, ETA]) @ affine_map(well, "expint").stationary
    above = 2 * (np.trace(ratio) - 2 - np.linalg.slogdet(ratio)[1])
    assert above == pytest.approx(nats, abs=6e-4 if h > 0.3 else 6e-5 if h < 0.15 else 5e-4)
    end = Moments(h, 80.0)
    assert end.energy[-1] - (np.array([-1, 1, 2, 6.0]) - 2) @ (np.array([-1, 1, 2, 6.0]) - 2) / 4 == (
        pytest.approx(above, rel=1e-6)
    )
    assert (np.diff(end.energy) <= 1e-12).all() or h > 0.3  # F goes down, so it does not tell of the step


def test_the_defect_is_of_the_order_of_the_step_and_changes_its_sign() -> None:
    """Where theta is pushed at the start; the sizes known from elsewhere are of one that is not told."""
    steps = [0.4 / 2**k for k in range(9)]
    free = np.array([Moments(h, 2.0, pushed=5.0).defect for h in steps])
    assert np.sign(free).tolist() == [1, 1, *[-1] * 7]
    known = [0.229, 0.035, 0.0066, 0.0107, 0.0074, 0.0043, 0.0023, 0.0012]
    assert abs(free[:-1]) == pytest.approx(known, rel=0.35)
    assert free[-2] / free[-1] == pytest.approx(2, rel=0.1)
    of_theta = [Moments(h, 2.0).defect_of_theta for h in steps]
    assert of_theta[-2] / of_theta[-1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("h", [0.2, 0.05])
def test_a_run_has_the_defect_of_exact_moments(h: float) -> None:
    """16 replicas of 300 particles a datum against infinitely many, within SE of their own scatter.

    The jackknife's error is that scatter: of 16 a standard deviation is right to 18%, tested to 3 of these.
    """
    system, exact = toy(h, 300), Moments(h, 2.0)
    run = simulate(system, "expint", steps=round(2 / h), replicas=16, **EXACT)
    each = [balance(run.isel(replica=r), system, windows=1) for r in range(16)]
    for (name, block), truth in (
        (("free energy and dissipation", ""), exact.defect),
        (("work and dissipation", "theta"), exact.defect_of_theta),
    ):
        values = np.array([float(of(one, name, block).value[0]) for one in each])
        assert abs(values.mean() - truth) < SE * values.std(ddof=1) / 4
    along = Snapshots(run.isel(replica=0), system)
    assert along.every
    own = [of(one, "work and dissipation") for one in each]
    scatter = np.std([float(one.value[0]) for one in own], ddof=1)
    assert scatter < 1.6 * np.mean([float(one.error[0]) for one in own])


def test_the_defect_is_that_of_a_wrong_friction_where_gamma_is_halved() -> None:
    """Half of what friction took is then missing: both are told, and by how much, from the same run."""
    h = 0.01
    run = simulate(toy(h, 40), "expint", steps=200, replicas=4, **EXACT)
    right, half = balance(run, toy(h, 40), windows=2), balance(run, toy(h, 40, gamma=GAMMA / 2), windows=2)
    exact = Moments(h, 2.0)
    for name, block in (("work and dissipation", "theta"), ("free energy and dissipation", "")):
        assert (abs(of(right, name, block).value) < 0.1).all()
        assert bool(of(half, name, block).off[0])
        assert float(abs(of(half, name, block).value[0])) > 0.15
    kinetic, work, friction = exact.of_theta
    terms = kinetic[-1] - kinetic[0], exact.integral(work), exact.integral(friction) / 2
    found = float(
        of(balance(run, toy(h, 40, gamma=GAMMA / 2), windows=1), "work and dissipation", "theta").value[0]
    )
    assert found == pytest.approx((terms[0] - terms[1] + terms[2]) / (sum(map(abs, terms)) / 2), rel=0.1)


def test_dissipation_and_free_energy_of_clouds() -> None:
    """Of one cloud by the formula for 2 x 2; over 400 draws without bias; F as by the other function."""
    rng = np.random.default_rng(0)
    root, mean = np.array([[1.0, 0.0], [0.4, 0.6]]), np.array([1.0, -0.5])
    s = root @ root.T
    (a, b), (_, c) = s
    truth = a / (a * c - b**2) - 2 * ETA + ETA**2 * (mean[1] ** 2 + c)
    clouds = mean + rng.standard_normal((400, 1, 12, 2)) @ root.T
    x, u = clouds[..., :1], clouds[..., 1:]
    found = dissipation(x, u, ETA)
    assert abs(found.mean() - truth) < SE * found.std() / 20
    logs = -(x[..., 0] ** 2)
    f, _ = enriched_energy(x[0], u[0], logs[0], m=[0.0], eta_theta=1.0, eta_x=ETA)
    assert free_energy(x, u, logs, ETA)[0] == pytest.approx(f, rel=1e-12)
    assert np.isnan(dissipation(np.zeros_like(x), u, ETA)).all()


# Temperatures --------------------------------------------------------------------------------------


def rested(system: Any, integrator: str, **options: Any) -> xr.Dataset:
    """The last half of a run, as one window."""
    run = simulate(system, integrator, steps=400, replicas=4, **(EXACT | options))
    return balance(run.isel(time=slice(200, None)), system, windows=1)


def test_temperatures_of_euler_maruyama() -> None:
    """Its variance in a well of curvature k is 1 / (k (1 - h k / 2)): 1.25/k at h k = 0.4."""
    system = pgd(Hierarchical(data=20, mle=0.0), particles=20, theta={"h": 1e-3}, x={"h": 0.2})
    found = rested(system, "euler_maruyama")
    for name in STATIONARY[1:]:
        one = of(found, name)
        assert abs(float(one.value[0]) - 1.25) < SE * float(one.error[0])
        assert float(one.error[0]) < 0.03


def test_temperatures_of_expint() -> None:
    """As of its affine map in a well."""
    h = 0.2
    block = Block("q", "q", (1,), ("x",), "p", eta=ETA, gamma=GAMMA)
    start = {"q": torch.zeros(1, dtype=torch.float64)}
    law = affine_map(
        BlockSystem([block], lambda t, z, names: {"q": -2 * z["q"]}, h=h, start=start), "expint"
    ).stationary
    slow, fast = {"h": 1e-4, "eta": ETA, "gamma": GAMMA}, {"h": h, "eta": ETA, "gamma": GAMMA}
    system = mpgd(Hierarchical(data=20, mle=0.0), particles=20, theta=slow, x=fast)
    found = rested(system, "expint")
    for name, truth in zip(STATIONARY, (ETA * law[1, 1], 2 * law[0, 0], 2 * law[0, 0]), strict=True):
        one = of(found, name)
        assert abs(float(one.value[0]) - truth) < SE * float(one.error[0])
        assert float(one.error[0]) < 0.03


class Laplace(Autograd):
    """x ~ exp(-|x|), whose score jumps at 0: no second derivative sees it."""

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return -x.abs().sum(-1) + 0 * theta["theta"]


def test_kinks_count() -> None:
    """Exact draws in place of a run's particles."""
    system = pgd(Laplace(data=10), particles=50, theta={"h": 0.01}, x={"h": 0.01})
    run = simulate(system, steps=40, **EXACT)
    run["X"] = run["X"].copy(data=np.random.default_rng(3).laplace(size=run["X"].shape))
    found = balance(run, system, windows=1)
    for name in STATIONARY[1:]:
        one = of(found, name)
        assert abs(float(one.value[0]) - 1) < SE * float(one.error[0])


def test_the_jackknife_is_right() -> None:
    """Of a mean it is the usual error; of a ratio of means it covers: over 400 draws z has variance 1.

    The variance of 400 squares is right to 7%; tested to 4 of these.
    """
    rng = np.random.default_rng(1)
    a = rng.standard_normal((3, 8))
    value, error = jackknife(a, np.ones_like(a))
    assert value == pytest.approx(a.mean())
    assert error == pytest.approx(np.sqrt((a.var(1, ddof=1) / 8).sum()) / 3, rel=1e-12)
    z = []
    for _ in range(400):
        below = rng.gamma(9.0, size=(4, 20))
        above = 2 * below + rng.standard_normal((4, 20)) + np.arange(4)[:, None]
        value, error = jackknife(above, below)
        z.append((value - (2 + 1.5 / 9)) / error)
    assert np.mean(np.square(z)) == pytest.approx(1, abs=0.28)


# Runs that are wrong -------------------------------------------------------------------------------


def test_a_good_run_is_told_nothing() -> None:
    system = toy(0.01, 30)
    run = simulate(system, "baoab", steps=2400, **every(6))
    found = balance(run, system)
    assert warnings(found) == []
    assert {("work and dissipation", "theta"), ("free energy and dissipation", "")} < names(found)


def test_too_large_a_step_is_told() -> None:
    system = toy(0.25, 100)
    run = simulate(system, "expint", steps=400, **EXACT)
    said = " ".join(warnings(balance(run, system)))
    assert "They no longer change: the step is too large" in said
    assert "work and dissipation of x differ" in said
    assert "not equilibrated" not in said


@pytest.mark.parametrize("declaration", [mpgd, pgd])
def test_particles_that_have_not_equilibrated_are_told(declaration: Any) -> None:
    motion = {"h": 0.01, "eta": ETA, "gamma": GAMMA}
    system = declaration(Hierarchical(data=10), particles=30, theta=motion, x=motion)
    scheme = "baoab" if declaration is mpgd else "euler_maruyama"
    run = simulate(system, scheme, steps=100, **EXACT)
    said = " ".join(warnings(balance(run, system)))
    assert "They still change: particles have not equilibrated, take more steps" in said
    assert "no longer" not in said


class Mistaken(Four):
    """A score of its own that is right at the start, where a run looks at it, and 1.3 times that later."""

    def score_x(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return super().score_x(theta, x, y) * (1 + 0.3 * (theta["theta"] != 0))


@pytest.mark.parametrize("kinetic", [True, False])
def test_a_wrong_gradient_is_told(kinetic: bool) -> None:
    """By its own row, and by identities, which are of the log-joint's gradient: particles are too cold."""
    if kinetic:
        system, scheme = toy(0.02, 100, Mistaken()), "baoab"
    else:
        system, scheme = pgd(Mistaken(), particles=100, theta={"h": 0.02}, x={"h": 0.02}), "euler_maruyama"
    run = simulate(system, scheme, steps=1200, **every(4))
    found = balance(run, system)
    said = warnings(found)
    assert said[0] == ("the model's own score of x is 30.0% off the gradient of its log-joint: mend either")
    assert "They no longer change: the step is too large, or a gradient is wrong" in said[-1]
    assert float(of(found, "virial").value[-1]) == pytest.approx(
        1 / 1.3, abs=SE * float(of(found, "virial").error[-1]) + 0.02
    )
    assert not of(found, "own score", "theta").off.any()


def test_momenta_alone_may_be_wrong() -> None:
    """baoab's positions have no bias in a well; its momenta do at a large step."""
    system = toy(0.3, 100, Hierarchical(data=4, mle=0.0))
    run = simulate(system, "baoab", steps=400, **EXACT)
    (said,) = [line for line in warnings(balance(run, system)) if "at rest" in line]
    assert said.endswith("Positions are right, momenta are not: of a smaller step these would be too")


# What a run has kept -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Net(), Autograd(data=5)])
def test_forces_are_those_of_the_data_and_particles_that_were_saved(model: Model) -> None:
    """Any part of the data and particles, against the forces of all; of two replicas at once."""
    system = system_of(model)
    whole = simulate(system, "expint", steps=4, replicas=2, **EXACT)
    part = whole.isel(datum=[0, 3], particle=[1, 2])
    of_all, of_part = Snapshots(whole, system), Snapshots(part, system)
    assert of_all.every
    assert not of_part.whole
    x = of_all.forces(["x"])["x"]
    np.testing.assert_allclose(of_part.forces(["x"])["x"], x[:, :, [0, 3]][:, :, :, [1, 2]], rtol=1e-12)
    one = {name: value[2, :1] for name, value in of_all.state.items()}
    direct = system.to(torch.float64, torch.device("cpu")).force_field(0.0, one, ["theta", "x"])
    np.testing.assert_allclose(x[2, 0], direct["x"][0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(of_all.forces(["theta"])["theta"][2, 0], direct["theta"][0], rtol=1e-9)


class Looking(Autograd):
    """It looks at values, so that its replicas cannot be batched."""

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return super().log_joint(theta, x, y) if float(x.detach().sum()) < 1e9 else 0 * x.sum(-1)


def test_a_model_that_looks_at_values_is_taken_one_state_after_the_other() -> None:
    run = simulate(system_of(Autograd(data=5)), "expint", steps=20, **EXACT)
    found, same = (balance(run, system_of(kind(data=5))) for kind in (Looking, Autograd))
    xr.testing.assert_allclose(found, same)


def test_the_energy_of_parameters_needs_all_particles_and_that_of_steps_all_data() -> None:
    system = system_of(Hierarchical(data=5))
    run = simulate(system, "expint", steps=20, **EXACT)
    theta, x = ("work and dissipation", "theta"), ("work and dissipation", "x")
    assert {theta, x} < names(balance(run, system))
    some = names(balance(run.isel(particle=[0, 2]), system))
    assert theta not in some
    assert x in some
    batches = simulate(system, "expint", steps=20, batch=Batch(size=2), **EXACT)
    assert not {theta, x} & names(balance(batches, system))
    seldom = run.isel(time=slice(None, None, 4))
    far = system_of(Hierarchical(data=5)).with_blocks(
        [type(b)(**{**b.__dict__, "gamma": 1e3}) for b in system.blocks]
    )
    assert not {theta, x} & names(balance(seldom, far))


def test_an_energy_prior_has_the_balance_of_its_prior_particles() -> None:
    model = LatentEBM(**SIZES)
    system = kinetic_ebipla(model, particles=4, prior_particles=30, alpha=SLOW, beta=SLOW, x=SLOW)
    run = simulate(system, "expint_shared", steps=20, **EXACT)
    found = names(balance(run, system))
    assert {(name, block) for name in STATIONARY for block in "xz"} < found
    assert ("work and dissipation", "z") in found


def test_what_no_sde_moves_has_its_scores_compared_alone() -> None:
    """An optimizer's theta, particles drawn anew each step, a single prior particle."""
    motion = {"h": 0.01, "optimizer": "adam"}
    system = pgd(Hierarchical(data=5), particles=4, theta=motion, x={"h": 0.01})
    found = names(balance(simulate(system, "euler_maruyama", steps=20, **EXACT), system))
    assert {(name, block) for name, block in found if block == "theta"} == {("own score", "theta")}
    assert ("virial", "x") in found
    fresh = short_run(Hierarchical(data=5), particles=4, theta={"h": 0.01}, x={"h": 0.01}, inner_steps=2)
    run = simulate(fresh, "alternating", steps=20, **EXACT)
    assert names(balance(run, fresh)) == {("own score", "theta"), ("own score", "x")}
    lone = kinetic_ebipla(LatentEBM(**SIZES), particles=2, prior_particles=1, alpha=SLOW, beta=SLOW, x=SLOW)
    found = names(balance(simulate(lone, "expint_shared", steps=20, **EXACT), lone))
    assert not {("virial", "z"), ("configurational temperature", "z")} & found


def test_numbers_that_a_run_chose_are_taken_from_it() -> None:
    auto = {"h": "auto", "eta": "auto", "gamma": "auto"}
    system = mpgd(Hierarchical(data=5), particles=20, theta=auto, x=auto)
    run = simulate(system, "baoab", steps=150, **EXACT)
    along = Snapshots(run, system)
    assert 0 < along.count < 151
    (block,) = (b for b in along.system.blocks if b.name == "x")
    assert (along.number(block, "eta") == float(run["eta_x"][-1])).all()
    assert {(name, "x") for name in STATIONARY} < names(balance(run, system))


def test_windows_are_told_by_their_steps() -> None:
    system = system_of(Hierarchical(data=5))
    run = simulate(system, "expint", steps=40, **every(2))
    found = run.sdeflow.balance(system, windows=2)
    assert found.begin.values.tolist() == [0, 20]
    assert found.end.values.tolist() == [20, 40]
    xr.testing.assert_identical(found, balance(run, system, windows=2))
    assert balance(run.isel(time=slice(9)), system).sizes["window"] == 2  # no more fit


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda run: run.isel(time=slice(3)), "needs 5 snapshots, the run has 3"),
        (lambda run: run.isel(particle=[0]), "2 particles or more"),
        (lambda run: run.drop_vars("X"), "no particles X"),
        (lambda run: run.drop_vars("theta").assign(theta_norm=run["loss"]), "raise save.theta_max"),
        (lambda run: run.drop_vars("U"), "the dataset has U of shape none"),
        (lambda run: run.isel(latent=[0, 0]), "and the system"),
        (lambda run: run.assign(X=run["X"] * np.nan), "this run diverged"),
        (lambda run: run.assign_attrs(grid="gamma"), "runs at one point each"),
    ],
)
def test_what_has_no_balance_is_a_sentence(change: Any, sentence: str) -> None:
    system = system_of(Hierarchical(data=5))
    run = simulate(system, "expint", steps=8, **EXACT)
    with pytest.raises(SdeflowError, match=sentence):
        balance(change(run), system)


def test_a_run_from_python_needs_its_system() -> None:
    run = simulate(system_of(Hierarchical(data=5)), "expint", steps=8, **EXACT)
    with pytest.raises(SdeflowError, match=r"balance\(run, system\)"):
        run.sdeflow.balance()
    assert "Balance" not in page(run)


PROBLEM = ["model.data=10", "model.mle=0.0", "save.particles=all", "save.every=1", "system.theta.h=0.01"]
PGD = ["--system", "pgd", "--integrator", "euler_maruyama", "--quiet"]
PGD += [word for setting in PROBLEM for word in ("--set", setting)]


@pytest.mark.slow
def test_the_report_and_the_page_of_a_run_tell_it(tmp_path: Path, cli: Cli) -> None:
    """Euler-Maruyama in a well of curvature 2: variances 1/(1 - h) too large, 43% at h = 0.3."""
    folder, out = tmp_path / "run", tmp_path / "report"
    steps = ["--steps", 300, "--set", "system.x.h=0.3", "--out", folder]
    assert cli("run", "hierarchical", *PGD, *steps).code == 0
    told = " ".join(cli("report", folder, "--out", out).out.split())
    assert "x is not at rest under its scores" in told
    assert "They no longer change: the step is too large" in told
    assert cli("plot", folder, "--html").code == 0
    for file in (out / "report.html", folder / "plot.html"):
        text = file.read_text(encoding="utf-8")
        assert "<h2>Balance</h2>" in text
        assert "They no longer change: the step is too large" in text
        (row,) = re.findall(r"<tr class=bad><th scope=row>virial of x</th>.*?</tr>", text)
        value, error = re.findall(r"(\d\.\d+) ± (\d\.\d+)", row)[-1]
        assert abs(float(value) - 1 / 0.7) < SE * float(error)
    with open_run(folder) as run:
        xr.testing.assert_identical(run.sdeflow.balance(), balance(run, windows=4))


def test_where_there_is_no_balance_the_report_says_why(tmp_path: Path, cli: Cli) -> None:
    folder, out = tmp_path / "run", tmp_path / "report"
    steps = ["--steps", 20, "--set", "save.theta_max=0", "--out", folder]
    assert cli("run", "hierarchical", *PGD, *steps).code == 0
    assert cli("report", folder, "--out", out).code == 0
    text = (out / "report.html").read_text(encoding="utf-8")
    assert (
        "Not known: forces need theta, of which snapshots have the norm alone: raise save.theta_max." in text
    )

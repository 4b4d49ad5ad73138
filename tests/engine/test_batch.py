"""Minibatches, catch-up and RMSProp.

Oracles: the full-batch run and the full gradient; runs of one replica; the exponential integrator's own
formulas with the noise put to zero; RMSProp's arithmetic by hand.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from small import Autograd
from support import INTEGRATORS, doubles
from torch import Tensor

import sdeflow
from sdeflow import Batch, Save, simulate
from sdeflow.config.catalogue import integrator_named
from sdeflow.engine.engine import Engine
from sdeflow.engine.minibatch import VISITED, MiniBatches
from sdeflow.errors import SdeflowError, StabilityWarning
from sdeflow.noise.source import TorchNoise
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.block import Block
from sdeflow.system.flow import kinetic_flow
from sdeflow.system.system import BlockSystem, initial_state

D, N, H, ETA, GAMMA = 12, 2, 0.01, 20.0, 0.5
WHOLE = Save(every=7, data="all", particles="all")
SCHEMES = [
    "alternating",
    "expint",
    "expint_nc",
    "expint_nc2",
    "expint_shared",
    "nag",
    "obabo",
    "baoab",
    "ubu",
    "quicsort",
    "euler_maruyama",
]


def toy(declaration: sdeflow.SystemDeclaration = sdeflow.mpgd, **theta: Any) -> BlockSystem:
    motion = {"eta": ETA, "gamma": GAMMA}
    model = Hierarchical(data=D, theta_true=2.0)
    return declaration(model, particles=N, theta={"h": H / 10, **motion, **theta}, x={"h": H, **motion})


def batches(system: BlockSystem, scheme: str, batch: Batch, seeds: range = range(1)) -> MiniBatches:
    return MiniBatches(system, integrator_named(scheme), batch, doubles(seeds), Engine())


def start(system: BlockSystem, seeds: range = range(1)) -> dict[str, Tensor]:
    return initial_state(system, doubles(seeds))


def test_every_scheme_is_here() -> None:
    assert set(INTEGRATORS) == set(SCHEMES)


@pytest.mark.parametrize("catch_up", ["off", "one_step", "substeps", "srock"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_batch_of_all_data_is_the_full_batch(scheme: str, catch_up: Any) -> None:
    """To the bit; nothing is ever missed, so there is nothing to catch up."""
    options = {"steps": 14, "dtype": "float64", "replicas": 2, "save": WHOLE}
    full = simulate(toy(), scheme, **options)
    batch = simulate(toy(), scheme, batch=Batch(D, catch_up), **options)
    for name in ("theta", "m", "X", "U"):
        np.testing.assert_array_equal(batch[name], full[name])


def test_order_of_an_epoch() -> None:
    """Each epoch sees each datum once; the order depends on (seed, epoch), not on what was asked before."""
    mini = batches(toy(), "expint", Batch(3), range(5, 7))
    epochs = [torch.cat([mini.index(4 * e + i) for i in range(4)], dim=1) for e in range(3)]
    for epoch in epochs:
        assert all(row.sort().values.tolist() == list(range(D)) for row in epoch)
        assert not torch.equal(epoch[0], epoch[1])
    assert not torch.equal(epochs[0], epochs[1])
    again = batches(toy(), "expint", Batch(3), range(6, 7))
    assert torch.equal(again.index(9)[0], mini.index(9)[1])
    assert torch.equal(again.index(2)[0], mini.index(2)[1])


def test_mean_over_an_epoch_is_the_full_gradient() -> None:
    """To roundoff at a fixed state, with scores by autograd and in closed form."""

    for model in (Hierarchical(data=D), Autograd(data=D)):
        numbers = {"h": H, "eta": ETA, "gamma": GAMMA}
        system = sdeflow.mpgd(model, particles=N, theta=numbers, x=numbers)
        mini, z = batches(system, "expint", Batch(4), range(2)), start(system, range(2))
        rows = torch.arange(2)[:, None]
        parts = []
        for n in range(3):
            index = mini.index(n)
            part = z | {"X": z["X"][rows, index]}
            parts.append(system.minibatch(index).forces(0.0, part, system.parameters)["theta"])
            score = system.minibatch(index).forces(0.0, part, system.particles)["x"]
            torch.testing.assert_close(score, system.forces(0.0, z, system.particles)["x"][rows, index])
        full = system.forces(0.0, z, system.parameters)["theta"]
        torch.testing.assert_close(torch.stack(parts).mean(0), full, rtol=1e-12, atol=1e-12)


def test_particles_outside_the_batch_stay() -> None:
    system = toy()
    mini = batches(system, "expint", Batch(5))
    before = start(system)
    with torch.no_grad():
        after = mini(mini.start(before), 0)
    outside = [i for i in range(D) if i not in mini.index(0)[0].tolist()]
    for name in ("X", "U"):
        assert torch.equal(after[name][:, outside], before[name][:, outside])
        assert not (after[name] == before[name])[:, mini.index(0)[0]].any()
    assert after[VISITED][0, outside].tolist() == [0] * len(outside)


@pytest.mark.parametrize("catch_up", ["off", "one_step", "substeps", "srock"])
def test_replicas_are_runs_and_pieces_do_not_matter(catch_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"steps": 14, "dtype": "float64", "batch": Batch(5, catch_up, 4)}
    together = simulate(toy(), "expint", seed=3, replicas=3, save=WHOLE, **options)
    monkeypatch.setattr("sdeflow.simulation.time_loop._CHUNK_SECONDS", 0.0)
    for r in range(3):
        alone = simulate(
            toy(), "expint", seed=3 + r, save=Save(every=1, data="all", particles="all"), **options
        )
        for name in ("theta", "X", "U"):
            np.testing.assert_allclose(together[name][-1, r], alone[name][-1], rtol=0, atol=1e-12)


def late(batches: MiniBatches, n: int) -> list[Tensor]:
    """Normals of step n by channel, for catching up."""
    return [xi[0] for _, xi in batches._catch_up.noise.normals(n)]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts all noise to zero."""

    drawn = TorchNoise.normals

    def normals(source: TorchNoise, n: int, count: int = 1) -> Any:
        for channel, xi in drawn(source, n, count):
            yield channel, xi.zero_()

    monkeypatch.setattr(TorchNoise, "normals", normals)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("declaration", [sdeflow.mpgd, sdeflow.pgd], ids=lambda d: d.name)
def test_catch_up_by_hand(declaration: sdeflow.SystemDeclaration) -> None:
    """Datum i missed k_i steps: one step of size min(k_i, cap) h, or as many steps of size h, theta held."""
    system = toy(declaration)
    index = torch.arange(D)[None]
    missed = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 1, 0, 3, 2])[None]
    z = start(system)
    cap = 5

    def one(x: Tensor, u: Tensor | None, h: float, i: int) -> tuple[Tensor, Tensor | None]:
        y = system.model_forces.model.data[i]  # type: ignore[union-attr]
        f = (z["theta"][0] - x) + (y - x)
        if u is None:
            return x + h * f, None
        c = kinetic_flow(GAMMA, ETA, h)
        return x + c.free * u + c.push * f, c.w * u + c.kick * f

    for catch_up in ("one_step", "substeps"):
        mini = batches(system, "expint", Batch(D, catch_up, cap))  # type: ignore[arg-type]
        mini._part.see(index)
        with torch.no_grad():
            new = mini._catch_up(z, missed, late(mini, 7))
        for i, k in enumerate(missed[0].clamp(max=cap).tolist()):
            x, u = z["X"][0, i], z["U"][0, i] if "U" in z else None
            for h in [k * H] if catch_up == "one_step" else [H] * k:
                x, u = one(x, u, h, i)
            torch.testing.assert_close(new["X"][0, i], x, rtol=1e-13, atol=1e-13)
            if u is not None:
                torch.testing.assert_close(new["U"][0, i], u, rtol=1e-13, atol=1e-13)
        assert torch.equal(new["theta"], z["theta"])


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("catch_up", ["one_step", "substeps"])
@pytest.mark.parametrize("declaration", [sdeflow.mpgd, sdeflow.pgd], ids=lambda d: d.name)
def test_catch_up_by_hand_where_steps_change(declaration: sdeflow.SystemDeclaration, catch_up: Any) -> None:
    """Before step 7 datum i takes steps 7 - k_i to 6 by the numbers that they had, or one as long."""

    def step(n: int) -> float:
        return H / (n + 1)

    def friction(n: int) -> float:
        return GAMMA * (1 + n if catch_up == "substeps" else 1)

    x = {"h": step, "eta": ETA, "gamma": friction if catch_up == "substeps" else GAMMA}
    system = declaration(
        Hierarchical(data=D, theta_true=2.0), particles=N, theta={"h": H, "eta": ETA, "gamma": GAMMA}, x=x
    )
    missed, z = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 1, 0, 3, 2])[None], start(system)
    mini = batches(system, "expint", Batch(D, catch_up, 5))
    mini._part.see(torch.arange(D)[None])
    with torch.no_grad():
        new = mini._catch_up(z, missed, late(mini, 7), 7)
    for i, k in enumerate(missed[0].clamp(max=5).tolist()):
        q, u = z["X"][0, i], z["U"][0, i] if "U" in z else None
        y, steps = system.model_forces.model.data[i], range(7 - k, 7)  # type: ignore[union-attr]
        taken = [(step(n), friction(n)) for n in steps]
        if catch_up == "one_step" and k:
            taken = [(sum(h for h, _ in taken), GAMMA)]
        for h, gamma in taken:
            f = (z["theta"][0] - q) + (y - q)
            if u is None:
                q = q + h * f
            else:
                c = kinetic_flow(gamma, ETA, h)
                q, u = q + c.free * u + c.push * f, c.w * u + c.kick * f
        torch.testing.assert_close(new["X"][0, i], q, rtol=1e-13, atol=1e-13)
        if u is not None:
            torch.testing.assert_close(new["U"][0, i], u, rtol=1e-13, atol=1e-13)


def test_noise_of_catching_up_where_numbers_change() -> None:
    """Substeps of their own h and T: overdamped particles without a force have variance 2 sum_n h_n T_n."""
    x = {"h": lambda n: H / (n + 1), "temperature": lambda n: 1.0 + n}
    system = sdeflow.pgd(Hierarchical(data=3), particles=4000, theta={"h": H}, x=x)
    mini = batches(system, "expint", Batch(3, "substeps", 4))
    missed, z = torch.tensor([[0, 2, 9]]), start(system)
    free = BlockSystem(system.blocks, lambda t, z, names: {"x": 0 * z["X"]}, h=system.h)
    mini._catch_up._system = free
    new = mini._catch_up(z, missed, late(mini, 9), 9)
    for i, k in enumerate([0, 2, 4]):
        variance = sum(2 * H / (n + 1) * (1.0 + n) for n in range(9 - k, 9))
        found = (new["X"][0, i] - z["X"][0, i]).square().mean().item()
        assert found == pytest.approx(variance, abs=5 * variance * math.sqrt(2 / 4000))


def test_noise_of_a_catch_up_step_has_its_law() -> None:
    """One step of k h adds noise of variance Var Q(k h) and Var P(k h): 4000 draws, 5 standard errors."""
    system = sdeflow.mpgd(
        Hierarchical(data=4),
        particles=1000,
        theta={"h": H, "eta": ETA, "gamma": GAMMA},
        x={"h": H, "eta": ETA, "gamma": GAMMA},
    )
    mini = batches(system, "expint", Batch(4, "one_step", 6))
    missed = torch.tensor([[0, 2, 6, 9]])
    z = start(system)
    mini._catch_up._system = BlockSystem(system.blocks, lambda t, z, names: {"x": 0 * z["X"]}, h=system.h)
    new = mini._catch_up(z, missed, late(mini, 3))
    for i, k in enumerate([0, 2, 6, 6]):
        c = kinetic_flow(GAMMA, ETA, k * H)
        drift = {"X": z["X"][0, i] + c.free * z["U"][0, i], "U": c.w * z["U"][0, i]}
        for name, variance in (("X", c.q1**2 + c.q2**2), ("U", c.p1**2 + c.p2**2)):
            noise = new[name][0, i] - drift[name]
            assert noise.square().mean().item() == pytest.approx(
                variance, abs=5 * variance * math.sqrt(2 / 1000)
            )


# RMSProp -------------------------------------------------------------------------------------------------


class Slope(sdeflow.Model):
    """l(theta, x) = 3 a - 4 b - x^2/2: a constant gradient in theta = (a, b)."""

    latent_shape = (1,)

    def __init__(self) -> None:
        self.data = torch.zeros(1, 1)

    def init_theta(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"a": torch.zeros(()), "b": torch.zeros(())}

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return 3 * theta["a"] - 4 * theta["b"] - x.square().sum(-1) / 2


def test_rmsprop_by_hand() -> None:
    """v = 0.99 v + 0.01 g^2 from v = 1, then g / sqrt(v + 1e-8): two steps of size 1 without momentum."""
    system = sdeflow.pgd(Slope(), particles=1, theta={"h": 1.0, "precondition": "rmsprop"}, x={"h": 0.1})
    run = simulate(system, "expint", steps=2, dtype="float64", save=Save(every=1))
    v1 = np.array([0.99 + 0.01 * 9, 0.99 + 0.01 * 16])  # 1.08, 1.15
    v2 = 0.99 * v1 + 0.01 * np.array([9, 16])
    g = np.array([3.0, -4.0])
    np.testing.assert_allclose(run.theta[1], g / np.sqrt(v1 + 1e-8), rtol=1e-14)
    np.testing.assert_allclose(run.theta[2], run.theta[1] + g / np.sqrt(v2 + 1e-8), rtol=1e-14)
    assert float(run.force_theta[0]) == pytest.approx(5.0), "the norm recorded is that of the plain force"


@pytest.mark.parametrize(
    "scheme", ["alternating", "expint", "expint_nc", "expint_nc2", "expint_shared", "nag"]
)
def test_rmsprop_moves_theta_and_m_by_one_force_and_remembers_once(scheme: str) -> None:
    """The first step of each scheme from rest: the same preconditioned force in m' and theta'."""
    motion = {"h": H, "eta": ETA, "gamma": GAMMA}
    system = sdeflow.mpgd(Slope(), particles=1, theta={**motion, "precondition": "rmsprop"}, x=motion)
    run = simulate(system, scheme, steps=1, dtype="float64", save=Save(every=1))
    g = np.array([3.0, -4.0])
    force = g / np.sqrt(0.99 + 0.01 * g**2 + 1e-8)
    c = kinetic_flow(GAMMA, ETA, H)
    kick, push = (H, H**2 * ETA) if scheme == "nag" else (c.kick, c.push)
    np.testing.assert_allclose(run.m[1], kick * force, rtol=1e-13)
    np.testing.assert_allclose(run.theta[1], push * force, rtol=1e-13)


def test_what_rmsprop_and_batches_do_not_go_with() -> None:
    with pytest.raises(SdeflowError, match="RMSProp needs T = 0"):
        toy(sdeflow.kiplmc, precondition="rmsprop")
    for scheme in ("euler_maruyama", "obabo", "ubu", "torchsde:euler"):
        with pytest.raises(SdeflowError, match=r"preconditioned force.*These can: alternating, expint"):
            simulate(toy(precondition="rmsprop"), scheme, steps=1)
    with pytest.raises(SdeflowError, match="batch of 13 is larger than the data, D = 12"):
        simulate(toy(), "expint", steps=1, batch=Batch(13))
    with pytest.raises(SdeflowError, match="at least 1"):
        Batch(0)
    block = Block("x", "X", (3, 1), ("particle", "latent"))
    hand_made = BlockSystem(
        [block], lambda t, z, names: {"x": -z["X"]}, h=0.1, start={"X": torch.zeros(3, 1)}
    )
    with pytest.raises(SdeflowError, match="need a model's forces"):
        simulate(hand_made, "expint", steps=1, batch=Batch(1))
    with pytest.raises(SdeflowError, match=r"torchsde.*minibatches"):
        simulate(toy(), "torchsde:euler", steps=1, batch=Batch(3))


def test_loss_is_told_to_be_on_part_of_the_data() -> None:
    run = simulate(toy(), "expint", steps=3, batch=Batch(3, "one_step"))
    assert run.loss.attrs["evaluated_on"].startswith("3 training data")
    assert run.attrs["batch"] == "3 data a step, catch-up one_step, cap 10"
    assert run.attrs["gradient_evaluations_per_step"] == 3


def test_a_catch_up_step_that_can_leave_the_stable_range_is_told() -> None:
    """On the toy model every curvature is 1 + 1/s^2 = 2: a step k h of pgd is stable to k h = 2 / 2."""
    system = toy(sdeflow.pgd)
    with pytest.warns(
        StabilityWarning, match="curvature at the start is about 2, for which steps up to 99 h|100 h"
    ):
        run = simulate(system, "expint", steps=2, dtype="float64", batch=Batch(3, "one_step", 120))
    assert "can leave the stable range of X" in run.attrs["warnings"]
    quiet = simulate(system, "expint", steps=2, dtype="float64", batch=Batch(3, "one_step", 90))
    assert quiet.attrs["warnings"] == ""


@pytest.mark.parametrize("catch_up", ["off", "one_step", "substeps", "srock"])
def test_a_step_leaves_the_old_state_whole(catch_up: Any) -> None:
    """A run cut short within a chunk keeps the chunk's start: particles and theta of one step."""
    mini = batches(toy(), "obabo", Batch(5, catch_up, 3), range(2))
    with torch.no_grad():
        before = mini(mini.start(start(toy(), range(2))), 0)
        copies = {name: value.clone() for name, value in before.items()}
        after = mini(before, 1)
    assert all(torch.equal(before[name], copies[name]) for name in copies)
    assert not torch.equal(after["X"], before["X"])


def test_evaluations_count_what_a_batch_costs() -> None:
    """Kept forces are evaluated anew for each batch, and catching up costs one or `cap` more."""
    for scheme, batch, count in (
        ("obabo", None, 1),
        ("obabo", Batch(3), 2),
        ("expint", Batch(3), 2),
        ("expint_shared", Batch(3, "substeps", 4), 5),
    ):
        run = simulate(toy(), scheme, steps=1, batch=batch)
        assert run.attrs["gradient_evaluations_per_step"] == count


def test_a_flat_score_warns_of_nothing() -> None:
    class Flat(Slope):
        def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
            return 3 * theta["a"] - 4 * theta["b"] - x.sum(-1)

    system = sdeflow.pgd(Flat(), particles=1, theta={"h": 0.1}, x={"h": 0.1})
    run = simulate(system, "expint", steps=1, dtype="float64", batch=Batch(1, "one_step", 50))
    assert run.attrs["warnings"] == ""

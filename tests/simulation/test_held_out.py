"""The loss on held-out data.

Oracles: the toy model's closed form, where theta is held by a system that cannot move it; the same loss
from torch.distributions; the run without evaluations, which must not notice them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from commands import command
from scipy.linalg import solve_discrete_lyapunov
from support import doubles
from torch.distributions import Normal

import sdeflow
from sdeflow import Batch, Evaluate, Save, simulate
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.integrators.expint import ExpInt
from sdeflow.noise.source import TorchNoise
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.held_out import PREFIX, HeldOut
from sdeflow.system.increments import NoiseSpec
from sdeflow.system.system import initial_state

KINETIC = {"eta": 4.0, "gamma": 0.5}


def toy(data: int = 6, held_out: int = 5, particles: int = 3, h: float = 0.05) -> sdeflow.BlockSystem:
    model = Hierarchical(data=data, theta_true=2.0)
    model.held_out = torch.linspace(-1, 3, held_out, dtype=torch.float64)[:, None]
    return sdeflow.mpgd(model, particles=particles, theta={"h": 1e-3, **KINETIC}, x={"h": h, **KINETIC})


def test_the_loss_is_that_of_the_held_out_data() -> None:
    system = toy()
    held_out = HeldOut(system, ExpInt(), Evaluate(1, 4), doubles(range(2)))
    z = initial_state(system, doubles(range(2))) | held_out.start()
    z = held_out.move(z, 0)
    assert system.model_forces is not None
    y, x, theta = system.model_forces.model.held_out[:, None], z[PREFIX + "X"], z["theta"][:, :, None, None]
    expected = -(Normal(theta, 1.0).log_prob(x) + Normal(x, 1.0).log_prob(y)).mean((1, 2, 3))
    torch.testing.assert_close(held_out.loss(z), expected, rtol=1e-12, atol=0)


def test_held_out_particles_reach_the_posterior_at_theta_held_fixed() -> None:
    """x | y has mean (y + theta)/2 and the scheme's own variance v, near 1/2, from Lyapunov's equation.

    The mean loss and the mean particle over 380 evaluations, within 5 standard errors.
    """
    theta, n = 1.5, 400
    system = toy(held_out=40, particles=10, h=0.05)
    held_out = HeldOut(system, ExpInt(), Evaluate(1, 20), doubles(range(1)))
    c, curvature = system.particles[0].flow(system.h), 2.0
    step = np.array([[1 - c.push * curvature, c.free], [-c.kick * curvature, c.w]])
    noise = np.array([[c.q1, c.q2], [c.p1, c.p2]])
    v = solve_discrete_lyapunov(step, noise @ noise.T)[0, 0]
    z = initial_state(system, doubles(range(1))) | held_out.start()
    z["theta"].fill_(theta)
    losses, means = [], []
    for i in range(n):
        z = held_out.move(z, i)
        losses.append(held_out.loss(z).item())
        means.append(z[PREFIX + "X"].mean().item())
    losses, means = losses[20:], means[20:]
    assert system.model_forces is not None
    y = system.model_forces.model.held_out
    # E[-log p(x, y)] = log 2 pi + (v + (mean - theta)^2)/2 + (v + (mean - y)^2)/2
    gap = ((y - theta) / 2).square().mean().item()
    expected = np.log(2 * np.pi) + v + gap
    for values, truth in ((losses, expected), (means, (y.mean().item() + theta) / 2)):
        blocks = np.array(values).reshape(20, -1).mean(1)  # of 19 evaluations each
        assert abs(blocks.mean() - truth) < 5 * blocks.std(ddof=1) / 20**0.5


def test_evaluating_changes_no_other_number() -> None:
    options: dict[str, Any] = {"steps": 12, "replicas": 2, "dtype": "float64", "save": Save(every=2)}
    for batch in (None, Batch(2, "one_step")):
        plain = simulate(toy(), "expint", batch=batch, **options)
        evaluated = simulate(toy(), "expint", batch=batch, evaluate=Evaluate(4, 3), **options)
        xr.testing.assert_equal(evaluated.drop_vars("held_out_loss"), plain)
        given = evaluated.held_out_loss.notnull().all("replica")
        assert evaluated.step[given].values.tolist() == [0, 4, 8, 12]
        assert not bool(evaluated.held_out_loss[~given].notnull().any())


@pytest.mark.parametrize("replicas", [1, 2])
def test_pieces_change_no_number(replicas: int) -> None:
    """Data whose forces are taken together; the sum of the losses may round otherwise."""
    losses = []
    for at_once in (None, 1, 2, 5, 99):
        system = toy()
        held_out = HeldOut(system, ExpInt(), Evaluate(1, 6), doubles(range(replicas)), at_once=at_once)
        z = initial_state(system, doubles(range(replicas))) | held_out.start()
        z = held_out.move(z, 3)
        losses.append((z[PREFIX + "X"], held_out.loss(z)))
    for x, loss in losses[1:]:
        torch.testing.assert_close(x, losses[0][0], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(loss, losses[0][1], rtol=1e-13, atol=0)


def test_replicas_are_runs_of_their_own() -> None:
    options: dict[str, Any] = {
        "steps": 6,
        "dtype": "float64",
        "evaluate": Evaluate(2, 3),
        "save": Save(every=2),
    }
    both = simulate(toy(), "expint", replicas=2, seed=7, **options).held_out_loss
    for i in range(2):
        alone = simulate(toy(), "expint", seed=7 + i, **options).held_out_loss
        np.testing.assert_allclose(both.isel(replica=i), alone, rtol=1e-12)


@pytest.mark.parametrize("declaration", [sdeflow.pgd, sdeflow.kiplmc, sdeflow.mpgd_theta])
@pytest.mark.parametrize("scheme", ["expint", "euler_maruyama"])
def test_every_system_and_scheme_can_be_evaluated(declaration: Any, scheme: str) -> None:
    model = Hierarchical(data=6, theta_true=2.0)
    model.held_out = torch.zeros(3, 1)
    system = declaration(model, particles=2, theta={"h": 1e-3, **KINETIC}, x={"h": 0.05, **KINETIC})
    run = simulate(system, scheme, steps=4, save=Save(every=2), evaluate=Evaluate(2))
    assert bool(run.held_out_loss.notnull().all())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"evaluate": Evaluate(3)}, "evaluate.every must be a multiple of save.every, 2, given 3"),
        ({"evaluate": 3}, r"sdeflow\.Evaluate, given int"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SdeflowError, match=sentence):
        simulate(toy(), "expint", steps=4, save=Save(every=2), **options)


def test_a_model_without_held_out_data_is_refused() -> None:
    system = sdeflow.pgd(Hierarchical(data=3), particles=2, theta={"h": 0.01}, x={"h": 0.1})
    with pytest.raises(SdeflowError, match="Hierarchical has none: give the model its 'held_out' data"):
        simulate(system, "expint", steps=4, evaluate=Evaluate(10))
    with pytest.raises(SdeflowError, match=r"evaluate\.every must be at least 1, given 0"):
        Evaluate(0)


def test_digits_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images that were not learned; what evaluating costs is shown before, after and in the file."""
    options = ["--eval-every", "100", "--set", "model.held_out=97", "--set", "evaluate.steps=3"]
    assert command("show", "digits", "--steps", "200", *options) == 0
    cost = "3 times 3 steps of 97 held-out data x 5 particles: 9 evaluations of their scores"
    assert cost in " ".join(capsys.readouterr().out.split())
    assert command("run", "digits", "--steps", "200", *options, "--out", tmp_path / "run") == 0
    assert ", held-out loss " in capsys.readouterr().out
    with xr.open_dataset(tmp_path / "run" / "trajectory.nc") as run:
        assert cost in run.attrs["evaluate"]
        losses = run.held_out_loss.dropna("time")
        assert losses.sizes["time"] == 3
        assert float(losses[-1]) < 0.8 * float(losses[0])


def test_held_out_digits_are_no_training_data() -> None:
    model = build(load_config(problem_file("digits"), overrides=[{"model": {"held_out": 97}}])).system
    assert isinstance(model, sdeflow.BlockSystem)
    assert model.model_forces is not None
    decoder = model.model_forces.model
    assert (len(decoder.data), len(decoder.held_out)) == (1700, 97)


def test_held_out_particles_have_noise_of_their_own() -> None:
    """As many data as the training ones, and the same start: the paths part at once."""
    system = toy(data=5, held_out=5)
    assert system.model_forces is not None
    system.model_forces.model.held_out = system.model_forces.model.data
    held_out = HeldOut(system, ExpInt(), Evaluate(1, 1), doubles(range(1)))
    (own,) = held_out._noise(0)
    (other,) = TorchNoise(system.channels, NoiseSpec("PQ", 1, system.h), doubles(range(1)))(0)
    assert not bool((own["U"]["P"] == other["U"]["P"]).any())


def test_held_out_particles_that_run_away_do_not_end_the_run() -> None:
    system = toy()
    assert system.model_forces is not None
    system.model_forces.model.held_out = torch.full((3, 1), float("inf"))
    run = simulate(system, "expint", steps=4, save=Save(every=2), evaluate=Evaluate(2))
    assert run.attrs["retcode"] == "success"
    assert not bool(np.isfinite(run.held_out_loss).any())

"""Catching up in minibatches by stabilised steps.

Oracles: the posterior of the toy model, whose every curvature is 2; the state before; runs in one piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Cli
from support import SE, doubles, needs_kernel
from torch import Tensor

import sdeflow
from sdeflow import Batch, Save, simulate
from sdeflow.config.catalogue import integrator_named
from sdeflow.engine.engine import Engine
from sdeflow.engine.minibatch import MiniBatches
from sdeflow.engine.stabilised import is_stable
from sdeflow.errors import SdeflowError, StabilityWarning
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.block import Block
from sdeflow.system.system import BlockSystem, initial_state

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
    """Particles of the posterior N(m_i, 1/2), with momenta N(0, 1/eta), keep it over 1 to 90 h.

    4,000 particles a datum, by the real noise; tolerance in standard errors, of which the momenta's law
    is off by less than one with 30 stages.
    """
    n = 4000
    system = toy(declaration, data=4, particles=n)
    z, g = initial_state(system, doubles()), torch.Generator().manual_seed(1)
    mean = (z["theta"] + system.model_forces.model.data) / 2  # type: ignore[union-attr]
    noise = torch.randn(z["X"].shape, generator=g, dtype=torch.float64)
    z["X"] = mean[None, :, None] + math.sqrt(0.5) * noise
    new = catching_up(system, Batch(4, "srock", 90, 30))(z, torch.tensor([[1, 9, 90, 200]]))
    for i in range(4):
        moved = new["X"][0, i].flatten() - mean[i]
        assert abs(moved.mean()) < SE * math.sqrt(0.5 / n)
        assert abs(moved.square().mean() - 0.5) < SE * 0.5 * math.sqrt(2 / n)
        if "U" in z:
            u, w = new["U"][0, i].flatten(), 1 / MOTION["eta"]
            assert abs(u.square().mean() - w) < SE * w * math.sqrt(2 / n)
            assert abs((u * moved).mean()) < SE * math.sqrt(0.5 * w / n)


def test_stages_are_told_where_they_are_too_few() -> None:
    """On the toy model every curvature is 2. By 4 stages pgd's step is stable to 2 k h = 0.684 of 3^2."""
    system = toy(sdeflow.pgd)
    few, enough = Batch(3, "srock", 450, 4), Batch(3, "srock", 450, 5)
    with pytest.warns(StabilityWarning, match=r"about 2, for which steps up to 30[78] h.*stages = 5, not 4"):
        simulate(system, "expint", steps=2, dtype="float64", batch=few)
    for batch in (enough, Batch(3, "srock", 450)):
        run = simulate(system, "expint", steps=2, dtype="float64", batch=batch)
        assert run.attrs["warnings"] == ""
    with pytest.warns(StabilityWarning, match=r"450 h.*of X.*batch.stages = \d+, not 2"):
        simulate(toy(), "expint", steps=2, dtype="float64", batch=Batch(3, "srock", 450, 2))


def test_the_curvature_told_is_the_largest_of_any_particle() -> None:
    """51, of 300 data that see from 1 on; power iteration of them together was at 48 after its 8 products."""

    class Spread(sdeflow.Model):
        """l(theta, x) = -(x - theta)^2/2 - c_i x^2/2."""

        latent_shape = (2,)

        def __init__(self) -> None:
            self.data = torch.linspace(0, 50, 300)[:, None]

        def init_theta(self, generator: torch.Generator) -> Any:
            return {"a": torch.zeros(())}

        def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
            return -((x - theta["a"]).square().sum(-1) + y * x.square().sum(-1)) / 2

    system = sdeflow.pgd(Spread(), particles=2, theta={"h": 1e-3}, x={"h": 0.01})
    with pytest.warns(StabilityWarning, match="about 51, for which steps up to"):
        simulate(system, "expint", steps=1, dtype="float64", batch=Batch(300, "srock", 10, 2))


def test_how_many_stages() -> None:
    """Where they are not given, 1 + 2 sqrt(cap), rounded up; each is an evaluation of the score."""
    for cap in (1, 2, 4, 5, 9, 10, 99, 100, 101, 12345):
        assert Batch(3, "srock", cap).extra_evaluations == 1 + math.ceil(2 * math.sqrt(cap))
    assert Batch(3, "srock", 100, 6).extra_evaluations == 6
    run = simulate(toy(), "expint_shared", steps=1, batch=Batch(3, "srock", 20))
    assert run.attrs["gradient_evaluations_per_step"] == 11
    for cap in (1, 2, 3, 10, 99, 1000):  # enough at c h = 2, where Euler-Maruyama's own steps end
        s = Batch(3, "srock", cap).extra_evaluations
        assert is_stable(Block("x", "X", (1,), ("x",)), float(cap), 2.0, s)


def test_what_is_refused() -> None:
    with pytest.raises(SdeflowError, match=r"batch\.stages must be at least 2, given 1"):
        Batch(3, "srock", 10, 1)
    with pytest.raises(SdeflowError, match=r"unknown batch\.catch_up 'srok': did you mean 'srock'"):
        Batch(3, "srok")  # type: ignore[arg-type]
    with pytest.raises(SdeflowError, match=r"batch\.catch_up = 'srock' takes long steps, and numbers that"):
        simulate(sdeflow.mpgd(Hierarchical(data=9), particles=2), steps=2, batch=Batch(3, "srock"))


def test_another_number_of_stages_is_another_run(tmp_path: Path) -> None:
    """And none is what it was before there were any: a run without goes on with the settings of old."""
    options: dict[str, Any] = {"dtype": "float64", "out": tmp_path / "run"}
    simulate(toy(), steps=4, batch=Batch(3, "srock", 9, 2), **options)
    with pytest.raises(SdeflowError, match=r"batch\.stages was 2 and is 4"):
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

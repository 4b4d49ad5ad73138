"""The compiled engine: the numbers of the eager one to rounding, on the same noise."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from light import cooled, decoder, energy, scheduled, toy
from small import LIGHT, assert_same
from support import declared

from sdeflow import (
    Batch,
    Grid,
    Save,
    SdeflowError,
    SDESystem,
    SystemDeclaration,
    kiplmc,
    mpgd,
    open_run,
    simulate,
)
from sdeflow.config.build import build
from sdeflow.config.schema import Config
from sdeflow.engine.compiled import CompiledSteps
from sdeflow.engine.step import advance
from sdeflow.integrators.expint import ExpInt
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.generic import OrnsteinUhlenbeck
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.prepare import prepare
from sdeflow.system.published import overdamped

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="torch.compile needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def short_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of fewer steps than users get, which take less long to compile."""
    monkeypatch.setattr("sdeflow.engine.compiled.GRADIENTS", 4)


@pytest.mark.parametrize(
    ("system", "integrator", "options"),
    [
        (toy, "expint", {"noise": "torch"}),
        (scheduled, "baoab", {"batch": Batch(4), "replicas": 2}),
        pytest.param(cooled, "expint", {"batch": Batch(4, "one_step", cap=3)}, marks=pytest.mark.slow),
        *(
            pytest.param(scheduled, scheme, {}, marks=pytest.mark.slow)
            for scheme in ("alternating", "euler_maruyama", "expint", "nag", "obabo", "quicsort", "ubu")
        ),
        pytest.param(decoder, "expint_shared", {"replicas": 3}, marks=pytest.mark.slow),
        pytest.param(decoder, "ubu", {"batch": Batch(4, "one_step", cap=3)}, marks=pytest.mark.slow),
        (decoder, "baoab", {"batch": Batch(4), "replicas": 2}),
        pytest.param(decoder, "quicsort", {"batch": Batch(4)}, marks=pytest.mark.slow),
        pytest.param(
            decoder,
            "expint_shared",
            {"batch": Batch(4, "srock", cap=3), "replicas": 2},
            marks=pytest.mark.slow,
        ),
        pytest.param(energy, "expint", {}, marks=pytest.mark.slow),
        (toy, "expint", {"save": Save(every=12)}),
        pytest.param(
            decoder,
            "expint_shared",
            {"batch": Batch(4, "substeps", cap=2), "save": Save(every=12)},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            toy, "ubu", {"grid": Grid(gamma=(0.5, 1.0)), "save": Save(every=6)}, marks=pytest.mark.slow
        ),
        pytest.param(
            toy, "quicsort", {"grid": Grid(gamma=(0.5, 1.0)), "save": Save(every=6)}, marks=pytest.mark.slow
        ),
        pytest.param(
            toy,
            "expint",
            {"grid": Grid(h=(1e-3, 2e-3), temperature=(0.5, 2.0)), "batch": Batch(2), "save": Save(every=6)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_numbers_are_those_of_the_eager_engine(system: Any, integrator: str, options: dict[str, Any]) -> None:
    """Every variable over 12 float64 steps: 1e-9 of its size, for sums are taken in another order."""
    common: dict[str, Any] = {"steps": 12, "seed": 5, "dtype": "float64", "save": Save(every=3)} | options
    eager = simulate(system(), integrator, engine="eager", **common)
    compiled = simulate(system(), integrator, engine="compiled", **common)
    assert compiled.attrs["engine"] == "compiled"
    assert compiled.attrs["noise_source"] == eager.attrs["noise_source"]
    for name in eager.data_vars:
        scale = float(abs(eager[name]).max())
        np.testing.assert_allclose(compiled[name], eager[name], rtol=0, atol=1e-9 * scale, err_msg=name)
    assert float(abs(eager["X"][-1] - eager["X"][0]).min()) > 0


class Turned(Hierarchical):
    """Its gradients in X do not lie in memory as X does."""

    score_x = score_theta = None

    def log_joint(self, theta: Any, x: torch.Tensor, y: Any) -> torch.Tensor:
        return super().log_joint(theta, x.permute(2, 0, 1).contiguous().permute(1, 2, 0), y)


def test_kept_forces_may_lie_otherwise_in_a_resumed_run(tmp_path: Path) -> None:
    options: dict[str, Any] = {"engine": "compiled", "dtype": "float64"}
    system = kiplmc(Turned(data=3), particles=5, theta=LIGHT, x=LIGHT)
    simulate(system, "obabo", steps=20, out=tmp_path / "run", **options)
    again = simulate(system, "obabo", steps=40, out=tmp_path / "run", resume=True, **options)
    whole = simulate(system, "obabo", steps=40, **options | {"engine": "eager"})
    np.testing.assert_allclose(again["X"], whole["X"], rtol=0, atol=1e-12)


def test_a_system_without_noise_and_the_state_before() -> None:
    still = SystemDeclaration(name="still", theta=overdamped("0"), x=overdamped("0"), source="")
    system = still(Hierarchical(data=3), particles=2, theta={"h": 1e-2}, x={"h": 1e-2})
    eager, compiled = (simulate(system, steps=20, engine=e, dtype="float64") for e in ("eager", "compiled"))
    np.testing.assert_allclose(compiled["theta"], eager["theta"], rtol=0, atol=1e-12)
    prepared = prepare(declared(toy(), "expint", steps=1, dtype="float64", device="cpu", engine="compiled"))
    before = {name: value.clone() for name, value in prepared.state.items()}
    advance(prepared.stepper, prepared.state, 0, prepared.stepper.stride + 1)
    assert all(torch.equal(prepared.state[name], before[name]) for name in before)


@pytest.mark.parametrize(("every", "stride"), [(10, 5), (20, 5), (8, 4), (1, 5), (7, 5), (3, 3)])
def test_strides_fill_what_is_between_snapshots(
    every: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of at most 5 steps of 2 gradients; where no such stride is half as long, one that does not."""
    monkeypatch.setattr("sdeflow.engine.compiled.GRADIENTS", 10)
    steps = CompiledSteps(lambda z, draws: z, lambda n, count: [torch.zeros(count)], 2, every)
    assert steps.stride == stride


def lowered() -> Any:
    x = LIGHT | {"h": {"kind": "linear", "from": 1e-3, "to": 1e-4, "steps": 40}}
    return mpgd(Decoder(latent=2, hidden=(5,), images=12), particles=3, theta=LIGHT, x=x)


@pytest.mark.slow
@pytest.mark.parametrize("system", [decoder, lowered])
def test_a_run_goes_on_to_the_same_bits(tmp_path: Path, system: Any) -> None:
    """With a stop at 18, after single steps where the whole run takes a stride; these round alike here."""
    options: dict[str, Any] = {"engine": "compiled", "save": Save(every=40)}
    whole = simulate(system(), "expint_shared", steps=40, **options)
    simulate(system(), "expint_shared", steps=18, out=tmp_path / "run", **options)
    again = simulate(system(), "expint_shared", steps=40, out=tmp_path / "run", resume=True, **options)
    for name in whole.data_vars:
        np.testing.assert_array_equal(whole[name], again[name])


def log(run: Path) -> str:
    return (run / "run.log").read_text()


def test_long_runs_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From LONG steps on, and the folder holds what it was; a plain SDE is never."""
    monkeypatch.setattr("sdeflow.engine.engine.LONG", 3)
    chosen = {steps: simulate(toy(), "expint", steps=steps, out=tmp_path / str(steps)) for steps in (2, 3)}
    assert chosen[2].attrs["engine"] != "compiled"
    assert chosen[3].attrs["engine"] == "compiled"
    assert "engine compiled" in log(tmp_path / "3")
    config = Config.of(
        {
            "model": {"use": "hierarchical", "data": 6},
            "system": {"use": "mpgd", "particles": 4, "theta": LIGHT, "x": LIGHT},
            "run": {"steps": 3},
        }
    )
    assert 'engine = "compiled"' in build(config).toml
    plain = SDESystem(OrnsteinUhlenbeck(), h=0.1, paths=3, start=[0.0])
    assert simulate(plain, "euler_maruyama", steps=3).attrs["engine"] != "compiled"


class Branching(Hierarchical):
    """It looks at a value, which torch cannot compile."""

    score_x = score_theta = None

    def log_joint(self, theta: Any, x: torch.Tensor, y: Any) -> torch.Tensor:
        value = super().log_joint(theta, x, y)
        return value if float(value.detach().sum()) > 0 else 2 * value


def branching() -> Any:
    return mpgd(Branching(data=3), particles=2, theta=LIGHT, x=LIGHT)


def test_what_it_cannot_compile_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SDESystem(OrnsteinUhlenbeck(), h=0.1, paths=3, start=[0.0])
    with pytest.raises(SdeflowError, match="engine 'compiled' needs a system made of a model"):
        simulate(plain, "euler_maruyama", steps=1, engine="compiled")

    with pytest.raises(SdeflowError, match=r"cannot be compiled.*engine 'eager'"):
        simulate(branching(), "expint", steps=1, engine="compiled")

    # where it was not asked for, the run goes on without it and says why
    monkeypatch.setattr("sdeflow.engine.engine.LONG", 2)
    done = simulate(branching(), "expint", steps=2, noise="torch", out=tmp_path / "run")
    assert done.attrs["engine"] == "eager"
    assert "engine eager, noise torch: this model's step cannot be compiled" in log(tmp_path / "run")
    assert "engine compiled" not in log(tmp_path / "run")
    further = simulate(branching(), "expint", steps=4, noise="torch", out=tmp_path / "run", resume=True)
    assert (further.attrs["engine"], further.attrs["warnings"]) == ("eager", "")


class Remembering(ExpInt):
    """It adds a variable to the state, the parameters of the step before."""

    def step(self, system: Any, t: Any, z: Any, h: Any, noise: Any) -> Any:
        before = {name: z[name] for name in z if name != "before"}
        return super().step(system, t, before, h, noise) | {"before": z["theta"]}


def test_a_step_that_adds_a_variable_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what is compiled called with other variables than it was made for."""

    def as_it_is(self: CompiledSteps, count: int) -> Any:
        return lambda z, draws: self._transition(z, [x[0] for x in draws])

    monkeypatch.setattr(CompiledSteps, "_compile", as_it_is)
    with pytest.raises(SdeflowError, match=r"changes which variables .*\(before\); give engine 'eager'"):
        simulate(toy(), Remembering(), steps=2, engine="compiled")


def test_a_run_killed_while_its_step_is_compiled_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is there by then; taken up, the run falls back as it would have in one piece."""
    monkeypatch.setattr("sdeflow.engine.engine.LONG", 2)
    call, out, killed = CompiledSteps._compile, tmp_path / "run", tmp_path / "killed"

    def copied_first(self: CompiledSteps, count: int) -> Any:
        shutil.copytree(out, killed, dirs_exist_ok=True)
        return call(self, count)

    monkeypatch.setattr(CompiledSteps, "_compile", copied_first)
    whole = simulate(branching(), "expint", steps=2, noise="torch", out=out)
    monkeypatch.undo()
    assert "engine compiled" in log(killed)
    assert open_run(killed).attrs["steps_taken"] == 0
    for engine in ("auto", "compiled"):  # by the second it was asked for again
        again = simulate(
            branching(), "expint", steps=2, noise="torch", engine=engine, out=killed, resume=True
        )
        assert_same(again, whole)
        assert again.attrs["engine"] == "eager"

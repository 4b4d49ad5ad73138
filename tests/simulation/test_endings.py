"""How runs end when something goes wrong on the way: what was recorded is kept, and told in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from torch import Tensor

import sdeflow
from sdeflow import Save, simulate
from sdeflow.errors import RunError, SdeflowError
from sdeflow.problems.generic import OrnsteinUhlenbeck
from sdeflow.problems.hierarchical import Hierarchical


def toy(model: sdeflow.Model | None = None, **options: Any) -> sdeflow.BlockSystem:
    return sdeflow.pgd(model or Hierarchical(data=3), particles=2, theta={"h": 0.01}, x={"h": 0.1}, **options)


class Fragile(Hierarchical):
    """Its score fails from the 15th evaluation on."""

    calls = 0

    def score_x(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        Fragile.calls += 1
        if Fragile.calls > 15:
            raise ValueError("no more scores")
        return super().score_x(theta, x, y)


def test_a_failing_run_keeps_what_it_has(tmp_path: Path) -> None:
    Fragile.calls = 0
    with pytest.raises(RunError, match=r"failed after .* of 100 steps with ValueError: no more scores"):
        simulate(toy(Fragile(data=3)), "expint", steps=100, save=Save(every=2), out=tmp_path / "run")
    with xr.open_dataset(tmp_path / "run" / "trajectory.nc") as run:
        assert run.attrs["retcode"] == "failed"
        assert run.sizes["time"] >= 2
        assert bool(run.X.notnull().all())


def test_an_interrupted_simulation_is_written_and_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Hierarchical):
        calls = 0

        def score_x(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
            Stopped.calls += 1
            if Stopped.calls == 15:
                raise KeyboardInterrupt
            return super().score_x(theta, x, y)

    with pytest.raises(KeyboardInterrupt, match="stopped after"):
        simulate(toy(Stopped(data=3)), "expint", steps=100, save=Save(every=2), out=tmp_path / "run")
    with xr.open_dataset(tmp_path / "run" / "trajectory.nc") as run:
        assert run.attrs["retcode"] == "interrupted"


def test_observables_that_change_are_refused() -> None:
    class Moody(Hierarchical):
        calls = 0

        def observables(self, theta: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            Moody.calls += 1
            return {"a": x.mean()} if Moody.calls < 4 else {}

    with pytest.raises(SdeflowError, match="the same in every snapshot; a is not"):
        simulate(toy(Moody(data=3)), "expint", steps=30, save=Save(every=5))


@pytest.mark.parametrize("name", ["time", "time_x", "seed", "kinetic_x", "force_theta", "X_norm", "a/b", ""])
def test_observables_with_a_name_of_the_trajectory_are_refused(name: str) -> None:
    class Named(Hierarchical):
        def observables(self, theta: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {name: x.mean()}

    with pytest.raises(SdeflowError, match=r"Named\.observables"):
        simulate(toy(Named(data=3)), "expint", steps=3)


def test_an_analytic_score_that_is_wrong_is_refused() -> None:
    class Flipped(Hierarchical):
        def score_x(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
            return -super().score_x(theta, x, y)

    with pytest.raises(
        SdeflowError, match=r"Flipped\.score_x differs from the gradient of log_joint by 200%"
    ):
        simulate(toy(Flipped(data=3)), "expint", steps=3)


def test_replicas_of_a_score_that_looks_at_values_take_turns() -> None:
    class Looks(Hierarchical):
        def score_x(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
            assert bool(x.isfinite().all())
            return super().score_x(theta, x, y)

    options = {"steps": 5, "replicas": 2, "dtype": "float64"}
    xr.testing.assert_allclose(
        simulate(toy(Looks(data=3)), "expint", **options).X, simulate(toy(), "expint", **options).X
    )


@pytest.mark.parametrize(
    ("system", "options", "sentence"),
    [
        (OrnsteinUhlenbeck(), {}, r"SDESystem\(sde, h="),
        (sdeflow.mpgd, {}, "declaration with a model"),
        (Hierarchical(data=3), {}, "declaration with a model"),
        (3, {}, "a system was expected, given int"),
        (toy(), {"steps": 3.5}, "steps must be at least 0, given 3.5"),
        (toy(), {"seed": "0"}, "seed must be at least 0, given '0'"),
        (toy(), {"save": {"every": 1}}, r"sdeflow\.Save, given dict"),
        (toy(), {"device": "meta"}, "'auto', 'cpu' or 'cuda'"),
    ],
)
def test_mistakes_in_python_are_sentences(system: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SdeflowError, match=sentence):
        simulate(system, **{"integrator": "euler_maruyama", "steps": 1} | options)


def test_a_link_to_a_run_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    simulate(toy(), "expint", steps=3, out=tmp_path / "link")
    simulate(toy(), "expint", steps=4, out=tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    with xr.open_dataset(tmp_path / "real" / "trajectory.nc") as run:
        assert run.attrs["steps"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    assert (tmp_path / "real" / "final.safetensors").stat().st_mode & 0o044


def test_a_run_from_python_tells_its_numbers() -> None:
    attrs = simulate(toy(), "expint", steps=3, save=Save(every=3)).attrs
    assert "theta: overdamped, h=0.01, T=0, 1 (param)" in attrs["system"]
    assert "x: overdamped, h=0.1, T=1, 3 x 2 x 1 (datum, particle, latent)" in attrs["system"]
    assert "every=3" in attrs["save"]


def test_tensors_of_an_sde_follow_the_run() -> None:
    class Held:
        rate = torch.ones(1, dtype=torch.float64)

        def __init__(self) -> None:
            self.pull = torch.full((1,), 0.5, dtype=torch.float64)

        def drift(self, t: float, x: Tensor) -> Tensor:
            assert self.pull.dtype == x.dtype
            return -self.pull * x

        def diffusion(self, t: float, x: Tensor) -> float:
            return 1.0

    run = simulate(sdeflow.SDESystem(Held(), h=0.1), "euler_maruyama", steps=3, dtype="float32")
    assert run.attrs["retcode"] == "success"

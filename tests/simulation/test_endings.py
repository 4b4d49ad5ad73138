"""How runs end when something goes wrong on the way: what was recorded is kept, and told in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from small import tiny
from torch import Tensor

from sdeflow import Save, simulate
from sdeflow.errors import RunError
from sdeflow.problems.hierarchical import Hierarchical


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
        simulate(tiny(Fragile(data=3)), "expint", steps=100, save=Save(every=2), out=tmp_path / "run")
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
        simulate(tiny(Stopped(data=3)), "expint", steps=100, save=Save(every=2), out=tmp_path / "run")
    with xr.open_dataset(tmp_path / "run" / "trajectory.nc") as run:
        assert run.attrs["retcode"] == "interrupted"


def test_a_link_to_a_run_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    simulate(tiny(), "expint", steps=3, out=tmp_path / "link")
    simulate(tiny(), "expint", steps=4, out=tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    with xr.open_dataset(tmp_path / "real" / "trajectory.nc") as run:
        assert run.attrs["steps"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    assert (tmp_path / "real" / "final.safetensors").stat().st_mode & 0o044


def test_a_run_from_python_tells_its_numbers() -> None:
    attrs = simulate(tiny(), "expint", steps=3, save=Save(every=3)).attrs
    assert "theta: overdamped, h=0.01, T=0, 1 (param)" in attrs["system"]
    assert "x: overdamped, h=0.1, T=1, 3 x 2 x 1 (datum, particle, latent)" in attrs["system"]
    assert "every=3" in attrs["save"]

"""`sdeflow tune`: what it tells, what it leaves as it is, and the problem that it writes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import command

SMALL = ["--set", "model.data=10", "--set", "system.particles=5", "--set", "run.dtype=float64"]


def tuned(problem: str, *options: str, out: Path) -> dict[str, dict[str, float]]:
    """The table [system] of the problem that it writes."""
    assert command("tune", problem, "--steps", 40, *SMALL, *options, "--out", out) == 0
    return tomllib.loads(out.read_text())["system"]


def test_the_problem_that_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers by the model's curvatures, D and 2; a run of it is a function of its configuration."""
    found = tuned("hierarchical", "--variant", "tuned", out=tmp_path / "t.toml")
    told = " ".join(capsys.readouterr().out.split())
    assert found["theta"]["eta"] == pytest.approx(1 / 10, rel=0.02)
    assert found["x"]["eta"] == pytest.approx(1 / 2, rel=0.02)
    assert found["theta"]["h"] == found["x"]["h"]
    assert f"theta 10 {found['theta']['h']:.4g}" in told
    assert "largest stable one of baoab" in told
    text = (tmp_path / "t.toml").read_text()
    assert "with L = 10 the largest curvature" in text
    runs = []
    for name in ("a", "b"):
        assert command("run", tmp_path / "t.toml", "--steps", 50, "--quiet", "--out", tmp_path / name) == 0
        with xr.open_dataset(tmp_path / name / "trajectory.nc") as run:
            assert "curvature_x" not in run
            runs.append(run.theta.values)
    np.testing.assert_array_equal(*runs)
    again = tuned(str(tmp_path / "t.toml"), out=tmp_path / "u.toml")  # no number is 'auto', so all are chosen
    assert again == found


def test_what_is_given_stays(tmp_path: Path) -> None:
    """In a file with something to choose; where all is given, what the command line sets."""
    file = tmp_path / "toy.toml"
    file.write_text(
        'model = { use = "hierarchical", data = 10 }\n'
        'system = { use = "mpgd", particles = 5, theta = { h = 1e-3 }, x = { eta = 3.0, gamma = 0.5 } }\n'
    )
    found = tuned(str(file), out=tmp_path / "t.toml")
    assert (found["theta"]["h"], found["x"]["eta"], found["x"]["gamma"]) == (1e-3, 3.0, 0.5)
    step = found["theta"]["h"] ** 2 * found["theta"]["eta"] * 10
    assert found["x"]["h"] ** 2 * 3.0 * 2 == pytest.approx(step, rel=0.02)
    found = tuned("hierarchical", "--set", "system.x.h=0.25", out=tmp_path / "u.toml")
    assert found["x"]["h"] == 0.25
    assert found["theta"]["h"] != 1e-4


def test_a_grid_keeps_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--set", "grid.gamma=[0.5, 1.0]", "--set", "grid.eta=[1.0, 2.0]"]
    found = tuned("hierarchical", *grid, out=tmp_path / "t.toml")
    assert capsys.readouterr().out.count("of the grid") == 4
    assert (found["x"]["eta"], found["x"]["gamma"]) == (2000.0, 0.1)  # of no use with a grid, but the file's
    assert found["x"]["h"] != 1e-2
    assert command("run", tmp_path / "t.toml", "--steps", 5, "--quiet", "--out", tmp_path / "run") == 0


def test_a_scheme_that_crawls_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """ill_conditioned under a scheme whose step is bounded by friction over curvature."""
    options = ["--steps", 20, "--set", "system.particles=5", "--integrator", "expint"]
    assert command("tune", "ill_conditioned", *options) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "evaluations an e-fold and baoab" in told or "evaluations an e-fold and ubu" in told


def test_what_it_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("tune", "ornstein_uhlenbeck") == 2
    assert "no block has a number that is 'auto'" in capsys.readouterr().err
    (tmp_path / "there.toml").touch()
    assert command("tune", "hierarchical", "--out", tmp_path / "there.toml") == 2
    assert "there.toml exists" in " ".join(capsys.readouterr().err.split())

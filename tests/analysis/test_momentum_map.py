"""Maps over friction and inverse mass: small grids measure what theory has, and a lost point is marked.

Oracles: eigenvalues of the affine map that real steps from basis vectors make; standard errors over replicas;
the run without the point that diverges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from commands import command, exit_code
from support import affine_map

from sdeflow import Grid, mpgd, simulate, terminal
from sdeflow.analysis.stability import with_momentum
from sdeflow.analysis.studies import momentum_map
from sdeflow.analysis.studies.momentum_map import agreement, best, configuration, measured, predicted, summary
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import Config, load_config
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.solve import solve

GAMMA, ETA = [0.0063, 0.04, 0.16], [20_000.0, 80_000.0]
"""At the first pair the step is unstable; at the second eta that friction is enough."""


def config(gamma: list[float], eta: list[float] = ETA) -> Config:
    tables: dict[str, Any] = {
        "grid": {"gamma": gamma, "eta": eta},
        "system": {"particles": 8},
        "run": {"steps": 300, "replicas": 8, "dtype": "float64"},
        "save": {"every": 1},
    }
    return load_config(problem_file("momentum_grid"), overrides=[tables])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on the command line, which ends as diverged."""
    path = tmp_path_factory.mktemp("grid")
    (path / "small.toml").write_text(config(GAMMA).toml(), encoding="utf-8")
    assert command("run", path / "small.toml", "-q", "--out", path / "run") == 3
    return path / "run"


@pytest.fixture(scope="module")
def maps(folder: Path) -> tuple[xr.Dataset, xr.Dataset]:
    with xr.open_dataset(folder / "trajectory.nc") as run:
        found = measured(run, configuration(run).run.bound)
        return found, predicted(configuration(run), np.array(GAMMA), np.array(ETA))


def test_predicted_rates_are_the_eigenvalues_of_real_steps(maps: tuple[xr.Dataset, xr.Dataset]) -> None:
    few = config(GAMMA).with_particles(1).model_copy(update={"grid": None})
    system, theory = build(few).system, maps[1]
    for gamma in GAMMA:
        for eta in ETA:
            radius = affine_map(with_momentum(system, gamma, eta), "expint").radius
            found = float(theory["rate"].sel(gamma=gamma, eta=eta))
            assert found == pytest.approx(-np.log(radius), rel=1e-8)
    for eta in ETA:
        curve = float(theory["critical"].sel(eta=eta))
        below, above = (
            np.linalg.eigvals(affine_map(with_momentum(system, factor * curve, eta), "expint").A)
            for factor in (0.99, 1.01)
        )
        slowest = [values[np.abs(values).argmax()] for values in (below, above)]
        assert abs(slowest[0].imag) > 1e-3
        assert abs(slowest[1].imag) < 1e-9


def test_measured_rates_are_the_predicted_ones(maps: tuple[xr.Dataset, xr.Dataset]) -> None:
    """Within 4 standard errors of 8 replicas, which are small enough to tell a quarter more friction."""
    found, theory = maps
    stable = theory["rate"] > 0
    assert int(stable.sum()) == 5
    off = np.abs(found["rate"] - theory["rate"]) / found["error"]
    assert (off.to_numpy()[stable.to_numpy()] < 4).all(), off
    other = predicted(config(GAMMA), 1.25 * np.array(GAMMA[1:]), np.array(ETA[:1]))
    there = found.sel(gamma=GAMMA[1:], eta=ETA[:1])
    assert (np.abs(there["rate"].to_numpy() - other["rate"].to_numpy()) > 4 * there["error"].to_numpy()).all()
    assert best(found["rate"]) == best(theory["rate"]) == {"gamma": 0.04, "eta": 80_000.0}
    points, (middle, low, high), _ = agreement(found, theory)
    assert points == 5
    assert 0.9 < low < middle < high < 1.1
    assert "unstable by theory: 1 points; diverged: 1, 1 of them among those" in summary(found, theory)


def test_a_point_that_diverges_is_marked_and_the_others_are_as_without_it(
    folder: Path, maps: tuple[xr.Dataset, xr.Dataset]
) -> None:
    """To the bit."""
    lost = maps[0]["diverged"]
    assert lost.sel(gamma=GAMMA[0], eta=ETA[0])
    assert int(lost.sum()) == 1
    without = solve(build(config(GAMMA[1:]))).dataset
    with xr.open_dataset(folder / "trajectory.nc") as run:
        assert run.attrs["retcode"] == "diverged"
        wide = run.set_index(replica=["gamma", "eta", "seed"]).unstack("replica").sel(gamma=GAMMA[1:])
        alone = without.set_index(replica=["gamma", "eta", "seed"]).unstack("replica")
        for name in alone.data_vars:
            np.testing.assert_array_equal(wide[name], alone[name], err_msg=str(name))


def test_the_script(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_SLOW_START", 0)
    assert exit_code(momentum_map.main, folder, "--out", tmp_path / "new" / "map.svg") == 0
    out, err = capsys.readouterr()
    assert "fastest predicted: gamma = 0.04, eta = 80000" in out
    assert err.startswith("point 1 of 12, after ")  # 6 are measured, and 6 predicted
    assert (tmp_path / "new" / "map.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
    assert exit_code(momentum_map.main, tmp_path / "nowhere") == 2
    assert "there is no run" in capsys.readouterr().err
    small = ["run", "hierarchical", "-q", "--steps", "4", "--set", "model.data=3"]
    grids = (
        ([], "this run has no grid of gamma and eta"),
        (["grid.gamma=[0.1]", "grid.eta=[10.0, 20.0]"], "given 1 and 2"),
        (["grid.gamma=[0.0, 0.2]", "grid.eta=[10.0, 20.0]"], "run a grid without gamma = 0"),
        (["grid.gamma=[0.1, 0.2]", "grid.eta=[10.0, 20.0]"], "no point of the grid has a measured rate"),
    )
    for number, (sets, sentence) in enumerate(grids):
        out = tmp_path / f"run{number}"
        assert command(*small, "--out", out, *(part for s in sets for part in ("--set", s))) == 0
        assert exit_code(momentum_map.main, out) == 2
        assert sentence in capsys.readouterr().err
    motion = {"h": 1e-3, "eta": 10.0, "gamma": 1.0}
    system = mpgd(Hierarchical(data=2), particles=2, theta=motion, x=motion)
    run = simulate(system, steps=2, grid=Grid((0.1, 0.2), (1.0, 2.0)))
    with pytest.raises(SdeflowError, match="a run from Python"):
        configuration(run)

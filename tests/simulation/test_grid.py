"""Grids of friction and inverse mass: each point is the run that it would be alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from sdeflow import Batch, Grid, Save, SdeflowError, mpgd, pgd, simulate
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config, override
from sdeflow.noise.kernel import NoKernel
from sdeflow.noise.philox_source import find_kernel
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.resume import resume
from sdeflow.simulation.solve import solve
from sdeflow.system.system import BlockSystem

GAMMA, ETA = (0.1, 0.5), (200.0, 50.0, 10.0)


def system(gamma: float = 0.1, eta: float = 200.0) -> BlockSystem:
    motion = {"eta": eta, "gamma": gamma}
    return mpgd(Hierarchical(data=8), particles=5, theta={"h": 1e-4, **motion}, x={"h": 1e-2, **motion})


@pytest.mark.parametrize("noise", ["torch", "philox"])
@pytest.mark.parametrize(
    "integrator", ["expint", "expint_shared", "nag", "baoab", "ubu", "quicsort", "torchsde:heun"]
)
def test_each_point_is_the_run_alone(integrator: str, noise: str) -> None:
    """Two replicas at each of 2 x 3 points, start and noise included, to rounding of float64."""
    if noise == "philox":
        try:
            find_kernel(torch.device("cpu"))
        except NoKernel as reason:
            pytest.skip(str(reason))
    steps = 10 if integrator == "torchsde:heun" else 40
    options = {
        "steps": steps,
        "seed": 3,
        "replicas": 2,
        "dtype": "float64",
        "save": Save(every=2),
        "noise": noise,
    }
    grid = simulate(system(), integrator, grid=Grid(GAMMA, ETA), **options)
    assert grid.sizes["replica"] == 12
    assert grid.seed.values.tolist() == [3, 4] * 6
    for k, (gamma, eta) in enumerate((g, e) for g in GAMMA for e in ETA):
        part = grid.isel(replica=[2 * k, 2 * k + 1])
        assert part.gamma.values.tolist() == [gamma] * 2
        assert part.eta.values.tolist() == [eta] * 2
        alone = simulate(system(gamma, eta), integrator, **options)
        for name in alone.data_vars:
            np.testing.assert_allclose(part[name], alone[name], rtol=1e-10, atol=1e-10, err_msg=name)


def test_a_file_of_a_packaged_problem_with_both_coordinates(tmp_path: Path) -> None:
    """Unstacked into dimensions; and gone on with, to the same bits."""
    sets = [override("grid.gamma=[0.05, 0.1, 2.0]"), override("grid.eta=[1000.0, 2000.0]")]
    small = {"model": {"data": 6}, "system": {"particles": 3}, "run": {"steps": 20}}
    run = build(load_config(problem_file("hierarchical"), overrides=[small, *sets]))
    solution = solve(run, out=tmp_path / "run")
    assert solution.retcode == "success"
    assert "gamma=0.05..2" in solution.dataset.attrs["system"]
    with xr.open_dataset(tmp_path / "run" / "trajectory.nc") as found:
        wide = found["theta"].set_index(replica=["gamma", "eta"]).unstack("replica")
        assert dict(wide.sizes) == {"time": 3, "param": 1, "gamma": 3, "eta": 2}
        one = wide.sel(gamma=0.1, eta=2000.0)
    short = {"run": {"steps": 11}}
    solve(
        build(load_config(problem_file("hierarchical"), overrides=[small, short, *sets])), out=tmp_path / "b"
    )
    again = resume(tmp_path / "b", 9).dataset
    np.testing.assert_array_equal(again["X"], solution.dataset["X"])
    alone = solve(build(load_config(problem_file("hierarchical"), overrides=[small])))
    np.testing.assert_allclose(one, alone.dataset["theta"], rtol=1e-4, atol=1e-5)


def test_a_point_that_diverges_leaves_the_others() -> None:
    with pytest.warns(UserWarning, match="replica 0"):
        run = simulate(system(), "euler_maruyama", steps=50, grid=Grid(gamma=(0.5,), eta=(1e5, 50.0)))
    assert run.attrs["retcode"] == "diverged"
    assert np.isfinite(run["theta"].isel(replica=1)).all()


def test_what_does_not_fit_is_said() -> None:
    bare = pgd(Hierarchical(data=2), particles=1, theta={"h": 0.1}, x={"h": 0.1})
    with pytest.raises(SdeflowError, match="needs a block with a momentum"):
        simulate(bare, steps=1, grid=Grid(gamma=(1.0,)))
    with pytest.raises(SdeflowError, match="all data in every step"):
        simulate(system(), steps=1, grid=Grid(gamma=(1.0,)), batch=Batch(2))
    with pytest.raises(SdeflowError, match=r"grid.eta: different finite numbers, positive, .* given \[0.0\]"):
        Grid(eta=(0.0,))
    with pytest.raises(SdeflowError, match=r"grid\.gamma: different"):
        Grid(gamma=(1.0, 1.0))
    with pytest.raises(SdeflowError, match="given neither"):
        Grid()
    with pytest.raises(SdeflowError, match=r"sdeflow.Grid, given dict"):
        simulate(system(), steps=1, grid={"gamma": [1.0]})

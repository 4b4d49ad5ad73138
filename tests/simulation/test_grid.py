"""Grids of blocks' numbers: each point is the run that it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sdeflow import Average, Batch, Evaluate, Grid, Save, SdeflowError, mpgd, pgd, simulate
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.run import Run
from sdeflow.config.schema import load_config, override
from sdeflow.model.forces import ModelForces
from sdeflow.noise.kernel import NoKernel
from sdeflow.noise.philox_source import find_kernel
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.resume import resume
from sdeflow.simulation.solve import solve
from sdeflow.system.system import BlockSystem

Made = Callable[..., BlockSystem]
GAMMA, ETA = (0.1, 0.5), (200.0, 50.0, 10.0)


def system(gamma: float = 0.1, eta: float = 200.0) -> BlockSystem:
    motion = {"eta": eta, "gamma": gamma}
    return mpgd(Hierarchical(data=8), particles=5, theta={"h": 1e-4, **motion}, x={"h": 1e-2, **motion})


def has_kernel(noise: str) -> None:
    """Skips the test where there is no kernel for that noise."""
    if noise == "philox":
        try:
            find_kernel(torch.device("cpu"))
        except NoKernel as reason:
            pytest.skip(str(reason))


def equal_alone(
    grid: Grid,
    made: Made,
    integrator: str,
    numbers: Sequence[dict[str, float]],
    **options: Any,
) -> None:
    """Two replicas at each point are what they are in a run of its own, start and noise included.

    made     gives the system of a point's numbers, and by none the one that the grid is over
    numbers  of each point
    """
    options = {"seed": 3, "replicas": 2, "dtype": "float64", "save": Save(every=2)} | options
    together = simulate(made(), integrator, grid=grid, **options)
    assert together.sizes["replica"] == 2 * len(numbers)
    assert together.seed.values.tolist() == [3, 4] * len(numbers)
    for k, point in enumerate(numbers):
        part = together.isel(replica=[2 * k, 2 * k + 1])
        alone = simulate(made(**point), integrator, **options)
        for name in alone.data_vars:
            np.testing.assert_allclose(
                part[name], alone[name], rtol=1e-10, atol=1e-10, err_msg=f"{name} {point}"
            )
        for name in ("time_theta", "time_x"):
            own = part[name] if part[name].ndim == 1 else part[name].isel(replica=0)
            np.testing.assert_allclose(own, alone[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("noise", ["torch", "philox"])
@pytest.mark.parametrize(
    "integrator", ["expint", "expint_shared", "nag", "baoab", "ubu", "quicsort", "torchsde:heun"]
)
def test_each_point_is_the_run_alone(integrator: str, noise: str) -> None:
    """Two replicas at each of 2 x 3 points, to rounding of float64."""
    has_kernel(noise)
    numbers = [{"gamma": gamma, "eta": eta} for gamma in GAMMA for eta in ETA]
    steps = 10 if integrator == "torchsde:heun" else 40
    equal_alone(Grid(GAMMA, ETA), system, integrator, numbers, steps=steps, noise=noise)


def stepped(h: float = 1e-2, temperature: float = 1.0, gamma: float = 0.3) -> BlockSystem:
    """A system whose particles have these numbers."""
    x = {"h": h, "eta": 50.0, "gamma": gamma, "temperature": temperature}
    return mpgd(Hierarchical(data=8), particles=5, theta={"h": 1e-3, "eta": 200.0, "gamma": 0.5}, x=x)


def bare(h: float = 1e-2, temperature: float = 1.0) -> BlockSystem:
    x = {"h": h, "temperature": temperature}
    return pgd(Hierarchical(data=8), particles=5, theta={"h": 1e-3}, x=x)


OF_X = Grid(system={"x": {"h": [1e-2, 3e-2], "temperature": [1.0, 4.0]}})
POINTS = [{"h": h, "temperature": t} for h in (1e-2, 3e-2) for t in (1.0, 4.0)]


@pytest.mark.parametrize("noise", ["torch", "philox"])
@pytest.mark.parametrize(
    "integrator",
    ["expint", "expint_nc", "expint_nc2", "nag", "obabo", "baoab", "ubu", "quicsort", "torchsde:srk"],
)
def test_steps_and_temperatures_of_a_block(integrator: str, noise: str) -> None:
    has_kernel(noise)
    equal_alone(OF_X, stepped, integrator, POINTS, steps=10, noise=noise)


@pytest.mark.parametrize("noise", ["torch", "philox"])
@pytest.mark.parametrize("integrator", ["euler_maruyama", "expint_shared"])
def test_steps_and_temperatures_without_momenta(integrator: str, noise: str) -> None:
    has_kernel(noise)
    equal_alone(OF_X, bare, integrator, POINTS, steps=20, noise=noise)


@pytest.mark.parametrize("catch_up", ["off", "one_step", "substeps", "srock"])
@pytest.mark.parametrize("made", [stepped, bare])
def test_a_grid_with_minibatches_and_held_out_data(made: Made, catch_up: Any) -> None:
    def held_out(**numbers: float) -> BlockSystem:
        found = made(**numbers)
        model = Hierarchical(data=8)
        model.held_out = model.data[:3] + 1.0
        forces = ModelForces(model, 5)
        return BlockSystem(found.blocks, forces, h=found.h)

    batch = Batch(size=2, catch_up=catch_up, cap=4)
    scheme = "expint" if made is stepped else "euler_maruyama"
    more: dict[str, Any] = {"batch": batch, "evaluate": Evaluate(every=4, steps=3), "average": Average(0.9)}
    equal_alone(OF_X, held_out, scheme, POINTS, steps=12, **more)


def test_one_number_of_all_blocks() -> None:
    grid = Grid(h=[1e-3, 2e-3], temperature=[0.5, 2.0])
    run = simulate(bare(), steps=4, grid=grid, dtype="float64")
    assert run.h.values.tolist() == [1e-3, 1e-3, 2e-3, 2e-3]
    assert run.temperature.values.tolist() == [0.5, 2.0, 0.5, 2.0]
    np.testing.assert_allclose(run.time_x.isel(time=-1), [4e-3, 4e-3, 8e-3, 8e-3])
    np.testing.assert_allclose(run.time_theta.isel(time=-1), [4e-3, 4e-3, 8e-3, 8e-3])
    assert "h=0.001..0.002, T=0.5..2" in run.attrs["system"]
    assert run.attrs["grid"] == "h = 0.001, 0.002; temperature = 0.5, 2"


def test_a_block_has_its_own_values_rather_than_those_of_all() -> None:
    run = simulate(system(), steps=2, grid=Grid(gamma=[0.1, 0.2], system={"x": {"gamma": [0.3]}}))
    assert "x: kinetic, h=0.01, eta=200, gamma=0.3" in run.attrs["system"]
    assert "theta: kinetic, h=0.0001, eta=200, gamma=0.1..0.2" in run.attrs["system"]


def test_a_file_with_the_steps_of_a_block_resumes_to_the_bit(tmp_path: Path) -> None:
    sets = [override("grid.system.x.h=[0.005, 0.01]"), override("batch.size=3")]
    small = {"model": {"data": 6}, "system": {"particles": 3}, "run": {"steps": 20}, "save": {"every": 5}}

    def of(steps: int) -> Run:
        short = {"run": {"steps": steps}}
        return build(load_config(problem_file("hierarchical"), overrides=[small, *sets, short]))

    whole = solve(of(20), out=tmp_path / "whole").dataset
    solve(of(12), out=tmp_path / "pieces")
    again = resume(tmp_path / "pieces", 8).dataset
    with xr.open_dataset(tmp_path / "pieces" / "trajectory.nc") as found:
        np.testing.assert_array_equal(found.time_x, whole.time_x)
        assert found.time_x.dims == ("time", "replica")
        assert found.time_theta.dims == ("time",)
        assert found.h_x.values.tolist() == [0.005, 0.01]
    np.testing.assert_array_equal(again.X, whole.X)


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


@pytest.mark.parametrize("key", ["model.scale", "run.seed", "system.particles"])
def test_what_no_grid_is_of_is_for_a_sweep(key: str) -> None:
    with pytest.raises(SdeflowError, match=rf"grid\.{key}: .*'sdeflow sweep PROBLEM --set {key}=\[\.\.\.\]"):
        load_config(problem_file("hierarchical"), overrides=[override(f"grid.{key}=[1, 2]")])


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(SdeflowError, match="needs a block with a momentum"):
        simulate(bare(), steps=1, grid=Grid(gamma=(1.0,)))
    with pytest.raises(SdeflowError, match=r"grid.system has no block 'y': .*x"):
        simulate(bare(), steps=1, grid=Grid(system={"y": {"h": [0.1]}}))
    with pytest.raises(SdeflowError, match=r"a grid of temperature_theta: block 'theta' has no temperature"):
        simulate(bare(), steps=1, grid=Grid(system={"theta": {"temperature": [0.1]}}))
    auto = pgd(Hierarchical(data=2), particles=1, theta={"h": 0.1})
    with pytest.raises(SdeflowError, match="leaves some to the run's warm-up"):
        simulate(auto, steps=1, grid=Grid(h=[0.1, 0.2]))
    with pytest.raises(SdeflowError, match=r"grid.system.x has no 'step'"):
        Grid(system={"x": {"step": [0.1]}})
    with pytest.raises(SdeflowError, match=r"grid.system takes blocks"):
        Grid(system=[0.1])
    with pytest.raises(SdeflowError, match=r"grid.eta: different finite numbers, positive, .* given \[0.0\]"):
        Grid(eta=(0.0,))
    with pytest.raises(SdeflowError, match=r"grid\.gamma: different"):
        Grid(gamma=(1.0, 1.0))
    with pytest.raises(SdeflowError, match="given none"):
        Grid()
    with pytest.raises(SdeflowError, match=r"sdeflow.Grid, given dict"):
        simulate(system(), steps=1, grid={"gamma": [1.0]})

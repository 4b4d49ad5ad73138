"""What a run records: the layout of its dataset and the meaning of its numbers.

The stored configuration gives the same numbers again.
"""

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import xarray as xr
from commands import program
from safetensors.torch import load_file
from small import THETA, D, N, Net, X, assert_same, run, system_of
from torch import Tensor

from sdeflow import Save, mpgd, simulate
from sdeflow.config.build import build
from sdeflow.config.catalogue import find
from sdeflow.config.schema import load_config
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.ending import Solution
from sdeflow.simulation.solve import solve

PROBLEM = """
title = "Small"
[model]
use = "hierarchical"
data = 4
scale = 0.5
[system]
use = "mpgd"
particles = 4
theta = {h = 2e-3, eta = 3.0, gamma = 0.7}
x = {h = 1e-2, eta = 2.0, gamma = 0.5}
[run]
integrator = "expint"
steps = 3
dtype = "float64"
noise = "torch"
[save]
every = 4
data = "all"
particles = "all"
[variants.five]
model.data = 5
"""
CHANGES = [{"run": {"steps": 10, "seed": 5}}, {"system": {"h": 4e-3}}]


class Stored(NamedTuple):
    folder: Path
    dataset: xr.Dataset
    final: dict[str, Tensor]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """One run as the command line makes it, with a variant and changed settings, opened from disk."""
    folder = tmp_path_factory.mktemp("stored")
    problem = folder / "small.toml"
    problem.write_text(PROBLEM, encoding="utf-8")
    out = folder / "run"
    solve(build(load_config(problem, variant="five", overrides=CHANGES)), out=out)
    with xr.open_dataset(out / "trajectory.nc") as dataset:
        yield Stored(out, dataset, load_file(out / "final.safetensors"))


@pytest.fixture(scope="module")
def replicated() -> Solution:
    return run(system_of(Hierarchical(data=D)), replicas=3, seed=2)


# Layout ------------------------------------------------------------------------------------------------


def test_dims(stored: Stored) -> None:
    ds = stored.dataset
    assert dict(ds.sizes) == {"time": 4, "datum": D, "particle": N, "latent": 1, "param": 1}
    particles = ("time", "datum", "particle", "latent")
    expected = {"theta": ("time", "param"), "m": ("time", "param"), "X": particles, "U": particles}
    scalars = ("loss", "kinetic_theta", "kinetic_x", "force_theta", "force_x")
    assert {name: v.dims for name, v in ds.data_vars.items()} == expected | dict.fromkeys(scalars, ("time",))
    assert {v.dtype for v in ds.data_vars.values()} == {np.dtype("float64")}


def test_coordinates(stored: Stored) -> None:
    ds = stored.dataset
    np.testing.assert_array_equal(ds.step, [0, 4, 8, 10])
    assert ds.step.dtype.kind == "i"
    assert ds.time.dtype.kind == "f"
    np.testing.assert_allclose(ds.time, ds.step * 4e-3, rtol=1e-15)  # the reference clock of system.h
    np.testing.assert_allclose(ds.time_theta, ds.step * 2e-3, rtol=1e-15)
    np.testing.assert_allclose(ds.time_x, ds.step * 1e-2, rtol=1e-15)
    for name in ("step", "time_theta", "time_x"):
        assert ds[name].dims == ("time",)
    np.testing.assert_array_equal(ds.datum, np.arange(D))
    np.testing.assert_array_equal(ds.particle, np.arange(N))
    assert ds.param.values.tolist() == ["theta"]


def test_every_variable_says_what_it_is(stored: Stored) -> None:
    for name, v in stored.dataset.variables.items():
        assert v.attrs["long_name"], name
        if v.dtype.kind == "f":
            assert v.attrs["units"], name
    assert "data" in stored.dataset.loss.attrs["evaluated_on"]


def test_attributes(stored: Stored) -> None:
    attrs = stored.dataset.attrs
    expected = {
        "integrator": "expint",
        "seed": 5,
        "replicas": 1,
        "steps": 10,
        "steps_taken": 10,
        "dtype": "float64",
        "device": "cpu",
        "noise_source": "torch",
        "engine": "eager",
        "retcode": "success",
    }
    assert {key: attrs[key] for key in expected} == expected
    for key in ("Conventions", "history", "versions", "git_commit", "platform", "title", "config"):
        assert isinstance(attrs[key], str), key
    for package in ("python", "torch", "numpy", "xarray"):
        assert f"{package} " in attrs["versions"]
    assert f"torch {torch.__version__.partition('+')[0]}" in attrs["versions"]
    owners = [stored.dataset, *stored.dataset.variables.values()]
    for value in (value for owner in owners for value in owner.attrs.values()):
        assert isinstance(value, str | int | float | np.integer | np.floating)
        assert not isinstance(value, bool | np.bool_)


def test_one_folder_holds_one_run(stored: Stored) -> None:
    files = {p.name for p in stored.folder.iterdir() if not p.name.startswith((".", "checkpoint"))}
    assert files == {"trajectory.nc", "final.safetensors", "config.toml", "run.log"}
    assert (stored.folder / "config.toml").read_text(encoding="utf-8") == stored.dataset.attrs["config"]


def test_python_and_disk_agree(tmp_path: Path) -> None:
    system = system_of(Hierarchical(data=D))
    returned = simulate(system, "expint", steps=6, out=tmp_path / "run", replicas=2)
    with xr.open_dataset(tmp_path / "run" / "trajectory.nc") as read:
        xr.testing.assert_identical(read.load(), returned)


def test_replicas_have_a_dim_and_their_seeds(replicated: Solution) -> None:
    ds = replicated.dataset
    assert ds.theta.dims == ("time", "replica", "param")
    assert ds.X.dims == ("time", "replica", "datum", "particle", "latent")
    assert ds.loss.dims == ("time", "replica")
    assert ds.replica.values.tolist() == [0, 1, 2]
    assert ds.seed.values.tolist() == [2, 3, 4]
    assert ds.seed.dims == ("replica",)


@pytest.mark.parametrize("replicas", [1, 2])
def test_named_parameters_and_latents_of_several_axes(tmp_path: Path, replicas: int) -> None:
    end = run(system_of(Net()), replicas=replicas, out=tmp_path / "run")
    ds, final = end.dataset.squeeze(), load_file(tmp_path / "run" / "final.safetensors")
    labels = [f"weight[{i},{j}]" for i in range(2) for j in range(6)] + ["bias[0]", "bias[1]"]
    assert ds.param.values.tolist() == labels
    assert ds.sizes["latent"] == 6
    lead = () if replicas == 1 else (2,)
    for name in ("theta", "m"):
        assert final[f"{name}.weight"].shape == (*lead, 2, 6)
        assert final[f"{name}.bias"].shape == (*lead, 2)
        flat = torch.cat([final[f"{name}.weight"].flatten(-2), final[f"{name}.bias"]], -1)
        np.testing.assert_array_equal(flat, ds[name][-1])
    for name in ("X", "U"):
        assert final[name].shape[: len(lead) + 2] == (*lead, D, N)
        np.testing.assert_array_equal(final[name].reshape(ds[name][-1].shape), ds[name][-1])
    x = ds.X if replicas == 1 else ds.X.isel(replica=1)
    spread = ds.spread if replicas == 1 else ds.spread.isel(replica=1)
    np.testing.assert_allclose(spread, x.std(("datum", "particle", "latent"), ddof=1), rtol=1e-12)


def test_final_state_is_whole_and_equals_the_last_snapshot(stored: Stored) -> None:
    assert stored.final.keys() == {"theta.theta", "m.theta", "X", "U"}
    assert stored.final["theta.theta"].shape == ()
    assert stored.final["X"].shape == (D, N, 1)
    for name, value in stored.final.items():
        variable = name.partition(".")[0]
        np.testing.assert_array_equal(value.flatten(), stored.dataset[variable][-1].values.ravel())


# What is saved -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (10, 3, [0, 3, 6, 9, 10]),
        (9, 3, [0, 3, 6, 9]),
        (2, 100, [0, 2]),
        (2, 1, [0, 1, 2]),
        (0, 5, [0]),
    ],
)
def test_snapshots_at_the_start_every_so_often_and_at_the_end(
    steps: int, every: int, expected: list[int]
) -> None:
    ds = run(system_of(Hierarchical(data=D)), steps=steps, save=Save(every=every)).dataset
    assert ds.step.values.tolist() == expected
    assert ds.attrs["steps_taken"] == steps


@pytest.mark.parametrize(
    ("data", "particles", "datum", "particle"),
    [
        ("all", "all", [0, 1, 2, 3, 4], [0, 1, 2, 3]),
        (3, 2, [0, 2, 4], [0, 3]),
        (1, 99, [0], [0, 1, 2, 3]),
        ([4, 1], [2], [4, 1], [2]),
    ],
)
def test_a_subset_is_what_its_coordinates_say(
    data: Any, particles: Any, datum: list[int], particle: list[int]
) -> None:
    system = system_of(Hierarchical(data=D))
    whole = run(system, replicas=2).dataset
    part = run(system, replicas=2, save=Save(every=1, data=data, particles=particles)).dataset
    assert part.datum.values.tolist() == datum
    assert part.particle.values.tolist() == particle
    for name in ("X", "U"):
        np.testing.assert_array_equal(part[name], whole[name].sel(datum=datum, particle=particle))
    for name in set(part.data_vars) - {"X", "U"}:
        np.testing.assert_array_equal(part[name], whole[name])


def test_the_default_subset_is_capped() -> None:
    system = find("systems", "pgd")(Hierarchical(data=40), particles=30, theta=THETA, x=X)
    ds = run(system, steps=1, save=Save()).dataset
    assert (ds.sizes["datum"], ds.sizes["particle"]) == (16, 16)
    for dim, last in (("datum", 39), ("particle", 29)):
        assert (ds[dim][0], ds[dim][-1]) == (0, last)
        assert set(np.diff(ds[dim])) <= {last // 15, last // 15 + 1}


def test_a_long_parameter_vector_leaves_its_norm(tmp_path: Path) -> None:
    system = system_of(Net())  # 14 parameters
    whole = run(system, save=Save(every=1, theta_max=14)).dataset
    end = run(system, save=Save(every=1, theta_max=13), out=tmp_path / "run")
    ds = end.dataset
    assert not {"theta", "m", "param"} & {*ds.variables, *ds.dims}
    for name in ("theta", "m"):
        assert ds[f"{name}_norm"].dims == ("time",)
        np.testing.assert_allclose(ds[f"{name}_norm"], np.linalg.norm(whole[name], axis=-1), rtol=1e-14)
    np.testing.assert_array_equal(ds.X, whole.X)
    final = load_file(tmp_path / "run" / "final.safetensors")
    np.testing.assert_array_equal(final["theta.weight"].flatten(), whole.theta[-1, :12])
    np.testing.assert_array_equal(final["m.bias"].flatten(), whole.m[-1, 12:])


# What the numbers mean -----------------------------------------------------------------------------------


def test_observables_are_functions_of_the_saved_state(replicated: Solution) -> None:
    """Recomputed with numpy from what was saved; sums over particles differ in order, hence roundoff."""
    ds = replicated.dataset
    model = Hierarchical(data=D)
    y = xr.DataArray(model.data[:, 0].numpy(), dims="datum")
    x, theta = ds.X.isel(latent=0), ds.theta.isel(param=0)
    log_joint = -np.log(2 * np.pi) - ((x - theta) ** 2 + (y - x) ** 2) / 2
    score = (theta - x) + (y - x)
    recomputed = {
        "loss": -log_joint.mean(("datum", "particle")),
        "kinetic_theta": THETA["eta"] / 2 * ds.m.isel(param=0) ** 2,
        "kinetic_x": X["eta"] / 2 * (ds.U.isel(latent=0) ** 2).mean(("datum", "particle")),
        "force_theta": abs((x - theta).sum(("datum", "particle"))) / N,
        "force_x": np.sqrt((score**2).mean(("datum", "particle"))),
    }
    for name, expected in recomputed.items():
        np.testing.assert_allclose(ds[name], expected, rtol=1e-11, err_msg=name)


def test_norms_count_all_coordinates_of_a_latent() -> None:
    ds = run(system_of(Net())).dataset
    kinetic = X["eta"] / 2 * (ds.U**2).sum("latent").mean(("datum", "particle"))
    np.testing.assert_allclose(ds.kinetic_x, kinetic, rtol=1e-12)
    np.testing.assert_allclose(ds.kinetic_theta, THETA["eta"] / 2 * (ds.m**2).sum("param"), rtol=1e-12)


def test_momenta_start_from_their_stationary_law() -> None:
    system = find("systems", "kiplmc")(Hierarchical(data=40), particles=50, theta=THETA, x=X)
    ds = run(system, steps=0, replicas=40).dataset
    for name, eta, temperature in (("m", THETA["eta"], 1 / 50), ("U", X["eta"], 1.0)):
        count = ds[name].size
        squares = float((ds[name] ** 2).sum()) * eta / temperature
        assert abs(squares / count - 1) < 5 * np.sqrt(2 / count)  # five standard errors of a chi-square


def test_the_stored_configuration_gives_the_same_numbers(stored: Stored, tmp_path: Path) -> None:
    again = tmp_path / "again.toml"
    again.write_text(stored.dataset.attrs["config"], encoding="utf-8")
    rerun = solve(build(load_config(again)))
    assert rerun.dataset.attrs["config"] == stored.dataset.attrs["config"]
    assert_same(rerun.dataset, stored.dataset)


def test_a_file_that_is_open_can_be_opened_again_and_again(tmp_path: Path) -> None:
    """In a process of its own, which strings in the file ended in most of such rounds."""
    simulate(
        mpgd(Hierarchical(data=3), particles=2), "expint", steps=2, out=tmp_path / "run", save=Save(every=1)
    )
    code = """
        import sys
        import xarray as xr
        for _ in range(30):
            first, second = (xr.open_dataset(sys.argv[1], engine="netcdf4") for _ in range(2))
            second.close()
            del first
            last = xr.open_dataset(sys.argv[1], engine="netcdf4")
            assert last.param.values.tolist() == ["theta"], last.param
    """
    done = program(dedent(code), tmp_path / "run" / "trajectory.nc")
    assert done.returncode == 0, done.stderr

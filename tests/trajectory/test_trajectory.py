"""What a run records: the layout of its dataset, the meaning of its numbers, and what cannot change them.

How often a run is saved, in how many pieces it is advanced and how many replicas it has changes no
draw; the stored configuration gives the same numbers again; a step is a pure function.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file
from support import accepted_pairs, declared, doubles
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sdeflow
from sdeflow import Block, Save, SDESystem, simulate
from sdeflow.config.build import build
from sdeflow.config.catalogue import find, integrator_named
from sdeflow.config.schema import load_config
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.noise.source import TorchNoise
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation import time_loop
from sdeflow.simulation.ending import Solution
from sdeflow.simulation.solve import solve
from sdeflow.system.increments import NoiseSpec
from sdeflow.system.system import BlockSystem, initial_state

D, N = 5, 4
THETA = {"h": 2e-3, "eta": 3.0, "gamma": 0.7}
X = {"h": 1e-2, "eta": 2.0, "gamma": 0.5}

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


class Autograd(Hierarchical):
    """The toy model without its analytic scores."""

    score_x = score_theta = None


class Net(sdeflow.Model):
    """y_i ~ N(A x_i + b, 1) with latents x_i [2, 3] from N(0, I); its parameters are those of a module."""

    latent_shape = (2, 3)

    def __init__(self) -> None:
        self.data = torch.linspace(-1, 1, 2 * D, dtype=torch.float64).view(D, 2)

    def init_theta(self, generator: torch.Generator) -> nn.Module:
        return nn.Linear(6, 2)

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        mean = nn.functional.linear(x.flatten(-2), theta["weight"], theta["bias"])
        return -((y[:, None] - mean) ** 2).sum(-1) / 2 - x.square().sum((-2, -1)) / 2

    def observables(self, theta: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"spread": x.std()}


class Ramp:
    """A user's SDE: drift and diffusion, nothing else."""

    def drift(self, t: float, x: Tensor) -> Tensor:
        return t - x

    def diffusion(self, t: float, x: Tensor) -> float:
        return 0.3


def system_of(model: sdeflow.Model, name: str = "mpgd") -> BlockSystem:
    return find("systems", name)(model, particles=N, theta=THETA, x=X)


def run(system: Any, integrator: str = "expint", **options: Any) -> Solution:
    """A run in float64 that saves all data and particles after every step, unless told otherwise."""
    chosen = {
        "steps": 6,
        "seed": 0,
        "replicas": 1,
        "save": Save(every=1, data="all", particles="all"),
        "dtype": "float64",
        "device": "cpu",
        "noise": "torch",
    }
    out = options.pop("out", None)
    return solve(declared(system, integrator, **(chosen | options)), out=out)


def assert_same(a: xr.Dataset, b: xr.Dataset) -> None:
    """All variables and coordinates equal to the bit."""
    assert dict(a.sizes) == dict(b.sizes)
    assert {*a.variables} == {*b.variables}
    for name in a.variables:
        np.testing.assert_array_equal(a[name], b[name], err_msg=str(name))
        assert a[name].dtype == b[name].dtype


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


# What changes no number --------------------------------------------------------------------------------


def test_the_stored_configuration_gives_the_same_numbers(stored: Stored, tmp_path: Path) -> None:
    again = tmp_path / "again.toml"
    again.write_text(stored.dataset.attrs["config"], encoding="utf-8")
    rerun = solve(build(load_config(again)))
    assert rerun.dataset.attrs["config"] == stored.dataset.attrs["config"]
    assert_same(rerun.dataset, stored.dataset)


CUTS: dict[str, dict[str, Any]] = {
    "every 1": {"every": 1},
    "every 3": {"every": 3},
    "every 7": {"every": 7},
    "fewer particles": {"data": 1, "particles": [3]},
    "norms only": {"theta_max": 0},
}


@pytest.mark.parametrize("chunk_seconds", [1e-9, 1e9], ids=["step by step", "long chunks"])
@pytest.mark.parametrize("save", CUTS.values(), ids=CUTS)
def test_saving_and_chunks_change_no_number(
    monkeypatch: pytest.MonkeyPatch, save: dict[str, Any], chunk_seconds: float
) -> None:
    system = system_of(Autograd(data=D))
    reference = run(system, steps=20, dtype="float32")
    monkeypatch.setattr(time_loop, "_CHUNK_SECONDS", chunk_seconds)
    end = run(system, steps=20, dtype="float32", save=Save(**save))
    for name, value in reference.state.items():
        assert torch.equal(end.state[name], value), name
    at = reference.dataset.sel(time=end.dataset.time)
    np.testing.assert_array_equal(end.dataset.loss, at.loss)
    if "theta" in end.dataset:
        np.testing.assert_array_equal(end.dataset.theta, at.theta)


@pytest.mark.parametrize(("integrator", "name"), accepted_pairs())
def test_pieces_of_a_run_make_the_run(integrator: str, name: str) -> None:
    """advance in pieces of 1, 4 and 2 steps, each with a noise source of its own, is advance by 7."""
    system, scheme = system_of(Hierarchical(data=D), name), integrator_named(integrator)
    z = initial_state(system, doubles(range(2)))
    z |= scheme.init(system, z)
    pieces = z

    def noise() -> TorchNoise:
        return TorchNoise(system.channels, scheme.noise_spec(system.h), doubles(range(2)))

    for first, steps in ((0, 1), (1, 4), (5, 2)):
        pieces = advance(EagerSteps(system, scheme, noise()), pieces, first, steps)
    for variable, value in advance(EagerSteps(system, scheme, noise()), z, 0, 7).items():
        assert torch.equal(pieces[variable], value), variable


R = 8
FORCES = {
    "analytic, vmap": (lambda: Hierarchical(data=D), 10**9),
    "analytic, loop": (lambda: Hierarchical(data=D), 0),
    "autograd, vmap": (lambda: Autograd(data=D), 10**9),
    "autograd, loop": (lambda: Autograd(data=D), 0),
    "module, vmap": (Net, 10**9),
    "module, loop": (Net, 0),
}


@pytest.mark.parametrize(("model", "vmap_below"), FORCES.values(), ids=FORCES)
def test_replicas_are_runs(
    monkeypatch: pytest.MonkeyPatch, model: Callable[[], sdeflow.Model], vmap_below: int
) -> None:
    """Replica i of a run with seed s is the run with seed s + i: the same start to the bit, then roundoff."""
    monkeypatch.setattr("sdeflow.model.forces.VMAP_BELOW", vmap_below)
    system = system_of(model(), "kiplmc")
    together = run(system, replicas=R, seed=3).dataset
    for i in range(R):
        alone, replica = run(system, seed=3 + i).dataset, together.isel(replica=i)
        assert replica.seed == alone.attrs["seed"] == 3 + i
        for name in ("theta", "m", "X", "U"):
            np.testing.assert_array_equal(replica[name][0], alone[name][0])
        for name in alone.data_vars:
            np.testing.assert_allclose(replica[name], alone[name], rtol=1e-12, atol=1e-12, err_msg=str(name))
    assert len(np.unique(together.theta[-1, :, 0])) == R


@pytest.mark.parametrize("kind", ["W", "P", "PQ", "WPQ"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_replicas_draw_what_runs_draw(kind: Any, dtype: torch.dtype) -> None:
    channels = system_of(Hierarchical(data=D), "kiplmc").channels

    def noise(seeds: range) -> TorchNoise:
        return TorchNoise(channels, NoiseSpec(kind, 2, 0.01), doubles(seeds, dtype))

    together = noise(range(3, 3 + R))
    singles = [noise(range(3 + i, 4 + i)) for i in range(R)]
    for step in (7, 0, 123_456_789):
        drawn = together(step)
        for i, single in enumerate(singles):
            for all_parts, parts in zip(drawn, single(step), strict=True):
                for variable, increments in parts.items():
                    for what, value in increments.items():
                        assert torch.equal(all_parts[variable][what][i], value[0])


def test_steps_replicas_blocks_and_substeps_draw_different_numbers() -> None:
    """Both blocks have one coordinate and move alike, so that equal normals would be equal increments."""
    kiplmc = find("systems", "kiplmc")
    channels = kiplmc(Hierarchical(data=1), particles=1, theta=X, x=X).channels
    noise = TorchNoise(channels, NoiseSpec("P", 2, 0.01), doubles(range(3)))
    drawn = [
        float(value)
        for step in range(50)
        for part in noise(step)
        for increments in part.values()
        for value in increments["P"].flatten()
    ]
    assert len(drawn) == 50 * 2 * 3 * 2
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(("integrator", "name"), [("expint", "mpgd"), ("ubu", "kiplmc"), ("expint", "ipla")])
def test_analytic_scores_are_the_gradients(integrator: str, name: str) -> None:
    with_scores = run(system_of(Hierarchical(data=D, scale=0.5), name), integrator, steps=20).dataset
    without = run(system_of(Autograd(data=D, scale=0.5), name), integrator, steps=20).dataset
    for variable in with_scores.data_vars:
        np.testing.assert_allclose(
            with_scores[variable], without[variable], rtol=1e-11, err_msg=str(variable)
        )


# Plain SDEs --------------------------------------------------------------------------------------------


def test_plain_sde_from_python() -> None:
    """Euler-Maruyama by hand, with the increments that the noise source gives."""
    system = SDESystem(Ramp(), h=0.1, paths=3, start=(0.5, -1.0))
    ds = run(system, "euler_maruyama", seed=4).dataset
    assert ds.X.dims == ("time", "particle", "latent")
    assert dict(ds.sizes) == {"time": 7, "particle": 3, "latent": 2}
    assert set(ds.data_vars) == {"X"}
    np.testing.assert_array_equal(ds.X[0], np.tile([0.5, -1.0], (3, 1)))
    noise = TorchNoise(system.channels, NoiseSpec("W", 1, 0.1), doubles([4]))
    x = ds.X[0].values
    for n in range(6):
        (part,) = noise(n)
        x = x + 0.1 * (0.1 * n - x) + 0.3 * part["X"]["W"][0].numpy()
        np.testing.assert_allclose(ds.X[n + 1], x, rtol=1e-13, atol=1e-14)


def test_plain_sde_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "ramp.py").write_text(
        "class Ramp:\n"
        "    def drift(self, t, x):\n        return t - x\n"
        "    def diffusion(self, t, x):\n        return 0.3\n"
    )
    (tmp_path / "ramp.toml").write_text(
        "[system]\nuse = 'ramp.py:Ramp'\nh = 0.1\npaths = 3\nstart = [0.5, -1.0]\n"
        "[run]\nintegrator = 'euler_maruyama'\nsteps = 6\nseed = 4\ndtype = 'float64'\nreplicas = 2\n"
        "noise = 'torch'\n"
        "[save]\nevery = 1\n"
    )
    ds = solve(build(load_config(tmp_path / "ramp.toml"))).dataset
    assert ds.X.dims == ("time", "replica", "particle", "latent")
    system = SDESystem(Ramp(), h=0.1, paths=3, start=(0.5, -1.0))
    for i in range(2):
        alone = run(system, "euler_maruyama", seed=4 + i).dataset
        np.testing.assert_array_equal(ds.X.sel(replica=i), alone.X)


def test_precision_is_the_one_asked_for() -> None:
    """Whatever precision the user's own constants have."""

    class Wide(Ramp):
        def drift(self, t: float, x: Tensor) -> Tensor:
            return -torch.ones(2, dtype=torch.float64) * x

    for dtype in ("float32", "float64"):
        system = SDESystem(Wide(), h=0.1, start=(0.5, -1.0))
        end = run(system, "euler_maruyama", dtype=dtype)
        assert end.dataset.X.dtype == np.dtype(dtype)
        assert end.state["X"].dtype == getattr(torch, dtype)
        end = run(system_of(Net()), dtype=dtype)
        assert {v.dtype for v in end.dataset.data_vars.values()} == {np.dtype(dtype)}
        assert {v.dtype for v in end.state.values()} == {getattr(torch, dtype)}


# Systems by hand ---------------------------------------------------------------------------------------


def test_a_system_made_by_hand_of_blocks_and_forces() -> None:
    """Blocks of their own shapes and clocks; the forces need not share a potential."""
    blocks = [
        Block("slow", "a", (2,), ("param",), "p", eta=2.0, gamma=0.5, temperature=0.0, role="parameters"),
        Block("fast", "b", (3, 4), ("datum", "latent"), rate=3.0),
    ]

    def forces(t: float, z: dict[str, Tensor], names: Any) -> dict[str, Tensor]:
        all_forces = {"slow": 1 - z["a"], "fast": -z["b"] * z["a"][:, :1, None]}
        return {name: all_forces[name] for name in names}

    start = {"a": torch.zeros(2), "b": torch.ones(3, 4)}
    ds = run(BlockSystem(blocks, forces, h=0.01, start=start), replicas=2, steps=3).dataset
    assert dict(ds.sizes) == {"time": 4, "replica": 2, "param": 2, "datum": 3, "latent": 4}
    assert ds.a.dims == ds.p.dims == ("time", "replica", "param")
    assert ds.b.dims == ("time", "replica", "datum", "latent")
    assert ds.param.values.tolist() == ["0", "1"]
    np.testing.assert_allclose(ds.time_fast, 3 * ds.time_slow, rtol=1e-14)
    np.testing.assert_allclose(ds.force_slow, np.sqrt(((1 - ds.a) ** 2).sum("param")), rtol=1e-14)


def test_large_but_finite_is_not_diverged() -> None:
    class Still:
        def drift(self, t: float, x: Tensor) -> Tensor:
            return 0 * x

        def diffusion(self, t: float, x: Tensor) -> float:
            return 0.0

    system = SDESystem(Still(), h=0.1, paths=100, start=(1e37,))
    assert run(system, "euler_maruyama", dtype="float32").retcode == "success"


# A step is pure ----------------------------------------------------------------------------------------


class Hostless(TorchDispatchMode):
    """Lets no operation draw a random number or look at a value on the host."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert torch.Tag.nondeterministic_seeded not in function.tags, f"{function} draws"
        assert torch.Tag.data_dependent_output not in function.tags, f"{function} looks at a value"
        return function(*args, **(kwargs or {}))


def prepared(integrator: str, system: Any) -> tuple[Any, dict[str, Tensor], Any]:
    """A scheme, a state of two replicas that it has taken a step on, and the noise of the next step."""
    scheme = integrator_named(integrator)
    system = system.to(torch.float64, torch.device("cpu"))
    z = initial_state(system, doubles(range(2)))
    with torch.no_grad():
        z |= scheme.init(system, z)
    noise = TorchNoise(system.channels, scheme.noise_spec(system.h), doubles(range(2)))
    return scheme, advance(EagerSteps(system, scheme, noise), z, 0, 1), noise(1)


@pytest.mark.parametrize("model", [Hierarchical, Autograd])
@pytest.mark.parametrize(("integrator", "name"), accepted_pairs())
def test_a_step_is_pure(integrator: str, name: str, model: type[Hierarchical]) -> None:
    """It draws nothing, looks at no value, and leaves what it was given as it was."""
    system = system_of(model(data=D), name)
    scheme, z, noise = prepared(integrator, system)
    given = [*z.values(), *(v for part in noise for increments in part.values() for v in increments.values())]
    before = [(v.clone(), v._version) for v in given]
    keys = set(z)
    with torch.no_grad(), Hostless():
        new = scheme.step(system, system.h, z, system.h, noise)
    assert set(z) == set(new) == keys
    for value, (copy, version) in zip(given, before, strict=True):
        assert torch.equal(value, copy)
        assert value._version == version  # not even changed and changed back
    storage = {v.untyped_storage().data_ptr() for v in given}
    for variable, value in new.items():
        assert value.shape == z[variable].shape
        assert value.dtype == torch.float64
        assert value.untyped_storage().data_ptr() not in storage, variable
        assert not value.requires_grad
    with torch.no_grad():
        again = scheme.step(system, system.h, z, system.h, noise)
    assert all(torch.equal(again[variable], value) for variable, value in new.items())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize(("integrator", "name"), accepted_pairs())
def test_a_step_can_be_differentiated(integrator: str, name: str) -> None:
    """On the toy model a step is affine, so its derivative along v is step(z + v) - step(z), to roundoff."""
    system = system_of(Hierarchical(data=D), name)
    scheme, z, noise = prepared(integrator, system)
    g = torch.Generator().manual_seed(0)
    v = {k: torch.randn(a.shape, generator=g, dtype=torch.float64) for k, a in z.items()}

    def step(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return scheme.step(system, system.h, state, system.h, noise)

    new, derivative = torch.func.jvp(step, (z,), (v,))
    moved = step({k: z[k] + v[k] for k in z})
    for variable in z:
        torch.testing.assert_close(
            derivative[variable], moved[variable] - new[variable], rtol=1e-9, atol=1e-9
        )


# The package -------------------------------------------------------------------------------------------


def test_importing_sdeflow_does_not_import_torch() -> None:
    program = "import sys, sdeflow\nassert 'torch' not in sys.modules and 'xarray' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_is_there() -> None:
    for name in sdeflow.__all__:
        assert getattr(sdeflow, name) is not None
    assert set(sdeflow.__all__) <= set(dir(sdeflow))
    with pytest.raises(AttributeError, match="nosuch"):
        sdeflow.nosuch  # noqa: B018

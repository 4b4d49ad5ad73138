"""Averages of the parameters: the weighted sums that they should be, and runs that they leave as they are.

Oracles: the sum over all recorded parameters; the run without an average; the run in one piece.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from commands import Cli, command
from pieces import WHOLE, toy
from safetensors.torch import load_file, save_file
from small import MOTION, Net, Ramp, assert_same, system_of
from support import INTEGRATORS, accepted_pairs, needs_kernel

import sdeflow
from sdeflow import Average, Batch, Evaluate, Grid, Save, SDESystem, SystemDeclaration, simulate
from sdeflow.config.catalogue import integrator_named
from sdeflow.engine.cuda_graph import GraphedSteps
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.errors import DivergenceWarning, SdeflowError
from sdeflow.noise.source import TorchNoise
from sdeflow.problems.linear_energy import LinearEnergy
from sdeflow.state import Replicas
from sdeflow.system import overdamped
from sdeflow.system.average import average_start, averaging
from sdeflow.system.system import initial_state

EVERY: dict[str, Any] = {"steps": 12, "seed": 3, "save": Save(every=1), "dtype": "float64", "engine": "eager"}


def weighted(theta: xr.DataArray, decay: float) -> np.ndarray:
    """sum_k d^(n-k) theta_k / sum_k d^(n-k) over k = 1 .. n for every n; theta_0 for n = 0."""
    values = theta.values.astype(np.float64)
    rows = [values[0]]
    for n in range(1, len(values)):
        w = decay ** (n - np.arange(1, n + 1))
        rows.append(np.tensordot(w, values[1 : n + 1], 1) / w.sum())
    return np.stack(rows)


def energy(system: str = "kinetic_ebipla") -> Any:
    motion = {**MOTION, "h": 0.01}
    blocks = {"alpha": motion, "x": motion}
    return getattr(sdeflow, system)(LinearEnergy(), particles=3, prior_particles=4, **blocks)


@pytest.mark.parametrize("scheme", [*INTEGRATORS, "torchsde:heun"])
def test_it_is_of_every_step_and_changes_no_number(scheme: str) -> None:
    """Under every integrator: the sum over all recorded theta to 1e-13, the rest of the run to the bit."""
    system = toy() if (scheme, "mpgd") in accepted_pairs() or ":" in scheme else toy(sdeflow.kiplmc)
    plain = simulate(system, scheme, **EVERY)
    run = simulate(system, scheme, average=Average(0.8), **EVERY)
    assert_same(run.drop_vars("average_theta"), plain)
    np.testing.assert_allclose(run.average_theta, weighted(run.theta, 0.8), rtol=1e-13)
    assert float(abs(run.average_theta - run.theta)[2:].min()) > 0
    assert run.average_theta.dims == run.theta.dims


@pytest.mark.parametrize(
    "options",
    [
        {"batch": Batch(2)},
        {"batch": Batch(2, "substeps", 3), "replicas": 2},
        {"batch": Batch(4, "one_step", 2), "scheme": "baoab"},
        {"replicas": 3, "evaluate": Evaluate(4, 2)},
        {"grid": Grid(gamma=(0.3, 0.9), eta=(2.0, 5.0)), "replicas": 2},
        {"dtype": "float32"},
        {"system": lambda: toy(precondition="rmsprop")},
        {"system": lambda: system_of(Net()), "replicas": 2},
        {"system": energy, "names": ("alpha",)},
        pytest.param({"engine": "fused", "noise": "philox", "replicas": 2}, marks=needs_kernel),
        pytest.param({"engine": "fused", "noise": "philox", "batch": Batch(2)}, marks=needs_kernel),
    ],
    ids=[*map(str, range(11))],
)
def test_it_changes_no_number_whatever_takes_the_steps(options: dict[str, Any]) -> None:
    """In a float32 run too the sum is that of float64."""
    options = dict(options)
    system, names = options.pop("system", toy)(), options.pop("names", ("theta",))
    scheme = options.pop("scheme", "expint")
    plain = simulate(system, scheme, **EVERY | options)
    run = simulate(system, scheme, average=Average(0.9), **EVERY | options)
    averages = [f"average_{name}" for name in names]
    assert_same(run.drop_vars(averages), plain)
    for name in names:
        average = run[f"average_{name}"]
        assert average.dtype == np.float64
        np.testing.assert_allclose(average, weighted(run[name], 0.9), rtol=1e-12, atol=1e-15)


COMPILED = EVERY | {"steps": 20, "save": Save(every=10), "average": Average(0.8)}


@pytest.mark.parametrize(
    "batch", [Batch(2), pytest.param(None, marks=pytest.mark.slow)], ids=["minibatches", "all"]
)
def test_compiled_steps_take_it_along(batch: Batch | None) -> None:
    """In strides of several steps: the eager run's to 1e-9."""
    eager = simulate(toy(), "expint", batch=batch, **COMPILED)
    run = simulate(toy(), "expint", batch=batch, **COMPILED | {"engine": "compiled"})
    np.testing.assert_allclose(run.average_theta, eager.average_theta, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"batch": Batch(2, "one_step", 3)}, {"dtype": "float32", "replicas": 3}, {"system": "net"}],
    ids=str,
)
def test_compiled_steps_are_as_without_it(options: dict[str, Any]) -> None:
    """To the bit, though torch makes another function of them."""
    options = COMPILED | options | {"engine": "compiled"}
    system = system_of(Net()) if options.pop("system", "") else toy()
    run, plain = (simulate(system, "expint", **options | {"average": a}) for a in (Average(0.8), None))
    assert_same(run.drop_vars("average_theta"), plain)


def test_steps_of_a_graph_take_it_along() -> None:
    """With a stand-in for what is captured, and no noise, so that a step may be any step."""
    still = SystemDeclaration(name="still", theta=overdamped("0"), x=overdamped("0"), source="")
    motion = {"h": 1e-2}
    system = still(sdeflow.problems.hierarchical.Hierarchical(data=3), particles=2, theta=motion, x=motion)
    replicas = Replicas([0, 1], torch.float64, torch.device("cpu"))
    scheme = averaging(integrator_named("expint"), 0.9)
    step = EagerSteps(system, scheme, TorchNoise([], scheme.noise_spec(system.h), replicas))
    z = initial_state(system, replicas)
    z |= average_start(system, z)
    counters, captured = [torch.zeros(1, dtype=torch.int64)], lambda z, k, _: step(z, k)
    graphed = GraphedSteps(captured, counters, lambda n, count: [], every=16, capture=lambda run: run)
    one, other = advance(step, z, 0, 33), advance(graphed, z, 0, 33)
    assert one.keys() == other.keys() == z.keys()
    assert all(torch.equal(one[name], other[name]) for name in z)
    assert float((one["average.theta"] - z["theta"]).abs().min()) > 0


def test_the_ends_of_the_range() -> None:
    """0 is the last theta, 1 the mean of all; the start has no weight, and the first average is theta_1."""
    last, mean = (simulate(toy(), average=Average(d), **EVERY) for d in (0, 1))
    np.testing.assert_array_equal(last.average_theta, last.theta)
    np.testing.assert_allclose(mean.average_theta[-1], mean.theta[1:].mean("time"), rtol=1e-14)
    assert mean.average_theta[1].item() == mean.theta[1].item() != mean.theta[0].item()


def test_it_is_not_rounded_away() -> None:
    """Of a float32 theta that jumps from 0 to 1 and rests: the formula to 1e-9, which no float32 holds."""
    decay, steps = 0.9999, 25_000
    mean = {"average.theta": torch.zeros(1, 1, dtype=torch.float64), "average.total_weight": torch.ones(1)}
    state = {"theta": torch.ones(1, 1)} | {k: v.double() for k, v in mean.items()}

    class Resting(sdeflow.Integrator):
        def step(self, system: Any, t: float, z: Any, h: float, noise: Any) -> Any:
            return z

    scheme, system = averaging(Resting(), decay), toy()
    for _ in range(steps):
        state = scheme.step(system, 0.0, state, 0.1, ())
    total = (1 - decay ** (steps + 1)) / (1 - decay)
    assert abs(float(state["average.theta"]) - (1 - decay**steps / total)) < 1e-9


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("expint", {}),
        ("baoab", {"replicas": 2}),
        ("expint", {"batch": Batch(2, "one_step", 2), "replicas": 2, "dtype": "float32"}),
        ("nag", {"grid": Grid(gamma=(0.3, 0.9))}),
        pytest.param("obabo", {"engine": "fused", "noise": "philox"}, marks=needs_kernel),
    ],
    ids=str,
)
def test_it_resumes_to_the_bit(
    stop_before: Any, tmp_path: Path, scheme: str, options: dict[str, Any]
) -> None:
    options = WHOLE | {"average": Average(0.9)} | options
    whole = simulate(toy(), scheme, out=tmp_path / "whole", **options)
    for n in (1, 2, 5, 10):
        stop_before(n)
        with pytest.raises(KeyboardInterrupt):
            simulate(toy(), scheme, out=tmp_path / "run", resume=True, **options)
    stop_before(None)
    assert_same(simulate(toy(), scheme, out=tmp_path / "run", resume=True, **options), whole)
    first, second = (load_file(tmp_path / name / "final.safetensors") for name in ("whole", "run"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(SdeflowError, match=r"another run: average was .*0\.9\)' and is 'Average\(decay=0\.8"):
        simulate(toy(), scheme, out=tmp_path / "run", resume=True, **options | {"average": Average(0.8)})


def test_final_safetensors_has_it_by_parameter(tmp_path: Path) -> None:
    run = simulate(system_of(Net()), out=tmp_path / "run", replicas=2, average=Average(0.9), **EVERY)
    final = load_file(tmp_path / "run/final.safetensors")
    for name in ("weight", "bias"):
        assert final[f"average.theta.{name}"].shape == final[f"theta.{name}"].shape
    flat = torch.cat([final[f"average.theta.{name}"].flatten(1) for name in ("weight", "bias")], 1)
    np.testing.assert_array_equal(flat, run.average_theta[-1])
    total = (1 - 0.9**12) / 0.1
    torch.testing.assert_close(final["average.total_weight"], torch.full((2,), total, dtype=torch.float64))


def test_a_long_theta_has_its_norm_recorded() -> None:
    run = simulate(system_of(Net()), average=Average(0.9), **EVERY | {"save": Save(every=1, theta_max=3)})
    whole = simulate(system_of(Net()), average=Average(0.9), **EVERY)
    assert "average_theta" not in run
    norm = np.linalg.norm(whole.average_theta, axis=1)
    np.testing.assert_allclose(run.average_theta_norm, norm, rtol=1e-14)
    assert run.average_theta_norm.attrs["long_name"].startswith(
        "Euclidean norm of exponential moving average"
    )


def test_a_replica_that_diverges_is_told_as_without_it() -> None:
    system = sdeflow.pgd(toy().definition, particles=2, theta={"h": 0.01}, x={"h": 5.0})
    told = []
    for average in (None, Average(0.9)):
        with pytest.warns(DivergenceWarning):
            run = simulate(system, "euler_maruyama", steps=4000, average=average, save=Save(every=4000))
        told.append(run.attrs["message"])
    assert told[0] == told[1]
    assert "not finite" in told[0]


# What knows it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "size"), [("ppca", {}), ("linear_energy", {"model.data": 4, "system.prior_particles": 3})]
)
def test_samples_take_it(
    problem: str, size: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a run whose last parameters they are, of a linear decoder and of an energy."""
    monkeypatch.chdir(tmp_path)
    more: list[Any] = [part for key, value in size.items() for part in ("--set", f"{key}={value}")]
    more += ["--set", "average.decay=0.9", "--set", "system.particles=2", "--replicas", 2, "--steps", 30]
    assert command("run", problem, *more, "--dtype", "float32", "--quiet", "--out", "run") == 0
    shutil.copytree("run", "other")
    final = load_file("run/final.safetensors")
    kept = {k.removeprefix("average."): v.float() for k, v in final.items() if k.startswith("average.")}
    save_file(final | kept, "other/final.safetensors")
    samples = ["--n", 5, "--replica", 1]
    assert command("sample", "run", "--average", *samples) == command("sample", "other", *samples) == 0
    with xr.open_dataset("run/samples.nc") as mean, xr.open_dataset("other/samples.nc") as expected:
        assert (mean.attrs["parameters"], expected.attrs["parameters"]) == ("average", "last")
        assert_same(mean, expected)
    assert command("sample", "run", *samples) == 0
    with xr.open_dataset("run/samples.nc") as last, xr.open_dataset("other/samples.nc") as expected:
        assert not np.array_equal(last["y"], expected["y"])


def test_show_tells_it(cli: Cli) -> None:
    shown = cli("show", "ppca", "--set", "average.decay=0.99")
    assert shown.code == 0
    assert "average of theta" in shown.out
    assert "decay 0.99, over about 100 steps" in shown.out
    assert "average of" not in cli("show", "ppca").out


def test_a_configuration_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--quiet", "--steps", 20, "--set", "save.every=1"]
    assert command("run", "hierarchical", *options, "--set", "average.decay=0.5", "--out", "run") == 0
    assert "[average]\ndecay = 0.5" in Path("run/config.toml").read_text()
    with xr.open_dataset("run/trajectory.nc") as run:
        assert run.attrs["average"] == "decay 0.5, over about 2 steps"
        np.testing.assert_allclose(run.average_theta, weighted(run.theta, 0.5), rtol=1e-12)


def test_what_is_wrong_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, refused: Any
) -> None:
    for value, sentence in (
        ("1.5", "'average.decay': input should be less than or equal to 1, given 1.5"),
        ("-0.1", "'average.decay': input should be greater than or equal to 0, given -0.1"),
        ("'much'", "average.decay"),
    ):
        assert sentence in refused("--set", f"average.decay={value}")
    assert "unknown key 'average.decai': did you mean 'decay'" in refused("--set", "average.decai=0.9")
    with pytest.raises(SdeflowError, match=r"an average is of parameters, and this system has none"):
        simulate(SDESystem(Ramp(), h=0.1, paths=2, start=[0.0]), "euler_maruyama", steps=1, average=Average())
    with pytest.raises(SdeflowError, match=r"average must be an sdeflow\.Average, given float"):
        simulate(toy(), steps=1, average=0.999)  # type: ignore[arg-type]
    assert cli("run", "ppca", "--steps", 2, "--quiet", "--out", "run").code == 0
    told = cli("sample", "run", "--average")
    assert told.code == 2
    assert "run has kept no average of its parameters: run it with --set average.decay=0.999" in told.err

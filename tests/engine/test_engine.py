"""Engines: which one runs and why, that they agree within a noise source, and that each has the right law."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from small import CPU, MOTION
from support import SE, accepted_pairs, affine_map, doubles, harmonic_well, needs_kernel, toy
from torch import Tensor

from sdeflow import Batch, Evaluate, Save, kiplmc, mpgd, simulate
from sdeflow.config.build import build
from sdeflow.config.catalogue import integrator_named
from sdeflow.config.schema import Config
from sdeflow.engine.engine import Engine, resolve_engine
from sdeflow.engine.minibatch import MiniBatches
from sdeflow.engine.step import EagerSteps, advance, strides
from sdeflow.errors import SdeflowError
from sdeflow.integrators.expint import ExpInt
from sdeflow.noise.cpp import CppKernel, cpp_kernel
from sdeflow.noise.kernel import NoKernel
from sdeflow.noise.philox_source import PhiloxNoise
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.held_out import HeldOut
from sdeflow.system.block import Block
from sdeflow.system.grid import Grid
from sdeflow.system.increments import Channel, NoiseSpec, compose
from sdeflow.system.maps import U
from sdeflow.system.system import BlockSystem, initial_state
from sdeflow.system.varying import spread

WHY = "the kernel was lost"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each function of the kernel is called."""
    counted: Counter[str] = Counter()
    kernel = cpp_kernel()
    assert isinstance(kernel, CppKernel)

    def counting(name: str) -> Any:
        function = getattr(kernel, name)

        def call(*arguments: Any) -> Any:
            counted[name] += 1
            return function(*arguments)

        return call

    for name in ("normals", "linear", "kinetic"):
        monkeypatch.setattr(kernel, name, counting(name))
    return counted


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> Any:
        raise NoKernel(WHY)

    monkeypatch.setattr("sdeflow.noise.philox_source.cpp_kernel", lost)


def source(
    system: Any,
    integrator: str,
    dtype: torch.dtype = torch.float64,
    seeds: Sequence[int] = (3, 4),
    *,
    fused: bool = False,
) -> PhiloxNoise:
    spec = integrator_named(integrator).noise_spec(system.h)
    return PhiloxNoise(system.channels, spec, doubles(seeds, dtype), fused=fused)


def steps(
    system: Any, integrator: str, *, fused: bool, n: int = 20, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """The state of two replicas after n steps on philox noise."""
    scheme = integrator_named(integrator)
    system = system.to(dtype, CPU)
    z = initial_state(system, doubles([3, 4], dtype))
    with torch.no_grad():
        z |= scheme.init(system, z)
    return advance(EagerSteps(system, scheme, source(system, integrator, dtype, fused=fused)), z, 0, n)


# Which one runs ------------------------------------------------------------------------------------


def test_pieces_depend_on_where_they_end_alone() -> None:
    """Cut at multiples of the stride, the same are taken; no step twice and none left out."""
    whole = list(strides(0, 30, 8))
    assert whole == [(0, 8), (8, 8), (16, 8), *((n, 1) for n in range(24, 30))]
    for cut in (8, 16, 24):
        assert [*strides(0, cut, 8), *strides(cut, 30, 8)] == whole
    assert list(strides(5, 17, 8)) == [(5, 1), (6, 1), (7, 1), (8, 8), (16, 1)]
    assert list(strides(3, 6, 1)) == [(3, 1), (4, 1), (5, 1)]


@needs_kernel
@pytest.mark.parametrize(
    ("engine", "noise", "chosen"),
    [
        ("auto", "auto", ("fused", "philox")),
        ("auto", "philox", ("fused", "philox")),
        ("auto", "torch", ("eager", "torch")),
        ("eager", "auto", ("eager", "philox")),
        ("eager", "torch", ("eager", "torch")),
        ("fused", "auto", ("fused", "philox")),
        ("compiled", "auto", ("compiled", "philox")),
        ("compiled", "torch", ("compiled", "torch")),
    ],
)
def test_choice_with_a_kernel(engine: str, noise: str, chosen: tuple[str, str]) -> None:
    found = resolve_engine(engine, noise, CPU)
    assert (found.name, found.source_name) == chosen
    assert found.why


@pytest.mark.usefixtures("no_kernel")
def test_choice_without_a_kernel() -> None:
    for engine, noise in (("auto", "auto"), ("eager", "auto"), ("auto", "torch")):
        found = resolve_engine(engine, noise, CPU)
        assert (found.name, found.source_name, found.why) == ("eager", "torch", WHY)
    for engine, noise in (("fused", "auto"), ("auto", "philox"), ("eager", "philox")):
        with pytest.raises(SdeflowError, match=f"needs a kernel, and {WHY}"):
            resolve_engine(engine, noise, CPU)
    with pytest.raises(SdeflowError, match=WHY):
        PhiloxNoise([], NoiseSpec("W", 1, 1.0), doubles())


def test_a_slow_kernel_has_to_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdeflow.noise.philox_source.cpp_kernel", lambda: SimpleNamespace(fast=False))
    found = resolve_engine("auto", "auto", CPU)
    assert (found.name, found.source_name) == ("eager", "torch")
    assert "no fused multiply-add" in found.why
    assert resolve_engine("auto", "philox", CPU).name == "fused"
    assert resolve_engine("fused", "auto", CPU).source_name == "philox"


@pytest.mark.parametrize(
    ("engine", "noise", "told"),
    [
        ("fused", "torch", "draws its noise itself"),
        ("fusd", "auto", "did you mean 'fused'"),
        ("auto", "torhc", "did you mean 'torch'"),
    ],
)
def test_refusals(engine: str, noise: str, told: str) -> None:
    with pytest.raises(SdeflowError, match=told):
        resolve_engine(engine, noise, CPU)


def test_without_triton_fused_is_refused_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise NoKernel("Triton is not to be had")

    monkeypatch.setattr("sdeflow.noise.philox_source._triton", lost)
    cuda = torch.device("cuda")
    with pytest.raises(SdeflowError, match="'fused' needs a kernel, and Triton is not to be had"):
        resolve_engine("fused", "auto", cuda)
    assert resolve_engine("auto", "auto", cuda).source_name == "torch"


def test_on_cuda_auto_is_fused_and_eager_for_what_no_graph_is_made_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sdeflow.noise.philox_source._triton", lambda: SimpleNamespace(fast=True))
    cuda = torch.device("cuda")
    chosen = {e: resolve_engine(e, "auto", cuda) for e in ("auto", "fused", "eager")}
    names = [(c.name, c.source_name) for c in chosen.values()]
    assert names == [("fused", "philox"), ("fused", "philox"), ("eager", "philox")]
    assert chosen["auto"].fallback is not None
    assert (chosen["auto"].fallback.name, chosen["auto"].fallback.source_name) == ("eager", "philox")
    assert chosen["fused"].fallback is None


@needs_kernel
def test_what_auto_became_is_kept(tmp_path: Path) -> None:
    """In the configuration that the run carries, the attributes, the log and the settings."""
    config = Config.of(
        {
            "model": {"use": "hierarchical", "data": 3},
            "system": {"use": "mpgd", "particles": 2, "theta": MOTION, "x": MOTION},
        }
    )
    run = build(config)
    assert (run.engine.name, run.engine.source_name) == ("fused", "philox")
    assert 'engine = "fused"' in run.toml
    assert run.settings["run.noise"] == "philox"
    assert "run.engine" not in run.settings
    ds = simulate(toy("mpgd", data=3, theta=MOTION, x=MOTION), steps=2, out=tmp_path / "run", device="cpu")
    assert (ds.attrs["engine"], ds.attrs["noise_source"]) == ("fused", "philox")
    assert "engine fused, noise philox: " in (tmp_path / "run" / "run.log").read_text()


# Agreement -----------------------------------------------------------------------------------------


@needs_kernel
@pytest.mark.parametrize(("integrator", "system"), accepted_pairs())
def test_eager_and_fused_agree(integrator: str, system: str) -> None:
    """After 20 stable steps in float64 to 100 roundoffs of the largest number: the normals are the same."""
    built = toy(system, data=13, particles=7, theta=MOTION, x=MOTION)
    eager, fused = (steps(built, integrator, fused=fused) for fused in (False, True))
    assert eager.keys() == fused.keys()
    for name in eager:
        scale = max(1.0, float(eager[name].abs().max()))
        assert (eager[name] - fused[name]).abs().max() < 100 * torch.finfo(torch.float64).eps * scale, name


@needs_kernel
@pytest.mark.parametrize(
    ("integrator", "system", "each_step"),
    [
        ("expint", "mpgd", {"kinetic": 1}),
        ("expint", "kiplmc", {"kinetic": 2}),
        ("expint_shared", "ipla", {"linear": 2}),
        ("ubu", "mpgd", {"kinetic": 2}),
        ("quicsort", "kiplmc", {"normals": 2}),
        ("baoab", "kiplmc", {"linear": 2}),
        ("euler_maruyama", "pgd", {"normals": 1}),
    ],
)
def test_updates_are_made_in_one_pass(
    calls: Counter[str], integrator: str, system: str, each_step: dict[str, int]
) -> None:
    built = toy(system, data=5, particles=3, theta=MOTION, x=MOTION)
    steps(built, integrator, fused=True, n=4)
    assert calls == {name: 4 * count for name, count in each_step.items()}
    calls.clear()
    steps(built, integrator, fused=False, n=4)
    assert set(calls) == {"normals"}


@needs_kernel
def test_replicas_with_friction_of_their_own_are_moved_in_one_pass_too(calls: Counter[str]) -> None:
    built = spread(toy("kiplmc", data=5, particles=3, theta=MOTION, x=MOTION), Grid(gamma=(0.0, 0.8)), 1)
    eager, fused = (steps(built, "ubu", fused=fused, n=4) for fused in (False, True))
    assert calls["kinetic"] == 4 * 4
    assert all(torch.allclose(eager[name], fused[name], rtol=0, atol=1e-13) for name in eager)


@needs_kernel
def test_float32_too(calls: Counter[str]) -> None:
    built = toy("kiplmc", data=13, particles=7, theta=MOTION, x=MOTION)
    eager, fused = (steps(built, "expint", fused=fused, n=5, dtype=torch.float32) for fused in (False, True))
    assert calls["kinetic"] == 10
    for name in eager:
        assert torch.allclose(eager[name], fused[name], rtol=0, atol=2e-5), name


@needs_kernel
def test_the_old_state_stays_as_it_was() -> None:
    built = toy("kiplmc", data=3, particles=2, theta=MOTION, x=MOTION)
    scheme = integrator_named("expint")
    z = initial_state(built, doubles([3, 4]))
    before = {name: value.clone() for name, value in z.items()}
    advance(EagerSteps(built, scheme, source(built, "expint", fused=True)), z, 0, 3)
    assert all(torch.equal(z[name], before[name]) for name in z)


@needs_kernel
@pytest.mark.parametrize("integrator", ["expint", "obabo", "ubu"])
def test_fused_steps_do_not_depend_on_chunks_threads_or_replicas(integrator: str) -> None:
    built = toy("kiplmc", data=300, particles=500, theta=MOTION, x=MOTION)
    scheme = integrator_named(integrator)
    z = initial_state(built, doubles([3, 4]))
    with torch.no_grad():
        z |= scheme.init(built, z)
    step = EagerSteps(built, scheme, source(built, integrator, fused=True))
    whole, before = advance(step, z, 0, 3), torch.get_num_threads()
    # forces are torch's, whose sums depend on threads: so the updates alone are compared
    again = advance(EagerSteps(built, scheme, source(built, integrator, fused=True)), z, 0, 1)
    again = advance(step, again, 1, 2)
    assert all(torch.equal(whole[name], again[name]) for name in whole)

    (noise, *_), blocks = source(built, "ubu", fused=True)(5), built.blocks
    moved = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                moved.append(U(blocks, z, built.h / 2, noise))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(m[name], moved[0][name]) for m in moved for name in m)
    (second, *_) = source(built, "ubu", seeds=[4], fused=True)(5)
    with torch.no_grad():
        alone = U(blocks, {name: value[1:] for name, value in z.items()}, built.h / 2, second)
    assert all(torch.equal(alone[name][0], moved[0][name][1]) for name in alone)


@needs_kernel
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own
def test_derivatives_and_batches_go_through_a_step(calls: Counter[str]) -> None:
    """Where torch traces the computation the increment is drawn and the update is torch's."""
    built = toy("mpgd", data=3, particles=2, theta=MOTION, x=MOTION)
    scheme, noise = integrator_named("expint"), source(built, "expint", fused=True)
    z = initial_state(built, doubles([3, 4]))

    def step(x: Tensor) -> Tensor:
        return scheme.step(built, 0.0, z | {"X": x}, built.h, noise(0))["X"]

    ones = torch.ones_like(z["X"])
    with torch.no_grad():
        base = step(z["X"])
        assert calls["kinetic"] == 1
        _, forward = torch.func.jvp(step, (z["X"],), (ones,))
        many = torch.func.vmap(step)(torch.stack([z["X"], z["X"] + 1]))
        moved = step(z["X"] + 1)
    x = z["X"].clone().requires_grad_()
    (backward,) = torch.autograd.grad(step(x).sum(), x)
    assert torch.allclose(forward, moved - base, rtol=0, atol=1e-12)
    assert backward.sum() == pytest.approx(float(forward.sum()), rel=1e-12)
    assert torch.allclose(many, torch.stack([base, moved]), rtol=0, atol=1e-12)
    assert calls["kinetic"] == 2


@needs_kernel
def test_increments_compose() -> None:
    """U over a step under the composed path is U over its halves, though those are made in one pass."""
    block = Block("x", "X", (20,), ("x",), "U", eta=2.0, gamma=0.7, temperature=0.3, rate=1.6)
    channel = Channel("x", "U", (20,), block)
    system = BlockSystem([block], lambda t, z, names: {}, h=0.4)
    halves = source(system, "ubu", fused=True)(0)
    z = {name: torch.ones(2, 20, dtype=torch.float64) for name in ("X", "U")}
    with torch.no_grad():
        in_two = U([block], U([block], z, 0.2, halves[0]), 0.2, halves[1])
        whole = compose(channel, halves[0]["U"], halves[1]["U"], 0.2)
        in_one = U([block], z, 0.4, {"U": whole})
    assert all(torch.allclose(in_one[name], in_two[name], rtol=0, atol=1e-14) for name in z)


# Laws ----------------------------------------------------------------------------------------------


@needs_kernel
@pytest.mark.parametrize(("integrator", "momentum"), [
    ("expint", "p"), ("ubu", "p"), ("quicsort", "p"), ("obabo", "p"), ("baoab", "p"), ("expint", None),
    ("euler_maruyama", "p"),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stationary_law(integrator: str, momentum: str | None, dtype: torch.dtype) -> None:
    """In a harmonic well, from 20 000 coordinates: the covariance that the step's affine map has at rest."""

    def well(size: int) -> BlockSystem:
        return harmonic_well(0.4, rate=0.7, momentum=momentum, size=size)

    law = affine_map(well(1), integrator).stationary
    z = steps(well(10_000), integrator, fused=True, n=100, dtype=dtype)
    x = np.stack([z[name].double().numpy().ravel() for name in ("q", "p") if name in z])
    error = np.sqrt((np.outer(np.diag(law), np.diag(law)) + law**2) / x.shape[1])
    assert (np.abs(x @ x.T / x.shape[1] - law) < SE * error).all()


# Runs ----------------------------------------------------------------------------------------------


class WithHeldOut(Hierarchical):
    """The toy model, a few of whose data the parameters never see."""

    def __init__(self, data: int) -> None:
        super().__init__(data=data + 3, theta_true=1.0)
        self.data, self.held_out = self.data[:data].clone(), self.data[data:].clone()


def full(**options: Any) -> xr.Dataset:
    """A run with everything: minibatches, catching up, held-out data, replicas."""
    system = kiplmc(WithHeldOut(12), particles=3, theta=MOTION, x=MOTION)
    chosen: dict[str, Any] = {
        "integrator": "expint",
        "batch": Batch(4, catch_up="substeps", cap=3),
        "evaluate": Evaluate(every=4, steps=2),
        "replicas": 2,
        "save": Save(every=2, data="all", particles="all"),
        "device": "cpu",
        "noise": "philox",
        "steps": 12,
        "dtype": "float64",
    }
    return simulate(system, **chosen | options)


@needs_kernel
@pytest.mark.parametrize("catch_up", ["off", "one_step", "substeps", "srock"])
@pytest.mark.filterwarnings("ignore::sdeflow.errors.StabilityWarning")
def test_whole_runs_agree(catch_up: Any) -> None:
    batch = Batch(4, catch_up=catch_up, cap=3)
    eager, fused = (full(engine=engine, batch=batch) for engine in ("eager", "fused"))
    assert eager.attrs["engine"] == "eager"
    for name in fused.data_vars:
        np.testing.assert_allclose(fused[name], eager[name], rtol=1e-11, atol=1e-11, err_msg=str(name))


@needs_kernel
def test_resumed_to_the_bit(tmp_path: Path) -> None:
    whole = full()
    full(steps=7, out=tmp_path / "run")
    resumed = full(out=tmp_path / "run", resume=True)
    for name in whole.variables:
        np.testing.assert_array_equal(resumed[name], whole[name], err_msg=str(name))
    assert resumed.attrs["warnings"] == ""


@needs_kernel
def test_resuming_under_another_source_is_refused_and_another_engine_told(tmp_path: Path) -> None:
    full(steps=7, out=tmp_path / "run")
    with pytest.raises(SdeflowError, match="noise was 'philox' and is 'torch'"):
        full(noise="torch", out=tmp_path / "run", resume=True)
    resumed = full(engine="eager", out=tmp_path / "run", resume=True)
    assert "engine was fused and is eager" in resumed.attrs["warnings"]
    np.testing.assert_allclose(resumed["X"], full()["X"], rtol=1e-11, atol=1e-11)


@needs_kernel
def test_noise_of_batches_and_held_out_data_is_their_own(calls: Counter[str]) -> None:
    """Their numbers have keys of their own, and the place in the draw is the element."""
    system = toy("mpgd", data=6, particles=2, theta=MOTION, x=MOTION)
    batches = MiniBatches(
        system,
        integrator_named("expint"),
        Batch(3, catch_up="one_step"),
        doubles(),
        Engine("eager", "philox"),
    )
    (step,), ((_, late),) = batches._noise(2), tuple(batches._catch_up.noise.normals(2))
    assert step["U"]["P"].shape == (1, 3, 2, 1)
    assert late.shape == (1, 1, 2, 1, 3, 2, 1)
    more = mpgd(WithHeldOut(6), particles=2, theta=MOTION, x=MOTION)
    held_out = HeldOut(more, ExpInt(), Evaluate(every=1), doubles(), source=PhiloxNoise)
    (part,) = held_out._noise(2)
    drawn = torch.cat([late.flatten(), part["U"]["P"].flatten(), step["U"]["P"].flatten()])
    assert drawn.unique().numel() == drawn.numel()
    assert calls["kinetic"] == 0

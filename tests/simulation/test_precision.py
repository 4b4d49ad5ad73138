"""Forces in bfloat16 or by TF32: how far they move, what stays in float32, and what says so.

Oracle: the same forces in float64, and runs in full precision on the same noise. Errors are counted in U, the
distance of 1 from the next number of bfloat16, of which rounding moves a number by half at most.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from commands import command
from small import CPU, LIGHT, SIZES, assert_same, run
from torch import Tensor, nn

import sdeflow
from sdeflow import Batch, Evaluate, Parallel, Save, SdeflowError, SDESystem, mpgd, pgd, simulate
from sdeflow.config.device import refuse_precision
from sdeflow.model.amortised import Amortised
from sdeflow.model.energy_forces import EnergyForces
from sdeflow.model.force_field import ModelField
from sdeflow.model.forces import ModelForces, held_out_forces
from sdeflow.model.kernel_forces import KernelForces
from sdeflow.model.kernels import RBF
from sdeflow.model.precision import bfloat16_products, float32_products
from sdeflow.parallel.field import ShardedField
from sdeflow.parallel.ranks import ALONE
from sdeflow.parallel.shard import Shard
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.generic import OrnsteinUhlenbeck
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.latent_ebm import LatentEBM
from sdeflow.problems.networks import Mixture
from sdeflow.problems.ppca import PPCA
from sdeflow.state import State

U = 2.0**-8
FLOAT32: Any = (torch.float32, CPU)
WHOLE = Save(every=1, data="all", particles="all")


def start_of(forces: ModelField, replicas: int = 1) -> State:
    """The start of replicas with seeds 0, 1, ..., in float32."""
    starts = [forces.start(seed) for seed in range(replicas)]
    return {name: torch.stack([z[name] for z in starts]).float() for name in starts[0]}


def off(a: Tensor, b: Tensor) -> float:
    """The distance of two tensors, as a share of the second's length, in U."""
    return float((a.double() - b.double()).norm() / b.double().norm()) / U


# How far forces move -----------------------------------------------------------------------------------


class Smooth(Decoder):
    """The decoder with tanh in place of leaky ReLUs."""

    def _new_network(self) -> nn.Sequential:
        kind = super()._new_network()
        return nn.Sequential(*(nn.Tanh() if isinstance(layer, nn.LeakyReLU) else layer for layer in kind))


@pytest.mark.parametrize(
    ("model", "loss", "theta", "x"),
    [(Decoder, 0.1, 1.0, 10.0), (Smooth, 0.1, 1.0, 2.0), (PPCA, 0.2, 1.0, 1.0)],
)
def test_loss_and_gradients_move_by_so_many_units(
    model: Callable[[], sdeflow.Model], loss: float, theta: float, x: float
) -> None:
    """The score of a decoder moves most where a leaky ReLU changes its side."""
    forces = ModelForces(model(), 5)
    z, low = start_of(forces), forces.to(*FLOAT32).in_bf16(True)
    exact_z = {name: v.double() for name, v in z.items()}
    exact = forces.to(torch.float64, CPU)
    found, expected = low(0.0, z, ("theta", "x")), exact(0.0, exact_z, ("theta", "x"))
    for name, bound in (("theta", theta), ("x", x)):
        assert found[name].dtype == torch.float32
        assert 0.1 < off(found[name], expected[name]) < bound
    assert low.loss(z).dtype == torch.float32
    assert off(low.loss(z), exact.loss(exact_z)) < loss


def test_a_model_without_products_moves_by_nothing() -> None:
    """So that noise, updates and sums of a run in bf16 are those of float32, to the bit."""
    system = mpgd(Hierarchical(data=6), particles=4, theta=LIGHT, x=LIGHT)
    full, low = (run(system, dtype="float32", precision=name).dataset for name in ("full", "bf16"))
    assert_same(low, full)


class Long(sdeflow.Model):
    """log p = -(sum of 2000 squares of products)/2, all of it in the precision of the products."""

    latent_shape = (3,)

    def __init__(self) -> None:
        self.data = torch.zeros(4, 1, dtype=torch.float64)

    def init_theta(self, generator: torch.Generator) -> Any:
        return {"weight": torch.ones(2000, 3)}

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return -(x @ theta["weight"].mT).square().sum(-1) / 2


def test_values_are_added_up_in_float32() -> None:
    """Rounding once more would show: those of the 4 x 50 values are of either sign."""
    forces = ModelForces(Long(), 50)
    z, low = start_of(forces), forces.to(*FLOAT32).in_bf16(True)
    with bfloat16_products(z["X"]):
        values = Long().log_joint({"weight": z["theta"].view(2000, 3)}, z["X"][0], None)
    assert values.dtype == torch.bfloat16
    torch.testing.assert_close(low.loss(z)[0], -values.double().mean().float(), rtol=1e-6, atol=0)


def test_the_density_of_a_mixture_is_of_float32() -> None:
    """Its squares of distances are small differences of products, which bfloat16 would miss by some 10.

    Oracle: the density of its components, as they come of an encoder in bfloat16, in float64.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        mixture, x = Mixture(8, 20, 8), 20 + torch.randn(30, 5, 8)
        last: Any = mixture.encoder[-2]
        last.bias[:8] = 20.0
        with bfloat16_products(x):
            found = mixture(x)
            mean, variance = mixture.components()
    assert {v.dtype for v in (found, mean, variance)} == {torch.float32}
    each = torch.distributions.Normal(mean.double(), variance.double().sqrt())
    expected = each.log_prob(x.double()[:, :, None]).sum(-1).logsumexp(-1) - np.log(20)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.01)


def test_the_law_of_an_encoder_is_of_float32() -> None:
    model = Amortised(Decoder(latent=2, images=6), hidden=(4,))
    forces = ModelForces(model, 2)
    z = start_of(forces)
    own = model.to(*FLOAT32)
    with torch.no_grad(), bfloat16_products(z["X"]):
        law = own.law(forces.parameters.views(z["theta"][0]), own.data)
    assert {v.dtype for v in law} == {torch.float32}


# Every way from forces to others -----------------------------------------------------------------------


def decoder() -> Decoder:
    return Decoder(latent=3, hidden=(8,), images=12, held_out=4)


def energies() -> EnergyForces:
    return EnergyForces(LatentEBM(**SIZES), 3, 7)


def sharded(forces: ModelForces) -> ShardedField:
    shard = Shard.of(forces.n_data, strata=2)
    return ShardedField(forces, shard, ALONE, ["theta"], fixed=True)


WAYS: dict[str, tuple[Callable[[], ModelField], Callable[[Any], ModelField]]] = {
    "other dtype": (lambda: ModelForces(decoder(), 3), lambda f: f.to(*FLOAT32)),
    "minibatch": (lambda: ModelForces(decoder(), 3), lambda f: f.minibatch(torch.arange(5)[None])),
    "part": (lambda: ModelForces(decoder(), 3), lambda f: f.part(slice(2, 7))),
    "observing": (
        lambda: ModelForces(decoder(), 3),
        lambda f: f.observing({"one": lambda *_: torch.tensor(1)}),
    ),
    "held out": (lambda: ModelForces(decoder(), 3), held_out_forces),
    "processes": (lambda: ModelForces(decoder(), 3), sharded),
    "kernel": (lambda: KernelForces(decoder(), 3, RBF()), lambda f: f.to(*FLOAT32)),
    "encoder": (lambda: ModelForces(Amortised(decoder(), hidden=(8,)), 3), lambda f: f.to(*FLOAT32)),
    "energy": (energies, lambda f: f.to(*FLOAT32)),
    "minibatch of an energy": (energies, lambda f: f.minibatch(torch.arange(5)[None])),
}


@pytest.mark.parametrize("way", WAYS)
def test_other_forces_made_of_them_are_as_precise(way: str) -> None:
    made, other = WAYS[way]
    full = made().to(*FLOAT32)
    low, full = other(full.in_bf16(True)), other(full)
    whole = start_of(full if way in ("held out", "part") else made())
    z = whole if "minibatch" not in way else whole | {"X": whole["X"][:, :5]}
    names = [name.lower() for name in z if name in ("theta", "X", "alpha", "beta", "Z")]
    found, expected = low(0.0, z, names), full(0.0, z, names)
    for name in names:
        assert found[name].dtype == torch.float32
        assert 1e-3 < off(found[name], expected[name]) < 40, name
    back = low.in_bf16(False)(0.0, z, names)
    for name in names:
        torch.testing.assert_close(back[name], expected[name], rtol=0, atol=0)


def test_replicas_at_once_are_as_precise_as_one_by_one() -> None:
    """A product of several matrices rounds otherwise than one of two, and a few ReLUs change sides."""
    forces = ModelForces(Smooth(images=12), 3).to(*FLOAT32).in_bf16(True)
    z = start_of(forces, replicas=3)
    found, full = (f(0.0, z, ("theta", "x")) for f in (forces, forces.in_bf16(False)))
    for r in range(3):
        one = forces(0.0, {name: v[r : r + 1] for name, v in z.items()}, ("theta", "x"))
        for name, value in one.items():
            assert off(found[name][r], value[0]) < 2
            assert off(found[name][r], full[name][r]) > 0.1


def test_forces_that_can_be_differentiated_are_the_same() -> None:
    """As torch.compile and second derivatives take them, by torch.func."""
    forces = ModelForces(decoder(), 3).to(*FLOAT32).in_bf16(True)
    z = start_of(forces)
    with torch.no_grad():
        expected = forces(0.0, z, ("theta", "x"))
    with torch.enable_grad():
        found = forces(0.0, z, ("theta", "x"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


# Runs --------------------------------------------------------------------------------------------------


def learned(precision: str, **options: Any) -> xr.Dataset:
    """A run of the decoder."""
    chosen: dict[str, Any] = {"steps": 6, "engine": "eager", "noise": "torch"}
    system = mpgd(decoder(), particles=3, theta=LIGHT, x=LIGHT)
    return simulate(system, "expint_shared", save=WHOLE, precision=precision, **(chosen | options))


def test_one_step_differs_by_the_step_times_the_force() -> None:
    """Euler-Maruyama's X + h f + sqrt(2h) xi, with all but f in float32."""
    h = 0.1
    system = pgd(decoder(), particles=3, theta={"h": h}, x={"h": h})
    options: dict[str, Any] = {"steps": 1, "noise": "torch", "save": WHOLE}
    full, low = (simulate(system, "euler_maruyama", precision=p, **options) for p in ("full", "bf16"))
    forces = ModelForces(decoder(), 3).to(*FLOAT32)
    z = start_of(forces)
    f = forces.in_bf16(True)(0.0, z, ("theta", "x")), forces(0.0, z, ("theta", "x"))
    for name, block in (("theta", "theta"), ("X", "x")):
        assert low[name].dtype == np.float32
        moved = (low[name][1] - full[name][1]).to_numpy()
        expected = (h * (f[0][block] - f[1][block]))[0].numpy().reshape(moved.shape)
        size = np.abs(full[name][1]).max().item()
        np.testing.assert_allclose(moved, expected, rtol=0, atol=4 * 2.0**-24 * size)


@pytest.mark.parametrize(
    "options",
    [
        {"replicas": 2},
        {"batch": Batch(5)},
        {"batch": Batch(4, "substeps", 2)},
        {"evaluate": Evaluate(2, 3)},
        {"parallel": Parallel(strata=2, reduction="fixed"), "noise": "philox"},
        {"engine": "fused", "noise": "philox"},
        pytest.param({"engine": "compiled"}, marks=pytest.mark.slow),
    ],
    ids=lambda options: "-".join(options),
)
def test_every_kind_of_run_takes_it(options: dict[str, Any]) -> None:
    if options.get("engine") == "compiled" and not (shutil.which("g++") or shutil.which("c++")):
        pytest.skip("torch.compile needs a C++ compiler")
    full, low = learned("full", **options), learned("bf16", **options)
    for name in ("theta", "X", *(["held_out_loss"] if "evaluate" in options else [])):
        assert low[name].dtype == full[name].dtype
        a, b = (torch.from_numpy(r[name].dropna("time").to_numpy()[1:].copy()) for r in (low, full))
        assert 0 < off(a, b) < 2


def test_a_run_comes_to_the_same_answer() -> None:
    """Of probabilistic PCA, on the same noise: theta, and how far its likelihood is from the largest."""
    motion = {"h": 5e-3, "eta": 1.0, "gamma": 1.0}
    system = mpgd(PPCA(), particles=20, theta=motion, x={**motion, "h": 0.05})
    options: dict[str, Any] = {"steps": 600, "save": Save(every=100), "noise": "torch"}
    full, low = (simulate(system, "expint_shared", precision=p, **options) for p in ("full", "bf16"))
    moved, size = (np.linalg.norm(v[-1]) for v in (low.theta - full.theta, full.theta))
    assert float(full.excess[-1]) < 0.05 * float(full.excess[0])
    assert 0.01 * U < moved / size < U
    assert abs(float(low.excess[-1] - full.excess[-1])) < 0.05 * float(full.excess[-1])


def test_steps_below_the_resolution_of_bfloat16_are_not_lost() -> None:
    """theta is some 5 and moves by less than 1e-3 a step, of which bfloat16 would see nothing."""
    system = pgd(PPCA(), particles=3, theta={"h": 1e-6}, x={"h": 1e-6})
    run = simulate(system, "euler_maruyama", steps=20, precision="bf16", save=Save(every=1))
    moves = np.abs(np.diff(run.theta, axis=0))
    assert ((moves > 0) & (moves < U * np.abs(run.theta[:-1]) / 8)).mean() > 0.5


class Float32(Decoder):
    """Takes no float64."""

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError
        return super().log_joint(theta, x, y)


@pytest.mark.parametrize("model", [Decoder, Float32])
def test_what_a_run_chooses_it_chooses_by_full_products(model: Any) -> None:
    """Curvature is a difference of forces at near places."""
    system = pgd(model(latent=3, hidden=(8,), images=12), particles=3)
    first = [simulate(system, steps=1, precision=p).isel(time=0) for p in ("full", "bf16")]
    for name in ("h_theta", "h_x", "curvature_x"):
        np.testing.assert_array_equal(first[1][name], first[0][name])


# What it is called, and refused ------------------------------------------------------------------------


def test_a_folder_says_it_and_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ("--set", "model.images=12", "--set", "model.held_out=4", "--set", "save.every=1", "--quiet")
    common = ("run", "digits", "--precision", "bf16", *few)
    assert command(*common, "--steps", 3, "--out", "part") == 0
    assert 'precision = "bf16"' in Path("part/config.toml").read_text()
    assert sdeflow.open_run("part").attrs["precision"] == "bf16"
    assert "3 steps, precision bf16, " in Path("part/run.log").read_text()
    assert command("resume", "part", "--steps", 3, "--quiet") == 0
    assert command(*common, "--steps", 6, "--out", "whole") == 0
    part, whole = (sdeflow.open_run(name).load() for name in ("part", "whole"))
    np.testing.assert_array_equal(part.theta, whole.theta)
    np.testing.assert_array_equal(part.loss, whole.loss)

    few_scores = ("--data", 3, "--chains", 2, "--temperatures", 3, "--langevin-steps", 2, "--no-pictures")
    assert command("evaluate", "whole", *few_scores, "--quiet") == 0


def test_a_folder_is_of_one_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("run", "hierarchical", "--steps", 2, "--out", tmp_path / "run", "--quiet", "--resume")
    assert command(*few) == 0
    assert command(*few, "--precision", "bf16") == 2
    assert "run.precision was 'not there' and is 'bf16'" in capsys.readouterr().err
    options: Any = {"steps": 2, "out": tmp_path / "python", "resume": True}
    simulate(system := mpgd(decoder(), particles=3, theta=LIGHT, x=LIGHT), precision="bf16", **options)
    with pytest.raises(SdeflowError, match="precision was 'bf16' and is 'not there'"):
        simulate(system, **options)


def test_show_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("show", "hierarchical", "--precision", "bf16") == 0
    assert "float32, forces in bf16" in capsys.readouterr().out


class Solves(Decoder):
    """Calls what has no kernel in bfloat16."""

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return super().log_joint(theta, x, y) + torch.special.bessel_j0(self.decode(theta, x)).sum(-1) * 0


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        (decoder, {"precision": "bf17"}, "unknown precision 'bf17': did you mean 'bf16'"),
        (
            decoder,
            {"precision": "bf16", "dtype": "float64"},
            "'bf16' is of runs in float32, given float64",
        ),
        (decoder, {"precision": "tf32"}, "'tf32' is of CUDA devices, and this run is on cpu"),
        (lambda: SDESystem(OrnsteinUhlenbeck(), h=0.1), {"precision": "bf16"}, "this system has none"),
        (lambda: Solves(images=3), {"precision": "bf16"}, "Solves in precision 'bf16' fails with"),
    ],
)
def test_what_cannot_be_is_refused(system: Any, options: dict[str, Any], message: str) -> None:
    made = system()
    if isinstance(made, sdeflow.Model):
        made = mpgd(made, particles=2, theta=LIGHT, x=LIGHT)
    with pytest.raises(SdeflowError, match=message):
        simulate(made, steps=1, device="cpu", **options)


@pytest.mark.parametrize("name", ["tf32", "bf16"])
def test_a_device_without_it_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = mpgd(decoder(), particles=2, theta=LIGHT, x=LIGHT)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old")
    for capability, refused in (((7, 5), True), ((8, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        arguments: Any = (name, torch.float32, torch.device("cuda"), system)
        if refused:
            with pytest.raises(SdeflowError, match=r"of compute capability 8\.0, and Old has less"):
                refuse_precision(*arguments)
        else:
            refuse_precision(*arguments)


# TF32 --------------------------------------------------------------------------------------------------


def tf32() -> tuple[str, bool]:
    """What torch now does with products and convolutions of float32 on CUDA."""
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture
def by_tf32() -> Iterator[None]:
    """A process in which all is by TF32."""
    before = tf32()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("by_tf32")
def test_products_are_in_full_within_a_run_and_as_they_were_after_it() -> None:
    seen = set()

    class Looks(Decoder):
        def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
            seen.add(tf32())
            return super().log_joint(theta, x, y)

    def step(system: Any) -> None:
        simulate(system, steps=2, engine="eager")

    step(pgd(Looks(images=3), particles=2))  # its numbers are chosen too
    assert seen == {("highest", False)}
    assert tf32() == ("high", True)
    with pytest.raises(SdeflowError):
        step(pgd(Solves(images=3, sigma=1e-30), particles=2, theta={"h": 1.0}, x={"h": 1.0}))
    assert tf32() == ("high", True)


def test_a_run_by_tf32_chooses_its_numbers_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, which takes the setting and has no TF32."""
    seen = set()

    class Looks(Decoder):
        def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
            seen.add((x.dtype, *tf32()))
            return super().log_joint(theta, x, y)

    monkeypatch.setattr("sdeflow.config.run.refuse_precision", lambda *_: None)
    simulate(pgd(Looks(images=3), particles=2), steps=2, engine="eager", precision="tf32")
    assert {how for how in seen if how[0] == torch.float64} == {(torch.float64, "highest", False)}
    assert (torch.float32, "high", True) in seen


def test_products_are_by_tf32_where_that_is_asked_for() -> None:
    before = tf32()
    assert before == ("highest", True)  # torch's own
    with float32_products(tf32=True):
        assert tf32() == ("high", True)
        with float32_products():
            assert tf32() == ("highest", False)
        assert tf32() == ("high", True)
    assert tf32() == before


PRECISIONS = """
import sys
import torch
from sdeflow.model.precision import float32_products

on = torch.backends
kinds = on.cuda.matmul, on.mkldnn.matmul, on.cudnn.conv, on.cudnn.rnn
{user}
before = [of.fp32_precision for of in kinds]
for tf32 in (False, True):
    with float32_products(tf32=tf32):
        now = {{kinds[0].fp32_precision, kinds[2].fp32_precision}}
        assert now <= ({{"tf32"}} if tf32 else {{"ieee", "none"}})
    assert [of.fp32_precision for of in kinds] == before
on.fp32_precision = "tf32"
assert [of.fp32_precision for of in kinds[:1]] == [{then!r}]
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has the older names alone")
@pytest.mark.parametrize(
    ("user", "then"),
    [
        ("", "tf32"),
        ("torch.set_float32_matmul_precision('high')", "tf32"),
        ("on.cuda.matmul.fp32_precision = 'ieee'", "ieee"),
        ("on.cudnn.conv.fp32_precision = 'ieee'", "tf32"),
        ("on.mkldnn.matmul.fp32_precision = 'bf16'", "tf32"),
    ],
)
def test_what_a_user_has_set_by_either_names_is_as_before(user: str, then: str) -> None:
    """And what they set later still reaches what they had not set."""
    script = PRECISIONS.format(user=user, then=then)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

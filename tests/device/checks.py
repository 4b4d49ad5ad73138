"""What a device computes against the CPU: the same seeds and the same noise, so the same numbers to rounding.

A check takes a device by name and gives what it found, in a few words; it raises AssertionError where that is
not so. `STEPS` steps are two strides of a CUDA graph and a rest of single ones.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from stand_in import again
from torch import Tensor, nn
from torch.func import functional_call

import sdeflow
from sdeflow.config.build import build
from sdeflow.config.catalogue import compatible, entries
from sdeflow.config.run import Run
from sdeflow.config.schema import Config
from sdeflow.engine import cuda_graph
from sdeflow.engine.step import advance
from sdeflow.errors import Incompatible, SdeflowError
from sdeflow.model.forces import ModelForces
from sdeflow.model.precision import float32_products
from sdeflow.noise import philox_source
from sdeflow.noise.cpp import cpp_kernel
from sdeflow.noise.kernel import Draw
from sdeflow.problems.networks import convolutional
from sdeflow.simulation.prepare import prepare
from sdeflow.simulation.solve import solve
from sdeflow.state import State

STEPS = 37
ROUNDINGS = 2e4
"""Units of rounding that a number of size one may be off by after so many steps."""

ENGINES = ("eager", "fused")
"""Those that each kind of run is tried with; some are compiled, too, which takes long."""

FOLD = 1000
"""So many times as far as a rounding at the start takes a run the roundings of all its steps may take it."""

FEW = 7
"""One of so many cases is tried where the CPU stands in."""

Tables = dict[str, Any]
Found = str
Check = Callable[[str], Found]

MOTION = {"h": 1e-3, "eta": 30.0, "gamma": 0.7}
TOY: Tables = {"use": "hierarchical", "data": 5}
ENERGY: Tables = {"use": "latent_ebm", "points": 12, "energy_hidden": [8], "decoder": "affine"}
BLOCKS: Tables = {"particles": 4, "theta": MOTION, "x": MOTION}
OF_ENERGY: Tables = {
    "particles": 3,
    "prior_particles": 7,
    **dict.fromkeys(("alpha", "beta", "x", "z"), MOTION | {"h": 1e-4}),
}
PLAIN: Tables = {"h": 0.01, "paths": 20, "start": [-1.0]}
SDES: dict[str, Tables] = {
    "double_well": PLAIN,
    "ornstein_uhlenbeck": PLAIN,
    "diffusion": {"paths": 9, "means": [[2.0, 0.0], [-1.0, 1.0]], "scales": 0.4, "kappa": 1.0},
    "interpolant": {
        "paths": 9,
        "start_means": [[-2.0, 1.0]],
        "start_scales": 0.3,
        "means": [[4.0, 1.5]],
        "scales": [0.5],
        "epsilon": 1.0,
    },
    "pfgmpp": {"paths": 9, "points": [[2.0, 0.0], [0.0, 2.0]], "dimensions": 8},
}
CONSENSUS: Tables = {"particles": 20, "low": -2.0, "high": 2.0}


class Convolutions(sdeflow.Model):
    """A decoder of images of random numbers, 8 x 8 in three channels, with noise of size one."""

    latent_shape = (4,)
    joint_maximum = False

    def __init__(
        self, data: int = 12, width: int = 4, side: int = 8, latent: int = 4, *, channels_last: bool = True
    ) -> None:
        g = torch.Generator().manual_seed(0)
        self.data = torch.rand(data, 3 * side * side, generator=g, dtype=torch.float64) * 2 - 1
        self.latent_shape = (latent,)
        self._made = (latent, width, 3, side)
        with torch.random.fork_rng(devices=[]):
            self.network = convolutional(*self._made)
        if not channels_last:
            self.network[0] = nn.Unflatten(1, (latent, 1, 1))

    def init_theta(self, generator: torch.Generator) -> nn.Module:
        return convolutional(*self._made)

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        image = functional_call(self.network, dict(theta), (x.flatten(0, 1),)).unflatten(0, x.shape[:2])
        return -((y[:, None] - image.flatten(2)).square().sum(-1) + x.square().sum(-1)) / 2


def systems() -> dict[str, Tables]:
    """Small configurations of all systems of the catalogue by name: tables model and system."""
    found: dict[str, Tables] = {}
    for name, entry in entries("systems").items():
        if name in SDES:
            found[name] = {"system": SDES[name]}
        elif "cbo" in entry.value:
            found[name] = {"model": {"use": "rastrigin"}, "system": CONSENSUS}
        elif "ebipla" in name:
            found[name] = {"model": ENERGY, "system": OF_ENERGY}
        else:
            found[name] = {"model": TOY, "system": BLOCKS}
    found["vi"]["model"] = {"use": "decoder", "images": 20}
    found["vi"]["system"] = BLOCKS | {"encoder_hidden": [8], "theta": MOTION | {"h": 1e-5}}
    return {name: tables | {"system": {"use": name, **tables["system"]}} for name, tables in found.items()}


def cases() -> Iterator[tuple[str, Tables]]:
    """Every system under every integrator that takes it, and every optimizer of theta."""
    for name, tables in systems().items():
        taken = build(Config.of(tables | {"run": {"steps": 1, "device": "cpu"}}))
        for scheme in entries("integrators"):
            if scheme.startswith("torchsde:") and name not in ("mpgd", "kinetic_ebipla", "double_well"):
                continue
            with suppress(Incompatible):
                compatible(scheme, taken.system)
                yield f"{name}, {scheme}", tables | {"run": {"integrator": scheme}}
    for name in entries("optimizers"):
        theta = {"theta": {"h": 1e-3, "optimizer": name}}
        yield f"pgd, {name}", {"model": TOY, "system": {"use": "pgd", **BLOCKS, **theta}}


def declared(tables: Tables, **run: Any) -> Run:
    return build(Config.of(tables | {"run": {"steps": STEPS, **tables.get("run", {}), **run}}))


def final(run: Run, steps: int = STEPS) -> State:
    """The state in the end, on the host."""
    prepared = prepare(run)
    return {name: v.cpu() for name, v in advance(prepared.stepper, prepared.state, 0, steps).items()}


def off(found: State, expected: State) -> float:
    """The largest difference, in units of rounding of numbers of size one or of their own size."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, value in expected.items():
        if not value.is_floating_point():
            assert torch.equal(found[name], value), name
        elif value.numel():
            assert value.isfinite().all(), f"{name} is not finite"
            difference = (found[name] - value).abs() / value.abs().clamp(min=1)
            worst = max(worst, float(difference.max()) / torch.finfo(value.dtype).eps)
    return worst


def agree(found: State, expected: State, what: str) -> float:
    """Their difference in roundings; raises AssertionError where it is too large."""
    units = off(found, expected)
    assert units <= ROUNDINGS, f"{what}: off by {units:.3g} units of rounding"
    return units


def compared(tables: Tables, device: str, **run: Any) -> float:
    """A run on a device against one on the CPU, in roundings; NaN where that says nothing.

    They may differ by ROUNDINGS, or by `FOLD` times as much as the run on the CPU does when its start is off
    by a rounding. A system that makes more of it than ROUNDINGS cannot be compared.
    """
    here = prepare(declared(tables, **(run | {"device": "cpu", "engine": "eager", "noise": "philox"})))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shaken = {k: _shaken(v) if v.is_floating_point() else v for k, v in here.state.items()}
    there = final(declared(tables, **({"noise": "philox"} | run | {"device": device})))
    expected, other = (advance(here.stepper, z, 0, STEPS) for z in (here.state, shaken))
    own = off(other, expected)
    if own > ROUNDINGS:
        return math.nan
    units = off(there, expected)
    assert units <= max(ROUNDINGS, FOLD * own), f"off by {units:.3g} units of rounding; of itself {own:.3g}"
    return units


def _shaken(value: Tensor) -> Tensor:
    return value * (1 + torch.finfo(value.dtype).eps * torch.randn_like(value))


# The checks ----------------------------------------------------------------------------------------


def kernels(device: str) -> Found:
    """Normals and updates of both precisions, at any place, against the kernel in C++."""
    here, there, worst = cpp_kernel(), philox_source.find_kernel(torch.device(device)), 0.0
    keys, g = torch.tensor([0x1E3779B97F4A7C15, -5]), torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        for size, first, step in ((1, 0, 0), (5, 77, 2**33 + 5), (5000, 2**32 + 31, 7), (100_003, 12, 0)):
            q, p, f = (torch.randn(2, size, generator=g, dtype=dtype) for _ in range(3))
            linear, kinetic = (torch.rand(2, n, generator=g, dtype=dtype) for n in (4, 9))
            drawn = [torch.empty(2, 2, 2, size, dtype=dtype, device=d) for d in ("cpu", device)]
            made: list[list[Tensor]] = []
            for kernel, d, out in ((here, "cpu", drawn[0]), (there, device, drawn[1])):
                draw = Draw(keys.to(d), step, 4, first=first)
                kernel.normals(out, draw, 2)
                a, b, c = q.to(d), p.to(d), f.to(d)
                moved = [kernel.linear(a, force, linear.to(d), draw) for force in (c, None)]
                moved += kernel.kinetic(a, b, c, kinetic.to(d), draw)
                made.append([out.cpu(), *(v.cpu() for v in moved)])
            units = max(float((a - b).abs().max()) for a, b in zip(*made, strict=True))
            worst = max(worst, units / torch.finfo(dtype).eps)
    assert worst <= 16, f"off by {worst:.3g} units of rounding"
    return f"to {worst:.0f} units of rounding"


def catalogue(device: str, dtype: str) -> Found:
    """Every system and integrator by the fused engine, and by graphs where there are any, in two replicas."""
    count, worst, wild, left = 0, 0.0, [], []
    for what, tables in islice(cases(), 0, None, 1 if device == "cuda" else FEW):
        try:
            units = compared(tables, device, dtype=dtype, engine="fused", replicas=2)
        except (AssertionError, RuntimeError, SdeflowError) as error:
            left.append(f"{what}: {error}")
            continue
        if math.isnan(units):
            wild.append(what)
        else:
            count, worst = count + 1, max(worst, units)
    assert not left, f"{len(left)} of {count + len(left)} differ: " + "; ".join(left)
    more = f"; not to be compared: {', '.join(wild)}" if wild else ""
    return f"{count} runs, to {worst:.3g} units of rounding{more}"


def compiled(device: str) -> Found:
    """The compiled engine on some systems."""
    if device == "cpu":
        return "not tried on a CPU"
    chosen = [
        {"model": TOY, "system": {"use": "kiplmc", **BLOCKS}, "run": {"integrator": "baoab"}},
        {"model": ENERGY, "system": {"use": "kinetic_ebipla", **OF_ENERGY}, "run": {"integrator": "expint"}},
        by_batches("one_step") | {"run": {"integrator": "expint_shared"}},
    ]
    units = [compared(tables, device, dtype="float64", engine="compiled") for tables in chosen]
    return f"{len(units)} runs, to {max(units):.3g} units of rounding"


def graphs(device: str) -> Found:
    """Steps replayed from graphs against the same kernels launched one by one, and against eager steps."""
    worst, kept = 0.0, cuda_graph.cuda_graph
    for extra in ({}, {"batch": {"size": 2, "catch_up": "one_step"}}):
        tables: Tables = {"model": TOY, "system": {"use": "mpgd", **BLOCKS}, **extra, "save": {"every": 16}}
        ends = []
        for engine, capture in (("fused", kept), ("fused", again), ("eager", kept)):
            cuda_graph.cuda_graph = capture
            run = declared(tables, device=device, engine=engine, dtype="float64", integrator="expint")
            try:
                ends.append(final(run))
            finally:
                cuda_graph.cuda_graph = kept
        worst = max(worst, *(agree(end, ends[0], f"graphs {extra}") for end in ends[1:]))
    return f"to {worst:.3g} units of rounding"


def convolutions(device: str) -> Found:
    """A convolutional decoder, all data and by minibatches, and in two replicas."""
    worst = 0.0
    for batch in (None, sdeflow.Batch(4)):
        for engine in ENGINES:
            for replicas in (1, 2):
                ends = []
                for d, by in (("cpu", "eager"), (device, engine)):
                    options = {"dtype": "float64", "device": d, "engine": by, "noise": "philox"}
                    section = sdeflow.config.schema.RunSection(steps=STEPS, replicas=replicas, **options)
                    system = sdeflow.mpgd(Convolutions(), particles=2, theta=MOTION, x=MOTION)
                    ends.append(final(Run.declare(system, "expint", section, batch=batch)))
                worst = max(worst, agree(ends[1], ends[0], f"{engine}, {batch}, {replicas} replicas"))
    return f"8 runs, to {worst:.3g} units of rounding"


def by_batches(how: str) -> Tables:
    """A decoder of digits by minibatches, whose particles catch up in some way."""
    return {
        "model": {"use": "decoder", "images": 30, "hidden": [8]},
        "system": {"use": "mpgd", **BLOCKS, "theta": MOTION | {"precondition": "rmsprop"}},
        "batch": {"size": 7, "catch_up": how, "cap": 3},
    }


def minibatches(device: str) -> Found:
    """Minibatches with each way of catching up."""
    worst = 0.0
    for how in ("off", "one_step", "substeps", "srock"):
        for engine in ENGINES:
            tables = by_batches(how)
            worst = max(worst, compared(tables, device, dtype="float64", engine=engine, integrator="expint"))
    return f"8 runs, to {worst:.3g} units of rounding"


def replicas_and_grids(device: str) -> Found:
    """Many replicas, and a grid of numbers."""
    tables: Tables = {"model": TOY, "system": {"use": "mpgd", **BLOCKS}, "grid": {"gamma": [0.5, 1.0, 2.0]}}
    worst = compared(tables, device, dtype="float64", engine="fused", replicas=4, integrator="expint")
    return f"12 copies, to {worst:.3g} units of rounding"


def held_out(device: str) -> Found:
    """The loss on held-out data along a run, and numbers that a run chooses."""
    tables: Tables = {
        "model": {"use": "decoder", "images": 30, "held_out": 10, "hidden": [8]},
        "system": {"use": "mpgd", **BLOCKS},
        "evaluate": {"every": 10},
        "save": {"every": 10},
        "average": {"decay": 0.9},
    }
    ends = []
    for d in ("cpu", device):
        run = declared(tables, device=d, dtype="float64", noise="philox", engine="fused", integrator="expint")
        ends.append(solve(run).dataset.held_out_loss.values)
    worst = float(abs(ends[0] - ends[1]).max() / abs(ends[0]).max())
    assert worst < 1e-10, f"off by {worst:.3g}"
    return f"to {worst:.1e}"


def evaluation(device: str) -> Found:
    """`sdeflow evaluate` of one run on either device: the evidence in float64."""
    from sdeflow.analysis.evaluation import evaluate
    from sdeflow.analysis.scores import Options

    tables: Tables = {
        "model": {"use": "decoder", "images": 30, "held_out": 10, "hidden": [8]},
        "system": {"use": "mpgd", **BLOCKS},
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        solve(declared(tables, device=device, integrator="expint"), out=run)
        found = []
        for d in ("cpu", device):
            options = Options(device=d, dtype="float64", chains=4, temperatures=50, pictures=False)
            found.append(float(evaluate(run, options).value.sel(parameters="last", score="evidence")))
    difference = abs(found[0] - found[1]) / abs(found[0])
    assert difference < 1e-8, f"evidence {found[0]} and {found[1]}"
    return f"evidence to {difference:.1e}"


def resuming(device: str) -> Found:
    """A run begun on one device and ended on the other; and on one device in two pieces, to the bit."""
    tables: Tables = {"model": TOY, "system": {"use": "mpgd", **BLOCKS}, "save": {"every": 8}}
    options = {"dtype": "float64", "noise": "philox", "engine": "fused"}
    system = declared(tables).system
    save = sdeflow.Save(every=8, data="all", particles="all")

    def ended(first: str, second: str) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            kind: Any = {"save": save, "out": Path(folder) / "run", **options}
            sdeflow.simulate(system, "expint", steps=40, device=first, **kind)
            return sdeflow.simulate(system, "expint", steps=80, device=second, resume=True, **kind).load()

    one = sdeflow.simulate(system, "expint", steps=80, device=device, save=save, **options)
    same = ended(device, device)
    assert bool((same.X == one.X).all()), "two pieces on one device differ from one"
    worst = max(float(abs(ended(*each).X - one.X).max()) for each in (("cpu", device), (device, "cpu")))
    assert worst < 1e-10, f"off by {worst:.3g}"
    return f"to the bit, and across devices to {worst:.1e}"


@contextmanager
def no_synchronisation(device: str) -> Iterator[None]:
    """Where the host may not wait for the device."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waiting(device: str) -> Found:
    """That no step waits for the device, once what is built at first is there."""
    model = {"use": "decoder", "images": 64, "hidden": [8]}
    ways: list[tuple[str, str, Tables]] = [
        (engine, noise, extra)
        for engine in ENGINES
        for noise in ("torch", "philox")[engine != "eager" :]
        for extra in ({}, {"batch": {"size": 8}}, {"batch": {"size": 8, "catch_up": "one_step"}})
    ]
    for engine, noise, extra in ways:
        tables = {"model": model, "system": {"use": "mpgd", **BLOCKS}, **extra}
        prepared = prepare(declared(tables, device=device, engine=engine, noise=noise, integrator="expint"))
        z = advance(prepared.stepper, prepared.state, 0, 34)
        try:
            with no_synchronisation(device):
                advance(prepared.stepper, z, 34, 62)  # over the ends of epochs
        except RuntimeError as error:
            raise AssertionError(f"{engine}, {noise}, {extra}: {error}") from error
    return f"{len(ways)} ways" if device != "cpu" else "not to be seen on a CPU"


def memory(device: str) -> Found:
    """A run that has no room is refused in a sentence, and so is a step that finds none."""
    if device == "cpu":
        return "not tried on a CPU"
    huge = sdeflow.mpgd(
        sdeflow.problems.hierarchical.Hierarchical(data=10), particles=10**11, theta=MOTION, x=MOTION
    )
    said = []
    try:
        sdeflow.simulate(huge, "expint", steps=2, device=device)
    except SdeflowError as error:
        said.append(str(error))

    class Wide(sdeflow.problems.hierarchical.Hierarchical):
        score_x = score_theta = None

        def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
            return super().log_joint(theta, x, y) + x.new_zeros(10**6, 10**6).sum()

    try:
        system = sdeflow.mpgd(Wide(data=10), particles=10, theta=MOTION, x=MOTION)
        sdeflow.simulate(system, "expint", steps=2, device=device)
    except SdeflowError as error:
        said.append(str(error))
    assert len(said) == 2, f"only {said}"
    assert "of the GPU" in said[0], said[0]
    assert "take fewer particles" in said[1], said[1]
    return f"'{said[1]}'"


def precision(device: str) -> Found:
    """How far TF32 and bfloat16 move a convolutional decoder's forces, beside their norm.

    By some units of their rounding, 2^-11 and 2^-8: where a leaky ReLU changes its side it is more.
    """
    model, names = Convolutions(), ("theta", "x")
    exact = ModelForces(model, 3).to(torch.float64, torch.device("cpu"))
    z = {name: v[None] for name, v in exact.start(0).items()}
    expected = exact(0.0, z, names)
    forces = exact.to(torch.float32, torch.device(device))
    there = {name: v.to(device, torch.float32) for name, v in z.items()}
    found = []
    for kind, allowed in (("full", 2e-6), ("tf32", 16 * 2**-11), ("bf16", 16 * 2**-8)):
        if device == "cpu" and kind == "tf32":
            continue
        with float32_products(tf32=kind == "tf32"), torch.no_grad():
            given = forces.in_bf16(kind == "bf16")(0.0, there, names)
        worst = max(float((given[n].cpu().double() - expected[n]).norm() / expected[n].norm()) for n in names)
        assert worst <= allowed, f"{kind}: forces are off by {worst:.2g}, {allowed:g} was allowed"
        assert kind == "full" or worst > 1e-6, f"{kind}: forces are those of full precision"
        found.append(f"{kind} {worst:.1e}")
    return ", ".join(found)


CHECKS: dict[str, Check] = {
    "kernels": kernels,
    "catalogue, float64": lambda device: catalogue(device, "float64"),
    "catalogue, float32": lambda device: catalogue(device, "float32"),
    "graphs": graphs,
    "convolutions": convolutions,
    "precision": precision,
    "minibatches": minibatches,
    "replicas and grids": replicas_and_grids,
    "held-out data": held_out,
    "evaluation": evaluation,
    "resuming": resuming,
    "no synchronisation": waiting,
    "memory": memory,
    "compiled": compiled,
}

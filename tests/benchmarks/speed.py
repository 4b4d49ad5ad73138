"""What a step costs: sdeflow's engines, what others do, and the floor, by turns in one process.

    python tests/benchmarks/speed.py --rounds 15 --threads 1 --out speed.json

Prints microseconds a step, the median over rounds, and the median over rounds of each row's ratio to the
first row of its size. The process is pinned to as many cores as threads. Rows that this machine cannot run
are left out, with the reason. Each row takes two steps before a round.

    fused, compiled, eager   sdeflow's engines; the model's own scores, or autograd; bf16 is their precision
    script          the plain way: coefficients rebuilt every step, two autograd calls, new tensors
    torchsde euler  torchsde's Euler on the same system, with its step told to the Brownian interval; analytic
                    scores of the toy model, one backward pass of the decoder
    JAX, Diffrax    as tests/benchmarks/speed_jax.py says, where the `bench` extra is installed
    C++             the toy model's whole step in one C++ loop, by the same generator; one thread, always
    arithmetic      as many operations as both gradients have, as products of 256 x 256 matrices by torch
    streaming       X and U read and written once, by torch

A row of a decoder that does no gathering sees the same minibatch at every step, and has no other particles.
With `--memory SIZE` it prints too what a process holds at most that takes the steps of one row alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from machine import machine, pin
from torch import Tensor
from torch.func import functional_call
from torch.nn import Sequential, Unflatten

from sdeflow import Batch, mpgd
from sdeflow.config.run import Run
from sdeflow.config.schema import RunSection
from sdeflow.engine.step import advance
from sdeflow.machine import blocks_kept, operations
from sdeflow.model.forces import ModelForces
from sdeflow.model.model import Model, ParameterLayout
from sdeflow.noise.cpp import cpp_kernel
from sdeflow.noise.kernel import NoKernel, kinetic_numbers
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.images import Images
from sdeflow.seeds import derive_key
from sdeflow.simulation.prepare import prepare
from sdeflow.system.flow import kinetic_flow

Steps = Callable[[int], int | None]
"""Takes that many steps, or where it gives a number, so many."""

LogJoint = Callable[[list[Tensor], Tensor], Tensor]
"""l_i by the parameters and X [D, N, d]; [D, N]."""

Motions = dict[str, dict[str, float]]
"""h, eta and gamma of theta and of X."""

Forces = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""On theta [p] and X, flat, at both."""

PARTICLES, GAMMA, ETA = 100, 0.1, 2000.0
BATCH, FEW = 128, 10
"""Data a step and particles a datum of the decoder."""

DECODER: Motions = {
    "theta": {"h": 1e-5, "eta": 3e4, "gamma": 0.5},
    "x": {"h": 1e-2, "eta": 100.0, "gamma": 1.0},
}
SHORTER: Motions = {block: {**motion, "h": motion["h"] / 10} for block, motion in DECODER.items()}
"""For Euler, which does not stay finite at the steps of the exponential integrator; a step costs the same."""

FEW_IMAGES = 5
"""Particles a datum of the convolutional decoder."""

IMAGES: Motions = {
    "theta": {"h": 1e-7, "eta": 500.0, "gamma": 0.9},
    "x": {"h": 5e-3, "eta": 500.0, "gamma": 0.9},
}


class Autograd(Hierarchical):
    """The toy model without its analytic scores."""

    score_x = None
    score_theta = None


def motions(data: int) -> Motions:
    """Steps that stay stable for any number of data."""
    motion = {"eta": ETA, "gamma": GAMMA}
    return {"theta": {"h": 1e-2 / data, **motion}, "x": {"h": 1e-2, **motion}}


def ours(system: Any, integrator: str = "expint", *, batch: Batch | None = None, **options: Any) -> Steps:
    """sdeflow's own steps, without saving; whole strides, at least one."""
    chosen = RunSection(steps=1, device="cpu", **options)
    prepared = prepare(Run.declare(system, integrator, chosen, batch=batch))
    at, stride = [0, prepared.state], prepared.stepper.stride

    def take(count: int) -> int:
        n, z = at
        taken = stride * max(1, count // stride)
        at[:] = n + taken, advance(prepared.stepper, z, n, taken)
        return taken

    return take


def toy(model: type[Model], data: int, **options: Any) -> Steps:
    return ours(mpgd(model(data=data), particles=PARTICLES, **motions(data)), **options)


# What others do ------------------------------------------------------------------------------------


def script(log_joint: LogJoint, theta: list[Tensor], X: Tensor, motion: Motions, share: float = 1) -> Steps:
    """Momentum particle descent as a research script has it; X are a `share` of all particles."""
    m, U = [torch.zeros_like(p) for p in theta], torch.randn_like(X) / motion["x"]["eta"] ** 0.5
    at = [theta, m, X, U]
    N = X.shape[1]

    def flow(h: float, eta: float, gamma: float) -> tuple[Tensor, ...]:
        k = torch.tensor(gamma * eta)
        w = torch.exp(-k * h)
        return k, w, (1 - w) / gamma, (h - (1 - w) / k) / gamma, (1 - w) / k

    def take(count: int) -> None:
        theta, m, X, U = at
        for _ in range(count):
            k, w, free, push, kick = flow(**motion["theta"])
            bar = [(p + free * v).detach().requires_grad_() for p, v in zip(theta, m, strict=True)]
            f = [g / N / share for g in torch.autograd.grad(log_joint(bar, X).sum(), bar)]
            m = [w * v + kick * g for v, g in zip(m, f, strict=True)]
            theta = [(p + push * g).detach() for p, g in zip(bar, f, strict=True)]
            k, w, free, push, kick = flow(**motion["x"])
            at_x = X.detach().requires_grad_()
            (score,) = torch.autograd.grad(log_joint(theta, at_x).sum(), at_x)
            t, eta, gamma = (torch.tensor(motion["x"][name]) for name in ("h", "eta", "gamma"))
            var_q = (2 * t - 3 / k + 4 * w / k - w**2 / k) / gamma
            var_p, cov = (1 - w**2) / eta, (1 - w) ** 2 / k
            root = torch.linalg.cholesky(torch.stack([torch.stack([var_p, cov]), torch.stack([cov, var_q])]))
            xi = torch.randn(2, *X.shape)
            P, Q = root[0, 0] * xi[0], root[1, 0] * xi[0] + root[1, 1] * xi[1]
            X, U = X + free * U + push * score + Q, w * U + kick * score + P
        at[:] = theta, m, X, U

    return take


def toy_script(data: int) -> Steps:
    y = Hierarchical(data=data).data.float()[:, None]
    normal = torch.distributions.Normal

    def log_joint(theta: list[Tensor], x: Tensor) -> Tensor:
        return (normal(theta[0], 1.0).log_prob(x) + normal(x, 1.0).log_prob(y)).sum(-1)

    return script(log_joint, [torch.zeros(1)], torch.randn(data, PARTICLES, 1), motions(data))


def decoder_script() -> Steps:
    model = Decoder()
    theta = {name: value.detach() for name, value in model.network.named_parameters()}
    y = model.data.float()[:BATCH]

    def log_joint(values: list[Tensor], x: Tensor) -> Tensor:
        return model.log_joint(dict(zip(theta, values, strict=True)), x, y)

    start = torch.randn(BATCH, FEW, *model.latent_shape)
    return script(log_joint, list(theta.values()), start, DECODER, share=BATCH / len(model.data))


def channels_first(model: Images) -> Sequential:
    """Its decoder as a list of torch's layers, as they are by default."""
    return Sequential(Unflatten(1, (*model.latent_shape, 1, 1)), *model.network.decoder[1:])


def images_script(model: Images) -> Steps:
    network = channels_first(model)
    theta = {name: value.detach() for name, value in network.named_parameters()}
    y = model.data.float()[:BATCH]

    def log_joint(values: list[Tensor], x: Tensor) -> Tensor:
        image = functional_call(network, dict(zip(theta, values, strict=True)), x.flatten(0, 1))
        misfit = (y[:, None] - image.view(*x.shape[:2], -1)).square().sum(-1) / model.sigma**2
        return -(x.square().sum(-1) + misfit) / 2

    start = torch.randn(BATCH, FEW_IMAGES, *model.latent_shape)
    return script(log_joint, list(theta.values()), start, IMAGES, share=BATCH / len(model.data))


def torchsde_euler(forces: Forces, theta: Tensor, X: Tensor, motion: Motions) -> Steps:
    """The system as one vector (theta, m, X, U), with time counted in steps."""
    import torchsde

    X = X.flatten()
    m, U = torch.zeros_like(theta), torch.randn_like(X) / motion["x"]["eta"] ** 0.5
    sizes = [len(v) for v in (theta, m, X, U)]
    at = [torch.cat([theta, m, X, U])[None]]
    diffusion = torch.zeros_like(at[0])
    diffusion[:, -len(U) :] = math.sqrt(2 * motion["x"]["gamma"] * motion["x"]["h"])

    def kinetic(p: Tensor, f: Tensor, h: float, eta: float, gamma: float) -> tuple[Tensor, Tensor]:
        return h * eta * p, h * (f - gamma * eta * p)

    class SDE:
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, z: Tensor) -> Tensor:
            theta, m, x, u = z[0].split(sizes)
            f_theta, f_x = forces(theta, x)
            return torch.cat([*kinetic(m, f_theta, **motion["theta"]), *kinetic(u, f_x, **motion["x"])])[None]

        def g(self, t: Tensor, z: Tensor) -> Tensor:
            return diffusion

    def take(count: int) -> None:
        with torch.no_grad():
            bm = torchsde.BrownianInterval(0.0, float(count + 1), size=at[0].shape, dt=1.0)
            ts = torch.tensor([0.0, float(count)])
            at[0] = torchsde.sdeint(SDE(), at[0], ts, bm=bm, method="euler", dt=1.0)[-1]

    return take


def toy_torchsde(data: int) -> Steps:
    y = Hierarchical(data=data).data.float()

    def forces(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        f_x = theta - x + (y - x.view(data, PARTICLES)).flatten()
        return (x.sum() - len(x) * theta) / PARTICLES, f_x

    return torchsde_euler(forces, torch.zeros(1), torch.randn(data, PARTICLES), motions(data))


def decoder_torchsde() -> Steps:
    model = Decoder()
    named = {name: value.detach() for name, value in model.network.named_parameters()}
    layout, y = ParameterLayout(named), model.data.float()[:BATCH]
    per_particle = len(model.data) / BATCH / FEW

    def forces(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        at = [v.detach().requires_grad_() for v in (theta, x)]
        with torch.enable_grad():
            latents = at[1].view(BATCH, FEW, *model.latent_shape)
            value = model.log_joint(layout.views(at[0]), latents, y).sum()
        f_theta, f_x = torch.autograd.grad(value, at)
        return per_particle * f_theta, f_x

    start = torch.randn(BATCH, FEW, *model.latent_shape)
    return torchsde_euler(forces, layout.flatten(named), start, SHORTER)


def by_jax(peer: str, *arguments: Any, **options: Any) -> Steps:
    """A row of tests/benchmarks/speed_jax.py, where JAX and Diffrax are installed."""
    import speed_jax

    return getattr(speed_jax, peer)(*arguments, **options).take()


def toy_jax(peer: str, data: int, **options: Any) -> Steps:
    return by_jax(peer, Hierarchical(data=data), PARTICLES, motions(data), **options)


# The floor -----------------------------------------------------------------------------------------


def all_cpp(data: int) -> Steps:
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("no g++")
    folder = tempfile.mkdtemp()
    flags = "-std=c++17 -O3 -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math -shared -fPIC"
    source, built = Path(__file__).with_name("floor.cpp"), f"{folder}/floor.so"
    subprocess.run([compiler, *flags.split(), str(source), "-o", built], check=True)
    function = ctypes.CDLL(built).toy_steps
    h, model = motions(data), Hierarchical(data=data)
    c, t = (kinetic_flow(GAMMA, ETA, h[block]["h"]) for block in ("x", "theta"))
    x, u = torch.randn(data * PARTICLES), torch.randn(data * PARTICLES) / ETA**0.5
    y, place = model.data.float().flatten().repeat_interleave(PARTICLES), torch.zeros(2).double()
    of_x = torch.tensor(kinetic_numbers(c, c, 1.0), dtype=torch.float32)
    of_theta = torch.tensor([t.free, t.push, t.w, t.kick], dtype=torch.float64)
    key, taken = ctypes.c_uint64(derive_key(0, "noise", "x") & 2**64 - 1), [0]

    def take(count: int) -> None:
        tensors = [ctypes.c_void_p(v.data_ptr()) for v in (x, u, y, place, of_x, of_theta)]
        numbers = ctypes.c_int64(data), PARTICLES, ctypes.c_double(model.variance)
        function(*tensors[:4], *numbers, *tensors[4:], key, ctypes.c_uint64(taken[0]), count)
        taken[0] += count

    return take


def arithmetic(model: Model, particles: int) -> Steps:
    """The multiplications and additions of both gradients, as products of two 256 x 256 matrices."""
    forces = ModelForces(model.to(torch.float32, torch.device("cpu")), particles)
    z = {name: value.float()[None] for name, value in forces.start(0).items()}
    batch = forces.minibatch(torch.arange(BATCH)[None])
    count = operations(lambda: batch(0.0, z | {"X": z["X"][:, :BATCH]}, ("theta", "x")))
    a, b = torch.randn(2, 256, 256)
    out, each = torch.empty_like(a), 2 * 256**3

    def take(steps: int) -> None:
        for _ in range(round(steps * count / each)):
            torch.mm(a, b, out=out)

    return take


def streaming(data: int) -> Steps:
    x, u = torch.randn(data * PARTICLES), torch.randn(data * PARTICLES)
    x_new, u_new = torch.empty_like(x), torch.empty_like(u)

    def take(count: int) -> None:
        for _ in range(count):
            x_new.copy_(x)
            u_new.copy_(u)

    return take


# Sizes ---------------------------------------------------------------------------------------------


def toys(data: int) -> dict[str, Callable[[], Steps]]:
    return {
        "compiled, own scores": lambda: toy(Hierarchical, data, engine="compiled"),
        "compiled, autograd": lambda: toy(Autograd, data, engine="compiled"),
        "fused, own scores": lambda: toy(Hierarchical, data, engine="fused"),
        "fused, autograd": lambda: toy(Autograd, data, engine="fused"),
        "eager torch, own scores": lambda: toy(Hierarchical, data, noise="torch"),
        "eager torch, autograd": lambda: toy(Autograd, data, noise="torch"),
        "script": lambda: toy_script(data),
        "torchsde euler": lambda: toy_torchsde(data),
        "JAX, jit and scan": lambda: toy_jax("toy_scan", data),
        "Diffrax Euler": lambda: toy_jax("toy_euler", data),
        "C++": lambda: all_cpp(data),
        "streaming": lambda: streaming(data),
    }


def decoders() -> dict[str, Callable[[], Steps]]:
    """Latent 8, hidden 64, output 64, D = 1797, minibatches of 128, N = 10."""

    def of_ours(integrator: str, **options: Any) -> Steps:
        return ours(mpgd(Decoder(), particles=FEW, **DECODER), integrator, batch=Batch(BATCH), **options)

    def of_jax(peer: str, motion: Motions) -> Steps:
        return by_jax(peer, Decoder(), BATCH, FEW, motion)

    return {
        "compiled, expint_shared": lambda: of_ours("expint_shared", engine="compiled"),
        "compiled, expint_shared, bf16": lambda: of_ours(
            "expint_shared", engine="compiled", precision="bf16"
        ),
        "fused, expint_shared": lambda: of_ours("expint_shared", engine="fused"),
        "fused, expint": lambda: of_ours("expint", engine="fused"),
        "eager torch, expint_shared": lambda: of_ours("expint_shared", noise="torch"),
        "script (no gathering)": decoder_script,
        "torchsde euler (no gathering)": decoder_torchsde,
        "JAX, jit and scan": lambda: of_jax("decoder_scan", DECODER),
        "Diffrax Euler (no gathering)": lambda: of_jax("decoder_euler", SHORTER),
        "arithmetic": lambda: arithmetic(Decoder(), FEW),
    }


def images() -> dict[str, Callable[[], Steps]]:
    """The convolutional decoder of cifar16.toml, D = 10,000, minibatches of 128, N = 5; pixels are random."""
    model = made_up_images()

    def of_ours(**options: Any) -> Steps:
        system = mpgd(model, particles=FEW_IMAGES, **IMAGES)
        return ours(system, "expint_shared", batch=Batch(BATCH), **options)

    return {
        "compiled, expint_shared": lambda: of_ours(engine="compiled"),
        "fused, expint_shared": lambda: of_ours(engine="fused"),
        "eager torch, expint_shared": lambda: of_ours(noise="torch"),
        "script (no gathering)": lambda: images_script(model),
        "JAX, jit": lambda: by_jax("convolutional_step", model, BATCH, FEW_IMAGES, IMAGES),
        "arithmetic": lambda: arithmetic(model, FEW_IMAGES),
    }


def made_up_images(images: int = 10_000, width: int = 32) -> Images:
    """The model of cifar16.toml on random pixels in place of its data set, of which no time depends."""

    def load(name: str, split: str = "train") -> tuple[Any, Any]:
        pixels = np.random.default_rng(0).integers(0, 256, (images, 3, 32, 32), np.uint8)
        return pixels, np.zeros(images, np.uint8)

    with patch("sdeflow.data.images.load_images", load):
        return Images("cifar10", pool=2, latent=64, sigma=0.25, width=width)


def replicas() -> dict[str, Callable[[], Steps]]:
    """64 replicas of the toy model; the script takes them one after the other."""

    def in_turn() -> Steps:
        each = [toy_script(100) for _ in range(64)]

        def take(count: int) -> None:
            for one in each:
                one(count)

        return take

    return {
        "compiled, own scores": lambda: toy(Hierarchical, 100, engine="compiled", replicas=64),
        "fused, own scores": lambda: toy(Hierarchical, 100, engine="fused", replicas=64),
        "eager torch, own scores": lambda: toy(Hierarchical, 100, noise="torch", replicas=64),
        "script, 64 runs": in_turn,
        "JAX, jit and scan": lambda: toy_jax("toy_scan", 100, replicas=64),
    }


SIZES: dict[str, tuple[Callable[[], dict[str, Callable[[], Steps]]], float]] = {
    "toy, D=100": (lambda: toys(100), 0.02),
    "toy, D=1000": (lambda: toys(1000), 0.03),
    "toy, D=10000": (lambda: toys(10_000), 0.15),
    "toy, D=100000": (lambda: toys(100_000), 1.5),
    "decoder, batches of 128": (decoders, 0.05),
    "64 replicas of D=100": (replicas, 0.1),
    "convolutional decoder, batches of 128": (images, 1.0),
}


OURS = ("fused", "compiled", "eager")


def as_in_a_run(name: str) -> AbstractContextManager[None]:
    """Lets a row of ours keep the memory that it frees, as a run does; others take what they need anew."""
    return blocks_kept() if name.startswith(OURS) else nullcontext()


def measure(rows: dict[str, Callable[[], Steps]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Microseconds a step by row and round, the rows by turns; a round of a row takes about `seconds`."""
    ready: dict[str, tuple[Steps, int]] = {}
    for name, make in rows.items():
        try:
            take = make()
        except (ImportError, RuntimeError) as error:
            print(f"  {name}: left out, {error}")
            continue
        with as_in_a_run(name):
            take(2)
            began = time.perf_counter()
            taken = take(2) or 2
        ready[name] = take, max(1, int(taken * seconds / (time.perf_counter() - began)))
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, (take, count) in ready.items():
            with as_in_a_run(name):
                take(2)  # what went back after the round before is asked for again
                began = time.perf_counter()
                taken = take(count) or count
                times[name].append((time.perf_counter() - began) / taken * 1e6)
    return times


def peak(size: str, row: str, threads: int) -> float | None:
    """MiB that a process holds at most in which a row takes steps, after its first; None but on Linux."""
    code = f"import speed; speed.print_peak({size!r}, {row!r}, {threads})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def print_peak(size: str, row: str, threads: int) -> None:
    pin(threads)
    torch.set_num_threads(threads)
    take = SIZES[size][0]()[row]()
    take(2)
    forget, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not forget.exists():
        print("null")
        return
    forget.write_text("5")  # the peak counts from here
    take(1)
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(encoding="utf-8"), re.MULTILINE)
    print(int(found[1]) / 1024 if found else "null")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), help="names, or parts of them")
    parser.add_argument(
        "--memory", nargs="*", default=[], help="sizes whose rows' peaks are told, in the same way"
    )
    parser.add_argument("--out", type=Path, help="where the numbers go, JSON")
    parser.add_argument("--figure", type=Path, help="where they are drawn, SVG or PNG")
    options = parser.parse_args()
    pin(options.threads)
    torch.set_num_threads(options.threads)
    try:
        cpp_kernel()
    except NoKernel as reason:
        raise SystemExit(f"the rows of the fused engine need the kernel: {reason}") from None
    found: dict[str, Any] = {
        **machine(),
        "threads": options.threads,
        "rounds": options.rounds,
        "microseconds": {},
        "peak_MiB": {},
    }
    for size, (rows, seconds) in SIZES.items():
        if not any(part in size for part in options.sizes):
            continue
        print(f"{size}, {options.threads} thread(s)")
        times = measure(rows(), options.rounds, seconds)
        first = next(iter(times.values()))
        for name, taken in times.items():
            ratio = statistics.median(b / a for a, b in zip(first, taken, strict=True))
            asked = any(part in size for part in options.memory)
            held = peak(size, name, options.threads) if asked else None
            memory = "" if held is None else f"{held:9,.0f} MiB"
            print(f"  {name:30s}{statistics.median(taken):12,.1f} us{ratio:9.2f} x{memory}")
            found["peak_MiB"].setdefault(size, {})[name] = held
        found["microseconds"][size] = times
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))
    if options.figure is not None:
        draw(found["microseconds"]).savefig(options.figure)


def draw(times: dict[str, dict[str, list[float]]]) -> Any:
    """Median microseconds a step, a panel for each size, with the range over rounds."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(9, 0.6 + 0.24 * sum(len(rows) + 2 for rows in times.values())), layout="constrained"
    )
    heights = [len(rows) + 1 for rows in times.values()]
    panels = figure.subplots(len(times), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for panel, (size, rows) in zip(panels, times.items(), strict=True):
        names = list(rows)[::-1]
        medians = [statistics.median(rows[name]) for name in names]
        colours = ["C0" if name.startswith(OURS) else "0.7" for name in names]
        panel.barh(names, medians, color=colours, height=0.7)
        for i, name in enumerate(names):
            panel.plot([min(rows[name]), max(rows[name])], [i, i], color="0.2", lw=1)
            panel.annotate(f"  {medians[i]:,.0f}", (max(rows[name]), i), va="center", fontsize="x-small")
        panel.set_title(size, loc="left", fontsize="medium")
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize="small")
    panels[-1].set(xscale="log", xlabel="microseconds a step")
    return figure


if __name__ == "__main__":
    main()

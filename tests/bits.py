"""A fixed set of runs, to the bit: what a change of the code must not change.

    python tests/bits.py > before.json          with the code as it was
    python tests/bits.py --against before.json  with the code as it is

Bits depend on the machine and on torch, so the numbers are compared on one machine and not kept.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import xarray as xr

import sdeflow
from sdeflow.cli import main
from sdeflow.problems.generic import DoubleWell
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.linear_energy import LinearEnergy

INTEGRATORS = (
    *("euler_maruyama", "expint", "expint_nc", "expint_nc2", "expint_shared", "nag", "obabo", "baoab"),
    *("ubu", "quicsort", "alternating"),
    *(
        f"torchsde:{name}"
        for name in ("euler", "milstein", "srk", "heun", "midpoint", "euler_heun", "log_ode")
    ),
    "torchsde:reversible_heun",
)
SYSTEMS = ("pgd", "ipla", "mpgd", "mpgd_theta", "mpgd_x", "kiplmc")
INNER = ("short_run", "abp", "soul")
KERNELS = ("svgd_em", "momentum_svgd_em", "coin_em")
HELD_OUT = ("--set", "model.held_out=50", "--set", "model.images=400", "--set", "save.every=10")
MOTION = {"h": 0.02, "eta": 3.0, "gamma": 0.7}


class AutoGradient(Hierarchical):
    """The toy model without its analytic scores."""

    score_x = score_theta = None


def toy(system: str = "mpgd", model: type[Hierarchical] = Hierarchical, **motion: Any) -> Any:
    theta = {**MOTION, "h": 0.003, **motion}
    return getattr(sdeflow, system)(model(data=12, scale=1.5), particles=5, theta=theta, x=MOTION)


def energy(system: str) -> Any:
    blocks = {name: {**MOTION, "h": 0.005} for name in ("alpha", "beta", "x")}
    return getattr(sdeflow, system)(LinearEnergy(), particles=3, prior_particles=7, **blocks)


def packaged(problem: str, *options: str) -> xr.Dataset:
    """A packaged problem by the command line, with its last state."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        sys.argv = ["sdeflow", "run", problem, "--out", str(out), "--quiet", *options]
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
            main()
        return sdeflow.open_run(out).load()


def cases() -> Iterator[tuple[str, Callable[[], xr.Dataset]]]:
    """Names and runs."""

    def case(name: str, system: Any, integrator: str = "expint", **how: Any) -> Any:
        how = {"steps": 41, "seed": 3, "engine": "eager", "noise": "torch"} | how
        return name, lambda: sdeflow.simulate(system(), integrator, **how)

    for dtype in ("float32", "float64"):
        for integrator in INTEGRATORS:
            yield case(f"mpgd {integrator} {dtype}", toy, integrator, dtype=dtype)
        for name in SYSTEMS:
            yield case(f"{name} {dtype}", lambda name=name: toy(name), dtype=dtype)
            yield case(
                f"{name} fused {dtype}",
                lambda name=name: toy(name),
                *("euler_maruyama" if name == "pgd" else "expint_nc",),
                dtype=dtype,
                engine="fused",
                noise="philox",
            )
        for name in INNER:
            yield case(f"{name} {dtype}", lambda name=name: toy(name), "auto", dtype=dtype)
        for name in KERNELS:
            yield case(f"{name} {dtype}", lambda name=name: toy(name), "expint_nc2", dtype=dtype)
        for name in ("ebipla", "kinetic_ebipla"):
            yield case(f"{name} {dtype}", lambda name=name: energy(name), dtype=dtype)
        for integrator in ("expint", "obabo", "ubu", "baoab", "expint_shared", "nag"):
            for model in (Hierarchical, AutoGradient):
                for engine, noise in (("eager", "philox"), ("fused", "philox")):
                    yield case(
                        f"{model.__name__} {integrator} {engine} {noise} {dtype} 3 replicas",
                        lambda model=model: toy(model=model),
                        integrator,
                        dtype=dtype,
                        engine=engine,
                        noise=noise,
                        replicas=3,
                    )
    for catch_up in ("off", "one_step", "substeps"):
        for integrator in ("expint", "obabo"):
            for engine, noise in (("eager", "torch"), ("fused", "philox")):
                yield case(
                    f"minibatches {catch_up} {integrator} {engine}",
                    toy,
                    integrator,
                    batch=sdeflow.Batch(size=4, catch_up=catch_up, cap=3),
                    engine=engine,
                    noise=noise,
                    replicas=2,
                )
    yield case("minibatches rmsprop", lambda: toy(precondition="rmsprop"), batch=sdeflow.Batch(size=4))
    grid = sdeflow.Grid(gamma=(0.3, 1.0), eta=(2.0, 5.0))
    for engine, noise in (("eager", "torch"), ("fused", "philox")):
        yield case(f"grid {engine}", toy, grid=grid, replicas=2, engine=engine, noise=noise)
    for integrator in ("expint", "obabo"):
        yield case(
            f"compiled {integrator}", toy, integrator, engine="compiled", noise="philox", dtype="float64"
        )
    yield case(
        "compiled minibatches",
        toy,
        batch=sdeflow.Batch(size=4, catch_up="one_step", cap=3),
        engine="compiled",
        noise="philox",
    )
    for noise in ("torch", "philox"):
        yield case(
            f"plain SDE {noise}",
            lambda: sdeflow.SDESystem(DoubleWell(), h=0.01, paths=20, start=[0.5]),
            "euler_maruyama",
            noise=noise,
        )
    yield "digits", lambda: packaged("digits", *HELD_OUT, "--steps", "60", "--eval-every", "20")
    yield "latent_ebm_2d", lambda: packaged("latent_ebm_2d", "--steps", "60", "--system", "kinetic_ebipla")
    yield "breast_cancer", lambda: packaged("breast_cancer", "--steps", "60", "--replicas", "2")
    yield "gradient_correction", lambda: packaged("gradient_correction", "--steps", "60")


def digest(dataset: xr.Dataset) -> str:
    """SHA-256 of names, dtypes and values."""
    found = hashlib.sha256()
    for name, variable in sorted(dataset.variables.items(), key=lambda item: str(item[0])):
        values = variable.to_numpy()
        found.update(f"{name} {variable.dims} {values.dtype.kind} {values.shape}".encode())
        found.update(str(values.tolist()).encode() if values.dtype.kind in "UO" else values.tobytes())
    return found.hexdigest()[:24]


def digests(part: str = "") -> dict[str, str]:
    """By name of the run; what a run refuses stands in place of its digest."""
    found = {}
    for name, run in cases():
        if part in name:
            try:
                found[name] = digest(run())
            except sdeflow.SdeflowError as error:
                found[name] = f"refused: {error}"
            print(f"{found[name]:24.24}  {name}", file=sys.stderr)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="numbers of the code as it was")
    parser.add_argument("--only", default="", help="runs whose names contain this")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    now = digests(given.only)
    if given.against is None:
        print(json.dumps(now, indent=1))
    else:
        before = json.loads(given.against.read_text())
        changed = [name for name, value in now.items() if before.get(name) != value]
        print(f"{len(now)} runs, {len(changed)} changed: {', '.join(changed) or 'none'}")
        sys.exit(bool(changed))

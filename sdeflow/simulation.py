"""The run: chunks of steps, and between them saving, progress, endings. Side effects live here alone."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from sdeflow.batch import Batch, MiniBatches, evaluations
from sdeflow.catalogue import integrator_named, integrators_for
from sdeflow.engine import Step, advance, full_batch
from sdeflow.errors import DivergenceWarning, RunError, SdeflowError, StabilityWarning, attempt
from sdeflow.held_out import Evaluate, HeldOut
from sdeflow.integrator import Integrator
from sdeflow.model import Model
from sdeflow.noise import TorchNoise
from sdeflow.progress import Progress, progress_bar
from sdeflow.provenance import provenance
from sdeflow.record import Recorder, Save
from sdeflow.store import final_state, refuse_occupied, to_dataset, write_run
from sdeflow.system import BlockSystem, System, initial_state
from sdeflow.systems import SystemDeclaration

_CHUNK_SECONDS = 0.2

ONE_THREAD_BELOW = 500_000
"""Numbers in the state up to which a CPU run keeps to one thread.

Small operations gain nothing from more, and lose much where the other cores are busy: threads that wait
for each other made a step of 4000 particles 20 times slower on two cores with one of them taken.
"""


@dataclass(frozen=True)
class Solution:
    """A finished run: the recorded trajectory, the full last state, and how it ended.

    retcode   'success', 'diverged' or 'interrupted'; `message` tells more
    """

    dataset: xr.Dataset
    state: dict[str, Tensor]
    retcode: str
    message: str


def simulate(
    system: System,
    integrator: str | Integrator | type[Integrator] = "expint",
    *,
    steps: int,
    seed: int = 0,
    replicas: int = 1,
    save: Save | None = None,
    batch: Batch | None = None,
    evaluate: Evaluate | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Runs `steps` steps of an integrator on a system and gives the trajectory.

    integrator   a name of the catalogue, a 'file.py:Name', an Integrator or its class
    seed         replica i of a run with seed s is the run of one replica with seed s + i
    save         what to record (default: every 10 steps, 16 data with 16 particles each)
    batch        how data are subsampled (default: all data in every step)
    evaluate     when the loss on the model's held-out data is measured (default: never)
    out          a run folder to write too: trajectory.nc and final.safetensors

    Raises SdeflowError where something does not fit. A trajectory that diverges is returned as far as it
    got; `attrs['retcode']` says so, and a DivergenceWarning is given. An interrupted or failing run is
    written to `out` as far as it got, and then raises KeyboardInterrupt or RunError.
    """
    with progress_bar(steps) if progress else nullcontext() as report:
        solution = solve(
            system,
            integrator,
            steps=steps,
            seed=seed,
            replicas=replicas,
            save=save or Save(),
            batch=batch,
            evaluate=evaluate,
            dtype=dtype,
            device=device,
            out=None if out is None else Path(out),
            overwrite=overwrite,
            progress=report,
        )
    if solution.retcode == "interrupted":
        raise KeyboardInterrupt(solution.message)
    if solution.retcode == "diverged":
        warnings.warn(solution.message, DivergenceWarning, stacklevel=2)
    return solution.dataset


def solve(
    system: System,
    integrator: str | Integrator | type[Integrator],
    *,
    steps: int,
    seed: int,
    replicas: int,
    save: Save,
    dtype: str | torch.dtype,
    device: str | torch.device,
    batch: Batch | None = None,
    evaluate: Evaluate | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    config: str = "",
    title: str = "",
    progress: Progress | None = None,
) -> Solution:
    """`simulate` with nothing by default; also gives the last state. `config` is stored as it is.

    Raises RunError where the run could not be carried through; what was recorded is written first.
    """
    _refuse_no_system(system)
    scheme = compatible(integrator, system)
    for name, value, least in (("steps", steps, 0), ("replicas", replicas, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise SdeflowError(f"{name} must be at least {least}, given {value!r}")
    if not isinstance(save, Save):
        raise SdeflowError(f"save must be an sdeflow.Save, given {type(save).__name__}")
    if out is not None:
        refuse_occupied(out, overwrite)
    where, precision = resolve_device(device), _resolve_dtype(dtype)
    seeds = range(seed, seed + replicas)

    system = system.to(precision, where)
    z = initial_state(system, seeds, precision, where)
    step: Step
    warning = ""
    common: dict[str, Any] = {"seeds": seeds, "dtype": precision, "device": where}
    if batch is None:
        system.check(z)
        noise = TorchNoise(system.channels, kind=scheme.noise, substeps=scheme.substeps, h=system.h, **common)
        step, observe = full_batch(system, scheme, noise), system.observe
        with torch.no_grad():
            z |= attempt(f"{type(scheme).__name__}.init", scheme.init, system, z)
    else:
        step = batches = MiniBatches(_of_blocks(system), scheme, batch, **common)
        batches.check(z)
        with torch.no_grad():
            warning = batches.warning(z)
        if warning:
            warnings.warn(warning, StabilityWarning, stacklevel=3)
        z, observe = batches.start(z), batches.observe
    held_out = None
    if evaluate is not None:
        if not isinstance(evaluate, Evaluate):
            raise SdeflowError(f"evaluate must be an sdeflow.Evaluate, given {type(evaluate).__name__}")
        if evaluate.every % save.every:
            raise SdeflowError(
                f"evaluate.every must be a multiple of save.every, {save.every}, given {evaluate.every}"
            )
        at_once = None if batch is None else batch.size
        held_out = HeldOut(_of_blocks(system), evaluate, at_once=at_once, **common)
        z |= held_out.start()
    recorder = Recorder(system, save, observe=observe, replicas=replicas, steps=steps)

    began = time.perf_counter()
    with _threads(z) as threads:
        end = _march(step, type(scheme).__name__, z, system.h, recorder, held_out, progress)
    seconds = time.perf_counter() - began

    message = _message(end, steps, scheme)
    attrs: dict[str, Any] = {
        "title": title or f"{scheme.name}, {steps} steps",
        **provenance(where),
        "system": str(system),
        "save": str(save),
        "threads": threads,
        "config": config,
        "integrator": scheme.name,
        "engine": "eager",
        "noise_source": TorchNoise.name,
        "gradient_evaluations_per_step": evaluations(scheme, batch),
        "dtype": str(precision).removeprefix("torch."),
        "seed": seed,
        "replicas": replicas,
        "steps": steps,
        "steps_taken": end.step,
        "seconds": round(seconds, 3),
        "evaluate": "" if held_out is None else held_out.cost(steps),
        "evaluate_seconds": round(end.evaluate_seconds, 3),
        "warnings": warning,
        "retcode": end.retcode,
        "message": message,
    }
    if batch is not None:
        attrs["batch"] = f"{batch.size} data a step, catch-up {batch.catch_up}, cap {batch.cap}"
    with _uninterrupted():
        dataset = to_dataset(recorder, seeds=seeds, attrs=attrs, batch=batch.size if batch else None)
        if out is not None:
            write_run(out, dataset, final_state(system, end.state), config, overwrite)
    if end.error is not None:
        raise RunError(message) from end.error
    return Solution(dataset, end.state, end.retcode, message)


@dataclass(frozen=True)
class _End:
    """Where a march stopped; `diverged` says by replica which variable was not finite, and when."""

    state: dict[str, Tensor]
    step: int
    retcode: str
    diverged: dict[int, str]
    evaluate_seconds: float
    error: Exception | None = None


def _march(
    advance_one: Step,
    scheme: str,
    z: dict[str, Tensor],
    h: float,
    recorder: Recorder,
    held_out: HeldOut | None,
    progress: Progress | None,
) -> _End:
    """Advances through all snapshots, in chunks short enough to report and to interrupt between."""
    step, chunk, diverged, evaluating = 0, 1, dict[int, str](), 0.0

    def snapshot() -> float | None:
        nonlocal z, evaluating
        more, clock = {}, time.perf_counter()
        if held_out is not None:
            z, more = held_out.look(z, step, recorder.when[-1])
            evaluating += time.perf_counter() - clock
        observed = recorder.take(step, step * h, z, more)
        return float(observed["loss"].mean()) if "loss" in observed else None

    loss = snapshot()
    try:
        for target in recorder.when[1:]:
            while step < target:
                count, clock = min(chunk, target - step), time.perf_counter()
                if step == 0:  # one step, in which a mistake in a user's scheme shows
                    z = attempt(f"{scheme}.step", advance, advance_one, z, 0, 1)
                else:
                    z = advance(advance_one, z, step, count)
                step += count
                _note_divergence(z, step, diverged)
                if len(diverged) == recorder.replicas:
                    return _End(z, step, "diverged", diverged, evaluating)
                seconds = time.perf_counter() - clock
                chunk = max(1, min(2 * chunk, int(count * _CHUNK_SECONDS / max(seconds, 1e-9))))
                if progress is not None:
                    progress(step, loss)
            loss = snapshot()
    except KeyboardInterrupt:
        return _End(z, step, "interrupted", diverged, evaluating)
    except Exception as error:
        if step == 0:
            raise
        return _End(z, step, "failed", diverged, evaluating, error)
    return _End(z, step, "diverged" if diverged else "success", diverged, evaluating)


def _of_blocks(system: System) -> BlockSystem:
    if not isinstance(system, BlockSystem):
        raise SdeflowError("minibatches need a system made of blocks, with a model's forces")
    return system


def compatible(integrator: str | Integrator | type[Integrator], system: System) -> Integrator:
    """The integrator; raises SdeflowError, naming those that would do, where it refuses the system."""
    scheme = integrator_named(integrator)
    if refusal := scheme.refuses(system):
        would_do = ", ".join(integrators_for(system)) or "none of the catalogue"
        raise SdeflowError(
            f"integrator '{scheme.name}' cannot take this system: {refusal}. These can: {would_do}"
        )
    return scheme


def resolve_device(device: str | torch.device) -> torch.device:
    """'auto' is CUDA where there is one; raises SdeflowError for CUDA where there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise SdeflowError(f"device must be 'auto', 'cpu' or 'cuda', given '{device}'") from error
    if chosen.type not in ("cpu", "cuda"):
        raise SdeflowError(f"device must be 'auto', 'cpu' or 'cuda', given '{device}'")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SdeflowError(
            "device 'cuda' was asked for, but there is no CUDA device here: give 'cpu' or 'auto'"
        )
    return chosen


def _resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if chosen not in (torch.float32, torch.float64):
        raise SdeflowError(f"dtype must be float32 or float64, given {dtype}")
    return chosen


@contextmanager
def _threads(z: Mapping[str, Tensor]) -> Iterator[int]:
    """Keeps torch to one thread while a small state is advanced; gives the number in use."""
    before = torch.get_num_threads()
    if sum(value.numel() for value in z.values()) < ONE_THREAD_BELOW:
        torch.set_num_threads(1)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _note_divergence(z: Mapping[str, Tensor], step: int, diverged: dict[int, str]) -> None:
    """Notes the first non-finite variable of each replica that was finite until now; one synchronisation."""
    finite = torch.stack([value.flatten(1).isfinite().all(1) for value in z.values()]).cpu()
    for replica in (~finite.all(0)).nonzero().flatten().tolist():
        if replica not in diverged:
            variable = list(z)[int((~finite[:, replica]).nonzero()[0])]
            diverged[replica] = f"{variable} is not finite by step {step}"


def _message(end: _End, steps: int, scheme: Integrator) -> str:
    if end.retcode == "interrupted":
        return f"stopped after {end.step} of {steps} steps"
    if end.retcode == "failed":
        error = end.error
        return f"the run failed after {end.step} of {steps} steps with {type(error).__name__}: {error}"
    if end.retcode == "diverged":
        where = "; ".join(f"replica {r}: {what}" for r, what in end.diverged.items())
        return f"{where}. Likely fix: a smaller step h, or a more stable integrator than {scheme.name}."
    return f"{end.step} steps"


def _refuse_no_system(system: object) -> None:
    if isinstance(system, System) and not isinstance(system, type):
        return
    if hasattr(system, "drift") and hasattr(system, "diffusion"):
        raise SdeflowError(f"{type(system).__name__} is a plain SDE: give SDESystem(sde, h=...) instead")
    if isinstance(system, Model | SystemDeclaration):
        raise SdeflowError(
            "a system is a declaration with a model: mpgd(model, particles=..., theta=..., x=...)"
        )
    raise SdeflowError(f"a system was expected, given {type(system).__name__}")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets a second Ctrl-C wait while what was recorded is written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

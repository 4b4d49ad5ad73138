"""A run from Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from sdeflow.callbacks.callback import Snapshot
from sdeflow.config.catalogue import Scheme
from sdeflow.config.run import Run
from sdeflow.config.schema import RunSection
from sdeflow.errors import DivergenceWarning, Interrupted
from sdeflow.options import (
    Average,
    Batch,
    EngineName,
    Evaluate,
    NoiseName,
    Parallel,
    PrecisionName,
    Save,
    Tune,
)
from sdeflow.parallel.ranks import ALONE, started
from sdeflow.simulation.resume import resume_from, with_engine_of
from sdeflow.simulation.solve import solve
from sdeflow.system.grid import Grid
from sdeflow.system.start import Start
from sdeflow.system.system import System
from sdeflow.terminal import progress_bar
from sdeflow.trajectory.stored import as_start

if TYPE_CHECKING:
    import xarray as xr


def simulate(
    system: System,
    integrator: Scheme = RunSection.integrator,
    *,
    steps: int,
    seed: int = RunSection.seed,
    replicas: int = RunSection.replicas,
    save: Save | None = None,
    batch: Batch | None = None,
    evaluate: Evaluate | None = None,
    grid: Grid | None = None,
    tune: Tune | None = None,
    average: Average | None = None,
    parallel: Parallel | None = None,
    start: Start | str | Path | xr.Dataset | Mapping[str, Any] | None = None,
    callbacks: Callable[[Snapshot], Any] | Sequence[Callable[[Snapshot], Any]] = (),
    observables: Mapping[str, Callable[..., Any]] | None = None,
    dtype: str | torch.dtype = RunSection.dtype,
    device: str | torch.device = RunSection.device,
    engine: str = RunSection.engine,
    noise: str = RunSection.noise,
    bound: float = RunSection.bound,
    precision: str = RunSection.precision,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Runs `steps` steps of an integrator on a system and gives the trajectory.

    integrator   a name of the catalogue, a 'file.py:Name', an Integrator or its class
    seed         replica i of a run with seed s is the run of one replica with seed s + i
    save         what to record (default: every 10 steps, 16 data with 16 particles each)
    batch        how data are subsampled (default: all data in every step)
    grid         frictions and inverse masses, with `replicas` at each; without it the system's own
    tune         how numbers that are 'auto' are chosen
    average      of an average of the parameters, kept beside them (default: none)
    parallel     how the processes that torchrun started share the data: all of them call this, and get the
                 trajectory, of a run with `out` the first of them alone (default: each runs by itself)
    start        what the run begins from: the last state of a run folder, or what an `sdeflow.Start` takes of
                 it; the last snapshot of a trajectory with all data, particles and parameters; or tensors of
                 a part of the state by name ('X', 'theta.weight'), with the rest as without it
    callbacks    what is called at each snapshot with an `sdeflow.Snapshot`, and stops the run where it gives
                 True or a text that says why: functions, or EarlyStopping, CSV, TensorBoard, WandB
    observables  functions of (theta, x, y) by name, as Model.observables is one: a scalar each, recorded
                 beside the model's own
    evaluate     when the loss on the model's held-out data is measured (default: never)
    engine       'eager', 'fused' or 'compiled'; 'auto' is compiled for a long run, and else fused where there
                 is a kernel for it; see sdeflow.engine.engine. A resumed run keeps what it was begun by
    noise        the noise source, 'torch' or 'philox'; 'auto' is philox where there is a kernel for it
    bound        a loss or kinetic energy past it counts as diverged
    precision    of matrix products and convolutions within the model: 'full' is that of `dtype`, 'bf16' is
                 bfloat16, 'tf32' TF32 on CUDA; what it gives is added up, moved and kept in float32
    out          a run folder to write; the trajectory is then read from it when it is asked for
    resume       goes on with the run in `out` where there is one, to the same numbers as in one piece

    Raises SdeflowError where something does not fit. A trajectory that a callback stops is returned as far as
    it got; `attrs['retcode']` is 'stopped', and `attrs['message']` says by which and why. So is one that
    diverges, and a DivergenceWarning is given. An interrupted or failing run is
    written to `out` as far as it got, and then raises RunError, or for Ctrl-C, SIGTERM and SIGHUP
    `sdeflow.errors.Interrupted`, a KeyboardInterrupt whose `dataset` is the trajectory as far as it got.
    """
    options = RunSection(
        steps=steps,
        seed=seed,
        replicas=replicas,
        bound=bound,
        precision=cast(PrecisionName, precision),
        dtype=cast(Any, str(dtype).removeprefix("torch.")),
        device=cast(Any, str(device)),
        engine=cast(EngineName, engine),
        noise=cast(NoiseName, noise),
    )
    run = Run.declare(
        system,
        integrator,
        options,
        save=save,
        batch=batch,
        evaluate=evaluate,
        grid=grid,
        tune=tune,
        average=average,
        parallel=parallel,
        start=None if start is None else as_start(start),
        callbacks=callbacks,
        observables=observables,
    )
    ranks = ALONE if parallel is None else started()
    run = ranks.alike(lambda: run.shared(ranks))
    folder = None if out is None else Path(out)
    with progress_bar() if progress and ranks.leads else nullcontext() as report:
        if resume and folder is not None and ranks.of_first(folder.exists()):
            solution = resume_from(
                lambda meta: with_engine_of(meta, run, engine, noise), folder, progress=report, ranks=ranks
            )
        else:
            solution = solve(run, out=folder, overwrite=overwrite, progress=report, ranks=ranks)
    if solution.retcode == "interrupted":
        raise Interrupted(solution.message, solution.dataset)
    if solution.retcode == "diverged":
        warnings.warn(solution.message, DivergenceWarning, stacklevel=2)
    return solution.dataset

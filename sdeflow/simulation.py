"""Solving a run: what it starts from, the march through its steps, and what is left of it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from sdeflow.batch import Batch
from sdeflow.checkpoint import Facts, Part
from sdeflow.dataset import final_state, to_dataset
from sdeflow.durable import DiskFull
from sdeflow.endings import Stop
from sdeflow.errors import DivergenceWarning, RunError, SdeflowError, StabilityWarning
from sdeflow.folder import TRAJECTORY, RunFolder, open_run, refuse_occupied
from sdeflow.grid import Grid
from sdeflow.held_out import Evaluate
from sdeflow.march import March
from sdeflow.parts import free_space
from sdeflow.prepared import Prepared, prepare_to_solve, threads, threads_for
from sdeflow.progress import Progress, progress_bar
from sdeflow.provenance import provenance, setting, stamp
from sdeflow.record import Recorder, Save
from sdeflow.run import Run, Scheme
from sdeflow.system import System
from sdeflow.units import human

BUFFER = 1 << 26
"""Bytes of snapshots that a run with a folder holds in memory before it writes a segment."""

NAMED = 8
"""Diverged replicas that a message names."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Solution:
    """A finished run: the trajectory, the full last state, and how it ended.

    retcode   'success', 'diverged' or 'interrupted'; `message` tells more
    """

    dataset: xr.Dataset
    state: State
    retcode: str
    message: str


def simulate(
    system: System,
    integrator: Scheme = "expint",
    *,
    steps: int,
    seed: int = 0,
    replicas: int = 1,
    save: Save | None = None,
    batch: Batch | None = None,
    evaluate: Evaluate | None = None,
    grid: Grid | None = None,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "auto",
    engine: str = "auto",
    noise: str = "auto",
    bound: float = 1e12,
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
    evaluate     when the loss on the model's held-out data is measured (default: never)
    engine       'eager', 'fused' or 'compiled'; 'auto' is compiled for a long run, and else fused where there
                 is a kernel for it; see sdeflow.engine. Where a run is resumed, it is what that was begun by
    noise        the noise source, 'torch' or 'philox'; 'auto' is philox where there is a kernel for it
    bound        a loss or kinetic energy past it counts as diverged
    out          a run folder to write; the trajectory is then read from it when it is asked for
    resume       goes on with the run in `out` where there is one, to the same numbers as in one piece

    Raises SdeflowError where something does not fit. A trajectory that diverges is returned as far as it
    got; `attrs['retcode']` says so, and a DivergenceWarning is given. An interrupted or failing run is
    written to `out` as far as it got, and then raises KeyboardInterrupt or RunError.
    """
    declare = partial(
        Run.declare,
        system,
        integrator,
        steps=steps,
        seed=seed,
        replicas=replicas,
        save=Save() if save is None else save,
        batch=batch,
        evaluate=evaluate,
        grid=grid,
        dtype=dtype,
        device=device,
        bound=bound,
    )

    def again(facts: Facts) -> Run:
        begun = facts.setting
        same = begun["noise_source"] if noise == "auto" else noise
        kept = engine == "auto" and same == begun["noise_source"]
        return declare(engine=begun["engine"] if kept else engine, noise=same)

    run, folder = declare(engine=engine, noise=noise), None if out is None else Path(out)
    with progress_bar() if progress else nullcontext() as report:
        if resume and folder is not None and folder.exists():
            solution = go_on(again, folder, progress=report)
        else:
            solution = solve(run, out=folder, overwrite=overwrite, progress=report)
    if solution.retcode == "interrupted":
        raise KeyboardInterrupt(solution.message)
    if solution.retcode == "diverged":
        warnings.warn(solution.message, DivergenceWarning, stacklevel=2)
    return solution.dataset


def solve(
    run: Run, *, out: Path | None = None, overwrite: bool = False, progress: Progress | None = None
) -> Solution:
    """Solves a run from its start, in memory or into a run folder.

    Raises RunError where it could not be carried through; what was recorded is in the folder then.
    """
    if out is not None:
        refuse_occupied(out, overwrite)
    run, prepared = prepare_to_solve(run)
    folder = None if out is None else RunFolder(out, config=run.config, overwrite=overwrite)
    if prepared.warning:
        warnings.warn(prepared.warning, StabilityWarning, stacklevel=3)
    facts = Facts(
        step=0,
        last=0,
        steps=run.steps,
        parts=(),
        settings={} if folder is None else run.settings,
        setting=setting(run.device, threads_for(prepared.state), run.engine),
        code=run.code,
        history=(stamp("written"),),
        warnings=(prepared.warning,) if prepared.warning else (),
    )
    recorder = _recorder(run, prepared, facts, folder)
    if folder is None:
        return _march(run, prepared, facts, recorder, None, progress)
    try:
        folder.log(f"{run.title or run.integrator.name}, {run.steps:,} steps, {facts.setting}, {run.engine}")
        for warning in facts.warnings:
            folder.log(f"warning: {warning}")
        return _march(run, prepared, facts, recorder, folder, progress)
    finally:
        folder.close()


def go_on(declare: Callable[[Facts], Run], out: Path, *, progress: Progress | None = None) -> Solution:
    """Goes on with the run in a folder, to the same numbers as in one piece.

    declare   gives the run to go on with, from what its checkpoint knows; its `steps` may be more

    Raises SdeflowError where that is another run, or the run diverged; Damaged, naming the file, where what
    is in the folder is not what was written.
    """
    folder, state = RunFolder.reopen(out)
    try:
        facts = folder.facts
        run = declare(facts)
        _refuse_another(run, facts, out)
        if facts.whole and facts.steps == run.steps:
            return Solution(open_run(out), state, facts.retcode, facts.message)
        run, prepared = prepare_to_solve(run)
        prepared.take_up(state)
        if facts.ended and facts.steps == run.steps:
            return _join(run, prepared, facts, folder)
        del state  # the march lets go of a state when it has the next
        facts = _taken_up(facts, run, folder.damage)
        recorder = _recorder(run, prepared, facts, folder)  # what is refused leaves the folder as it was
        folder.go_on(facts, prepared.state, run.config)
        folder.log(f"resumed at step {facts.step:,} of {run.steps:,}")
        return _march(run, prepared, folder.facts, recorder, folder, progress)
    finally:
        folder.close()


def _join(run: Run, prepared: Prepared, facts: Facts, folder: RunFolder) -> Solution:
    """Finishes a run that has taken all its steps and was kept from joining its segments."""
    attrs, state = _attrs(run, prepared, facts), prepared.state
    final = None if len(facts.diverged) == len(run.seeds) else final_state(prepared.system, state)
    folder.finish(facts, state, attrs, final)
    return Solution(open_run(folder.path), state, facts.retcode, facts.message)


def _recorder(run: Run, prepared: Prepared, facts: Facts, folder: RunFolder | None) -> Recorder:
    """What gathers the snapshots to come; raises SdeflowError where memory or disk has no room for them."""
    recorder = Recorder(
        prepared.system,
        run.save,
        observe=prepared.observe,
        replicas=len(run.seeds),
        steps=run.steps,
        buffer=None if folder is None else BUFFER,
        taken=facts.snapshots,
    )
    if folder is not None:
        _refuse_full_disk(folder.path, 2 * recorder.bytes_left)  # segments, and then trajectory.nc
    return recorder


def _march(
    run: Run,
    prepared: Prepared,
    facts: Facts,
    recorder: Recorder,
    folder: RunFolder | None,
    progress: Progress | None,
) -> Solution:
    """Solves a run from `prepared.state`, the state after `facts.step` steps."""

    def known(march: March) -> Facts:
        return replace(
            facts,
            step=march.step,
            last=march.step,
            diverged=dict(march.diverged),
            seconds=march.seconds,
            evaluate_seconds=march.evaluate_seconds,
            retcode=march.retcode,
        )

    def gathered(facts: Facts) -> xr.Dataset:
        attrs = _attrs(run, prepared, facts)
        size = run.batch.size if run.batch else None
        along = {} if run.grid is None else run.grid.coordinates(run.replicas)
        return to_dataset(recorder, seeds=run.seeds, attrs=attrs, batch=size, along=along)

    def keep(march: March, facts: Facts | None = None) -> None:
        assert folder is not None
        facts = facts or known(march)
        folder.keep(gathered(facts) if recorder.steps else None, facts, march.state)
        recorder.clear()

    with Stop() as stop, threads(facts.setting["threads"]):
        march = March(
            at=(facts.step, prepared.state),
            take=prepared.step,
            scheme=type(run.integrator).__name__,
            h=prepared.system.h,
            bound=run.bound,
            recorder=recorder,
            held_out=prepared.held_out,
            stop=stop,
            progress=progress,
            diverged=dict(facts.diverged),
            due=None if folder is None else lambda: folder.due(run.save.checkpoint),
            keep=None if folder is None else keep,
            fresh=facts.step == 0,
            seconds_before=facts.seconds,
            evaluate_seconds=facts.evaluate_seconds,
        )
        prepared.state = {}  # the march lets go of a state when it has the next
        try:
            march.through()
            facts = known(march)
            facts = replace(facts, message=_message(facts, run, march, folder))
            if folder is None:
                dataset = gathered(facts)
            else:
                folder.log(f"{facts.retcode}: {facts.message}")
                attrs, final = _attrs(run, prepared, facts), final_state(prepared.system, march.state)
                if len(facts.diverged) == len(run.seeds) and not folder.new:
                    facts, march.at = replace(facts, step=folder.facts.step), folder.checkpoint()
                keep(march, facts)
                with stop.joining():
                    folder.finish(facts, march.state, attrs, final)
                dataset = open_run(folder.path)
        except KeyboardInterrupt:
            assert folder is not None
            told = f"{TRAJECTORY} was not finished; 'sdeflow resume {folder.path}' does that"
            facts = replace(facts, retcode="interrupted", message=told)
            dataset = open_run(folder.path)
        except DiskFull as error:
            if folder is None or folder.new:
                raise
            folder.log(f"{error}; acknowledged: step {folder.facts.step:,}")
            raise DiskFull(
                f"{error}. Steps up to {folder.facts.step:,} are safe: make room, then "
                f"'sdeflow resume {folder.path}'"
            ) from error
    if march.error is not None:
        raise RunError(facts.message) from march.error
    return Solution(dataset, march.state, facts.retcode, facts.message)


def _refuse_another(run: Run, facts: Facts, path: Path) -> None:
    """Raises SdeflowError where a run is not the one that a checkpoint is of, or cannot go on from it."""
    before, now = facts.settings, json.loads(json.dumps(run.settings))
    changed = [
        f"{key} was {before.get(key, 'not there')!r} and is {now.get(key, 'not there')!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise SdeflowError(f"{path} is of another run: {'; '.join(changed)}")
    if run.steps < facts.step:
        raise SdeflowError(f"{path} has taken {facts.step:,} steps already, more than {run.steps:,}")
    if len(facts.diverged) == len(run.seeds) and not (facts.ended and facts.steps == run.steps):
        raise SdeflowError(f"{path} diverged, and would again: {_where(facts, run)}")


def _taken_up(facts: Facts, run: Run, damage: str) -> Facts:
    """What is known of a run that goes on; a snapshot taken because it was the last is taken anew."""
    left, parts = facts.snapshots, list[Part]()
    every = run.save.every if run.evaluate is None else run.evaluate.every
    if facts.steps != run.steps and left == len(run.save.steps(facts.steps)) and facts.steps % every:
        left -= 1
    for part in facts.parts:
        count = min(part.snapshots, left)
        left -= count
        if count:
            parts.append(part._replace(snapshots=count))
    found = [damage] if damage else []
    here = setting(run.device, facts.setting["threads"], run.engine)
    for key in sorted(here):
        if here[key] != facts.setting.get(key):
            found.append(
                f"{key} was {facts.setting.get(key)} and is {here[key]}: last digits may differ from those "
                "of a run in one piece"
            )
    for file, digest in run.code.items():
        if facts.code.get(file) != digest:
            found.append(f"{file} has changed since the run began; steps from {facts.step} on are by the new")
    return replace(
        facts,
        steps=run.steps,
        parts=tuple(parts),
        setting=here,
        code=run.code,
        retcode="running",
        message="",
        history=(*facts.history, stamp(f"resumed at step {facts.step}")),
        warnings=(*facts.warnings, *found),
    )


def _attrs(run: Run, prepared: Prepared, facts: Facts) -> dict[str, Any]:
    """What a dataset tells of the run that made it."""
    attrs = {
        "title": run.title or f"{run.integrator.name}, {run.steps} steps",
        **provenance(run.device),
        "history": "\n".join(facts.history),
        "system": str(prepared.system),
        "save": str(run.save),
        "threads": facts.setting["threads"],
        "config": run.config,
        "integrator": run.integrator.name,
        "engine": facts.setting["engine"],
        "noise_source": facts.setting["noise_source"],
        "gradient_evaluations_per_step": run.gradient_evaluations,
        "dtype": str(run.dtype).removeprefix("torch."),
        "seed": run.seed,
        "replicas": len(run.seeds),
        "grid": "" if run.grid is None else str(run.grid),
        "steps": run.steps,
        "steps_taken": facts.last,
        "seconds": round(facts.seconds, 3),
        "evaluate": "" if prepared.held_out is None else prepared.held_out.cost(run.steps),
        "evaluate_seconds": round(facts.evaluate_seconds, 3),
        "warnings": "; ".join(facts.warnings),
        "retcode": facts.retcode,
        "message": facts.message,
    }
    if (batch := run.batch) is not None:
        attrs["batch"] = f"{batch.size} data a step, catch-up {batch.catch_up}, cap {batch.cap}"
    return attrs


def _message(facts: Facts, run: Run, march: March, folder: RunFolder | None) -> str:
    if facts.retcode == "interrupted":
        again = "" if folder is None else f"; 'sdeflow resume {folder.path}' goes on"
        return f"stopped after {facts.step} of {run.steps} steps{again}"
    if march.error is not None:
        kind, what = type(march.error).__name__, march.error
        return f"the run failed after {facts.step} of {run.steps} steps with {kind}: {what}"
    if facts.retcode == "diverged":
        good = "" if folder is None or folder.new else f" The last checkpoint is of step {folder.facts.step}."
        fix = f"Likely fix: a smaller step h, or a more stable integrator than {run.integrator.name}."
        return f"{_where(facts, run)}. {fix}{good}"
    return f"{facts.step} steps"


def _where(facts: Facts, run: Run) -> str:
    """Which replicas diverged, and of a grid at which points; the first NAMED of them."""

    def name(replica: int) -> str:
        at = "" if run.grid is None else f" ({run.grid.told(replica, run.replicas)})"
        return f"replica {replica}{at}"

    lost = list(facts.diverged.items())
    more = len(lost) - NAMED
    return "; ".join(f"{name(r)}: {what}" for r, what in lost[:NAMED]) + (
        f"; and {more} more of {len(run.seeds)} replicas" if more > 0 else ""
    )


def _refuse_full_disk(folder: Path, size: int) -> None:
    """Raises SdeflowError where a folder's disk has no room for so many bytes."""
    if size > (free := free_space(folder)):
        raise SdeflowError(
            f"the trajectory would take {human(size)} of disk until it is finished, and {folder.parent} has "
            f"{human(free)} left: save less often (save.every), of fewer data (save.data) or of fewer "
            "particles (save.particles)"
        )

"""Solving a run: what it starts from, the march through its steps, and what is left of it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

from sdeflow.config.run import Run
from sdeflow.errors import RunError, SdeflowError, StabilityWarning
from sdeflow.simulation.ending import Solution, Stop, _message
from sdeflow.simulation.march import March
from sdeflow.simulation.prepare import Prepared, prepare_to_solve, threads, threads_for
from sdeflow.terminal import Progress, human
from sdeflow.trajectory.checkpoint import Facts
from sdeflow.trajectory.dataset import final_state, to_dataset
from sdeflow.trajectory.durable import DiskFull
from sdeflow.trajectory.folder import TRAJECTORY, RunFolder, open_run, refuse_occupied
from sdeflow.trajectory.provenance import provenance, setting, stamp
from sdeflow.trajectory.record import BUFFER, Recorder
from sdeflow.trajectory.segments import free_space


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
            facts = replace(facts, message=_message(facts, run, march.error, folder))
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


def _refuse_full_disk(folder: Path, size: int) -> None:
    """Raises SdeflowError where a folder's disk has no room for so many bytes."""
    if size > (free := free_space(folder)):
        raise SdeflowError(
            f"the trajectory would take {human(size)} of disk until it is finished, and {folder.parent} has "
            f"{human(free)} left: save less often (save.every), of fewer data (save.data) or of fewer "
            "particles (save.particles)"
        )

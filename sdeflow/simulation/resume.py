"""Going on with a run that is in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import cast

from sdeflow.callbacks.callback import identity
from sdeflow.config.build import build
from sdeflow.config.run import Run
from sdeflow.config.schema import load_config
from sdeflow.engine.engine import resolve_engine
from sdeflow.errors import SdeflowError, is_number, plain
from sdeflow.parallel.ranks import ALONE, Ranks
from sdeflow.simulation.ending import Solution, diverged_where
from sdeflow.simulation.keeper import Keeper
from sdeflow.simulation.memory import require_memory
from sdeflow.simulation.prepare import Prepared, prepare, threads_for
from sdeflow.simulation.solve import environment_of, solve, solve_from
from sdeflow.terminal import Progress
from sdeflow.trajectory.checkpoint import Metadata, Segment
from sdeflow.trajectory.dataset import Contents
from sdeflow.trajectory.folder import RunFolder
from sdeflow.trajectory.layout import CONFIG
from sdeflow.trajectory.opening import open_run
from sdeflow.trajectory.provenance import stamp
from sdeflow.trajectory.segments import observed


def resume(
    folder: str | Path, steps: int = 0, *, progress: Progress | None = None, ranks: Ranks = ALONE
) -> Solution:
    """Goes on with a run that `sdeflow run` made, to where it was to end and `steps` further.

    The trajectory is that of a run in one piece, to the bit on the same machine; schedules over the run's
    steps go over those that it was begun with, and further steps have their last value. One that a callback
    stopped has ended: it goes on where it has further steps, or that callback no longer. Raises SdeflowError
    for what is no run folder, has a writer, diverged, or whose config.toml has changed; Damaged for a file
    that is not what was written.
    """
    path, steps = Path(folder), plain(steps)
    if not is_number(steps, Integral) or steps < 0:
        raise SdeflowError(f"steps must be at least 0, the steps to add, given {steps!r}")

    def declare(meta: Metadata) -> Run:
        if not (path / CONFIG).is_file():
            if "system.use" in meta.settings:
                raise SdeflowError(f"{path} has no {CONFIG}, of which its run was made: put it back")
            raise SdeflowError(
                f"{path} has no {CONFIG}: a run from Python goes on with simulate(..., out=..., resume=True)"
            )
        again = {"run": {"steps": meta.steps + steps, "device": meta.environment["device"]}}
        return build(load_config(path / CONFIG, overrides=[again]), watched=True)

    return resume_from(declare, path, progress=progress, ranks=ranks)


def resume_from(
    declare: Callable[[Metadata], Run],
    out: Path,
    *,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Solution:
    """Goes on with the run in a folder, to the same numbers as in one piece.

    declare   gives the run to go on with, from what its checkpoint knows; its `steps` may be more
    ranks     the processes that share it, which may be another number than before

    One that has taken no step is begun anew, which replaces what is in the folder after the first; but one
    that begins from another run goes on from its checkpoint, as that run may be gone.
    Raises SdeflowError where that is another run, or the run diverged; Damaged, naming the file, where what
    is in the folder is not what was written.
    """
    folder = ranks.lead(lambda: RunFolder.reopen(out))
    try:
        known = None if folder is None else (folder.meta, folder.damage)
        meta, damage = cast("tuple[Metadata, str]", ranks.of_first(known))
        run = _again(declare, meta, out, ranks)
        ended = meta.steps == run.steps and not _goes_on(meta, run)
        if meta.whole and ended:
            opened = Contents({}, {}, {}).dataset if folder is None else partial(open_run, out)
            state = {} if folder is None else folder.state()
            return Solution(opened, state, meta.retcode, meta.message, frozenset(meta.diverged))
        if meta.step == 0 and not meta.ended and run.start is None:
            if folder is not None:
                folder.close()
            return solve(_not_tried(run), out=out, overwrite=True, progress=progress, ranks=ranks)
        ranks.alike(lambda: require_memory(run, folder=True, ranks=ranks))
        prepared = prepare(run, ranks=ranks)
        ranks.alike(lambda: prepared.restore(prepared.sharing.stored(out, meta), meta.step))
        if meta.ended and ended:
            opened = Keeper(run, prepared, folder, taken=meta.snapshots).join(meta)
            return Solution(opened, prepared.state, meta.retcode, meta.message, frozenset(meta.diverged))
        meta = _resumed(meta, run, damage, ranks, threads_for(prepared.state))
        keeper = Keeper(run, prepared, folder, taken=meta.snapshots)
        keeper.require_room()  # before the folder changes
        record = observed(meta.files(folder.path)) if run.callbacks and folder is not None else {}
        with keeper.onlookers(meta, record) as onlookers:
            meta = _reopen(folder, meta, prepared, run)
            return solve_from(run, prepared, meta, keeper, onlookers, progress)
    finally:
        if folder is not None:
            folder.close()


def _reopen(folder: RunFolder | None, meta: Metadata, prepared: Prepared, run: Run) -> Metadata:
    """Makes the folder one of a run under way; gives what its checkpoint knows then.

    One process has the whole state in memory, which a second copy would double.
    """
    ranks = prepared.ranks

    def reopened() -> Metadata:
        assert folder is not None  # as the process that leads has it
        if ranks.several:
            folder.resume(meta, folder.common(), run.toml)
        else:
            folder.resume(replace(meta, shards=()), prepared.state, run.toml)
        folder.log(f"resumed at step {meta.step:,} of {run.steps:,}")
        return folder.meta

    return cast(Metadata, ranks.of_first(ranks.lead(reopened)))


def _again(declare: Callable[[Metadata], Run], meta: Metadata, out: Path, ranks: Ranks) -> Run:
    """The run to go on with; raises SdeflowError where it is another than in the folder."""
    alone = ranks.alike(lambda: replace(declare(meta), begun=meta.begun))
    run = ranks.alike(lambda: alone.shared(ranks))

    def refuse() -> None:
        if run.parallel != alone.parallel:
            raise SdeflowError(
                f"{out} was begun on one process without parallel.strata, and its minibatches are of all "
                "data at once: go on on one process"
            )
        _refuse_another(run, meta, out)

    ranks.alike(refuse)
    return run


def _goes_on(meta: Metadata, run: Run) -> bool:
    """Whether a run that a callback stopped is to go on: where that is no longer among its callbacks."""
    return meta.retcode == "stopped" and meta.stopped not in map(identity, run.callbacks)


def with_engine_of(meta: Metadata, run: Run, engine: str, noise: str) -> Run:
    """The run by the engine and noise source that a checkpoint knows, where 'auto' leaves them open."""
    begun = meta.environment
    same = begun["noise_source"] if noise == "auto" else noise
    kept = engine == "auto" and same == begun["noise_source"]
    return run.with_engine(resolve_engine(begun["engine"] if kept else engine, same, run.device))


def _not_tried(run: Run) -> Run:
    """The run with an engine to fall back on, if it is to be compiled, which nobody has seen succeed."""
    engine = run.engine
    if engine.name != "compiled":
        return run
    return run.with_engine(replace(engine, fallback=resolve_engine("auto", engine.source_name, run.device)))


def _refuse_another(run: Run, meta: Metadata, path: Path) -> None:
    """Raises SdeflowError where a run is not the one that a checkpoint is of, or cannot go on from it."""
    before, now = meta.settings, json.loads(json.dumps(run.settings))
    changed = [
        f"{key} was {before.get(key, 'not there')!r} and is {now.get(key, 'not there')!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise SdeflowError(f"{path} is of another run: {'; '.join(changed)}")
    if run.steps < meta.step:
        raise SdeflowError(f"{path} has taken {meta.step:,} steps already, more than {run.steps:,}")
    if meta.all_diverged(run.all_replicas.count) and not (meta.ended and meta.steps == run.steps):
        raise SdeflowError(f"{path} diverged, and would again: {diverged_where(meta, run)}")


def _resumed(meta: Metadata, run: Run, damage: str, ranks: Ranks, threads: int) -> Metadata:
    """What is known of a run that goes on; a snapshot taken because it was the last is taken anew.

    threads   what the state is worth, on another number of processes than before
    """
    left, segments = meta.snapshots, list[Segment]()
    every = run.save.every if run.evaluate is None else run.evaluate.every
    if meta.steps != run.steps and left == len(run.save.steps(meta.steps)) and meta.steps % every:
        left -= 1
    for segment in meta.segments:
        count = min(segment.snapshots, left)
        left -= count
        if count:
            segments.append(segment._replace(snapshots=count))
    found = [damage] if damage else []
    before = {"processes": 1} | meta.environment
    own = before["threads"] if before["processes"] == ranks.size else threads
    here = environment_of(run, own, ranks)
    for key in sorted(here):
        if here[key] != before.get(key) and not (key == "processes" and run.parallel.fixed):
            found.append(
                f"{key} was {before.get(key)} and is {here[key]}: last digits may differ from "
                "those of a run in one piece"
            )
    for file, digest in run.code.items():
        if meta.code.get(file) != digest:
            found.append(f"{file} has changed since the run began; steps from {meta.step} on are by the new")
    return replace(
        meta,
        steps=run.steps,
        segments=tuple(segments),
        environment=here,
        code=run.code,
        retcode="running",
        message="",
        stopped="",
        history=(*meta.history, stamp(f"resumed at step {meta.step}")),
        warnings=(*meta.warnings, *found),
    )

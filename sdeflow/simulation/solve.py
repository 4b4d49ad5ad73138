"""Solving a run: what it starts from, the loop through its steps, and what is left of it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from sdeflow.config.run import Run
from sdeflow.engine.compiled import NotKept
from sdeflow.engine.engine import BESIDE
from sdeflow.errors import RunError, SdeflowError, StabilityWarning, Uncompilable
from sdeflow.machine import blocks_kept
from sdeflow.model.precision import float32_products
from sdeflow.parallel.ranks import ALONE, Ranks
from sdeflow.simulation.ending import Solution, Stop, ending_message
from sdeflow.simulation.keeper import Keeper
from sdeflow.simulation.memory import require_memory
from sdeflow.simulation.onlookers import Onlookers
from sdeflow.simulation.prepare import Prepared, prepare, threads, threads_for
from sdeflow.simulation.time_loop import TimeLoop
from sdeflow.system.start import Origin, Start
from sdeflow.terminal import Progress
from sdeflow.trajectory.checkpoint import Metadata
from sdeflow.trajectory.claim import refuse_occupied
from sdeflow.trajectory.folder import RunFolder
from sdeflow.trajectory.provenance import environment, stamp
from sdeflow.trajectory.stored import origin_of


def solve(
    run: Run,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Solution:
    """Solves a run from its start, in memory or into a run folder.

    ranks   the processes that share it; all call this, and the one that leads has the folder and what is
            read from it, none the state

    By its engine's fallback where torch cannot compile the step. By a compiled step that is kept, where its
    engine takes one; where none is, another process compiles it beside a long run, for the next one. Raises
    SdeflowError where memory or disk have no room for it, or the run that it begins from does not fit;
    RunError where it could not be carried through, and what was recorded is in the folder then.
    """
    try:
        return _solve_once(run, out, overwrite, progress, ranks)
    except Uncompilable as error:
        if run.engine.fallback is None or ranks.several:
            raise
        run = run.with_engine(replace(run.engine.fallback, why=str(error)))
    return _solve_once(run, out, overwrite, progress, ranks)  # here, where what the other has held is freed


def _solve_once(
    run: Run,
    out: Path | None,
    overwrite: bool,
    progress: Progress | None,
    ranks: Ranks,
) -> Solution:
    """Solves a run by its engine, or by the compiled step that is kept where its engine takes one."""
    if out is not None:
        ranks.lead(lambda: refuse_occupied(out, overwrite))
    ranks.alike(lambda: require_memory(run, folder=out is not None, ranks=ranks))
    start = run.start
    origin = None if start is None else ranks.alike(lambda: _origin(start, out))
    run, prepared = _prepared(run, origin, ranks)
    folder = None
    if out is not None and ranks.leads:
        folder = RunFolder(out, config=run.toml, overwrite=overwrite)
    if prepared.warning and ranks.leads:
        warnings.warn(prepared.warning, StabilityWarning, stacklevel=4)
    meta = Metadata(
        step=0,
        last=0,
        steps=run.steps,
        segments=(),
        settings={} if out is None else run.settings,
        environment=environment_of(run, threads_for(prepared.state), ranks),
        code=run.code,
        history=(stamp("written"),),
        warnings=(prepared.warning,) if prepared.warning else (),
        start={} if origin is None else {**origin.record, "anew": ", ".join(prepared.anew)},
        begun=run.horizon,
    )
    keeper = Keeper(run, prepared, folder)
    keeper.require_room()
    try:
        keeper.log(
            f"{run.title or run.integrator.name}, {run.steps:,} steps, precision {run.precision}, "
            f"{meta.environment}, {run.engine}"
        )
        if origin is not None:
            keeper.log(f"begins from {origin}; anew: {meta.start['anew'] or 'nothing'}")
        for words in keeper.recorder.not_whole:
            keeper.log(words)
        for warning in meta.warnings:
            keeper.log(f"warning: {warning}")
        with keeper.onlookers(meta) as onlookers:
            return solve_from(run, prepared, meta, keeper, onlookers, progress)
    finally:
        if folder is not None:
            folder.close()


def _prepared(run: Run, origin: Origin | None, ranks: Ranks) -> tuple[Run, Prepared]:
    """A run by the engine that takes its steps, and what it needs in memory; all is prepared once."""
    if (kept := run.engine.kept) is None:
        return run, prepare(run, origin, ranks)
    short = kept.fallback or run.engine

    def without(why: str) -> Run:
        return run.with_engine(replace(short, why=f"{short.why}; {why}"))

    if ranks.several:
        own = without("steps that processes share are not kept")
        return own, prepare(own, origin, ranks)
    own = run.with_engine(kept)
    prepared = prepare(own, origin, ranks)
    try:
        prepared.require_kept(beside=run.steps >= BESIDE)
    except NotKept as error:
        own = without(str(error))
        prepared.move_by(own)
    return own, prepared


def _origin(start: Start | Origin, out: Path | None) -> Origin:
    """What a run begins from; raises SdeflowError where the run would be written in its place."""
    if isinstance(start, Start) and out is not None and Path(start.run).resolve() == out.resolve():
        raise SdeflowError(f"{out} is the run that this one begins from: give another --out")
    return origin_of(start)


def solve_from(
    run: Run,
    prepared: Prepared,
    meta: Metadata,
    keeper: Keeper,
    onlookers: Onlookers,
    progress: Progress | None = None,
) -> Solution:
    """Solves a run from `prepared.state`, the state after `meta.step` steps.

    onlookers   its callbacks, which have been told of it
    """
    onlookers.stopped = prepared.ranks.of_first(onlookers.stopped)
    in_full_or_tf32 = float32_products(tf32=run.precision == "tf32")
    with Stop() as stop, threads(meta.environment["threads"]), in_full_or_tf32:
        loop = TimeLoop(run, prepared, meta, keeper, stop, onlookers, progress)
        with blocks_kept():
            loop.to_the_end()
        keeper.wait()
        message = ending_message(loop.meta, run, loop.error, keeper.folder, onlookers.stopped)
        opened, state, meta = keeper.finish(replace(loop.meta, message=message), loop.hand_over(), stop)
    onlookers.retcode = meta.retcode
    if loop.verdict:
        warnings.warn(loop.verdict, StabilityWarning, stacklevel=5)
    if loop.error is not None:
        raise RunError(meta.message) from loop.error
    return Solution(opened, state, meta.retcode, meta.message, frozenset(meta.diverged))


def environment_of(run: Run, threads: int, ranks: Ranks) -> dict[str, str | int]:
    """What the bits of a run depend on besides what it computes."""
    engine = run.engine
    found = environment(run.device, threads, engine=engine.name, noise_source=engine.source_name)
    return found | {"processes": ranks.size}

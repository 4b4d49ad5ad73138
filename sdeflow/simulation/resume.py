"""Going on with a run that is in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sdeflow.config.build import build
from sdeflow.config.run import Run
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.simulation.ending import Solution, _where
from sdeflow.simulation.prepare import Prepared, prepare_to_solve
from sdeflow.simulation.solve import _attrs, _march, _recorder
from sdeflow.terminal import Progress
from sdeflow.trajectory.checkpoint import Facts, Part
from sdeflow.trajectory.dataset import final_state
from sdeflow.trajectory.folder import CONFIG, RunFolder, open_run
from sdeflow.trajectory.provenance import setting, stamp


def resume(folder: str | Path, steps: int = 0, *, progress: Progress | None = None) -> Solution:
    """Goes on with a run that `sdeflow run` made, to where it was to end and `steps` further.

    The trajectory is that of a run in one piece, to the bit on the same machine. Raises SdeflowError for
    what is no run folder, has a writer, diverged, or whose config.toml has changed; Damaged for a file
    that is not what was written.
    """
    path = Path(folder)
    if steps < 0:
        raise SdeflowError(f"steps must be at least 0, the steps to add, given {steps}")

    def declare(facts: Facts) -> Run:
        if not (path / CONFIG).is_file():
            if "system.use" in facts.settings:
                raise SdeflowError(f"{path} has no {CONFIG}, of which its run was made: put it back")
            raise SdeflowError(
                f"{path} has no {CONFIG}: a run from Python goes on with simulate(..., out=..., resume=True)"
            )
        again = {"run": {"steps": facts.steps + steps, "device": facts.setting["device"]}}
        return build(load_config(path / CONFIG, overrides=[again]))

    return go_on(declare, path, progress=progress)


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

"""What is kept of a run is written beside its steps: in order, whole, and told where it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pieces import WHOLE, toy
from small import assert_same

from sdeflow import Save, simulate
from sdeflow.errors import RunError
from sdeflow.integrators.expint import ExpInt
from sdeflow.simulation import memory
from sdeflow.trajectory import checkpoint, durable
from sdeflow.trajectory.folder import RunFolder
from sdeflow.trajectory.writer import Writer

PATIENCE = 5.0
"""Seconds after which a test gives up."""

OFTEN: dict[str, Any] = WHOLE | {"steps": 24}


def test_things_are_done_one_after_the_other() -> None:
    """A second is taken when the first is done, so that no more than one waits."""
    writer, done, go = Writer(), list[int](), threading.Event()
    writer(lambda: done.append(1) if go.wait(PATIENCE) else None)
    assert writer.busy
    threading.Timer(0.05, go.set).start()
    writer(lambda: done.append(2))
    assert done[0] == 1
    writer.close()
    assert done == [1, 2]
    assert not writer.busy


def test_what_failed_is_told_until_somebody_hears() -> None:
    """Nothing is done after it, as that would be without what was lost."""
    writer, done = Writer(), list[int]()
    writer(lambda: [].pop())
    for again in (writer.wait, lambda: writer(lambda: done.append(1)), writer.wait):
        with pytest.raises(IndexError):
            again()
    writer.close()
    assert done == []


class Counts(ExpInt):
    """Counts its steps; changes the state that it is given afterwards, as it should not."""

    name = "expint"

    def __init__(self) -> None:
        self.steps = 0

    def step(self, system: Any, t: Any, z: Any, h: Any, noise: Any) -> Any:
        new = super().step(system, t, z, h, noise)
        for value in z.values():
            value.fill_(torch.nan)
        self.steps += 1
        return new


def wait_for(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return condition()


def in_writer() -> bool:
    return threading.current_thread().name.startswith("sdeflow-writer")


@pytest.fixture
def chunks_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdeflow.simulation.time_loop._CHUNK_SECONDS", 0.0)


@pytest.mark.usefixtures("chunks_of_one")
def test_steps_go_on_while_a_state_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each checkpoint is held up until two more steps are taken, and has the state that it was of."""
    keep, ahead = RunFolder.keep, dict[int, int]()
    scheme = Counts()

    def held_up(self: Any, piece: Any, meta: Any, *rest: Any) -> None:
        if in_writer():
            assert wait_for(lambda: scheme.steps >= min(meta.step + 2, 24))
            ahead[meta.step] = scheme.steps - meta.step
        keep(self, piece, meta, *rest)
        assert checkpoint.decode(self.path / "checkpoint")[0].step == meta.step

    options = OFTEN | {"save": Save(every=4, checkpoint=1e9)}
    monkeypatch.setattr("sdeflow.simulation.keeper.BUFFER", 1)
    monkeypatch.setattr(RunFolder, "keep", held_up)
    found = simulate(toy(), scheme, out=tmp_path / "run", **options)
    assert sorted(ahead) == [4, 8, 12, 16, 20, 24]
    assert all(2 <= ahead[n] <= 4 for n in (4, 8, 12, 16, 20))  # the next snapshot waits for the one before
    monkeypatch.undo()
    assert_same(found, simulate(toy(), "expint", **options))


@pytest.mark.usefixtures("chunks_of_one")
@pytest.mark.parametrize("step", [4, 13])
def test_a_checkpoint_has_the_state_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """To the bit, though it is written when a scheme has written over that state; a run goes on from it."""
    keep, scheme = RunFolder.keep, Counts()

    class Ends(Exception):
        pass

    def late(self: Any, piece: Any, meta: Any, *rest: Any) -> None:
        if meta.step == step:
            assert wait_for(lambda: scheme.steps > step)
        keep(self, piece, meta, *rest)
        if meta.step == step:
            raise Ends

    monkeypatch.setattr(RunFolder, "keep", late)
    with pytest.raises(RunError, match="could not be written: Ends"):
        simulate(toy(), scheme, out=tmp_path / "run", **OFTEN)
    monkeypatch.undo()
    assert checkpoint.peek(tmp_path / "run" / "checkpoint").step == step
    whole = simulate(toy(), "expint", **OFTEN)
    assert_same(simulate(toy(), "expint", out=tmp_path / "run", resume=True, **OFTEN), whole)


@pytest.mark.usefixtures("chunks_of_one")
def test_a_full_disk_is_told_while_steps_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the chunk in which it is met, by the step that is safe, from which the run goes on."""
    write, scheme = durable.write, Counts()

    def full(path: Path, data: Any) -> str:
        if in_writer() and scheme.steps > 8:
            raise durable.DiskFull(f"{path} could not be written: the disk is full")
        return write(path, data)

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(RunError, match=r"the disk is full\. Steps up to [5-9] are safe: make room, then"):
        simulate(toy(), scheme, out=tmp_path / "run", **OFTEN)
    assert scheme.steps <= 12
    monkeypatch.undo()
    assert "the disk is full; acknowledged: step " in (tmp_path / "run" / "run.log").read_text()
    whole = simulate(toy(), "expint", **OFTEN)
    assert_same(simulate(toy(), "expint", out=tmp_path / "run", resume=True, **OFTEN), whole)


def test_where_memory_is_short_steps_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a step and, beside it, three copies of the state is needed."""
    keep, threads = RunFolder.keep, list[bool]()

    def looked(self: Any, *rest: Any) -> None:
        threads.append(in_writer())
        keep(self, *rest)

    monkeypatch.setattr(RunFolder, "keep", looked)
    simulate(toy(), "expint", out=tmp_path / "beside", **WHOLE)
    assert any(threads)
    assert not threads[0]  # the folder is there before the first step
    threads.clear()
    monkeypatch.setattr("sdeflow.simulation.keeper.room_beside", lambda _: False)
    simulate(toy(), "expint", out=tmp_path / "run", **WHOLE)
    assert len(threads) > 2
    assert not any(threads)


def test_room_beside_is_three_states_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from support import declared

    run = declared(toy(), "expint")
    state = 4 * (2 + 2 * 6 * 3)  # theta, m, X and U of six data with three particles, in float32
    needed = memory.peak_bytes(run) - memory.data_bytes(run) + 3 * memory.state_bytes(run)
    assert memory.state_bytes(run) == state
    for more, room in ((0, True), (-1, False)):
        monkeypatch.setattr(memory, "free_memory", lambda more=more: needed + more)
        assert memory.room_beside(run) == room

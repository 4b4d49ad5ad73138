"""Shards of a checkpoint: any number of processes reads its rows of what any other number wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pieces import flip

from sdeflow.errors import RunError
from sdeflow.parallel.shard import Shard
from sdeflow.state import State
from sdeflow.trajectory import checkpoint, durable, shards
from sdeflow.trajectory.checkpoint import Metadata
from sdeflow.trajectory.folder import RunFolder

META = Metadata(step=3, last=3, steps=9, segments=(), settings={}, environment={}, code={})
COMMON = {"theta": torch.arange(4.0).view(2, 2), "step": torch.tensor(7)}


def rows(data: int = 11, scale: float = 1.0) -> State:
    x = scale * torch.arange(2.0 * data * 3, dtype=torch.float64).view(2, data, 3)
    return {"X": x, "visited": x[..., 0].to(torch.int64)}


def cut(state: State, size: int) -> list[State]:
    data = state["X"].shape[1]
    return [{k: v[:, Shard.of(data, r, size).rows] for k, v in state.items()} for r in range(size)]


def written(root: Path, state: State, size: int, step: int = 3) -> Metadata:
    files = [shards.write(root, step, rank, own) for rank, own in enumerate(cut(state, size))]
    return Metadata(**{**vars(META), "step": step, "shards": tuple(files)})


@pytest.mark.parametrize("wrote", [1, 2, 3, 11])
@pytest.mark.parametrize("reads", [1, 2, 3, 4, 11])
def test_rows_are_read_by_any_number_of_processes(tmp_path: Path, wrote: int, reads: int) -> None:
    state, file = rows(), tmp_path / "checkpoint"
    meta = written(tmp_path, state, wrote)
    durable.write(file, checkpoint.encode(meta, COMMON))
    alone = tmp_path / "alone"
    durable.write(alone, checkpoint.encode(META, state | COMMON))
    for rank in range(reads):
        own = Shard.of(11, rank, reads).rows
        for path, about in ((file, checkpoint.peek(file)), (alone, META)):
            found = shards.load(path, about, {"X": own, "visited": own})
            assert found.keys() == {*COMMON, *state}
            for name, value in (COMMON | {k: v[:, own] for k, v in state.items()}).items():
                assert found[name].dtype == value.dtype
                assert torch.equal(found[name], value), name
                assert found[name].is_contiguous(), "products round by how their factors lie in memory"
    assert torch.equal(shards.load(file, meta, {})["X"], state["X"])


def test_only_what_no_checkpoint_names_goes(tmp_path: Path) -> None:
    """Two checkpoints of one step, of other processes or content, do not share a file."""
    one, other, more = written(tmp_path, rows(), 2), written(tmp_path, rows(), 3), rows(scale=2.0)
    again = written(tmp_path, more, 2)
    files = {s.file for meta in (one, other, again) for s in meta.shards}
    assert len(files) == 7
    shards.drop(tmp_path, (*one.shards, *again.shards))
    assert torch.equal(shards.read(tmp_path, one.shards, {})["X"], rows()["X"])
    assert torch.equal(shards.read(tmp_path, again.shards, {})["X"], more["X"])
    with pytest.raises(RunError, match="cannot be read by this process"):
        shards.read(tmp_path, other.shards, {})
    with pytest.raises(RunError, match=r"process 1 does not see .*away: a run folder lies on a disk"):
        shards.write(tmp_path / "away", 3, 1, rows())


def test_a_damaged_shard_gives_way_to_the_checkpoint_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for step in (1, 2, 3):
        folder.keep(None, written(folder.begin(), rows(scale=step), 2, step), COMMON)
    folder.close()
    there = {path.name[:15] for path in (tmp_path / "run/shards").iterdir()}
    assert there == {f"{step:015d}" for step in (2, 3)}, "of the two checkpoints alone"
    newest = tmp_path / "run" / folder.meta.shards[1].file
    for step in (3, 2):
        again = RunFolder.reopen(tmp_path / "run")
        assert again.meta.step == step
        assert torch.equal(again.state()["X"], rows(scale=step)["X"])
        assert bool(again.damage) == (step == 2)
        again.close()
        if step == 3:
            flip(newest, 0.9)
    assert not newest.exists()


def test_what_was_begun_and_came_to_nothing_goes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    written(folder.begin(), rows(), 2)
    assert [*tmp_path.iterdir()] == [folder.begin()]
    folder.close()
    assert [*tmp_path.iterdir()] == []

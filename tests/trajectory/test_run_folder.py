"""A run's folder: damage in it is named, an unfinished one can be read, and files are whole or absent."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
from commands import contents
from pieces import STEPS, WHOLE, flip, toy
from small import assert_same

from sdeflow import Grid, Save, open_run, simulate
from sdeflow.errors import RunError, SdeflowError
from sdeflow.integrators.expint import ExpInt
from sdeflow.trajectory import checkpoint, segments
from sdeflow.trajectory.checkpoint import Damaged
from sdeflow.trajectory.dataset import Contents
from sdeflow.trajectory.folder import RunFolder


@pytest.mark.parametrize("options", [{}, {"replicas": 2}, {"grid": Grid(gamma=[0.1, 0.2])}])
def test_a_segment_is_the_file_that_xarray_would_write(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its conventions for coordinates, text, logical values and values that are missing."""
    written, encode = [], segments.encode

    def both(contents: Contents) -> memoryview:
        written.append((bytes(encode(contents)), bytes(segments.encode_dataset(contents.dataset()))))
        return encode(contents)

    monkeypatch.setattr(segments, "encode", both)
    observables = {"near": lambda theta, x, y: x.mean() > 0, "count": lambda theta, x, y: torch.tensor(3)}
    simulate(toy(), "expint", steps=4, observables=observables, out=tmp_path / "run", **options)
    assert len(written) == 2
    for pair in written:
        own, expected = (laid_out(netCDF4.Dataset("segment.nc", memory=file)) for file in pair)
        assert own == expected


def laid_out(file: netCDF4.Dataset) -> dict[str, Any]:
    """All that a netCDF file holds."""
    file.set_auto_maskandscale(False)
    found: dict[str, Any] = {name: len(dim) for name, dim in file.dimensions.items()}
    for name, one in {"": file, **file.variables}.items():
        found[f"{name}:"] = {key: repr(one.getncattr(key)) for key in one.ncattrs()}
    for name, one in file.variables.items():
        found[f"{name}="] = one.dimensions, one.dtype, np.asarray(one[...]).tobytes()
    return found


def test_one_run_has_one_writer(tmp_path: Path) -> None:
    out = tmp_path / "run"
    simulate(toy(), "expint", out=out, **WHOLE)
    folder = RunFolder.reopen(out)
    options = WHOLE | {"steps": 20}
    with pytest.raises(RunError, match="is being written by another sdeflow"):
        simulate(toy(), "expint", out=out, resume=True, **options)
    with pytest.raises(RunError, match="is being written by another sdeflow"):
        simulate(toy(), "expint", out=out, overwrite=True, **options)
    folder.close()
    assert open_run(out).attrs["steps_taken"] == STEPS
    simulate(toy(), "expint", out=out, resume=True, **options)


@pytest.mark.parametrize("at", [0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    stop_before: Any, tmp_path: Path, at: float
) -> None:
    whole, out = simulate(toy(), "expint", **WHOLE), tmp_path / "run"
    stop_before(8)
    with pytest.raises(KeyboardInterrupt):
        simulate(toy(), "expint", out=out, **WHOLE)
    stop_before(None)
    flip(out / "checkpoint", at)
    pieces = simulate(toy(), "expint", out=out, resume=True, **WHOLE)
    assert_same(pieces, whole)
    assert f"{out / 'checkpoint'} is damaged" in pieces.attrs["warnings"]
    assert "going on from checkpoint.prev" in (out / "run.log").read_text()
    assert (out / "checkpoint.damaged").exists()


def test_files_that_are_damaged_beyond_that_are_named(stop_before: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    simulate(toy(), "expint", out=out, **WHOLE)
    flip(out / "trajectory.nc", 0.7)
    before = (out / "trajectory.nc").read_bytes()
    with pytest.raises(Damaged, match=r"trajectory\.nc is damaged"):
        simulate(toy(), "expint", out=out, resume=True, **(WHOLE | {"steps": 20}))
    assert (out / "trajectory.nc").read_bytes() == before
    (out / "trajectory.nc").unlink()
    with pytest.raises(Damaged, match=r"trajectory\.nc cannot be read: No such file"):
        simulate(toy(), "expint", out=out, resume=True, **(WHOLE | {"steps": 20}))
    for name in ("checkpoint", "checkpoint.prev"):
        (out / name).write_bytes(b"")
    with pytest.raises(Damaged, match=r"checkpoint is damaged.*checkpoint\.prev is damaged"):
        simulate(toy(), "expint", out=out, resume=True, **(WHOLE | {"steps": 20}))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "exploded"),)

    simulate(toy(), "expint", out=tmp_path / "run", **WHOLE)
    for name in ("checkpoint", "checkpoint.prev"):
        (tmp_path / "run" / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(Damaged):
        simulate(toy(), "expint", out=tmp_path / "run", resume=True, **WHOLE)
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    simulate(toy(), "expint", out=tmp_path / "run", **WHOLE)
    monkeypatch.undo()
    with pytest.raises(RunError, match="has the format 99 of another sdeflow; this one reads format 1"):
        simulate(toy(), "expint", out=tmp_path / "run", resume=True, **WHOLE)


def test_an_unfinished_run_can_be_opened(
    stop_before: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its whole segments, lazily, and like the finished one in every selection."""
    out, options = tmp_path / "run", WHOLE | {"steps": 40, "replicas": 2}
    keep, opened = RunFolder.keep, []

    def keep_and_look(self: Any, *args: Any) -> None:
        keep(self, *args)
        with open_run(self.path) as dataset:
            if "loss" in dataset:
                opened.append((dataset.sizes["time"], dataset.attrs["retcode"], dataset.X[-1].values))

    monkeypatch.setattr("sdeflow.simulation.time_loop._CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(RunFolder, "keep", keep_and_look)
    whole = simulate(toy(), "expint", out=out, **options).load()
    assert len(opened) > 20
    assert opened[5][1] == "running"
    for snapshots, _, x in opened:
        np.testing.assert_array_equal(x, whole.X[snapshots - 1])


def test_selections_of_an_unfinished_run(
    stop_before: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdeflow.simulation.time_loop._CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(RunFolder, "finish", lambda *_: None)
    out, options = tmp_path / "run", WHOLE | {"steps": 40}
    simulate(toy(), "expint", out=out, **options)
    whole = simulate(toy(), "expint", **options)
    assert not (out / "trajectory.nc").exists()
    assert len(list((out / "segments").iterdir())) > 5
    with open_run(out) as run:
        assert_same(run, whole)
        for at in (3, -1, slice(2, 9), slice(None, None, 3), slice(11, 2, -2), slice(4, 4), [7, 1, 1], []):
            xr.testing.assert_equal(run.isel(time=at), whole.isel(time=at))
        xr.testing.assert_equal(run.X.isel(particle=1, datum=[0, 3]), whole.X.isel(particle=1, datum=[0, 3]))
        xr.testing.assert_equal(run.sel(time=whole.time[4]), whole.isel(time=4))
        xr.testing.assert_equal(run.mean("time"), whole.mean("time"))
    with pytest.raises(SdeflowError, match="is no run folder"):
        open_run(tmp_path)


def test_values_that_were_not_written_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joining compares what it wrote; here the disk is made to lie in the second reading."""
    from sdeflow.trajectory import segments

    slabs, calls = segments._slabs, []

    def lying(files: Any) -> Any:
        calls.append(1)
        for name, at, values in slabs(files):
            yield name, at, values + 1 if len(calls) == 2 and name == "loss" else values

    monkeypatch.setattr(segments, "_slabs", lying)
    with pytest.raises(RunError, match="does not hold the loss that was written to it"):
        simulate(toy(), "expint", out=tmp_path / "run", **WHOLE)
    assert not (tmp_path / "run" / "trajectory.nc").exists()
    assert list((tmp_path / "run" / "segments").iterdir())


def test_a_checkpoint_that_is_damaged_is_no_traceback_to_a_reader(tmp_path: Path) -> None:
    out = tmp_path / "run"
    simulate(toy(), "expint", out=out, **WHOLE)
    (out / "trajectory.nc").unlink()
    whole = (out / "checkpoint").read_bytes()
    (out / "checkpoint.prev").unlink()
    for at in range(0, len(whole), 61):
        data = bytearray(whole)
        data[at] ^= 1
        (out / "checkpoint").write_bytes(data)
        with suppress(SdeflowError):
            open_run(out)


def test_a_dataset_opened_before_the_end_reads_on_after_it(
    stop_before: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdeflow.simulation.time_loop._CHUNK_SECONDS", 0.0)
    finish = RunFolder.finish
    monkeypatch.setattr(RunFolder, "finish", lambda *_: None)
    out, options = tmp_path / "run", WHOLE | {"steps": 40}
    simulate(toy(), "expint", out=out, **options)
    with xr.set_options(file_cache_maxsize=1), open_run(out) as run:
        monkeypatch.setattr(RunFolder, "finish", finish)
        whole = simulate(toy(), "expint", out=out, resume=True, **options)
        assert not (out / "segments").exists()
        assert_same(run, whole)


def test_what_a_killed_beginning_left_is_removed(tmp_path: Path) -> None:
    for pid in (os.getpid(), 1):
        (tmp_path / f".run.partial-{pid}" / "segments").mkdir(parents=True)
    (tmp_path / ".running.partial-1").mkdir()
    simulate(toy(), "expint", out=tmp_path / "run", **WHOLE)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".running.partial-1", "run"]


class FailsAtFirst(ExpInt):
    """Its first step looks and then fails, as a user's mistake would."""

    name = "expint"

    def __init__(self, look: Callable[[], Any]) -> None:
        self.look = look

    def step(self, *_: Any) -> Any:
        self.look()
        raise ValueError("no step")


def test_a_first_step_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """Nothing, or a run that was to be overwritten, or one that was killed before its first step."""
    options = WHOLE | {"steps": 20}
    new, killed, old = tmp_path / "new", tmp_path / "killed", tmp_path / "old"

    def fails(look: Callable[[], Any], **where: Any) -> None:
        with pytest.raises(SdeflowError, match="step fails with ValueError: no step"):
            simulate(toy(), FailsAtFirst(look), **where, **options)

    def untouched(out: Path, **how: Any) -> None:
        before, during = contents(out), list[Any]()
        fails(lambda: during.append(contents(out)), out=out, **how)
        assert during == [before]
        assert contents(out) == before

    fails(lambda: shutil.copytree(new, killed), out=new)
    assert [path.name for path in tmp_path.iterdir()] == ["killed"]
    assert open_run(killed).step.values.tolist() == [0]

    simulate(toy(), "expint", out=old, **WHOLE)
    untouched(old, overwrite=True)
    untouched(killed, resume=True)
    assert_same(
        simulate(toy(), "expint", out=killed, resume=True, **options), simulate(toy(), "expint", **options)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "old"]


def test_a_run_that_overwrites_has_room_for_every_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps nothing before its first step, though its buffer holds one snapshot."""
    monkeypatch.setattr("sdeflow.simulation.keeper.BUFFER", 1)
    options = WHOLE | {"save": Save(every=1, checkpoint=1e9)}
    simulate(toy(), "expint", out=tmp_path / "run", **WHOLE)
    run = simulate(toy(), "expint", out=tmp_path / "run", overwrite=True, **options)
    assert_same(run, simulate(toy(), "expint", **options))


def test_files_are_synced_before_they_get_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file that appears in a run folder was synced under its other name, and its folder after."""
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        calls.append(("sync", os.path.realpath(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def replaced(path: Path, target: Path) -> Path:
        calls.append(("rename", f"{path.resolve()} {target}"))
        return replace(path, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("names of open files are read from /proc")
    monkeypatch.setattr("sdeflow.trajectory.durable.os.fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    simulate(toy(), "expint", out=tmp_path / "run", **WHOLE)
    renames = [i for i, (kind, _) in enumerate(calls) if kind == "rename"]
    assert len(renames) > 8
    for i in renames:
        source, target = calls[i][1].split()
        if Path(target).name == "checkpoint.prev":
            continue  # it was synced when it was the checkpoint
        before = [what for kind, what in calls[:i] if kind == "sync"]
        assert any(Path(what).name in (Path(source).name, f".{Path(source).name}.tmp") for what in before)
        assert any(
            what == str(Path(target).parent.resolve()) for kind, what in calls[i + 1 :] if kind == "sync"
        )


def test_a_trajectory_cut_short_is_named(tmp_path: Path) -> None:
    out = tmp_path / "run"
    simulate(toy(), "expint", out=out, **WHOLE)
    whole = (out / "trajectory.nc").read_bytes()
    for length in (0, 3000, len(whole) // 2):
        (out / "trajectory.nc").write_bytes(whole[:length])
        with pytest.raises(Damaged, match=r"trajectory\.nc cannot be read"):
            open_run(out)


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for out in (tmp_path / "a", tmp_path / "a" / "run"):
        with pytest.raises(
            SdeflowError, match="cannot be the name of a folder: Too many levels of symbolic links"
        ):
            simulate(toy(), "expint", out=out, **WHOLE)


def test_a_checkpoint_that_its_writer_replaces_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may go between the look whether it is there and its opening."""
    path = tmp_path / "checkpoint"
    path.write_bytes(b"whatever")

    def gone(*_: object, **__: object) -> None:
        path.unlink()
        raise RuntimeError("unable to open file")

    monkeypatch.setattr(checkpoint, "safe_open", gone)
    with pytest.raises(FileNotFoundError):
        checkpoint.peek(path)

"""A run on disk: a folder that loses no acknowledged step, whatever ends the process that writes it.

A step is acknowledged when a checkpoint that covers it has its name. Files are written under another
name, synced and renamed (sdeflow.trajectory.durable), so each is there whole or not at all.
"""

from __future__ import annotations

import glob
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
from safetensors.torch import save

from sdeflow.errors import RunError, SdeflowError
from sdeflow.state import State
from sdeflow.trajectory import checkpoint, durable, segments, shards
from sdeflow.trajectory.checkpoint import Damaged, Metadata, Segment, Shard
from sdeflow.trajectory.claim import locked, refuse_occupied
from sdeflow.trajectory.layout import (
    CHECKPOINT,
    CONFIG,
    FINAL,
    KEPT,
    LOG,
    PREVIOUS,
    SEGMENTS,
    TRAJECTORY,
    kept_file,
    kept_files,
)
from sdeflow.trajectory.segments import Piece
from sdeflow.trajectory.writer import Writer


class RunFolder:
    """The one writer of a run folder. Made on disk by the first `keep`, or reopened.

    kept     what the newest checkpoint knows, None before there is one
    damage   what was found damaged in reopening, '' for nothing
    writer   what `keep` may be left to, but for the first
    """

    def __init__(self, path: Path, *, config: str = "", overwrite: bool = False) -> None:
        self.path = path.resolve()
        self.kept: Metadata | None = None
        self._config, self._overwrite = config, overwrite
        self._lock: filelock.BaseFileLock | None = None
        self._began = self._last = time.monotonic()
        self._cost = 0.0
        self._writing: float | None = None  # since when files are written for the next checkpoint
        self._made = False
        self._lines: list[str] = []
        self.damage = ""
        self.writer = Writer()

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Goes on with a run where its newest sound checkpoint left it; what that does not cover is removed.

        Raises SdeflowError for what is no run folder or has a writer, Damaged where neither checkpoint and
        the files that it covers are sound.
        """
        if not path.is_dir() or not any((path / name).exists() for name in (CHECKPOINT, PREVIOUS)):
            raise SdeflowError(f"{path} has no checkpoint: give the folder of a run that 'sdeflow run' made")
        folder = cls(path)
        folder._lock = locked(folder.path)
        try:
            folder.kept = folder._sound()
            folder._drop_strays()
        except BaseException:
            folder.close()
            raise
        return folder

    @property
    def new(self) -> bool:
        """Whether nothing has been kept yet."""
        return self.kept is None

    @property
    def meta(self) -> Metadata:
        """What the newest checkpoint knows."""
        assert self.kept is not None
        return self.kept

    def state(self) -> State:
        """The newest checkpoint's, of all processes."""
        return shards.load(self.path / CHECKPOINT, self.meta, {})

    def common(self) -> State:
        """What its own file has of it: all, but for what its shards have."""
        return checkpoint.decode(self.path / CHECKPOINT)[1]

    # Writing ---------------------------------------------------------------------------------------

    def due(self, least: float) -> bool:
        """Whether a checkpoint is due: at once, then after `least` seconds, or later in a long run.

        Not while one is being written, unless after every chunk there is to be one.
        """
        now = time.monotonic()
        wait = max(least, min((now - self._began) / 200, 300.0), 20 * self._cost)
        return self.new or least == 0 or (not self.writer.busy and now - self._last >= wait)

    def begin(self) -> Path:
        """Where files go that the next checkpoint is to name: the folder, or what becomes it.

        What is written there counts among what the checkpoint costs. Raises SdeflowError where it may not be
        written, RunError where the disk does not take it.
        """
        self._writing = time.monotonic()
        if self.kept is not None:
            return self.path
        if self._lock is None:
            refuse_occupied(self.path, self._overwrite)
            self._remove_partial()
            try:
                (self._partial / SEGMENTS).mkdir(parents=True)
                self._lock = locked(self._partial)
                if self._config:
                    durable.write(self._partial / CONFIG, self._config.encode())
            except OSError as error:
                raise durable.refusal(self.path, error) from error
        return self._partial

    def keep(self, piece: Piece | None, meta: Metadata, state: State, kept: State | None = None) -> None:
        """Puts snapshots since the last call and a checkpoint on the disk; then `meta.step` is acknowledged.

        kept   the parameters of a moment, for a file of their own, a checkpoint of them alone

        `meta.segments` is filled in here. Raises RunError where the disk does not take it; what was
        acknowledged before is intact.
        """
        began, self._writing = self._writing or time.monotonic(), None
        if self.kept is None:
            self._make(piece, meta, state, kept)
            self._flush()
        else:
            self._put(self.path, piece, replace(meta, segments=self.kept.segments), state, kept)
        self._last = time.monotonic()
        self._cost, self._writing = self._last - began, None

    def finish(self, meta: Metadata, state: State, attrs: Mapping[str, Any], final: State | None) -> None:
        """Joins the segments of a run that was kept to its end; writes final.safetensors and trajectory.nc.

        A run that is killed in here, or for which the disk has no room, can be finished later, where `final`
        may be None: a run that diverged has its last state in the file alone.
        """
        if final is not None:
            about = {key: str(attrs[key]) for key in ("seed", "steps_taken", "retcode")}
            durable.write(self.path / FINAL, save(final, metadata={"format": "pt", **about}))
        target = self.path / TRAJECTORY
        temporary = durable.temporary_name(target)
        try:
            segments.join(self.meta.files(self.path), temporary, attrs)
            durable.publish(temporary, target)
        except (OSError, RuntimeError) as error:
            raise durable.refusal(target, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        whole = (Segment(TRAJECTORY, durable.checksum(target), self.meta.snapshots),)
        self._cover(replace(meta, segments=whole), state)
        shutil.rmtree(self.path / SEGMENTS, ignore_errors=True)

    def resume(self, meta: Metadata, state: State, config: str) -> None:
        """Makes a run that was reopened one that is under way: segments, no trajectory.nc, more steps."""
        (self.path / SEGMENTS).mkdir(exist_ok=True)
        listed = tuple(self._as_segment(s) if s.file == TRAJECTORY else s for s in meta.segments)
        if (self.path / TRAJECTORY).exists():
            self._cover(replace(meta, segments=listed), state)
        else:
            self._checkpoint(self.path, replace(meta, segments=listed), state)
        if config:
            durable.write(self.path / CONFIG, config.encode())
        (self.path / TRAJECTORY).unlink(missing_ok=True)

    def _as_segment(self, trajectory: Segment) -> Segment:
        """A copy of trajectory.nc as the first segment; HDF5 can crash on one file open under two names."""
        first = self.path / SEGMENTS / "000000.nc"
        temporary = durable.temporary_name(first)
        try:
            shutil.copyfile(self.path / TRAJECTORY, temporary)
            durable.publish(temporary, first)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise durable.refusal(first, error) from error
        return trajectory._replace(file=f"{SEGMENTS}/{first.name}")

    def log(self, line: str) -> None:
        """Adds a line to run.log, with the time; a run goes on where that fails."""
        self._lines.append(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")
        if self.kept is not None:
            self._flush()

    def _flush(self) -> None:
        with suppress(OSError), (self.path / LOG).open("a", encoding="utf-8") as file:
            file.writelines(self._lines)
            self._lines.clear()

    def close(self) -> None:
        """Lets others write, once what is being written is; what was begun without a checkpoint goes."""
        self.writer.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self.kept is None:
            shutil.rmtree(self._partial, ignore_errors=True)

    def _make(self, piece: Piece | None, meta: Metadata, state: State, kept: State | None) -> None:
        """The folder appears under its name with a first checkpoint in it."""
        partial, old = self.begin(), self.path.with_name(f".{self.path.name}.old-{os.getpid()}")
        try:
            self._put(partial, piece, replace(meta, segments=()), state, kept)
            if self.path.exists():
                replaced = locked(self.path)
                self.path.rename(old)
                try:
                    partial.rename(self.path)
                except OSError:
                    old.rename(self.path)
                    raise
                finally:
                    replaced.release()
            else:
                partial.rename(self.path)
            durable.sync_folder(self.path.parent)
            self._made = True
        except OSError as error:
            self.kept = None
            raise durable.refusal(self.path, error) from error
        except BaseException:
            self.kept = None
            raise
        finally:
            if self.kept is None:
                self.close()
            shutil.rmtree(old, ignore_errors=True)

    def withdraw(self) -> None:
        """Removes the folder if it was made here; one that was reopened stays as it is."""
        if self._made:
            self.close()
            with suppress(OSError):
                self.path.rename(self._partial)  # so that it is there whole or not at all
            shutil.rmtree(self._partial, ignore_errors=True)
            self.kept, self._made = None, False

    @property
    def _partial(self) -> Path:
        return self.path.with_name(f".{self.path.name}.partial-{os.getpid()}")

    def _remove_partial(self) -> None:
        """Removes what runs that were killed before their first checkpoint have left under this name."""
        for partial in self.path.parent.glob(f".{glob.escape(self.path.name)}.partial-*"):
            with suppress(RunError):  # one that is locked is being made
                locked(partial).release()
                shutil.rmtree(partial, ignore_errors=True)

    def _put(self, root: Path, piece: Piece | None, meta: Metadata, state: State, kept: State | None) -> None:
        listed = meta.segments
        if piece is not None:
            number = 1 + max((int(Path(s.file).stem) for s in listed), default=0)
            file = f"{SEGMENTS}/{number:06d}.nc"
            digest = durable.write(root / file, piece.data)
            listed = (*listed, Segment(file, digest, piece.snapshots))
        if kept is not None:  # before the checkpoint, so that no step after it is acknowledged without
            (root / KEPT).mkdir(exist_ok=True)
            durable.write(root / kept_file(meta.step), checkpoint.encode(replace(meta, shards=()), kept))
        self._checkpoint(root, replace(meta, segments=listed), state)

    def _cover(self, meta: Metadata, state: State) -> None:
        """Writes both checkpoints, so that neither names a file that goes next."""
        for _ in (CHECKPOINT, PREVIOUS):
            self._checkpoint(self.path, meta, state)

    def _checkpoint(self, root: Path, meta: Metadata, state: State) -> None:
        """Writes the checkpoint; the one before becomes checkpoint.prev."""
        newest, temporary = root / CHECKPOINT, root / f".{CHECKPOINT}.next"
        before = () if self.kept is None else self.kept.shards
        durable.write(temporary, checkpoint.encode(meta, state))
        try:
            if newest.exists():
                newest.replace(root / PREVIOUS)
            temporary.replace(newest)
            durable.sync_folder(root)
        except OSError as error:
            raise durable.refusal(newest, error) from error
        self.kept = meta
        shards.drop(root, (*before, *meta.shards))

    # Reopening -----------------------------------------------------------------------------------

    def _sound(self) -> Metadata:
        """The newest checkpoint that is sound with all that it covers; a damaged newer one is set aside."""
        reasons = []
        for name in (CHECKPOINT, PREVIOUS):
            try:
                meta, _ = checkpoint.decode(self.path / name)
                covered: list[Segment | Shard] = [*meta.segments, *meta.shards]
                for one in covered:
                    _verify(self.path / one.file, one.sha256)
            except FileNotFoundError:
                continue
            except Damaged as error:
                reasons.append(str(error))
                continue
            self.kept = meta
            if name == PREVIOUS:
                if reasons:
                    self.log(f"{reasons[0]}; going on from {PREVIOUS}, step {meta.step}")
                    (self.path / CHECKPOINT).replace(self.path / f"{CHECKPOINT}.damaged")
                (self.path / PREVIOUS).replace(self.path / CHECKPOINT)
            self.damage = reasons[0] if reasons else ""
            return meta
        raise Damaged("; ".join(dict.fromkeys(reasons)))

    def _drop_strays(self) -> None:
        covered = {self.path / segment.file for segment in self.meta.segments}
        covered |= {path for step, path in kept_files(self.path).items() if step <= self.meta.step}
        for pattern in (f"{SEGMENTS}/*", f"{SEGMENTS}/.*", f"{KEPT}/*", f"{KEPT}/.*", ".*.tmp", ".*.next"):
            for path in set(self.path.glob(pattern)) - covered:
                path.unlink()
        shards.drop(self.path, (*self.meta.shards, *self._shards_before()))
        if self.meta.whole:
            shutil.rmtree(self.path / SEGMENTS, ignore_errors=True)

    def _shards_before(self) -> tuple[Shard, ...]:
        """What the checkpoint before the newest names."""
        try:
            return checkpoint.peek(self.path / PREVIOUS).shards
        except (FileNotFoundError, Damaged):
            return ()


def _verify(path: Path, digest: str) -> None:
    try:
        sound = durable.checksum(path) == digest
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from error
    if not sound:
        raise Damaged(f"{path} is damaged: its content does not fit its checksum")

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
import xarray as xr
from safetensors.torch import save

from sdeflow.errors import RunError, SdeflowError
from sdeflow.state import State
from sdeflow.trajectory import checkpoint, durable, segments
from sdeflow.trajectory.checkpoint import Damaged, Metadata, Segment
from sdeflow.trajectory.layout import (
    CHECKPOINT,
    CONFIG,
    FINAL,
    KEPT,
    LOCK,
    LOG,
    PREVIOUS,
    SEGMENTS,
    TRAJECTORY,
    kept_file,
    kept_files,
    resuming,
)

Snapshots = xr.Dataset | None


class RunFolder:
    """The one writer of a run folder. Made on disk by the first `keep`, or reopened.

    kept     what the newest checkpoint knows, None before there is one
    damage   what was found damaged in reopening, '' for nothing
    """

    def __init__(self, path: Path, *, config: str = "", overwrite: bool = False) -> None:
        self.path = path.resolve()
        self.kept: Metadata | None = None
        self._config, self._overwrite = config, overwrite
        self._lock: filelock.BaseFileLock | None = None
        self._began = self._last = time.monotonic()
        self._cost = 0.0
        self._made = False
        self._lines: list[str] = []
        self.damage = ""

    @classmethod
    def reopen(cls, path: Path) -> tuple[RunFolder, State]:
        """Goes on with a run where its newest sound checkpoint left it; what that does not cover is removed.

        Raises SdeflowError for what is no run folder or has a writer, Damaged where neither checkpoint and
        the files that it covers are sound.
        """
        if not path.is_dir() or not any((path / name).exists() for name in (CHECKPOINT, PREVIOUS)):
            raise SdeflowError(f"{path} has no checkpoint: give the folder of a run that 'sdeflow run' made")
        folder = cls(path)
        folder._lock = _locked(folder.path)
        try:
            folder.kept, state = folder._sound()
            folder._drop_strays()
        except BaseException:
            folder.close()
            raise
        return folder, state

    @property
    def new(self) -> bool:
        """Whether nothing has been kept yet."""
        return self.kept is None

    @property
    def meta(self) -> Metadata:
        """What the newest checkpoint knows."""
        assert self.kept is not None
        return self.kept

    def checkpoint(self) -> tuple[int, State]:
        """The newest checkpoint's step and state."""
        meta, state = checkpoint.decode(self.path / CHECKPOINT)
        return meta.step, state

    # Writing ---------------------------------------------------------------------------------------

    def due(self, least: float) -> bool:
        """Whether a checkpoint is due: at once, then after `least` seconds, or later in a long run."""
        now = time.monotonic()
        wait = max(least, min((now - self._began) / 200, 300.0), 20 * self._cost)
        return self.new or least == 0 or now - self._last >= wait

    def keep(self, dataset: Snapshots, meta: Metadata, state: State, kept: State | None = None) -> None:
        """Puts snapshots since the last call and a checkpoint on the disk; then `meta.step` is acknowledged.

        kept   the parameters of a moment, for a file of their own, a checkpoint of them alone

        `meta.segments` is filled in here. Raises RunError where the disk does not take it; what was
        acknowledged before is intact.
        """
        began = time.monotonic()
        if self.kept is None:
            self._make(dataset, meta, state, kept)
            self._flush()
        else:
            self._put(self.path, dataset, replace(meta, segments=self.kept.segments), state, kept)
        self._last = time.monotonic()
        self._cost = self._last - began

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
        """Lets others write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _make(self, dataset: Snapshots, meta: Metadata, state: State, kept: State | None) -> None:
        """The folder appears under its name with a first checkpoint in it."""
        refuse_occupied(self.path, self._overwrite)
        partial = self._partial
        old = self.path.with_name(f".{self.path.name}.old-{os.getpid()}")
        self._remove_partial()
        try:
            (partial / SEGMENTS).mkdir(parents=True)
            self._lock = _locked(partial)
            if self._config:
                durable.write(partial / CONFIG, self._config.encode())
            self._put(partial, dataset, replace(meta, segments=()), state, kept)
            if self.path.exists():
                replaced = _locked(self.path)
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
            shutil.rmtree(partial, ignore_errors=True)
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
                _locked(partial).release()
                shutil.rmtree(partial, ignore_errors=True)

    def _put(self, root: Path, dataset: Snapshots, meta: Metadata, state: State, kept: State | None) -> None:
        listed = meta.segments
        if dataset is not None:
            number = 1 + max((int(Path(s.file).stem) for s in listed), default=0)
            file = f"{SEGMENTS}/{number:06d}.nc"
            digest = durable.write(root / file, segments.encode(dataset))
            listed = (*listed, Segment(file, digest, dataset.sizes["time"]))
        if kept is not None:  # before the checkpoint, so that no step after it is acknowledged without
            (root / KEPT).mkdir(exist_ok=True)
            durable.write(root / kept_file(meta.step), checkpoint.encode(meta, kept))
        self._checkpoint(root, replace(meta, segments=listed), state)

    def _cover(self, meta: Metadata, state: State) -> None:
        """Writes both checkpoints, so that neither names a file that goes next."""
        for _ in (CHECKPOINT, PREVIOUS):
            self._checkpoint(self.path, meta, state)

    def _checkpoint(self, root: Path, meta: Metadata, state: State) -> None:
        """Writes the checkpoint; the one before becomes checkpoint.prev."""
        newest, temporary = root / CHECKPOINT, root / f".{CHECKPOINT}.next"
        durable.write(temporary, checkpoint.encode(meta, state))
        try:
            if newest.exists():
                newest.replace(root / PREVIOUS)
            temporary.replace(newest)
            durable.sync_folder(root)
        except OSError as error:
            raise durable.refusal(newest, error) from error
        self.kept = meta

    # Reopening -----------------------------------------------------------------------------------

    def _sound(self) -> tuple[Metadata, State]:
        """The newest checkpoint that is sound with all that it covers; a damaged newer one is set aside."""
        reasons = []
        for name in (CHECKPOINT, PREVIOUS):
            try:
                meta, state = checkpoint.decode(self.path / name)
                for segment in meta.segments:
                    _verify(self.path / segment.file, segment.sha256)
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
            return meta, state
        raise Damaged("; ".join(dict.fromkeys(reasons)))

    def _drop_strays(self) -> None:
        covered = {self.path / segment.file for segment in self.meta.segments}
        covered |= {path for step, path in kept_files(self.path).items() if step <= self.meta.step}
        for pattern in (f"{SEGMENTS}/*", f"{SEGMENTS}/.*", f"{KEPT}/*", f"{KEPT}/.*", ".*.tmp", ".*.next"):
            for path in set(self.path.glob(pattern)) - covered:
                path.unlink()
        if self.meta.whole:
            shutil.rmtree(self.path / SEGMENTS, ignore_errors=True)


def refuse_occupied(folder: Path, overwrite: bool) -> None:
    """Raises SdeflowError where a run may not be written to `folder`."""
    try:
        exists = bool(os.stat(folder))
    except (FileNotFoundError, NotADirectoryError):
        exists = False
    except OSError as error:  # too long a name, a loop of links
        raise SdeflowError(f"{folder} cannot be the name of a folder: {error.strerror}") from error
    if not exists:
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise SdeflowError(f"{folder} cannot be made: {above} is not a folder that you may write to")
        return
    if not overwrite:
        again = f"; to go on with it: {resuming(folder)}" if (folder / CHECKPOINT).exists() else ""
        raise SdeflowError(
            f"{folder} exists: give --overwrite to replace it, or --out to write elsewhere{again}"
        )
    if not (folder.is_dir() and ((folder / CHECKPOINT).exists() or (folder / PREVIOUS).exists())):
        raise SdeflowError(f"{folder} is not a run folder, so it is not overwritten: choose another --out")


def _verify(path: Path, digest: str) -> None:
    try:
        sound = durable.checksum(path) == digest
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from error
    if not sound:
        raise Damaged(f"{path} is damaged: its content does not fit its checksum")


def _locked(folder: Path) -> filelock.BaseFileLock:
    """The lock of a run folder, which the system lets go when its holder ends, however it ends."""
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RunError(f"{folder} is being written by another sdeflow: one run has one writer") from None
    except OSError as error:
        raise durable.refusal(folder, error) from error
    return lock

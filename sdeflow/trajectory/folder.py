"""A run on disk: a folder that loses no acknowledged step, whatever ends the process that writes it.

    config.toml          what is run
    run.log              what was done, a line each
    segments/            snapshots so far, netCDF files in order
    checkpoint           the state, and the segments that it covers, by checksum
    checkpoint.prev      the one before
    final.safetensors    at the end, the whole last state by parameter name
    trajectory.nc        at the end, all snapshots; the segments go once it is verified and covered

A step is acknowledged when a checkpoint that covers it has its name. Files are written under another
name, synced and renamed (sdeflow.durable), so each is there whole or not at all.
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
from sdeflow.trajectory import checkpoint, durable
from sdeflow.trajectory import segments as parts
from sdeflow.trajectory.checkpoint import Damaged, Facts, Part

TRAJECTORY, FINAL, CONFIG, LOG = "trajectory.nc", "final.safetensors", "config.toml", "run.log"
CHECKPOINT, PREVIOUS, SEGMENTS = "checkpoint", "checkpoint.prev", "segments"
_LOCK = ".lock"


class RunFolder:
    """The one writer of a run folder. Made on disk by the first `keep`, or taken up by `reopen`.

    kept     what the newest checkpoint knows, None before there is one
    damage   what was found damaged in taking up, '' for nothing
    """

    def __init__(self, path: Path, *, config: str = "", overwrite: bool = False) -> None:
        self.path = path.resolve()
        self.kept: Facts | None = None
        self._config, self._overwrite = config, overwrite
        self._lock: filelock.BaseFileLock | None = None
        self._began = self._last = time.monotonic()
        self._cost = 0.0
        self._lines: list[str] = []
        self.damage = ""

    @classmethod
    def reopen(cls, path: Path) -> tuple[RunFolder, State]:
        """Takes up a run where its newest sound checkpoint left it; what that does not cover is removed.

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
    def facts(self) -> Facts:
        """What the newest checkpoint knows."""
        assert self.kept is not None
        return self.kept

    def checkpoint(self) -> tuple[int, State]:
        """The newest checkpoint's step and state."""
        facts, state = checkpoint.decode(self.path / CHECKPOINT)
        return facts.step, state

    # Writing ---------------------------------------------------------------------------------------

    def due(self, least: float) -> bool:
        """Whether a checkpoint is due: at once, then after `least` seconds, or later in a long run."""
        now = time.monotonic()
        wait = max(least, min((now - self._began) / 200, 300.0), 20 * self._cost)
        return self.new or least == 0 or now - self._last >= wait

    def keep(self, dataset: xr.Dataset | None, facts: Facts, state: State) -> None:
        """Puts snapshots since the last call and a checkpoint on the disk; then `facts.step` is acknowledged.

        `facts.parts` is filled in here. Raises RunError where the disk does not take it; what was
        acknowledged before is intact.
        """
        began = time.monotonic()
        if self.kept is None:
            self._make(dataset, facts, state)
            self._flush()
        else:
            self._put(self.path, dataset, replace(facts, parts=self.kept.parts), state)
        self._last = time.monotonic()
        self._cost = self._last - began

    def finish(self, facts: Facts, state: State, attrs: Mapping[str, Any], final: State | None) -> None:
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
            parts.join(_counted(self.path, self.facts), temporary, attrs)
            durable.publish(temporary, target)
        except (OSError, RuntimeError) as error:
            raise durable.refusal(target, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        whole = (Part(TRAJECTORY, durable.checksum(target), self.facts.snapshots),)
        for _ in (CHECKPOINT, PREVIOUS):  # neither may name a segment when the segments go
            self._checkpoint(self.path, replace(facts, parts=whole), state)
        shutil.rmtree(self.path / SEGMENTS, ignore_errors=True)

    def go_on(self, facts: Facts, state: State, config: str) -> None:
        """Makes a run that was taken up one that is under way: segments, no trajectory.nc, more steps."""
        segments = self.path / SEGMENTS
        segments.mkdir(exist_ok=True)
        listed = []
        for part in facts.parts:
            if part.file == TRAJECTORY:
                part = part._replace(file=f"{SEGMENTS}/000000.nc")
                # a copy: HDF5 can crash where a process has one file open under two names
                temporary = durable.temporary_name(self.path / part.file)
                try:
                    shutil.copyfile(self.path / TRAJECTORY, temporary)
                    durable.publish(temporary, self.path / part.file)
                except OSError as error:
                    temporary.unlink(missing_ok=True)
                    raise durable.refusal(self.path / part.file, error) from error
            listed.append(part)
        for _ in range(2 if (self.path / TRAJECTORY).exists() else 1):
            # neither checkpoint nor checkpoint.prev may name trajectory.nc when it goes
            self._checkpoint(self.path, replace(facts, parts=tuple(listed)), state)
        if config:
            durable.write(self.path / CONFIG, config.encode())
        (self.path / TRAJECTORY).unlink(missing_ok=True)

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

    def _make(self, dataset: xr.Dataset | None, facts: Facts, state: State) -> None:
        """The folder appears under its name with a first checkpoint in it."""
        refuse_occupied(self.path, self._overwrite)
        partial = self.path.with_name(f".{self.path.name}.partial-{os.getpid()}")
        old = self.path.with_name(f".{self.path.name}.old-{os.getpid()}")
        self._remove_partial()
        try:
            (partial / SEGMENTS).mkdir(parents=True)
            self._lock = _locked(partial)
            if self._config:
                durable.write(partial / CONFIG, self._config.encode())
            self._put(partial, dataset, replace(facts, parts=()), state)
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

    def _remove_partial(self) -> None:
        """Removes what runs that were killed before their first checkpoint have left under this name."""
        for partial in self.path.parent.glob(f".{glob.escape(self.path.name)}.partial-*"):
            with suppress(RunError):  # one that is locked is being made
                _locked(partial).release()
                shutil.rmtree(partial, ignore_errors=True)

    def _put(self, root: Path, dataset: xr.Dataset | None, facts: Facts, state: State) -> None:
        listed = facts.parts
        if dataset is not None:
            number = 1 + max((int(Path(part.file).stem) for part in listed), default=0)
            file = f"{SEGMENTS}/{number:06d}.nc"
            digest = durable.write(root / file, parts.encode(dataset))
            listed = (*listed, Part(file, digest, dataset.sizes["time"]))
        self._checkpoint(root, replace(facts, parts=listed), state)

    def _checkpoint(self, root: Path, facts: Facts, state: State) -> None:
        """Writes the checkpoint; the one before becomes checkpoint.prev."""
        newest, temporary = root / CHECKPOINT, root / f".{CHECKPOINT}.next"
        durable.write(temporary, checkpoint.encode(facts, state))
        try:
            if newest.exists():
                newest.replace(root / PREVIOUS)
            temporary.replace(newest)
            durable.sync_folder(root)
        except OSError as error:
            raise durable.refusal(newest, error) from error
        self.kept = facts

    # Taking up -------------------------------------------------------------------------------------

    def _sound(self) -> tuple[Facts, State]:
        """The newest checkpoint that is sound with all that it covers; a damaged newer one is set aside."""
        reasons = []
        for name in (CHECKPOINT, PREVIOUS):
            try:
                facts, state = checkpoint.decode(self.path / name)
                for part in facts.parts:
                    _verify(self.path / part.file, part.sha256)
            except FileNotFoundError:
                continue
            except Damaged as error:
                reasons.append(str(error))
                continue
            self.kept = facts
            if name == PREVIOUS:
                if reasons:
                    self.log(f"{reasons[0]}; going on from {PREVIOUS}, step {facts.step}")
                    (self.path / CHECKPOINT).replace(self.path / f"{CHECKPOINT}.damaged")
                (self.path / PREVIOUS).replace(self.path / CHECKPOINT)
            self.damage = reasons[0] if reasons else ""
            return facts, state
        raise Damaged("; ".join(dict.fromkeys(reasons)))

    def _drop_strays(self) -> None:
        covered = {self.path / part.file for part in self.facts.parts}
        for pattern in (f"{SEGMENTS}/*", f"{SEGMENTS}/.*", ".*.tmp", ".*.next"):
            for path in set(self.path.glob(pattern)) - covered:
                path.unlink()
        if self.facts.whole:
            shutil.rmtree(self.path / SEGMENTS, ignore_errors=True)


def _counted(folder: Path, facts: Facts) -> list[tuple[Path, int]]:
    return [(folder / part.file, part.snapshots) for part in facts.parts]


def open_run(path: str | Path) -> xr.Dataset:
    """The trajectory of a run folder; of one that is still being written, what its checkpoint covers.

    Values are read when they are asked for. Raises SdeflowError for what is no run folder.
    """
    folder = Path(path)
    for again in (True, False):
        try:
            if (folder / TRAJECTORY).exists():
                return xr.open_dataset(folder / TRAJECTORY, engine="netcdf4")
            facts = newest(folder)
            dataset = parts.open_joined(_counted(folder, facts), folder / TRAJECTORY)
            known = {"retcode": facts.retcode, "message": facts.message, "steps_taken": facts.step}
            return dataset.assign_attrs(known)
        except FileNotFoundError:  # its writer has just replaced what was looked at
            if not again:
                break
            time.sleep(0.1)
    raise SdeflowError(f"{folder} is no run folder: it has neither {TRAJECTORY} nor a {CHECKPOINT}")


def newest(folder: Path) -> Facts:
    """What the newest checkpoint that can be read knows, unchecked.

    Raises FileNotFoundError where there is none, Damaged where none can be read.
    """
    try:
        return checkpoint.peek(folder / CHECKPOINT)
    except (FileNotFoundError, Damaged):
        if not (folder / PREVIOUS).exists():
            raise
        return checkpoint.peek(folder / PREVIOUS)


def refuse_occupied(folder: Path, overwrite: bool) -> None:
    """Raises SdeflowError where a run may not be written to `folder`."""
    try:
        exists = folder.exists()
    except OSError as error:
        raise SdeflowError(f"{folder} cannot be the name of a folder: {error.strerror}") from error
    if not exists:
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise SdeflowError(f"{folder} cannot be made: {above} is not a folder that you may write to")
        return
    if not overwrite:
        again = f", 'sdeflow resume {folder}' to go on with it" if (folder / CHECKPOINT).exists() else ""
        raise SdeflowError(
            f"{folder} exists: give --overwrite to replace it{again}, or --out to write elsewhere"
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
    lock = filelock.FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RunError(f"{folder} is being written by another sdeflow: one run has one writer") from None
    except OSError as error:
        raise durable.refusal(folder, error) from error
    return lock

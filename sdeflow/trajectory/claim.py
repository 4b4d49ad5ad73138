"""Whether a folder may be written, and that it has one writer."""

from __future__ import annotations

import os
from pathlib import Path

import filelock

from sdeflow.errors import RunError, SdeflowError
from sdeflow.trajectory import durable
from sdeflow.trajectory.layout import CHECKPOINT, LOCK, PREVIOUS, resuming


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


def locked(folder: Path) -> filelock.BaseFileLock:
    """The lock of a run folder, which the system lets go when its holder ends, however it ends."""
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise RunError(f"{folder} is being written by another sdeflow: one run has one writer") from None
    except OSError as error:
        raise durable.refusal(folder, error) from error
    return lock

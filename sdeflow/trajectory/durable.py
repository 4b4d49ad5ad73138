"""Files that are there whole or not at all, whatever happens to the process, the disk or the machine."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from sdeflow.errors import RunError

Data = bytes | bytearray | memoryview


class DiskFull(RunError):
    """The disk, a quota or a limit on the size of files has no room for a file."""


def write(path: Path, data: Data) -> str:
    """Writes a file under a temporary name, syncs it, renames it, syncs its folder; gives its SHA-256.

    Raises RunError, DiskFull where that is why, and then leaves nothing of the new file.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
        publish(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise refusal(path, error) from error
    return hashlib.sha256(data).hexdigest()


def publish(temporary: Path, path: Path) -> None:
    """Gives a written file its name, once its bytes are on the disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(f".{path.name}.tmp")


def checksum(path: Path) -> str:
    """SHA-256 of a file; raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refusal(path: Path, error: Exception) -> RunError:
    """What to raise where a file could not be written: DiskFull where there was no room, RunError else.

    HDF5 calls every failure to write an "HDF error".
    """
    number = getattr(error, "errno", None)
    if number == errno.EFBIG:
        return DiskFull(f"{path} could not be written: it would pass the limit on the size of files")
    if number in (errno.ENOSPC, errno.EDQUOT) or "HDF error" in str(error):
        return DiskFull(f"{path} could not be written: the disk is full")
    return RunError(f"{path} could not be written: {error}")

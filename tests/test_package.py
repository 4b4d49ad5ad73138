"""The package as it is imported."""

import os
import pkgutil
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from commands import program

import sdeflow
from sdeflow.cli.cite import references

ROOT = Path(__file__).parent.parent


def test_importing_sdeflow_does_not_import_torch() -> None:
    code = "import sys, sdeflow\nassert 'torch' not in sys.modules and 'xarray' not in sys.modules"
    done = program(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_is_there() -> None:
    for name in sdeflow.__all__:
        assert getattr(sdeflow, name) is not None
    assert set(sdeflow.__all__) <= set(dir(sdeflow))
    with pytest.raises(AttributeError, match="nosuch"):
        sdeflow.nosuch  # noqa: B018


def test_the_published_systems_are_where_they_were() -> None:
    """For one release: sdeflow.systems is sdeflow.system.published."""
    from sdeflow import system, systems

    assert systems.kinetic is system.kinetic
    assert systems.mpgd is sdeflow.mpgd


def declared() -> dict[str, Any]:
    """What is told to setuptools."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def test_every_folder_with_code_is_installed() -> None:
    """An install that isn't editable has no more than what is named."""
    found = set()
    for name, top in declared()["package-dir"].items():
        inside = (path.parent.relative_to(ROOT / top).parts for path in (ROOT / top).rglob("__init__.py"))
        found |= {".".join((name, *parts)) for parts in inside}
    assert set(declared()["packages"]) == found


def test_the_sub_packages_and_nothing_else_beside_the_core_are_found() -> None:
    beside = {
        name.removeprefix("sdeflow.") for name, at in declared()["package-dir"].items() if at != "sdeflow"
    }
    listed = {module.name for module in pkgutil.iter_modules(sdeflow.__path__)}
    assert beside <= listed
    assert not {"sdeflow", "tests", "build", "beside"} & listed
    for name in beside:
        assert Path(import_module(f"sdeflow.{name}").__file__ or "").parent == ROOT / name
    for name in ("sdeflow", "tests", "setup", "build", "beside"):
        assert find_spec(f"sdeflow.{name}") is None, name


BESIDE = """
from pathlib import Path
from sdeflow import Save  # a name of the package, which a namespace package has not
import sdeflow, sdeflow.analysis, sdeflow.integrators, sdeflow.problems
import importlib, pickle, pkgutil, sys
from sdeflow.integrators.baoab import BAOAB

clone = Path(__file__).parent / "sdeflow"
assert Path(sdeflow.__file__).parent == clone / "sdeflow", sdeflow.__file__
assert sdeflow.__spec__.origin == sdeflow.__file__
assert Path(BAOAB.step.__code__.co_filename).parent == clone / "integrators"
assert pickle.loads(pickle.dumps(BAOAB)) is BAOAB
assert importlib.reload(sdeflow) is sdeflow and sdeflow.Save is Save
assert "integrators" in {module.name for module in pkgutil.iter_modules(sdeflow.__path__)}
for name in ("sdeflow", "tests"):
    assert importlib.util.find_spec(f"sdeflow.{name}") is None, name
"""


@pytest.mark.slow
def test_an_editable_install_wins_over_a_clone_beside_the_script(tmp_path: Path) -> None:
    """In an environment of its own; the kernel is left out, whose compilation takes longest."""
    pytest.importorskip("setuptools", minversion="77")
    clone, environment = tmp_path / "sdeflow", tmp_path / "environment"
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "*.cpp", "*.hpp", "figures", "*.egg-info")
    for name in ("sdeflow", "integrators", "problems", "analysis"):
        shutil.copytree(ROOT / name, clone / name, ignore=left_out)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    build = [sys.executable, "-c", "from setuptools import build_meta\nbuild_meta.build_editable('wheel')"]
    (clone / "wheel").mkdir()
    subprocess.run(build, cwd=clone, check=True, capture_output=True)

    venv.create(environment, symlinks=os.name == "posix")
    at = {"base": str(environment), "platbase": str(environment)}
    site = Path(sysconfig.get_path("purelib", "venv", at))
    (wheel,) = (clone / "wheel").iterdir()
    zipfile.ZipFile(wheel).extractall(site)
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path(n) for n in ("purelib", "platlib")}))
    (tmp_path / "beside.py").write_text(BESIDE)
    python = Path(sysconfig.get_path("scripts", "venv", at), "python")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for call in (
        ["beside.py"],
        ["-m", "sdeflow", "--help"],
        ["-m", "sdeflow.analysis.studies.convergence", "-h"],
    ):
        done = subprocess.run(
            [python, *call], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_citation_is_of_this_version() -> None:
    """CITATION.cff says what pyproject.toml and the package's own reference do."""
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(":")[::2] for line in lines if not line.startswith(" "))
    cited = {key: value.strip().strip('"') for key, value in pairs}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cited["version"] == project["version"] == sdeflow.__version__
    assert cited["license"] == project["license"]
    assert [line.removeprefix("  - ") for line in lines if line.startswith("  - ")][1:] == project["keywords"]
    (own,) = (r for r in references() if r.key == "sdeflow")
    assert f"title = {{{cited['title']}}}" in own.bibtex.replace("{SDE}", "SDE")
    assert "  - name: The sdeflow authors" in lines
    assert "{{The sdeflow authors}}" in own.bibtex

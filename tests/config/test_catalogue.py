"""The catalogue: packages of others join as the built-in names do; files and objects need no registration."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from commands import Cli, Result

import sdeflow
import sdeflow.entries
from sdeflow.config import catalogue
from sdeflow.config.build import build
from sdeflow.config.catalogue import entries, integrator_named
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.simulation.solve import solve

PLUGIN = {
    "plugged/__init__.py": "",
    "plugged/scheme.py": """
from sdeflow.integrators.euler_maruyama import EulerMaruyama

class Backwards(EulerMaruyama):
    '''Euler-Maruyama under another name.'''
    name = "backwards"
    source = "Nobody 1901"
""",
    "plugged/system.py": """
from sdeflow.systems import SystemDeclaration, kinetic, overdamped

class Decay:
    '''Decay towards 0.'''

    def __init__(self, rate: float = 1.0):
        self.rate = rate

    def drift(self, t, x):
        return -self.rate * x

    def diffusion(self, t, x):
        return 0.5

warm = SystemDeclaration("warm", kinetic("1"), overdamped("1"), "Nobody 1902")
""",
    "plugged/model.py": """
import torch
import sdeflow
import sdeflow.entries

class Gauss(sdeflow.Model):
    '''x_i ~ N(theta, 1), y_i | x_i ~ N(x_i, 1).'''
    latent_shape = (1,)

    def __init__(self, data: int = 3):
        self.data = torch.arange(data, dtype=torch.float64)[:, None]

    def init_theta(self, generator):
        return {"mean": torch.zeros(())}

    def log_joint(self, theta, x, y):
        return -((x - theta["mean"]) ** 2 + (y[:, None] - x) ** 2).sum(-1) / 2
""",
    "plugged/rule.py": """
from dataclasses import dataclass
from sdeflow import Optimizer

@dataclass(frozen=True)
class Sign(Optimizer):
    '''q' = q + h share sign f.'''
    share: float = 1.0
    name = "sign"
    source = "Nobody 1903"

    def __call__(self, q, f, memory, h):
        return q + h * self.share * f.sign(), {}

def plain(q, f, memory, h):
    return q, {}
""",
    "plugged-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n",
    "plugged-1.0.dist-info/entry_points.txt": """
[sdeflow.integrators]
backwards = plugged.scheme:Backwards

[sdeflow.systems]
decay = plugged.system:Decay
warm = plugged.system:warm

[sdeflow.models]
gauss = plugged.model:Gauss

[sdeflow.optimizers]
sign = plugged.rule:Sign
plain = plugged.rule:plain
""",
}

BROKEN = {
    "broken/__init__.py": "",
    "broken/imports.py": "import nosuchpackage",
    "broken/syntax.py": "def (",
    "broken/raises.py": "raise ValueError('no licence in [/opt]')",
    "broken/lacks.py": "",
    "broken-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n",
    "broken-1.0.dist-info/entry_points.txt": "".join(
        f"[sdeflow.{group}]\n"
        f"{group[0]}_missing = nosuchpackage:Thing\n"
        f"{group[0]}_imports = broken.imports:Thing\n"
        f"{group[0]}_syntax = broken.syntax:Thing\n"
        f"{group[0]}_raises = broken.raises:Thing\n"
        f"{group[0]}_lacks = broken.lacks:Thing\n"
        for group in ("integrators", "systems", "optimizers", "models")
    ),
}
NO_INTEGRATORS = {
    "wrong/__init__.py": "import sdeflow\nthing = 3\nclass Abstract(sdeflow.Integrator): pass\n",
    "wrong-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: wrong\nVersion: 1.0\n",
    "wrong-1.0.dist-info/entry_points.txt": (
        "[sdeflow.integrators]\ni_abstract = wrong:Abstract\ni_thing = wrong:thing\n"
    ),
}
REASONS = {
    "missing": "nosuchpackage",
    "imports": "nosuchpackage",
    "syntax": "invalid syntax",
    "raises": "no licence in [/opt]",
    "lacks": "Thing",
}

PROBLEM = """
[model]
use = "{model}"
data = 3
[system]
use = "{system}"
particles = 2
theta = {{h = 0.01, eta = 1.0, gamma = 1.0}}
x = {{h = 0.1}}
[run]
integrator = "{integrator}"
steps = 4
dtype = "float64"
"""


@pytest.fixture
def cli(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Calls the command in this process, from a folder of its own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return cli


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[dict[str, str]], None]:
    """Puts a package with its dist-info on sys.path, as pip would, for the length of a test."""

    def put(files: dict[str, str]) -> None:
        site = tmp_path / "site"
        for name, text in files.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text, encoding="utf-8")
        package = next(iter(files)).partition("/")[0]
        monkeypatch.syspath_prepend(site)
        for module in [m for m in sys.modules if m.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
        importlib.invalidate_caches()

    return put


def row(result: Result, name: str) -> str:
    """The row of a name in a printed table, with the lines that it was folded into, without white space."""
    lines = result.out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.split()[:1] == [name])
    folded = [lines[first]]
    for line in lines[first + 1 :]:
        if not line.startswith("   ") or not line.strip():
            break
        folded.append(line)
    return "".join("".join(folded).split())


# Packages ----------------------------------------------------------------------------------------------


def test_a_package_joins_the_list(cli: Cli, install: Callable[[dict[str, str]], None]) -> None:
    assert "backwards" not in cli("list").out
    install(PLUGIN)
    listed = cli("list", "--long")
    assert (listed.code, listed.err) == (0, "")
    assert "Nobody1901" in row(listed, "backwards")
    assert "Decaytowards0." in row(listed, "decay")
    assert "Nobody1902" in row(listed, "warm")
    assert "plugged.model:Gauss" in row(listed, "gauss")


def test_a_package_runs_by_name(cli: Cli, install: Callable[[dict[str, str]], None]) -> None:
    install(PLUGIN)
    names = {"model": "gauss", "system": "warm", "integrator": "backwards"}
    Path("plugged.toml").write_text(PROBLEM.format(**names))
    Path("decay.toml").write_text("[system]\nuse = 'decay'\nrate = 2.0\nh = 0.1\n[run]\nsteps = 4\n")
    assert cli("run", "plugged.toml", "--quiet") == (0, "", "")
    assert cli("run", "decay.toml", "--integrator", "backwards", "--quiet") == (0, "", "")
    run = xr.load_dataset("runs/plugged-backwards-s0/trajectory.nc")
    assert run.attrs["retcode"] == "success"
    assert run.param.values.tolist() == ["mean"]
    assert {"m", "X"} <= set(run.data_vars)
    assert "U" not in run
    assert Path("runs/decay-backwards-s0/trajectory.nc").is_file()


def test_a_package_s_scheme_is_named_where_another_is_refused(
    install: Callable[[dict[str, str]], None],
) -> None:
    install(PLUGIN)
    system = sdeflow.SDESystem(catalogue.find("systems", "decay")(), h=0.1)
    with pytest.raises(SdeflowError, match="These can: backwards, euler_maruyama"):
        sdeflow.simulate(system, "expint", steps=1)


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("group", ["integrators", "systems", "optimizers"])
def test_a_plugin_that_fails_is_a_row_that_says_so(
    cli: Cli, install: Callable[[dict[str, str]], None], group: str, reason: str
) -> None:
    install(BROKEN)
    name = f"{group[0]}_{reason}"
    assert "doesnotload" in row(cli("list"), name)
    listed = cli("list", "--long")
    assert (listed.code, listed.err) == (0, "")
    text = row(listed, name)
    assert "failstoload" in text
    assert "".join(REASONS[reason].split()) in text
    for name in ("expint", "mpgd", "hierarchical", f"m_{reason}"):
        assert row(listed, name)


@pytest.mark.parametrize(
    ("name", "fragment"), [("i_abstract", "step"), ("i_thing", "sdeflow.Integrator"), ("expint", "arXiv")]
)
def test_a_plugin_that_is_no_integrator_is_a_row_that_says_so(
    cli: Cli, install: Callable[[dict[str, str]], None], name: str, fragment: str
) -> None:
    install(NO_INTEGRATORS)
    listed = cli("list", "--long")
    assert listed.code == 0
    assert fragment in row(listed, name)


def test_an_optimizer_of_a_package(cli: Cli, install: Callable[[dict[str, str]], None]) -> None:
    """Steps of 0.001 x 0.5 towards the data, whatever the gradient."""
    install(PLUGIN)
    run = ("run", "hierarchical", "--system", "pgd", "--steps", 4, "-q", "--set", "system.theta.h=1e-3")
    assert cli(*run, "--set", "system.theta.optimizer={name='sign', share=0.5}", "--out", "a").code == 0
    with xr.open_dataset("a/trajectory.nc") as a:
        assert a.theta[-1].item() == pytest.approx(4 * 5e-4)
        assert "sign(share=0.5)" in a.attrs["system"]
    assert "share=1.0" in row(cli("list"), "sign")
    code, _, err = cli(*run, "--set", "system.theta.optimizer=plain", "--out", "b")
    assert code == 2
    assert "optimizer 'plain' must be a dataclass derived from sdeflow.Optimizer" in err


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize(
    ("group", "option"),
    [
        ("integrators", "--integrator={}"),
        ("systems", "--system={}"),
        ("models", "--set=model.use={}"),
        ("optimizers", "--set=system.theta.optimizer={}"),
    ],
)
def test_asking_for_a_plugin_that_fails_is_one_sentence(
    cli: Cli, install: Callable[[dict[str, str]], None], group: str, option: str, reason: str
) -> None:
    install(BROKEN)
    name = f"{group[0]}_{reason}"
    code, out, err = cli("run", "hierarchical", option.format(name))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    for fragment in (f"'{name}'", "fails to load", REASONS[reason]):
        assert fragment in err
    assert not Path("runs").exists()


def test_other_schemes_stay_usable_beside_a_broken_one(
    cli: Cli, install: Callable[[dict[str, str]], None]
) -> None:
    install(BROKEN)
    install(NO_INTEGRATORS)
    assert cli("run", "hierarchical", "--steps", 1, "--quiet").code == 0
    code, _, err = cli("run", "hierarchical", "--system", "pgd", "--integrator", "ubu")
    assert code == 2
    assert "These can: alternating, euler_maruyama" in err


def test_a_checkout_that_was_never_installed_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    sdeflow.entries._entries.cache_clear()
    monkeypatch.setattr(sdeflow.entries, "entry_points", lambda group: ())
    for command in (["list"], ["run", "hierarchical"]):
        code, _, err = cli(*command)
        assert code == 2
        assert "not installed" in err
        assert "pip install" in err


# Files -------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder, not the working one, with a problem that names a file beside it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("scheme", "system", "model"):
        (folder / f"{name}.py").write_text(PLUGIN[f"plugged/{name}.py"], encoding="utf-8")
    names = {"model": "model.py:Gauss", "system": "system.py:warm", "integrator": "scheme.py:Backwards"}
    (folder / "problem.toml").write_text(PROBLEM.format(**names), encoding="utf-8")
    return folder


def test_a_file_in_a_toml_lies_beside_the_toml(cli: Cli, files: Path) -> None:
    assert cli("run", files / "problem.toml", "--quiet") == (0, "", "")
    (folder,) = Path("runs").iterdir()
    first = xr.load_dataset(folder / "trajectory.nc")
    # the stored configuration has moved away from those files, and still finds them
    assert cli("run", folder / "config.toml", "--quiet", "--out", "again") == (0, "", "")
    again = xr.load_dataset("again/trajectory.nc")
    for name in first.data_vars:
        np.testing.assert_array_equal(first[name], again[name])


def test_a_file_in_an_option_lies_in_the_working_folder(
    cli: Cli, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    options = ["--system", "mpgd-theta", "--integrator", "scheme.py:Backwards"]
    assert cli("run", "hierarchical", "--steps", 3, "--quiet", *options, "--out", "first") == (0, "", "")
    monkeypatch.chdir(files.parent)
    again = ["run", files / "first" / "config.toml", "--quiet", "--out", "again"]
    assert cli(*again) == (0, "", "")


def test_absolute_files_and_show(cli: Cli, files: Path) -> None:
    integrator = f"{files / 'scheme.py'}:Backwards"
    assert cli("run", "hierarchical", "--steps", 1, "--integrator", integrator, "--quiet").code == 0
    shown = cli("show", files / "problem.toml")
    assert shown.code == 0
    assert "x_i ~ N(theta, 1), y_i | x_i ~ N(x_i, 1)." in shown.out
    assert "Euler-Maruyama under another name." in shown.out


def test_a_file_is_read_anew(files: Path) -> None:
    """A notebook that edits its file gets what it wrote, not what was imported before."""
    before = catalogue.find("systems", f"{files / 'system.py'}:Decay")
    (files / "system.py").write_text("class Decay:\n    '''Edited, and longer than it was.'''\n")
    after = catalogue.find("systems", f"{files / 'system.py'}:Decay")
    assert before.__doc__ == "Decay towards 0."
    assert after.__doc__ == "Edited, and longer than it was."


# Objects -----------------------------------------------------------------------------------------------


def test_names_files_classes_and_objects_are_the_same(files: Path) -> None:
    from sdeflow.integrators.euler_maruyama import EulerMaruyama
    from sdeflow.problems.hierarchical import Hierarchical

    system = sdeflow.pgd(Hierarchical(data=3), particles=2, theta={"h": 0.01}, x={"h": 0.1})
    asked: list[Any] = [
        "euler_maruyama",
        EulerMaruyama,
        EulerMaruyama(),
        f"{files / 'scheme.py'}:Backwards",
        catalogue.find("integrators", f"{files / 'scheme.py'}:Backwards"),
    ]
    runs = [sdeflow.simulate(system, integrator, steps=5) for integrator in asked]
    assert [run.attrs["integrator"] for run in runs] == ["euler_maruyama"] * 3 + ["backwards"] * 2
    for run in runs:
        np.testing.assert_array_equal(run.theta, runs[0].theta)
        np.testing.assert_array_equal(run.X, runs[0].X)


def test_python_and_toml_give_the_same_numbers(files: Path) -> None:
    model = catalogue.find("models", f"{files / 'model.py'}:Gauss")(data=3)
    declaration = catalogue.find("systems", f"{files / 'system.py'}:warm")
    scheme = catalogue.find("integrators", f"{files / 'scheme.py'}:Backwards")
    theta = sdeflow.Motion(h=0.01, eta=1.0, gamma=1.0)
    system = declaration(model, particles=2, theta=theta, x={"h": 0.1})
    python = sdeflow.simulate(system, scheme, steps=4, dtype="float64")
    toml = solve(build(load_config(files / "problem.toml"))).dataset
    for name in python.data_vars:
        np.testing.assert_array_equal(python[name], toml[name])


# Names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "known", "expected"),
    [
        ("expit", ["ubu", "expint"], "did you mean 'expint'?"),
        ("mpdg", ["pgd", "mpgd"], "did you mean 'mpgd'?"),
        ("zzz", ["ubu", "expint"], "known: expint, ubu"),
        ("", ["ubu"], "known: ubu"),
        ("x", [], "none is known here"),
    ],
)
def test_did_you_mean(given: str, known: list[str], expected: str) -> None:
    assert did_you_mean(given, known) == expected


@pytest.mark.parametrize("group", ["integrators", "systems", "optimizers", "models"])
def test_every_name_is_suggested_for_a_slip_of_it(group: Any) -> None:
    for name in catalogue.entries(group):
        with pytest.raises(SdeflowError, match=f"unknown {group[:-1]} '{name}_': did you mean '{name}'"):
            catalogue.find(group, f"{name}_")


def test_problems_are_found_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = catalogue.problem_files()
    for name, path in packaged.items():
        assert catalogue.problem_file(name) == path
        assert catalogue.problem_file(str(path)) == path
    monkeypatch.chdir(tmp_path)
    Path("hierarchical.toml").write_text("")
    assert catalogue.problem_file("hierarchical.toml") == Path("hierarchical.toml")
    assert catalogue.problem_file("hierarchical") == packaged["hierarchical"]


def test_every_integrator_says_what_it_is() -> None:
    assert all(integrator_named(name).name == name for name in entries("integrators"))

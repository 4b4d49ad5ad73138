"""The command line: a run folder and one last line, options over file, honest exit codes.

Exit codes: 0 ok, 1 runtime, 2 usage or configuration, 3 diverged, 130 interrupted. An error is one
sentence on stderr. Whatever was recorded before a divergence or an interruption is kept.
"""

import io
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from commands import Cli, contents, program
from safetensors import safe_open

from sdeflow import terminal
from sdeflow.cli import main
from sdeflow.config.catalogue import integrator_named, problem_files
from sdeflow.simulation import time_loop

TINY = """
title = "Tiny"
[model]
use = "hierarchical"
data = 3
[system]
use = "mpgd"
particles = 2
[system.theta]
h = 1e-3
eta = 2.0
gamma = 0.5
[system.x]
h = 1e-2
eta = 2.0
gamma = 0.5
[run]
integrator = "expint"
steps = 4
[save]
every = 2
[variants.long]
run.steps = 6
model.scale = 0.5
"""

BISTABLE = """
class Bistable:
    '''Falls with speed 1 below 1, and blows up above.'''

    def drift(self, t, x):
        return (x > 1) * 1e3 * x**3 - 1.0

    def diffusion(self, t, x):
        return 2.0
"""


FOLDER = {
    ".lock",
    "checkpoint",
    "checkpoint.prev",
    "config.toml",
    "final.safetensors",
    "run.log",
    "trajectory.nc",
}


@pytest.fixture
def cli(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Calls the command in this process, in an empty folder that holds tiny.toml."""
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return cli


def load(folder: str | Path) -> xr.Dataset:
    return xr.load_dataset(Path(folder) / "trajectory.nc")


def squeezed(text: str) -> str:
    """Without white space: tables fold long cells at the width of the terminal."""
    return "".join(text.split())


# run -------------------------------------------------------------------------------------------------


def test_run_of_a_packaged_problem_says_where_its_folder_is_and_how_to_open_it(cli: Cli) -> None:
    code, out, _ = cli("run", "hierarchical", "--integrator", "expint", "--steps", 3)
    assert code == 0
    folder = Path("runs/hierarchical-expint-s0")
    assert {p.name for p in folder.iterdir()} == FOLDER
    last = out.rstrip().splitlines()[-1]
    assert last.startswith("runs/hierarchical-expint-s0/trajectory.nc ")
    command = last.partition("open it with ")[2]
    with eval(command, {"xr": xr}) as run:
        assert run.attrs["retcode"] == "success"
        assert run.sizes["time"] == 2


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ((), "runs/tiny-expint-s0"),
        (("--integrator", "ubu", "--seed", 3), "runs/tiny-ubu-s3"),
        (("--system", "kiplmc", "--variant", "long"), "runs/tiny-long-kiplmc-expint-s0"),
        (("--out", "here/there"), "here/there"),
    ],
)
def test_folder(cli: Cli, options: tuple[Any, ...], folder: str) -> None:
    assert cli("run", "tiny.toml", "--quiet", *options) == (0, "", "")
    written = {p.parent.as_posix() for p in Path().rglob("*.*") if p.is_file()} - {"."}
    assert written == {folder}


@pytest.mark.parametrize(
    ("options", "attr", "value"),
    [
        (("--integrator", "obabo"), "integrator", "obabo"),
        (("--steps", 5), "steps", 5),
        (("--seed", 7), "seed", 7),
        (("--replicas", 2), "replicas", 2),
        (("--dtype", "float64"), "dtype", "float64"),
        (("--device", "cpu"), "device", "cpu"),
        (("--set", "run.steps=3"), "steps", 3),
        (("--set", "run.dtype=float64"), "dtype", "float64"),
        (("--set", "run.dtype='float64'"), "dtype", "float64"),
        (("--variant", "long"), "steps", 6),
        (("--variant", "long", "--set", "run.steps=7"), "steps", 7),
        (("--set", "run.steps=7", "--set", "run.steps=8"), "steps", 8),
        (("--variant", "long", "--set", "run.steps=7", "--steps", 9), "steps", 9),
    ],
)
def test_options_replace_settings_and_settings_replace_variants(
    cli: Cli, options: tuple[Any, ...], attr: str, value: object
) -> None:
    assert cli("run", "tiny.toml", "--quiet", "--out", "run", *options) == (0, "", "")
    assert load("run").attrs[attr] == value


def test_settings_systems_and_variants_change_the_numbers(cli: Cli) -> None:
    changes = [(), ("--set", "system.theta.gamma=0.6"), ("--system", "mpgd-x"), ("--variant", "long")]
    ends = []
    for i, options in enumerate(changes):
        assert cli("run", "tiny.toml", "--quiet", "--out", i, *options, "--steps", 4).code == 0
        ends.append(float(load(str(i)).theta[-1, 0]))
    assert len(set(ends)) == len(changes)


def test_overwrite(cli: Cli, tmp_path: Path) -> None:
    assert cli("run", "tiny.toml", "--quiet", "--out", "run").code == 0
    before = contents(tmp_path)

    code, out, err = cli("run", "tiny.toml", "--out", "run", "--seed", 1)
    assert (code, out) == (2, "")
    assert "run exists" in err
    assert "--overwrite" in err
    assert contents(tmp_path) == before

    assert cli("run", "tiny.toml", "--quiet", "--out", "run", "--seed", 1, "--overwrite").code == 0
    assert load("run").attrs["seed"] == 1
    assert contents(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("occupant", ["folder", "file"])
def test_overwrite_spares_what_is_not_a_run(cli: Cli, tmp_path: Path, occupant: str) -> None:
    path = tmp_path / "thesis"
    if occupant == "folder":
        path.mkdir()
        path = path / "chapter1.tex"
    path.write_text("years of work")
    before = contents(tmp_path)
    code, _, err = cli("run", "tiny.toml", "--out", "thesis", "--overwrite")
    assert code == 2
    assert "thesis is not a run folder" in err
    assert contents(tmp_path) == before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "parts"),
    [
        (Terminal, ("400/400", "steps/s", "left, loss ")),
        (io.StringIO, ("step 399 of 400, ", "steps/s, ", "s left, loss ")),
    ],
)
def test_progress_shows_rate_time_left_and_loss(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], parts: tuple[str, ...]
) -> None:
    """As a bar on a terminal, and as a line now and then elsewhere."""
    stderr = stream()
    monkeypatch.setattr(time_loop, "_CHUNK_SECONDS", 1e-9)  # a report after every step
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", stderr)
    assert cli("run", "tiny.toml", "--steps", 400).code == 0
    for part in parts:
        assert part in stderr.getvalue()


# Endings ---------------------------------------------------------------------------------------------


def test_divergence_keeps_the_finite_past_and_exits_3(cli: Cli) -> None:
    code, out, err = cli("run", "tiny.toml", "--system", "pgd", "--set", "system.x.h=50.0", "--steps", 100)
    assert code == 3
    assert err.startswith("diverged: ")
    assert err.count("\n") == 1
    assert "past the bound of 1e+12 (run.bound) by step" in err
    assert "smaller step" in err
    run = load("runs/tiny-pgd-expint-s0")
    assert "runs/tiny-pgd-expint-s0/trajectory.nc" in out
    assert run.attrs["retcode"] == "diverged"
    assert 0 < run.attrs["steps_taken"] < 100
    assert 1 < run.sizes["time"] < 51
    for name in ("theta", "X"):
        assert np.isfinite(run[name]).all()


def test_one_diverged_replica_leaves_the_others_alone(cli: Cli) -> None:
    Path("bistable.py").write_text(BISTABLE, encoding="utf-8")
    Path("bistable.toml").write_text(
        "[system]\nuse = 'bistable.py:Bistable'\nh = 0.3\nstart = [0.5]\n"
        "[run]\nintegrator = 'euler_maruyama'\nsteps = 12\n[save]\nevery = 1\n",
        encoding="utf-8",
    )
    alone = [cli("run", "bistable.toml", "--quiet", "--out", s, "--seed", s).code for s in range(6)]
    assert set(alone) == {0, 3}  # some do, some do not
    code, _, err = cli("run", "bistable.toml", "--quiet", "--replicas", 6, "--out", "all")
    assert code == 3
    run = load("all")
    assert run.attrs["retcode"] == "diverged"
    assert run.attrs["steps_taken"] == 12
    for seed, ending in enumerate(alone):
        assert (f"replica {seed}:" in err) == (ending == 3)
        if ending == 0:
            assert np.isfinite(run.X.sel(replica=seed)).all()
            np.testing.assert_array_equal(run.X.sel(replica=seed), load(str(seed)).X)


def test_interruption_keeps_what_was_recorded_and_exits_130(cli: Cli, stop_before: Any) -> None:
    assert cli("run", "tiny.toml", "--quiet", "--out", "whole", "--steps", 10).code == 0
    stop_before(5)
    code, _, err = cli("run", "tiny.toml", "--quiet", "--out", "part", "--steps", 10)
    assert code == 130
    assert err.startswith("interrupted: stopped after 5 of 10 steps; to go on: sdeflow resume ")
    assert err.count("\n") == 1
    part, whole = load("part"), load("whole")
    assert part.attrs["retcode"] == "interrupted"
    assert part.attrs["steps_taken"] == 5
    assert part.step.values.tolist() == [0, 2, 4]
    for name in part.data_vars:
        np.testing.assert_array_equal(part[name], whole[name][:3])
    with safe_open("part/final.safetensors", "pt") as final:
        assert final.metadata()["steps_taken"] == "5"


def test_interruption_before_the_first_step_writes_nothing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sdeflow.config.build.build", interrupted)
    code, out, _ = cli("run", "tiny.toml")
    assert (code, out) == (130, "")
    assert contents(tmp_path).keys() == {"tiny.toml"}


def test_a_full_disk_is_one_sentence_and_exit_1(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sdeflow.trajectory.durable.os.fsync", full)
    code, _, err = cli("run", "tiny.toml", "--out", "run")
    assert code == 1
    assert err.count("\n") == 1
    assert "could not be written: the disk is full" in err
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.toml"]


# list and show ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", ["80", "200"])
@pytest.mark.parametrize("options", [(), ("--long",)])
def test_list_shows_the_whole_catalogue(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr(terminal, "out", terminal.Console(highlight=False))
    code, out, err = cli("list", *options)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= int(width)
    rows = {line.split()[0] for line in lines if line}
    for group in ("integrators", "systems", "optimizers", "models"):
        assert {point.name for point in entry_points(group=f"sdeflow.{group}")} <= rows
    assert set(problem_files()) <= rows
    header = next(line for line in lines if line.startswith("name"))
    for column in ("strong", "weak", "needs", *(["source"] if options else [])):
        assert column in header
    for point in entry_points(group="sdeflow.integrators"):
        scheme = integrator_named(point.name)
        row = next(line for line in lines if line.split()[:1] == [point.name])
        assert row.split()[1:4] == [
            f"{scheme.strong_order:g}",
            f"{scheme.weak_order:g}",
            str(scheme.evaluations),
        ]
        assert scheme.needs.split()[0] in row
        assert (scheme.source.split()[0] in row) == bool(options)


def test_list_has_a_line_for_each_name(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns a name is a line, and what schemes need and systems are stands there whole."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli("list").out.splitlines()
    groups = ("integrators", "systems", "optimizers", "callbacks", "models")
    names = sum(len(entry_points(group=f"sdeflow.{group}")) for group in groups) + len(problem_files())
    assert len(lines) == names + 6 * 3 + 1  # of each table a title, a head and a line between
    problems = lines.index(next(line for line in lines if line.startswith("Problems")))
    assert not any("…" in line for line in lines[:problems])


def test_list_tells_all_about_a_name(cli: Cli) -> None:
    out = cli("list", "nag", "mpgd", "hierarchical").out
    for part in ("v' = mu v", "order 1 strong", "source: Sutskever", "X: kinetic, T = 1", "arXiv:2312.07335"):
        assert part in out
    assert "hierarchical, model" in out
    assert "hierarchical, problem" in out
    code, out, err = cli("list", "expnt")
    assert (code, out) == (2, "")
    assert err == "sdeflow: the catalogue has no 'expnt': did you mean 'expint'?\n"


@pytest.mark.parametrize(
    "arguments", [["list"], ["cite", "hierarchical", "ubu"], ["--help"], ["run", "--help"]]
)
def test_answers_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from sdeflow.cli import main\n"
        f"sys.argv = ['sdeflow', *{arguments}]\n"
        "try:\n    main()\n"
        "finally:\n    assert 'torch' not in sys.modules and 'xarray' not in sys.modules\n"
    )
    done = program(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


NOT_BEFORE_A_STEP = {
    "dask", "jax", "matplotlib", "pandas", "PIL", "scipy", "sklearn", "sympy", "torch._dynamo",
    "torch._inductor", "triton", "xarray",
}  # fmt: skip
"""What takes long to import, and a run begins without."""


@pytest.mark.parametrize("options", [[], ["--replicas", "2", "--set", "batch.size=2"]])
def test_a_first_step_is_taken_with_torch_and_little_else(options: list[str], tmp_path: Path) -> None:
    """When the start is on the disk already."""
    problem, out = tmp_path / "tiny.toml", tmp_path / "run"
    problem.write_text(TINY)
    code = f"""
import sys
from pathlib import Path

from sdeflow.cli import main
from sdeflow.cli.importing import for_good

with for_good():
    from sdeflow.simulation.time_loop import TimeLoop

first = TimeLoop._first

def watched(*arguments):
    assert Path({str(out)!r}, "checkpoint").exists()
    print("imported:", *sorted({NOT_BEFORE_A_STEP} & sys.modules.keys()))
    return first(*arguments)

TimeLoop._first = watched
sys.argv = ["sdeflow", "run", {str(problem)!r}, "--out", {str(out)!r}, *{options}]
main()
"""
    done = program(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("imported:\n")


def test_the_command_is_installed_as_sdeflow() -> None:
    (command,) = entry_points(group="console_scripts", name="sdeflow")
    assert command.load() is main


@pytest.mark.parametrize(
    ("options", "equations"),
    [
        (
            (),
            [
                "dtheta = η m dt",
                "dm = (−γη m + f_theta) dt",
                "dX = η U dt",
                "dU = (−γη U + f_x) dt + √(2γT) dW",
            ],
        ),
        (("--system", "pgd"), ["dtheta = f_theta dt", "dX = f_x dt + √(2T) dW"]),
        (("--system", "ipla"), ["dtheta = f_theta dt + √(2T) dW", "dX = f_x dt + √(2T) dW"]),
        (("--system", "kiplmc"), ["dm = (−γη m + f_theta) dt + √(2γT) dW"]),
    ],
)
def test_show_prints_blocks_with_their_equations(
    cli: Cli, tmp_path: Path, options: tuple[str, ...], equations: list[str]
) -> None:
    code, out, err = cli("show", "tiny.toml", *options)
    assert (code, err) == (0, "")
    assert out.startswith("Tiny\n")
    for equation in equations:
        assert equation in out
    noiseless = [e for e in equations if "dW" not in e]
    for equation in noiseless:
        assert f"{equation} +" not in out
    assert contents(tmp_path).keys() == {"tiny.toml"}


@pytest.mark.parametrize("title", ["Model [D = 100]", "[red] wine", "closed [/bold]"])
def test_show_prints_a_title_as_it_is(cli: Cli, title: str) -> None:
    """Brackets are no markup."""
    code, out, _ = cli("show", "tiny.toml", "--set", f"title={title}")
    assert code == 0
    assert out.startswith(f"{title}\n")


def test_show_counts_shapes_and_bytes(cli: Cli) -> None:
    options = ["--steps", 10, "--replicas", 2, "--set", "save.data=2", "--set", "save.every=5"]
    lines = cli("show", "tiny.toml", *options).out.splitlines()

    def row(name: str) -> str:
        return next(line for line in lines if line.startswith(f"{name} "))

    assert row("X").split() == ["X", "3", "×", "2", "×", "1", "datum,", "particle,", "latent"]
    assert row("m").split() == ["m", "1", "param"]
    assert row("steps").split(maxsplit=1)[1].rstrip() == "10, 3 snapshots, 2 replica(s), float32"
    snapshot = (
        2 * 4 * (1 + 1 + 2 * 2 * 2)
    )  # replicas * bytes * (theta, m, and X, U of 2 data with 2 particles)
    assert row("a snapshot").split()[2:] == [str(snapshot), "B"]
    assert f"about {3 * snapshot} B" in row("trajectory.nc")
    assert f"about {2 * 4 * (1 + 1 + 2 * 3 * 2)} B" in row("a checkpoint")
    assert f"{2 * 4 * (1 + 1 + 2 * 3 * 2)} B" in row("memory: state")
    assert f"{4 * 3} B" in row("memory: data")
    assert "all data, 2 gradient evaluation(s)" in row("a step")
    assert lines[-1] == "variants (--variant NAME): long"


def test_usage(cli: Cli) -> None:
    assert cli("--help").code == 0
    assert "Exitcodes:0ok,1runtime,2usageorconfiguration,3diverged,130" in squeezed(cli("--help").out)
    for arguments, fragment in [
        ((), "Usage"),
        (("frob",), "frob"),
        (("run",), "problem"),
        (("run", "tiny.toml", "--bogus"), "--bogus"),
        (("run", "tiny.toml", "--steps", "many"), "--steps"),
    ]:
        code, _, err = cli(*arguments)
        assert code == 2, arguments
        assert fragment in err
        assert "Traceback" not in err


def test_a_terminal_in_ascii_and_a_full_device(tmp_path: Path) -> None:
    """Greek letters are shown as '?', and what cannot be printed is a sentence and exit code 1."""
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "sdeflow", "show", "hierarchical"]
    done = subprocess.run(command, env=ascii_only, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "dX = ? U dt" in done.stdout
    if not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command[:3], "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "sdeflow: the output could not be written: no space left on its device\n"


def test_a_broken_package_is_a_sentence(tmp_path: Path) -> None:
    """A dask without its dependencies, which xarray loads because it is there; a run does without both."""
    (tmp_path / "dask").mkdir()
    (tmp_path / "dask" / "__init__.py").write_text("import toolz_that_is_not_there\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def done(*arguments: str) -> subprocess.CompletedProcess[str]:
        call, environment = [sys.executable, "-m", "sdeflow", *arguments], os.environ | {"PYTHONPATH": path}
        return subprocess.run(
            call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    assert done("run", "hierarchical", "--steps", "2", "--out", "run").returncode == 0
    plotted = done("plot", "run")
    assert plotted.returncode == 1
    assert plotted.stderr.startswith("sdeflow: No module named 'toolz_that_is_not_there', which ")
    assert f"{tmp_path / 'dask' / '__init__.py'} asks for" in plotted.stderr
    assert plotted.stderr.count("\n") == 1


def test_one_command_begins_a_run_and_goes_on_with_it(cli: Cli, stop_before: Any, tmp_path: Path) -> None:
    """As a scheduler calls it again and again: stopped twice, at its end, and then told to go further."""
    command = ("run", "tiny.toml", "--quiet", "--out", "part", "--resume", "--steps")
    assert cli("run", "tiny.toml", "--quiet", "--out", "whole", "--steps", 10).code == 0
    for step in (3, 7):
        stop_before(step)
        assert cli(*command, 10).code == 130
    stop_before(None)
    assert cli(*command, 10).code == 0
    with (
        xr.open_dataset(tmp_path / "part/trajectory.nc") as a,
        xr.open_dataset(tmp_path / "whole/trajectory.nc") as b,
    ):
        assert a.equals(b)
    before = contents(tmp_path / "part")
    assert cli(*command, 10).code == 0
    assert contents(tmp_path / "part") == before
    assert cli(*command, 12).code == 0
    with xr.open_dataset(tmp_path / "part/trajectory.nc") as further:
        assert further.step[-1] == 12


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--seed", 5), "is of another run: run.seed was 0 and is 5"),
        (("--overwrite",), "give --resume or --overwrite, not both"),
    ],
)
def test_going_on_with_another_run_is_refused(cli: Cli, options: tuple[Any, ...], sentence: str) -> None:
    assert cli("run", "tiny.toml", "--quiet", "--out", "run", "--steps", 4).code == 0
    code, _, err = cli("run", "tiny.toml", "--quiet", "--out", "run", "--steps", 4, "--resume", *options)
    assert code == 2
    assert sentence in err


# What a stranger's file, a strange path and a large run say -------------------------------------------


def test_a_title_s_control_characters_are_escaped(cli: Cli) -> None:
    """In what `show` and `run` print, and in the sentence of an error."""
    title = '"Clear \\u001b[2J the \\u0007 screen"'
    shown = cli("show", "tiny.toml", "--set", f"title={title}")
    run = cli("run", "tiny.toml", "--set", f"cpu_note={title}", "--device", "cpu")
    refused = cli("run", "tiny.toml", "--set", f"run.engine={title}")
    for result, code in ((shown, 0), (run, 0), (refused, 2)):
        assert result.code == code
        assert not {"\x1b", "\x07"} & {*result.out, *result.err}
        assert r"Clear \x1b[2J the \x07 screen" in result.out + result.err.replace("\\\\", "\\")


def test_hints_quote_paths_as_a_shell_needs_it(cli: Cli, stop_before: Any) -> None:
    """What a hint says is what a shell then does: a path with a space, a quote and a dollar sign."""
    folder = "it's a $run"
    stop_before(2)
    hint = cli("run", "tiny.toml", "--quiet", "--out", folder).err.partition("; to go on: ")[2]
    program, *words = shlex.split(hint)
    assert program == "sdeflow"
    occupied = cli("run", "tiny.toml", "--quiet", "--out", folder).err.partition("; to go on with it: ")[2]
    assert shlex.split(occupied) == ["sdeflow", "resume", folder]
    stop_before(None)
    code, out, _ = cli(*words)
    assert code == 0
    command = out.rstrip().splitlines()[-1].partition("open it with ")[2]
    with eval(command, {"xr": xr}) as run:
        assert run.attrs["retcode"] == "success"


def test_a_toml_file_with_a_byte_order_mark(cli: Cli) -> None:
    """As Windows editors write it."""
    Path("marked.toml").write_text(TINY, encoding="utf-8-sig")
    assert cli("run", "marked.toml", "--quiet").code == 0
    code, out, _ = cli("show", "marked.toml")
    assert code == 0
    assert out.startswith("Tiny\n")


def test_a_grid_s_last_line_names_its_best_point(cli: Cli) -> None:
    """Without friction eta = 8e9 is unstable, and left out; of the others that of the least loss is told."""
    grid = (
        "--set",
        "grid.gamma=[0.0, 0.5]",
        "--set",
        "grid.eta=[2.0, 8e9]",
        "--replicas",
        2,
        "--out",
        "grid",
    )
    code, out, err = cli("run", "tiny.toml", "--steps", 40, *grid)
    assert code == 3
    assert "(gamma=0, eta=8e+09)" in err
    with load("grid") as run:
        points = run.loss[-1].values.reshape(2, 2, 2).mean(-1)  # [gamma, eta]
        points[0, 1] = np.inf
        i, j = np.unravel_index(points.argmin(), points.shape)
        best = f"gamma={[0, 0.5][i]:g}, eta={[2.0, 8e9][j]:g}"
    assert f"3 of 4 points did not diverge, least loss {points.min():.6g} at {best}\n" in out


def test_a_grid_of_a_block_s_steps_names_its_best_one(cli: Cli) -> None:
    code, out, _ = cli("run", "tiny.toml", "--steps", 20, "--set", "grid.system.x.h=[0.01, 0.02]")
    assert code == 0
    with load(str(next(Path("runs").iterdir()))) as run:
        best = [0.01, 0.02][int(run.loss[-1].values.argmin())]
        assert run.h_x.values.tolist() == [0.01, 0.02]
    assert f"2 of 2 points did not diverge, least loss {float(run.loss[-1].min()):.6g} at h_x={best}\n" in out


def test_a_diverged_replica_is_left_out_of_the_loss(cli: Cli) -> None:
    """Of two replicas one passes a bound that lies between the largest numbers of each."""
    options = ("run", "tiny.toml", "--steps", 40, "--replicas", 2, "--dtype", "float64")
    assert cli(*options, "--quiet", "--out", "both").code == 0
    run = load("both")
    largest = np.max([abs(run[n]).max("time") for n in ("loss", "kinetic_theta", "kinetic_x")], axis=0)
    last = run.loss[-1].values
    code, out, _ = cli(*options, "--out", "one", "--set", f"run.bound={largest.mean()}")
    assert code == 3
    assert f"loss {last[int(largest.argmin())]:.6g} of 1 replicas that did not diverge\n" in out
    code, out, _ = cli(*options, "--out", "none", "--set", "run.bound=1e-9")
    assert code == 3
    assert out.startswith("0 steps in ")
    assert "loss" not in out


def test_a_run_that_memory_has_no_room_for_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Before anything is drawn or written: 10^12 particles, and 10^9 replicas."""
    for options in (("--set", "system.particles=1000000000000"), ("--replicas", 10**9)):
        code, out, err = cli("run", "tiny.toml", "--out", "huge", *options)
        assert (code, out) == (2, "")
        assert re.match(
            r"sdeflow: the run would hold about [\d.]+ [GT]iB of memory at once, and [\d.]+ .iB", err
        )
        assert "take fewer particles" in err
        assert err.count("\n") == 1
    assert contents(tmp_path).keys() == {"tiny.toml"}


@pytest.mark.parametrize("key", ["data", "particles"])
def test_indices_to_save_must_be_different(cli: Cli, key: str) -> None:
    code, out, err = cli("run", "tiny.toml", "--set", f"save.{key}=[0, 1, 1]")
    assert (code, out) == (2, "")
    assert err.endswith("indices must be different, given [0, 1, 1]\n")
    assert not Path("runs").exists()

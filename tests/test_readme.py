"""What the documents tell people to type works as printed, and what they name is there.

A document's fenced blocks are played in their order in one folder, as a newcomer would:

    python   run; one that the line before gives a name is also written to that file
    toml     written, built with each of its variants, and run for a few steps
    sh       read by bash, with each command in it replaced by one that notes how it was called. Then every
             call is made: a run takes a few steps, what is long or needs a network is parsed alone

A block in another language, or a command that is not known here, fails.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import xarray as xr
from commands import Cli, command
from test_architecture import ALLOWED
from torch.distributed.run import get_args_parser

from sdeflow.cli.app import app
from sdeflow.config.build import build
from sdeflow.config.catalogue import entries, find, integrator_named, problem_file, problem_files
from sdeflow.config.schema import Config, load_config, override, variant_tables
from sdeflow.data.datasets import dataset_named
from sdeflow.simulation.solve import solve

ROOT = Path(__file__).parent.parent
LONGEST = {
    "README.md": 250,
    "sdeflow/README.md": 135,
    "sdeflow/data/README.md": 130,
    "sdeflow/parallel/README.md": 60,
    "sdeflow/simulation/README.md": 90,
    "sdeflow/sweep/README.md": 90,
    "sdeflow/tuning/README.md": 60,
    "sdeflow/callbacks/README.md": 90,
    "sdeflow/system/README.md": 190,
    "integrators/README.md": 120,
    "problems/README.md": 140,
    "analysis/README.md": 130,
    "analysis/RESULTS.md": 310,
    ".github/CONTRIBUTING.md": 150,
}
"""The documents, and the most lines of each."""

FEW = "3"
"""Steps of a run whose problem is not the document's own."""

every_document = pytest.mark.parametrize("document", LONGEST)


class Block(NamedTuple):
    """A fenced block, the file that the line before it names ('' for none), and the line it begins on."""

    language: str
    text: str
    file: str
    line: int


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    found: list[Block] = []
    lines = text_of(document).splitlines()
    said, begin = "", None
    for number, line in enumerate(lines):
        if line.startswith(("```", "~~~")):
            if begin is None:
                begin = number
                continue
            assert line == "```", f"{document}, line {number + 1}: a fence within a block"
            named = re.search(r"`(\w+\.(?:py|toml))`[^`]*:$", said)
            body = "\n".join(lines[begin + 1 : number]) + "\n"
            found.append(Block(lines[begin].strip("`~ "), body, named.group(1) if named else "", begin + 1))
            said, begin = "", None
        elif begin is None:
            said = line or said
    assert begin is None, f"{document}: the block of line {begin} has no end"
    return found


# Playing a document --------------------------------------------------------------------------------


class Played(NamedTuple):
    """The folder that a document was played in, and what its blocks printed, by their first lines."""

    folder: Path
    printed: dict[int, str]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Played]:
    """Plays a document, once."""

    @cache
    def played(document: str) -> Played:
        folder = tmp_path_factory.mktemp("checkout")
        for name in ("problems", "tests", "pyproject.toml"):
            (folder / name).symlink_to(ROOT / name)
        printed, namespace = {}, {"__name__": "example"}
        with contextlib.chdir(folder):
            for block in blocks(document):
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    play_block(block, namespace)
                printed[block.line] = out.getvalue()
        return Played(folder, printed)

    return played


def play_block(block: Block, namespace: dict[str, Any]) -> None:
    """Plays a block in this folder; the blocks of python share a namespace."""
    player = {"python": play_python, "toml": play_toml, "sh": play_sh}.get(block.language)
    assert player is not None, f"nobody tests a block of '{block.language}', line {block.line}"
    player(block, namespace)


def play_python(block: Block, namespace: dict[str, Any]) -> None:
    if block.file:
        Path(block.file).write_text(block.text, encoding="utf-8")
    exec(compile(block.text, block.file or "a block", "exec", dont_inherit=True), namespace)


def play_toml(block: Block, _: dict[str, Any]) -> None:
    path = Path(block.file or "problem.toml")
    path.write_text(block.text, encoding="utf-8")
    few = [override(f"run.steps={FEW}")]
    for variant in (None, *variant_tables(tomllib.loads(block.text))):
        assert solve(build(load_config(path, variant=variant, overrides=few))).retcode == "success"


def play_sh(block: Block, _: dict[str, Any]) -> None:
    for name, *arguments in calls(block.text):
        made = CALLS.get(Path(name).name)
        assert made is not None, f"nobody tests the command {name}"
        made(arguments)


def calls(script: str) -> list[list[str]]:
    """The commands of a script with their arguments, as bash reads them; each of them only notes its call."""
    stub = '#!/bin/sh\nprintf "%s\\0" "$#" "$0" "$@" >> "$CALLS"\n'
    for folder in (Path(".stubs"), Path(".venv/bin"), Path(".ci")):
        folder.mkdir(parents=True, exist_ok=True)
        for name in CALLS:
            (folder / name).write_text(stub)
            (folder / name).chmod(0o755)
    log = Path("calls").absolute()
    log.write_bytes(b"")
    environment = {"PATH": str(Path(".stubs").absolute()), "CALLS": str(log)}
    shell = [shutil.which("bash") or "bash", "-euc", script]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"bash: {done.stderr}"
    fields = iter(log.read_text().split("\0")[:-1])
    return [[next(fields) for _ in range(1 + int(count))] for count in fields]


# Calls ---------------------------------------------------------------------------------------------


def call_sdeflow(arguments: list[str]) -> None:
    name, *rest = arguments
    given = typer.main.get_command(app).commands[name].make_context(name, list(rest)).params
    if name == "fetch":
        dataset_named(given["name"])
    elif name in ("run", "show", "stability", "compare"):
        call_with_problem(name, rest, given)
    elif name == "sample" and not Path(rest[0]).exists():
        assert Path(rest[0]) in not_run, f"no command before makes {rest[0]}"
    else:
        few = {"sample": ["--n", "4", "--steps", FEW], "resume": ["--steps", FEW]}.get(name, [])
        assert command(name, *rest, *few) == 0


not_run: set[Path] = set()
"""Folders that runs would have made which need data from a network."""


def call_with_problem(name: str, rest: list[str], given: dict[str, Any]) -> None:
    path = problem_file(given["problem"])
    integrators = (given.get("integrators") or given.get("integrator") or "").split(",")
    configs = [configuration(path, given, integrator) for integrator in integrators]
    if any(config.model is not None and config.model.use == "images" for config in configs):
        (config,) = configs
        find("systems", config.system.use)
        scheme = integrator_named(config.run.integrator).name
        not_run.add(Path(f"runs/{path.stem}-{scheme}-s{config.run.seed}"))
    elif name == "run":
        own = path.parent == Path() and path.is_file()
        few = [] if own else ["--steps", FEW]
        assert command("run", *rest, *few) == 0
    else:
        for config in configs:
            build(config)


def configuration(path: Path, given: dict[str, Any], integrator: str) -> Config:
    """What a command would run, with an integrator of its list ('' for the file's own)."""
    over = [override(setting) for setting in given["settings"] or ()]
    if given["system"]:
        over.append({"system": {"use": given["system"]}})
    if given.get("start"):
        over.append({"start": {"run": given["start"]}})
    if integrator:
        over.append({"run": {"integrator": integrator}})
    return load_config(path, variant=given["variant"], overrides=over)


def call_torchrun(arguments: list[str]) -> None:
    """By one process: what several do is tested in tests/parallel."""
    at = arguments.index("-m")
    get_args_parser().parse_args([*arguments[:at], "script"])
    assert arguments[at + 1] == "sdeflow"
    call_sdeflow(arguments[at + 2 :])


def call_python(arguments: list[str]) -> None:
    match arguments:
        case ["-m", "venv", ".venv"] | ["-m", "pytest"] | ["-m", "pytest", "-m", "slow"]:
            return
        case ["-m", module, *rest]:
            with parsed(module, rest):
                found = importlib.import_module(module)
                if hasattr(found, "__path__"):  # a folder is run by its __main__
                    found = importlib.import_module(f"{module}.__main__")
                found.main()
        case [path, *rest]:
            with parsed(path, rest), pytest.MonkeyPatch.context() as patch:
                patch.syspath_prepend(ROOT / Path(path).parent)
                runpy.run_path(str(ROOT / path), run_name="__main__")
        case _:
            pytest.fail(f"nobody tests python {' '.join(arguments)}")


class Parsed(Exception):
    """A script's arguments are parsed, and it goes no further."""


@contextlib.contextmanager
def parsed(script: str, arguments: list[str]) -> Iterator[None]:
    """A context in which the script is to parse these arguments, and is stopped when it has."""
    parse = argparse.ArgumentParser.parse_args

    def stop(*given: Any) -> Any:
        parse(*given)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(Parsed):
            yield
    for argument in arguments:
        assert not argument.startswith("runs/") or glob(argument), f"no command before makes {argument}"


def call_pip(arguments: list[str]) -> None:
    """Of this checkout alone, with extras that it has."""
    action, editable, what = arguments
    extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", what)
    assert (action, editable, bool(extras)) == ("install", "-e", True)
    known = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    assert set((extras.group(1) or "").split(",")) - {""} <= set(known)


def call_ruff(arguments: list[str]) -> None:
    action, *options = arguments
    ruff = shutil.which("ruff", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if ruff is None:
        pytest.skip("ruff is not installed")
    told = subprocess.run([ruff, action, "--help"], capture_output=True, text=True, check=True).stdout
    for option in options:
        assert option == "." or f"{option}\n" in told, f"ruff {action} has no {option}"


def call_hooks(arguments: list[str]) -> None:
    assert arguments == ["install"]
    assert (ROOT / ".pre-commit-config.yaml").is_file()


def call_typecheck(arguments: list[str]) -> None:
    assert arguments == [".venv/bin/python"]
    assert os.access(ROOT / ".ci" / "typecheck", os.X_OK)


CALLS = {
    "sdeflow": call_sdeflow,
    "torchrun": call_torchrun,
    "python": call_python,
    "python3": call_python,
    "pip": call_pip,
    "ruff": call_ruff,
    "pre-commit": call_hooks,
    "typecheck": call_typecheck,
}
"""The commands of the documents: what is done with the arguments of a call."""


# What is played ------------------------------------------------------------------------------------


@every_document
def test_every_block_works(document: str, play: Callable[[str], Played]) -> None:
    assert len(play(document).printed) == len(re.findall(r"^```\w", text_of(document), re.MULTILINE))


STUDIES = "python -m sdeflow.analysis.studies"


@pytest.mark.parametrize(
    ("language", "text", "reason"),
    [
        ("", "text", "nobody tests a block of ''"),
        ("ruby", "puts 1", "nobody tests a block of 'ruby'"),
        ("python", "import nosuch", "No module named 'nosuch'"),
        ("toml", "[system]\nuse = 'mpgd'", "needs a model"),
        ("sh", "frobnicate --all", "command not found"),
        ("sh", "sdeflow list && frobnicate", "command not found"),
        ("sh", "sdeflow frobnicate", "frobnicate"),
        ("sh", "sdeflow run hierarchical --integrators ubu", "No such option: --integrators"),
        ("sh", "sdeflow run hierarchical --variant nosuch", "no variant 'nosuch'"),
        ("sh", "sdeflow run nosuch", "unknown problem 'nosuch'"),
        ("sh", "sdeflow compare hierarchical --integrators expint,nosuch --out c", "unknown integrator"),
        ("sh", "sdeflow sample runs/cifar10-expint-s0", "no command before makes"),
        ("sh", "python nosuch.py", r"nosuch\.py"),
        ("sh", f"{STUDIES}.nosuch", "No module named"),
        ("sh", f"{STUDIES}.orders --nosuch", "2"),
        ("sh", f"{STUDIES}.convergence runs/nosuch-*", "no command before makes"),
        ("sh", "pip install -e '.[nosuch]'", "nosuch"),
        ("sh", "ruff check --nosuch .", "ruff check has no --nosuch"),
    ],
)
def test_what_does_not_work_fails(
    language: str, text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Exception, SystemExit), match=reason):
        play_block(Block(language, text, "", 1), {})


def test_python_example_prints_the_answer(play: Callable[[str], Played]) -> None:
    """theta reaches the MLE of the toy model, the mean of the data, to about 3 of its fluctuations.

    theta averages 10^4 particles whose posterior variance is 1/2; its fluctuation is near 0.01.
    """
    from sdeflow.problems.hierarchical import Hierarchical

    example = next(block for block in blocks("README.md") if block.language == "python")
    assert len(example.text.splitlines()) <= 8
    theta, _loss = map(float, play("README.md").printed[example.line].split())
    assert theta == pytest.approx(Hierarchical(data=100).data.mean().item(), abs=0.05)


def test_own_model_system_and_integrator(play: Callable[[str], Played]) -> None:
    """The files of the README, as printed, ran under the command that the README prints."""
    example = next(block for block in blocks("README.md") if block.file == "counts.py")
    assert len(example.text.splitlines()) <= 55
    assert any(block.text == "sdeflow run counts.toml\n" for block in blocks("README.md"))
    folder = play("README.md").folder
    with xr.open_dataset(folder / "runs" / "counts-heun-s0" / "trajectory.nc") as run:
        assert run.attrs["retcode"] == "success"
        assert run.sizes["time"] == 51
        # the data were drawn with mean 1; its standard error with 200 Poisson counts is below 0.1
        assert run.theta.isel(time=slice(25, None)).mean() == pytest.approx(1.0, abs=0.4)


def test_own_scheme_finds_the_answer(play: Callable[[str], Played]) -> None:
    """theta to 5 of its fluctuations, which for 1000 particles are near 0.02."""
    from sdeflow.problems.hierarchical import Hierarchical

    example = next(block for block in blocks("integrators/README.md") if block.language == "python")
    theta, name = play("integrators/README.md").printed[example.line].split()
    assert name == "particlesfirst"
    assert float(theta) == pytest.approx(Hierarchical(data=100).data.mean().item(), abs=0.11)


def test_two_commands_are_one_line_each() -> None:
    run, test = (block.text for block in blocks("README.md") if block.text.startswith("python3 -m venv"))
    for line in (run, test):
        assert line.count("\n") == 1
        assert "pip install -e" in line
    assert run.endswith("sdeflow run problems/hierarchical.toml --integrator expint\n")
    assert test.endswith("-m pytest\n")


@pytest.mark.parametrize("module", ["sdeflow.analysis.studies.convergence", "sdeflow.analysis.convergence"])
def test_convergence_script_draws(module: str, tmp_path: Path) -> None:
    from sdeflow import Save, pgd, simulate
    from sdeflow.problems.hierarchical import Hierarchical

    for seed in (0, 1):
        system = pgd(Hierarchical(data=3), particles=2, theta={"h": 0.01}, x={"h": 0.1})
        out = tmp_path / f"run{seed}"
        simulate(system, "euler_maruyama", steps=20, seed=seed, replicas=2, save=Save(every=5), out=out)
    script = [sys.executable, "-m", module, "run0", "run1", "--out", "figure.svg"]
    subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)
    svg = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert svg.count("<path") > 10
    assert svg.rstrip().endswith("</svg>")


# Scores ---------------------------------------------------------------------------------------------


def told_scores(text: str) -> dict[str, list[str]]:
    """The rows of a table of scores, in order: titles as indented, and numbers."""
    lines = [line.rstrip() for line in text.splitlines()]
    begin = next(i for i, line in enumerate(lines) if line.startswith("score "))
    found: dict[str, list[str]] = {}
    for line in lines[begin:]:
        if not line:
            return found
        title, *numbers = re.split(r"(?<=\S)  +", line)
        found[f"{len(found)} {title}"] = numbers
    return found


def printed_scores() -> str:
    """The table of the README, which follows the commands that give it."""
    text = text_of("README.md")
    commands = "After `sdeflow run digits --set model.held_out=297`, `sdeflow evaluate runs/digits-baoab-s0`"
    indented = text[text.index(commands) :].split("\n\n")[1]
    return "\n".join(line.removeprefix("    ") for line in indented.splitlines()) + "\n\n"


def test_scores_are_told_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """The same columns and rows, of few images and steps."""
    monkeypatch.chdir(tmp_path)
    few = ["--set", "model.images=40", "--set", "model.held_out=9", "--steps", 5, "-q", "--out", "run"]
    assert command("run", "digits", *few) == 0
    code, out, _ = cli("evaluate", "run", "--temperatures", 5, "--langevin-steps", 5, "--no-pictures")
    assert code == 0
    now, printed = told_scores(out), told_scores(printed_scores())
    assert list(now) == list(printed)
    assert [len(numbers) for numbers in now.values()] == [len(numbers) for numbers in printed.values()]
    assert next(iter(now.values())) == next(iter(printed.values()))


@pytest.mark.slow
def test_scores_are_those_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """By the very commands, within 4 of the errors over data: another machine rounds a run otherwise."""
    monkeypatch.chdir(tmp_path)
    assert command("run", "digits", "--set", "model.held_out=297", "-q") == 0
    out = cli("evaluate", "runs/digits-baoab-s0").out
    now, printed = (list(told_scores(text).values())[1:] for text in (out, printed_scores()))
    for (value, error, *_), (expected, *_) in zip(now, printed, strict=True):
        assert abs(float(value) - float(expected)) < 4 * float(error)


# What is named -------------------------------------------------------------------------------------


@every_document
def test_is_no_longer_than_it_may_be(document: str) -> None:
    assert len(text_of(document).splitlines()) <= LONGEST[document]


@every_document
def test_scripts_that_the_text_names_take_their_arguments(document: str) -> None:
    for line in re.findall(r"`python ([^`\n]+)`", text_of(document)):
        call_python(line.split())


@pytest.mark.parametrize("problem", problem_files())
def test_modules_that_a_problem_names_are_there(problem: str) -> None:
    """Under their own names, not under those that they had before."""
    for name in re.findall(r"python -m ([\w.]+\w)", problem_files()[problem].read_text(encoding="utf-8")):
        spec = find_spec(name)
        assert spec is not None
        assert str(spec.origin).endswith(f"{name.removeprefix('sdeflow.').replace('.', '/')}.py")


@cache
def files() -> tuple[Path, ...]:
    """The files of the checkout that a document may name, from its root."""
    folders = ("sdeflow", "integrators", "problems", "analysis", "tests")
    below = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    return tuple(path.relative_to(ROOT) for path in (*below, *ROOT.glob("*.*")))


def names_in(path: Path) -> set[str]:
    """What a file of Python defines: its functions, classes and their methods, and its constants."""
    found: set[str] = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


@every_document
def test_files_that_the_text_names_are_there(document: str) -> None:
    """`path/file.py` is the end of a path, `path/file.py:name` something that is defined there."""
    own = {block.file for block in blocks(document)} | {
        "file.py",
        "toy.toml",
        "config.toml",
    }  # not of the checkout
    pattern = r"`([\w./-]+\.(?:py|toml|cpp|hpp|yaml|md))(?::([\w.]+))?`"
    for name, defined in re.findall(pattern, text_of(document)):
        if name in own or (ROOT / name).exists():
            continue
        parts = Path(name).parts
        found = [path for path in files() if path.parts[-len(parts) :] == parts]
        assert found, f"{document}: there is no file {name}"
        if defined:
            assert any(defined in names_in(path) for path in found), f"{document}: no {defined} in {name}"


@every_document
def test_links_lead_somewhere(document: str) -> None:
    here = (ROOT / document).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        path, _, anchor = link.partition("#")
        target = here / path if path else ROOT / document
        assert target.exists(), f"{document}: {link}"
        if anchor:
            titles = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, f"{document}: {link}"


# Tables that say what the code says ----------------------------------------------------------------


def rows(document: str, first: str) -> list[list[str]]:
    """The cells of the table whose first column has that title."""
    lines = text_of(document).splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |")) + 2
    cells = []
    while lines[begin].startswith("|"):
        cells.append([cell.strip() for cell in lines[begin].strip("|").split("|")])
        begin += 1
    return cells


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def test_callbacks_are_those_of_the_catalogue() -> None:
    told = {quoted(name)[0]: quoted(kind)[0] for name, kind, _ in rows("sdeflow/callbacks/README.md", "name")}
    assert told == {name: find("callbacks", name).__name__ for name in entries("callbacks")}


def test_integrators_are_as_they_declare() -> None:
    found = {}
    for _, names, increments, orders, evaluations, *_ in rows("integrators/README.md", "file"):
        for name in quoted(names):
            full = f"torchsde{name}" if name.startswith(":") else name
            found[full] = (increments, *orders.split(" / "), evaluations)
    schemes = {name: integrator_named(name) for name in entries("integrators") if name in found}
    assert found.keys() == schemes.keys()
    assert set(found) >= {n for n, p in entries("integrators").items() if p.value.startswith("sdeflow.")}
    for name, s in schemes.items():
        increments = s.increments + (", twice" if s.substeps == 2 else "")
        orders = (f"{s.strong_order:g}", f"{s.weak_order:g}")
        assert found[name] == (increments, *orders, str(s.evaluations)), name


def test_problems_are_the_packaged_ones() -> None:
    table = {name: row for row in rows("problems/README.md", "problem") for name in quoted(row[0])}
    assert table.keys() == problem_files().keys()
    for name, (_, _, models, variants) in table.items():
        tables = tomllib.loads(problem_files()[name].read_text(encoding="utf-8"))
        assert quoted(models) == ([tables["model"]["use"]] if "model" in tables else [])
        assert quoted(variants) == list(variant_tables(tables)), name


def test_rooms_are_those_of_the_architecture() -> None:
    """Each imports what is listed, besides errors, entries, state and seeds, for all; nothing below it."""
    for_all, above = {"errors", "entries", "state", "seeds"}, {"analysis"}
    for names, _, listed in rows("sdeflow/README.md", "room"):
        imports = above - {"analysis"} if listed == "all above" else {*filter(None, listed.split(", "))}
        assert imports <= above
        for name in quoted(names):
            room = name.removesuffix(".py").removesuffix("/")
            assert imports - for_all == ALLOWED[room] - for_all, room
            above.add(room)
    folders = {"integrators", "problems", "analysis"}
    assert above - {"analysis"} == ALLOWED.keys() - folders - {"__main__", "systems"}

"""BibTeX for what a run used: valid, from one file, which knows all that the catalogue names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import Cli

from sdeflow import Save, __version__, mpgd, simulate
from sdeflow.cli.cite import references
from sdeflow.config.catalogue import entries, find, integrator_named, problem_files
from sdeflow.data.datasets import DATASETS
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.published import Declaration

REQUIRED = {
    "article": {"author", "title", "journal", "year"},
    "book": {"author", "title", "publisher", "year"},
    "inproceedings": {"author", "title", "booktitle", "year"},
    "techreport": {"author", "title", "institution", "year"},
    "misc": {"author", "title", "year"},
}
"""What the standard styles ask of each kind of entry (of misc more than they do)."""

NAMED = re.compile(r"[A-Z][\w-]+(?:, [A-Z][\w-]+)*(?: et al\.)? \d{4}")
"""A reference in a text: 'Lim, Kuntz 2024' or 'Lim et al. 2024'."""


def parsed(text: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Kind and fields of each entry by key, by BibTeX's grammar; raises where a text does not follow it."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    at = text.find("@")
    while at >= 0:
        head = re.compile(r"@(\w+)\{([^\s,{}@%#~\\]+),\s*").match(text, at)
        assert head, text[at : at + 40]
        fields, at = {}, head.end()
        while text[at] != "}":
            field = re.compile(r"(\w+)\s*=\s*\{").match(text, at)
            assert field, text[at : at + 40]
            depth, end = 1, field.end()
            while depth:
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                end += 1
            assert field.group(1) not in fields
            fields[field.group(1)] = text[field.end() : end - 1]
            after = re.compile(r"\s*(,\s*|(?=\}))").match(text, end)
            assert after, text[end : end + 40]
            at = after.end()
        assert head.group(2) not in found
        found[head.group(2)] = head.group(1), fields
        at = text.find("@", at)
    return found


def keys(text: str) -> list[str]:
    return list(parsed(text))


def test_the_parser_refuses_what_is_no_bibtex() -> None:
    """What the next tests lean on."""
    good = "@misc{key,\n  title = {A {B} c},\n  year = {2024}\n}"
    assert parsed(f"% a comment\n{good}") == {"key": ("misc", {"title": "A {B} c", "year": "2024"})}
    for bad in (
        good.replace("},", "}"),
        good.replace("key,", ""),
        good + good,
        good.replace("{2024}", "{20"),
    ):
        with pytest.raises((AssertionError, IndexError)):
            parsed(bad)


def test_all_references_are_valid() -> None:
    text = "\n\n".join(reference.bibtex for reference in references())
    assert text.isascii()  # as BibTeX itself reads it
    found = parsed(text)
    assert list(found) == [reference.key for reference in references()]
    for key, (kind, fields) in found.items():
        assert REQUIRED[kind] <= fields.keys(), key
        assert re.fullmatch(r"\d{4}", fields["year"]), key
        assert all(fields.values()), key
        assert fields.get("archiveprefix", "arXiv") == "arXiv"
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields.get("eprint", "2000.00000")), key
        assert not re.search(r"(?<!\\)[&#$%_]", "".join(fields.values())), key
    assert found["sdeflow"][1]["note"] == f"Version {__version__}"


def sources() -> dict[str, str]:
    """What the catalogue says of where things come from, by name."""
    schemes = {name: integrator_named(name).source for name in entries("integrators")}
    systems = {
        name: found for name in entries("systems") if isinstance(found := find("systems", name), Declaration)
    }
    rules = {name: find("optimizers", name).source for name in entries("optimizers")}
    data = {name: dataset.source for name, dataset in DATASETS.items()}
    return schemes | rules | {name: found.source for name, found in systems.items()} | data


@pytest.mark.parametrize("name", sources())
def test_every_source_has_its_references(name: str) -> None:
    """As many as it names, and each is that of its author, year and number on arXiv."""
    source = sources()[name]
    named = NAMED.findall(source)
    found = [reference for reference in references() if reference.named_in(source)]
    assert len(found) == len(named)
    assert named
    for reference in found:
        assert any(reference.surname in text and reference.year in text for text in named)
    numbers = re.findall(r"arXiv:(\d{4}\.\d{4,5})", source)
    assert {*numbers} <= {reference.eprint for reference in found}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["ubu"], {"sanzserna2021wasserstein"}),
        (["euler_maruyama", "mpgd"], {"maruyama1955continuous", "kloeden1992numerical", "lim2024momentum"}),
        (["hierarchical"], {"lim2024momentum", "kuntz2023particle"}),
        (["linear_energy"], {"marks2025learning"}),  # its scheme is "auto", which a run resolves
        (["mnist"], {"lim2024momentum", "lecun1998gradient", "tieleman2012rmsprop"}),
        (["breast_cancer"], {"lim2024momentum", "kuntz2023particle", "street1993nuclear"}),
        (["images"], {"lim2024momentum"}),
        (["adam"], {"kingma2015adam"}),
    ],
)
def test_names_are_cited(cli: Cli, names: list[str], expected: set[str]) -> None:
    code, out, err = cli("cite", *names)
    assert (code, err) == (0, "")
    assert {*keys(out)} == expected | {"sdeflow"}


def test_every_problem_is_cited(cli: Cli) -> None:
    code, out, _ = cli("cite", *problem_files())
    assert code == 0
    assert {"lim2024momentum", "marks2025learning", "krizhevsky2009learning", "sdeflow"} <= {*keys(out)}


def test_a_run_is_cited_by_what_it_used(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line and from Python, where the model and the system are not told."""
    monkeypatch.chdir(tmp_path)
    options = (
        "--integrator",
        "baoab",
        "--system",
        "kiplmc",
        "--noise",
        "torch",
        "--steps",
        2,
        "-q",
        "--out",
        "a b",
    )
    assert cli("run", "hierarchical", *options).code == 0
    out = cli("cite", "a b").out
    used = {"leimkuhler2013rational", "oliva2024kinetic", "lim2024momentum", "kuntz2023particle", "sdeflow"}
    assert {*keys(out)} == used
    assert "% baoab\n@article{leimkuhler2013rational" in out
    motion = {"h": 0.01, "eta": 1.0, "gamma": 1.0}
    system = mpgd(Hierarchical(data=2), particles=1, theta=motion, x=motion)
    simulate(system, "obabo", steps=2, noise="torch", save=Save(every=1), out="python")
    assert {*keys(cli("cite", "python").out)} == {"bussi2007accurate", "sdeflow"}


def test_a_file_of_a_user_is_read_and_not_run(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        'open("ran", "w")\n\nclass Mine:\n    """As Pang et al. 2020, by me@home."""\n', encoding="utf-8"
    )
    Path("mine.toml").write_text(
        "model = { use = 'mine.py:Mine' }\nsystem = { use = 'mine.py:other' }\n", encoding="utf-8"
    )
    code, out, err = cli("cite", "mine.toml")
    assert (code, err) == (0, "")
    assert {*keys(out)} == {"pang2020learning", "sdeflow"}
    assert "mine.py:other: no reference is known" in out
    assert not Path("ran").exists()


def test_what_is_nothing_is_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, sentence in (
        (
            "expnt",
            "'expnt' is no integrator, system, optimizer, model or problem, and no run folder: "
            "did you mean 'expint'?",
        ),
        (".", ". is no run folder"),
        ("no.toml", "there is no file no.toml"),
    ):
        code, out, err = cli("cite", name)
        assert (code, out) == (2, "")
        assert err.startswith(f"sdeflow: {sentence}")
        assert err.count("\n") == 1

"""Every key of a TOML file as `sdeflow show --full` tells it: there, right, and on the committed page."""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from commands import Cli
from pydantic import TypeAdapter, ValidationError

from sdeflow.cli.keys import keys_page
from sdeflow.config.arguments import typed
from sdeflow.config.catalogue import entries, find, problem_files
from sdeflow.config.keys import NOTHING, REQUIRED, Key, Table, described, in_words, of_arguments, tables
from sdeflow.config.schema import _TABLES, Config, variant_tables
from sdeflow.errors import SdeflowError
from sdeflow.options import Choice, Count, Save
from sdeflow.system.motion import Motion

PAGE = Path(__file__).parents[2] / "sdeflow" / "config" / "README.md"
ALL = tables(own=True)


def named(name: str, use: str = "") -> Table:
    (found,) = (t for t in ALL if t.name == name and (use in t.use or not use) and bool(use) == bool(t.use))
    return found


def keys(table: Table) -> dict[str, Key]:
    return {key.name: key for key in table.keys}


def test_the_page_is_what_the_command_writes() -> None:
    told = "the page is old: python -m sdeflow show --full --markdown > sdeflow/config/README.md"
    assert PAGE.read_text(encoding="utf-8") == keys_page(), told


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.title)
def test_every_key_is_described_and_typed(table: Table) -> None:
    assert table.about
    for key in table.keys:
        assert key.what, f"{table.title}: no line of a docstring says what {key.name} is"
        assert key.type
        assert "[" not in key.unit


def used(problem: str) -> Iterator[tuple[str, str, str, Any]]:
    """The keys of a packaged problem and of its variants: table, use, key and value."""
    file = tomllib.loads(problem_files()[problem].read_text(encoding="utf-8"))
    for part in ({k: v for k, v in file.items() if k != "variants"}, *variant_tables(file).values()):
        for name, value in part.items():
            if not isinstance(value, dict):
                yield "at the top", "", name, value
                continue
            use = file[name]["use"] if name in ("model", "system") else ""
            use = value.get("use", use)
            for key, given in value.items():
                yield f"[{name}]", "" if key in ("use", "energy_prior") else use, key, given
                if name == "system" and isinstance(given, dict):
                    yield from (("[system.BLOCK]", "", number, one) for number, one in given.items())


@pytest.mark.parametrize("problem", problem_files())
def test_every_key_of_the_packaged_problems_is_there(problem: str) -> None:
    for table, use, key, _ in used(problem):
        assert key in keys(named(table, use)), f"{table} {use}: {key}"


@pytest.mark.parametrize("name", _TABLES)
def test_defaults_and_required_keys_are_those_of_the_schema(name: str) -> None:
    """A table of nothing but the defaults, as they are told, is the table of none."""
    table, options = named(f"[{name}]"), _TABLES[name]
    required = [key.name for key in table.keys if key.default == REQUIRED]
    least: dict[str, Any] = {key: "runs/toy" if key == "run" else 5 for key in required}
    least |= {"gamma": [0.5]} if name == "grid" else {}
    told = "\n".join(
        f"{k.name} = {k.default}"
        for k in table.keys
        if k.default not in (REQUIRED, NOTHING) and k.name not in least
    )
    adapter = TypeAdapter(options)
    whole = adapter.validate_json(json.dumps(tomllib.loads(told) | least))
    assert whole == adapter.validate_json(json.dumps(least))
    assert {key.name for key in table.keys} == {f.name for f in fields(options)}
    for key in required:
        with pytest.raises(ValidationError, match=key):
            adapter.validate_json(json.dumps({k: v for k, v in least.items() if k != key}))


@pytest.mark.parametrize("name", [n for n, p in entries("models").items() if p.value.startswith("sdeflow.")])
def test_a_model_of_the_defaults_told_is_the_model(name: str) -> None:
    """Each argument that is told has the default that the class has; there are no others."""
    found, told = inspect.signature(find("models", name)).parameters, keys(named("[model]", name))
    assert list(told) == list(found)
    for key, parameter in found.items():
        if told[key].default == REQUIRED:
            assert parameter.default is parameter.empty
        elif told[key].default == NOTHING:
            assert parameter.default is None
        else:
            value = tomllib.loads(f"v = {told[key].default}")["v"]
            own = parameter.default
            assert value == (list(own) if isinstance(own, tuple) else own)
            assert type(value) is (list if isinstance(own, tuple) else type(own))


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "whole number"),
        (Count, "whole number ≥ 1"),
        (float | None, "number"),
        (Choice, '"all", whole number ≥ 1 or list of whole numbers ≥ 0'),
        (Literal["a", "b"] | bool, '"a", "b" or true or false'),
        (tuple[float, float], "list of 2 numbers"),
        (tuple[int, ...], "list of whole numbers"),
        (Motion | dict[str, Any], "table"),
        (Any, "any"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert in_words(annotation) == words


def test_what_words_say_of_a_range_is_what_is_taken() -> None:
    """save.every is 'whole number ≥ 1', evaluated by the checks that a run makes."""
    assert keys(named("[save]"))["every"][1:4] == ("whole number ≥ 1", "10", "steps")
    assert replace(Save(), every=1).every == 1
    for wrong in (0, 1.5, "many"):
        with pytest.raises(SdeflowError):
            Save(every=wrong)  # type: ignore[arg-type]
    with pytest.raises(SdeflowError, match="temperature"):
        typed(Motion, {"temperature": "warm"}, "system.x")


class Base:
    """A model's base.

    one, two   [seconds] of both,
               in two lines
    """


class Derived(Base):
    """x = y, which is no key, as this is a paragraph.

        three   is indented, and an equation

    two     replaces what the base says [R, ...]

    four    [of the block] has no unit
    """

    def __init__(self, two: float, one: float = 2, *, five=1e-3, data: Any = None) -> None: ...  # type: ignore[no-untyped-def]


def test_docstrings_say_what_keys_are() -> None:
    assert described(Derived) == {
        "one": "[seconds] of both, in two lines",
        "two": "replaces what the base says [R, ...]",
        "four": "[of the block] has no unit",
    }
    two, one, five, _ = of_arguments(Derived)
    assert two == Key("two", "number", REQUIRED, "1", "replaces what the base says [R, ...]")
    assert one == Key("one", "number", "2", "seconds", "seconds of both, in two lines")
    assert five == Key("five", "number", "0.001", "1", "")
    assert [key.name for key in of_arguments(Derived, ["data", "one"])] == ["two", "five"]


def test_new_tables_of_the_schema_are_found() -> None:
    """Whatever Config has is on the page, in a table of its own or at the top."""
    titles = {table.name.strip("[]") for table in ALL} | {*keys(named("at the top"))}
    assert {*Config.model_fields} <= titles


def test_show_full(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = cli("show", "--full")
    assert (code, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    at = lines.index("every = 10  (whole number ≥ 1; steps)")
    assert lines[at + 1] == "steps between snapshots; the start and the last step are always among them"
    assert '[model], use = "hierarchical"' in lines
    assert cli("show", "--full", "--markdown").out == PAGE.read_text(encoding="utf-8")
    for wrong in (("show",), ("show", "--markdown"), ("show", "hierarchical", "--full")):
        code, out, err = cli(*wrong)
        assert (code, out) == (2, "")
        assert err.startswith("sdeflow: show takes a problem")
        assert err.count("\n") == 1

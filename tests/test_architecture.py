"""The rooms of the package: imports run one way, at the level of files and of folders, and files stay short.

Imports within functions count for the rooms, and not for circles and chains of files: they load nothing
by themselves. Imports for type checkers alone count for neither.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

GROUND = {"errors", "entries", "state", "seeds"}
ALLOWED = {
    "state": set[str](),
    "seeds": set[str](),
    "errors": set[str](),
    "entries": {"errors"},
    "options": {"errors"},
    "terminal": set[str](),
    "machine": set[str](),
    "model": GROUND,
    "system": GROUND | {"options", "model"},
    "noise": GROUND | {"system"},
    "parallel": GROUND | {"model", "system"},
    "engine": GROUND | {"options", "machine", "system", "noise", "parallel"},
    "tuning": GROUND | {"options", "system"},
    "config": GROUND | {"options", "model", "system", "parallel", "engine"},
    "trajectory": GROUND | {"options", "model", "system"},
    "callbacks": GROUND | {"trajectory"},
    "simulation": GROUND
    | {"options", "terminal", "machine", "model", "system", "noise", "parallel", "engine", "tuning"}
    | {"config", "trajectory", "callbacks"},
    "data": GROUND | {"terminal", "machine", "model"},
    "integrators": {"system"},
    "problems": {"errors", "model", "data"},
    "analysis": GROUND
    | {"terminal", "machine", "model", "system", "noise", "parallel", "engine", "config", "trajectory"}
    | {"simulation", "data", "problems"},
    "sweep": {"errors", "config", "trajectory"},
    "cli": GROUND
    | {"terminal", "model", "system", "parallel", "config", "trajectory", "callbacks", "simulation"}
    | {"sweep", "data", "analysis"},
    "__main__": {"cli"},
    "systems": {"system"},
}
"""What each room may import, GROUND being for all; a study of `analysis` is about models of `problems`."""

CORE_LINES, CHAIN = 350, 11


@cache
def modules() -> dict[str, Path]:
    """All modules by name, those of the folders beside sdeflow/ too."""
    found = {}
    for top in ("sdeflow", "integrators", "problems", "analysis"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if top == "sdeflow" else ("sdeflow", *parts))
            found[name.removesuffix(".__init__")] = path
    del found["sdeflow"]
    return found


def imported(name: str, *, in_functions: bool) -> set[str]:
    """The modules of the package that a module imports at run time."""
    found = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not in_functions:
                continue
            if isinstance(child, ast.ImportFrom) and child.module and child.module.startswith("sdeflow"):
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    found.add(whole if whole in modules() else child.module)
            elif isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            visit(child)

    visit(ast.parse(modules()[name].read_text(encoding="utf-8")))
    return (found & modules().keys()) - {name}


def room(name: str) -> str:
    return name.split(".")[1]


def test_every_room_is_in_the_table() -> None:
    assert {room(name) for name in modules()} == ALLOWED.keys()
    assert all(allowed <= ALLOWED.keys() for allowed in ALLOWED.values())


@pytest.mark.parametrize("of", ALLOWED)
def test_a_room_imports_what_it_may(of: str) -> None:
    arrows = {
        (name, to)
        for name in modules()
        if room(name) == of
        for to in imported(name, in_functions=True)
        if room(to) not in ALLOWED[of] | {of}
    }
    assert not arrows


def test_every_arrow_of_the_table_is_used() -> None:
    used = {(room(name), room(to)) for name in modules() for to in imported(name, in_functions=True)}
    assert {(of, to) for of, allowed in ALLOWED.items() for to in allowed - GROUND} - used == set()


def test_rooms_form_no_circle() -> None:
    """Some room can always be built next out of those that there are."""
    built: set[str] = set()
    while len(built) < len(ALLOWED):
        ready = {name for name, needs in ALLOWED.items() if needs <= built} - built
        assert ready, f"a circle among {ALLOWED.keys() - built}"
        built |= ready


def test_files_form_no_circle_and_no_long_chain() -> None:
    arrows = {name: imported(name, in_functions=False) for name in modules()}
    longest: dict[str, list[str]] = {}

    def chain(name: str, above: tuple[str, ...] = ()) -> list[str]:
        assert name not in above, f"a circle: {' -> '.join([*above[above.index(name) :], name])}"
        if name not in longest:
            below = (chain(to, (*above, name)) for to in sorted(arrows[name]))
            longest[name] = [name, *max(below, key=len, default=[])]
        return longest[name]

    found = max((chain(name) for name in arrows), key=len)
    assert len(found) <= CHAIN, " -> ".join(found)


def test_files_of_the_core_stay_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values()}
    assert {path.name: n for path, n in lengths.items() if n > CORE_LINES} == {}


def test_a_face_is_a_sentence_and_names() -> None:
    """So whoever imports a room runs nothing of it but what it hands on."""
    for name, path in modules().items():
        if path.name == "__init__.py" and path.parent.parent == ROOT / "sdeflow":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert ast.get_docstring(ast.Module(body, [])), name
            assert all(isinstance(node, ast.ImportFrom) for node in body[1:]), name
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 30, name

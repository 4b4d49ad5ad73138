"""Every key of a problem's TOML, for a terminal and as a page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.padding import Padding
from rich.text import Text

from sdeflow.config.keys import NOTHING, REQUIRED, Key, Table, tables
from sdeflow.terminal import out, shown

PAGE = """# Every key of a TOML file

What a problem may say, table by table, with `--set TABLE.KEY=VALUE` on the command line too. Made by
`sdeflow show --full --markdown` of what takes the keys; a model, a system or an SDE of your own has the keys
that its arguments are. A default `none` is that of a key which may be left out and has no value then. Units:
`1` is a pure number, and where there is none the value is no number.
"""


def show_keys() -> None:
    """Prints them all, a line and what it is for each."""
    for table in tables():
        out.print(Text(shown(table.title), style="bold"))
        out.print(Text(shown(table.about)))
        for key in table.keys:
            out.print(Padding(Text.assemble((key.name, "cyan"), shown(_facts(key))), (0, 0, 0, 2)))
            out.print(Padding(Text(shown(key.what)), (0, 0, 0, 6)))
        out.print()


def keys_page() -> str:
    """The same as a page in Markdown, of what sdeflow itself brings."""
    return "\n".join([PAGE, *map(_section, tables(own=True))])


def _facts(key: Key) -> str:
    default = {REQUIRED: f", {REQUIRED}", NOTHING: ""}.get(key.default, f" = {key.default}")
    unit = "" if key.unit in ("", "1") else f"; {key.unit}"
    return f"{default}  ({key.type}{unit})"


def _section(table: Table) -> str:
    title = f"## `{table.title}`" if table.title.startswith("[") else f"## {table.title.capitalize()}"
    lines = [title, "", _escaped(table.about)]
    if table.keys:
        lines += ["", *_rows([("key", "type", "default", "unit", "what it is"), ("---",) * 5])]
        lines += _rows([_cells(key) for key in table.keys])
    return "\n".join([*lines, ""])


def _cells(key: Key) -> tuple[str, ...]:
    default = key.default if key.default in (REQUIRED, NOTHING) else f"`{key.default}`"
    return f"`{key.name}`", _escaped(key.type), default, key.unit, _escaped(key.what)


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    return [" | ".join(["", *(cell.replace("|", "\\|") for cell in row), ""]).strip() for row in rows]


def _escaped(text: str) -> str:
    """Text whose signs are no marks of Markdown, but what it has in backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<\\])", r"\\\1", part) for part in parts)

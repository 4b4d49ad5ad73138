"""Pages of one file: figures are SVG or PNG inside them, and nothing is fetched from anywhere."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; --ink: #1c2733; --soft: #5b6b7a; --line: #d9e0e6; --bad: #a4262c; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p.sub, figcaption, footer { color: var(--soft); font-size: .9rem; }
figure { margin: 0; } figure svg, img { display: block; width: 100%; height: auto; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .5rem; }
figure.small svg { max-width: 32rem; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: right; padding: .35rem .5rem; vertical-align: bottom;
         border-top: 1px solid var(--line); }
tr > :first-child { text-align: left; } thead th { border: 0; font-weight: 600; color: var(--soft); }
tbody th, .number { white-space: nowrap; }
tr.bad > * { color: var(--bad); }
tr.note td { border: 0; padding-top: 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
pre { background: #f5f7f9; padding: .8rem; font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 70rem) {
  thead, td:empty { display: none; } table, tbody, tr { display: block; max-width: 34rem; }
  tbody th { display: block; white-space: normal; overflow-wrap: anywhere; }
  tbody td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem .5rem; }
  td[data-label]::before { content: attr(data-label); color: var(--soft); }
}
"""


SHOWN = ("source", "versions", "git_commit", "device", "platform", "noise_source", "engine", "dtype", "seed")


def document(title: str, parts: Sequence[str], refresh: int = 0) -> str:
    """A page of these parts, as HTML text; a browser loads it anew after `refresh` seconds, never at 0."""
    body = "\n".join(parts)
    again = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{again}<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(title: str, content: str, caption: str, size: str = "wide") -> str:
    shown = f"<figcaption>{escape(caption)}</figcaption>"
    return f"<h2>{title}</h2>\n<figure class={size}>{content}{shown}</figure>"


def panels(figures: Sequence[Figure]) -> str:
    """Figures side by side, or below each other where there is no room."""
    return f"<div class=panels>{''.join(map(svg, figures))}</div>"


def svg(figure: Figure) -> str:
    """The figure as an SVG element, its text as text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "sdeflow", "font.family": "sans-serif"}
    ):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def provenance(attrs: Mapping[str, Any], more: Sequence[tuple[str, str]] = ()) -> str:
    """What made the numbers, from the attributes of a run, with more pairs of name and value."""
    pairs = [(name, str(attrs[name])) for name in (*SHOWN, "system") if str(attrs.get(name, ""))]
    lines = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in (*pairs, *more))
    config = str(attrs.get("config", ""))
    shown = f"<h2>Configuration</h2><pre>{escape(config)}</pre>" if config else ""
    return f"<h2>Where it comes from</h2><dl>{lines}</dl>{shown}"


def table(rows: Sequence[dict[str, str]], bad: Sequence[bool] | None = None) -> str:
    """A row for each dictionary, a column for each key; on a narrow page each row becomes a list.

    bad   which rows are told apart as such
    """
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in rows[0])
    lines = []
    for row, wrong in zip(rows, bad or [False] * len(rows), strict=True):
        (_, first), *rest = row.items()
        cells = "".join(
            f'<td data-label="{escape(name)}"{unbroken(cell)}>{escape(cell)}</td>' for name, cell in rest
        )
        kind = " class=bad" if wrong else ""
        lines.append(f"<tr{kind}><th scope=row>{escape(first)}</th>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def unbroken(cell: str) -> str:
    """The class of a number, which is kept on a line."""
    return " class=number" if cell[:1].isdigit() or cell.startswith(("+", "-")) else ""


def png(figure: Figure, title: str) -> str:
    """The figure as a picture of pixels, with what it shows in words."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    data = b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'

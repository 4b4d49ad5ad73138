"""Makes the API reference: pages of HTML from the docstrings, by pdoc (the extra `docs`).

    python .ci/api.py --out api

The page of `sdeflow` has its public names, wherever they are defined, and that of `sdeflow.system` its own;
every other module has a page of what it defines. Docstrings are plain text: prose, lists of names with what
each is, and equations that are laid out by hand, told apart by their columns.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from html import escape
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import jinja2
from markupsafe import Markup

import sdeflow.analysis

LEFT_OUT = (
    "sdeflow.__main__",
    "sdeflow.cli",
    "sdeflow.systems",
    "sdeflow.noise._philox",
    "sdeflow.noise.cuda",
)
"""The command line, an old name, the kernel, and what a GPU's packages are needed to import."""

ROW = r"([\w.']+(?:, [\w.']+)*) {2,}(.*(?:\n +.*)*)"
"""A name, or several, and what it is."""

PAGE = """
{% extends "default/module.html.jinja2" %}
{% macro is_public(doc) %}
    {% if doc.name == "__call__" %}
        true
    {% elif doc.docstring or doc.kind != "variable" or "." not in doc.qualname %}
        {{ default_is_public(doc) }}
    {% endif %}
{% endmacro %}
"""
"""Systems are called; a class's docstring has its attributes, so that those without one of their own go."""

STYLE = """
.pdoc .docstring pre { white-space: pre; overflow-x: auto; }
.pdoc .docstring dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: 0.2rem 1rem; }
.pdoc .docstring dt, .pdoc .docstring dd { margin: 0; }
.pdoc .docstring dt { font-family: var(--bs-font-monospace, monospace); font-size: 0.875em; }
@media (max-width: 600px) {
    .pdoc .docstring dl { display: block; }
    .pdoc .docstring dd { margin: 0 0 0.4rem 1.5rem; }
}
"""


def html(docstring: str) -> Markup:
    """A docstring's paragraphs as HTML: lists of names as such, what is laid out by hand as it is, prose."""
    made = []
    for part in docstring.strip("\n").split("\n\n"):
        text = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(dedent(part), quote=False))
        if not part.startswith(" ") and re.fullmatch(rf"(?:{ROW}\n?)+", text):
            rows = re.findall(ROW, text)
            made.append("<dl>" + "".join(f"<dt>{name}</dt><dd>{what}</dd>" for name, what in rows) + "</dl>")
        else:
            tag = "pre" if re.search(r"^ |  ", part, re.MULTILINE) else "p"
            made.append(f"<{tag}>{text}</{tag}>")
    return Markup("\n".join(made))


class Written(str):
    """An annotation as it is written. pdoc would evaluate it, but some names are for type checkers alone."""

    __repr__ = str.__str__


def as_written(annotation: object, *_: object) -> object:
    return Written(annotation) if isinstance(annotation, str) else annotation


def hand_on(package: str) -> None:
    """Gives the page of a package the names that it hands on, which it imports, if only for type checkers.

    pdoc leaves out what is imported unless __all__ names it, and lists the modules only without one.
    """
    import pdoc

    page = pdoc.doc.Module.from_name(package)
    face = vars(page.obj)
    imports = [
        node
        for node in ast.walk(ast.parse(Path(face["__file__"]).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sdeflow.")
    ]
    homes = {alias.name: node.module for node in imports for alias in node.names}
    face.update({name: getattr(page.obj, name) for name in homes})
    face["__all__"] = sorted(homes, key=str.lower)
    for name, member in page.members.items():  # a constant's docstring stands in its own module alone
        member.docstring = member.docstring or pdoc.doc.Module.from_name(homes[name]).members[name].docstring
    del face["__all__"]
    face.pop("__dir__", None)  # which asks for __all__


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("api"), help="a folder (default: api)")
    out = parser.parse_args().out

    import pdoc

    pdoc.render.configure(show_source=False, footer_text=f"sdeflow {sdeflow.__version__}")
    templates = jinja2.DictLoader({"custom.css": STYLE, "module.html.jinja2": PAGE})
    pdoc.render.env.loader = jinja2.ChoiceLoader([templates, pdoc.render.env.loader])
    pdoc.render.env.filters |= {"to_markdown": str, "to_html": html}

    pdoc.doc.safe_eval_type = pdoc.doc_types.safe_eval_type = as_written
    del sdeflow.analysis.__path__[1:]  # names of before
    for name in LEFT_OUT:
        sys.modules.setdefault(name, ModuleType(name))  # pdoc would import them all the same
    hand_on("sdeflow")
    hand_on("sdeflow.system")
    pdoc.pdoc("sdeflow", *(f"!{name}" for name in LEFT_OUT), output_directory=out)
    print(out / "index.html")


if __name__ == "__main__":
    main()

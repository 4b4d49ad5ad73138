"""The API reference, as `.ci/api.py` makes it of the docstrings."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pytest

import sdeflow
import sdeflow.system

SCRIPT = Path(__file__).parent.parent / ".ci" / "api.py"


@pytest.fixture(scope="module")
def html() -> Callable[[str], str]:
    found: Callable[[str], str] = runpy.run_path(str(SCRIPT))["html"]
    return found


def test_prose_is_a_paragraph(html: Callable[[str], str]) -> None:
    assert html("It is so\nwhere `x` < 1.") == "<p>It is so\nwhere <code>x</code> &lt; 1.</p>"


def test_a_list_of_names_is_one(html: Callable[[str], str]) -> None:
    made = html("h         the step,\n          in time\ntheta, x  blocks")
    assert made == "<dl><dt>h</dt><dd>the step,\n          in time</dd><dt>theta, x</dt><dd>blocks</dd></dl>"


@pytest.mark.parametrize(
    "laid_out", ["q' = q + h p,    p' = p + h f", "    q' = q\n    p' = p", "    a  b\n    c  d"]
)
def test_equations_stay_as_they_are_laid_out(html: Callable[[str], str], laid_out: str) -> None:
    assert html(f"As:\n\n{laid_out}") == f"<p>As:</p>\n<pre>{dedent(laid_out)}</pre>"


@pytest.mark.slow
def test_every_public_name_has_its_docstring_on_a_page(tmp_path: Path) -> None:
    """Made without a warning, with links that lead somewhere."""
    pytest.importorskip("pdoc", reason="pdoc is not installed, the extra `docs`")
    make = [sys.executable, "-W", "error", str(SCRIPT), "--out", str(tmp_path)]
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

    face = [name for name, value in vars(sdeflow.system).items() if not isinstance(value, ModuleType)]
    for page, names in (("sdeflow", sdeflow.__all__), ("sdeflow/system", face)):
        at = tmp_path / f"{page}.html"
        text = at.read_text(encoding="utf-8").partition("<script")[0]
        for name in (name for name in names if not name.startswith("__")):
            (section,) = re.findall(rf'<section id="{name}">(.*?)</section>', text, re.DOTALL)
            assert re.search(r'<div class="docstring"><(p|pre|dl)>', section), name
        for to, anchor in re.findall(r'href="([^":#]*)#?([^":]*)"', text):
            there = (at.parent / to if to else at).read_text(encoding="utf-8")
            assert not anchor or f' id="{anchor}"' in there, f"{page}: {to}#{anchor}"

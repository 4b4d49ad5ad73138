"""The notebooks: without outputs, short, and every cell runs, with warnings as errors.

They are run as plain Python in a fresh process, so that no kernel is needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sdeflow import pgd, simulate
from sdeflow.problems.hierarchical import Hierarchical

FOLDER = Path(__file__).parent.parent.parent / "analysis" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
NEEDS = {"arviz_dask": ("arviz", "dask")}

PLAY = """
import json, sys
from pathlib import Path
cells = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]
names = {"__name__": "__main__"}
for number, cell in enumerate(cells):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
"""

every_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def notebook(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return read


def test_each_is_named_where_they_are_listed() -> None:
    told = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert [name for name in NOTEBOOKS if f"(notebooks/{name}.ipynb)" not in told] == []
    assert len(NOTEBOOKS) == told.count("(notebooks/")


@every_notebook
def test_it_is_short_and_has_no_outputs(name: str) -> None:
    """`jupyter nbconvert --clear-output --inplace FILE` takes them out."""
    cells = notebook(name)["cells"]
    assert 8 <= len(cells) <= 15
    for cell in cells:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), cell["source"]


@every_notebook
def test_jupyter_can_open_it(name: str) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(notebook(name))
    assert notebook(name)["nbformat"] == 4


@pytest.mark.slow
@every_notebook
def test_it_runs_and_finds_what_it_says(name: str, tmp_path: Path) -> None:
    """Each has asserts of its own."""
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module, reason=f"{module} is not installed, the extra `analysis`")
    play = [sys.executable, "-W", "error", "-c", PLAY, str(FOLDER / f"{name}.ipynb")]
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(play, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_notebook_shows_the_figure_of_a_run() -> None:
    """By a method of its own: matplotlib's figures are shown once pyplot has drawn one, and not before."""
    system = pgd(Hierarchical(data=3), particles=2, theta={"h": 0.01}, x={"h": 0.1})
    png = simulate(system, steps=2).sdeflow.plot()._repr_png_()
    assert png.startswith(b"\x89PNG\r\n")

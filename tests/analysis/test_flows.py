"""Pictures of flows in the plane: what is drawn, told and refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from commands import exit_code

from sdeflow.analysis.studies import flows
from sdeflow.errors import SdeflowError


def test_a_row_has_clouds_and_paths() -> None:
    """Each cloud has all paths, those of a flow at the end lie about the components of their colours."""
    figure = flows.draw(["interpolant:straight"], paths=60)
    *clouds, lines = figure.axes
    assert [len(panel.collections[0].get_offsets()) for panel in clouds] == [60] * 4
    end = np.asarray(clouds[-1].collections[0].get_offsets())
    colours = clouds[-1].collections[0].get_facecolors()
    for colour in np.unique(colours, axis=0):
        own = end[(colours == colour).all(1)]
        assert np.abs(own - own.mean(0)).max() < 2
    assert len(lines.get_lines()) == flows.LINES
    found = re.fullmatch(r"energy (\S+) ± \S+\nleast (\S+)", lines.get_xlabel())
    assert found
    assert float(found[1]) > float(found[2])


def test_along_noise_no_energy_is_told() -> None:
    assert flows.draw(["interpolant:sde"], paths=20).axes[-1].get_xlabel() == ""


def test_rows_that_are_not_in_the_plane_are_refused() -> None:
    for row in ("hierarchical", "ornstein_uhlenbeck"):
        with pytest.raises(SdeflowError, match=f"{row} has no paths in the plane"):
            flows.run_of(row)


def test_the_script_writes_a_figure(tmp_path: Path) -> None:
    out = tmp_path / "flows.svg"
    assert exit_code(flows.main, "pfgmpp", "--paths", 30, "--out", out) == 0
    assert out.stat().st_size > 1000
    assert exit_code(flows.main, "hierarchical", "--out", out) == 2

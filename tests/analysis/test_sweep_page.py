"""The page of a sweep shows every run, and each curve in the colour of its value."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import Cli
from matplotlib.colors import to_hex
from tiny import TINY

from sdeflow.analysis.comparison.sweep_page import Colours, _figure, _last, lines, observables, page, swept
from sdeflow.sweep.axes import Axis
from sdeflow.sweep.plan import Sweep

GAMMAS, SEEDS, STEPS = [0.01, 0.1, 1.0], [0, 1], np.arange(0, 50, 10)


def grid() -> xr.Dataset:
    """Of gammas and seeds: the first seed of the last gamma has not begun, its second has not ended."""
    loss = np.ones((3, 2, 5)) * 2.0 ** -np.arange(5.0) * (1 + np.arange(6.0)).reshape(3, 2, 1)
    loss[2, 0], loss[2, 1, 3:] = np.nan, np.nan
    dims = ("gamma_theta", "seed", "time")
    state = [["success"] * 2, ["success", "diverged"], ["waiting", "running"]]
    variables = {
        "loss": (dims, loss),
        "w1": ((*dims, "replica"), np.stack([loss, 3 * loss], axis=-1)),
        "force_theta": (dims, loss),
        "X": ((*dims, "datum"), loss[..., None]),
        "state": (dims[:2], np.array(state)),
    }
    coords = {"gamma_theta": GAMMAS, "seed": SEEDS, "time": STEPS / 1000, "step": ("time", STEPS)}
    return xr.Dataset(variables, coords, {"title": "A title", "config": "", "seed": 3})


def found(count: int) -> xr.Dataset:
    """A search of so many trials, on clocks of their own."""
    loss = np.arange(1.0, count + 1)[:, None] * np.ones(5)
    return xr.Dataset(
        {
            "loss": (("trial", "step"), loss),
            "state": ("trial", np.array(["success"] * count)),
            "score": ("trial", loss[:, -1], {"long_name": "w1"}),
        },
        {
            "trial": np.arange(count),
            "h_theta": ("trial", 10.0 ** -np.arange(1.0, count + 1)),
            "model": ("trial", np.array(["a", "b"] * (count // 2))),
            "step": STEPS,
        },
    )


def test_what_is_swept_and_what_is_observed_are_told_apart() -> None:
    assert swept(grid()) == ["gamma_theta"]
    assert observables(grid()) == ["loss", "w1"]
    assert swept(found(2)) == ["h_theta", "model"]
    assert observables(found(2)) == ["loss"]


def test_seeds_and_replicas_of_a_point_are_one_line_of_what_is_known() -> None:
    runs = grid()
    for name, columns in (("loss", [2, 2, 1]), ("w1", [4, 4, 2])):
        of = lines(runs, name)
        assert [line.at for line in of] == [{"gamma_theta": gamma} for gamma in GAMMAS]
        assert [line.values.sizes["run"] for line in of] == columns
        assert [line.values.step.values.tolist() for line in of] == [[*STEPS], [*STEPS], [0, 10, 20]]
    np.testing.assert_array_equal(
        of[1].values, runs.w1[1].transpose("time", "seed", "replica").values.reshape(5, 4)
    )
    for i, line in enumerate(lines(found(4), "loss")):
        assert line.at == {"h_theta": 10.0 ** -(i + 1), "model": "ab"[i % 2]}
        assert line.values.values.tolist() == [[i + 1.0]] * 5


def test_curves_have_the_colours_of_their_values_and_bands_the_range_of_seeds() -> None:
    runs = grid()
    (panel,) = _figure("loss", "gamma_theta", lines(runs, "loss")).axes
    colours = Colours(GAMMAS)
    assert colours.log
    assert [to_hex(line.get_color()) for line in panel.get_lines()] == [colours(gamma) for gamma in GAMMAS]
    assert len({colours(gamma) for gamma in GAMMAS}) == 3
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["0.01", "0.1", "1"]
    np.testing.assert_allclose(panel.get_lines()[1].get_ydata(), runs.loss[1].mean("seed"))
    assert len(panel.collections) == 2  # of the last there is one seed
    corners = panel.collections[1].get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == (float(runs.loss[1].min()), float(runs.loss[1].max()))
    panel, bar = _figure("loss", "h_theta", lines(found(12), "loss")).axes
    assert bar.get_ylabel() == "h_theta"
    assert panel.get_legend() is None
    assert Colours(["a", "b", "a"])("a") != Colours(["a", "b", "a"])("b")
    assert not Colours([1, 5]).log
    assert Colours([3])(3) == Colours([7.0])(7.0)


def test_ends_are_drawn_against_numbers_and_of_a_search_its_score() -> None:
    (loss, w1) = (figure.axes[0] for figure in _last(grid(), ["loss", "w1"], ["gamma_theta"]))
    drawn = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in loss.get_lines()]
    last = grid().loss.values
    assert drawn == [
        ([0.01] * 2, last[0, :, 4].tolist()),
        ([0.1] * 2, last[1, :, 4].tolist()),
        ([1.0], [last[2, 1, 2]]),
    ]
    assert w1.get_xscale() == "log"
    (score,) = (figure.axes[0] for figure in _last(found(4), ["loss"], ["h_theta", "model"]))
    assert score.get_ylabel() == "w1"
    assert [line.get_ydata().tolist() for line in score.get_lines()] == [[1.0], [2.0], [3.0], [4.0]]


def test_the_page_has_a_row_a_run_and_marks_those_that_need_a_look() -> None:
    runs = grid()
    states = runs.state.values.reshape(-1).tolist()
    rows = [
        [f"{g}", f"{s}", state]
        for (g, s), state in zip(((g, s) for g in GAMMAS for s in SEEDS), states, strict=True)
    ]
    text = page("Sweep <s>", runs, ["gamma_theta", "seed", "state"], rows)
    assert "<h1>Sweep &lt;s&gt;</h1>" in text
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    found_rows = re.findall(
        r"<tr( class=bad)?><th scope=row>([^<]*)</th><td[^>]*>(.)</td><td[^>]*>(\w+)</td>", body
    )
    assert [list(row[1:]) for row in found_rows] == rows
    assert [row[3] for row in found_rows if row[0]] == ["diverged"]
    assert "6 runs: 3 success, 1 diverged, 1 waiting, 1 running" in text
    assert text.count("<svg") == 4  # the curves of two observables, and their ends
    assert "<h2>loss</h2>" in text
    assert "<dt>seed</dt>" not in text  # which was that of one run


def test_a_sweep_is_reported_alone_and_once_it_has_begun(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Sweep(Path("s"), TINY, [Axis("run.seed", (0, 1))]).begin()
    assert "s is a sweep, which is reported alone" in cli("report", "s", "t").err
    assert "no run of the sweep s has begun yet" in cli("report", "s").err
    assert not Path("report").exists()
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    assert cli("run", "tiny.toml", "--seed", 1, "--out", "s/seed=1", "-q").code == 0
    code, out, err = cli("report", "s")
    assert (code, out, err) == (0, "report/report.html\n", "")
    text = Path("report/report.html").read_text(encoding="utf-8")
    assert "2 runs: 1 waiting, 1 success" in text
    assert text.count("<svg") == 1  # the loss; by a seed nothing is coloured
    assert "report.html exists: give another --out" in cli("report", "s").err

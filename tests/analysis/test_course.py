"""The course of a run: curves are its numbers, of what was asked; the page is whole and of one file."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import xarray as xr
from small import Net, Ramp, system_of, tiny

from sdeflow import Evaluate, Save, SDESystem, mpgd, pgd, simulate
from sdeflow.analysis.comparison.run_page import page
from sdeflow.analysis.course import POINTS, clouds, figure, series
from sdeflow.errors import SdeflowError
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.hierarchical import Hierarchical

SAVE = Save(every=1, data=[0, 2, 4], particles="all")


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return simulate(system_of(Net()), "expint", steps=6, save=SAVE, replicas=2, dtype="float64")


def axes(dataset: xr.Dataset, **options: Any) -> dict[str, Any]:
    return {axis.get_title(): axis for axis in figure(dataset, **options).axes}


def test_there_is_a_panel_for_all_that_a_run_has(run: xr.Dataset) -> None:
    assert list(axes(run)) == [
        "norm of theta",
        "loss",
        "spread",
        "kinetic energy",
        "force",
        "particles of datum 0",
        "particles of datum 2",
        "particles of datum 4",
    ]
    assert all(axis.get_xlabel() == "steps" for axis in axes(run).values())


def test_curves_are_the_run_s_numbers(run: xr.Dataset) -> None:
    found = axes(run)
    norm = np.linalg.norm(run["theta"].to_numpy(), axis=-1).mean(1)
    (line,) = found["norm of theta"].lines
    np.testing.assert_allclose(line.get_ydata(), norm, rtol=1e-12)
    np.testing.assert_array_equal(line.get_xdata(), run["step"])
    for name in ("theta", "x"):
        (line,) = (line for line in found["force"].lines if line.get_label() == name)
        np.testing.assert_allclose(line.get_ydata(), run[f"force_{name}"].mean("replica"), rtol=1e-12)
    own = run["X"].isel(replica=0, latent=0).sel(datum=2)
    *lines, mean = found["particles of datum 2"].lines
    for particle, line in enumerate(lines):
        np.testing.assert_array_equal(line.get_ydata(), own.isel(particle=particle))
    np.testing.assert_allclose(mean.get_ydata(), own.mean("particle"), rtol=1e-12)
    assert found["particles of datum 2"].get_ylabel() == "first coordinate"


def test_few_parameters_are_drawn_one_by_one() -> None:
    few = simulate(tiny(), steps=4, save=Save(every=1))
    (line,) = axes(few)["theta"].lines
    np.testing.assert_array_equal(line.get_ydata(), few["theta"][:, 0])
    norm = simulate(tiny(), steps=4, save=Save(every=1, theta_max=0))
    (line,) = axes(norm)["norm of theta"].lines
    np.testing.assert_array_equal(line.get_ydata(), norm["theta_norm"])


def test_held_out_loss_is_drawn_where_it_was_measured() -> None:
    system = mpgd(Decoder(images=6, held_out=3, hidden=[4]), particles=2, theta={"h": 1e-4}, x={"h": 1e-3})
    found = simulate(system, "baoab", steps=8, save=Save(every=1), evaluate=Evaluate(every=4, steps=1))
    lines = {line.get_label(): line for line in axes(found)["loss"].lines}
    assert lines.keys() == {"training", "held out"}
    np.testing.assert_array_equal(lines["held out"].get_xdata(), [0, 4, 8])
    assert np.isfinite(lines["held out"].get_ydata()).all()


def test_numbers_are_drawn_where_they_change() -> None:
    h = {"kind": "linear", "from": 0.02, "to": 0.01}
    assert "step h" not in axes(simulate(tiny(), steps=4))
    constant = {"gamma_x": (("time", "replica"), np.tile([0.1, 0.5], (3, 1)))}
    grid = xr.Dataset(constant, {"step": ("time", [0, 1, 2])})
    assert series(grid) == []  # which differs by replica alone
    falling = pgd(Hierarchical(data=3), particles=2, theta={"h": h}, x={"h": 0.1})
    found = simulate(falling, steps=4, save=Save(every=1))
    (line,) = (one for one in axes(found)["step h"].lines if one.get_label() == "theta")
    np.testing.assert_allclose(line.get_ydata(), found["h_theta"])


def test_data_are_chosen(run: xr.Dataset) -> None:
    assert [panel.title for panel in clouds(run, [4])] == ["particles of datum 4"]
    assert clouds(run, []) == []
    with pytest.raises(SdeflowError, match=r"datum 3 were not saved, those of 0, 2, 4 were.*\[0, 2, 3, 4\]"):
        figure(run, [0, 3])


def test_a_plain_sde_has_its_paths() -> None:
    found = simulate(SDESystem(Ramp(), h=0.1, paths=5), "euler_maruyama", steps=4, save=Save(every=2))
    *lines, mean = axes(found)["particles"].lines
    assert len(lines) == 5
    np.testing.assert_allclose(mean.get_ydata(), found["X"][..., 0].mean("particle"), rtol=1e-6)


def test_nothing_to_draw_is_a_sentence() -> None:
    with pytest.raises(SdeflowError, match="nothing to draw"):
        figure(xr.Dataset({"x": 1.0}))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_run_that_left_the_finite_numbers_is_drawn(run: xr.Dataset, bad: float) -> None:
    broken = run.copy(deep=True)
    for values in broken.data_vars.values():
        values[3:] = bad
    figure(broken).savefig("/dev/null", format="svg")
    every = xr.full_like(run, np.nan)
    figure(every).savefig("/dev/null", format="svg")


def test_long_runs_are_thinned_to_their_ends() -> None:
    n = 5 * POINTS + 3
    step = np.arange(n) * 10
    long = xr.Dataset({"loss": ("time", np.linspace(1, 2, n))}, {"step": ("time", step)})
    (line,) = axes(long)["loss"].lines
    assert len(line.get_xdata()) == POINTS
    assert line.get_xdata()[[0, -1]].tolist() == [0, step[-1]]
    np.testing.assert_allclose(line.get_ydata(), 1 + line.get_xdata() / step[-1], rtol=1e-12)


def test_series_need_steps() -> None:
    assert series(xr.Dataset({"loss": ("time", [1.0])})) == []


def test_the_page_is_of_one_file(run: xr.Dataset) -> None:
    run.attrs["title"] = "<b>Ours</b>"
    text = page(run)
    assert text.count("<svg") == len(axes(run))
    for title in axes(run):
        assert f">{title}</text>" in text
    assert "&lt;b&gt;Ours" in text
    assert "<b>" not in text
    assert "step 6 of 6, success" in text
    assert "http-equiv" not in text
    named = re.findall(r"""(?:src|href)=["']?([^"' >]+)""", text)
    assert all(link.startswith("#") for link in named)
    assert "url(http" not in text
    assert "@import" not in text
    assert '<meta http-equiv="refresh" content="7">' in page(run, refresh=7)

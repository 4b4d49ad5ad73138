"""The figures of the toy experiments: what is run, what is measured, what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import exit_code

from sdeflow.analysis.free_energy import energy_along
from sdeflow.analysis.studies import toy_figures
from sdeflow.analysis.studies.toy_figures import EXPERIMENTS, Choice, Experiment, draw, measure, runs
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config, variant_tables


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_variant_is_drawn_and_every_run_can_be_built(name: str) -> None:
    import tomllib

    experiment = EXPERIMENTS[name]
    chosen = {choice.variant for curves in experiment.panels.values() for choice in curves.values()}
    text = problem_file(experiment.problem).read_text(encoding="utf-8")
    assert chosen - {None} == set(variant_tables(tomllib.loads(text))) - {"tuned"}
    for _, label, run in runs(experiment, replicas=2):
        assert (run.replicas, run.save.data, run.save.particles) == (2, "all", "all")
        assert run.steps == load_config(problem_file(name)).run.steps
        assert 200 <= run.steps / run.save.every <= 260
        if label in ("expint", "expint_nc", "nag"):
            assert run.integrator.name == label


def test_energy_falls_at_twice_the_state_s_rate_to_about_zero() -> None:
    """f = 1 under expint: contraction 0.992339 a step; over 300 steps the fall of E - E* is exp(-2 r 300).

    The starting transient is gone and noise has not begun; 2% for what other modes are left. At the end what
    is left, noise and the step's bias, is below a nat.
    """
    experiment = Experiment("gradient_correction", {"": {"expint": Choice("f1.00")}})
    ((_, _, run),) = runs(experiment, replicas=2, steps=1000)
    found = measure(run)
    energy = found.energy.mean("replica")
    start, end = (float(energy[energy["step"] == step].item()) for step in (200, 500))
    assert np.log(start / end) == pytest.approx(-2 * 300 * np.log(0.992339), rel=0.02)
    assert abs(float(energy[-1])) < 1
    assert found.diverged is None


def test_one_latent_of_many_coordinates_is_many_latents() -> None:
    """E of the nesterov problem, against E by the Gaussian fit with as many data of one coordinate."""
    import torch
    import xarray as xr

    from sdeflow.analysis.free_energy import toy_minimum
    from sdeflow.problems.hierarchical import Hierarchical

    wide, many = Hierarchical(data=1, latent=6, scale=0.7), Hierarchical(data=6, latent=1, scale=0.7)
    many.data = wide.data.reshape(6, 1)
    x = torch.randn(3, 1, 40, 6, generator=torch.Generator().manual_seed(0)).double().numpy()
    dims = ("time", "datum", "particle", "latent")
    theta = ("time", "param"), np.full((3, 1), 0.3)
    one = xr.Dataset({"theta": theta, "X": (dims, x)})
    other = xr.Dataset({"theta": theta, "X": (dims, np.moveaxis(x, 3, 1).reshape(3, 6, 40, 1))})
    found = toy_figures.excess_energy(one, wide)
    np.testing.assert_allclose(found, toy_figures.excess_energy(other, many), rtol=1e-12)
    # the other estimator differs by how it takes its bias off, by less than its error
    fit = energy_along(other, many)
    assert (np.abs(found + toy_minimum(many.data.numpy(), 0.7) - fit) < fit.error).all()


def test_a_diverging_run_is_a_curve_cut_at_the_frame(tmp_path: Path) -> None:
    experiment = Experiment(
        "gradient_correction", {"edge": {name: Choice("f1.00", None, name) for name in ("expint", "nag")}}
    )
    found = {label: measure(run) for _, label, run in runs(experiment, replicas=2, steps=400)}
    assert found["expint"].diverged is None
    assert found["nag"].diverged is not None
    figure = draw({"edge": found})
    top, bottom = figure.axes
    assert any("nag diverges" in text.get_text() for text in top.texts)
    for panel in (top, bottom):
        low, high = panel.get_ylim()
        for line in panel.get_lines():
            y = np.asarray(line.get_ydata(), float)
            assert len(y) > 3
            assert ((low <= y[:-1]) & (y[:-1] <= high)).all()  # only the last point may be outside
    figure.savefig(tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text(encoding="utf-8").rstrip().endswith("</svg>")


def test_the_script_writes_its_files(tmp_path: Path) -> None:
    out = tmp_path / "figures" / "regimes.svg"
    arguments = ["regimes", "--steps", "30", "--replicas", "2", "--out", str(out)]
    assert exit_code(toy_figures.main, *arguments) == 0
    assert out.stat().st_size > 10_000
    assert exit_code(toy_figures.main, "regimes", "--replicas", "0") == 2

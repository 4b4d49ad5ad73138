"""The comparison of priors, in small: its numbers against ones made by hand, its table and its refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from commands import exit_code

from sdeflow import SdeflowError
from sdeflow.analysis.distances import wasserstein
from sdeflow.analysis.studies.latent_priors import ENTRANTS, Result, between_data, draw, main, measure, table
from sdeflow.problems.latent_ebm import LatentEBM

SMALL: Any = [
    {"model": {"points": 20, "held_out": 40, "energy_hidden": [6]}, "system": {"prior_particles": 40}}
]


def test_energies_and_the_baseline_make_as_many_evaluations() -> None:
    """Distances of 40 samples from 40 data, at every snapshot; at the start those of fresh draws."""
    results = measure(ENTRANTS[:1], evaluations=80, replicas=2, overrides=SMALL)
    results += measure(
        ENTRANTS[3:4], evaluations=80, replicas=2, overrides=[{"model": {"points": 20, "held_out": 40}}]
    )
    for result in results:
        assert result.distance.dims == ("time", "replica")
        assert int(result.distance.step[-1]) * result.evaluations == 80
        assert np.isfinite(result.moved_on).all()
    energy, _ = results
    # At the start Z is N(0, I) and the model N(0, 1.01 I): as far as fresh draws are, within their spread.
    held_out = LatentEBM(points=20, held_out=40).held_out.numpy()
    rng = np.random.default_rng(0)
    fresh = [wasserstein(1.01**0.5 * rng.standard_normal((40, 2)), held_out) for _ in range(50)]
    assert abs(float(energy.distance[0].mean()) - np.mean(fresh)) < 4 * np.std(fresh) / 2**0.5
    assert table(results, 0.3).count("\n") == 3
    assert len(draw(results, 0.2).axes[0].get_lines()) == 3


def test_the_time_to_a_level_is_in_evaluations() -> None:
    series = xr.DataArray(
        [[1.0, 1.0], [0.5, 0.2], [0.2, 0.4], [0.1, 0.1]],
        dims=("time", "replica"),
        coords={"step": ("time", [0, 10, 20, 30])},
    )
    result = Result(ENTRANTS[0], series, np.zeros(2), 2, 1.0)
    found = result.until(0.3)
    assert found is not None
    assert found.mean == 2 * (20 + 30) / 2
    assert result.until(0.05) is None


def test_two_sets_of_data_are_closer_the_more_points_they_have() -> None:
    few, many = between_data("rings", 50), between_data("rings", 800)
    assert few.mean - many.mean > 4 * (few.error**2 + many.error**2) ** 0.5


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    with pytest.raises(SdeflowError, match="two replicas"):
        measure(replicas=1)
    for wrong in (["--entrants", "9"], ["--dataset", "spiral"], ["--replicas", "1"]):
        assert exit_code(main, "--out", tmp_path / "x.svg", *wrong) == 2

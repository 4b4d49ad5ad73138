"""What systems need on the badly conditioned problem and on the one of two modes.

Oracles: closed forms of the curvatures; the number of steps that theory predicts.
"""

from __future__ import annotations

from math import log, sqrt
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import exit_code

from sdeflow.analysis.studies import conditioning, coverage
from sdeflow.analysis.studies.race import Entrant, prepared, reached
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config

# Tuning --------------------------------------------------------------------------------------------


def test_pgd_is_tuned_to_its_closed_form() -> None:
    """With theta's clock at 2/D: the step h of X is stable up to 2/(2 + sqrt 2) times the least variance.

    At half of it the slowest mode contracts by 1 - h (2 - sqrt 2) a step, the largest variance being one.
    """
    run, tuning = prepared("ill_conditioned", conditioning.ENTRANTS[0], share=0.5, replicas=2)
    h = 1e-3 / (2 + sqrt(2))
    assert run.system.h * {b.name: b for b in run.system.blocks}["x"].rate == pytest.approx(h, rel=1e-4)
    assert run.system.h == pytest.approx(h / 4, rel=1e-4)
    assert tuning.contraction == pytest.approx(1 - h * (2 - sqrt(2)), abs=1e-7)


@pytest.mark.parametrize(
    ("integrator", "growth"),
    [pytest.param("expint", 10.0, marks=pytest.mark.slow), ("baoab", sqrt(10.0))],
)
def test_steps_grow_with_the_condition_number_or_its_root(integrator: str, growth: float) -> None:
    """Steps an e-fold at conditions 100 and 1000: tenfold under expint, as under pgd, else sqrt(10);

    within a fifth, for the friction is from a grid and the ratio an asymptote.
    """
    folds = []
    for condition in (100.0, 1000.0):
        table = [{"model": {"condition": condition, "latent": 2, "data": 2}}]
        entrant = Entrant("", "fixed", integrator, 10)
        tuning = prepared("ill_conditioned", entrant, share=0.5, replicas=2, overrides=table)[1]
        folds.append(-1 / log(tuning.contraction))
    assert folds[1] / folds[0] == pytest.approx(growth, rel=0.2)


@pytest.mark.parametrize("problem", ["ill_conditioned", "two_modes"])
@pytest.mark.parametrize("variant", [pytest.param("fixed", marks=pytest.mark.slow), "pgd"])
def test_packaged_numbers_are_the_tuned_ones(problem: str, variant: str) -> None:
    entrants, part = {
        "ill_conditioned": (conditioning.ENTRANTS, conditioning.SHARE),
        "two_modes": (coverage.ENTRANTS, coverage.SHARE),
    }[problem]
    own = build(load_config(problem_file(problem), variant=variant))
    (entrant,) = (e for e in entrants if (e.variant, e.integrator) == (variant, own.integrator.name))
    run, tuning = prepared(problem, entrant, share=part, replicas=2)
    assert tuning.friction == pytest.approx(1, abs=1e-12)
    assert run.system.h == pytest.approx(own.system.h, rel=0.03)
    for tuned, given in zip(run.system.blocks, own.system.blocks, strict=True):
        assert tuned.rate == given.rate


# Races ---------------------------------------------------------------------------------------------


def test_a_time_is_where_a_series_stays() -> None:
    steps = xr.DataArray([0, 10, 20, 30, 40], dims="time")
    values = np.array([[9, 4, 6, 4, 3], [9, 4, 3, 2, 1], [9, 8, 7, 6, 5.5], [9, np.nan, 1, 1, np.nan]]).T
    series = xr.DataArray(values, dims=("time", "replica"), coords={"step": ("time", steps.values)})
    np.testing.assert_array_equal(reached(series, 5), [30, 10, np.inf, np.inf])
    np.testing.assert_array_equal(reached(-series, -5, falling=False), [30, 10, np.inf, np.inf])


@pytest.mark.slow
def test_pgd_crawls_and_mpgd_does_not() -> None:
    """At condition 100: steps to 5 nats within a third of theory's, which knows the slowest mode alone,

    and those without momentum many times those with; four standard errors on either side of five.
    """
    entrants = (Entrant("pgd", "pgd", "euler_maruyama", 3000), Entrant("mpgd", "fixed", "baoab", 300))
    pgd, mpgd = conditioning.measure(4, entrants, condition=100.0)
    assert pgd.steps is not None
    assert mpgd.steps is not None
    for found in (pgd, mpgd):
        assert found.steps is not None
        assert found.steps.mean == pytest.approx(conditioning.predicted(found), rel=1 / 3)
    assert pgd.steps.mean - 4 * pgd.steps.error > 5 * (mpgd.steps.mean + 4 * mpgd.steps.error)


@pytest.mark.parametrize("script", [conditioning, coverage], ids=["conditioning", "coverage"])
def test_scripts(
    script: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table with a row an entrant, one of which does not get there, and a figure."""
    entrants = (Entrant("one", "pgd", "euler_maruyama", 40), Entrant("other", "pgd", "expint", 20))
    measure = script.measure  # type: ignore[attr-defined]  # one of two scripts, a module each
    monkeypatch.setattr(script, "measure", lambda replicas: measure(replicas, entrants))
    out = tmp_path / "new" / "figure.svg"
    assert exit_code(script.main, "--replicas", 2, "--out", out) == 0  # type: ignore[attr-defined]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| one", "| other"]
    assert "not within 20" in lines[3]
    assert out.read_text(encoding="utf-8").count("<path") > 10
    assert exit_code(script.main, "--replicas", 1, "--out", out) == 2  # type: ignore[attr-defined]
    assert "two replicas" in capsys.readouterr().err

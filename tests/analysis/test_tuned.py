"""Chosen against given numbers, in small: what is counted, by hand; table, figure and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import exit_code

from sdeflow import Save, SdeflowError, mpgd, simulate
from sdeflow.analysis.studies import tuned
from sdeflow.analysis.studies.tuned import CASES, Case, Course, course, draw, median, relative, row, spread
from sdeflow.problems.hierarchical import Hierarchical

SMALL = {"model": {"data": 3}, "system": {"particles": 2}, "run": {"dtype": "float64"}}
SAVE = Save(every=10, data=1, particles=1)
TOY = Case("hierarchical", "error", relative, 80, 0.3, 10, None, "tuned", SMALL, pgd=160)


def by_hand(*series: tuple[list[float], list[float]]) -> Course:
    evaluations, values = zip(*((np.array(e), np.array(v)) for e, v in series), strict=True)
    return Course(TOY, "auto", "baoab", 80, list(evaluations), list(values), [5.0] * 2, [0.0, 1.0])


def test_evaluations_are_those_of_steps_and_of_tuning() -> None:
    """Of the tuned variant's own run, which records what choosing took; a step of expint takes two."""
    given, own = (course(TOY, entrant, [7, 8]) for entrant in ("given", "auto"))
    np.testing.assert_array_equal(given.evaluations, [np.arange(0, 81, 10)] * 2)
    assert given.tuning == given.back == [0, 0]
    model = Hierarchical(data=3)
    run = simulate(mpgd(model, particles=2), steps=80, seed=8, dtype="float64", save=SAVE)
    took = run["tuning_evaluations"].to_numpy()
    np.testing.assert_array_equal(own.evaluations[1], np.arange(0, 81, 10) + took)
    assert own.tuning[1] == took[-1] > 0
    error = np.abs(run["theta"].isel(param=0).to_numpy() - float(model.data.mean()))
    np.testing.assert_allclose(own.values[1], error / error[0], rtol=1e-12)


def test_pgd_is_tuned_too_over_its_own_budget() -> None:
    found = course(TOY, "auto, pgd", [7, 8])
    assert (found.scheme, found.budget) == ("euler_maruyama", 160)
    assert len(found.evaluations[0]) == 9
    assert found.tuning[0] > 0


def test_values_at_a_part_and_times_to_a_level_are_those_of_snapshots() -> None:
    found = by_hand(
        ([5, 15, 30, 75, 81], [1.0, 0.2, 0.5, 0.1, 0.0]),
        ([5, 15, 30, 75, 90], [1.0, 0.9, 0.8, 0.7, 0.6]),
    )
    np.testing.assert_array_equal(found.at(0.25), [0.2, 0.9])
    np.testing.assert_array_equal(found.at(1.0), [0.1, 0.7])
    np.testing.assert_array_equal(found.until(0.3), [75, np.inf])
    told = row(found)
    assert told["evaluations to it"] == "- (75 to -)"
    assert (told["at 1 of it"], told["for tuning"], told["went back"]) == ("0.4 (0.1 to 0.7)", "5", "1")


def test_medians_take_runs_that_do_not_get_there() -> None:
    assert median(np.array([3.0, np.inf, 1.0])) == 3
    assert median(np.array([3.0, 4.0, np.inf, np.inf])) == np.inf
    assert median(np.array([np.inf, np.inf])) == np.inf
    assert spread(np.array([2.0, 2.0])) == "2"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.problem)
def test_every_case_starts_alike_and_measures_what_is_finite(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "long_run", lambda: 0.9)
    short = replace(case, budget=8)
    both = [course(short, entrant, [3]) for entrant in ("given", "auto")]
    for found in both:
        assert np.isfinite(found.values[0]).all()
        assert found.values[0][0] == both[0].values[0][0]
        assert found.evaluations[0][-1] - found.tuning[0] == 8


def test_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A row an entrant, and a figure with a line and a band for each."""
    monkeypatch.setattr(tuned, "CASES", (TOY,))
    out = tmp_path / "new" / "figure.png"
    assert exit_code(tuned.main, "--problems", "hierarchical", "--seeds", 2, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[2] for line in lines[2:5]] == ["given", "auto", "auto, pgd"]
    assert out.stat().st_size > 10_000
    series = ([5.0, 15.0, 80.0], [1.0, 0.2, 0.5])
    (panel,) = draw([by_hand(series, series), by_hand(series, series)]).axes
    assert len(panel.get_lines()) == 3  # with the level
    assert len(panel.collections) == 2
    assert exit_code(tuned.main, "--problems", "toy", "--out", out) == 2
    assert exit_code(tuned.main, "--seeds", 1, "--out", out) == 2
    assert "two seeds" in capsys.readouterr().err


def test_given_numbers_that_diverge_are_refused() -> None:
    wild = {"system": {"particles": 2, "x": {"h": 1e6}}, "model": {"data": 3}, "run": {"bound": 1e3}}
    with pytest.raises(SdeflowError, match="hierarchical, given, seed 7: "):
        course(replace(TOY, over=wild), "given", [7])

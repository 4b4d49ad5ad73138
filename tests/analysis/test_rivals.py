"""Particle methods against each other, in small: the MLE by quadrature, numbers and differences by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
from commands import exit_code
from support import SE

from sdeflow import SdeflowError
from sdeflow.analysis.logistic_mle import Estimate, maximum_likelihood
from sdeflow.analysis.rates import over_replicas
from sdeflow.analysis.studies import rivals
from sdeflow.analysis.studies.rivals import (
    CASES,
    Case,
    Entrant,
    Result,
    measure,
    rows,
    solved,
    system_of,
    tuned,
)
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.problems.logistic import Logistic
from sdeflow.simulation.solve import solve

PGD = Entrant("pgd", "euler_maruyama", {"h_theta": (0.03, 10.0), "h_x": (0.01, 0.02)})
TOY = Case("breast_cancer", Logistic, Logistic, "error", 3, 20, 0.5, (PGD, Entrant("coin_em", "expint_nc2")))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "answer", lambda: Estimate(0.918, 0.001))


def test_the_mle_is_that_of_quadrature() -> None:
    """Of one weight and five signed features; within 4.5 of its own errors, and these are small."""
    z, v = np.array([[1.0], [2.0], [-0.5], [1.5], [-1.0]]), 2.0

    def minus_log_likelihood(theta: float) -> float:
        def joint(x: float) -> float:
            return float(np.exp(-((x - theta) ** 2) / (2 * v)) * scipy.special.expit(z[:, 0] * x).prod())

        return -float(np.log(scipy.integrate.quad(joint, theta - 15, theta + 15, epsabs=1e-13)[0]))

    exact = scipy.optimize.minimize_scalar(minus_log_likelihood, bounds=(-5, 5), method="bounded").x
    found = maximum_likelihood(z, v, start=float(exact) + 0.3, chains=32)
    assert found.error < 0.05
    assert abs(found.value - exact) < SE * found.error


@pytest.mark.slow
def test_the_mle_of_breast_cancer_is_that_of_long_runs() -> None:
    """Within four errors of both, after 1% for what steps do to the runs."""
    over = {"run": {"integrator": "ubu", "replicas": 4, "dtype": "float64"}, "save": {"every": 50}}
    run = build(load_config(problem_file("breast_cancer"), variant="fixed", overrides=[over]))
    theta = solve(run).dataset["theta"].isel(param=0, time=slice(20, None)).mean("time")
    long, found = over_replicas(theta.to_numpy()), rivals.answer()
    assert found.error < 0.003
    assert long.error < 0.02
    assert abs(found.value - long.mean) < 0.01 + 4 * np.hypot(found.error, long.error)


@pytest.mark.usefixtures("known")
def test_numbers_are_chosen_by_the_measure_and_not_where_it_diverges() -> None:
    chosen = tuned(TOY, PGD)
    assert chosen["h_theta"] == 0.03
    late = {}
    for h_x in (0.01, 0.02):
        evaluations, courses, _ = solved(TOY, PGD, {"h_theta": 0.03, "h_x": h_x}, seed=0, replicas=2)
        late[h_x] = courses["error"][evaluations > 15].mean()
    assert chosen["h_x"] == min(late, key=late.__getitem__)
    assert tuned(TOY, TOY.entrants[1]) == {}


@pytest.mark.parametrize(
    "entrant", CASES["breast_cancer"].entrants, ids=lambda e: f"{e.system}-{e.integrator}"
)
def test_every_entrant_starts_alike_and_has_its_numbers(entrant: Entrant, known: None) -> None:
    numbers = {**entrant.given, **{name: values[0] for name, values in entrant.tried.items()}}
    evaluations, courses, dataset = solved(TOY, entrant, numbers, seed=5, replicas=2)
    assert evaluations[-1] == 20
    assert courses["error"][0] == pytest.approx([0.918, 0.918])
    assert courses["held_out_log_loss"][0, 0] == pytest.approx(0.47, abs=0.5)
    assert ("kernel" in dataset.attrs["system"]) == (entrant.system in ("svgd_em", "coin_em"))
    system = system_of(TOY, entrant, numbers, rehearsal=False)
    blocks = {b.name: b for b in system.blocks}
    assert blocks["theta"].temperature == (1 / 3 if entrant.system == "ipla" else 0)
    for name, block in blocks.items():
        if "gamma" in numbers:
            assert (block.gamma, block.eta) == (numbers["gamma"], 1.0)
        if numbers:
            assert system.h * block.rate == pytest.approx(numbers.get(f"h_{name}", numbers.get("h")))


def test_table_by_hand() -> None:
    evaluations = np.arange(0.0, 9.0)
    course = np.linspace(1, 0.2, 9)[:, None] + np.array([0.0, 0.1, 0.2])
    courses = {"error": course, "held_out_log_loss": course, "held_out_error": course}
    first = Result(TOY, PGD, {"h_x": 0.01}, evaluations, courses)
    more = {name: values + 0.05 for name, values in courses.items()}
    other = Result(TOY, TOY.entrants[1], {}, evaluations, more)
    np.testing.assert_allclose(first.late("error"), np.array([0.25, 0.35, 0.45]))
    np.testing.assert_array_equal(first.until(), [5, 6, 7])
    told = rows([first, other])
    assert told[0]["held-out loss, less pgd's"] == ""
    assert told[1]["held-out loss, less pgd's"] == "+0.0500 (+0.0500 to +0.0500)"
    assert told[0]["evaluations to the level"] == "6 (5 to 7)"
    assert told[0]["|θ − θ*|"] == "0.3500 ± 0.0577"


@pytest.mark.usefixtures("known")
def test_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A row an entrant, and a figure with two panels."""
    monkeypatch.setitem(CASES, "breast_cancer", TOY)
    out = tmp_path / "new" / "figure.svg"
    assert exit_code(rivals.main, "--problems", "breast_cancer", "--seeds", 2, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:4]] == ["pgd", "coin_em"]
    assert out.read_text(encoding="utf-8").count("<path") > 10
    assert exit_code(rivals.main, "--problems", "toy") == 2
    capsys.readouterr()
    with pytest.raises(SdeflowError, match="two seeds"):
        measure([TOY], seeds=1)

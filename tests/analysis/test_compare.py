"""Comparisons: measured against predicted, one page, one dataset, and one sentence for a mistake."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import command
from support import affine_map

from sdeflow.analysis.comparison.compare import rows
from sdeflow.analysis.comparison.entries import Entry, open_entries
from sdeflow.analysis.rates import coordinate
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.simulation.solve import solve

OPTIONS = ["-q", "--steps", "900", "--set", "system.particles=20", "--set", "save.every=3"]
OPTIONS += ["--set", "save.data=all", "--set", "save.particles=all"]
STABLE, DIVERGING, REFUSING = ["expint", "expint_shared", "ubu"], ["nag", "euler_maruyama"], ["torchsde:srk"]
SCHEMES = [*STABLE, *DIVERGING, *REFUSING]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gradient-correction experiment, where Nesterov's form and Euler-Maruyama are unstable."""
    out = tmp_path_factory.mktemp("compare") / "out"
    arguments = ["compare", "gradient_correction", "--out", str(out), *OPTIONS]
    assert command(*arguments, "--integrators", ",".join(SCHEMES[:-1])) == 0
    return out


@pytest.mark.slow
def test_the_dataset_has_curves_and_the_table(compared: Path) -> None:
    with xr.open_dataset(compared / "compare.nc") as found:
        assert found.integrator.values.tolist() == SCHEMES[:-1]
        assert found.loss.dims == ("integrator", "time", "replica")
        assert found.sizes["replica"] == 8
        for name in STABLE:
            row = found.sel(integrator=name)
            assert str(row.retcode.values) == "success"
            assert abs(float(row.fitted_rate - row.predicted_rate)) < 4 * float(row.fitted_rate_error)
            assert float(row.fitted_rate_error) < 0.05 * float(row.predicted_rate)
            assert str(row.regime.values) == "overdamped"  # the leading eigenvalue of the step is real
            assert float(row.fitted_frequency) < float(row.fitted_rate)
            evaluations, seconds = row.gradient_evaluations_per_step, row.seconds_per_step
            per_gradient, per_second = row.fitted_rate_per_gradient_evaluation, row.fitted_rate_per_second
            assert float(per_gradient * evaluations) == pytest.approx(float(row.fitted_rate), rel=1e-12)
            assert float(per_second * seconds) == pytest.approx(float(row.fitted_rate), rel=1e-12)
        for name in DIVERGING:
            row = found.sel(integrator=name)
            assert str(row.retcode.values) == "diverged"
            assert float(row.predicted_rate) < 0
            assert bool(row.fitted_rate.isnull())
            assert bool(row.fitted_rate_per_second.isnull())
            assert str(row.regime.values) == ""
            assert "past the bound" in str(row.note.values) or "not finite" in str(row.note.values)
        energy = found.excess_energy.sel(integrator="expint").mean("replica")
        assert float(energy[0]) > 1e4
        assert float(energy[-50:].mean()) < 100


def test_a_preconditioned_force_has_no_theory_and_some_schemes_refuse_it(tmp_path: Path) -> None:
    rms = ["--set", "system.theta.precondition=rmsprop", "--integrators", "expint,torchsde:srk"]
    assert command("compare", "gradient_correction", "--out", tmp_path / "out", *OPTIONS, *rms) == 0
    with xr.open_dataset(tmp_path / "out" / "compare.nc") as found:
        assert found.retcode.values.tolist() == ["success", "refused"]
        assert bool(found.predicted_rate.isnull().all())
        assert "takes no preconditioned force" in str(found.note.values[1])


@pytest.mark.slow
def test_the_page_asks_nothing_of_the_network(compared: Path) -> None:
    text = (compared / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import|url\(\s*['\"]?http", text)

    outside: list[str] = []
    tags: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            links = [
                value or "" for name, value in attrs if name.rpartition(":")[2] in ("href", "src", "data")
            ]
            outside.extend(link for link in links if not link.startswith("#"))

    Links().feed(text)
    assert outside == []
    assert tags.count("svg") == 3
    for name in SCHEMES[:-1]:
        assert f"<td>{name}</td>" in text
    assert "system.theta" in text


@pytest.mark.slow
def test_runs_share_their_noise(compared: Path) -> None:
    """expint and expint_shared draw the same P and Q: their losses stay close where those of seeds do not."""
    with xr.open_dataset(compared / "compare.nc") as found:
        a, b = (found.loss.sel(integrator=name)[-1].values for name in ("expint", "expint_shared"))
    assert np.abs(a - b).max() < 0.2 * a.std()


@pytest.mark.slow
def test_existing_runs(compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(compared / "runs" / name) for name in ("expint", "ubu")]
    assert command("report", *folders, "--out", str(tmp_path / "again")) == 0
    out = capsys.readouterr().out
    assert "expint" in out
    with (
        xr.open_dataset(tmp_path / "again" / "compare.nc") as again,
        xr.open_dataset(compared / "compare.nc") as first,
    ):
        for name in ("expint", "ubu"):
            assert float(again.fitted_rate.sel(integrator=name)) == float(
                first.fitted_rate.sel(integrator=name)
            )


def test_a_diverged_an_unfinished_and_a_single_run_are_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    short = ["hierarchical", "-q", "--steps", "60", "--set", "model.data=5", "--set", "system.x.h=0.01"]
    assert command("run", *short, "--out", "fine") == 0
    assert command("run", *short, "--integrator", "nag", "--set", "system.theta.h=1.0", "--out", "bad") == 3
    assert command("report", "fine", "fine") == 0
    assert "of one replica" not in capsys.readouterr().err
    with pytest.raises(SdeflowError, match="different problems"):
        open_entries([Path("fine"), Path("bad")])
    (entry,) = open_entries([Path("bad")])
    (row,) = rows([entry], None)
    assert row.retcode == "diverged"
    assert row.fitted is None
    assert "past the bound" in row.note or "not finite" in row.note


def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    for arguments, sentence in (
        (("compare", "hierarchical", "--integrators", "expnt", "--out", "x"), "did you mean 'expint'"),
        (("compare", "hierarchical", "--integrators", " , ", "--out", "x"), "names separated by commas"),
        (("compare", "hierarchical", "--integrators", "expint", "--out", "there"), "there exists"),
        (("compare", "hierarchical", "--system", "pgd", "--integrators", "ubu", "--out", "x"), "cannot take"),
        (("report", "there"), "is no run folder"),
    ):
        assert command(*arguments) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert sentence in err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_theta_of_many_parameters_is_one_number() -> None:
    """Along the direction in which it moves most; a sign is left to chance."""
    way = np.exp(-np.linspace(0, 5, 50))
    theta = xr.DataArray(np.outer(way, [3.0, 4.0]) + 1, dims=("time", "param"))
    found = coordinate(xr.Dataset({"theta": theta}))
    np.testing.assert_allclose(np.abs(found - found[-1]), 5 * (way - way[-1]), atol=1e-12)
    with pytest.raises(SdeflowError, match="theta was not saved whole"):
        coordinate(xr.Dataset({"theta_norm": ("time", way)}))


def test_the_regime_and_the_frequency_are_those_of_the_leading_eigenvalue() -> None:
    """Underdamped settings of the toy model: theta turns by the eigenvalue's angle, within 4 errors."""
    tables = {
        "run": {"replicas": 6, "steps": 1200, "dtype": "float64"},
        "system": {"particles": 100},
        "save": {"every": 2},
    }
    run = build(load_config(problem_file("regimes"), variant="underdamped", overrides=[tables]))
    (row,) = rows([Entry("expint", solve(run).dataset)], None)
    few = load_config(
        problem_file("regimes"), variant="underdamped", overrides=[{"system": {"particles": 1}}]
    )
    eigenvalues = np.linalg.eigvals(affine_map(build(few).system, "expint").A)
    leading = eigenvalues[np.abs(eigenvalues).argmax()]
    assert row.regime == "underdamped"
    assert row.frequency is not None
    assert row.frequency.mean == pytest.approx(abs(np.angle(leading)), abs=4 * row.frequency.error)
    assert row.frequency.error < 0.01 * row.frequency.mean

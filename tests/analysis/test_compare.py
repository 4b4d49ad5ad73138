"""Comparisons: measured against predicted, one page, one dataset, and one sentence for a mistake."""

from __future__ import annotations

import contextlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import command
from support import affine_map

from sdeflow import terminal
from sdeflow.analysis.comparison.compare import SNAPSHOTS, rows
from sdeflow.analysis.comparison.entries import Entry, open_entries
from sdeflow.analysis.comparison.report import page as write_page
from sdeflow.analysis.rates import coordinate, fit_decay
from sdeflow.cli.show import tell_compared
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
    assert tags.count("svg") == 3 + 3 + 1
    for name in SCHEMES[:-1]:
        assert f"<th scope=row>{name}</th>" in text
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


# The page and the terminal ------------------------------------------------------------------------------


class Page(HTMLParser):
    """The rates table of a page, its panels, and its rules of style, those for a narrow screen apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, str]]] = []
        self.spans: list[int] = []
        self.panels: list[int] = []
        style, narrow = (
            text.partition("<style>")[2].partition("</style>")[0].split("@media (max-width: 70rem)")
        )
        self.rules = re.findall(r"([^{}]+)\{([^{}]*)\}", style)
        self.narrow = re.findall(r"([^{}]+)\{([^{}]*)\}", narrow.strip().removeprefix("{"))
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append((given.get("data-label") or "", tag))
            self.spans.append(int(given.get("colspan") or 1))
        elif tag == "div" and given.get("class") == "panels":
            self.panels.append(0)
        elif tag == "svg" and self.panels:
            self.panels[-1] += 1

    def said(self, part: str, *, narrow: bool = False) -> str:
        """All that the style says of selectors with a part."""
        rules = self.narrow if narrow else self.rules
        return " ".join(body for selector, body in rules if part in selector)


def tiny_run() -> xr.Dataset:
    """3 snapshots, too few for a rate."""
    tables = {"model": {"data": 3}, "system": {"particles": 2}, "run": {"steps": 20, "replicas": 2}}
    return solve(build(load_config(problem_file("hierarchical"), overrides=[tables]))).dataset


LONG = "integrator 'ubu' cannot take this system: it needs a momentum in every block; without one: theta, x"


def test_the_page_fits_a_narrow_screen() -> None:
    """What a browser showed at 1280 and 390 pixels, as facts of structure and style.

    Nothing is kept from wrapping but numbers and names, nothing has a least width or a scroll bar of its own.
    A long sentence spans its table instead of a column, and panels are figures of their own that flow. On a
    narrow screen a row is a list, in which each cell has its column's name.
    """
    dataset = tiny_run()
    entries = [Entry("expint", dataset), Entry("obabo", dataset), Entry("ubu", None, LONG)]
    shown = [*rows(entries, None), *rows([Entry("nag", dataset.assign_attrs(retcode="diverged"))], None)]
    page = Page(write_page("Title", entries, shown, {"expint": dataset.loss}))
    head, *lines = page.rows
    assert len(head) == 9
    assert [len(line) for line in lines] == [9, 1] * 4
    assert all(label for label, tag in lines[0] if tag == "td")
    assert page.spans.count(9) == 4  # a note of each scheme
    assert page.panels == [3, 3]  # loss and free energy
    every = "".join(body for _, body in page.rules)
    assert "min-width" not in every
    assert "overflow-x" not in every
    for selector, body in page.rules:
        assert ("nowrap" in body) == (".number" in selector)
    assert "overflow-wrap" in page.said("tr.note td")
    assert "auto-fit" in page.said(".panels")
    assert "100%" in page.said(".panels")
    assert "width: 100%" in page.said("svg")
    assert "pre-wrap" in page.said("pre")
    assert "display: none" in page.said("thead", narrow=True)
    assert "attr(data-label)" in page.said("td[data-label]::before", narrow=True)
    assert "display: flex" in page.said("tbody td", narrow=True)
    assert "display: block" in page.said("tr", narrow=True)


@pytest.mark.parametrize("width", [80, 200])
def test_the_terminal_s_table_has_no_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    """A row a scheme; what is to say of it stands below, once for all that it is said of."""
    monkeypatch.setattr(terminal, "out", terminal.Console(width=width))
    monkeypatch.setattr("sdeflow.cli.show.out", terminal.out)
    dataset = tiny_run()
    entries = [
        Entry("expint", dataset),
        Entry("nag", dataset),
        Entry("ubu", None, f"{LONG}. These can: expint"),
    ]
    found = [
        row._replace(note=row.note.replace("no theory for this system; ", "")) for row in rows(entries, None)
    ]
    tell_compared(found, Path("out"))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= width
    assert lines[0] == "Comparison, rates in 1e-3 a step"
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["expint", "success"],
        ["nag", "success"],
        ["ubu", "refused"],
    ]
    assert lines[5:8] == ["", "expint, nag: too short (3 of 20 snapshots)", ""]
    assert " ".join(lines[8:]).startswith(f"ubu: {LONG}  out/report.html")


def test_the_least_number_of_snapshots_is_that_of_a_fit() -> None:
    t = np.arange(SNAPSHOTS, dtype=float)
    with pytest.raises(SdeflowError, match=f"at least {SNAPSHOTS}"):
        fit_decay(t[1:], np.exp(-t[1:]))
    with contextlib.suppress(SdeflowError):  # not for its length
        fit_decay(t, np.exp(-t), limit=0.0)


def test_fits_and_theory_tell_how_far_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `compare`, `stability` and the map of momentum parameters."""
    told: list[tuple[str, int, int]] = []

    @contextlib.contextmanager
    def telling(unit: str = "step"):
        yield lambda step, steps, loss: told.append((unit, step, steps))

    monkeypatch.setattr("sdeflow.cli.comparisons.progress_bar", telling)
    monkeypatch.setattr(terminal, "progress_bar", telling)
    few = ["--set", "model.data=3", "--set", "system.particles=2"]
    schemes = ["--integrators", "expint,ubu"]
    assert command("compare", "hierarchical", *few, *schemes, "--steps", 4, "--out", tmp_path / "out") == 0
    assert [entry for entry in told if entry[0] == "scheme"] == [("scheme", 1, 2), ("scheme", 2, 2)]
    assert ("step", 4, 4) in told
    told.clear()
    assert command("stability", "hierarchical", *few, *schemes) == 0
    assert told == [("scheme", 1, 2), ("scheme", 2, 2)]


@pytest.mark.parametrize(
    "options",
    [
        ("--steps", "0", "--replicas", "1"),
        ("--steps", "1"),
        ("--set", "system.x.h=1e12", "--set", "run.bound=1e300", "--set", "run.dtype=float64"),
        ("--set", "system.x.h=1e12", "--set", "run.bound=1e300"),
    ],
)
def test_no_step_and_numbers_past_all_bounds(tmp_path: Path, options: tuple[str, ...]) -> None:
    """No traceback and, since warnings are errors here, none of NumPy's."""
    few = ["--steps", "30", "--replicas", "2", "--set", "model.data=4", "--set", "system.particles=10", "-q"]
    few += ["--set", "save.every=1", "--set", "save.data=all"]
    arguments = [*few, *options, "--integrators", "expint", "--out", tmp_path / "out"]
    assert command("compare", "hierarchical", *arguments) == 0
    with xr.open_dataset(tmp_path / "out" / "compare.nc") as found:
        assert found.sizes["integrator"] == 1

"""Methods compared: what they are run with, resumed studies, paired intervals and matched times by hand."""

from __future__ import annotations

from dataclasses import replace
from math import exp
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import exit_code

from sdeflow import SdeflowError
from sdeflow.analysis.image_table import __main__ as command
from sdeflow.analysis.image_table import bases, confound, trial
from sdeflow.analysis.image_table.bases import compare, runs
from sdeflow.analysis.image_table.cost import evaluations
from sdeflow.analysis.image_table.methods import METHODS, PLAIN, REFERENCE, Method
from sdeflow.analysis.image_table.page import as_dataset, page, text
from sdeflow.analysis.image_table.settings import (
    FIRST_SEED,
    FRICTION,
    GIVEN,
    GRID,
    GRID_SEED,
    KEPT_THETA,
    KEPT_X,
    SETTINGS,
    TUNED,
    Setting,
)
from sdeflow.analysis.image_table.table import at_equal_time, paired, rows
from sdeflow.analysis.image_table.trial import Looks, evidence, missed, particle_time, trained, with_course
from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import Config, load_config, merged

QUICK = {
    "fold": "validation",
    "data": 5,
    "chains": 2,
    "temperatures": 3,
    "langevin_steps": 1,
    "particles": 1,
    "pictures": False,
}
SMALL = Setting(
    "digits",
    budget=22,
    seeds=2,
    plain=1e-5,
    energy=None,
    encoder={"encoder_hidden": [4]},
    over={
        "model": {"images": 30, "held_out": 20, "hidden": [6], "latent": 2},
        "system": {"particles": 2},
        "batch": {"size": 10},
        "save": {"keep": 5},
        "run": {"dtype": "float64"},
    },
    scores=QUICK | {"fold": "test"},
    quick=QUICK,
    mixture="gmm:2",
    images=0,
)
BY_LABEL = {m.label: m for m in METHODS}


def quiet() -> None:
    pass


@pytest.mark.parametrize("method", [m for m in METHODS if not m.energy], ids=lambda m: m.label)
def test_each_method_is_a_run_within_the_budget(method: Method) -> None:
    """Of all blocks with a momentum this keeps as much of itself, whatever the steps."""
    config = SMALL.config(method, theta=3.0, x=0.25)
    run = build(config)
    a_step = evaluations(run)
    assert config.run.steps == max(2, int(SMALL.budget / a_step))
    theta, x = (next(b for b in run.system.blocks if b.name == name) for name in ("theta", "x"))
    step = method.rate if method.optimizer else SMALL.plain if method.plain else SMALL.theta
    assert run.system.h * theta.rate == pytest.approx(3 * step, rel=1e-12)
    for block, kept in ((theta, KEPT_THETA), (x, KEPT_X)):
        if block.kinetic:
            h = run.system.h * block.rate
            assert exp(-block.gamma * block.eta * h) == pytest.approx(exp(-kept), rel=1e-12)
    if method.system != "vi":
        assert a_step == run.gradient_evaluations
        assert run.system.h * x.rate == pytest.approx(0.25 * SMALL.x, rel=1e-12)
    preconditioned = theta.optimizer is None and not method.plain
    assert ("precondition" in config.system.arguments["theta"]) == preconditioned


def test_an_encoder_counts_by_its_operations() -> None:
    """Of linear layers the products: 64 x 4 + 4 x 4 a datum over 2 particles of 2 x 6 + 6 x 64."""
    a_step = evaluations(build(SMALL.config(BY_LABEL["vi"])))
    assert a_step == pytest.approx(1 + (64 * 4 + 4 * 4) / (2 * (2 * 6 + 6 * 64)), rel=1e-12)


def test_an_energy_counts_on_posterior_and_prior_particles() -> None:
    """10 data x 2 posterior particles and 30 of the prior, 2 x 3 + 3 products each, in two passes."""
    own = {"model": {"energy_prior": {"hidden": [3]}}, "system": {"prior_particles": 30}}
    setting = replace(SMALL, energy="energy", over=merged(SMALL.over, own))
    run = build(setting.config(BY_LABEL["kinetic_ebipla"], over={"run": {"integrator": "expint"}}))
    each = 1 + (20 + 30) * (2 * 3 + 3) / (20 * (2 * 6 + 6 * 64))
    assert run.gradient_evaluations == 2
    assert evaluations(run) == pytest.approx(2 * each, rel=1e-12)


@pytest.mark.parametrize("name", list(SETTINGS))
def test_settings_that_are_packaged_have_their_methods(name: str) -> None:
    setting = SETTINGS[name]
    labels = [m.label for m in setting.entrants()]
    assert {REFERENCE, "mpgd, expint", "mpgd, expint_shared", "pgd, adam", "vi", "short_run"} <= set(labels)
    assert (PLAIN in labels) == (setting.precondition is not None and setting.labels is None)
    assert any(m.energy for m in setting.entrants()) == (setting.energy is not None)
    assert ("mpgd, srock" in labels) == (name != "mixture_1d")
    if not setting.images or name == "digits":  # of the others images would be fetched
        for method in setting.entrants():
            assert method.system == setting.config(method, part=0.0).system.use


@pytest.mark.slow
def test_a_study_in_small_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grid, given and tuned runs; the second time nothing is trained or scored."""
    entrants = [BY_LABEL[label] for label in (REFERENCE, "mpgd, expint_shared")]
    monkeypatch.setattr(bases, "GRID", ((1.0, 1.0), (3.0, 1e9)))
    monkeypatch.setattr(bases, "ROUNDS", ((0.2, 2), (0.4, 1)))
    done: list[None] = []
    found = compare(SMALL, entrants, tmp_path, lambda: done.append(None))
    assert len(done) == 2 * (2 + 2 + 1)
    assert sorted(path.name for path in (tmp_path / "grid" / "pgd").iterdir()) == [
        "1-1-0.2",
        "1-1-0.4",
        "3-1e+09-0.2",
    ]
    assert found[TUNED]["pgd"].factor_x == 1  # the other diverges
    for basis in (GIVEN, TUNED):
        for scores in found[basis].values():
            assert scores.seed.to_numpy().tolist() == [10, 11]
            assert bool(scores.value.sel(parameters="last", score="evidence").notnull().all())
            np.testing.assert_array_equal(scores.evaluations, scores.moment * scores.evaluations_a_step)
    assert found[TUNED]["pgd"].parameters.to_numpy().tolist() == [
        "last",
        "average",
        "last, gmm:2",
        "average, gmm:2",
    ]
    monkeypatch.setattr(trial, "_scores", None)
    again = compare(SMALL, entrants, tmp_path, quiet)
    for basis in (GIVEN, TUNED):
        for label, scores in found[basis].items():
            xr.testing.assert_identical(scores, again[basis][label])
    assert as_dataset(found).sizes["method"] == 2
    told = text(found)
    assert told.count("| mpgd, expint_shared |") == 3
    shown = page(SMALL, found, None)
    assert "Equal particle time" in shown
    assert "<svg" in shown


def test_seeds_are_in_pairs(tmp_path: Path) -> None:
    """Two methods that are one, under other names of their scheme, have the same values seed by seed."""
    one, other = (replace(BY_LABEL[PLAIN], label=s, scheme=s) for s in ("euler_maruyama", "expint_shared"))
    values = [
        bases.of_given(SMALL, method, tmp_path).value.sel(parameters="last", score="evidence").to_numpy()
        for method in (one, other)
    ]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-9)
    assert values[0][0] != values[0][1]


def test_another_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    trained(SMALL.config(BY_LABEL[REFERENCE]), tmp_path / "run")
    with pytest.raises(SdeflowError, match="another run"):
        trained(SMALL.config(BY_LABEL[REFERENCE], theta=2.0), tmp_path / "run")


def scores(values: list[float], along: list[list[float]] | None = None, **attrs: float) -> xr.Dataset:
    """Of a method by hand: evidence a seed, and [seed, moment]."""
    found = xr.Dataset(
        {"value": (("seed", "parameters", "score"), np.array(values)[:, None, None])},
        coords={"seed": np.arange(len(values)), "parameters": ["last"], "score": ["evidence"]},
        attrs={
            "evaluations_a_step": 1.0,
            "seconds": 1.0,
            "particle_time": 1.0,
            "diverged": int(np.isnan(values).sum()),
        }
        | attrs,
    )
    if along is None:
        return found
    there = (("seed", "parameters", "moment"), np.array(along)[:, None, :])
    return with_course(found.assign(evidence_along=there).assign_coords(moment=[10, 100]), xr.Dataset(), "")


def test_the_course_of_an_observable_is_that_of_the_run() -> None:
    """Of two replicas, from the first snapshot after the start on."""
    recorded = (("time", "replica"), np.arange(6.0).reshape(3, 2))
    run = xr.Dataset({"w1": recorded}, coords={"step": ("time", [0, 5, 10])})
    found = with_course(scores([0.0, 1.0], evaluations_a_step=2.0), run, "w1")
    np.testing.assert_array_equal(found.course.transpose("seed", "moment"), [[2, 4], [3, 5]])
    assert found.evaluations.to_numpy().tolist() == [10, 20]
    assert found.course.attrs["measure"] == "w1"


def test_paired_intervals_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt 3, and 4.3027 of them to either side."""
    one, other = scores([2.0, 4.0, 6.0]).value, scores([1.0, 2.0, 3.0]).value
    found = paired(one.squeeze(), other.squeeze())
    assert found is not None
    assert (found.mean, found.error) == pytest.approx((2.0, 3**-0.5))
    assert found.high - 2 == pytest.approx(4.302653 * 3**-0.5, rel=1e-6)
    lost = scores([2.0, np.nan, np.nan]).value.squeeze()
    assert paired(lost, other.squeeze()) is None
    table = rows({REFERENCE: scores([1.0, 2.0, 3.0]), "b": scores([2.0, np.nan, 6.0])})
    assert table[1]["evidence less pgd's"] == "+2.00 (-10.71 to +14.71)"
    assert table[1]["evidence"] == "4.00 ± 2.00"
    assert [line["method"] for line in table] == [REFERENCE, "b (1 diverged)"]
    assert table[0]["evidence less pgd's"] == ""


def test_equal_particle_time_is_read_off_the_curves() -> None:
    """The slow one's particles cover 100 in all; the fast one, of 10 a step, has done so after 10 steps."""
    slow = scores([0.0, 1.0], [[-3.0, -2.0], [-2.0, -1.0]])
    fast = scores([0.0, 1.0], [[-9.0, -1.0], [-7.0, -1.0]], particle_time=10.0, evaluations_a_step=6.0)
    fresh = scores([0.0, 1.0], [[-9.0, -1.0], [-7.0, -1.0]], particle_time=np.nan)
    least, table = at_equal_time({REFERENCE: slow, "fast": fast, "fresh": fresh})
    assert least == 100
    assert [line["method"] for line in table] == [REFERENCE, "fast"]
    assert [line["evidence"] for line in table] == ["-1.50 ± 0.50", "-8.00 ± 1.00"]
    assert [line["evaluations"] for line in table] == ["100", "60"]


def test_particle_time_counts_inner_steps_and_friction() -> None:
    each = {
        label: particle_time(build(SMALL.config(BY_LABEL[label])))
        for label in (REFERENCE, "mpgd, expint", "abp", "pgd, srock", "short_run", "vi")
    }
    assert each[REFERENCE] == pytest.approx(SMALL.x)
    assert each["mpgd, expint"] == pytest.approx(SMALL.x / FRICTION)
    assert each["abp"] == pytest.approx(5 * SMALL.x)
    # with 3 steps an epoch a datum misses 0, 1, 2, 3, 4 by 1, 2, 3, 2, 1 of 9 pairs of places: 2 on average
    assert each["pgd, srock"] == pytest.approx(3 * SMALL.x)
    assert missed(3, 2) == pytest.approx((2 + 6 * 2) / 9)
    assert np.isnan([each["short_run"], each["vi"]]).all()


def test_a_run_that_diverged_is_worse_than_any() -> None:
    found = [scores([np.nan]), scores([-3.0]), xr.Dataset()]
    assert [evidence(one) for one in found] == [-np.inf, -3.0, -np.inf]


def test_later_rounds_choose_among_the_best(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is best after a tenth of the budget is not what is best after three tenths."""
    asked: list[str] = []

    def scored(config: Config, folder: Path, looks: Looks) -> xr.Dataset:
        asked.append(folder.name)
        folder.mkdir(parents=True)
        place, part = GRID.index(tuple(map(float, folder.name.split("-")[:2]))), folder.name.split("-")[2]
        return scores([float(place if part == "0.1" else -place)])

    monkeypatch.setattr(bases, "trial", scored)
    assert bases.chosen(SMALL, BY_LABEL[REFERENCE], tmp_path) == 9  # of 11, 10 and 9
    assert len(asked) == 15
    assert asked[12:] == ["3-4-0.3", "3-1-0.3", "3-0.25-0.3"]


def test_grid_seed_is_not_reported_and_the_grid_has_twelve() -> None:
    assert len(GRID) == 12
    assert all(GRID_SEED not in range(FIRST_SEED, FIRST_SEED + s.seeds) for s in SETTINGS.values())
    assert runs(SMALL, METHODS[:3]) == 3 * (2 + 12 + 3)


@pytest.mark.slow
def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.SETTINGS, "digits", SMALL)
    monkeypatch.setattr(bases, "GRID", GRID[:1])
    monkeypatch.setattr(bases, "ROUNDS", ((0.2, 1),))
    asked = ("digits", "--out", tmp_path, "--methods", "pgd")
    assert exit_code(command.main, *asked, "pgd, adam") == 0
    for name in ("table.md", "table.nc", "page.html"):
        assert (tmp_path / name).stat().st_size > 0
    assert "| pgd, adam |" in capsys.readouterr().out
    assert exit_code(command.main, *asked, "pgd, adm") == 2
    assert "did you mean 'pgd, adam'" in capsys.readouterr().err

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "compare", stop)
    assert exit_code(command.main, *asked) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_arms_cover_the_times_that_they_say() -> None:
    """Over an epoch of 3 steps: catching up moves by what was missed, and mpgd's step is the same without."""
    found = {arm.label: confound.config(SMALL, arm, 7) for arm in confound.arms(3)}
    assert confound.per_epoch(SMALL) == 3
    assert {config.run.steps for config in found.values()} == {7}
    x = {label: config.system.arguments["x"] for label, config in found.items()}
    assert x["pgd"]["h"] == 1e-3
    assert x["pgd, long step"]["h"] == 0.0433
    assert 3 * x["pgd, catch-up"]["h"] == pytest.approx(0.0433)
    assert 3 * x["mpgd, catch-up"]["h"] / FRICTION == pytest.approx(0.0433)
    assert x["mpgd"] == x["mpgd, catch-up"]
    assert 3 * FRICTION * x["mpgd"]["eta"] * x["mpgd"]["h"] == pytest.approx(17.55)
    caught = [label for label, config in found.items() if config.batch and config.batch.catch_up != "off"]
    assert caught == ["pgd, catch-up", "mpgd, catch-up", "pgd, srock", "mpgd, srock"]
    assert len({repr(config.system.arguments["theta"]) for config in found.values()}) == 1


def test_published_numbers_are_those_of_the_packaged_problem() -> None:
    """Of cifar10's variant as_published, at the published 390 steps an epoch."""
    published = load_config(problem_file("cifar10"), variant="as_published").system.arguments
    arm = next(a for a in confound.arms(390) if a.label == "mpgd, catch-up")
    over = arm.over(390, published["theta"]["h"])["system"]
    for block in ("x", "theta"):
        for name in ("h", "eta", "gamma"):
            assert over[block][name] == pytest.approx(published[block][name], rel=2e-3)


@pytest.mark.slow
def test_the_confound_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(confound.SETTINGS, "digits", SMALL)
    found = confound.measure(SMALL, 10, tmp_path)
    assert list(found) == [arm.label for arm in confound.arms(3)]
    figure = confound.draw(found, 3)
    assert len(figure.axes[0].lines) == 7
    assert figure.axes[1].lines[1].get_xdata()[-1] == pytest.approx(10 / 3 * 0.0433)

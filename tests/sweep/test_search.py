"""A search: points that are chosen by the scores of those before, each taken once, whatever stops it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from math import log, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from commands import Cli
from tiny import TINY

from sdeflow import SdeflowError, open_run, open_sweep
from sdeflow.errors import RunError
from sdeflow.sweep import search
from sdeflow.sweep.axes import Axis, Interval, parted
from sdeflow.sweep.plan import Point, Search, Sweep
from sdeflow.sweep.process import command
from sdeflow.sweep.search import HOPELESS, JOURNAL, seed_of, seek
from sdeflow.sweep.taking import Ended, Taking

H, PARTICLES = "system.theta.h", "system.particles"
AXES = [Axis(H, interval=Interval(1e-4, 1e-1, True)), Axis(PARTICLES, (2, 16))]


def test_ranges_are_intervals_and_lists_are_choices() -> None:
    given = ["system.x.h=1e-4..1e-1:log", "system.x.eta=0.5..2", "system.particles=2..8", "model.data=[3, 4]"]
    axes, rest = parted([*given, "run.steps=9"], searching=True)
    assert axes == [
        Axis("system.x.h", interval=Interval(1e-4, 1e-1, True)),
        Axis("system.x.eta", interval=Interval(0.5, 2.0)),
        Axis("system.particles", interval=Interval(2, 8)),
        Axis("model.data", (3, 4)),
    ]
    assert isinstance(axes[2].interval and axes[2].interval.low, int)
    assert rest == ["run.steps=9"]


@pytest.mark.parametrize(
    ("given", "searching", "told"),
    [
        ("system.x.h=0.1..0.1", True, "the lesser number first"),
        ("system.x.h=0..1:log", True, "positive numbers, the lesser first"),
        ("run.seed=0..9", True, "would find the luckiest"),
        ("system.x.h=0.1..0.9", False, "a range is for --search to choose from; give a list"),
        ("system.particles=2..64:log", False, "a range is for --search"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(given: str, searching: bool, told: str) -> None:
    with pytest.raises(SdeflowError, match=told):
        parted([given], searching=searching)


def loss(point: Point) -> float:
    """Least at h = 0.01 and 16 particles."""
    return (log(point.at["h_theta"]) - log(0.01)) ** 2 + (point.at["particles"] == 2)


Play = Callable[..., None]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Has runs end at once, with the score that a function gives, or as `states` has it by trial."""
    pytest.importorskip("optuna")
    scores: dict[Path, float] = {}

    def play(score: Callable[[Point], float] = loss, states: dict[int, str] | None = None) -> None:
        def one(taking: Taking, point: Point) -> Ended:
            command(taking._sweep, point)  # writes the configuration
            scores[point.folder] = score(point)
            state = (states or {}).get(point.at["trial"], "success")
            if state == "interrupted":
                raise KeyboardInterrupt
            return Ended(point, state, "out of luck" * (state == "failed"))

        monkeypatch.setattr(Taking, "one", one)
        monkeypatch.setattr(search, "score_of", lambda folder, _: scores[folder])

    return play


def begun(folder: Path, trials: int, score: str = "loss") -> Sweep:
    return Sweep(folder, TINY, AXES, Search(score, trials)).begin()


def values(ended: list[Ended]) -> list[tuple[float, int]]:
    return [(one.point.at["h_theta"], one.point.at["particles"]) for one in ended]


def states(folder: Path) -> list[str]:
    """Of the trials in the journal, by Optuna itself."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return [trial.state.name for trial in optuna.load_study(study_name="sweep", storage=storage).trials]


def test_points_are_those_that_optuna_chooses_and_find_the_least(tmp_path: Path, played: Play) -> None:
    """The same as by a study of its own in memory; of 40 trials the best is as near as a grid of 200 is."""
    played()
    found = values(seek(begun(tmp_path / "s", 40), 1))
    import optuna

    study = optuna.create_study()
    distributions = {
        H: optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
        PARTICLES: optuna.distributions.CategoricalDistribution(["2", "16"]),
    }
    expected = []
    for number in range(40):
        study.sampler = optuna.samplers.TPESampler(seed=seed_of(number))
        trial = study.ask(distributions)
        expected.append((trial.params[H], int(trial.params[PARTICLES])))
        study.tell(trial, (log(trial.params[H]) - log(0.01)) ** 2 + (trial.params[PARTICLES] == "2"))
    assert found == expected
    h, particles = min(found, key=lambda at: (at[1] == 2, abs(log(at[0] / 0.01))))
    assert particles == 16
    assert abs(log(h / 0.01)) < log(1000) / 200 * 2
    assert states(tmp_path / "s") == ["COMPLETE"] * 40


def test_an_evidence_is_to_be_large(tmp_path: Path, played: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """By minus the loss the same points are chosen as by the loss."""
    played()
    expected = values(seek(begun(tmp_path / "loss", 25), 1))
    played(lambda point: -loss(point))
    monkeypatch.setattr(search, "has_evidence", lambda _: True)
    assert values(seek(begun(tmp_path / "evidence", 25, "evidence"), 1)) == expected


def test_a_search_that_is_stopped_is_the_search_in_one_piece(tmp_path: Path, played: Play) -> None:
    """The trial that it was stopped in goes on, and is not chosen again."""
    played()
    whole = values(seek(begun(tmp_path / "whole", 30), 1))
    played(states={13: "interrupted"})
    with pytest.raises(KeyboardInterrupt):
        seek(begun(tmp_path / "s", 30), 1)
    assert states(tmp_path / "s") == ["COMPLETE"] * 13 + ["RUNNING"]
    assert [point.at["trial"] for point in Sweep.open(tmp_path / "s").points] == [*range(14)]
    played()
    rest = seek(begun(tmp_path / "s", 20), 1)
    assert [one.point.at["trial"] for one in rest] == [*range(13, 20)]
    more = seek(begun(tmp_path / "s", 30), 1)
    assert values(rest) + values(more) == whole[13:]
    assert seek(begun(tmp_path / "s", 30), 1) == []
    assert states(tmp_path / "s") == ["COMPLETE"] * 30


def test_a_search_that_is_killed_while_it_chooses_goes_on(tmp_path: Path, played: Play) -> None:
    """Its journal ends anywhere: in a trial that has not all its values, or within a line."""
    played()
    whole = values(seek(begun(tmp_path / "s", 16), 1))
    text = (tmp_path / "s" / JOURNAL).read_bytes()
    lines = text.splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if json.loads(line)["op_code"] == 4)  # a trial is made
    for cut in (b"".join(lines[: last + 1]), b"".join(lines[: last + 2])[:-7], b"".join(lines[:-1])):
        (tmp_path / "s" / JOURNAL).write_bytes(cut)
        again = seek(begun(tmp_path / "s", 16), 1)
        assert values(again) == whole[15:]


def test_what_diverges_is_pruned_and_what_fails_is_taken_again(tmp_path: Path, played: Play) -> None:
    played(lambda point: nan if point.at["trial"] == 1 else loss(point), states={1: "diverged", 3: "failed"})
    ended = seek(begun(tmp_path / "s", 5), 1)
    assert [one.state for one in ended] == ["success", "diverged", "success", "failed", "success"]
    assert states(tmp_path / "s") == ["COMPLETE", "PRUNED", "COMPLETE", "RUNNING", "COMPLETE"]
    played()
    assert values(seek(begun(tmp_path / "s", 5), 1)) == values(ended[3:4])
    assert states(tmp_path / "s")[3] == "COMPLETE"


def test_a_search_of_which_all_fails_ends(tmp_path: Path, played: Play) -> None:
    played(states=dict.fromkeys(range(40), "failed"))
    with pytest.raises(RunError, match=r"the first 3 runs of .* failed: out of luck"):
        seek(begun(tmp_path / "s", 40), 1)
    assert states(tmp_path / "s") == ["RUNNING"] * HOPELESS


def test_several_at_a_time_are_as_many_in_all(tmp_path: Path, played: Play) -> None:
    played()
    ended = seek(begun(tmp_path / "s", 25), 3)
    assert sorted(one.point.at["trial"] for one in ended) == [*range(25)]
    assert states(tmp_path / "s") == ["COMPLETE"] * 25


def test_a_folder_has_one_search(tmp_path: Path, played: Play) -> None:
    played()
    seek(begun(tmp_path / "s", 2), 1)
    for score, axes in (("kinetic", AXES), ("loss", [Axis(H, interval=Interval(1e-4, 1.0)), AXES[1]])):
        with pytest.raises(SdeflowError, match="has runs of another search, or of none"):
            Sweep(tmp_path / "s", TINY, axes, Search(score, 2)).begin()
    with pytest.raises(SdeflowError, match="has runs of another search, or of none"):
        Sweep(tmp_path / "s", TINY, [Axis(H, (0.1,)), AXES[1]]).begin()
    steps = [Axis("run.steps", interval=Interval(0.5, 9.0))]
    with pytest.raises(SdeflowError, match=r"'run\.steps'.*given 0\.5"):
        Sweep(tmp_path / "t", TINY, steps, Search("loss", 1)).begin()
    (tmp_path / "s" / JOURNAL).unlink()
    with pytest.raises(SdeflowError, match=r"journal\.log is gone"):
        seek(begun(tmp_path / "s", 4), 1)


def test_without_optuna_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SdeflowError, match=r'pip install "sdeflow\[search\]"'):
        seek(begun(tmp_path / "s", 1), 1)


def test_options_that_do_not_go_together_are_refused(here: Path, cli: Cli) -> None:
    sets = ["--set", f"{H}=1e-3..1e-1:log", "--out", "s"]
    for options, told in (
        (["--search", "loss", *sets], "--search SCORE and --trials N go together"),
        (["--trials", 3, "--set", f"{H}=[0.1]", "--out", "s"], "--search SCORE and --trials N go together"),
        (["--search", "loss", "--trials", 3, "--out", "s"], "a search needs numbers to choose between"),
        (["--search", "loss", "--trials", 3, *sets, "--slurm", "time=6"], "is no array: leave out --slurm"),
    ):
        code, _, err = cli("sweep", "tiny.toml", *options)
        assert (code, told in err) == (2, True), err
        assert not Path("s").exists()


# With runs ------------------------------------------------------------------------------------------

SEARCH = ["--search", "loss", "--set", f"{H}=1e-4..1e-2:log", "--set", f"{PARTICLES}=2..5"]


@pytest.mark.slow
def test_trials_are_runs_and_open_as_one_dataset(here: Path, cli: Cli) -> None:
    pytest.importorskip("optuna")
    code, out, err = cli("sweep", "tiny.toml", *SEARCH, "--trials", 3, "--jobs", 2, "--out", "s")
    assert code == 0, err
    with open_sweep("s") as runs:
        assert runs.loss.dims == ("trial", "step")  # of other times
        assert runs.h_theta.dims == runs.particles.dims == runs.score.dims == ("trial",)
        assert runs.score.attrs["long_name"] == "loss"
        np.testing.assert_array_equal(runs.score, runs.loss.isel(step=-1))
        best = int(runs.score.argmin("trial"))
        told = f"best loss {float(runs.score[best]):.6g} at trial={best}, h_theta={float(runs.h_theta[best])}"
        assert told in out
        for number in range(3):
            h, particles = float(runs.h_theta[number]), int(runs.particles[number])
            sets = ["--set", f"{H}={h!r}", "--set", f"{PARTICLES}={particles}"]
            assert cli("run", "tiny.toml", *sets, "--out", f"r{number}", "-q").code == 0
            with open_run(f"r{number}") as alone:
                np.testing.assert_array_equal(runs.X.isel(trial=number, particle=slice(particles)), alone.X)
    assert cli("sweep", "s", "--trials", 4, "-q").code == 0
    assert len(Sweep.open(Path("s")).points) == 4


@pytest.mark.slow
def test_what_a_run_does_not_record_ends_the_search(here: Path, cli: Cli) -> None:
    pytest.importorskip("optuna")
    lost = ["lost" if word == "loss" else word for word in SEARCH]
    code, _, err = cli("sweep", "tiny.toml", *lost, "--trials", 9, "--out", "s", "--jobs", 1)
    assert code == 2
    assert err == "sdeflow: --search lost: a run does not record that, did you mean 'loss'?\n"
    assert len(Sweep.open(Path("s")).points) == 1


def killed(call: list[Any]) -> None:
    """Kills a search in its second trial."""
    process = subprocess.Popen([sys.executable, "-m", "sdeflow", *map(str, call)])
    end = time.monotonic() + 120
    while not (Path("s") / "trial=1" / "checkpoint.prev").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(60)


@pytest.mark.slow
def test_a_search_that_is_killed_ends_as_one_that_is_not(here: Path, cli: Cli) -> None:
    pytest.importorskip("optuna")
    long = ["--steps", 20_000, "--set", "save.every=500", "--set", "save.checkpoint=0.1"]
    long += ["--trials", 3, "--jobs", 1]
    killed(["sweep", "tiny.toml", *SEARCH, *long, "--out", "s"])
    assert states(Path("s")) == ["COMPLETE", "RUNNING"]
    assert cli("sweep", "s", "-q").code == 0
    assert cli("sweep", "tiny.toml", *SEARCH, *long, "--out", "whole", "-q").code == 0
    with open_sweep("s") as found, open_sweep("whole") as expected:
        for name in ("h_theta", "particles", "score", "theta", "state"):
            np.testing.assert_array_equal(found[name], expected[name])
    assert states(Path("s")) == ["COMPLETE"] * 3


@pytest.mark.slow
def test_an_evidence_is_that_of_the_validation_fold(here: Path, cli: Cli) -> None:
    """As `sdeflow evaluate --fold validation` finds it, and not found again."""
    pytest.importorskip("optuna")
    few = ["--set", "model.images=40", "--steps", 5, "--set", f"{H}=1e-4..1e-3", "--set", "system.x.h=1e-3"]
    search_ = ["--search", "evidence", "--trials", 1, "--jobs", 1, "--out", "s"]
    code, _, err = cli("sweep", "digits", *few, *search_)
    assert code == 2
    assert "fold = 'validation' is half of the held-out data" in err
    search_[-1] = "t"
    code, out, err = cli("sweep", "digits", *few, "--set", "model.held_out=9", *search_)
    assert code == 0, err
    with xr.open_dataset("t/trial=0/evaluation.nc") as found, open_sweep("t") as runs:
        assert found.attrs["fold"] == "validation"
        assert found.datum.values.tolist() == [0, 2, 4, 6, 8]
        assert float(runs.score[0]) == float(found.value.sel(parameters="last", score="evidence"))
        assert f"best evidence {float(runs.score[0]):.6g} at trial=0" in out
    before = Path("t/trial=0/evaluation.nc").stat().st_mtime_ns
    (Path("t") / JOURNAL).write_bytes(b"".join((Path("t") / JOURNAL).read_bytes().splitlines(True)[:-1]))
    assert cli("sweep", "t", "-q").code == 0
    assert states(Path("t")) == ["COMPLETE"]
    assert Path("t/trial=0/evaluation.nc").stat().st_mtime_ns == before

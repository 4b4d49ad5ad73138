"""Callbacks: what they see, that they change nothing, that they stop a run, and that a run in pieces is one.

Oracles: the run without callbacks; the run in one piece; the trajectory that both have recorded.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from commands import Cli, command, program
from pieces import STEPS, WHOLE, toy
from safetensors.torch import load_file
from small import Net, Ramp, assert_same, system_of

import sdeflow
from sdeflow import CSV, Batch, Callback, EarlyStopping, Evaluate, Grid, Save, SDESystem, Snapshot, simulate
from sdeflow.analysis.evaluation import read
from sdeflow.errors import DivergenceWarning, RunError, SdeflowError

OFTEN = Save(every=3, data="all", particles="all", checkpoint=0.0)


class Mean:
    """What a user may write: it keeps what it sees, in shapes and numbers."""

    def __init__(self) -> None:
        self.seen: list[Snapshot] = []

    def __call__(self, snapshot: Snapshot) -> None:
        self.seen.append(snapshot)
        snapshot.state["X"].zero_()  # by accident, in place


def stop_at(step: int, snapshot: Snapshot) -> bool:
    return snapshot.step >= step


# What they see ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"engine": "eager", "noise": "torch", "replicas": 2},
        {"batch": Batch(2), "evaluate": Evaluate(6, 2)},
        {"average": sdeflow.Average(0.5)},
    ],
    ids=str,
)
def test_a_run_with_callbacks_has_the_same_numbers(options: dict[str, Any], tmp_path: Path) -> None:
    """Also where one writes into all that it is given, and draws from torch's global generator."""

    def meddle(snapshot: Snapshot) -> None:
        torch.rand(3)
        for value in snapshot.state.values():
            value.fill_(7)
        for array in snapshot.observables.values():
            if array.ndim:
                with pytest.raises(ValueError, match="read-only"):
                    array[:] = 7

    options = WHOLE | options
    plain = simulate(toy(), "expint", **options)
    callbacks = [meddle, CSV(tmp_path / "log.csv"), EarlyStopping("loss", patience=100)]
    assert_same(simulate(toy(), "expint", callbacks=callbacks, **options), plain)


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_snapshot_is_what_is_recorded(replicas: int) -> None:
    """Step, time, every observable and the state, as in the trajectory, which saves all."""
    watch = Mean()
    options = WHOLE | {"save": OFTEN, "replicas": replicas, "average": sdeflow.Average(0.9)}
    run = simulate(toy(), "expint", callbacks=watch, **options)
    assert [s.step for s in watch.seen] == run.step.values.tolist()
    assert [s.time for s in watch.seen] == run.time.values.tolist()
    assert {s.steps for s in watch.seen} == {STEPS}
    seconds = [s.seconds for s in watch.seen]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] <= run.attrs["seconds"] + 1e-3
    lead = () if replicas == 1 else (replicas,)
    observed = {name for name, v in run.data_vars.items() if v.dims in (("time",), ("time", "replica"))}
    for k, snapshot in enumerate(watch.seen):
        assert set(snapshot.observables) == observed
        for name in observed:
            np.testing.assert_array_equal(snapshot[name], run[name][k])
            assert np.shape(snapshot[name]) == lead
        np.testing.assert_array_equal(snapshot.state["U"], run["U"][k])
        np.testing.assert_array_equal(snapshot.theta["theta"], run["theta"][k].values.reshape(lead))


def test_the_state_is_by_name_as_in_the_last_file(tmp_path: Path) -> None:
    """Names, shapes and numbers at the end; parameters of a module as its load_state_dict takes them."""
    last: list[Snapshot] = []
    run = tmp_path / "run"
    simulate(system_of(Net()), "expint", steps=4, out=run, callbacks=last.append)
    final = load_file(run / "final.safetensors")
    assert set(last[-1].state) == set(final)
    assert all(torch.equal(last[-1].state[name], final[name]) for name in final)
    torch.nn.Linear(6, 2).load_state_dict(last[-1].theta)
    assert all(torch.equal(v, sdeflow.load(run).theta[name]) for name, v in last[-1].theta.items())


def test_nothing_is_copied_that_is_not_asked_for() -> None:
    made = []

    def watch(snapshot: Snapshot) -> None:
        assert snapshot.theta["theta"].shape == ()
        made.append(set(snapshot.state._made))  # type: ignore[attr-defined]

    simulate(toy(), "expint", callbacks=watch, **WHOLE)
    assert all(names == {"theta.theta"} for names in made)
    assert len(made) == 5


def test_they_are_told_where_a_run_begins_and_ends(tmp_path: Path) -> None:
    told: list[Any] = []

    class Told(Callback):
        def begin(self, run: Any) -> None:
            told.append((run.step, run.folder, run.there(), run.attributes["seed"]))

        def __call__(self, snapshot: Snapshot) -> None:
            told.append(snapshot.step)

        def end(self, retcode: str) -> None:
            told.append(retcode)

    simulate(toy(), "expint", callbacks=[Told()], out=tmp_path / "run", **WHOLE)
    assert told == [(0, tmp_path / "run", False, 0), 0, 3, 6, 9, 11, "success"]


# Stopping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize(
    ("callback", "by"),
    [
        (partial(stop_at, 6), "stop_at"),
        (lambda s: "far enough" if s.step == 6 else None, r".*<lambda>: far enough"),
        (lambda s: np.bool_(s.step >= 6), r".*<lambda>"),
        (lambda s: torch.tensor(s.step >= 6), r".*<lambda>"),
    ],
)
def test_a_callback_stops_a_run(callback: Any, by: str, out: bool, tmp_path: Path) -> None:
    """The trajectory is that of the longer run up to there; the callbacks after it see the snapshot too."""
    plain, after = simulate(toy(), "expint", **WHOLE), Mean()
    folder = tmp_path / "run" if out else None
    run = simulate(toy(), "expint", callbacks=[callback, after], out=folder, **WHOLE)
    assert run.attrs["retcode"] == "stopped"
    assert run.attrs["steps_taken"] == 6
    assert len(after.seen) == 3
    assert re.fullmatch(f"after 6 of 11 steps by {by}", run.attrs["message"])
    assert_same(run, plain.isel(time=slice(3)))
    if folder is not None:
        assert sdeflow.load(folder).step == 6
        assert simulate(toy(), "expint", start=folder, **WHOLE).attrs["start_step"] == 6


def test_a_stop_at_the_last_step_is_a_success() -> None:
    run = simulate(toy(), "expint", callbacks=partial(stop_at, STEPS), **WHOLE)
    assert run.attrs["retcode"] == "success"


def test_a_run_can_be_stopped_at_its_start(tmp_path: Path) -> None:
    run = simulate(toy(), "expint", callbacks=partial(stop_at, 0), out=tmp_path / "run", **WHOLE)
    assert (run.attrs["retcode"], run.sizes["time"]) == ("stopped", 1)
    whole = simulate(toy(), "expint", out=tmp_path / "run", resume=True, **WHOLE)
    assert_same(whole, simulate(toy(), "expint", **WHOLE))


def test_divergence_is_told_before_a_stop() -> None:
    """The first replica begins past the bound; the other is stopped."""
    with pytest.warns(DivergenceWarning, match=r"replica 0: .* Stopped after 3 of 11 steps by .*<lambda>\.$"):
        run = simulate(toy(), "expint", replicas=2, bound=5.6, callbacks=lambda s: s.step == 3, **WHOLE)
    assert (run.attrs["retcode"], run.attrs["steps_taken"]) == ("diverged", 3)


# Resuming --------------------------------------------------------------------------------------------


def watched(folder: Path, more: Any = ()) -> list[Any]:
    """The callbacks that a run is begun and resumed with, made anew as a new process does."""
    return [EarlyStopping("loss", patience=4, min_delta=0.2), CSV(folder / "log.csv"), *more]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"replicas": 2, "evaluate": Evaluate(6, 2), "steps": 100},
    {"batch": Batch(2), "dtype": "float32"},
    {"average": sdeflow.Average(0.9), "save": Save(every=2, theta_max=0)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_run_in_pieces_is_stopped_where_one_in_one_piece_is(
    stop_before: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Early stopping goes on with its memory, and the file has the same bytes."""
    options = WHOLE | {"steps": 60, "save": Save(every=2)} | options
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    whole = simulate(toy(), "expint", callbacks=watched(tmp_path / "one"), **options)
    assert whole.attrs["retcode"] == "stopped"
    last = int(whole.attrs["steps_taken"])
    assert 6 < last < options["steps"]
    run = partial(simulate, toy(), "expint", out=tmp_path / "run", resume=True, **options)
    for n in (1, 4, 7, last - 1, last):
        stop_before(n - 1)
        with pytest.raises(KeyboardInterrupt):
            run(callbacks=watched(tmp_path / "many"))
    stop_before(None)
    pieces = run(callbacks=watched(tmp_path / "many"))
    assert_same(pieces, whole)
    assert pieces.attrs["message"] == whole.attrs["message"]
    one, many = (tmp_path / name / "log.csv" for name in ("one", "many"))
    assert many.read_bytes() == one.read_bytes()


KILLED = """
import os, sys
from pathlib import Path
from test_callbacks import WHOLE, Save, simulate, toy, watched

out, at = Path(sys.argv[1]), int(sys.argv[2])

def kill(snapshot):
    if snapshot.step == at:
        os._exit(9)

options = WHOLE | {"steps": 60, "save": Save(every=2)}
run = simulate(toy(), "expint", callbacks=watched(out, [kill]), out=out / "run", resume=True, **options)
print(run.attrs["steps_taken"])
"""


class Killed(BaseException):
    """Nothing that a run catches, so that it has no end."""


@pytest.mark.parametrize("at", [0, 4, 14])
def test_a_run_goes_on_that_has_had_no_end(tmp_path: Path, at: int) -> None:
    """The file has a row that no checkpoint covers, which is written anew."""
    options: dict[str, Any] = WHOLE | {"steps": 30, "save": Save(every=2, checkpoint=0.0)}

    def kill(snapshot: Snapshot) -> None:
        if snapshot.step == at:
            raise Killed

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    whole = simulate(toy(), "expint", callbacks=watched(tmp_path / "one"), **options)
    run = partial(simulate, toy(), "expint", out=tmp_path / "run", resume=True, **options)
    with pytest.raises(Killed):
        run(callbacks=watched(tmp_path / "two", [kill]))
    assert_same(run(callbacks=watched(tmp_path / "two")), whole)
    one, two = (tmp_path / name / "log.csv" for name in ("one", "two"))
    assert two.read_bytes() == one.read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """Killed after the file has a row that no checkpoint covers, resumed in another process."""
    options: dict[str, Any] = WHOLE | {"steps": 60, "save": Save(every=2)}
    (tmp_path / "one").mkdir()
    whole = simulate(toy(), "expint", callbacks=watched(tmp_path / "one"), **options)
    path = {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}:{Path(__file__).parents[2]}"}
    done = program(KILLED, tmp_path, 6, **path)
    assert done.returncode == 9, done.stderr
    assert (tmp_path / "log.csv").read_text().splitlines()[-1].startswith("6,")
    done = program(KILLED, tmp_path, -1, **path)
    assert done.stdout.split() == [str(whole.attrs["steps_taken"])], done.stderr
    assert_same(sdeflow.open_run(tmp_path / "run"), whole)
    assert (tmp_path / "log.csv").read_bytes() == (tmp_path / "one" / "log.csv").read_bytes()


def test_a_stop_that_was_not_kept_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is interrupted within the callback after the one that stops it, once the snapshot is recorded."""
    options: dict[str, Any] = WHOLE | {"steps": 60, "save": Save(every=2)}
    whole = simulate(toy(), "expint", callbacks=watched(tmp_path), **options)
    last = int(whole.attrs["steps_taken"])

    def interrupted(snapshot: Snapshot) -> None:
        if snapshot.step == last:
            raise KeyboardInterrupt

    run = partial(simulate, toy(), "expint", out=tmp_path / "run", resume=True, **options)
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=watched(tmp_path, [interrupted]))
    resumed = run(callbacks=watched(tmp_path))
    assert (resumed.attrs["retcode"], resumed.attrs["message"]) == ("stopped", whole.attrs["message"])
    assert_same(resumed, whole)


def test_a_callback_that_hangs_can_be_interrupted(tmp_path: Path) -> None:
    """By two requests, or by one and patience, and the state is whole."""

    def hanging(snapshot: Snapshot) -> None:
        if snapshot.step == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it goes on")

    run = partial(simulate, toy(), "expint", out=tmp_path / "run", resume=True, **WHOLE)
    with pytest.raises(KeyboardInterrupt, match="stopped after 6 of 11 steps; to go on: sdeflow resume"):
        run(callbacks=hanging)
    assert_same(run(), simulate(toy(), "expint", **WHOLE))


def test_a_shorter_run_goes_on_as_the_longer_one(tmp_path: Path) -> None:
    """The snapshot that was taken because the run ended there is shown no more."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    simulate(toy(), "expint", callbacks=watched(tmp_path / "one"), **WHOLE)
    run = partial(simulate, toy(), "expint", out=tmp_path / "run", resume=True)
    for steps in (7, STEPS):
        run(callbacks=watched(tmp_path / "two"), **(WHOLE | {"steps": steps}))
    one, two = (tmp_path / name / "log.csv" for name in ("one", "two"))
    assert two.read_bytes() == one.read_bytes()


def test_a_stopped_run_has_ended_unless_its_callback_is_another(tmp_path: Path) -> None:
    """With more patience it goes on as if it had had that from the start; without any, to its end."""
    options: dict[str, Any] = WHOLE | {"steps": 40, "save": Save(every=2)}
    early = partial(EarlyStopping, "loss", min_delta=0.2)
    patient = simulate(toy(), "expint", callbacks=early(patience=4), **options)
    run = partial(simulate, toy(), "expint", out=tmp_path / "run", resume=True)
    first = run(callbacks=early(patience=3), **options)
    again = run(callbacks=early(patience=3), **options)
    assert again.attrs["history"] == first.attrs["history"]
    later = run(callbacks=early(patience=4), **options)
    assert first.attrs["steps_taken"] < later.attrs["steps_taken"] < 40
    assert_same(later, patient)
    further = run(callbacks=early(patience=4), **(options | {"steps": 50}))
    assert_same(further, patient)
    assert further.attrs["retcode"] == "stopped"
    assert_same(run(**(options | {"steps": 50})), simulate(toy(), "expint", **(options | {"steps": 50})))


# Failing ---------------------------------------------------------------------------------------------


def fails(at: int) -> Callable[[Snapshot], None]:
    def careless(snapshot: Snapshot) -> None:
        if snapshot.step == at:
            raise ZeroDivisionError("no more")

    return careless


def test_a_failing_callback_ends_the_run_in_good_order(tmp_path: Path) -> None:
    """What was recorded is kept; the error names the callback, the line and, in Python, its own traceback."""
    run = partial(simulate, toy(), "expint", out=tmp_path / "run", resume=True, **WHOLE)
    with pytest.raises(RunError) as caught:
        run(callbacks=[fails(6), CSV()])
    words = str(caught.value)
    assert words.startswith(
        "the run failed after 6 of 11 steps: callback 'fails.<locals>.careless' fails with"
    )
    assert "ZeroDivisionError: no more (test_callbacks.py, line" in words
    assert isinstance(caught.value.__cause__.__cause__, ZeroDivisionError)  # type: ignore[union-attr]
    with xr.open_dataset(tmp_path / "run" / "trajectory.nc") as kept:
        assert kept.attrs["retcode"] == "failed"
        assert kept.step.values.tolist() == [0, 3, 6]
    whole = run(callbacks=CSV())
    assert_same(whole, simulate(toy(), "expint", **WHOLE))
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["step", "0", "3", "6", "9", "11"]


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        (fails(0), "callback 'fails.<locals>.careless' fails with ZeroDivisionError"),
        (
            EarlyStopping("los"),
            "callback 'EarlyStopping': the run has no observable 'los': did you mean 'loss'?",
        ),
        (lambda s: 3.0, "<lambda>' gives float, expected True or a text"),
        (lambda s: s.observables, "gives mappingproxy, expected"),
    ],
)
def test_a_mistake_shows_at_the_start_and_leaves_nothing(tmp_path: Path, callbacks: Any, words: str) -> None:
    log = CSV(tmp_path / "log.csv")
    with pytest.raises(SdeflowError, match=words.replace("?", r"\?")):
        simulate(toy(), "expint", callbacks=[log, callbacks], out=tmp_path / "run", **WHOLE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        (3, "callbacks takes functions of a snapshot, .* given 3"),
        ([EarlyStopping], "given the class EarlyStopping: make one of it"),
        ([lambda s: None, None], "given None"),
        (CSV(), r"CSV\(\) writes log.csv into the run folder, and this run has none"),
    ],
)
def test_what_is_no_callback_is_refused(callbacks: Any, words: str) -> None:
    with pytest.raises(SdeflowError, match=words):
        simulate(toy(), "expint", callbacks=callbacks, **WHOLE)


def test_a_failure_at_the_end_is_a_warning(tmp_path: Path) -> None:
    class Late(Callback):
        def __call__(self, snapshot: Snapshot) -> None:
            pass

        def end(self, retcode: str) -> None:
            raise OSError("no network")

    with pytest.warns(UserWarning, match="at the end of the run, callback .*Late' fails with OSError: no n"):
        run = simulate(toy(), "expint", callbacks=[Late()], out=tmp_path / "run", **WHOLE)
    assert run.attrs["retcode"] == "success"


def test_a_run_that_replaces_another_keeps_its_log(tmp_path: Path) -> None:
    """The log waits until the folder is the run's own; nothing goes into the one that is replaced."""
    run = partial(simulate, toy(), "expint", out=tmp_path / "run")
    every = WHOLE | {"save": Save(every=1, checkpoint=0.0)}
    run(callbacks=CSV(), **WHOLE)
    run(callbacks=CSV(), overwrite=True, **every)
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows[1:]] == [str(n) for n in range(STEPS + 1)]


# By entry point and in TOML --------------------------------------------------------------------------

TOML = """
model = { use = "hierarchical", data = 6 }
run = { integrator = "expint", steps = 60 }
save = { every = 2 }
[system]
use = "mpgd"
particles = 3
theta = { h = 1e-3, eta = 20.0, gamma = 0.5 }
x = { h = 1e-2, eta = 20.0, gamma = 0.5 }
[callbacks.early_stopping]
observable = "spread"
patience = 2
[callbacks.csv]
[callbacks.beside]
use = "csv"
path = "beside.csv"
[callbacks.mine]
use = "mine.py:watch"
[callbacks.other]
use = "mine.py:Watch"
every = 3
[observables]
spread = "mine.py:spread"
"""

MINE = """
from pathlib import Path

def watch(snapshot):
    Path("seen").write_text(str(snapshot["spread"]))

class Watch:
    def __init__(self, every: int = 1):
        self.every = every

    def __call__(self, snapshot):
        assert self.every == 3

def spread(theta, x, y):
    return x.std()
"""


@pytest.fixture
def problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "problem.toml").write_text(TOML)
    return tmp_path


def test_callbacks_in_a_file(problem: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bare name and by file; the run folder says it all, so that `resume` knows them."""
    code, out, err = cli("run", "problem.toml", "--out", "run")
    assert code == 0, err
    assert err.startswith("stopped: after ")
    assert "by EarlyStopping: spread has not improved in 2 measurements; it was" in err
    assert " steps in " in out
    with xr.open_dataset("run/trajectory.nc") as run:
        steps = run.step.values.tolist()
        assert float(Path("seen").read_text()) == pytest.approx(float(run.spread[-1]))
        spread = run.spread.values
    best = int(spread.argmin())
    assert steps[-1] == steps[best + 2] < 60
    read(Path("run"))  # as `evaluate` does
    assert Path("run/log.csv").read_bytes() == Path("beside.csv").read_bytes()
    text = Path("run/config.toml").read_text()
    assert f'path = "{(problem / "beside.csv").as_posix()}"' in text
    assert cli("resume", "run", "-q")[:] == (0, "", "")
    assert "resumed" not in Path("run/run.log").read_text()
    more = ["--set", "callbacks.early_stopping.patience=1000000"]
    assert command("run", "problem.toml", "-q", "--out", "run", "--resume", *more) == 0
    assert command("run", "problem.toml", "-q", "--out", "whole", *more) == 0
    with xr.open_dataset("run/trajectory.nc") as run, xr.open_dataset("whole/trajectory.nc") as whole:
        assert_same(run, whole)
        assert run.attrs["retcode"] == "success"
    assert Path("run/log.csv").read_bytes() == Path("whole/log.csv").read_bytes()


def test_a_problem_tells_its_callbacks(problem: Path, cli: Cli) -> None:
    code, out, _ = cli("show", "problem.toml")
    assert code == 0
    told = "callback EarlyStopping(observable='spread', patience=2, min_delta=0.0, mode='min')"
    assert told in " ".join(out.split())
    assert not (problem / "beside.csv").exists()


def test_a_model_is_loaded_where_its_callback_is_gone(problem: Path) -> None:
    assert command("run", "problem.toml", "-q", "--out", "run", "--steps", 5) == 0
    (problem / "mine.py").write_text(MINE.replace("def watch", "def gone"))
    assert sdeflow.load("run").model.data.shape == (6, 1)


@pytest.mark.slow
def test_other_commands_go_without(problem: Path) -> None:
    """Those that run a problem for their own sake are not stopped, and write no log."""
    few = ["--steps", 20, "--set", "save.every=5"]
    assert command("compare", "problem.toml", "--integrators", "expint,baoab", "--out", "c", *few) == 0
    assert command("tune", "problem.toml", "--steps", 20, "-q") == 0
    assert not (problem / "beside.csv").exists()
    assert not (problem / "seen").exists()
    with xr.open_dataset("c/runs/expint/trajectory.nc") as run:
        assert run.attrs["retcode"] == "success"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "callbacks.erly_stopping.patience=3",
            "unknown callback 'erly_stopping': did you mean 'early_stopp",
        ),
        (
            "callbacks.early_stopping.patiense=3",
            "unknown key 'callbacks.early_stopping.patiense': did you",
        ),
        ("callbacks.early_stopping.patience=2.5", "'callbacks.early_stopping.patience': "),
        ("callbacks.early_stopping.patience=0", "EarlyStopping: patience must be at least 1, given 0"),
        ("callbacks.early_stopping.mode=least", "'callbacks.early_stopping.mode': "),
        ("callbacks.early_stopping.min_delta=-1.0", "min_delta must be at least 0 and finite, given -1.0"),
        ("callbacks.early_stopping=3", "callbacks.early_stopping"),
        ("callbacks=3", "'callbacks' must be a table, [callbacks], given 3"),
        ("callbacks.mine.use=3", "'callbacks.mine.use': a name or file.py:Name was expected, given 3"),
        ("callbacks.mine.each=3", "is a function of a snapshot, and takes no 'each'"),
        ("callbacks.mine.use=mine.py:wach", "defines no 'wach'; did you mean 'watch'?"),
        ("observables.spread=spread", "'observables.spread': a function as 'file.py:Name' was expected"),
        ("observables.loss=mine.py:spread", "observable 'loss': the trajectory uses the name itself"),
        ("observables.a-b=mine.py:spread", "observable 'a-b': a name of letters"),
        ("observables.other=mine.py:MINE", "defines no 'MINE'"),
    ],
)
def test_a_mistake_in_a_file_is_a_sentence(refused: Any, setting: str, words: str) -> None:
    files = {"problem.toml": TOML, "mine.py": MINE}
    assert words in refused("--set", setting, files=files)


def test_the_catalogue_has_them(cli: Cli) -> None:
    code, out, _ = cli("list")
    assert code == 0
    for name in ("early_stopping", "csv", "tensorboard", "wandb"):
        assert f"\n{name} " in out
    assert "patience" in cli("list", "early_stopping").out


# Observables by functions ----------------------------------------------------------------------------


def spread(theta: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.std()


def test_functions_are_recorded_beside_the_models_own(stop_before: Any, tmp_path: Path) -> None:
    """As functions of the saved state: all particles are saved, and theta by name."""
    functions: dict[str, Any] = {
        "spread": spread,
        "away": lambda theta, x, y: (theta["theta"] - y.mean()).abs(),
        "seven": lambda theta, x, y: 7,
    }
    options = WHOLE | {"save": OFTEN, "replicas": 2}
    plain = simulate(toy(), "expint", **options)
    run = simulate(toy(), "expint", observables=functions, **options)
    assert_same(run.drop_vars(list(functions)), plain)
    np.testing.assert_allclose(run.spread, run.X.std(["datum", "particle", "latent"], ddof=1), rtol=1e-12)
    data = toy().definition.data.mean().item()
    np.testing.assert_allclose(run.away, abs(run.theta[..., 0] - data), rtol=1e-12)
    assert (run.seven == 7).all()
    parts = partial(simulate, toy(), "expint", out=tmp_path / "run", resume=True, **options)
    stop_before(5)
    with pytest.raises(KeyboardInterrupt):
        parts(observables=functions)
    stop_before(None)
    with pytest.raises(SdeflowError, match="is of another run: observables was"):
        parts()
    assert_same(parts(observables=functions), run)


def test_functions_see_a_wrapped_models_own_variables() -> None:
    """Of amortised inference latents, not normals, and no parameters of the encoder."""
    seen: dict[str, Any] = {}

    def look(theta: Any, x: torch.Tensor, y: torch.Tensor) -> float:
        seen.update(names=sorted(theta), shape=tuple(x.shape))
        return 0.0

    system = sdeflow.vi(Net(), particles=2, encoder="mlp", encoder_hidden=[4], theta={"h": 1e-3})
    run = simulate(system, steps=2, observables={"look": look})
    assert seen == {"names": ["bias", "weight"], "shape": (5, 2, 2, 3)}
    assert {"look", "spread"} <= set(run.data_vars)


@pytest.mark.parametrize("options", [{}, {"batch": Batch(1)}], ids=str)
def test_functions_of_an_energy_model(options: dict[str, Any]) -> None:
    """Of all its parameters by name, and as many data as the loss is of."""
    from small import LIGHT, Precision

    functions: dict[str, Any] = {
        "log": lambda theta, x, y: theta["alpha.log"],
        "data": lambda theta, x, y: len(x) + len(y),
    }
    motions = {"alpha": LIGHT, "x": LIGHT, "z": LIGHT}
    system = sdeflow.ebipla(Precision(), particles=3, prior_particles=4, **motions)
    run = simulate(system, steps=4, save=Save(every=2), observables=functions, **options)
    np.testing.assert_array_equal(run.log, run.alpha[:, 0])
    assert (run.data == (2 if options else 4)).all()


@pytest.mark.parametrize(
    ("observables", "words"),
    [
        ({"theta": spread}, "observable 'theta': the trajectory uses the name itself"),
        ({"my spread": spread}, "observable 'my spread': a name of letters"),
        ({3: spread}, "observable 3: a name of letters"),
        ({"a": 3}, "observables takes functions"),
        ([spread], "observables takes functions"),
        (
            {"a": lambda theta, x, y: x},
            r"observable 'a' gives shape \(6, 3, 1\), expected shape \(\)",
        ),
        ({"a": lambda theta, x: x}, r"observable 'a' fails with TypeError"),
        (
            {"a": lambda theta, x, y: theta["no"]},
            r"observable 'a' fails with KeyError: 'no' \(test_",
        ),
    ],
)
def test_what_is_no_observable_is_refused(observables: Any, words: str) -> None:
    with pytest.raises(SdeflowError, match=words):
        simulate(toy(), "expint", observables=observables, **WHOLE)


def test_an_observable_needs_a_name_and_a_model_of_its_own() -> None:
    with pytest.raises(SdeflowError, match="Net has an observable 'spread' of its own: choose another name"):
        simulate(system_of(Net()), "expint", steps=1, observables={"spread": spread})
    with pytest.raises(SdeflowError, match="this system has no model: compute them from the trajectory"):
        simulate(SDESystem(Ramp(), h=0.1), steps=1, observables={"spread": spread})


def test_a_plain_sde_has_snapshots_too() -> None:
    watch = Mean()
    run = simulate(SDESystem(Ramp(), h=0.1, paths=5), steps=20, callbacks=watch, save=Save(every=10))
    assert [s.state["X"].shape for s in watch.seen] == [(5, 1)] * 3
    assert watch.seen[-1].theta == {}
    assert run.attrs["retcode"] == "success"


def test_a_grid_of_one_point_has_an_axis_as_its_trajectory_has() -> None:
    watch = Mean()
    run = simulate(toy(), "expint", grid=Grid(gamma=[0.5]), callbacks=watch, **WHOLE)
    assert watch.seen[-1]["loss"].shape == run.loss[-1].shape == (1,)

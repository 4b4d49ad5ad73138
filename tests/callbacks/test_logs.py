"""Logs of a run: what they hold is what the trajectory holds, also where a run goes on.

Oracle: the trajectory. TensorBoard and W&B are stood in for, and TensorBoard's own reader reads where it is.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from pieces import WHOLE, toy

from sdeflow import CSV, Evaluate, Save, TensorBoard, WandB, simulate
from sdeflow.errors import SdeflowError

OPTIONS: dict[str, Any] = WHOLE | {"save": Save(every=1), "evaluate": Evaluate(3, 1)}


def observed(run: xr.Dataset) -> dict[str, Any]:
    return {str(name): v for name, v in run.data_vars.items() if v.dims in (("time",), ("time", "replica"))}


def expected(run: xr.Dataset) -> dict[tuple[str, int], float]:
    """What a log of scalars holds, by name and step; what is NaN is not there."""
    found = {}
    for name, values in observed(run).items():
        rows = values.values.reshape(run.sizes["time"], -1)
        for step, row in zip(run.step.values.tolist(), rows, strict=True):
            for replica, value in enumerate(row):
                if not np.isnan(value):
                    found[f"{name}/{replica}" if "replica" in values.dims else name, step] = float(value)
    return found


def interrupted(run: Any, stop_before: Any, callback: Any, *stops: int) -> Any:
    for n in stops:
        stop_before(n)
        with pytest.raises(KeyboardInterrupt):
            run(callbacks=callback())
    stop_before(None)
    return run(callbacks=callback())


# CSV -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_csv_file_holds_the_numbers_to_the_bit(replicas: int, dtype: str, tmp_path: Path) -> None:
    options = OPTIONS | {"replicas": replicas, "dtype": dtype}
    run = simulate(toy(), "expint", callbacks=CSV(tmp_path / "log.csv"), **options)
    rows = np.genfromtxt(tmp_path / "log.csv", delimiter=",", names=True)
    assert list(rows.dtype.names or ()) == [
        "step",
        "time",
        *["replica"] * (replicas > 1),
        *sorted(observed(run)),
    ]
    assert len(rows) == replicas * run.sizes["time"]
    for name, values in observed(run).items():
        np.testing.assert_array_equal(rows[name].astype(values.dtype), values.values.reshape(-1))
    np.testing.assert_array_equal(rows["step"], np.repeat(run.step.values, replicas))
    np.testing.assert_array_equal(rows["time"], np.repeat(run.time.values, replicas))
    if replicas > 1:
        np.testing.assert_array_equal(rows["replica"], np.tile(range(replicas), run.sizes["time"]))


def test_a_csv_file_can_be_followed(tmp_path: Path) -> None:
    """It is there from the first step on, with all that was observed."""
    path, seen = tmp_path / "log.csv", []

    def follow(_: Any) -> None:
        seen.append(len(path.read_text().splitlines()) if path.exists() else 0)

    simulate(toy(), "expint", callbacks=[CSV(path), follow], **OPTIONS)
    assert seen == [0, *range(3, 14)]


def test_a_csv_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("something else\n")
    simulate(toy(), "expint", callbacks=CSV(str(tmp_path / "log.csv")), **OPTIONS)
    assert (tmp_path / "log.csv").read_text().startswith("step,time,")


def test_a_csv_file_that_cannot_be_written_ends_the_run_in_good_order(tmp_path: Path) -> None:
    """It is a folder; one that is in a folder that is not there yet makes that."""
    log, words = CSV(tmp_path), rf"after 1 of 11 steps: callback 'CSV': {tmp_path} could not be written"
    with pytest.raises(SdeflowError, match=words):
        simulate(toy(), "expint", callbacks=log, out=tmp_path / "run", **OPTIONS)
    with xr.open_dataset(tmp_path / "run" / "trajectory.nc") as run:
        assert run.step.values.tolist() == [0, 1]
    simulate(toy(), "expint", callbacks=CSV(tmp_path / "new" / "log.csv"), **OPTIONS)
    assert (tmp_path / "new" / "log.csv").exists()


# TensorBoard -----------------------------------------------------------------------------------------


class Writers:
    """Stands in for torch.utils.tensorboard: what a reader finds in each folder."""

    def __init__(self) -> None:
        self.folders: dict[str, dict[tuple[str, int], float]] = {}
        self.closed = self.flushed = 0

    def SummaryWriter(self, log_dir: str, purge_step: int | None = None) -> Any:
        held = self.folders.setdefault(log_dir, {})
        for name, step in list(held):
            if purge_step is not None and step >= purge_step:
                del held[name, step]

        def add_scalar(name: str, value: float, step: int) -> None:
            assert (name, step) not in held, "twice"
            assert type(value) is float
            held[name, step] = value

        def count(what: str) -> None:
            setattr(self, what, getattr(self, what) + 1)

        return SimpleNamespace(
            add_scalar=add_scalar, flush=partial(count, "flushed"), close=partial(count, "closed")
        )


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> Writers:
    made, module = Writers(), ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = made.SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return made


@pytest.mark.parametrize("replicas", [1, 2])
def test_tensorboard_has_a_scalar_for_each_observable(
    replicas: int, writers: Writers, tmp_path: Path
) -> None:
    run = simulate(toy(), "expint", callbacks=TensorBoard(tmp_path), replicas=replicas, **OPTIONS)
    assert writers.folders == {str(tmp_path): expected(run)}
    assert writers.closed == 1
    assert writers.flushed == run.sizes["time"] - 1


def test_tensorboard_goes_on_in_the_run_folder(stop_before: Any, writers: Writers, tmp_path: Path) -> None:
    run = partial(simulate, toy(), "expint", out=tmp_path / "run", resume=True, **OPTIONS)
    whole = interrupted(run, stop_before, TensorBoard, 0, 4, 9)
    assert writers.folders == {str(tmp_path / "run" / "tensorboard"): expected(whole)}


def test_tensorboard_itself_reads_it(stop_before: Any, tmp_path: Path) -> None:
    """By its own reader, of a run in three pieces."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = partial(simulate, toy(), "expint", out=tmp_path / "run", resume=True, **OPTIONS)
    whole = interrupted(run, stop_before, TensorBoard, 4, 9)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    assert sum(len(events.Scalars(tag)) for tag in events.Tags()["scalars"]) == len(found)
    assert found == {key: float(np.float32(value)) for key, value in expected(whole).items()}


# Weights & Biases ------------------------------------------------------------------------------------


class Service:
    """Stands in for wandb: runs by their id, which take steps that do not go back."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[tuple[str, int], float]] = {}
        self.steps: dict[str, int] = {}
        self.asked: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []

    def init(self, id: str | None = None, resume: str = "", **options: Any) -> Any:
        assert resume == "allow"
        self.asked.append(options)
        name = id or f"random{len(self.runs)}"
        held = self.runs.setdefault(name, {})
        there = SimpleNamespace(step=self.steps.get(name, 0))

        def log(values: dict[str, float], step: int) -> None:
            assert step >= there.step, "wandb drops what goes back"
            there.step = self.steps[name] = step + 1
            held.update({(key, step): value for key, value in values.items()})

        there.log, there.finish = log, lambda exit_code: self.exit_codes.append(exit_code)
        return there


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Service:
    made, module = Service(), ModuleType("wandb")
    module.init = made.init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return made


def test_wandb_has_a_metric_for_each_observable(wandb: Service) -> None:
    log = WandB(project="toys", name="first", options={"entity": "us"})
    run = simulate(toy(), "expint", callbacks=log, replicas=2, **OPTIONS)
    ((_, found),) = wandb.runs.items()
    times = dict(zip(run.step.values.tolist(), run.time.values.tolist(), strict=True))
    assert found == expected(run) | {("time", step): time for step, time in times.items()}
    assert wandb.exit_codes == [0]
    (asked,) = wandb.asked
    assert (asked["project"], asked["name"], asked["entity"]) == ("toys", "first", "us")
    assert asked["config"]["integrator"] == "expint"
    assert asked["config"]["replicas"] == 2


def test_wandb_goes_on_with_its_run(stop_before: Any, wandb: Service, tmp_path: Path) -> None:
    """By an id that goes with the folder, and is another where the run is begun anew."""
    run = partial(simulate, toy(), "expint", out=tmp_path / "run", resume=True, **OPTIONS)
    whole = interrupted(run, stop_before, WandB, 4, 9)
    (found,) = wandb.runs.values()
    assert {key: v for key, v in found.items() if key[0] != "time"} == expected(whole)
    simulate(toy(), "expint", out=tmp_path / "other", callbacks=WandB(), **OPTIONS)
    assert len(wandb.runs) == 2
    simulate(toy(), "expint", out=tmp_path / "third", callbacks=WandB(id="mine"), **OPTIONS)
    assert "mine" in wandb.runs


@pytest.mark.parametrize(
    ("log", "module", "words"),
    [
        (
            TensorBoard(),
            "torch.utils.tensorboard",
            r'TensorBoard needs .*: pip install "sdeflow\[tensorboard\]"',
        ),
        (WandB(), "wandb", r'WandB needs a package that is not here .*: pip install "sdeflow\[wandb\]"'),
    ],
)
def test_a_package_that_is_not_there(
    log: Any, module: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for before the first step, and nothing is left behind."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SdeflowError, match=words):
        simulate(toy(), "expint", callbacks=log, out=tmp_path / "run", **OPTIONS)
    assert list(tmp_path.iterdir()) == []

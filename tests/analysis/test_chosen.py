"""Theory and samples of a run whose numbers were 'auto': they take those that it chose.

Oracle: the same with the numbers written in.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import xarray as xr
from commands import command

from sdeflow import SdeflowError, mpgd, simulate
from sdeflow.analysis.chosen import chosen
from sdeflow.analysis.comparison.compare import problem_of, rows
from sdeflow.analysis.comparison.entries import Entry
from sdeflow.analysis.samples import learned
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system import BlockSystem

SIZE = ["--set", "model.data=4", "--set", "system.particles=2", "--quiet", "--steps", 30]


def written(run: xr.Dataset, block: str) -> dict[str, float]:
    """The numbers of a block at the end of a run."""
    return {key: float(run[f"{key}_{block}"].isel(time=-1)) for key in ("h", "eta", "gamma")}


def test_a_prediction_is_of_the_numbers_that_the_run_chose() -> None:
    model = Hierarchical(data=5)
    run = simulate(mpgd(model, particles=2), steps=30, dtype="float64")
    entries, cpu = [Entry("baoab", run)], torch.device("cpu")
    given = mpgd(model, particles=2, theta=written(run, "theta"), x=written(run, "x"))
    (row,) = rows(entries, mpgd(model, particles=2).to(torch.float64, cpu))
    (expected,) = rows(entries, given.to(torch.float64, cpu))
    assert row.predicted == pytest.approx(expected.predicted, rel=1e-10)
    assert row.predicted > 0.1


def test_stability_is_of_given_numbers_or_of_those_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("run", "hierarchical", "--variant", "tuned", *SIZE, "--out", "run") == 0
    few = ["stability", "hierarchical", "--integrators", "baoab,ubu", *SIZE[:4]]
    assert command(*few, "--variant", "tuned") == 2
    assert "the numbers of theta and x are 'auto', and a run chooses them: give h" in capsys.readouterr().err
    assert command(*few, "--variant", "tuned", "--at", "run") == 0
    own = capsys.readouterr().out.splitlines()[1:]
    with xr.open_dataset("run/trajectory.nc") as run:
        numbers = {b: written(run, b) for b in ("theta", "x")}
    sets = [f"--set=system.{b}.{key}={v!r}" for b, each in numbers.items() for key, v in each.items()]
    assert command(*few, *sets, "--at", "run") == 0
    assert capsys.readouterr().out.splitlines()[1:] == own
    assert command("run", "hierarchical", *SIZE, "--out", "given") == 0
    assert command(*few, "--variant", "tuned", "--at", "given") == 2
    assert "the run has no h_theta" in capsys.readouterr().err


def test_samples_move_on_by_the_numbers_of_their_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = ["run", "linear_energy", *SIZE, "--set", "system.prior_particles=3", "--replicas", 2]
    for block in ("alpha", "x", "z"):
        run += [f'--set=system.{block}={{h="auto",eta="auto",gamma="auto"}}']
    assert command(*run, "--integrator", "auto", "--out", "run") == 0
    found = learned(Path("run"), replica=1).system
    with xr.open_dataset("run/trajectory.nc") as dataset:
        for b in found.blocks:
            numbers = written(dataset.isel(replica=1), b.name)
            assert {"h": found.h * b.rate, "eta": b.eta, "gamma": b.gamma} == pytest.approx(numbers)
            assert not b.auto
    assert command("sample", "run", "--n", 5) == 0


def test_given_numbers_stay() -> None:
    motion = {"h": 0.1, "eta": 1.0, "gamma": 1.0}
    system = mpgd(Hierarchical(data=3), particles=2, theta=motion, x=motion)
    assert chosen(system, xr.Dataset()) is system
    half: BlockSystem = mpgd(Hierarchical(data=3), particles=2, theta=motion)
    with pytest.raises(SdeflowError, match="the run has no h_theta"):
        chosen(half, xr.Dataset({"loss": ("time", [1.0])}))


def test_numbers_by_schedules_are_those_of_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run has learned goes on by them; theory, of numbers that stay, says why there is none."""
    monkeypatch.chdir(tmp_path)
    falling = [
        "--set=system.theta.h={kind='linear', from=1e-3, to=1e-4}",
        "--set=system.x.temperature={kind='piecewise', at=[20], values=[4, 1]}",
    ]
    assert command("run", "hierarchical", *SIZE, *falling, "--out", "run") == 0
    with xr.open_dataset("run/trajectory.nc") as run:
        last, config = float(run.h_theta[-1]), run.load()
    assert last == pytest.approx(1e-4 + 9e-4 / 30)
    theta, x = learned(Path("run")).system.blocks
    system = learned(Path("run")).system
    assert not system.scheduled
    assert theta.rate * system.h == pytest.approx(last)
    assert x.temperature == 1
    assert command("stability", "hierarchical", "--integrators", "expint", *SIZE[:4], *falling) == 2
    assert (
        "theory is of numbers that stay as they are, and h of theta is a schedule" in capsys.readouterr().err
    )
    entry = Entry("expint", config)
    (row,) = rows([entry], problem_of([entry]))
    assert math.isnan(row.predicted)
    assert row.fitted is not None or row.note

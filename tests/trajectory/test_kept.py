"""Parameters that are kept at moments of a run: which, when, whatever happens; nothing else changes.

Oracles: the snapshots of the same run, which hold its parameters whole; the run in one piece.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from commands import Cli, command
from pieces import flip, toy
from small import Net, assert_same, system_of

from sdeflow import Average, Save, SDESystem, simulate
from sdeflow.trajectory import checkpoint
from sdeflow.trajectory.checkpoint import Damaged
from sdeflow.trajectory.folder import RunFolder
from sdeflow.trajectory.layout import kept_files

OPTIONS: dict[str, Any] = {"steps": 12, "seed": 3, "dtype": "float64", "engine": "eager"}


def kept(run: Path) -> dict[int, dict[str, torch.Tensor]]:
    return {step: checkpoint.decode(path)[1] for step, path in kept_files(run).items()}


def assert_kept(run: Path, trajectory: xr.Dataset, steps: list[int]) -> None:
    """At these steps, to the bit what the trajectory has there."""
    found = kept(run)
    assert list(found) == steps
    at = trajectory.swap_dims(time="step")
    for step, parameters in found.items():
        for name, value in parameters.items():
            own = at[name.replace("average.", "average_")].sel(step=step).values
            assert torch.equal(value.view(own.shape), torch.from_numpy(own))


@pytest.mark.parametrize(
    ("keep", "every", "last", "steps"),
    [
        (0, 1, 100, []),
        (1, 10, 100, [100]),
        (4, 10, 100, [20, 50, 80, 100]),
        (5, 100, 4000, [800, 1600, 2400, 3200, 4000]),
        (3, 4, 18, [8, 12, 18]),
        (5, 10, 7, [7]),
        (30, 1, 3, [1, 2, 3]),
        (5, 1, 0, []),
    ],
)
def test_moments_are_snapshots_spread_evenly(keep: int, every: int, last: int, steps: list[int]) -> None:
    save = Save(every=every, keep=keep)
    assert sorted(save.moments(last)) == steps
    assert set(steps) <= set(save.steps(last))


@pytest.mark.parametrize("options", [{}, {"replicas": 2, "average": Average(0.8)}], ids=str)
def test_they_are_the_snapshots_and_change_no_number(options: dict[str, Any], tmp_path: Path) -> None:
    """Of a model of two parameters; the trajectory is that of a run that keeps none, to the bit."""
    with_files, without = (
        simulate(system_of(Net()), out=tmp_path / str(n), save=Save(every=2, keep=n), **OPTIONS, **options)
        for n in (3, 0)
    )
    assert_same(with_files, without)
    assert_kept(tmp_path / "3", with_files, [4, 8, 12])
    assert not (tmp_path / "0/kept").exists()
    names = {"theta", "average.theta"} if "average" in options else {"theta"}
    assert all(parameters.keys() == names for parameters in kept(tmp_path / "3").values())


def test_a_run_that_stops_and_goes_on_has_them_all(stop_before: Any, tmp_path: Path) -> None:
    """Stopped before, at and after a moment; gone on further it keeps those of then too."""
    save = Save(every=2, keep=3)
    whole = simulate(toy(), "expint", out=tmp_path / "whole", save=save, **OPTIONS)
    for n in (3, 4, 5, 8, 11):
        stop_before(n)
        with pytest.raises(KeyboardInterrupt):
            simulate(toy(), "expint", out=tmp_path / "run", save=save, resume=True, **OPTIONS)
    stop_before(None)
    run = simulate(toy(), "expint", out=tmp_path / "run", save=save, resume=True, **OPTIONS)
    assert_same(run, whole)
    assert_kept(tmp_path / "run", whole, [4, 8, 12])
    further = OPTIONS | {"steps": 24}
    run = simulate(toy(), "expint", out=tmp_path / "run", save=save, resume=True, **further)
    assert_kept(tmp_path / "run", run, [4, 8, 12, 16, 24])


def test_what_the_checkpoint_does_not_cover_goes(tmp_path: Path) -> None:
    """A checkpoint of an earlier step has taken the place of a damaged one; half a file was left."""
    out = tmp_path / "run"
    simulate(toy(), "expint", out=out, save=Save(every=2, keep=3), **OPTIONS)
    (out / "kept/.000000000000016.tmp").write_bytes(b"half")
    shutil.copy(kept_files(out)[12], out / "kept/000000000000016")
    folder = RunFolder.reopen(out)
    folder.close()
    assert [*kept_files(out)] == [4, 8, 12] == sorted(int(path.name) for path in (out / "kept").iterdir())


def test_a_run_takes_the_place_of_another_with_its_moments(tmp_path: Path) -> None:
    """The first is of a step in which it comes to be in the folder."""
    out = tmp_path / "run"
    simulate(toy(), "expint", out=out, save=Save(every=1, keep=12), **OPTIONS)
    options = OPTIONS | {"seed": 4, "steps": 2}
    run = simulate(toy(), "expint", out=out, save=Save(every=1, keep=2), overwrite=True, **options)
    assert_kept(out, run, [1, 2])


def test_damage_is_named(tmp_path: Path) -> None:
    out = tmp_path / "run"
    simulate(toy(), "expint", out=out, save=Save(every=2, keep=1), **OPTIONS)
    flip(kept_files(out)[12], 0.99)
    with pytest.raises(Damaged, match=r"kept/0+12 is damaged"):
        kept(out)


def test_a_run_goes_on_with_another_number_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """It is no setting that fixes numbers; runs of before, that know none, go on too."""
    monkeypatch.chdir(tmp_path)
    options = ["--quiet", "--set", "save.every=2", "--out", "run"]
    assert command("run", "hierarchical", "--steps", 4, *options) == 0
    more = ["--steps", 8, "--set", "save.keep=2", "--resume"]
    assert cli("run", "hierarchical", *options, *more).code == 0
    assert [*kept_files(tmp_path / "run")] == [8]
    told = cli("show", "hierarchical", "--set", "save.keep=5").out
    assert "kept parameters" in told
    assert "kept parameters" not in cli("show", "hierarchical").out


def test_there_are_none_without_parameters(tmp_path: Path) -> None:
    from small import Ramp

    system = SDESystem(Ramp(), h=0.1, paths=2, start=[0.0])
    simulate(system, "euler_maruyama", out=tmp_path / "run", save=Save(every=2, keep=2), **OPTIONS)
    assert not (tmp_path / "run/kept").exists()

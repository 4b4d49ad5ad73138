"""Runs in pieces: the trajectory is that of a run in one piece, to the bit, or the reason is told.

Oracles: the run in one piece; the files' checksums; a second process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from commands import command, contents
from pieces import STEPS, WHOLE, flip, toy
from safetensors.torch import load_file
from small import assert_same
from support import ODE_SCHEMES
from torch import Tensor

import sdeflow
from sdeflow import Batch, Evaluate, Save, SDESystem, open_run, simulate
from sdeflow.config.catalogue import entries
from sdeflow.errors import DivergenceWarning, SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.trajectory import checkpoint
from sdeflow.trajectory.folder import RunFolder

TINY = """
[model]
use = "hierarchical"
data = 3
[system]
use = "mpgd"
particles = 2
theta = { h = 1e-3, eta = 2.0, gamma = 0.5 }
x = { h = 1e-2, eta = 2.0, gamma = 0.5 }
[run]
steps = 8
[save]
every = 3
"""


def in_pieces(stop_before: Any, system: Any, scheme: str, out: Path, stops: list[int], **options: Any) -> Any:
    """The run stopped before each of the steps and resumed."""
    for n in stops:
        stop_before(n)
        with pytest.raises(KeyboardInterrupt, match="sdeflow resume"):
            simulate(system, scheme, out=out, resume=True, **options)
    stop_before(None)
    return simulate(system, scheme, out=out, resume=True, **options)


@pytest.mark.parametrize(
    "scheme",
    [
        pytest.param(s, marks=pytest.mark.slow if s.startswith("torchsde:") and s != "torchsde:heun" else ())
        for s in entries("integrators")
        if s not in ODE_SCHEMES
    ],
)
def test_every_integrator(stop_before: Any, tmp_path: Path, scheme: str) -> None:
    whole = simulate(toy(), scheme, **WHOLE)
    pieces = in_pieces(stop_before, toy(), scheme, tmp_path / "run", [1, 3, 4, 10], **WHOLE)
    assert_same(pieces, whole)
    assert "resumed at step 3" in pieces.attrs["history"]
    assert pieces.attrs["steps_taken"] == STEPS
    assert pieces.attrs["retcode"] == "success"


@pytest.mark.parametrize(
    "options",
    [
        {"batch": Batch(2)},
        {"batch": Batch(4, "one_step", 2), "replicas": 2},
        {"batch": Batch(2, "srock", 6, 3)},
        {"batch": Batch(2, "substeps", 3), "precondition": "rmsprop", "evaluate": Evaluate(6, 2)},
        {"evaluate": Evaluate(3), "replicas": 3},
        {"dtype": "float32"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "scheme",
    ["expint", pytest.param("baoab", marks=pytest.mark.slow), pytest.param("nag", marks=pytest.mark.slow)],
)
def test_minibatches_preconditioner_replicas(
    stop_before: Any, tmp_path: Path, scheme: str, options: dict[str, Any]
) -> None:
    options = WHOLE | options
    theta = {"precondition": options.pop("precondition")} if "precondition" in options else {}
    if theta and scheme == "baoab":
        pytest.skip("baoab takes no preconditioner")
    whole = simulate(toy(**theta), scheme, out=tmp_path / "whole", **options)
    pieces = in_pieces(stop_before, toy(**theta), scheme, tmp_path / "run", [2, 5, 9], **options)
    assert_same(pieces, whole)
    first, second = (load_file(tmp_path / name / "final.safetensors") for name in ("whole", "run"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("stop", [6, 7, 9, 12])
def test_a_finished_run_goes_on(stop_before: Any, tmp_path: Path, stop: int) -> None:
    """Its last snapshot and evaluation, taken because it ended there, are not part of the longer run."""
    options: dict[str, Any] = WHOLE | {"steps": 16, "evaluate": Evaluate(6, 2)}
    whole = simulate(toy(), "expint", **options)
    short = simulate(toy(), "expint", out=tmp_path / "run", **(options | {"steps": stop}))
    assert bool(short.held_out_loss[-1].notnull())
    expected = sorted({*range(0, stop, 3), stop})
    assert short.step.values.tolist() == expected
    longer = in_pieces(stop_before, toy(), "expint", tmp_path / "run", [stop + 2], **options)
    assert_same(longer, whole)
    assert_same(simulate(toy(), "expint", out=tmp_path / "run", resume=True, **options), whole)


def test_steps_are_added_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    assert command("run", "tiny.toml", "-q", "--out", "run") == 0
    assert command("resume", "run", "-q") == 0
    assert command("resume", "run", "-q", "--steps", "5") == 0
    assert sdeflow.resume("run", np.int64(7)).retcode == "success"
    assert command("run", "tiny.toml", "-q", "--out", "whole", "--steps", "20") == 0
    with xr.open_dataset("run/trajectory.nc") as run, xr.open_dataset("whole/trajectory.nc") as whole:
        assert_same(run, whole)
    assert "steps = 20" in Path("run/config.toml").read_text()
    log = Path("run/run.log").read_text()
    assert "resumed at step 8 of 13" in log
    assert "resumed at step 13 of 20" in log
    assert command("run", "run/config.toml", "-q", "--out", "again") == 0
    with xr.open_dataset("again/trajectory.nc") as again, xr.open_dataset("whole/trajectory.nc") as whole:
        assert_same(again, whole)


# Refusals --------------------------------------------------------------------------------------------


def test_another_run_is_refused(stop_before: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    simulate(toy(), "expint", out=out, **WHOLE)
    for change, sentence in (
        ({"seed": 1}, "is of another run: seed was 0 and is 1"),
        ({"save": Save(every=2)}, "save was .* and is "),
        ({"dtype": "float32"}, "dtype was 'torch.float64' and is 'torch.float32'"),
        ({"batch": Batch(2)}, "batch was 'None' and is "),
        ({"steps": 4}, "has taken 11 steps already, more than 4"),
        ({"bound": 5.0}, "bound was 1e\\+12|bound was 1000000000000.0 and is 5.0"),
    ):
        with pytest.raises(SdeflowError, match=sentence):
            simulate(toy(), "expint", out=out, resume=True, **(WHOLE | change))
    with pytest.raises(SdeflowError, match=r"system was .* and is "):
        simulate(toy(sdeflow.kiplmc), "expint", out=out, resume=True, **WHOLE)
    other = toy(model=Hierarchical(data=6, theta_true=50.0))
    with pytest.raises(SdeflowError, match=r"model was 'Hierarchical .*' and is 'Hierarchical "):
        simulate(other, "expint", out=out, resume=True, **WHOLE)
    with pytest.raises(SdeflowError, match=r"simulate\(\.\.\., out=\.\.\., resume=True\)"):
        sdeflow.resume(out)
    simulate(toy(), "expint", out=out, resume=True, **WHOLE)


def test_a_changed_configuration_is_refused_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    assert command("run", "tiny.toml", "-q", "--out", "run") == 0
    config = Path("run/config.toml")
    config.write_text(config.read_text().replace("eta = 2.0", "eta = 3.0", 1))
    assert command("resume", "run", "--steps", "2") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "is of another run: system.theta.eta was 2.0 and is 3.0" in err
    config.unlink()
    assert command("resume", "run", "--steps", "2") == 2
    assert command("resume", "nowhere") == 2
    assert "nowhere has no checkpoint: give the folder of a run" in capsys.readouterr().err
    assert command("resume", "run", "--steps", "-2") == 2
    assert command("run", "tiny.toml", "-q", "--out", "run") == 2
    assert "; to go on with it: sdeflow resume run" in capsys.readouterr().err


def test_changed_code_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from sdeflow.problems.hierarchical import Hierarchical\n\nclass Mine(Hierarchical):\n    pass\n"
    Path("mine.py").write_text(code)
    Path("tiny.toml").write_text(TINY.replace('"hierarchical"', '"mine.py:Mine"'))
    assert command("run", "tiny.toml", "-q", "--out", "run") == 0
    assert command("resume", "run", "-q", "--steps", "3") == 0
    with xr.open_dataset("run/trajectory.nc") as run:
        assert run.attrs["warnings"] == ""
    Path("mine.py").write_text(code + "# changed\n")
    assert command("resume", "run", "-q", "--steps", "3") == 0
    with xr.open_dataset("run/trajectory.nc") as run:
        assert "mine.py has changed since the run began; steps from 11 on" in run.attrs["warnings"]


# Damage ----------------------------------------------------------------------------------------------


def test_a_model_that_has_grown_is_refused(tmp_path: Path) -> None:
    class Grown(Hierarchical):
        def init_theta(self, generator: torch.Generator) -> Any:
            return {"theta": torch.zeros(2)}

        def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
            return super().log_joint({"theta": theta["theta"].sum()}, x, y)

        score_x = score_theta = None

    simulate(toy(), "expint", out=tmp_path / "run", **WHOLE)
    system = toy(model=Grown(data=6, theta_true=2.0))
    with pytest.raises(SdeflowError, match=r"system was .* 1 .param.*and is .* 2 .param"):
        simulate(system, "expint", out=tmp_path / "run", resume=True, **(WHOLE | {"steps": 20}))


# While it is written, and how it ends -------------------------------------------------------------------


def test_a_replica_that_diverges_leaves_the_others(stop_before: Any, tmp_path: Path) -> None:
    """From step 5 on replica 1 has a term that grows; it is named, with the step, also after a resumption."""

    class Bistable:
        def drift(self, t: float, x: Tensor) -> Tensor:
            return (x > 1) * 1e3 * x**3 - 1.0

        def diffusion(self, t: float, x: Tensor) -> float:
            return 2.0

    system = SDESystem(Bistable(), h=0.01, paths=1, start=[0.0])
    options: dict[str, Any] = {"steps": 60, "replicas": 12, "seed": 3, "save": Save(every=5, checkpoint=0)}
    with pytest.warns(DivergenceWarning):
        whole = simulate(system, "euler_maruyama", **options)
    bad = np.flatnonzero(~np.isfinite(whole.X[-1].squeeze()))
    assert 0 < len(bad) < 12
    for replica in bad:
        assert f"replica {replica}: X is not finite by step " in whole.attrs["message"]
    with pytest.warns(DivergenceWarning):
        pieces = in_pieces(stop_before, system, "euler_maruyama", tmp_path / "run", [30, 45], **options)
    assert_same(pieces, whole)
    assert pieces.attrs["retcode"] == "diverged"
    assert f"replica {bad[0]}: X is not finite by step " in pieces.attrs["message"]


def test_a_diverged_run_keeps_its_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdeflow.simulation.time_loop._CHUNK_SECONDS", 0.0)
    system = sdeflow.pgd(Hierarchical(data=3), particles=2, theta={"h": 0.01}, x={"h": 5.0})
    out = tmp_path / "run"
    with pytest.warns(
        DivergenceWarning, match=r"replica 0: .* by step \d+.*The last checkpoint is of step \d+"
    ):
        run = simulate(system, "euler_maruyama", steps=200, out=out, save=Save(every=1, checkpoint=0))
    assert run.attrs["retcode"] == "diverged"
    meta, state = checkpoint.decode(out / "checkpoint")
    assert 0 < meta.step < run.attrs["steps_taken"] < 200
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert [segment.file for segment in meta.segments] == ["trajectory.nc"]
    with pytest.raises(SdeflowError, match="diverged, and would again"):
        simulate(system, "euler_maruyama", steps=300, out=out, resume=True, save=Save(every=1, checkpoint=0))


def test_the_bound_names_the_energy(tmp_path: Path) -> None:
    with pytest.warns(
        DivergenceWarning, match=r"loss is 5\.83, past the bound of 1 \(run\.bound\) by step 0"
    ):
        simulate(toy(), "expint", bound=1.0, **WHOLE)
    with pytest.raises(SdeflowError, match="bound must be positive, given -1"):
        simulate(toy(), "expint", bound=-1, **WHOLE)


def test_joining_that_is_stopped_is_done_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    out, whole = tmp_path / "run", simulate(toy(), "expint", **WHOLE)
    monkeypatch.setattr("sdeflow.trajectory.segments.join", stopped)
    with pytest.raises(
        KeyboardInterrupt, match=r"trajectory\.nc was not finished; to finish it: sdeflow resume .*run"
    ):
        simulate(toy(), "expint", out=out, **WHOLE)
    assert not (out / "trajectory.nc").exists()
    with open_run(out) as run:
        assert_same(run, whole)
    monkeypatch.undo()
    assert_same(simulate(toy(), "expint", out=out, resume=True, **WHOLE), whole)


def test_a_refused_resumption_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room on the disk for so many more steps, or more than anyone can take."""
    out = tmp_path / "run"
    simulate(toy(), "expint", out=out, **WHOLE)
    before = contents(out)
    for steps, sentence in ((10**12, "of disk until it is finished"), (10**20, "steps must be at most")):
        with pytest.raises(SdeflowError, match=sentence):
            simulate(toy(), "expint", out=out, resume=True, **(WHOLE | {"steps": steps}))
        assert contents(out) == before
    with pytest.raises(SdeflowError, match="of disk until it is finished"):
        simulate(toy(), "expint", out=tmp_path / "new", **(WHOLE | {"steps": 10**12}))
    assert not (tmp_path / "new").exists()


def test_a_diverged_run_that_was_kept_from_joining_is_joined_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    system = sdeflow.pgd(Hierarchical(data=3), particles=2, theta={"h": 0.01}, x={"h": 5.0})
    options: dict[str, Any] = {"steps": 200, "save": Save(every=1, checkpoint=0)}
    monkeypatch.setattr("sdeflow.simulation.time_loop._CHUNK_SECONDS", 0.0)
    with pytest.warns(DivergenceWarning):
        whole = simulate(system, "euler_maruyama", **options)
    monkeypatch.setattr("sdeflow.trajectory.segments.join", stopped)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match="was not finished"):
        simulate(system, "euler_maruyama", out=out, **options)
    monkeypatch.undo()
    last = load_file(out / "final.safetensors")
    # no snapshots are to come, so room for the 200 that were declared is not asked for
    monkeypatch.setattr("sdeflow.simulation.keeper.free_space", lambda folder: 0)
    with pytest.warns(DivergenceWarning):
        joined = simulate(system, "euler_maruyama", out=out, resume=True, **options)
    assert_same(joined, whole)
    assert joined.attrs["steps_taken"] == whole.attrs["steps_taken"]
    after = load_file(out / "final.safetensors")
    assert all(torch.equal(last[name], after[name]) for name in last)


def test_the_last_good_checkpoint_is_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdeflow.simulation.time_loop._CHUNK_SECONDS", 0.0)
    system = sdeflow.pgd(Hierarchical(data=3), particles=2, theta={"h": 0.01}, x={"h": 5.0})
    for every in (1, 7):
        out = tmp_path / str(every)
        with pytest.warns(DivergenceWarning, match="past the bound of 1e"):
            simulate(
                system, "euler_maruyama", steps=99, bound=1e6, out=out, save=Save(every=every, checkpoint=0)
            )
        meta, state = checkpoint.decode(out / "checkpoint")
        assert meta.step < meta.last
        assert float(system.model_forces.loss(state)) < 1e6  # type: ignore[union-attr]


def test_damage_right_after_a_finished_run_was_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before anything more was kept, then a byte flips: the checkpoint before still holds."""

    def killed(*_: Any, **__: Any) -> None:
        raise MemoryError

    out, options = tmp_path / "run", WHOLE | {"steps": 20}
    simulate(toy(), "expint", out=out, **WHOLE)
    monkeypatch.setattr("sdeflow.simulation.resume.solve_from", killed)
    with pytest.raises(MemoryError):
        simulate(toy(), "expint", out=out, resume=True, **options)
    monkeypatch.undo()
    assert not (out / "trajectory.nc").exists()
    (out / "segments" / "000009.nc").write_bytes(b"half")
    flip(out / "checkpoint", 0.5)
    assert_same(
        simulate(toy(), "expint", out=out, resume=True, **options), simulate(toy(), "expint", **options)
    )
    assert not (out / "segments").exists()


def test_segments_are_written_when_memory_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer of one snapshot and no other reason to write: a part each, and the same trajectory."""
    kept: list[int] = []
    keep = RunFolder.keep

    def counted(self: Any, *args: Any) -> None:
        keep(self, *args)
        kept.append(len(self.meta.segments))

    monkeypatch.setattr("sdeflow.simulation.keeper.BUFFER", 1)
    monkeypatch.setattr(RunFolder, "keep", counted)
    options = WHOLE | {"save": Save(every=3, checkpoint=1e9)}
    assert_same(
        simulate(toy(), "expint", out=tmp_path / "run", **options), simulate(toy(), "expint", **options)
    )
    assert max(kept) == 5


def test_time_goes_on_where_it_stopped(stop_before: Any, tmp_path: Path) -> None:
    options = WHOLE | {"evaluate": Evaluate(3)}
    first = simulate(toy(), "expint", out=tmp_path / "run", **options).attrs
    second = simulate(toy(), "expint", out=tmp_path / "run", resume=True, **(options | {"steps": 14})).attrs
    assert second["seconds"] > first["seconds"]
    assert second["evaluate_seconds"] > first["evaluate_seconds"]

"""What a run takes, as `show` and `run` state it, against what it took."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import tomli_w
from commands import Cli, program
from valid import VALID

from sdeflow.cli import cost

MEASURE = """
import sys, torch
from sdeflow import Batch, Model, Save, mpgd, simulate
from sdeflow.config.run import Run
from sdeflow.config.schema import RunSection
from sdeflow.simulation.memory import usual_bytes

class Gaussian(Model):
    def __init__(self, data):
        seeded = torch.Generator().manual_seed(0)
        self.data, self.latent_shape = torch.randn(data, 64, generator=seeded), (64,)

    def init_theta(self, generator):
        return {"mean": torch.zeros(64)}

    def log_joint(self, theta, x, y):
        return -((x - theta["mean"]) ** 2).sum(-1) / 2 - ((y[:, None] - x) ** 2).sum(-1) / 2

def system(data):
    motion = {"eta": 500.0, "gamma": 0.9}
    return mpgd(Gaussian(data), particles=5, theta={"h": 1e-5, **motion}, x={"h": 1e-3, **motion})

def peak():
    status = open("/proc/self/status").read()  # getrusage's peak would be that of the parent, if larger
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])

options = {"steps": 6, "batch": Batch(128, sys.argv[1]), "device": "cpu", "save": Save(every=3, checkpoint=0)}
simulate(system(200), "expint", out=f"{sys.argv[3]}-small-{sys.argv[2]}", **options)
large, before = system(50_000), peak()
if sys.argv[2] != "memory":
    options["out"] = sys.argv[3]
simulate(large, "expint", resume=sys.argv[2] == "resumed", **options)
options.pop("out", None)
steps = RunSection(steps=options.pop("steps"), device=options.pop("device"))
run = Run.declare(large, "expint", steps, **options)
print(peak() - before, usual_bytes(run, folder=sys.argv[2] != "memory"))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_fifty_thousand_data(tmp_path: Path) -> None:
    """50,000 data, 5 particles, latent 64, with momenta: the peak over what torch takes, within 20%.

    In memory, into a folder, and resumed from there for more steps.
    """
    for way in ("memory", "folder", "resumed"):
        code = MEASURE.replace('"steps": 6', '"steps": 9') if way == "resumed" else MEASURE
        done = program(code, "one_step", way, tmp_path / "run")
        assert done.returncode == 0, done.stderr
        measured, stated = map(int, done.stdout.split())
        assert measured == pytest.approx(stated, rel=0.2), way


NOTE = "'sdeflow run small' is made for a CPU"


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (40.0, "about 40 s a step on this CPU, 23 days for 50,000 steps; "),
        (0.02, "about 50 steps/s on this CPU, 17 min for 50,000 steps; "),
        (None, ""),
    ],
)
def test_a_step_on_a_cpu_is_told_in_a_sentence(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float | None, says: str
) -> None:
    """Before the run begins, which is cut short here; --quiet says nothing and times nothing."""
    (tmp_path / "large.toml").write_text(tomli_w.dumps({**VALID, "cpu_note": NOTE}))
    timed: list[object] = []
    monkeypatch.setattr(cost, "seconds_a_step", lambda run: timed.append(run) or seconds)
    monkeypatch.setattr("sdeflow.simulation.solve.solve", lambda *_, **__: sys.exit(7))
    call = ("run", tmp_path / "large.toml", "--device", "cpu", "--steps", 50_000, "--out", tmp_path / "run")
    assert cli(*call) == (7, "", f"note: {says}{NOTE}\n")
    assert cli(*call, "--quiet") == (7, "", "")
    assert len(timed) == 1


@pytest.mark.slow
def test_the_cost_that_is_told_is_that_of_the_run(cli: Cli, tmp_path: Path) -> None:
    """Of the digits, whose steps take milliseconds, within a factor of three: others use the machine too."""
    call = ["run", "digits", "--set", f'cpu_note="{NOTE}"', "--set", "save.every=1000", "--device", "cpu"]
    call += ["--out", str(tmp_path / "run")]
    code, out, err = cli(*call, "--steps", 100)
    assert code == 0, err
    speeds = [re.search(r"([\d,.]+) steps/s", text) for text in (err, out)]
    told, took = (float(speed[1].replace(",", "")) for speed in speeds if speed)
    assert took / 3 < told < 3 * took
    assert f"; {NOTE}\n" in err
    code, _, err = cli(*call, "--steps", 101, "--resume")
    assert code == 0
    assert "note" not in err

"""What a run takes, as `show` states it, against what it took."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import program

MEASURE = """
import sys, torch
from sdeflow import Batch, Model, Save, mpgd, simulate
from sdeflow.config.run import Run
from sdeflow.config.schema import RunSection
from sdeflow.simulation.memory import peak_bytes

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
print(peak() - before, peak_bytes(run, folder=sys.argv[2] != "memory"))
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

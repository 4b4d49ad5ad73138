"""What a run takes, as `show` states it, against what it took."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import sys, torch
from sdeflow import Batch, Model, Save, mpgd, simulate
from sdeflow.cost import peak_bytes
from sdeflow.run import Run

class Gaussian(Model):
    def __init__(self, data):
        self.data, self.latent_shape = torch.randn(data, 64), (64,)

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

options = {"steps": 6, "batch": Batch(128, sys.argv[1]), "device": "cpu", "save": Save(every=3)}
simulate(system(200), "expint", **options)
large, before = system(50_000), peak()
simulate(large, "expint", **options)
print(peak() - before, peak_bytes(Run.declare(large, "expint", dtype="float32", **options)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("catch_up", ["off", "one_step"])
def test_memory_of_fifty_thousand_data(catch_up: str) -> None:
    """50,000 data, 5 particles, latent 64, with momenta: the peak over what torch takes, within 20%."""
    command = [sys.executable, "-c", MEASURE, catch_up]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured, stated = map(int, done.stdout.split())
    assert measured == pytest.approx(stated, rel=0.2)

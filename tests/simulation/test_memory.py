"""Whether a machine has the memory for a run: what it lacks is told before anything is computed."""

from __future__ import annotations

import sys
from math import inf
from pathlib import Path

import pytest
import torch
from support import declared, toy

from sdeflow import machine
from sdeflow.errors import SdeflowError, attempt
from sdeflow.options import Save
from sdeflow.parallel.ranks import Ranks
from sdeflow.simulation import memory
from sdeflow.simulation.memory import (
    data_bytes,
    free_memory,
    peak_bytes,
    require_memory,
    snapshot_bytes,
    state_bytes,
)
from sdeflow.simulation.solve import solve

MOTION = {"h": 0.01, "eta": 1.0, "gamma": 1.0}


def run(**options: object):
    return declared(toy("mpgd", data=10, particles=4, theta=MOTION, x=MOTION), "expint", **options)


@pytest.mark.parametrize("folder", [True, False])
def test_the_last_byte_decides(monkeypatch: pytest.MonkeyPatch, folder: bool) -> None:
    """What must be free is the peak without the data, which are loaded, and in memory all snapshots."""
    long = run(steps=100, save=Save(every=1))
    needed = peak_bytes(long, folder=folder) - data_bytes(long)
    if not folder:
        assert snapshot_bytes(long) == 101 * 4 * (1 + 1 + 2 * 40)  # theta, m, X and U of 10 data, 4 particles
        needed += snapshot_bytes(long)
    monkeypatch.setattr(memory, "free_memory", lambda: needed)
    require_memory(long, folder=folder)
    monkeypatch.setattr(memory, "free_memory", lambda: needed - 1)
    with pytest.raises(SdeflowError, match="take fewer particles" if folder else "save less often"):
        require_memory(long, folder=folder)


def test_processes_share_the_memory_of_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own particles, of 10 data in two processes half of them, and in the end one has all."""
    shared, two = run(steps=100), Ranks(0, 2)
    particles, parameters = 4 * 2 * 40, 4 * 2
    assert state_bytes(shared) == particles + parameters
    assert state_bytes(shared, 0.5) == particles // 2 + parameters
    most = 3 * (particles + parameters) + particles // 2 + parameters  # at the end, beside one's own
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * most)
    require_memory(shared, folder=True, ranks=two)
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * most - 1)
    with pytest.raises(SdeflowError, match="each process would hold about"):
        require_memory(shared, folder=True, ranks=two)


def test_nothing_is_made_of_a_run_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 10)
    for out in (None, tmp_path / "run"):
        with pytest.raises(SdeflowError, match="of memory at once, and 10 B are free"):
            solve(run(steps=2), out=out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_free_memory_is_some_of_the_machine_s() -> None:
    import os

    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    swap = sum(
        int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "SwapTotal" in line
    )
    assert 0 < free_memory() <= whole + 1024 * swap < inf


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "max", "memory.current": "5", "memory.stat": ""}, []),
        (
            "0::/job/step\n",
            {
                "job/memory.max": "1000",
                "job/memory.current": "700",
                "job/memory.stat": "anon 500\ninactive_file 200\n",
                "job/step/memory.max": "900",
                "job/step/memory.current": "300",
                "job/step/memory.stat": "inactive_file 0\n",
            },
            [600, 500],
        ),
        (
            "7:cpu:/x\n4:memory:/job\n0::/\n",
            {
                "memory/job/memory.limit_in_bytes": "1000",
                "memory/job/memory.usage_in_bytes": "800",
                "memory/job/memory.stat": "total_inactive_file 50\n",
            },
            [250],
        ),
        ("4:memory:/not/seen/here\n", {}, []),
    ],
)
def test_limits_of_control_groups(
    tmp_path: Path, own: str, files: dict[str, str], expected: list[int]
) -> None:
    """Of both versions, nested; what a group holds of files that can be dropped counts as free."""
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert list(machine._left_in_groups(tmp_path / "own", tmp_path / "groups")) == expected


def test_of_a_gpu_its_own_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = run(steps=2)
    object.__setattr__(on_gpu, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10, 20))
    with pytest.raises(SdeflowError, match="10 B of the GPU are free"):
        require_memory(on_gpu, folder=True)


class OutOfMemoryError(RuntimeError):
    """By the name and in the words of torch's, on CUDA."""


@pytest.mark.parametrize("kind", [OutOfMemoryError, MemoryError])
def test_a_step_that_finds_no_memory_says_what_to_take_less_of(kind: type[Exception]) -> None:
    def step() -> None:
        raise kind("CUDA out of memory. Tried to allocate 20 GiB. GPU 0 has a total capacity of 10 GiB")

    with pytest.raises(SdeflowError) as refused:
        attempt("the step", step)
    said = f"the step fails with {kind.__name__}: CUDA out of memory. Tried to allocate 20 GiB: take fewer"
    assert str(refused.value).startswith(said)

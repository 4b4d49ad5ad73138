"""Memory that a process keeps while it takes steps: pages are not asked for anew, and go back in the end."""

from __future__ import annotations

import resource
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import ClassVar

import pytest
import torch

from sdeflow import SDESystem, machine, simulate
from sdeflow.machine import blocks_kept

NUMBERS = 9_000_000
"""Of float32 they take 34 MiB, a block that glibc maps anew each time."""
PAGES = 4 * NUMBERS // 4096

glibc = pytest.mark.skipif(machine._mallopt() is None, reason="glibc's malloc, as it comes")


def given() -> int:
    """Pages that the kernel has given this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def faults() -> float:
    """Pages that it gave for three tensors that were made, filled and let go; the median of some times."""
    found = []
    for _ in range(5):
        before = given()
        _ = [torch.empty(NUMBERS).fill_(1.0) for _ in range(3)]
        del _
        found.append(given() - before)
    return median(found)


def resident() -> int:
    """Pages of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1])


@glibc
def test_freed_blocks_are_used_again_and_go_back_in_the_end() -> None:
    assert faults() > PAGES
    before = resident()
    with blocks_kept():
        assert faults() < PAGES / 10
        assert resident() - before > 2 * PAGES
    assert resident() - before < PAGES / 10
    assert faults() > PAGES


class Pull:
    """dX = -X dt + dW of many paths; notes the pages that this process had been given by each step."""

    pages: ClassVar[list[int]] = []

    def drift(self, t: float, x: torch.Tensor) -> torch.Tensor:
        self.pages.append(given())
        return -x

    def diffusion(self, t: float, x: torch.Tensor) -> float:
        return 1.0


@glibc
def test_the_steps_of_a_run_are_not_given_pages_anew() -> None:
    system = SDESystem(Pull(), h=0.01, paths=NUMBERS)
    simulate(system, "euler_maruyama", steps=12, engine="fused", noise="philox", dtype="float32")
    assert len(Pull.pages) >= 12
    assert median(b - a for a, b in pairwise(Pull.pages)) < PAGES / 10  # each makes two such tensors


@glibc
def test_nothing_is_kept_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    held = machine._most_held()
    monkeypatch.setattr(machine, "_mallopt", lambda: lambda *numbers: asked.append(numbers))
    for more, expected in ((-1, 0), (0, 2)):
        monkeypatch.setattr(machine, "_most_held", lambda: held)
        monkeypatch.setattr(machine, "free_memory", lambda more=more: 2 * held + more)
        with blocks_kept():
            assert len(asked) == expected


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=0")]
)
def test_what_the_user_has_chosen_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert machine._mallopt() is None

"""The rows of the benchmark take steps, but for those of JAX and those that torch compiles for a minute."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import needs_kernel


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("speed")


@needs_kernel
@pytest.mark.skipif(shutil.which("g++") is None, reason="one row is C++")
@pytest.mark.parametrize("size", ["toy, D=100", "decoder, batches of 128", "64 replicas of D=100"])
def test_a_row_takes_steps(speed: Any, size: str) -> None:
    rows, _ = speed.SIZES[size]
    ours = {
        name: make for name, make in rows().items() if not name.startswith(("compiled", "JAX", "Diffrax"))
    }
    for name, make in ours.items():
        assert make()(2) in (None, 2), name
    assert any(name.startswith("fused") for name in ours)

"""The rows of the benchmark take steps, but for those of JAX and those that torch compiles for a minute."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support import needs_kernel

from sdeflow.problems.decoder import Decoder


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


@needs_kernel
def test_rows_of_the_convolutional_decoder(speed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused engine and the script, on fewer and smaller images; both networks give the same ones."""
    small = speed.made_up_images(images=150, width=1)
    monkeypatch.setattr(speed, "made_up_images", lambda: small)
    rows = speed.images()
    for name in ("fused, expint_shared", "script (no gathering)"):
        assert rows[name]()(2) in (None, 2), name
    network, x = speed.channels_first(small), torch.randn(7, 64)
    theta = {f"decoder.{name}": value for name, value in network.named_parameters()}
    torch.testing.assert_close(network(x).flatten(1), small.decode(theta, x), rtol=0, atol=1e-6)


def test_arithmetic_is_counted(speed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, in the inputs and in the weights: 6 operations a weight and latent, of 128 images."""
    made: list[int] = []
    take = speed.arithmetic(Decoder(), 10)
    monkeypatch.setattr(torch, "mm", lambda a, b, out: made.append(2 * a.shape[0] * a.shape[1] * b.shape[1]))
    take(100)
    expected = 100 * 6 * 1280 * (8 * 64 + 64 * 64)
    assert abs(sum(made) - expected) <= made[0] / 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts peaks")
def test_a_peak_is_that_of_steps(speed: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A step that fills 300 MiB takes as much more at its peak than one that does not, to a tenth."""

    def filling(count: int) -> None:
        torch.ones(count // count * 300 * 2**20, dtype=torch.uint8)

    rows = {"idle": lambda: lambda count: None, "filling": lambda: filling}
    monkeypatch.setattr(speed, "SIZES", {"small": (lambda: rows, 0.1)})
    monkeypatch.setattr(speed, "pin", lambda threads: None)
    threads = torch.get_num_threads()
    for row in rows:
        speed.print_peak("small", row, threads)
    idle, filled = (float(line) for line in capsys.readouterr().out.split())
    assert filled - idle == pytest.approx(300, rel=0.1)

"""What a whole command costs: `sdeflow run hierarchical`, with and without a step that is kept, and a script.

    python tests/benchmarks/whole.py --steps 20000 --rounds 3

By turns, each a process of its own on one core: the command with an empty cache, with the compiled step that
such a run had compiled beside it, and the plain script of speed.py, which saves nothing. Prints the median
over rounds of the seconds of each, and of its steps alone as it tells them in microseconds; of the commands
how many times faster than the script they were, in the median over rounds. Of the script's start-up importing
torch counts alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, pin

from sdeflow import open_run

SCRIPT = """
import sys, time, torch
sys.path.insert(0, {folder!r})
torch.set_num_threads(1)
from speed import toy_script
take = toy_script(100)
take(10)
began = time.perf_counter()
take({steps})
print(time.perf_counter() - began)
"""


def timed(command: list[str], **environment: str) -> tuple[float, str]:
    """Seconds that a process takes, and what it says."""
    began = time.perf_counter()
    said = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | environment
    ).stdout
    return time.perf_counter() - began, said


def script(steps: int) -> tuple[float, float]:
    """Seconds in all, and of the steps."""
    start, _ = timed([sys.executable, "-c", "import torch"])
    _, said = timed([sys.executable, "-c", SCRIPT.format(folder=str(Path(__file__).parent), steps=steps)])
    return start + float(said), float(said)


def command(steps: int, folder: Path, cache: Path, kept: str) -> tuple[float, float]:
    run = ["run", "hierarchical", "--steps", str(steps), "--out", str(folder), "--overwrite", "--quiet"]
    taken, _ = timed(
        [sys.executable, "-m", "sdeflow", *run], SDEFLOW_DATA=str(cache), SDEFLOW_KEPT_STEPS=kept
    )
    with open_run(folder) as dataset:
        engine, seconds = dataset.attrs["engine"], dataset.attrs["seconds"]
    if (engine == "compiled") != (kept == "1" and any(cache.glob("steps*/*/step.so"))):
        raise SystemExit(f"the run took engine {engine}")
    return taken, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pin(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name) / "run", Path(name) / "cache"
        command(options.steps, folder, cache, "1")
        began = time.monotonic()
        while not any(cache.glob("steps*/*/step.so")):
            if time.monotonic() - began > 600:
                raise SystemExit("no step was kept after ten minutes")
            time.sleep(0.5)
        rows = {
            "the second run": lambda: command(options.steps, folder, cache, "1"),
            "without kept steps": lambda: command(options.steps, folder, cache, "0"),
            "the plain script": lambda: script(options.steps),
        }
        times = {row: list[tuple[float, float]]() for row in rows}
        for _ in range(options.rounds):
            for row, take in rows.items():
                times[row].append(take())
    base = times["the plain script"]
    for row, found in times.items():
        whole, own = (statistics.median(one[i] for one in found) for i in (0, 1))
        faster = [statistics.median(b[i] / a[i] for a, b in zip(found, base, strict=True)) for i in (0, 1)]
        print(
            f"  {row:20s}{whole:8.2f} s{own / options.steps * 1e6:10.0f} us a step"
            f"{faster[0]:8.1f} x{faster[1]:8.1f} x"
        )


if __name__ == "__main__":
    main()

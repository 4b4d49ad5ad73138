"""What a run folder costs: durable saving against saving in memory, paired in one process.

    python tests/benchmarks/durable.py --steps 220000 --pairs 3

The hierarchical problem with a snapshot every 10 steps, run in memory and into a folder by turns. Prints the
median over pairs of the ratio of the times, joining aside, and what joining the segments takes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.simulation.solve import solve
from sdeflow.trajectory.folder import RunFolder


def seconds(steps: int, out: Path | None) -> tuple[float, float]:
    """Time of one run, without and of joining."""
    finish, joining = RunFolder.finish, [0.0]

    def timed(*arguments: object) -> None:
        began = time.perf_counter()
        finish(*arguments)  # type: ignore[arg-type]
        joining[0] = time.perf_counter() - began

    RunFolder.finish = timed  # type: ignore[assignment,method-assign]
    try:
        run = build(load_config(problem_file("hierarchical"), overrides=[{"run": {"steps": steps}}]))
        began = time.perf_counter()
        solve(run, out=out)
        return time.perf_counter() - began - joining[0], joining[0]
    finally:
        RunFolder.finish = finish  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=220_000)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    memory, disk, joining, size = [], [], [], 0
    for pair in range(options.pairs):
        for durable in (False, True) if pair % 2 == 0 else (True, False):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                taken, joined = seconds(options.steps, out if durable else None)
                (disk if durable else memory).append(taken)
                if durable:
                    joining.append(joined)
                    size = (out / "trajectory.nc").stat().st_size
    ratio = statistics.median(d / m for d, m in zip(disk, memory, strict=True))
    print(f"in memory {statistics.median(memory):.1f} s, durable {statistics.median(disk):.1f} s")
    print(f"durable / in memory, median over pairs: {ratio:.3f}")
    print(f"joining {size / 1e6:,.0f} MB of segments: {statistics.median(joining):.2f} s")


if __name__ == "__main__":
    main()

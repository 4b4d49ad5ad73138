"""What a run folder costs: durable saving against saving in memory, by turns in one process.

    python tests/benchmarks/durable.py --steps 220000 --rounds 3
    python tests/benchmarks/durable.py --steps 200 --data 100000 --every 20 --checkpoint 1

The hierarchical problem is run in memory, into a folder, and into one where steps wait while a checkpoint is
written, as they do where memory is short. Prints the median over rounds of the ratios of the times to that in
memory, joining aside; how long steps waited for what is kept, in all and at most; and what joining takes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.simulation import keeper
from sdeflow.simulation.keeper import Keeper
from sdeflow.simulation.solve import solve
from sdeflow.trajectory.folder import RunFolder

WAYS = ("in memory", "in a folder", "in a folder, steps wait")


class Taken(NamedTuple):
    """Seconds: of a run without joining, of joining, and of each time that its steps waited."""

    run: float
    joining: float
    waits: list[float]


def taken(options: dict[str, Any], out: Path | None, *, beside: bool) -> Taken:
    finish, keep, room = RunFolder.finish, Keeper.keep, keeper.room_beside
    joining, waits = [0.0], [0.0]

    def timed(*arguments: Any) -> None:
        began = time.perf_counter()
        finish(*arguments)
        joining[0] = time.perf_counter() - began

    def waited(*arguments: Any) -> None:
        began = time.perf_counter()
        keep(*arguments)
        waits.append(time.perf_counter() - began)

    RunFolder.finish, Keeper.keep = timed, waited  # type: ignore[method-assign]
    keeper.room_beside = lambda _: beside
    try:
        run = build(load_config(problem_file("hierarchical"), overrides=[options]))
        began = time.perf_counter()
        solve(run, out=out)
        return Taken(time.perf_counter() - began - joining[0], joining[0], waits)
    finally:
        RunFolder.finish, Keeper.keep = finish, keep  # type: ignore[method-assign]
        keeper.room_beside = room


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=220_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=int, default=100)
    parser.add_argument("--every", type=int, default=10, help="steps between snapshots")
    parser.add_argument("--checkpoint", type=float, default=15.0, help="seconds at least between checkpoints")
    parser.add_argument("--folder", type=Path, help="where runs are written (default: a temporary folder)")
    given = parser.parse_args()
    options = {
        "run": {"steps": given.steps},
        "model": {"data": given.data},
        "system": {"theta": {"h": 1e-2 / given.data}},
        "save": {"every": given.every, "checkpoint": given.checkpoint},
    }
    found: dict[str, list[Taken]] = {way: [] for way in WAYS}
    size = 0
    for number in range(given.rounds):
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                out = None if way == WAYS[0] else Path(folder) / "run"
                found[way].append(taken(options, out, beside=way == WAYS[1]))
                if out is not None:
                    size = (out / "trajectory.nc").stat().st_size
    memory = found[WAYS[0]]
    for way, runs in found.items():
        ratio = statistics.median(one.run / base.run for one, base in zip(runs, memory, strict=True))
        waits = [wait for one in runs for wait in one.waits]
        print(
            f"{way:24s}{statistics.median(one.run for one in runs):9.2f} s{ratio:9.3f} x; steps waited "
            f"{sum(waits) / given.rounds:.2f} s, at most {max(waits):.3f} s"
        )
    joining = statistics.median(one.joining for one in found[WAYS[1]])
    print(f"joining {size / 1e6:,.0f} MB of segments: {joining:.2f} s")


if __name__ == "__main__":
    main()

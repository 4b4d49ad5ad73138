"""What it costs two processes to add up theta's force, and whether `sdeflow show --ranks` foretells it.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 tests/benchmarks/processes.py

A decoder of the digits, with as many images for each process as one alone would have (weak scaling). Rounds
in which the processes add up their forces take turns with rounds of the same steps in which they do not, so
that what two processes cost each other by sharing a memory is in both. On one process the step of the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdeflow.config.build import build
from sdeflow.config.catalogue import problem_file
from sdeflow.config.schema import load_config
from sdeflow.engine.step import advance
from sdeflow.parallel.ranks import Ranks, started
from sdeflow.simulation.prepare import prepare
from sdeflow.simulation.scaling import Link, measured, reduced_bytes


@dataclass(frozen=True)
class Silent(Ranks):
    """Processes that do not add up."""

    def sum(self, parts: Sequence[Tensor]) -> list[Tensor]:
        return list(parts)


def seconds(ranks: Ranks, particles: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Of a step, by round: with the reduction, without, and of the reduction alone."""
    motion = {"h": 1e-4, "eta": 100.0, "gamma": 0.9}
    over = {
        "model": {"images": 800 * ranks.size},
        "system": {"particles": particles, "theta": motion, "x": motion},
        "run": {"integrator": "baoab", "noise": "philox"},
    }
    run = build(load_config(problem_file("digits"), overrides=[over])).shared(ranks)
    moved = {
        "with": prepare(run, ranks=ranks),
        "without": prepare(run, ranks=Silent(ranks.rank, ranks.size)),
    }
    state = {name: ready.hand_over() for name, ready in moved.items()}
    force = torch.zeros(reduced_bytes(run) // 4)
    found: dict[str, list[float]] = {name: [] for name in (*moved, "reduction")}
    for _ in range(rounds + 1):  # the first warms up
        for name, ready in moved.items():
            ranks.most(0)
            began = time.perf_counter()
            state[name] = advance(ready.stepper, state[name], 0, steps)
            ranks.most(0)
            found[name].append((time.perf_counter() - began) / steps)
        began = time.perf_counter()
        for _ in range(steps):
            ranks.sum([force])
        found["reduction"].append((time.perf_counter() - began) / steps)
    if ranks.leads:
        found |= {"told": [measured(run).of(800)], "bytes": [reduced_bytes(run)]}
    return {name: values[1:] or values for name, values in found.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--particles", type=int, default=20)
    options.add_argument("--steps", type=int, default=20, help="of a round")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    torch.set_num_threads(1)
    ranks = started()
    found = seconds(ranks, given.particles, given.steps, given.rounds)
    if not ranks.leads:
        return
    middle = {name: statistics.median(values) for name, values in found.items()}
    ratios = [b / a for a, b in zip(found["with"], found["without"], strict=True)]
    link = Link(middle["bytes"] / max(middle["reduction"], 1e-9), 0.0)
    told = middle["told"] + link.reduction(middle["bytes"], ranks.size)
    print(
        f"{ranks.size} process(es), ms a step: {1e3 * middle['with']:.2f} adding up forces, "
        f"{1e3 * middle['without']:.2f} without; {1e3 * middle['reduction']:.2f} ms for "
        f"{middle['bytes']:,} bytes alone\n"
        f"weak scaling {statistics.median(ratios):.1%}, {min(ratios):.1%} to {max(ratios):.1%} by round\n"
        f"foretold: {1e3 * told:.2f} ms a step"
    )
    if given.json:
        given.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

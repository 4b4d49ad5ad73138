"""How long a command takes before its first step, and to its end: of the toy model, on one core.

    python tests/benchmarks/start.py --rounds 5

Prints medians of seconds: of `sdeflow run hierarchical --steps 1` to its first step and whole, of `sdeflow
stability hierarchical`, and, for comparison, of `import torch` alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

RUN = """
import sys, time
from sdeflow.cli import main
from sdeflow.cli.importing import for_good

with for_good():
    from sdeflow.simulation.time_loop import TimeLoop

first = TimeLoop._first

def watched(*arguments):
    print(f"first step at {time.time()}", file=sys.stderr)
    return first(*arguments)

TimeLoop._first = watched
main()
"""


def seconds(*call: str) -> tuple[float, float]:
    """To the first step, which a command may not have, and to the end."""
    began = time.time()
    done = subprocess.run([sys.executable, *call], capture_output=True, text=True, check=True)
    ended, words = time.time(), done.stderr.partition("first step at ")[2].split()
    return (float(words[0]) if words else ended) - began, ended - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ |= {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        calls = {
            "import torch": ("-c", "import torch"),
            "run": ("-c", RUN, "run", "hierarchical", "--steps", "1", "--overwrite", "--out", out),
            "stability": ("-m", "sdeflow", "stability", "hierarchical"),
        }
        taken = [{name: seconds(*call) for name, call in calls.items()} for _ in range(rounds)]
    whole = {name: median(round_[name][1] for round_ in taken) for name in calls}
    print(f"import torch                     {whole['import torch']:.2f} s")
    print(f"run: to the first step           {median(round_['run'][0] for round_ in taken):.2f} s")
    print(f"run: to its end                  {whole['run']:.2f} s")
    print(f"stability                        {whole['stability']:.2f} s")


if __name__ == "__main__":
    main()

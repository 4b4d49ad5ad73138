"""Whether a GPU computes what the CPU does, and how fast.

    python tests/device/accept.py --out accepted        on a GPU; not yet run there as a whole
    python tests/device/accept.py --cpu                 the same checks on a CPU, where they must pass, too

Every integrator and system by the fused engine, some by the others, the kernels, CUDA graphs, minibatches,
precisions, held-out data, scores and resumed runs are compared with the CPU's; then what a step costs is
measured, beside what the device can do at most. Prints a table and writes accepted.json. Exit code 1 where a
check fails.

Needs torch with Triton, a C++ compiler for the CPU's kernel, and what sdeflow imports. Where nothing can be
installed, carry these as wheels, if they are not there: netCDF4, cftime, pydantic, pydantic-core,
annotated-types, typing-inspection, torchsde, trampoline, tomli-w; and put the clone on PYTHONPATH, with its
sdeflow.egg-info, from which names are found.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import checks
import speeds
import stand_in
import torch


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cpu", action="store_true", help="no device: the CPU stands in for it")
    parser.add_argument("--only", nargs="*", help="checks and speeds whose names have one of these parts")
    parser.add_argument("--skip", nargs="*", default=[], help="those that are left out, likewise")
    parser.add_argument("--out", type=Path, help="folder for accepted.json")
    given = parser.parse_args()
    if given.cpu:
        stand_in.use()
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device here: --cpu lets the CPU stand in for it")
    device = "cpu" if given.cpu else "cuda"
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    found: dict[str, Any] = {"device": speeds.device_name(device), "torch": torch.__version__}
    print(f"{found['device']}, torch {torch.__version__}")
    found["checks"] = {
        name: ran(name, lambda check=check: check(device))
        for name, check in checks.CHECKS.items()
        if asked(name, given)
    }
    found["speeds"] = {
        name: ran(name, lambda measure=measure: measure(device))
        for name, measure in speeds.SPEEDS.items()
        if asked(name, given)
    }
    failed = [n for part in ("checks", "speeds") for n, f in found[part].items() if not f["passed"]]
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "accepted.json").write_text(json.dumps(found, indent=1))
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return bool(failed)


def asked(name: str, given: argparse.Namespace) -> bool:
    wanted = given.only is None or any(part in name for part in given.only)
    return wanted and not any(part in name for part in given.skip)


def ran(name: str, what: Any) -> dict[str, Any]:
    """What a check or a measurement found, and how long it took; a failure is told and gone on from."""
    began = time.perf_counter()
    try:
        found, passed = what(), True
    except Exception as error:
        found, passed = f"{type(error).__name__}: {error}", False
        if not isinstance(error, AssertionError):
            traceback.print_exc()
    seconds = time.perf_counter() - began
    lines = [found] if isinstance(found, str) else [f"{row}: {text(v)}" for row, v in found.items()]
    print(
        f"{'ok  ' if passed else 'FAIL'} {name} ({seconds:.0f} s): {lines[0]}",
        *lines[1:],
        sep="\n       ",
        flush=True,
    )
    return {"passed": passed, "seconds": round(seconds, 1), "found": found}


def text(values: dict[str, float]) -> str:
    return ", ".join(f"{value:,.4g} {unit}" for unit, value in values.items())


if __name__ == "__main__":
    sys.exit(main())

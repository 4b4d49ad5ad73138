"""Compiles a step that is to be kept, as a process of its own: `python -m sdeflow.engine.ahead FOLDER ...`.

Each folder has a `tape.json`, which says what to compile and where to put it; the folder itself is moved
there when all of it is written, with the library and `made.json`, which has the library's SHA-256, or why
torch cannot compile the step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

TAPE, MADE, LIBRARY = "tape.json", "made.json", "step.so"

LIMIT, MOST = 1800, 2**28
"""Seconds that compiling may take, and bytes of steps that are kept: those not used for longest go."""

QUICKER: dict[str, Any] = {"precompile_headers": False, "enable_line_tables": False}
"""Options of torch: compiling the headers first takes 18 s, and saves 2 of a step that is compiled next."""

STALE = 3 * LIMIT
"""Seconds after which a folder in which a step is compiled was left by a process that was killed."""


def main(folders: list[str], *, beside: bool) -> None:
    """Compiles the steps of folders; `beside` a run one process after another, for the same cache."""
    works = [Path(folder) for folder in folders]
    lock = FileLock(works[0].parent / ".lock", timeout=LIMIT, poll_interval=1)
    try:
        with lock if beside else nullcontext():
            if hasattr(signal, "alarm"):  # whatever happens, it does not stay for ever
                signal.alarm(LIMIT)
            for work in works:
                _made(work, unless_there=beside)
    except Timeout:
        pass
    finally:
        for work in works if beside else []:
            shutil.rmtree(work, ignore_errors=True)


def _made(work: Path, *, unless_there: bool) -> None:
    recorded = json.loads((work / TAPE).read_text(encoding="utf-8"))
    if unless_there and Path(recorded["folder"]).exists():
        return
    made: dict[str, Any] = {}
    try:
        _compile(recorded, work / LIBRARY)
        made["sha256"] = hashlib.sha256((work / LIBRARY).read_bytes()).hexdigest()
    except OSError:  # a full disk, say, which is not the step's fault
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        made["failed"] = f"{type(error).__name__}: {reason.strip()}"
    for path in work.iterdir():  # what torch left
        if path.name not in (TAPE, LIBRARY):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (work / MADE).write_text(json.dumps(made), encoding="utf-8")
    if recorded["folder"]:
        with suppress(OSError):  # another process was faster
            work.rename(recorded["folder"])
        tidy(work.parent)


def _compile(recorded: dict[str, Any], library: Path) -> None:
    """The library of a step, by torch's compiler of what is known ahead of time."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    import torch
    import torch._inductor

    from sdeflow.engine.products import QuickProducts
    from sdeflow.engine.tape import graph_of

    torch.set_num_threads(recorded["threads"])
    torch.set_default_dtype(getattr(torch, recorded["default_dtype"]))
    inputs = []
    for i, (_, dtype, shape, strides) in enumerate(recorded["inputs"]):
        if 0 <= i - recorded["states"] < recorded["draws"]:
            shape, strides = [recorded["count"], *shape], None
        size = (shape,) if strides is None else (shape, strides)
        make = torch.empty if strides is None else torch.empty_strided
        inputs.append(make(*size, dtype=getattr(torch, dtype)))
    options: dict[str, Any] = {
        "aot_inductor.output_path": str(library),
        "post_grad_custom_post_pass": QuickProducts(),
    }
    for name, value in QUICKER.items():
        if hasattr(torch._inductor.config.aot_inductor, name):  # not every torch has them
            options[f"aot_inductor.{name}"] = value
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        graph = graph_of(recorded, recorded["count"])
        torch._inductor.aot_compile(graph, tuple(inputs), options=options)


def tidy(kept: Path) -> None:
    """Removes what killed processes left, and of the steps those not used for longest, down to MOST bytes."""
    found = []
    for folder in kept.iterdir():
        with suppress(OSError):
            age = time.time() - folder.stat().st_mtime
            if folder.name.startswith(".") and folder.is_dir() and age > STALE:
                shutil.rmtree(folder, ignore_errors=True)
            elif not folder.name.startswith("."):
                found.append((age, folder, sum(path.stat().st_size for path in folder.iterdir())))
    total = 0
    for _, folder, size in sorted(found):
        total += size
        if total > MOST:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    beside = sys.argv[1] == "--beside"
    main(sys.argv[2:] if beside else sys.argv[1:], beside=beside)

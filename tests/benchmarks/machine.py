"""What a benchmark ran on: the processor, its instruction sets that matter here, and versions."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

INSTRUCTIONS = ("sse4_2", "avx2", "fma", "avx512f", "asimd", "sve")
PACKAGES = ("torch", "torchsde", "jax", "diffrax")


def pin(threads: int) -> None:
    """Keeps this process on as many cores as it may have threads, where the system can do that.

    To be called before JAX is imported: XLA makes its pool as large as NPROC says.
    """
    os.environ["NPROC"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < threads:
            raise SystemExit(f"{threads} threads need as many cores, and this process may use {len(cores)}")
        os.sched_setaffinity(0, cores[-threads:])


def machine() -> dict[str, Any]:
    path = Path("/proc/cpuinfo")
    known = path.read_text(encoding="utf-8") if path.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", known, re.MULTILINE)
    listed = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", known, re.MULTILINE)
    flags = set(listed[1].split()) if listed else set()
    return {
        "processor": model[1].strip() if model else platform.processor() or platform.machine(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": os.cpu_count(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

"""Where numbers come from: versions, commit, machine."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git_commit() -> str:
    """Commit of the checkout that this code runs from, or ''."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def stamp(what: str) -> str:
    """A line of history: when, what, by which version."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {what} by sdeflow {_version('sdeflow')}"


def environment(device: torch.device, threads: int, *, engine: str, noise_source: str) -> dict[str, Any]:
    """What the bits of a run depend on besides what it computes."""
    return {
        "device": device.type,
        "threads": threads,
        "engine": engine,
        "noise_source": noise_source,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


@cache
def provenance(device: torch.device) -> dict[str, str | int]:
    """Attributes that tell what made a dataset, beside its configuration."""
    packages = ("torch", "numpy", "xarray", "netCDF4")
    return {
        "Conventions": "CF-1.11",
        "source": f"sdeflow {_version('sdeflow')}",
        "versions": ", ".join(
            [f"python {platform.python_version()}", *(f"{name} {_version(name)}" for name in packages)]
        ),
        "git_commit": _git_commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "platform": platform.platform(),
    }

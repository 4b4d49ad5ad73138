"""The memory that this machine has left for a process, its cache folder, and the work that a function is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from pathlib import Path


def free_memory() -> float:
    """Bytes that this process can still take, swap too; inf where that is not told."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        told = {
            name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)
        }
        free: float = told["MemAvailable"] + told["SwapFree"]
    except (OSError, KeyError, ValueError):  # no Linux: what the machine has
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else inf
    return max(0, min([free, *_left_in_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]))


def _left_in_groups(own: Path, root: Path) -> Iterator[int]:
    """Bytes below the limit of each control group that a process is in, as a container or a job has one.

    own    the file that names its groups, of version 1 or 2
    root   where groups are folders
    """
    with suppress(OSError, ValueError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            limit, usage, cached = names if controllers else ("memory.max", "memory.current", "inactive_file")
            top = root / controllers
            group = top / path.lstrip("/")
            for folder in [group, *group.parents][: len(group.parts) - len(top.parts) + 1]:
                with suppress(OSError, ValueError):  # no such folder in a container, or a limit of "max"
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    used = int((folder / usage).read_text()) - int(stat.get(cached, 0))
                    yield int((folder / limit).read_text()) - used


def cache_folder() -> Path:
    """SDEFLOW_DATA, else the folder sdeflow in XDG_CACHE_HOME or ~/.cache. It need not exist."""
    if chosen := os.environ.get("SDEFLOW_DATA"):
        return Path(chosen).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "sdeflow"


def operations(function: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in what a function does."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        function()
    return int(counter.get_total_flops())

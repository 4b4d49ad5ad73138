"""The memory that this machine has left, and a process keeps; its cache folder; what a function takes."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of mallopt, as glibc's malloc.h numbers them."""


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


@contextmanager
def blocks_kept() -> Iterator[None]:
    """Within, memory that is freed stays with the process, for what is allocated next; then it goes back.

    Otherwise glibc takes a block of more than 32 MiB from the kernel each time and gives it back at once, and
    the kernel clears each page that is touched: of a step that makes tensors of 40 MB this took two thirds.
    What is kept may lie in pieces, so that less than what a process has fits into it again: nothing is done
    where not twice the most that it has had is free. Nor is it with another malloc than glibc's, or one that
    the environment has set. Results do not depend on it.
    """
    mallopt = _mallopt()
    if mallopt is None or free_memory() < 2 * _most_held():
        yield
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # to where glibc comes by itself in a process that has freed a block of 32 MiB
        mallopt(_MMAP_MAX, 1 << 16)
        mallopt(_MMAP_THRESHOLD, 1 << 25)
        mallopt(_TRIM_THRESHOLD, 1 << 26)
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's; None where there is none, or the user has chosen its numbers."""
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if sys.platform != "linux" or chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    library = ctypes.CDLL(None)
    return library.mallopt if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def _most_held() -> float:
    """The most bytes of memory that this process has had at once; inf where that is not told."""
    with suppress(OSError, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), inf)
    return inf


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

"""What tells a run from another: the numbers of its model, and the files that its configuration names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from sdeflow.entries import data_file
from sdeflow.model.model import Model
from sdeflow.model.rows import Rows
from sdeflow.system.system import System

MOST = 2**26
"""Bytes of a file that are looked at; of a longer one the first, and its length."""


def digests(settings: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the files that settings name, as file.py:Name or as a model's data, by path."""
    files = []
    for key, value in settings.items():
        if isinstance(value, str) and ".py:" in value:
            files.append(Path(value.rpartition(":")[0]))
        elif isinstance(value, str) and key.startswith("model.") and (found := data_file(value)):
            files.append(Path(found[0]))
    return {str(file): _digest(file) for file in files if file.is_file()}


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        found = hashlib.sha256(content.read(MOST))
    if (size := file.stat().st_size) > MOST:
        found.update(str(size).encode())
    return found.hexdigest()


def fingerprint(system: System) -> str:
    """The class of a system's model or SDE, and SHA-256 of its numbers and tensors.

    Of data that are not in memory it is of a few.
    """
    thing = system.definition
    digest = hashlib.sha256()

    def add(part: object) -> None:
        for name, value in sorted(getattr(part, "__dict__", {}).items()):
            for leaf in tree_leaves(value):
                if isinstance(leaf, torch.Tensor):
                    digest.update(f"{name}{leaf.dtype}{tuple(leaf.shape)}".encode())
                    digest.update(leaf.detach().cpu().contiguous().numpy().data)
                elif isinstance(leaf, Rows):
                    digest.update(name.encode() + leaf.seen())
                elif isinstance(leaf, int | float | str | bool):
                    digest.update(f"{name}={leaf!r}".encode())
                elif isinstance(leaf, Model):  # of a model around it
                    add(leaf)

    add(thing)
    kind = thing if isinstance(thing, type | FunctionType) else type(thing)
    return f"{kind.__name__} {digest.hexdigest()[:16]}"

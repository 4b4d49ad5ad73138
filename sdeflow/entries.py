"""Finding things by name: entries of the catalogue, and what a file has.

Names come from entry points, so a third-party package joins the way the built-in ones do; a
'path/to/file.py:Name' needs no registration. Naming a file runs its code.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_args

from sdeflow.errors import SdeflowError, did_you_mean

Group = Literal["integrators", "systems", "models", "optimizers", "callbacks"]
GROUPS: tuple[Group, ...] = get_args(Group)


DATA_FILES = (".csv", ".npy", ".npz")
"""What files of data end in."""


def data_file(text: str) -> tuple[str, str] | None:
    """The path and the key of 'file.csv', 'file.npy', 'file.npz' or 'file.npz:key'; None for other text."""
    if found := re.fullmatch(r"(.+?\.npz):(.+)", text):
        return found[1], found[2]
    return (text, "") if text.endswith(DATA_FILES) else None


def entries(group: Group) -> dict[str, EntryPoint]:
    """The registered names of a group, in alphabetical order; a built-in name cannot be taken over."""
    return dict(_entries(group, tuple(sys.path)))


@lru_cache(maxsize=32)
def _entries(group: Group, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """What `entries` gives, looked up once for each path that modules are found on."""
    points = sorted(entry_points(group=f"sdeflow.{group}"), key=lambda p: p.value.startswith("sdeflow."))
    found = {point.name: point for point in points}
    if not found:
        raise SdeflowError(
            "sdeflow is not installed, so its catalogue is empty: run 'pip install -e .' in the checkout"
        )
    return dict(sorted(found.items()))


def find(group: Group, name: str) -> Any:
    """The object of that name: an entry of the catalogue, or 'file.py:Name'.

    Raises SdeflowError, with the nearest known name, where there is none.
    """
    singular = group.removesuffix("s")
    if ".py:" in name:
        return from_file(name, singular)
    known = entries(group)
    if name not in known:
        raise SdeflowError(f"unknown {singular} '{name}': {did_you_mean(name, known)}")
    try:
        return known[name].load()
    except Exception as error:  # a plug-in's failure is a line to read, not the end of the catalogue
        raise SdeflowError(
            f"{singular} '{name}' is registered as {known[name].value} but fails to load: {error}"
        ) from error


def from_file(spec: str, what: str) -> Any:
    """The object that a 'file.py:Name' names, whose code is run; raises SdeflowError where there is none."""
    path_text, _, name = spec.rpartition(":")
    path = Path(path_text).expanduser().resolve()
    if not path.is_file():
        raise SdeflowError(f"{what} '{spec}': there is no file {path}")
    module_spec = importlib.util.spec_from_file_location(f"sdeflow_user_{path.stem}_{abs(hash(path))}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the file does is its writer's to read about
        raise SdeflowError(
            f"{what} '{spec}': {path.name} fails with {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise SdeflowError(f"{what} '{spec}': {path.name} defines no '{name}'; {did_you_mean(name, public)}")
    return getattr(module, name)

"""Files that a configuration names, which stand relative to the folder of what names them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdeflow.entries import data_file


def absolute_files(tables: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The tables with what is relative to `folder` made absolute.

    Every 'file.py:Name', paths, and in [model] what ends as files of data do.
    """
    result = dict(tables)
    parts = [("model", "use"), ("system", "use"), ("run", "integrator"), ("start", "run")]
    for section, key in parts:
        result |= _absolute(result, section, key, folder)
    if isinstance(run := result.get("run"), dict):
        result["run"] = run | _absolute(run, "integrator", "name", folder)
    if isinstance(named := result.get("observables"), dict):
        for name in named:
            result |= _absolute(result, "observables", name, folder)
    if isinstance(callbacks := result.get("callbacks"), dict):
        for name in callbacks:
            for key in ("use", "path"):
                callbacks = callbacks | _absolute(callbacks, name, key, folder)
        result["callbacks"] = callbacks
    if isinstance(model := result.get("model"), dict):
        result["model"] = {
            key: _absolute_data(value, folder) if isinstance(value, str) else value
            for key, value in model.items()
        }
    return result


def _absolute(tables: Mapping[str, Any], section: str, key: str, folder: Path) -> dict[str, Any]:
    """A table with a key made absolute, in a mapping; nothing where there is none or it is no file."""
    table = tables.get(section)
    value = table.get(key) if isinstance(table, dict) else None
    is_path = key in ("run", "path") and isinstance(value, str | Path)
    if not isinstance(table, dict) or not (is_path or (isinstance(value, str) and ".py:" in value)):
        return {}
    file, colon, name = (str(value), "", "") if is_path else str(value).rpartition(":")
    return {section: table | {key: f"{(folder / Path(file).expanduser()).resolve()}{colon}{name}"}}


def _absolute_data(text: str, folder: Path) -> str:
    if (found := data_file(text)) is None:
        return text
    path, key = found
    return str((folder / Path(path).expanduser()).resolve()) + (f":{key}" if key else "")

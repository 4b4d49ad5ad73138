"""What a shell may complete: names of the catalogue and of problems, and run folders. It loads nothing."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sdeflow.errors import SdeflowError


def problems(incomplete: str) -> list[str]:
    """Packaged problems, and the TOML files of this folder; a shell completes other paths by itself."""
    from sdeflow.config.catalogue import problem_files

    return _begun([*problem_files(), *(str(path) for path in Path().glob("*.toml"))], incomplete)


def integrators(incomplete: str) -> list[str]:
    """Integrators, also the last of several separated by commas."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in _entries("integrators", last)]


def systems(incomplete: str) -> list[str]:
    return _entries("systems", incomplete)


def names(incomplete: str) -> list[str]:
    """All that `sdeflow list NAME` tells about."""
    from sdeflow.config.catalogue import GROUPS, problem_files

    of_groups = (name for group in GROUPS for name in _entries(group, incomplete))
    return sorted({*of_groups, *_begun(problem_files(), incomplete)})


def runs(incomplete: str) -> list[str]:
    """Run folders in this folder, in runs/ and beside what is begun."""
    from sdeflow.trajectory.layout import CHECKPOINT, TRAJECTORY

    found = []
    for above in {Path(), Path("runs"), Path(f"{incomplete}_").parent}:
        with suppress(OSError):
            found += [path for path in above.iterdir() if path.is_dir()]
    folders = {str(p) for p in found if any((p / name).is_file() for name in (CHECKPOINT, TRAJECTORY))}
    return _begun(sorted(folders), incomplete)


def _entries(group: str, incomplete: str) -> list[str]:
    from sdeflow.config.catalogue import entries

    with suppress(SdeflowError):  # nothing is installed
        return _begun(entries(group), incomplete)  # type: ignore[arg-type]
    return []


def _begun(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]

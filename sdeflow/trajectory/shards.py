"""The rows of data that each process of a run has, in files of their own beside a checkpoint.

The checkpoint has what all processes have, and names these files with their checksums: they are there, and
whole, before it is. Each is a safetensors file of tensors [R, n_r, ...] by variable. The rows of all
processes lie one after the other in the order of the files, so that any number of processes can read its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sdeflow.errors import RunError
from sdeflow.trajectory import durable
from sdeflow.trajectory.checkpoint import Metadata, Shard
from sdeflow.trajectory.layout import SHARDS

if TYPE_CHECKING:
    from torch import Tensor

    from sdeflow.state import State


def write(root: Path, step: int, rank: int, state: Mapping[str, Tensor]) -> Shard:
    """Writes what process `rank` alone has after a step, on the host; gives the file, from `root`.

    It never takes the place of a file with other content, which a checkpoint may name. Raises RunError where
    the disk does not take it, or this process does not see the folder.
    """
    if not root.is_dir():
        raise RunError(
            f"process {rank} does not see {root}: a run folder lies on a disk that all processes see"
        )
    data = save({name: value.contiguous() for name, value in state.items()})
    digest = hashlib.sha256(data).hexdigest()
    file = f"{SHARDS}/{step:015d}-{rank}-{digest[:12]}"
    try:
        (root / SHARDS).mkdir(exist_ok=True)
    except OSError as error:
        raise durable.refusal(root / SHARDS, error) from error
    return Shard(file, durable.write(root / file, data))


def load(file: Path, meta: Metadata, rows: Mapping[str, slice]) -> State:
    """The state in a checkpoint's file, and in the shards that it names, which lie beside it.

    rows   which of the second axis are read of a variable; of those that are not named all

    Raises RunError where a file cannot be read.
    """
    return _read([file], rows) | read(file.parent, meta.shards, rows)


def read(root: Path, shards: Iterable[Shard], rows: Mapping[str, slice]) -> State:
    """What shards have, likewise."""
    return _read([root / shard.file for shard in shards], rows)


def _read(files: Iterable[Path], rows: Mapping[str, slice]) -> State:
    """The tensors in files; of one variable in several of them one after the other along the second axis."""
    import torch

    pieces: dict[str, list[Tensor]] = {}
    begin: dict[str, int] = {}  # of a variable, how many rows the files before have
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (a file is no mapping)
                    if name not in rows:
                        pieces.setdefault(name, []).append(opened.get_tensor(name))
                        continue
                    there = opened.get_slice(name)
                    at, count = begin.get(name, 0), there.get_shape()[1]
                    own = slice(max(rows[name].start - at, 0), min(rows[name].stop - at, count))
                    begin[name] = at + count
                    if own.start < own.stop:
                        # in memory of its own, since a product rounds by how its factors lie there
                        pieces.setdefault(name, []).append(there[:, own].clone())
        except (OSError, RuntimeError, SafetensorError) as error:
            raise RunError(f"{path} cannot be read by this process: {error}") from error
    return {name: found[0] if len(found) == 1 else torch.cat(found, 1) for name, found in pieces.items()}


def drop(root: Path, but: Iterable[Shard]) -> None:
    """Removes the files that no checkpoint names."""
    kept = {root / shard.file for shard in but}
    for path in set((root / SHARDS).glob("*")) | set((root / SHARDS).glob(".*")):
        if path not in kept:
            with suppress(OSError):  # it is in nobody's way
                path.unlink()
    if not kept:
        with suppress(OSError):  # there is none
            (root / SHARDS).rmdir()

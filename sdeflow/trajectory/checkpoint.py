"""A checkpoint: a state from which a run goes on to the same numbers, and the files that it covers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sdeflow.errors import RunError
from sdeflow.state import State

VERSION = 1
_JSON_NAMES = {"segments": "parts", "environment": "setting"}
"""Fields of Metadata that have another name in the file, whose format does not change."""


class Damaged(RunError):
    """A file whose content is not what was written."""


class Segment(NamedTuple):
    """A netCDF file with the next `snapshots` of a trajectory; its path is relative to the run folder."""

    file: str
    sha256: str
    snapshots: int


class Shard(NamedTuple):
    """A file with the rows of data that one process has; its path is relative to the run folder."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint knows besides the state, all of it JSON.

    step, steps   steps taken to the state, and steps that the run is to take
    begun         steps that the run was to take when it began; 0 where that is not known
    last          steps taken in all; a run that diverged has its last good state, and has gone on from there
    segments      the files that hold the snapshots up to `step`
    settings      what the run computes, by key; a resumed run must have the same
    environment   what its bits depend on besides: device, threads, engine, noise source
    code          SHA-256 of the user's source files, by path
    retcode       'running' until the run has ended, then how; `message` tells more
    diverged      by replica, which variable left the finite numbers, and by which step
    history       what was done to the run, one line each
    stopped       which callback has stopped the run, '' for none
    shards        files with the rows of data of each of several processes, in their order (shards.py)
    start         what the run began from (run, step, checksum, anew), where that is not its seed alone
    """

    step: int
    last: int
    steps: int
    segments: tuple[Segment, ...]
    settings: dict[str, Any]
    environment: dict[str, Any]
    code: dict[str, str]
    retcode: str = "running"
    message: str = ""
    diverged: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    evaluate_seconds: float = 0.0
    history: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    start: dict[str, Any] = field(default_factory=dict)
    begun: int = 0
    stopped: str = ""
    shards: tuple[Shard, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether the run has come to its end, with nothing left but to join its segments."""
        return self.retcode in ("success", "diverged", "stopped")

    @property
    def whole(self) -> bool:
        """Whether the run has come to its end and its trajectory is one file."""
        return self.ended and [segment.file for segment in self.segments] == ["trajectory.nc"]

    @property
    def snapshots(self) -> int:
        return sum(segment.snapshots for segment in self.segments)

    def all_diverged(self, n_replicas: int) -> bool:
        return len(self.diverged) == n_replicas

    def files(self, folder: Path) -> list[tuple[Path, int]]:
        """The segments' files in a run folder, and how many of its first snapshots count in each."""
        return [(folder / segment.file, segment.snapshots) for segment in self.segments]


def encode(meta: Metadata, state: State) -> bytes:
    """A safetensors file of the state; its own metadata hold ours and a checksum of both."""
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    values = {_JSON_NAMES.get(name, name): value for name, value in asdict(meta).items()}
    text = json.dumps({"version": VERSION, **values}, sort_keys=True)
    return save(state, metadata={"sdeflow": text, "sha256": digest_of(state, text)})


def decode(path: Path) -> tuple[Metadata, State]:
    """The metadata and the state in a file. Nothing in it is executed.

    Raises Damaged where its checksum does not fit or it is no checkpoint, FileNotFoundError for no file.
    """
    text, digest, state = _read(path)
    if digest != digest_of(state, text):
        raise Damaged(f"{path} is damaged: its content does not fit its checksum")
    return _metadata(path, text), state


def peek(path: Path) -> Metadata:
    """The metadata alone, unchecked, without reading the state."""
    return _metadata(path, _read(path, with_state=False)[0])


def _read(path: Path, *, with_state: bool = True) -> tuple[str, str, State]:
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys() if with_state}  # noqa: SIM118
        return metadata["sdeflow"], metadata["sha256"], state
    except (OSError, RuntimeError, SafetensorError, KeyError, ValueError, TypeError) as error:
        if not path.exists():  # its writer has just replaced it
            raise FileNotFoundError(path) from None
        raise Damaged(f"{path} is damaged: {error}") from error


def _metadata(path: Path, text: str) -> Metadata:
    try:
        values = json.loads(text)
        if (version := values.pop("version")) != VERSION:
            raise RunError(
                f"{path} has the format {version} of another sdeflow; this one reads format {VERSION}"
            )
        values |= {name: values.pop(in_file) for name, in_file in _JSON_NAMES.items()}
        values["segments"] = tuple(Segment(*segment) for segment in values["segments"])
        values["shards"] = tuple(Shard(*shard) for shard in values.get("shards", ()))
        values["diverged"] = {int(replica): what for replica, what in values["diverged"].items()}
        return Metadata(**values | {key: tuple(values[key]) for key in ("history", "warnings")})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path} is damaged: {error}") from error


def digest_of(state: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of a text and of tensors by name, contiguous and on the host."""
    digest = hashlib.sha256(text.encode())
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().data)
    return digest.hexdigest()

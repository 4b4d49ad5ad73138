"""The files of a run folder by name.

config.toml          what is run
run.log              what was done, a line each
segments/            snapshots so far, netCDF files in order
checkpoint           the state, and the segments that it covers, by checksum
checkpoint.prev      the one before
shards/              of a run on several processes, the rows of data of each, which checkpoints name
kept/                parameters at some moments of the run (save.keep), a file each, named by its step
final.safetensors    at the end, the whole last state by parameter name
evaluation.nc        what `sdeflow evaluate` found, of a run that has ended
trajectory.nc        at the end, all snapshots; the segments go once it is verified and covered
"""

from __future__ import annotations

import shlex
from pathlib import Path

TRAJECTORY, FINAL, CONFIG, LOG = "trajectory.nc", "final.safetensors", "config.toml", "run.log"
EVALUATION = "evaluation.nc"
CHECKPOINT, PREVIOUS, SEGMENTS, KEPT, SHARDS = "checkpoint", "checkpoint.prev", "segments", "kept", "shards"
LOCK = ".lock"


def kept_file(step: int) -> Path:
    """The file of the parameters after so many steps, from the run folder."""
    return Path(KEPT) / f"{step:015d}"


def kept_files(folder: Path) -> dict[int, Path]:
    """The files of kept parameters in a run folder, by step, in order."""
    found = {int(path.name): path for path in (folder / KEPT).glob("*") if path.name.isdecimal()}
    return dict(sorted(found.items()))


def resuming(folder: Path) -> str:
    """The command that goes on with a run, as a shell takes it."""
    return f"sdeflow resume {shlex.quote(str(folder))}"


def safe_name(name: str) -> str:
    """A name with what is unsafe in the name of a folder replaced."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)

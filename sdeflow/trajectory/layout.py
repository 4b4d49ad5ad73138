"""The files of a run folder by name.

config.toml          what is run
run.log              what was done, a line each
segments/            snapshots so far, netCDF files in order
checkpoint           the state, and the segments that it covers, by checksum
checkpoint.prev      the one before
final.safetensors    at the end, the whole last state by parameter name
trajectory.nc        at the end, all snapshots; the segments go once it is verified and covered
"""

TRAJECTORY, FINAL, CONFIG, LOG = "trajectory.nc", "final.safetensors", "config.toml", "run.log"
CHECKPOINT, PREVIOUS, SEGMENTS = "checkpoint", "checkpoint.prev", "segments"
LOCK = ".lock"


def safe_name(name: str) -> str:
    """A name with what is unsafe in the name of a folder replaced."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)

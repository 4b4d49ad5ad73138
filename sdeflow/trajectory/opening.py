"""Opening the trajectory of a run folder, finished or not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from sdeflow.errors import SdeflowError
from sdeflow.trajectory import checkpoint
from sdeflow.trajectory.checkpoint import Damaged, Metadata
from sdeflow.trajectory.layout import CHECKPOINT, PREVIOUS, TRAJECTORY

if TYPE_CHECKING:
    import xarray as xr


def open_run(path: str | Path) -> xr.Dataset:
    """The trajectory of a run folder; of one that is still being written, what its checkpoint covers.

    Values are read when they are asked for. Raises SdeflowError for what is no run folder, Damaged for a file
    that cannot be read.
    """
    import xarray as xr  # which takes as long as thousands of steps

    xr.backends.list_engines()  # for what is declared to xarray: its accessor `.sdeflow` is
    from sdeflow.trajectory.joined import open_joined

    folder = Path(path)
    for again in (True, False):
        try:
            if (folder / TRAJECTORY).exists():
                return _with_text(xr.open_dataset(folder / TRAJECTORY, engine="netcdf4"))
            meta = newest(folder)
            dataset = open_joined(meta.files(folder), folder / TRAJECTORY)
            known = {"retcode": meta.retcode, "message": meta.message, "steps_taken": meta.step}
            return _with_text(dataset).assign_attrs(known)
        except FileNotFoundError:  # its writer has just replaced what was looked at
            if not again:
                break
            time.sleep(0.1)
        except (OSError, RuntimeError) as error:  # as netCDF4 calls what it cannot read
            raise Damaged(f"{folder / TRAJECTORY} cannot be read: {error}") from error
    raise SdeflowError(f"{folder} is no run folder: it has neither {TRAJECTORY} nor a {CHECKPOINT}")


def _with_text(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with labels as text, which out of characters come as objects."""
    labels = {name: values.astype(str) for name, values in dataset.coords.items() if values.dtype == object}
    return dataset.assign_coords(labels)


def newest(folder: Path) -> Metadata:
    """What the newest checkpoint that can be read knows, unchecked.

    Raises FileNotFoundError where there is none, Damaged where none can be read.
    """
    try:
        return checkpoint.peek(folder / CHECKPOINT)
    except (FileNotFoundError, Damaged):
        if not (folder / PREVIOUS).exists():
            raise
        return checkpoint.peek(folder / PREVIOUS)

"""What a run had learned at moments of it, by the files that `save.keep` leaves or by its snapshots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sdeflow.analysis.samples import Learned, decoder_of
from sdeflow.errors import SdeflowError
from sdeflow.system.average import AVERAGE
from sdeflow.trajectory import checkpoint
from sdeflow.trajectory.layout import kept_files
from sdeflow.trajectory.opening import open_run

MOST = 8
"""Snapshots that are looked at where no parameters were kept, spread evenly from the start to the end."""


class Moment(NamedTuple):
    """The parameters after a step and so many gradient evaluations; `found` has those of the average too."""

    step: int
    evaluations: int
    found: Learned


def moments(run: Path, end: Learned, replica: int = 0) -> list[Moment]:
    """The moments of a run at which its parameters are known, in order, the end among them.

    end   what the run has learned, of which all but the parameters stays

    Raises SdeflowError for a run that has kept none and has recorded their norm alone, Damaged for a file
    that is not what was written.
    """
    trajectory = open_run(run)
    if "replica" in trajectory.dims:
        trajectory = trajectory.isel(replica=replica)
    steps = trajectory.step.to_numpy()
    blocks = [b.position for b in end.system.parameters]
    if files := kept_files(run):
        chosen, read = sorted({*files, int(steps[-1])}), _of_files(files, replica)
    elif all(name in trajectory for name in blocks):
        at = np.unique(np.linspace(0, len(steps) - 1, min(MOST, len(steps))).round().astype(int))
        chosen, read = steps[at].tolist(), _of_snapshots(trajectory)
    else:
        raise SdeflowError(
            f"{run} has kept its parameters at no moment but the end, and its snapshots have their norm "
            "alone: run it with --set save.keep=5, or leave --along out"
        )
    tuning = trajectory.get("tuning_evaluations", xr.zeros_like(trajectory.step)).to_numpy()
    per_step, found = int(trajectory.attrs["gradient_evaluations_per_step"]), []
    for step in chosen:
        if step == steps[-1]:
            then = end
        else:
            values = read(step)
            average = None if end.average is None else _at(end.average, values, AVERAGE)
            then = replace(_at(end, values), average=average)
        spent = step * per_step + int(tuning[np.searchsorted(steps, step)])
        found.append(Moment(step, spent, then))
    return found


Reader = Callable[[int], Mapping[str, Tensor]]


def _of_files(files: Mapping[int, Path], replica: int) -> Reader:
    def read(step: int) -> Mapping[str, Tensor]:
        return {name: value[replica] for name, value in checkpoint.decode(files[step])[1].items()}

    return read


def _of_snapshots(trajectory: xr.Dataset) -> Reader:
    at = trajectory.swap_dims(time="step")

    def read(step: int) -> Mapping[str, Tensor]:
        one = at.sel(step=step)
        names = {str(name).replace("average_", AVERAGE): name for name in one.data_vars}
        return {own: torch.from_numpy(one[name].to_numpy()) for own, name in names.items()}

    return read


def _at(found: Learned, values: Mapping[str, Tensor], prefix: str = "") -> Learned:
    """What was learned with the parameters in `values`, flat, by their positions."""
    if found.encoded is not None:  # values are of both networks
        return decoder_of(_at(found.encoded, values, prefix))
    theta: dict[str, Tensor] = {}
    for block in found.system.parameters:
        flat = values[prefix + block.position].to(found.state[block.position])
        layout = found.forces.layouts[found.system.axes[block.position].dims[0]]
        theta |= {f"{block.position}.{name}": value for name, value in layout.views(flat).items()}
    return replace(found, theta={name.removeprefix("theta."): v for name, v in theta.items()})

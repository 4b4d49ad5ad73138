"""The last state of a run, by name: as it is stored, and as what another run begins from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sdeflow.errors import RunError, SdeflowError, attempt
from sdeflow.model.model import ParameterLayout
from sdeflow.system.start import Law, Origin, Start
from sdeflow.system.system import System
from sdeflow.trajectory import durable
from sdeflow.trajectory.checkpoint import digest_of
from sdeflow.trajectory.layout import CHECKPOINT, FINAL, TRAJECTORY, resuming
from sdeflow.trajectory.opening import open_run

if TYPE_CHECKING:
    import xarray as xr

MOMENTA = "momenta"
"""Attribute of a trajectory: the law of each momentum, JSON."""

WHOLE = "give the folder of its run, or save all: Save(data='all', particles='all', theta_max=10**9)"


@dataclass(frozen=True)
class Stored:
    """The last state of a run that has ended, [R, ...] by name as in final.safetensors ('X', 'theta.weight').

    about   the attributes of its trajectory
    laws    of its momenta, one a replica
    """

    folder: Path
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]
    laws: Mapping[str, Sequence[Law]]

    @property
    def replicas(self) -> int:
        return int(self.about["replicas"])

    def of(self, replica: int) -> dict[str, Tensor]:
        """The state of one replica; raises SdeflowError for one that is not there, or that diverged."""
        if not 0 <= replica < self.replicas:
            raise SdeflowError(f"replica must lie in 0..{self.replicas - 1}, given {replica}")
        state = {name: value[replica] for name, value in self.tensors.items()}
        if lost := [name for name, value in state.items() if not value.isfinite().all()]:
            raise SdeflowError(
                f"replica {replica} of {self.folder} diverged: at its end not finite: "
                f"{', '.join(sorted(lost))}"
            )
        return state


def stored(folder: Path) -> Stored:
    """The last state of the run in a folder.

    Raises SdeflowError for what is no run folder or has not ended, RunError for a file that cannot be read.
    """
    if (folder / CHECKPOINT).is_file() and not (folder / TRAJECTORY).is_file():
        raise SdeflowError(f"{folder} has not ended: {resuming(folder)} takes it to its end")
    if not (folder / FINAL).is_file():
        raise SdeflowError(
            f"{folder} has no {FINAL}: give the folder of a run that 'sdeflow run' has written"
        )
    try:
        tensors = load_file(folder / FINAL)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder / FINAL} cannot be read: {error}") from error
    with open_run(folder) as dataset:
        about, laws = dict(dataset.attrs), _laws(dataset.isel(time=-1))
    if int(about["replicas"]) == 1:
        tensors = {name: value[None] for name, value in tensors.items()}
    return Stored(folder, tensors, about, laws)


def momenta(system: System) -> str:
    """The law of each momentum of a system, for the attribute MOMENTA."""
    kinetic = {b.momentum: b for b in system.blocks if b.momentum is not None}
    return json.dumps(
        {
            name: {
                "block": b.name,
                "temperature": [one.temperature for one in b.replicas],
                "eta": [one.eta for one in b.replicas],
            }
            for name, b in kinetic.items()
        }
    )


def _laws(last: xr.Dataset) -> dict[str, list[Law]]:
    """The laws of the momenta at a snapshot; none of a trajectory that has not kept them."""
    found = {}
    for name, law in json.loads(last.attrs.get(MOMENTA, "{}")).items():
        recorded = f"eta_{law['block']}"  # by a warm-up, which changes it on the way
        eta = last[recorded].to_numpy().reshape(-1).tolist() if recorded in last else law["eta"]
        given = law["temperature"]
        temperatures = given if isinstance(given, list) else [given]  # a number in earlier versions
        if len(temperatures) == 1:
            temperatures = temperatures * len(eta)
        found[name] = [Law(*both) for both in zip(temperatures, eta, strict=True)]
    return found


# What a run begins from ----------------------------------------------------------------------------


def as_start(given: Any) -> Start | Origin:
    """What Python may give a run to begin from: a run folder, a trajectory, or tensors by name.

    Raises SdeflowError for anything else, and for a trajectory that has not all of its state.
    """
    if isinstance(given, Start):
        return given
    if isinstance(given, str | Path):
        return Start(str(given))
    import xarray as xr

    if isinstance(given, xr.Dataset):
        return _of_dataset(given)
    if isinstance(given, Mapping):
        tensors = {str(k): attempt(f"start['{k}']", torch.as_tensor, v) for k, v in given.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        return Origin(tensors, "the start that was given", 0, digest_of(tensors))
    raise SdeflowError(
        "start must be a run folder, an sdeflow.Start, a trajectory or a mapping from names to tensors, "
        f"given {type(given).__name__}"
    )


def origin_of(start: Start | Origin) -> Origin:
    """What a run begins from, read; raises as `stored`, and SdeflowError for a replica that is not there."""
    if isinstance(start, Origin):
        return start
    state = stored(Path(start.run))
    tensors, laws = dict(state.tensors), dict(state.laws)
    if (one := start.replica) is not None:
        tensors = {name: value[None] for name, value in state.of(one).items()}
        laws = {name: [law[one % len(law)]] for name, law in laws.items()}
    return Origin(
        tensors,
        start.run,
        int(state.about["steps_taken"]),
        durable.checksum(state.folder / FINAL),
        laws,
        tuple(start.without),
        fix="give the model and the sizes of that run, or begin these anew: --set start.without={names}",
    )


def _of_dataset(run: xr.Dataset) -> Origin:
    """The last snapshot of a trajectory that has all data, particles and parameters.

    Whether it has is told by its coordinates, and by the shapes that a run expects of its variables.
    """
    if not run.sizes.get("time"):
        raise SdeflowError("start: a trajectory with snapshots along 'time' was expected, given none")
    last = run.isel(time=-1)
    last = last if "replica" in last.dims else last.expand_dims("replica")
    tensors: dict[str, Tensor] = {}
    for name, values in last.data_vars.items():
        dims = [dim for dim in values.dims if dim != "replica"]
        if not dims or str(name).startswith("average_"):
            continue
        values = values.transpose("replica", *dims)
        for dim in ("datum", "particle", "prior_particle"):
            if dim in dims and dim in last and (last[dim] != np.arange(last.sizes[dim])).any():
                raise SdeflowError(f"start: the trajectory has a part of {name} along '{dim}' alone: {WHOLE}")
        value = torch.from_numpy(np.ascontiguousarray(values))
        shapes = values[dims[0]].attrs.get("shapes") if dims[0] in values.coords else None
        if shapes is None:
            tensors[str(name)] = value
        else:
            views = ParameterLayout.of(json.loads(shapes)).views(value)
            tensors |= {f"{name}.{part}": view.contiguous() for part, view in views.items()}
    title = f"the trajectory '{run.attrs.get('title', '')}'"
    return Origin(tensors, title, int(last["step"]), digest_of(tensors), _laws(last), fix=WHOLE)

"""What a run leaves: its trajectory as an xarray Dataset, its last state by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.model.model import ParameterLayout
from sdeflow.state import LONG_NAMES, PARAMETERS, TUNING
from sdeflow.system.average import AVERAGE
from sdeflow.system.integrator import KEPT
from sdeflow.system.start import parts
from sdeflow.system.system import System
from sdeflow.trajectory.record import Recorder

if TYPE_CHECKING:
    import xarray as xr

_TUNED = {
    "h": "step of block {} on its own clock",
    "eta": "inverse mass of block {}",
    "gamma": "friction of block {}",
    "temperature": "temperature of block {}",
    "restart": "whether block {} restarts",
    "curvature": "largest curvature that block {} sees",
    "noise": "noise of a minibatch's force on block {}, nu of sdeflow.tuning.gradient_noise",
}


def _long_name(name: str) -> str:
    kind, _, of = name.partition("_")
    if kind == "kinetic":
        return f"kinetic energy of block {of}, eta |p|^2 / 2" + (
            "" if of in PARAMETERS else ", mean over particles"
        )
    if kind == "force":
        return f"norm of the force on block {of}" + (
            "" if of in PARAMETERS else ", root mean square over particles"
        )
    if kind == "energy":
        return f"mean over the particles of block {of} of the energy U_alpha"
    if kind in _TUNED and name not in LONG_NAMES:
        return _TUNED[kind].format(of)
    if name.endswith("_norm"):
        return f"Euclidean norm of {LONG_NAMES.get(name.removesuffix('_norm'), name)}"
    return LONG_NAMES.get(name, name.replace("_", " "))


Variable = tuple[tuple[str, ...], Any, dict[str, Any]]
"""Dimensions, values and attributes."""


class Contents(NamedTuple):
    """What an xarray Dataset and a netCDF file are made of, by name."""

    variables: Mapping[str, Variable]
    coords: Mapping[str, Variable]
    attrs: Mapping[str, Any]

    def dataset(self) -> xr.Dataset:
        """Imports xarray, which takes as long as thousands of steps."""
        import xarray as xr

        xr.backends.list_engines()  # for what is declared to xarray: its accessor `.sdeflow` is
        return xr.Dataset(self.variables, self.coords, dict(self.attrs))


def contents(
    recorder: Recorder,
    *,
    seeds: Sequence[int],
    attrs: Mapping[str, Any],
    batch: int | None = None,
    along: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Contents:
    """The recorded trajectory with dims time, replica (when there are several) and each variable's own.

    batch   the number of data that observables were evaluated on, where it was not all
    along   numbers in which the replicas differ, by name, one each
    """
    system = recorder.system
    several = recorder.replicas > 1 or bool(along)
    lead = ("time", "replica") if several else ("time",)
    variables: dict[str, Variable] = {}
    for name, values in recorder.values().items():
        dims = recorder.whole[name].dims if name in recorder.whole else ()
        size = recorder.norms.get(name.removesuffix("_norm"))
        name = recorded_name(name)
        about: dict[str, Any] = {"long_name": _long_name(name), "units": "1"}
        if name == "loss":
            about["evaluated_on"] = (
                f"{batch} training data spread evenly, the same every time, and all their particles"
                if batch
                else "all training data and all their particles"
            )
        if size is not None:
            about["size"] = size
        if name == "held_out_loss":
            about["missing"] = "NaN where a snapshot was taken and no evaluation was due"
        variables[name] = ((*lead, *dims), values if several else values[:, 0], about)

    def along_time(clock: str) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        values = np.asarray([times[clock] for times in recorder.times], dtype=np.float64)
        return ("time", "replica")[: values.ndim], values

    step = np.asarray(recorder.steps, dtype=np.int64)
    coords: dict[str, Variable] = {
        "time": (*along_time(""), {"long_name": "time on the reference clock", "units": "1"}),
        "step": (("time",), step, {"long_name": _long_name("step"), "units": "1"}),
    }
    for block in system.clocks:
        about = {"long_name": f"time on the clock of block {block}", "units": "1"}
        coords[f"time_{block}"] = (*along_time(block), about)
    layouts = _layouts(system)
    for dim, index in recorder.index.items():
        labels = index.astype(str) if dim.endswith("param") else index
        if dim in layouts:
            labels = np.asarray(layouts[dim].labels())
        about = {"long_name": _long_name(dim)}
        if dim in layouts:
            about["shapes"] = json.dumps(layouts[dim].shapes)
        coords[dim] = ((dim,), labels, about)
    if several:
        coords["replica"] = (("replica",), np.arange(recorder.replicas), {"long_name": _long_name("replica")})
        coords["seed"] = (("replica",), np.asarray(seeds), {"long_name": _long_name("seed")})
    for name, numbers in along.items():
        about = {"long_name": _long_name(name), "units": "1"}
        coords[name] = (("replica",), np.asarray(numbers), about)
    return Contents(variables, coords, attrs)


def recorded_name(name: str) -> str:
    """The name in a trajectory of what is recorded."""
    return name.replace(AVERAGE, "average_")


def _layouts(system: System) -> Mapping[str, ParameterLayout]:
    """How named parameters lie in variables of the system, by the name of the axis."""
    return {} if system.model_forces is None else system.model_forces.layouts


def final_state(system: System, z: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The full state by name, parameters by their own ('theta.weight'); one replica has no axis."""
    return dict(Copies(system, z))


class Copies(Mapping[str, Tensor]):
    """What `final_state` gives, each a copy on the host that is made when it is first asked for."""

    def __init__(self, system: System, z: Mapping[str, Tensor]) -> None:
        self._views, self._made = _by_name(system, z), dict[str, Tensor]()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            value = self._views[name]
            self._made[name] = (value[0] if len(value) == 1 else value).contiguous().cpu().clone()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def _by_name(system: System, z: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of the state by name, [R, ...]."""
    named: dict[str, Tensor] = {}
    for name, value in z.items():
        if not name.startswith(TUNING):
            own, stem = name.removeprefix(AVERAGE), name.replace(KEPT, "force.")
            named |= {stem + part: view for part, view in parts(system, own, value).items()}
    return named

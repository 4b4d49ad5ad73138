"""The snapshots of a run as states of its system, and the forces there, by gradients of the log-joint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from math import ceil
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sdeflow.analysis.chosen import chosen
from sdeflow.analysis.entropy import Array
from sdeflow.errors import SdeflowError
from sdeflow.model.energy_forces import EnergyForces
from sdeflow.model.force_field import ModelField
from sdeflow.model.forces import ModelForces
from sdeflow.state import PARAMETERS, State
from sdeflow.system.block import Block
from sdeflow.system.system import BlockSystem

MOST = 400
"""Snapshots that are taken, evenly, out of longer runs."""

AT_ONCE = 2_000_000
"""Coordinates whose forces are taken at once: some 100 MB with what a gradient needs besides."""


def system_of(run: xr.Dataset) -> BlockSystem:
    """The system of a run's configuration; raises SdeflowError where it keeps none, or no model."""
    from sdeflow.config.build import build
    from sdeflow.config.schema import parse_config

    if not (text := run.attrs.get("config", "")):
        raise SdeflowError("a run from Python does not keep its system: give it, balance(run, system)")
    system = build(parse_config(text, Path("config.toml"))).system
    if not isinstance(system, BlockSystem) or system.model_forces is None:
        raise SdeflowError("this run is of a system without a model, whose forces are not known")
    return system


class Snapshots:
    """The snapshots of a run, in float64: of the data and particles that were saved.

    system   the run's own, for its numbers; those that it chose are taken from the run, and then only
             snapshots from where they no longer change
    field    its forces on the saved particles of the saved data, where possible by gradients of the
             log-joint and not by scores of the model's own; theta's too are means over these particles
    state    variables by name, [T, R, ...] with R replicas
    whole    whether all data were saved; `every`: whether all particles were, too

    Raises SdeflowError for a system without a model, a grid, parameters that were not saved whole, values
    that are not finite, and a run that is not of this system.
    """

    def __init__(self, run: xr.Dataset, system: BlockSystem | None = None) -> None:
        if run.attrs.get("grid"):
            raise SdeflowError("a grid is of several systems at once: take runs at one point each")
        if "X" not in run or "time" not in run.dims:
            raise SdeflowError("the dataset has no particles X over time: a run of this system was expected")
        if norms := [name for name in PARAMETERS if f"{name}_norm" in run]:
            raise SdeflowError(
                f"forces need {norms[0]}, of which snapshots have the norm alone: raise save.theta_max"
            )
        given = system_of(run) if system is None else system
        forces = given.model_forces
        if not isinstance(forces, ModelForces | EnergyForces):
            raise SdeflowError("this system has no model, whose forces are not known")
        self.system = chosen(given, run)
        run = _settled(run) if any(b.auto for b in given.blocks) else run
        run = run.isel(time=slice(None, None, ceil(run.sizes["time"] / MOST)))
        self.run = run if "replica" in run.dims else run.expand_dims("replica", 1)
        self._expect_variables()
        self.state: State = {name: torch.from_numpy(self._values(name)) for name in self.system.axes}
        if not all(bool(value.isfinite().all()) for value in self.state.values()):
            raise SdeflowError("the state is not finite in some snapshots: this run diverged")
        self.whole = self.run.sizes["datum"] == forces.n_data
        self.every = self.whole and self.run.sizes["particle"] == forces.n_particles
        self.own = _of_particles(forces, self.run.sizes["particle"])
        self.field = self._by_gradients()

    @property
    def count(self) -> int:
        """T."""
        return self.run.sizes["time"]

    @property
    def batches(self) -> bool:
        """Whether steps saw some of the data each, so that particles moved in some steps alone."""
        return bool(self.run.attrs.get("batch"))

    def clock(self, b: Block) -> Array:
        """The time on a block's own clock, [T, R]."""
        return self._along(f"time_{b.name}")

    def resolves(self, b: Block) -> bool:
        """Whether no momentum of a block is lost from one snapshot to the next: gamma eta dt is at most 1."""
        decay = self.number(b, "gamma") * self.number(b, "eta")
        return bool((decay[1:] * np.diff(self.clock(b), axis=0)).max() <= 1)

    def number(self, b: Block, name: str) -> Array:
        """eta, gamma or the temperature of a block at each snapshot, [T, R]."""
        if f"{name}_{b.name}" in self.run:
            return self._along(f"{name}_{b.name}")
        return np.full((self.count, self.run.sizes["replica"]), getattr(b, name))

    def forces(
        self,
        names: Sequence[str],
        *,
        field: ModelField | None = None,
        at: slice = slice(None),
        moved: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> dict[str, Array]:
        """Forces on blocks, [T, R, ...].

        field   that gives them (default: `field`)
        at      of these snapshots
        moved   variables that take the place of the state's
        """
        field = self.field if field is None else field
        z = {name: moved.get(name, value)[at] for name, value in self.state.items()}
        times, replicas = z["X"].shape[:2]
        size = sum(v[0, 0].numel() for v in z.values())
        rows = {name: v.flatten(0, 1).split(max(1, AT_ONCE // size)) for name, v in z.items()}
        parts = [
            self._evaluated(field, dict(zip(rows, part, strict=True)), names)
            for part in zip(*rows.values(), strict=True)
        ]
        whole = {name: torch.cat([part[name] for part in parts]) for name in names}
        return {name: v.unflatten(0, (times, replicas)).numpy() for name, v in whole.items()}

    def log_joint(self) -> Array:
        """l_i of each particle, [T, R, D, N], of a model whose data were all saved."""
        forces, theta, x = self.own, self.state["theta"], self.state["X"]
        assert isinstance(forces, ModelForces)
        found = np.empty(x.shape[:-1])
        with torch.no_grad():
            for at in np.ndindex(found.shape[:2]):
                own = x[at].reshape(*x.shape[2:4], *forces.model.latent_shape)
                views = forces.parameters.views(theta[at])
                found[at] = forces.model.log_joint(views, own, forces.model.data).numpy()
        return found

    def _evaluated(self, field: ModelField, z: State, names: Sequence[str]) -> State:
        """Forces at rows of states."""
        index = torch.from_numpy(self.run["datum"].to_numpy().astype(np.int64))

        def forces(z: State) -> State:
            of = field if self.whole and not field.stored else field.minibatch(index.expand(len(z["X"]), -1))
            return of(0.0, z, names)

        with torch.no_grad():
            try:
                return forces(z)
            except RuntimeError:  # a model that looks at values, say: its rows take turns
                each = [forces({k: v[r : r + 1] for k, v in z.items()}) for r in range(len(z["X"]))]
        return {name: torch.cat([one[name] for one in each]) for name in names}

    def _by_gradients(self) -> ModelField:
        """The field without scores of the model's own, where its log-joint can be differentiated."""
        own = self.own
        if not isinstance(own, ModelForces) or own.model.score_x is own.model.score_theta is None:
            return own
        model = copy(own.model)
        model.score_x = model.score_theta = None
        plain = ModelForces(model, own.n_particles, _layout=own.parameters)
        try:
            self.forces(["theta", "x"], field=plain, at=slice(1))
        except RuntimeError:
            return own
        return plain

    def _expect_variables(self) -> None:
        """Raises SdeflowError where the run lacks a variable of the system, or has it of another size."""
        for name, (dims, shape) in self.system.axes.items():
            given = tuple(self.run[name].sizes.get(dim, 0) for dim in dims) if name in self.run else ()
            part = [dim in ("datum", "particle") for dim in dims]  # of which some may have been saved
            if not given or not all(
                0 < g <= n if some else g == n for g, n, some in zip(given, shape, part, strict=True)
            ):
                raise SdeflowError(
                    f"the dataset has {name} of shape {given or 'none'}, and the system {shape}: give the "
                    "system of this run"
                )

    def _values(self, name: str) -> Array:
        return self.run[name].transpose("time", "replica", ...).to_numpy().astype(np.float64)

    def _along(self, name: str) -> Array:
        values = self.run[name]
        lacking = {dim: self.run.sizes[dim] for dim in ("time", "replica") if dim not in values.dims}
        return values.expand_dims(lacking).transpose("time", "replica").to_numpy().astype(np.float64)


def _of_particles(forces: ModelForces | EnergyForces, kept: int) -> ModelForces | EnergyForces:
    """The forces in float64 with so many particles a datum."""
    exact = forces.to(torch.float64, torch.device("cpu"))
    if isinstance(exact, EnergyForces):
        layout = exact.posterior.parameters
        return EnergyForces(exact.model, kept, exact.n_prior_particles, _layout=layout)
    return ModelForces(exact.model, kept, _layout=exact.parameters)


def _settled(run: xr.Dataset) -> xr.Dataset:
    """The snapshots from where the numbers that a run chooses stay as they are."""
    names = [n for n in run if str(n).startswith(("h_", "eta_", "gamma_", "restart_"))]
    last = 0
    for name in names:
        values = run[name].to_numpy().reshape(run.sizes["time"], -1)
        changed = (values[1:] != values[:-1]).any(1).nonzero()[0]
        last = max([last, *(changed + 1).tolist()])
    return run.isel(time=slice(last, None))

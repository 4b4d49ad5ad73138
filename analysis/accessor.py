"""What every xarray.Dataset of a run has as `.sdeflow`: parameters by name, and what is measured of a run.

Importing this module registers it. xarray does so when it first opens a file, by the entry point in its group
`xarray.backends`, and `sdeflow` where xarray is there; so it imports little.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr
from xarray.backends import BackendEntrypoint

from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.state import PARAMETERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdeflow.analysis.rates import Decay
    from sdeflow.model.model import Model
    from sdeflow.system.system import BlockSystem


class Parameters(Mapping[str, xr.DataArray]):
    """The parameters in a trajectory by name, each over time[, replica] and its own axes 'NAME_dim_0', ...

    Names are those of the model, as `sdeflow.load` has them: of an energy 'alpha.NAME' and 'beta.NAME'.
    Nothing is read before it is asked for.

    Raises SdeflowError where they were not saved whole, or none are there.
    """

    def __init__(self, run: xr.Dataset) -> None:
        self._at: dict[str, tuple[xr.DataArray, slice, tuple[int, ...]]] = {}
        for variable in PARAMETERS:
            if f"{variable}_norm" in run:
                size = run[f"{variable}_norm"].attrs.get("size", 10**9)
                raise SdeflowError(
                    f"{variable} was not saved whole at snapshots, which have its norm: run with "
                    f"save.theta_max = {size}, or take the last one from sdeflow.load"
                )
            if variable in run:
                self._lay_out(run[variable], "" if variable == "theta" else f"{variable}.")
        if not self._at:
            raise SdeflowError(
                "there are no parameters in this dataset: the trajectory of a model was expected"
            )

    def _lay_out(self, flat: xr.DataArray, prefix: str) -> None:
        dim = str(flat.dims[-1])
        told = flat[dim].attrs.get("shapes") if dim in flat.coords else None
        shapes = {} if told is None else json.loads(told)
        if sum(map(prod, shapes.values())) != flat.sizes[dim]:
            raise SdeflowError(
                f"this dataset has a part of {flat.name} alone, or is of an older sdeflow, which kept no "
                "shapes: take the parameters from sdeflow.load"
            )
        begin = 0
        for name, shape in shapes.items():
            end = begin + prod(shape)
            self._at[prefix + name] = (flat, slice(begin, end), tuple(shape))
            begin = end

    def __getitem__(self, name: str) -> xr.DataArray:
        if name not in self._at:
            raise KeyError(f"there is no parameter '{name}': {did_you_mean(name, self._at)}")
        flat, at, shape = self._at[name]
        dim = str(flat.dims[-1])
        values = flat.isel({dim: at}).drop_vars(dim)
        dims = (*values.dims[:-1], *(f"{name}_dim_{k}" for k in range(len(shape))))
        data = values.data.reshape((*values.shape[:-1], *shape))
        return xr.DataArray(data, values.coords, dims, name, {"long_name": name, "units": "1"})

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


@xr.register_dataset_accessor("sdeflow")
class Accessor:
    """`run.sdeflow` of a trajectory, an xarray.Dataset of a run."""

    def __init__(self, run: xr.Dataset) -> None:
        self._run = run

    @property
    def theta(self) -> Parameters:
        """The parameters by name, `run.sdeflow.theta["net.0.weight"]`; see `Parameters`."""
        return Parameters(self._run)

    def rates(self) -> Decay:
        """How fast theta goes to its limit, per step, with its interval (`sdeflow.analysis.rates.decay`)."""
        from sdeflow.analysis.rates import decay

        return decay(self._run)

    def free_energy(
        self, model: Model | None = None, estimator: Literal["gaussian", "knn"] = "gaussian"
    ) -> xr.DataArray:
        """E at each snapshot, in nats, with its standard error as a coordinate.

        model   of the run (default: that of its configuration, which a run from the command line keeps)

        Raises SdeflowError for a run from Python without a model, and as
        `sdeflow.analysis.free_energy.energy_along`: all data must be saved.
        """
        from sdeflow.analysis.free_energy import energy_along

        return energy_along(self._run, self._model() if model is None else model, estimator)

    def balance(self, system: BlockSystem | None = None, *, windows: int = 4) -> xr.Dataset:
        """Whether work and dissipation agree, and particles are at rest under their scores, in windows of the
        run (`sdeflow.analysis.balance.balance`); `sdeflow.analysis.balance.warnings` puts it in words.

        system   of the run (default: that of its configuration, which a run from the command line keeps)

        Raises SdeflowError for a run from Python without a system, and as that function.
        """
        from sdeflow.analysis.balance import balance

        return balance(self._run, system, windows=windows)

    def plot(self, data: Sequence[int] | None = None) -> Figure:
        """Parameters, loss, energies, forces and particles against steps: a matplotlib figure, as of
        `sdeflow plot`.

        data   whose particles are drawn (default: three of those that were saved)

        Raises SdeflowError for data whose particles were not saved, and where there is nothing to draw.
        """
        from sdeflow.analysis.course import figure

        return figure(self._run, data)

    def to_arviz(self) -> Any:
        """An arviz.InferenceData whose chains are the replicas and whose draws are the snapshots.

        Its posterior has the parameters by name and the particles that were saved, its sample_stats the loss,
        energies, and norms of momenta and forces. They are draws of a law where noise moves them, once the
        run has come to it: `run.isel(time=slice(100, None)).sdeflow.to_arviz()` leaves the first out.

        Raises SdeflowError where arviz is not installed, and where parameters were not saved whole.
        """
        from sdeflow.analysis.distances import optional

        arviz = optional("arviz", "'arviz<1'")
        run = self._run if "replica" in self._run.dims else self._run.expand_dims("replica")
        particles = {name: run[name] for name in ("X", "Z") if name in run}
        posterior = xr.Dataset({**Accessor(run).theta, **particles}, attrs=run.attrs)
        stats = run[[name for name, v in run.data_vars.items() if {*v.dims} == {"time", "replica"}]]
        groups = {
            name: group.drop_vars(("time", "replica"), errors="ignore")
            .rename(time="draw", replica="chain")
            .transpose("chain", "draw", ...)
            for name, group in (("posterior", posterior), ("sample_stats", stats))
        }
        return arviz.InferenceData(**groups)

    def _model(self) -> Model:
        from sdeflow.analysis.snapshots import system_of

        if not self._run.attrs.get("config", ""):
            raise SdeflowError("a run from Python does not keep its model: give it, free_energy(model)")
        forces = system_of(self._run).model_forces
        assert forces is not None
        return forces.model


class RunFolder(BackendEntrypoint):
    """Opens a run folder as `sdeflow.open_run` does: `xr.open_dataset("runs/toy-baoab-s0")`."""

    description = "Open run folders of sdeflow"
    url = ""

    def open_dataset(self, filename_or_obj: Any, *, drop_variables: Any = None) -> xr.Dataset:
        from sdeflow.trajectory.opening import open_run

        return open_run(filename_or_obj).drop_vars(drop_variables or ())

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        from sdeflow.trajectory.layout import CHECKPOINT, TRAJECTORY

        if not isinstance(filename_or_obj, str | Path):
            return False
        return any((Path(filename_or_obj) / name).is_file() for name in (TRAJECTORY, CHECKPOINT))

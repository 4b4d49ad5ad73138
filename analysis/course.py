"""The course of one run: its series against steps, and the particles of some of its data, a panel each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from sdeflow.analysis.curves import Picture, curve, open_frame
from sdeflow.errors import SdeflowError
from sdeflow.state import LONG_NAMES, PARAMETERS, reserved

if TYPE_CHECKING:
    from matplotlib.axes import Axes
COORDINATES, DATA, PARTICLES, POINTS = 6, 3, 50, 500
"""The most parameters that are drawn one by one, else their norm is; data where none are named, particles of
each, and snapshots, spread evenly."""

BLOCKS = {"kinetic energy": "kinetic_", "energy U": "energy_", "force": "force_"}
NUMBERS = {"step h": "h_", "inverse mass": "eta_", "friction": "gamma_", "temperature": "temperature_"}
"""What the names of series of each block begin with, by title; numbers are drawn where they change."""


class Plain(LogFormatter):
    """On a log axis 20 and 0.2 where it would be a factor and a power of ten."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


class Panel(NamedTuple):
    """What is above it, and what draws it."""

    title: str
    draw: Callable[[Axes], None]


def series(run: xr.Dataset) -> list[Panel]:
    """Parameters, or their norm; the loss, of held-out data too; energies and norms of forces of the blocks,
    and their numbers where these change; what the model observes."""
    if "step" not in run.coords:
        return []
    lines = {
        str(name): values
        for name, values in run.data_vars.items()
        if "time" in values.dims and {*values.dims} <= {"time", "replica"}
    }
    of_data = (("training", "loss"), ("held out", "held_out_loss"))
    found = [("loss", {label: lines[name] for label, name in of_data if name in lines})]
    found += [(name.replace("_", " "), {"": v}) for name, v in lines.items() if not reserved(name)]
    for title, prefix in (BLOCKS | NUMBERS).items():
        of = {name.removeprefix(prefix): v for name, v in lines.items() if name.startswith(prefix)}
        changes = (bool((v.max("time") > 1.01 * v.min("time")).any()) for v in of.values())
        if title in BLOCKS or any(changes):
            found.append((title, of))
    parameters = [Panel(title, partial(_curves, of, False)) for title, of in _parameters(run)]
    return [*parameters, *(Panel(title, partial(_curves, of, True)) for title, of in found if of)]


def clouds(run: xr.Dataset, data: Sequence[int] | None = None) -> list[Panel]:
    """The first coordinate of particles, of data by index (default: DATA of those saved) and of a prior's.

    Raises SdeflowError for data whose particles were not saved.
    """
    return [Panel(title, partial(_cloud, of)) for title, of in _clouds(run, data)]


def figure(run: xr.Dataset, data: Sequence[int] | None = None) -> Figure:
    """All of it in one figure; raises SdeflowError as `clouds`, and where there is nothing to draw."""
    panels = [*series(run), *clouds(run, data)]
    if not panels:
        raise SdeflowError("there is nothing to draw: the trajectory of a run was expected")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    drawn = Picture(figsize=(3.5 * columns, 2.8 * rows), layout="constrained")
    axes = drawn.subplots(rows, columns, squeeze=False).reshape(-1)
    for panel, axis in zip(panels, axes, strict=False):
        _on(axis, panel)
    for axis in axes[len(panels) :]:
        axis.remove()
    return drawn


def figures(panels: Sequence[Panel]) -> list[Figure]:
    """A figure a panel, which a page can put one below the other."""
    found = [Figure(figsize=(3.5, 2.8), layout="constrained") for _ in panels]
    for panel, one in zip(panels, found, strict=True):
        _on(one.subplots(), panel)
    return found


def _on(axis: Axes, panel: Panel) -> None:
    panel.draw(axis)
    for line in axis.get_lines():
        if np.size(line.get_xdata()) == 1:  # the start, of which a line shows nothing
            line.set_marker(".")
    axis.set_title(panel.title, fontsize="medium")
    axis.set_xlabel("steps")
    open_frame(axis)


def _parameters(run: xr.Dataset) -> Iterator[tuple[str, Mapping[str, xr.DataArray]]]:
    """Of each kind of parameters the coordinates by name where they are few, else their norm."""
    for name in PARAMETERS:
        norm = f"norm of {name}"
        if f"{name}_norm" in run:
            yield norm, {"": run[f"{name}_norm"]}
        if name in run:
            values, dim = run[name], str(run[name].dims[-1])
            if values.sizes[dim] <= COORDINATES:
                labels = values[dim].to_numpy().astype(str).tolist()
                yield name, {label: values.isel({dim: i}, drop=True) for i, label in enumerate(labels)}
            else:
                with np.errstate(over="ignore", invalid="ignore"):  # where a run diverged
                    yield norm, {"": (_few(values) ** 2).sum(dim) ** 0.5}


def _clouds(run: xr.Dataset, data: Sequence[int] | None) -> Iterator[tuple[str, xr.DataArray]]:
    """(time, particle) of each, of the first replica."""
    if "replica" in run.dims:
        run = run.isel(replica=0)
    if "X" in run and "datum" in run["X"].dims:
        saved = run["datum"].to_numpy().tolist()
        if lacking := [i for i in data or () if i not in saved]:
            raise SdeflowError(
                f"particles of datum {lacking[0]} were not saved, those of {_named(saved)} were: give one of "
                f"these, or run with save.data = {sorted({*saved, *lacking})}"
            )
        evenly = np.unique(np.linspace(0, len(saved) - 1, DATA).round().astype(int))
        for i in [saved[k] for k in evenly] if data is None else data:
            yield f"particles of datum {i}", run["X"].isel(datum=saved.index(i))
    elif "X" in run:
        yield LONG_NAMES["X"], run["X"]
    if "Z" in run:
        yield LONG_NAMES["Z"], run["Z"].rename(prior_particle="particle")


def _named(saved: Sequence[int]) -> str:
    return ", ".join(map(str, saved)) if len(saved) <= 20 else f"{len(saved)} others"


def _curves(of: Mapping[str, xr.DataArray], log: bool, axis: Axes) -> None:
    """Curves by label; with `log` on a log axis where none is negative and they span more than a factor of
    ten."""
    there = {label: values.dropna("time", how="all") for label, values in of.items()}
    known = {label: _few(values).load() for label, values in there.items() if values.size}
    every = np.concatenate([[], *(values.to_numpy().reshape(-1) for values in known.values())])
    every = every[np.isfinite(every)]
    above = every[every > 0]
    log = log and above.size > 0 and every.min() >= 0 and above.max() > 10 * above.min()
    for label, values in known.items():
        curve(axis, values, label, positive=log)
    if log:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(Plain())
        axis.yaxis.set_minor_formatter(Plain())
    if len(known) > 1:
        axis.legend(frameon=False, fontsize="small")


def _cloud(values: xr.DataArray, axis: Axes) -> None:
    """A line a particle, and their mean."""
    some = np.unique(np.linspace(0, values.sizes["particle"] - 1, PARTICLES).round().astype(int))
    first = _few(values.isel(particle=some, latent=0)).transpose("time", "particle")
    steps, lines = first["step"].to_numpy(), first.to_numpy()
    axis.plot(steps, lines, color="C0", lw=0.6, alpha=0.4)
    axis.plot(steps, lines.mean(1), color="C1", lw=1.6)
    if values.sizes["latent"] > 1:
        axis.set_ylabel("first coordinate")


def _few(values: xr.DataArray) -> xr.DataArray:
    """At most POINTS snapshots of it, with the first and the last."""
    at = np.unique(np.linspace(0, values.sizes["time"] - 1, POINTS).round().astype(int))
    return values if len(at) == values.sizes["time"] else values.isel(time=at)

"""One self-contained page of a sweep: how its runs stand, and what they record, coloured by what is swept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sdeflow.analysis.comparison import html
from sdeflow.analysis.course import Plain
from sdeflow.analysis.curves import LARGEST, curve, open_frame
from sdeflow.state import reserved

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

SEED, TRIAL = "seed", "trial"
LINES, WORDS = 200, 8
"""The most lines in a panel, else so many spread evenly; values up to which each has its line in a legend."""

GOOD = ("success", "stopped", "running", "queued", "submitted", "waiting")
"""States of which nothing is to be seen to."""

_CURVES = (
    "Against steps: a line for each point, in the colour of its value, the mean over its seeds and replicas, "
    "whose range is the band. A band ends where the first of its runs does."
)
_LAST = "Of each run at its end, against its value; replicas as points of their own."


class Line(NamedTuple):
    """What is recorded along the runs of a point: where it is by name, and values (time, run)."""

    at: Mapping[str, Any]
    values: xr.DataArray


def page(title: str, runs: xr.Dataset, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The page as HTML text.

    runs         as sdeflow.open_sweep opens them
    head, rows   the columns of the table of runs, and a line for each
    """
    states = Counter(runs.state.to_numpy().astype(str).reshape(-1).tolist())
    told = ", ".join(f"{count:,} {state}" for state, count in states.most_common())
    column = list(head).index("state")
    table = html.table(
        [dict(zip(head, row, strict=True)) for row in rows], bad=[row[column] not in GOOD for row in rows]
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=sub>{escape(str(runs.attrs.get('title', '')))}</p>",
        html.section("Runs", table, f"{runs.state.size:,} runs: {told}"),
    ]
    names, keys = observables(runs), swept(runs)
    for name in names:
        found = lines(runs, name)
        parts.append(_section(_words(name), [_figure(name, key, found) for key in keys or [""]], _CURVES))
    parts.append(_section("At the end", _last(runs, names, keys), _LAST))
    attrs = runs.attrs | {"system": ""} | ({"seed": ""} if SEED in runs.dims else {})  # of one run
    return html.document(title, [*parts, html.provenance(attrs)])


def _section(title: str, figures: Sequence[Figure], caption: str) -> str:
    """The figures side by side, one alone no larger than they are; '' where there are none."""
    shown, size = html.panels(figures), "small" if len(figures) == 1 else "wide"
    return html.section(escape(title), shown, caption, size) if figures else ""


def swept(runs: xr.Dataset) -> list[str]:
    """What curves are coloured by: the keys, but for the seed."""
    dims = runs.state.dims
    if dims == (TRIAL,):
        return [str(n) for n, c in runs.coords.items() if c.dims == (TRIAL,) and n != TRIAL]
    return [str(name) for name in dims if name != SEED]


def observables(runs: xr.Dataset) -> list[str]:
    """The losses, and what the model observes."""
    along = _along(runs)
    allowed = {*runs.state.dims, along, "replica"}
    return [
        str(name)
        for name, values in runs.data_vars.items()
        if {along} <= {*values.dims} <= allowed
        and (name in ("loss", "held_out_loss") or not reserved(str(name)))
    ]


def lines(runs: xr.Dataset, name: str) -> list[Line]:
    """Of each point of which a run has begun what it records; its seeds stay together."""
    along = _along(runs)
    steps = runs.step.max([dim for dim in runs.step.dims if dim != along]).to_numpy()
    values = runs[name].transpose(..., along, *(dim for dim in (SEED, "replica") if dim in runs[name].dims))
    dims = [str(dim) for dim in runs.state.dims if dim != SEED]
    every = [*product(*(range(runs.sizes[dim]) for dim in dims))]
    found = []
    for i in np.unique(np.linspace(0, len(every) - 1, LINES).round().astype(int)):
        at = dict(zip(dims, every[i], strict=True))
        table = values.isel(at).to_numpy().astype(np.float64).reshape(len(steps), -1)
        table = table[:, ~np.isnan(table).all(0)]
        known = ~np.isnan(table).all(1)
        if known.any():
            coords = {"step": ("time", steps[known])}
            point = runs.isel(at)
            labels = {key: point[key].item() for key in swept(runs)}
            found.append(Line(labels, xr.DataArray(table[known], dims=("time", "run"), coords=coords)))
    return found


def _along(runs: xr.Dataset) -> str:
    return "step" if "step" in runs.dims else "time"


class Colours:
    """The colours of values: of numbers by size, by their logarithm where they span a factor of ten."""

    def __init__(self, values: Sequence[Any]) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap, LogNorm, Normalize

        self.values = [*dict.fromkeys(values)]
        self.numbers = all(isinstance(v, int | float) for v in self.values)
        places = self.values if self.numbers else range(len(self.values))
        low, high = (float(end(places, default=0)) for end in (min, max))
        self.log = self.numbers and low > 0 and high >= 10 * low
        self.norm: Normalize = (LogNorm if self.log else Normalize)(low, high)
        shades = colormaps["viridis"](np.linspace(0, 0.9, 256))  # yellow is not seen on white
        self.map: Colormap = ListedColormap(shades)

    def __call__(self, value: Any) -> str:
        from matplotlib.colors import to_hex

        place = value if self.numbers else self.values.index(value)
        return to_hex(self.map(self.norm(place)))


def _figure(name: str, key: str, found: Sequence[Line]) -> Figure:
    """The lines of an observable, in the colours of a key's values."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    panel = figure.subplots()
    colours = Colours([line.at[key] for line in found] if key else [])
    log = _positive(np.concatenate([[], *(line.values.to_numpy().reshape(-1) for line in found)]))
    named = set[Any]()
    for line in found:
        value = line.at.get(key)
        label = "" if value is None or value in named else _label(value)
        colour = colours(value) if key else "C0"
        curve(panel, line.values, label or "_nolegend_", colour=colour, positive=log)
        named.add(value)
    _frame(panel, "steps", name, log)
    if key and len(colours.values) <= WORDS:
        panel.legend(title=key, frameon=False, fontsize="small", title_fontsize="small")
    elif key and colours.numbers:
        figure.colorbar(ScalarMappable(colours.norm, colours.map), ax=panel, label=key)
    return figure


def _last(runs: xr.Dataset, names: Sequence[str], keys: Sequence[str]) -> list[Figure]:
    """What runs record at their ends, or the score of a search, against the values of each key of numbers."""
    from matplotlib.figure import Figure

    ends = {name: lines(runs, name) for name in names}
    if "score" in runs and runs.score.dims == (TRIAL,):
        scores = runs.score.to_numpy()
        at = [{key: runs[key].to_numpy()[i].item() for key in keys} for i in range(scores.size)]
        points = [Line(one, scores[i : i + 1]) for i, one in enumerate(at)]
        ends = {str(runs.score.attrs["long_name"]): points}
    found = []
    for name, of in ends.items():
        for key in keys:
            colours = Colours([line.at[key] for line in of])
            if not colours.numbers or len(colours.values) < 2:
                continue
            figure = Figure(figsize=(4.2, 3.2), layout="constrained")
            panel = figure.subplots()
            every = [(line.at[key], np.asarray(line.values)[-1]) for line in of]
            for value, last in every:
                shown = np.where(np.abs(last) < LARGEST, last, np.nan).reshape(-1)
                panel.plot([value] * shown.size, shown, "o", ms=4, alpha=0.7, color="C0")
            if colours.log:
                panel.set_xscale("log")
                _plain(panel.xaxis)
            _frame(panel, key, name, _positive(np.concatenate([np.reshape(v, -1) for _, v in every])))
            found.append(figure)
    return found


def _frame(panel: Axes, x: str, y: str, log: bool) -> None:
    panel.set(xlabel=x, ylabel=_words(y))
    if log:
        panel.set_yscale("log")
        _plain(panel.yaxis)
    open_frame(panel)


def _plain(axis: Axis) -> None:
    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain())


def _positive(values: NDArray[np.float64]) -> bool:
    """Whether values are better on a log axis: none negative, and they span more than a factor of ten."""
    known = values[np.isfinite(values) & (np.abs(values) < LARGEST)]
    return known.size > 0 and known.min() > 0 and known.max() > 10 * known.min()


def _words(name: str) -> str:
    return name.replace("_", " ")


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

"""The page of a comparison of methods: tables, curves of evidence against evaluations, and samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sdeflow.analysis.comparison import html
from sdeflow.analysis.curves import open_frame
from sdeflow.analysis.image_table.settings import GIVEN, GRID, GRID_SEED, TUNED, Setting
from sdeflow.analysis.image_table.table import Scores, at_equal_time, rows
from sdeflow.analysis.studies.script import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    GIVEN: "Equal evaluations, the same numbers",
    TUNED: "Equal evaluations, each method's own numbers",
}
_CAPTIONS = {
    GIVEN: "All methods have the steps of the problem, and momenta that keep as much of themselves a step.",
    TUNED: (
        f"Of {len(GRID)} pairs of factors on the steps the three with the best evidence of validation data "
        "after a tenth of the budget, and of these the best one after three tenths, by seed "
        f"{GRID_SEED}, which is none of those reported."
    ),
}
_TIME = (
    "The same runs as above, each at the time at which its particles have covered h/gamma (h without a "
    "momentum) as often as those of the slowest have in all."
)
_GAP = (
    "Evidence is a bound from below, in nats; gap is how far it lies below a bound from above on data that "
    "the model draws itself, so by about as much it may be too low."
)
_CURVES = "Mean over seeds; a band, where methods are few, is their range. Evaluations are of a minibatch."

BANDS = 8
"""The most methods whose curves have bands."""
_SAMPLES = "Of the prior, by the last parameters of the first seed, each method's own numbers."


def text(found: Mapping[str, Scores]) -> str:
    """The tables in Markdown."""
    parts = []
    for basis in (GIVEN, TUNED):
        parts.append(f"### {TITLES[basis]}\n\n{markdown(rows(found[basis]))}\n")
    least, lines = at_equal_time(found[GIVEN])
    if lines:
        parts.append(f"### Equal particle time, {least:.3g}\n\n{markdown(lines)}\n")
    return "\n".join(parts)


def page(setting: Setting, found: Mapping[str, Scores], samples: Figure | None) -> str:
    """The page as HTML text."""
    title = f"Methods on {setting.problem}"
    parts = [
        f"<h1>{title}</h1>",
        f"<p class=sub>{len(found[GIVEN])} methods, {setting.seeds} seeds, {setting.budget:,} gradient "
        "evaluations of a minibatch each; ± is a standard error over seeds, in brackets stand 95% intervals "
        "of differences in pairs of seeds</p>",
    ]
    for basis in (TUNED, GIVEN):
        parts.append(
            html.section(TITLES[basis], html.table(rows(found[basis])), f"{_CAPTIONS[basis]} {_GAP}")
        )
        figure = curves(found[basis])
        if figure is not None:
            parts.append(html.section("Along the way", html.svg(figure), _CURVES))
    least, lines = at_equal_time(found[GIVEN])
    if lines:
        parts.append(html.section(f"Equal particle time, {least:.3g}", html.table(lines), _TIME))
    if samples is not None:
        parts.append(html.section("Samples", html.png(samples, "samples of each method"), _SAMPLES))
    return html.document(title, parts)


def curves(found: Scores) -> Figure | None:
    """What is looked at against evaluations, a line a method; what lies far from the ends is cut off.

    Few have the range of the seeds as a band: of many these would hide the lines.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    panel, ends, measure = figure.subplots(), [], ""
    for number, (label, scores) in enumerate(found.items()):
        if "course" not in scores:
            continue
        values, measure = scores.course.transpose("moment", "seed").to_numpy(), scores.course.attrs["measure"]
        style, colour = ("-", "--", ":")[number // 10 % 3], f"C{number % 10}"
        x = scores.evaluations.to_numpy()
        panel.plot(x, np.nanmean(values, 1), color=colour, ls=style, lw=1.4, label=label)
        if len(found) <= BANDS:
            panel.fill_between(x, np.nanmin(values, 1), np.nanmax(values, 1), color=colour, alpha=0.15, lw=0)
        ends.append(float(np.nanmean(values[-1])))
    if not ends:
        return None
    high, middle = max(ends), float(np.median(ends))
    if measure == "evidence":
        panel.set_ylim(middle - 2.5 * (high - middle) - 1, high + 0.3 * (high - middle) + 0.5)
    else:
        panel.set_ylim(0, 3 * middle)
    label = "log-evidence, nats a datum" if measure == "evidence" else measure
    panel.set(xlabel="gradient evaluations", ylabel=label)
    open_frame(panel)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def samples(folders: Mapping[str, Path]) -> Figure | None:
    """The samples that the evaluation has left in each run's folder, side by side."""
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    files = {label: folder / "evaluation-samples.png" for label, folder in folders.items()}
    files = {label: path for label, path in files.items() if path.is_file()}
    if not files:
        return None
    columns = min(4, len(files))
    lines = -(-len(files) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.8 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    for panel in panels:
        panel.set_axis_off()
    for panel, (label, path) in zip(panels, files.items(), strict=False):
        panel.imshow(imread(path), interpolation="nearest")
        panel.set_title(label, fontsize="small")
    return figure


def as_dataset(found: Mapping[str, Scores]) -> xr.Dataset:
    """All values in one, along basis, method and seed."""
    whole = []
    for basis, scores in found.items():
        each = [s[["value"]].expand_dims(method=[label]) for label, s in scores.items() if "value" in s]
        for one in each:
            one.attrs = {}
        whole.append(xr.concat(each, "method", join="outer").expand_dims(basis=[basis]))
    return xr.concat(whole, "basis", join="outer")

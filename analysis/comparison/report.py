"""One self-contained page that compares runs: curves, rates against theory, a table, where it all comes from.

Figures are SVG inside the page; nothing is fetched from anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from sdeflow.analysis.comparison import html
from sdeflow.analysis.comparison.balances import Balance, section
from sdeflow.analysis.comparison.entries import Entry, Row, scored
from sdeflow.analysis.curves import curve, open_frame
from sdeflow.analysis.scores import OWN
from sdeflow.terminal import duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = ("steps", "gradient evaluations", "seconds")


def page(
    title: str,
    entries: Sequence[Entry],
    rows: Sequence[Row],
    energies: Mapping[str, xr.DataArray],
    balances: Mapping[str, Balance | None] = MappingProxyType({}),
) -> str:
    """The page as HTML text."""
    shown = [entry for entry in entries if entry.dataset is not None]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=sub>{len(entries)} integrators, {_counted(shown, 'replicas')} replicas, "
        f"{_counted(shown, 'steps')} steps</p>",
        html.section("Rates", _table(rows), _RATES),
    ]
    if any(_loss(entry) is not None for entry in shown):
        parts.append(html.section("Loss", html.panels(curves(shown, _loss, "loss")), _LOSS))
    if (scores := scored(entries)) is not None:
        parts.append(html.section("Scores", _scores(scores), _SCORES))
    if energies:
        parts.append(
            html.section(
                "Free energy above its minimum",
                html.panels(curves(shown, lambda e: energies.get(e.label), "E − E*")),
                _ENERGY,
            )
        )
    if any(row.fitted is not None and np.isfinite(row.predicted) for row in rows):
        parts.append(html.section("Fitted against predicted", html.svg(against(rows)), _AGAINST, "small"))
    parts += [section(balances), _provenance(shown)]
    return html.document(title, parts)


_RATES = (
    "Rates are of the error, per step, in units of 10⁻³: the error falls by exp(−rate) a step, E − E* by its "
    "square. Fitted: the slowest mode of theta's way to its limit; the error holds what replicas and windows "
    "of the fit differ by. Predicted: from the spectrum of the scheme's own step near the equilibrium. "
    "Underdamped: theta turns by a radian or more within an e-fold."
)
_SCORES = (
    "By sdeflow evaluate, of the last parameters where nothing else is said, with standard errors over data "
    "and, in brackets, over chains. An evidence is the mean of log p(y), in nats and from below. A "
    "reconstruction is the mean squared error of a pixel. FID, KID, precision and recall are of images that "
    "the model makes, so many, against real ones; FIDs compare at one number of images, and none below "
    "10,000 is on the common scale."
)
NEUTRAL = 1e-9
"""A rate a step that is rounding: where a minimum has no curvature there is none."""

_LOSS = "Mean over replicas; the band is their range."
_ENERGY = "From the particles' moments; below the noise of the estimate the curve means nothing."
_AGAINST = "One point a scheme, with its 95% interval; on the line theory and measurement agree."


def curves(
    entries: Sequence[Entry], series: Callable[[Entry], xr.DataArray | None], label: str
) -> list[Figure]:
    """The series of each entry against steps, gradient evaluations and seconds, where it is positive.

    A figure each, on one scale, so that a narrow page can put them one below the other.
    """
    from matplotlib.figure import Figure

    figures = [Figure(figsize=(3.5, 3.2), layout="constrained") for _ in AXES]
    panels = [figure.subplots() for figure in figures]
    for number, entry in enumerate(entries):
        values = series(entry)
        if values is None or values.sizes["time"] < 2:
            continue
        scales = (1.0, float(entry.evaluations), entry.seconds_a_step)
        for panel, scale in zip(panels, scales, strict=True):
            later = values.isel(time=slice(1, None))  # at no cost the log axes have no place
            curve(panel, later, entry.label, colour=f"C{number}", scale=scale, positive=True)
    for panel, name in zip(panels, AXES, strict=True):
        panel.set(xlabel=name, ylabel=label, yscale="log", xscale="linear" if name == "steps" else "log")
        open_frame(panel)
    for panel in panels:
        panel.set_ylim(panels[0].get_ylim())
    if panels[0].get_lines():
        panels[0].legend(frameon=False, fontsize="small")
    return figures


def against(rows: Sequence[Row]) -> Figure:
    """Fitted rates against predicted ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    panel = figure.subplots()
    known = [row for row in rows if row.fitted is not None and np.isfinite(row.predicted)]
    for number, row in enumerate(known):
        assert row.fitted is not None
        reach = 0.0 if np.isnan(row.fitted.error) else row.fitted.high - row.fitted.mean
        panel.errorbar(
            1e3 * row.predicted,
            1e3 * row.fitted.mean,
            1e3 * reach,
            fmt="o",
            color=f"C{number}",
            capsize=3,
            label=row.label,
        )
    low, high = panel.get_xlim()
    panel.plot([low, high], [low, high], color="0.6", lw=1, zorder=0)
    panel.set(xlabel="predicted rate, 10⁻³ a step", ylabel="fitted rate, 10⁻³ a step")
    open_frame(panel, grid=False)
    panel.legend(frameon=False, fontsize="small")
    return figure


def _loss(entry: Entry) -> xr.DataArray | None:
    return None if entry.dataset is None or "loss" not in entry.dataset else entry.dataset["loss"]


def plain_cells(row: Row) -> list[str]:
    """A row for a terminal: label, ending, fitted and predicted rate, loss."""
    fitted = "" if row.fitted is None else _pm(1e3 * row.fitted.mean, 1e3 * row.fitted.error)
    loss = "" if row.loss is None else _pm(row.loss.mean, row.loss.error)
    return [row.label, row.retcode, fitted, _rate(row.predicted), loss]


def notes(rows: Sequence[Row]) -> dict[str, list[str]]:
    """What is to say of rows, each with the labels of those that it is said of."""
    said: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            said.setdefault(row.note, []).append(row.label)
    return said


HEAD = (
    "integrator",
    "ended",
    "fitted",
    "predicted",
    "regime",
    "turns a 1000 steps",
    "fitted per gradient",
    "e-folds a second",
    "loss",
)


def _table(rows: Sequence[Row]) -> str:
    """A row an integrator, and what is to say of it below; on a narrow page each becomes a list."""
    lines = []
    for row in rows:
        turns = None if row.frequency is None else 1e3 * row.frequency.mean / (2 * np.pi)
        label, ended, fitted, predicted, loss = plain_cells(row)
        cells = [
            ended,
            fitted,
            predicted,
            row.regime,
            "" if turns is None else f"{turns:.3g}",
            *("" if np.isnan(rate) else shown for rate, shown in _per(row)),
            loss,
        ]
        bad = "" if row.retcode in ("success", "stopped") else "bad"
        named = zip(HEAD[1:], cells, strict=True)
        shown = "".join(f'<td data-label="{name}"{html.unbroken(cell)}>{cell}</td>' for name, cell in named)
        lines.append(f'<tr class="{bad}"><th scope=row>{escape(label)}</th>{shown}</tr>')
        if row.note:
            lines.append(f'<tr class="note {bad}"><td colspan={len(HEAD)}>{escape(row.note)}</td></tr>')
    head = "".join(f"<th scope=col>{name}</th>" for name in HEAD)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _scores(scores: xr.Dataset) -> str:
    """A row an integrator, and one for the average of its parameters; a column a score."""
    names = ["data", *map(escape, scores.score_title.to_numpy().tolist())]
    lines = []
    for label in scores.integrator.to_numpy().tolist():
        for parameters in scores.parameters.to_numpy().tolist():
            one = scores.sel(integrator=label, parameters=parameters)
            if bool(one.score_value.isnull().all()):
                continue
            cells = [f"{int(one.score_data)}", *map(score_cell, *score_numbers(one, "score_"))]
            row = "".join(
                f'<td data-label="{escape(n)}">{cell}</td>' for n, cell in zip(names, cells, strict=True)
            )
            prior = str(one.score_prior.item())
            of = label if parameters == "last" else f"{label}, {parameters} of the parameters"
            of += "" if prior == OWN else f", prior {prior}"
            lines.append(f"<tr><th scope=row>{escape(of)}</th>{row}</tr>")
    head = "".join(f"<th scope=col>{name}</th>" for name in ["integrator", *names])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def score_numbers(scores: xr.Dataset, prefix: str = "") -> list[list[float]]:
    """Of all scores the values, and the errors over data and over chains."""
    keys = ("value", "error_over_data", "error_over_chains")
    return [scores[prefix + key].to_numpy().tolist() for key in keys]


def score_cell(value: float, over_data: float, over_chains: float) -> str:
    """A score with its errors over data and, in brackets, over chains; '' where there is none."""
    shown, *errors = to_digits(value, over_data, over_chains)
    told = [f"± {errors[0]}" * bool(errors[0]), f"(± {errors[1]})" * bool(errors[1])]
    return "" if np.isnan(value) else " ".join(filter(None, [shown, *told]))


def _per(row: Row) -> list[tuple[float, str]]:
    """The fitted rate per gradient evaluation and per second, as shown."""
    evaluation = row.fitted_per(1 / max(1, row.evaluations))[0]
    second = row.fitted_per(1 / row.seconds_a_step)[0]
    return [(evaluation, f"{1e3 * evaluation:.3f}"), (second, f"{second:.2f}")]


def _rate(rate: float) -> str:
    if np.isnan(rate):
        return ""
    if abs(rate) < NEUTRAL:
        return "none: a minimum without curvature"
    return f"{1e3 * rate:.3f}" if rate > 0 else f"unstable, grows by {1e3 * -rate:.3g}"


def _pm(value: float, error: float) -> str:
    """A value to the digits that its error allows."""
    if np.isnan(error) or error == 0:
        return f"{value:.5g}"
    digits = int(np.clip(1 - np.floor(np.log10(error)), 0, 8))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def to_digits(value: float, *errors: float) -> list[str]:
    """A value and its errors to the digits that the least error allows; an error that is NaN as ''."""
    known = [error for error in errors if error > 0]
    if not known:
        return [f"{value:.5g}", *("" for _ in errors)]
    digits = int(np.clip(1 - np.floor(np.log10(min(known))), 0, 8))
    return [f"{value:.{digits}f}", *(f"{error:.{digits}f}" if error > 0 else "" for error in errors)]


def _provenance(entries: Sequence[Entry]) -> str:
    """What made the numbers, from the attributes of the runs."""
    every = [dict(entry.dataset.attrs) for entry in entries if entry.dataset is not None]
    if not every:
        return ""
    more = [("time taken", duration(sum(float(attrs["seconds"]) for attrs in every)))]
    more += [("warning", warning) for warning in sorted({str(attrs["warnings"]) for attrs in every} - {""})]
    return html.provenance(every[0], more)


def _counted(entries: Sequence[Entry], name: str) -> str:
    """A number that the runs have, or those that they have."""
    values = {int(entry.dataset.attrs[name]) for entry in entries if entry.dataset is not None}
    return " or ".join(f"{value:,}" for value in sorted(values)) or "no"

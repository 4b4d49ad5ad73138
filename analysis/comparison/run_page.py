"""One self-contained page of one run: its course, particles, balance, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import xarray as xr

from sdeflow.analysis import course
from sdeflow.analysis.comparison import html
from sdeflow.analysis.comparison.balances import balance_of, section

RUNNING = "running"
"""How a run has ended that has not."""

_SERIES = "Against steps; where there are replicas their mean, and as a band their range."
_CLOUDS = (
    "The first coordinate against steps, of the first replica: a line a particle of those that were saved, "
    "the thick one their mean."
)


def page(run: xr.Dataset, data: Sequence[int] | None = None, refresh: int = 0) -> str:
    """The page as HTML text; a browser loads it anew after `refresh` seconds, never at 0.

    Raises SdeflowError as `sdeflow.analysis.course.clouds`.
    """
    attrs = run.attrs
    title, ended = str(attrs.get("title", "") or "A run"), str(attrs.get("retcode", ""))
    taken, steps = (int(attrs.get(name, 0)) for name in ("steps_taken", "steps"))
    told = [f"step {taken:,} of {steps:,}", ended, str(attrs.get("integrator", ""))]
    told += [f"this page looks again every {refresh} s"] * bool(refresh)
    bad = "" if ended in ("success", RUNNING) else f"<p class=sub>{escape(str(attrs.get('message')))}</p>"
    parts = [f"<h1>{escape(title)}</h1>", f"<p class=sub>{escape(', '.join(filter(None, told)))}</p>", bad]
    for name, panels, caption in (
        ("Course", course.series(run), _SERIES),
        ("Particles", course.clouds(run, data), _CLOUDS),
    ):
        if panels:
            parts.append(html.section(name, html.panels(course.figures(panels)), caption))
    if not refresh:  # of a run that goes on it would be computed anew with each look
        parts.append(section({"": balance_of(run)}))
    return html.document(title, [*parts, html.provenance(attrs)], refresh)

"""The command that draws a run: plot, into a figure or a page, or served while the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdeflow.cli import app as cli
from sdeflow.cli.app import app, names_in
from sdeflow.errors import SdeflowError
from sdeflow.terminal import shown

if TYPE_CHECKING:
    from xarray import Dataset

PORT = 8765
"""Where --follow serves the page of a run."""


@app.command()
def plot(
    folder: cli.RunArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="PNG, SVG or PDF, or a page (default: RUN/plot.png or RUN/plot.html)."),
    ] = None,
    page: Annotated[bool, typer.Option("--html", help="A page of one file in place of a figure.")] = False,
    data: Annotated[
        str | None, typer.Option(help="Whose particles are drawn: indices, separated by commas.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Serve the page on this machine, drawn anew as the run goes on."),
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help=f"Of --follow (default: {PORT}); 0 for a free one.")
    ] = None,
) -> None:
    """Draw a run, also while it goes on: parameters, losses, energies, forces, and particles of some data."""
    from sdeflow.trajectory.opening import open_run

    some = None if data is None else _indices(data)
    if follow:
        if out is not None or page:
            raise SdeflowError("--follow serves a page and writes no file: leave out --out and --html")
        from sdeflow.cli.following import Followed, serve

        serve(Followed(folder, some), PORT if port is None else port)
        return
    if port is not None:
        raise SdeflowError("--port is that of --follow: give --follow too")
    target = out or folder / ("plot.html" if page else "plot.png")
    with open_run(folder) as run:
        drawn = _page(run, some) if page else _figure(run, some, target)
    from sdeflow.trajectory.durable import write

    write(target, drawn)
    typer.echo(shown(str(target)))


def _page(run: Dataset, data: Sequence[int] | None) -> bytes:
    from sdeflow.analysis.comparison.run_page import page

    return page(run, data).encode()


def _figure(run: Dataset, data: Sequence[int] | None, target: Path) -> bytes:
    """The file of a figure, of the kind that its name says."""
    import io

    from sdeflow.analysis.course import figure

    drawn, kind = figure(run, data), target.suffix.removeprefix(".").lower()
    known = drawn.canvas.get_supported_filetypes()
    if kind not in known:
        raise SdeflowError(f"{target} does not end as a figure does: give .png, .svg or .pdf, or --html")
    buffer = io.BytesIO()
    drawn.savefig(buffer, format=kind, dpi=150)
    return buffer.getvalue()


def _indices(listed: str) -> list[int]:
    try:
        return [int(index) for index in names_in(listed)]
    except ValueError:
        raise SdeflowError(f"--data takes indices separated by commas, as 0,5,9; given '{listed}'") from None

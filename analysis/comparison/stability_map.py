"""Which schemes are stable on a problem, how fast, how biased, and how that depends on friction and step.

The table and the picture of `sdeflow stability`; the numbers are those of sdeflow.analysis.stability
and sdeflow.analysis.stationary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdeflow.analysis.modes import in_modes
from sdeflow.analysis.stability import (
    continuous_contraction,
    contraction,
    linearised,
    stability_limit,
    with_friction,
)
from sdeflow.analysis.stationary import bias
from sdeflow.config.catalogue import integrator_named
from sdeflow.config.run import Run
from sdeflow.state import State
from sdeflow.system.integrator import Integrator, why_not
from sdeflow.system.system import BlockSystem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRICTIONS = np.geomspace(1 / 16, 16, 25)
STEPS = np.geomspace(1 / 16, 4, 25)


class Row(NamedTuple):
    """What a scheme does: contraction a step, a gradient evaluation; the limit on all steps; or why not.

    bias   relative error of the particles' variance, where it is largest
    """

    integrator: str
    contraction: float
    evaluations: int
    limit: float
    bias: float
    refusal: str = ""

    @property
    def per_evaluation(self) -> float:
        return float(self.contraction ** (1 / self.evaluations))


class Map(NamedTuple):
    """Contraction per gradient evaluation, [friction, step], at factors on gamma and on all steps."""

    integrator: str
    contraction: NDArray[np.float64]


Linear = tuple[BlockSystem, State]
"""A system, and where it is linearised."""


def rows(
    system: BlockSystem, z: State, integrators: Sequence[str], near: Linear | None = None
) -> Iterator[Row]:
    """One row a scheme, in the order given.

    near   what is measured, which stands for the system near z (default: that itself)
    """
    linear, z = near or (system, z)
    for name in integrators:
        scheme = integrator_named(name)
        if refusal := why_not(scheme, system):
            yield Row(name, np.nan, scheme.evaluations, np.nan, np.nan, refusal)
        else:
            scheme = scheme.fitted(system)
            rho, limit = contraction(linear, scheme, z), stability_limit(linear, scheme, z)
            yield Row(name, rho, scheme.evaluations, limit, bias(linear, scheme, z))


def friction_step_map(
    system: BlockSystem, z: State, scheme: Integrator, tick: Callable[[], None] = lambda: None
) -> Map:
    """The scheme's contraction over the grid FRICTIONS x STEPS."""
    values = np.empty((len(FRICTIONS), len(STEPS)))
    for i, gamma in enumerate(FRICTIONS):
        damped = with_friction(system, float(gamma))
        for j, step in enumerate(STEPS):
            values[i, j] = contraction(damped, scheme, z, float(step)) ** (1 / scheme.evaluations)
            tick()
    return Map(scheme.name, values)


def draw(maps: Sequence[Map], title: str) -> Figure:
    """One panel a scheme; colour is e-folds of the error in 1000 gradient evaluations, white is unstable."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    columns = min(3, len(maps))
    lines = -(-len(maps) // columns)
    figure = Figure(figsize=(1.2 + 3.1 * columns, 0.9 + 2.8 * lines), layout="constrained")
    panels = np.atleast_1d(figure.subplots(lines, columns, sharex=True, sharey=True)).ravel()
    rates = [np.where(m.contraction < 1, -1000 * np.log(m.contraction), np.nan) for m in maps]
    top = max((float(np.nanmax(r)) for r in rates if not np.isnan(r).all()), default=1.0)
    mesh = None
    for panel, m, rate in zip(panels, maps, rates, strict=False):
        shade = PowerNorm(0.5, vmin=0, vmax=top)
        mesh = panel.pcolormesh(STEPS, FRICTIONS, rate, norm=shade, cmap="viridis", rasterized=True)
        panel.contour(STEPS, FRICTIONS, m.contraction, levels=[1.0], colors="crimson", linewidths=1.2)
        panel.plot(1, 1, "o", mfc="white", mec="black", ms=6, mew=1)
        best = np.unravel_index(np.nanargmax(rate), rate.shape) if not np.isnan(rate).all() else None
        if best is not None:
            panel.plot(STEPS[best[1]], FRICTIONS[best[0]], "*", color="white", ms=9, mec="black", mew=0.5)
        panel.set(xscale="log", yscale="log", title=m.integrator)
    for panel in panels[len(maps) :]:
        panel.set_visible(False)
    figure.supxlabel("factor on all steps h")
    figure.supylabel("factor on all frictions γ")
    figure.suptitle(title, fontsize="medium")
    if mesh is not None:
        figure.colorbar(
            mesh, ax=list(panels[: len(maps)]), label="e-folds of the error in 1000 gradient evaluations"
        )
    return figure


def show(run: Run, integrators: Sequence[str], *, at: Path | None, out: Path | None, title: str) -> None:
    """Prints the table and, given `out`, writes the picture."""
    from sdeflow.terminal import counted, shown, table
    from sdeflow.terminal import out as console

    found = []
    with counted("scheme", len(integrators)) as tick:
        system, z = linearised(run, at)
        near = in_modes(system, z) if at is None else (system, z)
        for row in rows(system, z, integrators, near):
            found.append(row)
            tick()
    lines = [[row.integrator, *_cells(row)] for row in found]
    continuous = continuous_contraction(*near)
    lines.append(["continuous dynamics", f"{continuous:.6f}", _folds(continuous), "", "", ""])
    columns = (
        "integrator", "contraction a step", "steps an e-fold", "per gradient", "stable up to h times", "bias"
    )  # fmt: skip
    table(title, columns, lines)
    for row in found:
        if row.refusal:
            console.print(shown(f"{row.integrator} refused: {row.refusal}\n"), markup=False)
    if out is None:
        return
    able = [integrator_named(row.integrator).fitted(system) for row in found if not row.refusal]
    with counted("point", len(able) * len(FRICTIONS) * len(STEPS)) as tick:
        maps = [friction_step_map(*near, scheme, tick) for scheme in able]
    draw(maps, title).savefig(out)
    marks = "circle: as given, star: fastest, red line: the edge of stability"
    console.print(shown(f"{out}    {marks}"), markup=False, soft_wrap=True)


def _cells(row: Row) -> list[str]:
    if row.refusal:
        return ["refused", "", "", "", ""]
    limit = "any that was tried" if np.isinf(row.limit) else f"{row.limit:.4g}"
    each, per = (f"{v:.6f}" if v < 1000 else f"{v:.3g}" for v in (row.contraction, row.per_evaluation))
    return [each, _folds(row.contraction), per, limit, _percent(row.bias)]


def _folds(contraction: float) -> str:
    return f"{-1 / np.log(contraction):,.1f}" if contraction < 1 else "never"


def _percent(error: float) -> str:
    """A relative error; of rounding and of the equilibrium's own error 'none' is left."""
    if np.isnan(error):
        return ""
    if np.isinf(error):
        return "unstable"
    return "none" if abs(error) < 1e-6 else f"{100 * error:+.2g}%"

"""Pictures of a run's scores: samples beside data, reconstructions, particles and evidence along the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.analysis.curves import open_frame
from sdeflow.analysis.pictures import grid, write_planar
from sdeflow.analysis.scores import Subject
from sdeflow.engine.minibatch import evenly
from sdeflow.errors import attempt
from sdeflow.model.rows import one_tensor
from sdeflow.trajectory.opening import open_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLES, RECONSTRUCTIONS = "evaluation-samples.png", "evaluation-reconstructions.png"
PARTICLES, ALONG = "evaluation-particles.png", "evaluation-along.png"

IMAGES, RECONSTRUCTED = 36, 8
COORDINATES, POINTS, FEW = 6, 1000, 8
"""Of other observations: the coordinates and the most points that are drawn; data below which none are."""


def draw(run: Path, subject: Subject, scores: xr.Dataset) -> list[Path]:
    """Writes into a run folder what there is to see of its scores, in place of what was; gives the files.

    subject   that was scored with the last parameters
    scores    as in evaluation.nc
    """
    for name in (SAMPLES, RECONSTRUCTIONS, PARTICLES, ALONG):
        (run / name).unlink(missing_ok=True)
    drawn = [
        _samples(run / SAMPLES, subject),
        _reconstructions(run / RECONSTRUCTIONS, subject),
        _particles(run / PARTICLES, run, subject.options.replica),
        _along(run / ALONG, scores) if "evidence_along" in scores else None,
    ]
    return [path for path in drawn if path is not None]


def _samples(path: Path, subject: Subject) -> Path | None:
    """Images of latents of the prior, or observations, beside as many data."""
    model, found, g = subject.stated, subject.found, subject.generator("picture")
    images = model.image_shape is not None and subject.decodes
    observed = model.sample_data is not None and one_tensor(model.data) and len(subject.y) >= FEW
    if not images and not observed:
        return None
    n = IMAGES if images else POINTS
    data = subject.y[evenly(len(subject.y), n)].cpu()
    with torch.no_grad():
        latents = subject.prior_draws(n, g).to(found.state["X"])
        if images:
            drawn = model.decode(found.theta, latents)
        else:
            name = f"{type(found.model).__name__}.sample_data"
            drawn = attempt(name, model.sample_data, found.theta, latents, g)
    if images:
        figure, panels = _figure(1, 2, 3.4, 3.7)
        for panel, title, shown in zip(panels, (subject.of, "samples"), (data, drawn), strict=True):
            _images(panel, shown, model.image_shape, columns=round(IMAGES**0.5))
            panel.set_title(title, fontsize="medium")
        figure.savefig(path, dpi=150)
        return path
    y, other = (values.flatten(1).double().numpy() for values in (data, drawn))
    if y.shape[1] == 2:
        write_planar(path, y, other)
    else:
        _histograms(path, y, other, subject.of)
    return path


def _histograms(path: Path, y: NDArray[np.floating], drawn: NDArray[np.floating], title: str) -> None:
    """The first coordinates of data and of samples, a panel each."""
    count = min(COORDINATES, y.shape[1])
    columns = min(3, count)
    figure, panels = _figure(-(-count // columns), columns, 2.6, 2.3)
    for i, panel in enumerate(panels):
        if i >= count:
            panel.axis("off")
            continue
        both = np.concatenate([y[:, i], drawn[:, i]])
        edges = np.linspace(both.min(), both.max(), 2 + int(min(24, 2 * len(y) ** 0.5))).tolist()
        for values, label in ((y[:, i], title), (drawn[:, i], "samples")):
            panel.hist(values, edges, density=True, histtype="step", label=label)
        panel.set(xlabel=f"coordinate {i}", ylabel="density" if i % columns == 0 else "")
        open_frame(panel)
    panels[0].legend(frameon=False, fontsize="x-small")
    figure.savefig(path, dpi=150)


def _reconstructions(path: Path, subject: Subject) -> Path | None:
    """Of images the original, each particle's and their mean, a column each; else mean against original."""
    if subject.particles is None:
        return None
    model, x = subject.model, subject.particles
    y = subject.y[: len(x)].flatten(1).cpu()
    with torch.no_grad():
        each = model.decode(subject.theta, x.flatten(0, 1)).view(*x.shape[:2], -1).cpu()
    if model.image_shape is None:
        figure, (panel,) = _figure(1, 1, 4, 4)
        ends = [float(y.min()), float(y.max())]
        panel.plot(ends, ends, color="0.6", lw=1)
        panel.scatter(y, each.mean(1), s=4, lw=0, alpha=0.5)
        panel.set(xlabel=f"{subject.of}, all coordinates", ylabel="mean of the particles decoded")
        open_frame(panel)
        figure.savefig(path, dpi=150)
        return path
    count, particles = min(RECONSTRUCTED, len(x)), x.shape[1]
    rows = [y[None, :count], each[:count].mT.movedim(2, 0), each[:count].mean(1)[None]]
    figure, (panel,) = _figure(1, 1, 0.75 * count + 1, 0.75 * (particles + 2))
    _images(panel, torch.cat(rows).flatten(0, 1), model.image_shape, columns=count)
    height = model.image_shape[1] + 1
    labels = [subject.of.removesuffix(" data"), *(f"particle {i + 1}" for i in range(particles)), "mean"]
    panel.set_yticks([height * (row + 0.5) - 1 for row in range(len(labels))], labels, fontsize="small")
    panel.tick_params(left=False)
    figure.savefig(path, dpi=150)
    return path


def _particles(path: Path, run: Path, replica: int) -> Path | None:
    """A coordinate of one datum's particles against steps, and their standard deviation."""
    trajectory = open_run(run)
    if "X" not in trajectory or trajectory.sizes["time"] < 2:
        return None
    x = trajectory["X"].isel(replica=replica) if "replica" in trajectory.dims else trajectory["X"]
    values = x.to_numpy().reshape(*x.shape[:3], -1)  # time, datum, particle, coordinate
    step, datum = trajectory.step.to_numpy(), trajectory.datum.to_numpy()[0]
    several = values.shape[2] > 1
    figure, panels = _figure(1, 1 + several, 3.7, 3)
    panels[0].plot(step, values[:, 0, :, 0], lw=0.8)
    panels[0].set(xlabel="steps", ylabel="coordinate 0 of a particle", title=f"particles of datum {datum}")
    if several:
        deviation = values.std(2, ddof=1).mean(-1)
        panels[1].plot(step, deviation[:, 0], label=f"datum {datum}")
        if values.shape[1] > 1:
            panels[1].plot(step, deviation.mean(1), color="0.3", label=f"mean of {values.shape[1]} data")
        panels[1].set(xlabel="steps", ylabel="standard deviation", title="their spread, mean of coordinates")
        panels[1].set_ylim(bottom=0)
        panels[1].legend(frameon=False, fontsize="small")
    for panel in panels:
        panel.title.set_fontsize("medium")
        open_frame(panel)
    figure.savefig(path, dpi=150)
    return path


def _along(path: Path, scores: xr.Dataset) -> Path:
    """Evidence against gradient evaluations; what lies far below is written at the lower edge."""
    figure, (panel,) = _figure(1, 1, 5, 3.6)
    spent = scores.gradient_evaluations.to_numpy()
    values = scores.evidence_along.to_numpy()
    high = float((values + scores.evidence_along_error_over_chains.to_numpy()).max())
    low = float(values[:, len(spent) // 4 :].min())
    low -= 0.25 * (high - low) + 1e-9
    for name in scores.parameters.to_numpy().tolist():
        one = scores.sel(parameters=name)
        errors = one.evidence_along_error_over_chains
        panel.errorbar(
            spent, one.evidence_along, errors, marker="o", ms=4, lw=1, capsize=3, label=f"{name} parameters"
        )
    for i in np.flatnonzero(values.min(0) < low):
        told = f"↓ −{-values[:, i].min():.0f}"
        at = panel.text(
            spent[i], low + 0.02 * (high - low), told, ha="center", va="bottom", fontsize="x-small"
        )
        at.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    panel.set(xlabel="gradient evaluations", ylabel=f"log-evidence, nats a datum, {scores.attrs['scored']}")
    panel.set_ylim(low, high + 0.08 * (high - low))
    open_frame(panel)
    if scores.sizes["parameters"] > 1:
        panel.legend(frameon=False, fontsize="small", loc="lower right")
    figure.savefig(path, dpi=150)
    return path


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of panels, each of a size in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08)
    figure = Figure(figsize=(width * columns, height * rows), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel().tolist()


def _images(panel: Axes, images: Tensor, shape: tuple[int, int, int] | None, columns: int) -> None:
    """Images [n, pixels] in rows, without a frame."""
    assert shape is not None
    panel.imshow(grid(images.reshape(-1, *shape), columns), interpolation="nearest")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)

"""Pictures of what a model has learned: images side by side, and points in the plane with their prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Points = NDArray[np.floating]


def grid(images: Tensor, columns: int) -> NDArray[np.uint8]:
    """Images [n, 1 or 3, h, w] in [-1, 1] as one picture [H, W, 3], row by row with a line between."""
    n, _, height, width = images.shape
    rows = -(-n // columns)
    picture = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), 255, np.uint8)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(n, 3, height, width)
    for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        picture[top : top + height, left : left + width] = image
    return picture


def write_grid(path: Path, images: Tensor, columns: int) -> None:
    """Writes images [n, 1 or 3, h, w] as a PNG, enlarged to 800 pixels or so."""
    from matplotlib.image import imsave

    picture = grid(images, columns)
    zoom = max(1, 800 // picture.shape[1])
    imsave(path, picture.repeat(zoom, axis=0).repeat(zoom, axis=1))


@dataclass(frozen=True)
class Latents:
    """Latents in the plane: pooled particles of the data, prior particles by title, and the energy.

    energy   U [n] of points [n, 2]
    """

    posterior: Points
    prior: Mapping[str, Points]
    energy: Callable[[Points], Points]


def write_planar(path: Path, data: Points, samples: Points, latents: Latents | None = None) -> None:
    """Draws data and samples of a model, points [n, 2], and the latents behind them where there are any."""
    from matplotlib.figure import Figure

    columns = 2 if latents is None else 4
    rows = 1 if latents is None else 2
    figure = Figure(figsize=(2.6 * columns, 2.75 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    reach = 1.15 * float(np.abs(data).max())
    _scatter(panels[0, 0], "data", data, reach)
    _scatter(panels[0, 1], "samples of the model", samples, reach)
    if latents is not None:
        clouds = [latents.posterior, *latents.prior.values()]
        reach = 1.15 * max(float(np.quantile(np.abs(cloud), 0.999)) for cloud in clouds)
        _scatter(panels[0, 2], "latents: posterior particles", latents.posterior, reach)
        _surface(panels[0, 3], latents.energy, reach)
        panels[0, 3].set_title("learned prior exp(−U)/Z", fontsize="medium")
        for panel, (title, cloud) in zip(panels[1], latents.prior.items(), strict=False):
            _scatter(panel, title, cloud, reach, colour="C1")
        for panel in panels[1, len(latents.prior) :]:
            panel.axis("off")
    figure.savefig(path, dpi=150)


def _scatter(panel: Axes, title: str, points: Points, reach: float, colour: str = "C0") -> None:
    panel.scatter(points[:, 0], points[:, 1], s=3, lw=0, alpha=0.7, color=colour)
    panel.set(title=title, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    panel.title.set_fontsize("medium")
    panel.tick_params(labelsize="x-small")


def _surface(panel: Axes, energy: Callable[[Points], Points], reach: float) -> None:
    """exp(-U) up to a factor, as colour."""
    axis = np.linspace(-reach, reach, 200)
    points = np.stack(np.meshgrid(axis, axis), -1)
    values = energy(points.reshape(-1, 2)).reshape(200, 200)
    panel.imshow(
        np.exp(-(values - values.min())),
        extent=(-reach, reach, -reach, reach),
        origin="lower",
        cmap="viridis",
    )
    panel.tick_params(labelsize="x-small")

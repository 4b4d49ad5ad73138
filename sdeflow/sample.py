"""Pictures of what a run has learned: decoded samples of the prior, and reconstructions of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sdeflow.config import load_config
from sdeflow.errors import RunError, SdeflowError
from sdeflow.folder import CONFIG, FINAL
from sdeflow.noise import generator
from sdeflow.problem import build
from sdeflow.system import BlockSystem

SAMPLES, RECONSTRUCTIONS = "samples.png", "reconstructions.png"


def sample(run: Path, *, n: int = 64, seed: int = 0, replica: int = 0) -> list[Path]:
    """Writes two pictures into a run folder and gives their paths.

    samples.png           n latents drawn from the prior p_theta, decoded
    reconstructions.png   16 data spread evenly, each above the mean of its particles' decoded images

    Raises SdeflowError for a folder that is no run with its configuration, a model without pictures, or
    fewer replicas than asked for; RunError for a state that cannot be read.
    """
    for name in (CONFIG, FINAL):
        if not (run / name).is_file():
            raise SdeflowError(
                f"{run} has no {name}: give the folder of a run that 'sdeflow run' has written"
            )
    if n < 1:
        raise SdeflowError(f"n must be at least 1, given {n}")
    config = load_config(run / CONFIG)
    system = build(config).system
    forces = system.model_forces if isinstance(system, BlockSystem) else None
    shape = None if forces is None else forces.model.image_shape
    if forces is None or shape is None or not (forces.model.decode and forces.model.sample_prior):
        raise SdeflowError(
            f"the model of {run} makes no pictures: it has no decode, sample_prior and image_shape"
        )
    if not 0 <= replica < config.run.replicas:
        raise SdeflowError(f"replica must lie in 0..{config.run.replicas - 1}, given {replica}")
    try:
        state = load_file(run / FINAL)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{run / FINAL} cannot be read: {error}") from error
    if config.run.replicas > 1:
        state = {name: value[replica] for name, value in state.items()}

    model = forces.model.to(state["X"].dtype, torch.device("cpu"))
    theta = {name.removeprefix("theta."): v for name, v in state.items() if name.startswith("theta.")}
    with torch.no_grad():
        latents = model.sample_prior(theta, n, generator(seed, "samples")).to(state["X"].dtype)
        samples = model.decode(theta, latents).reshape(-1, *shape)
        index = torch.linspace(0, forces.data - 1, min(16, forces.data)).round().long()
        particles = state["X"][index].view(len(index) * forces.particles, *model.latent_shape)
        means = model.decode(theta, particles).reshape(len(index), forces.particles, *shape).mean(1)
    pairs = torch.cat([model.data[index].reshape(-1, *shape), means])
    _write(run / SAMPLES, grid(samples, columns=max(1, round(n**0.5))))
    _write(run / RECONSTRUCTIONS, grid(pairs, columns=len(index)))
    return [run / SAMPLES, run / RECONSTRUCTIONS]


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


def _write(path: Path, picture: NDArray[np.uint8]) -> None:
    from matplotlib.image import imsave

    zoom = max(1, 800 // picture.shape[1])
    imsave(path, picture.repeat(zoom, axis=0).repeat(zoom, axis=1))

"""TorchScript modules in files, made in a test."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


def bytes_of(side: int = 4) -> Tensor:
    """Two black images."""
    return torch.zeros(2, 3, side, side, dtype=torch.uint8)


def saved(module: nn.Module, path: Path, images: Tensor | None = None) -> Path:
    """The module, traced by images, in a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and traces what it sees
        torch.jit.trace(module, bytes_of() if images is None else images).save(str(path))
    return path

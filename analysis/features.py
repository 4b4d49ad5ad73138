"""Features of images: pixels as bytes, what a network makes of them, and those of real images kept in files.

A network is a TorchScript module that maps bytes [n, 3, height, width] to features [n, f]. Inception, by
whose 2048 features FID and KID are published, takes (v - 128) / 128 of bytes v at 299 x 299 instead: images
are resized bilinearly, by the centres of pixels and with antialiasing, as the torchmetrics package does it.

Source: Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2016; Heusel et al. 2017.
"""

from __future__ import annotations

import hashlib
import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sdeflow.errors import SdeflowError
from sdeflow.trajectory import durable

EXACT, CLIP, AS_PUBLISHED = "exact", "clip", "as_published"
PIXELS = (EXACT, CLIP, AS_PUBLISHED)

SIDE = 299
"""Pixels of a side that Inception takes."""

AT_ONCE, AT_ONCE_CUDA = 4, 64
"""Images that a network sees at once: on a CPU Inception took 0.17 s an image of 4 at once, 0.21 of 16."""


def as_bytes(images: Tensor, pixels: str = EXACT, what: str = "an image") -> Tensor:
    """Bytes 0..255 of images with pixels x in [-1, 1]; grey level v is x = 2v/255 - 1.

    exact          the nearest level, round(127.5 (x + 1)); refused where that is not one of 0..255
    clip           the same of pixels cut off at -1 and 1
    as_published   trunc(255 x) mod 256 in float32, as in the code behind arXiv:2312.07335: pixels of [-1, 1]
                   are taken for those of [0, 1], and negatives wrap. Level v becomes 2v + 1 for v < 64,
                   (2v + 2) mod 256 for v < 128, and 2v - 255 from there: 0, 64, 127, 128, 192, 255 become
                   1, 130, 0, 1, 129, 255

    Raises SdeflowError for pixels out of range, which says what they are of.
    """
    if not images.isfinite().all():
        raise SdeflowError(f"{what} has pixels that are not finite: run it with smaller steps")
    if pixels == CLIP:
        images = images.clamp(-1, 1)
    levels = (127.5 * (images.double() + 1)).round()
    if levels.numel() and (levels.min() < 0 or levels.max() > 255):
        raise SdeflowError(
            f"{what} has pixels from {float(images.min()):.4g} to {float(images.max()):.4g}, and [-1, 1] was "
            "expected: let decode give no others, or cut them off with --pixels clip"
        )
    if pixels == AS_PUBLISHED:
        levels = (images.float() * 255).long() & 255
    return levels.to(torch.uint8)


class Network:
    """A TorchScript module in a file, moved to a device; with `inception` it is fed as Inception is.

    Raises SdeflowError for a file that is none.
    """

    def __init__(self, path: Path, device: torch.device, *, inception: bool = False) -> None:
        self.path, self.device, self.inception = path, device, inception
        try:
            self.checksum = durable.checksum(path)
            with warnings.catch_warnings():
                # torch would have other formats written
                warnings.filterwarnings("ignore", r".torch\.jit\.\w+. is deprecated")
                self.module = torch.jit.load(str(path), map_location=device).eval()
        except OSError as error:
            raise SdeflowError(f"features {path} cannot be read: {error.strerror}") from None
        except (RuntimeError, ValueError) as error:
            raise SdeflowError(
                f"features {path} is no TorchScript module ({_reason(error)}): give what torch.jit.save "
                "has written"
            ) from None

    def __call__(self, images: Tensor) -> Tensor:
        """Features [n, f] of bytes [n, c, height, width], on the CPU; c is 3, or 1 that is repeated.

        Raises SdeflowError for images that the module does not take, or of which it makes something else.
        """
        shape = tuple(images.shape)
        if shape[1] not in (1, 3):
            raise SdeflowError(f"features are of images with 1 or 3 channels, given {shape[1]}")
        given = images.to(self.device).expand(-1, 3, -1, -1)
        if self.inception:
            size = (SIDE, SIDE)
            given = interpolate(given.float(), size, mode="bilinear", align_corners=False, antialias=True)
            given = (given - 128) / 128
        try:
            with torch.inference_mode():
                found = self.module(given)
        except Exception as error:
            raise SdeflowError(
                f"features {self.path} cannot take images {' × '.join(map(str, (3, *shape[2:])))}: "
                f"{_reason(error)}"
            ) from None
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise SdeflowError(
                f"features {self.path} gives {got} of {len(images)} images, [{len(images)}, f] was expected"
            )
        if not found.isfinite().all():
            raise SdeflowError(f"features {self.path} gives numbers that are not finite")
        return found.float().cpu()

    def seconds(self, images: Tensor) -> float:
        """Time that an image takes, by a few of them."""
        few = images[:AT_ONCE]
        for _ in range(2):  # TorchScript looks at how it is used before it is fast
            self(few)
        began = time.perf_counter()
        self(few)
        return (time.perf_counter() - began) / len(few)

    def of(self, images: Tensor, tick: Callable[[int], None] = lambda _: None) -> Tensor:
        """Features [n, f] of any number of images; `tick` gets how many were done, batch by batch."""
        parts = []
        for batch in images.split(AT_ONCE_CUDA if self.device.type == "cuda" else AT_ONCE):
            parts.append(self(batch))
            tick(len(batch))
        return torch.cat(parts)

    def file(self, images: Tensor, folder: Path) -> Path:
        """Where features of these images are kept: named by the module's bytes and the images'."""
        key = hashlib.sha256(f"{self.checksum} {self.inception} {tuple(images.shape)}".encode())
        key.update(images.contiguous().numpy().data)
        return folder / f"{key.hexdigest()[:32]}.npy"


def kept(path: Path, images: int) -> Tensor | None:
    """The features of so many images in a file, or None where they are not there whole."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = found.dtype == np.float32 and found.ndim == 2 and len(found) == images
    return torch.from_numpy(found) if whole else None


def keep(path: Path, features: Tensor) -> None:
    """Writes features into a file; raises RunError where the disk does not take it."""
    buffer = io.BytesIO()
    np.save(buffer, features.numpy())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise durable.refusal(path, error) from None
    durable.write(path, buffer.getbuffer())


def _reason(error: Exception) -> str:
    """The line of an error that says most: TorchScript's last, which names what failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__

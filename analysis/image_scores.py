"""A model's images against real ones: FID, KID, precision and recall, as scores of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdeflow.analysis import features, image_metrics
from sdeflow.analysis.features import AS_PUBLISHED, EXACT, PIXELS, Network, as_bytes
from sdeflow.analysis.image_metrics import BLOCKS, COMPARABLE, NEIGHBOURS
from sdeflow.analysis.scores import Score, Subject, pieces
from sdeflow.engine.minibatch import evenly
from sdeflow.errors import RunError, SdeflowError, did_you_mean, expect_count
from sdeflow.model.model import Model
from sdeflow.model.rows import Rows
from sdeflow.terminal import Progress, duration, rate

AGAINST = ("train", "test")
DECODED_AT_ONCE = 500

Say = Callable[[str], None]
"""Takes a line meant for people."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images are compared, and by what. Raises SdeflowError for what is out of range.

    features    a file with a TorchScript module: of Inception, or with inception=False one of bytes
                (`sdeflow.analysis.features`)
    kid         images of each kind for KID, precision and recall
    fid         images of each kind for FID, or 0 for none; where there are fewer real ones, all of those
    against     real images of 'train' or 'test'
    pixels      'exact', 'clip' or 'as_published' (`as_bytes`); the last stands beside the first
    kept        the folder in which features of real images are kept, or None for nowhere
    """

    features: Path
    inception: bool = True
    kid: int = 2000
    fid: int = 0
    against: str = "train"
    pixels: str = EXACT
    kept: Path | None = None

    def __post_init__(self) -> None:
        for name, known in (("against", AGAINST), ("pixels", PIXELS)):
            if (given := getattr(self, name)) not in known:
                raise SdeflowError(f"{name} cannot be '{given}': {did_you_mean(given, known)}")
        for name, least in (("kid", BLOCKS), ("fid", 2)):
            given = getattr(self, name)
            if (name != "fid" or given != 0) and expect_count(name, given) < least:
                raise SdeflowError(f"{name} must be at least {least}, given {given}")


class ImageScores:
    """Images that a model makes and real ones, as bytes, and the network that looks at them.

    `real` and `made` have them, [n, c, height, width], for each way in which pixels become bytes.

    Raises SdeflowError for a model that makes no images or some with pixels out of range, too few real
    images, and a network that cannot take them.
    """

    def __init__(self, subject: Subject, options: ImageOptions) -> None:
        self.options, model = options, subject.model
        name = type(subject.found.model).__name__
        if model.image_shape is None or not model.decode:
            lacks = "image_shape" if model.image_shape is None else "decode"
            raise SdeflowError(
                f"{name} has no {lacks}: FID and KID are of models of images, leave --kid "
                "and the options with it out"
            )
        if options.fid:
            image_metrics.require_torchmetrics()
        self.network = Network(options.features, subject.like.device, inception=options.inception)
        self.ways = (EXACT, AS_PUBLISHED) if options.pixels == AS_PUBLISHED else (options.pixels,)
        most = max(options.kid, options.fid)
        found = real_images(model, options.against)
        if len(found) < BLOCKS:
            raise SdeflowError(
                f"{len(found)} real images of {options.against} are too few, at least {BLOCKS} were "
                "expected: give the model more data, or another --against"
            )
        found = found[evenly(len(found), most)]
        real = (_in_pixels(found[piece]) for piece in pieces(len(found), DECODED_AT_ONCE))
        self.real = self._bytes(real, "a real image")
        latents = subject.prior_draws(most, subject.generator("images"))
        self.made = self._bytes(_decoded(subject, latents), f"an image of {name}")
        self.seconds = self.network.seconds(self.made[self.ways[0]])
        self.notes: list[str] = []

    def _bytes(self, images: Iterable[Tensor], what: str) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {way: [] for way in self.ways}
        for part in images:
            for way, parts in found.items():
                parts.append(as_bytes(part, way, what))
        return {way: torch.cat(parts) for way, parts in found.items()}

    @property
    def attrs(self) -> dict[str, str]:
        """What was compared, and by what."""
        return {
            "image_features": f"{self.options.features.name} {self.network.checksum}",
            "image_pixels": self.options.pixels,
        }

    def scores(self, progress: Progress | None = None, say: Say = lambda _: None) -> list[Score]:
        """All that was asked for; what is said before is how long it is likely to take."""
        folder = self.options.kept
        files = {way: self.network.file(v, folder) for way, v in self.real.items()} if folder else {}
        of_real = {way: features.kept(path, len(self.real[way])) for way, path in files.items()}
        todo = [v for way, v in self.real.items() if of_real.get(way) is None] + [*self.made.values()]
        total, done = sum(map(len, todo)), 0
        how_long = f"{rate(1 / self.seconds, 'image')}, about {duration(total * self.seconds)}"
        say(f"features of {total:,} images: {how_long}")

        def tick(images: int) -> None:
            nonlocal done
            done += images
            if progress:
                progress(done, total, None)

        found = []
        for way in self.ways:
            real = of_real.get(way)
            if real is None:
                real = self.network.of(self.real[way], tick)
                self._keep(files.get(way), real)
            found += self._scored(way, real, self.network.of(self.made[way], tick))
        return found

    def _keep(self, path: Path | None, real: Tensor) -> None:
        try:
            if path is not None:
                features.keep(path, real)
        except RunError as error:
            self.notes.append(f"features of real images are not kept: {error}")

    def _scored(self, way: str, real: Tensor, made: Tensor) -> list[Score]:
        """The scores by features of both; the notes say of how many images."""
        options, first = self.options, way == self.ways[0]

        def score(kind: str, n: int, value: float, error: float = np.nan) -> Score:
            names, titles = [kind.lower(), options.against, str(n)], [kind, f"{n:,} of {options.against}"]
            if not self.network.inception:
                names.append(self.network.checksum[:8])
                titles.append(options.features.name)
            if way != EXACT:
                names.append(way)
                titles.append(way.replace("_", " "))
            return Score("_".join(names), ", ".join(titles), value, error, np.nan)

        def pair(n: int) -> tuple[Tensor, Tensor]:
            return real[evenly(len(real), n)], made[:n]

        x, y = pair(options.kid)
        found = [score("KID", len(y), *image_metrics.kid(x, y))]
        for kind, inside in zip(("precision", "recall"), image_metrics.coverage(x, y), strict=True):
            share = float(inside.double().mean())
            found.append(score(kind, len(y), share, (share * (1 - share) / (len(inside) - 1)) ** 0.5))
        if first:
            self.notes.append(f"KID, precision and recall (k = {NEIGHBOURS}) against {len(x):,} real images")
        if options.fid:
            x, y = pair(options.fid)
            found.append(score("FID", len(y), image_metrics.fid(x, y)))
            if first:
                few = f", on no common scale below {COMPARABLE:,}" * (min(len(x), len(y)) < COMPARABLE)
                self.notes.append(f"FID against {len(x):,} real images{few}")
        return found


def real_images(model: Model, against: str) -> Tensor:
    """Images of 'train' or 'test', [n, *image_shape], as bytes or with pixels in [-1, 1].

    Those that the model's `real_images` gives, else its data, or those held out.
    Raises SdeflowError where there are none.
    """
    name, shape = type(model).__name__, model.image_shape
    assert shape is not None
    if model.real_images:
        found = model.real_images(against)
    else:
        found = model.data if against == "train" else model.held_out
    if found is None:
        raise SdeflowError(f"{name} has no held-out data: give --against train")
    found = found[:] if isinstance(found, Rows) else found
    if not isinstance(found, Tensor) or found[:1].numel() != prod(shape):
        wanted = " × ".join(map(str, shape))
        raise SdeflowError(f"the data of {name} are no images {wanted}, as its image_shape says")
    return found.reshape(-1, *shape)


def _in_pixels(images: Tensor) -> Tensor:
    """Pixels in [-1, 1] of images that may be bytes."""
    return (images if images.is_floating_point() else 2 * images.float() / 255 - 1).cpu()


def _decoded(subject: Subject, latents: Tensor) -> Iterator[Tensor]:
    """Images of latents [n, *latent_shape], in pieces."""
    shape = subject.model.image_shape
    assert shape is not None
    with torch.no_grad():
        for piece in pieces(len(latents), DECODED_AT_ONCE):
            yield subject.model.decode(subject.theta, latents[piece]).reshape(-1, *shape).cpu()

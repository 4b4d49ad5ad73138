"""What `sdeflow evaluate` is told of images, and where it finds features of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sdeflow.analysis.image_scores import ImageOptions

KidOption = Annotated[
    int | None,
    typer.Option(help="Images for KID, precision and recall (default where images are scored: 2000)."),
]
FidOption = Annotated[
    int | None, typer.Option(help="Images for FID: 50000 against train or 10000 against test, on a GPU.")
]
AgainstOption = Annotated[
    str | None, typer.Option(help="Real images to compare with: train or test (default: train).")
]
PixelsOption = Annotated[
    str | None,
    typer.Option(
        help="exact, clip, or as_published, where negatives wrap as in the code behind arXiv:2312.07335; "
        "both stand in the table then."
    ),
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option(help="A TorchScript module, bytes [n, 3, h, w] to features [n, f] (default: Inception)."),
]


def image_options(given: Mapping[str, Any]) -> ImageOptions | None:
    """Of a command's parameters by name; None where nothing is asked of images.

    Features of Inception are fetched where they are not there; raises SdeflowError where they cannot be.
    """
    asked = {name: given[name] for name in ("kid", "fid", "against", "pixels") if given[name] is not None}
    features = given["features"]
    if not asked and features is None:
        return None
    from sdeflow.analysis.image_scores import ImageOptions
    from sdeflow.data.cache import at_hand, cache_folder
    from sdeflow.data.datasets import INCEPTION

    options = ImageOptions(features=features or Path(), kept=cache_folder() / "features", **asked)
    if features is not None:
        return replace(options, inception=False)
    return replace(options, features=at_hand(INCEPTION) / f"{INCEPTION}.pt")

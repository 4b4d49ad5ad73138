"""Images of the data sets, which are fetched at first use, read in the formats they are published in.

Arrays are memory-mapped copy-on-write: nothing is read before it is used, and a change stays in memory.
What a file holds was checked when it was fetched.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdeflow.data.cache import at_hand
from sdeflow.data.datasets import dataset_named
from sdeflow.errors import SdeflowError, did_you_mean

Bytes = NDArray[np.uint8]


def load_images(name: str, split: Literal["train", "test"] = "train") -> tuple[Bytes, Bytes]:
    """Images [n, channels, height, width] and labels [n] of a data set, in the published order.

    Raises:
        SdeflowError: no such data set or split, or it is not there and cannot or must not be fetched.
        RunError: the disk does not take it.
    """
    dataset = dataset_named(name)
    if dataset.weights:
        raise SdeflowError(f"{name} is a network and has no images: give a data set")
    splits = {"train": dataset.train, "test": dataset.test}
    if split not in splits:
        raise SdeflowError(f"'{split}' is not a split of {name}: {did_you_mean(split, splits)}")
    folder = at_hand(name)
    paths = [folder / file.name for file in splits[split]]
    if len(paths) == 1:
        return _records(paths[0], dataset.image)
    return _idx(paths[0], dataset.image), _idx(paths[1], ())


def _records(path: Path, image: tuple[int, ...]) -> tuple[Bytes, Bytes]:
    """Images [n, *image] and labels [n] of a file of records in CIFAR-10's format: label, then image."""
    rows = np.asarray(np.memmap(path, np.uint8, "c")).reshape(-1, 1 + prod(image))
    return rows[:, 1:].reshape(-1, *image), rows[:, 0]


def _idx(path: Path, item: tuple[int, ...]) -> Bytes:
    """The array [n, *item] in an idx file of MNIST's images, 16 bytes of header, or labels, 8 bytes."""
    return np.asarray(np.memmap(path, np.uint8, "c", offset=16 if item else 8)).reshape(-1, *item)

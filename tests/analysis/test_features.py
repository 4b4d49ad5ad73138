"""Pixels as bytes, networks in files, and the features of real images that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchscript import bytes_of, saved

from sdeflow.analysis.features import Network, as_bytes, keep, kept
from sdeflow.errors import RunError, SdeflowError

CPU = torch.device("cpu")
LEVELS = torch.arange(256)


class Means(nn.Module):
    """The mean level of each of three channels, and the level of the first pixel."""

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        levels = images.double()
        return torch.cat([levels.mean((2, 3)), levels[:, :1, 0, 0]], 1)


class Shown(nn.Module):
    """All pixels that it is given."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double()


class Picky(nn.Module):
    """Takes images of 8 x 8 alone."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().reshape(-1, 3, 8, 8).mean((2, 3)) * (images.shape[2] / images.shape[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_come_back(dtype: torch.dtype) -> None:
    """Each of 256, as 2v/255 - 1, with the noise of dequantisation on top, and where it lies half-way off."""
    x = 2 * LEVELS.to(dtype) / 255 - 1
    assert as_bytes(x).tolist() == LEVELS.tolist()
    noise = torch.rand(256, generator=torch.Generator().manual_seed(0), dtype=dtype) / 256
    assert as_bytes((x + noise).clamp(-1, 1)).tolist() == LEVELS.tolist()
    assert as_bytes(x + 0.99 / 255).tolist() == LEVELS.tolist()
    assert as_bytes(x[:-1] + 1.01 / 255).tolist() == LEVELS[1:].tolist()


def test_pixels_out_of_range_are_refused_and_never_wrapped() -> None:
    """Those whose nearest level is none; each way but `clip`."""
    edge = torch.tensor([-1 - 0.99 / 255, 1 + 0.99 / 255])
    assert as_bytes(edge).tolist() == [0, 255]
    for off in (torch.tensor([0.0, 1 + 1.01 / 255]), torch.tensor([-1.5, 0.0])):
        for pixels in ("exact", "as_published"):
            with pytest.raises(SdeflowError, match=r"x has pixels from .* cut them off with --pixels clip$"):
                as_bytes(off, pixels, "x")
        assert as_bytes(off, "clip").tolist() == as_bytes(off.clamp(-1, 1)).tolist()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(SdeflowError, match="not finite"):
            as_bytes(torch.tensor([bad]), "clip")


def test_the_wrap_of_the_published_code() -> None:
    """Level by level, by whole numbers: 255 x is 2v - 255, which is cut towards 0 and taken modulo 256.

    In float32 the product falls short of it from v = 64 to 127, by a rounding, so that one more is cut off.
    """
    x = 2 * LEVELS.float() / 255 - 1
    expected = [(2 * v - 255 + (64 <= v < 128)) % 256 for v in range(256)]
    assert as_bytes(x, "as_published").tolist() == expected
    told = {0: 1, 64: 130, 127: 0, 128: 1, 192: 129, 255: 255}
    assert {v: expected[v] for v in told} == told
    normalised = (LEVELS.float() / 255 - 0.5) / 0.5  # as such pipelines write it
    assert as_bytes(normalised.view(1, 1, 16, 16), "as_published").flatten().tolist() == expected


def test_grey_is_repeated_and_bytes_are_handed_on(tmp_path: Path) -> None:
    network = Network(saved(Means(), tmp_path / "means.pt"), CPU)
    grey = torch.randint(0, 256, (40, 1, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    done: list[int] = []
    found = network.of(grey, done.append)
    assert (sum(done), found.shape, found.dtype) == (40, (40, 4), torch.float32)
    mean = grey.double().mean((1, 2, 3))
    expected = torch.stack([mean, mean, mean, grey[:, 0, 0, 0].double()], 1).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(network.of(grey.expand(-1, 3, -1, -1)), expected, rtol=0, atol=0)
    with pytest.raises(SdeflowError, match="1 or 3 channels, given 2"):
        network(grey.expand(-1, 2, -1, -1))


def test_inception_gets_299_pixels_by_their_centres(tmp_path: Path) -> None:
    """(v - 128) / 128 of linear interpolation between the centres of pixels, in numpy, along each side."""
    path = saved(Shown(), tmp_path / "shown.pt", torch.zeros(2, 3, 299, 299))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 3, 8, 6), np.uint8)
    found = Network(path, CPU, inception=True)(torch.from_numpy(image)).view(3, 299, 299).numpy()

    def along(n: int) -> np.ndarray:
        at = np.clip((np.arange(299) + 0.5) * n / 299 - 0.5, 0, n - 1)
        return np.array([np.interp(at, np.arange(n), row) for row in np.eye(n)])  # [n, 299]

    expected = (np.einsum("chw,hi,wj->cij", image[0].astype(float), along(8), along(6)) - 128) / 128
    assert np.abs(found - expected).max() < 1e-5


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    with pytest.raises(SdeflowError, match=r"other\.pt cannot be read: No such file"):
        Network(other, CPU)
    for content in (b"", b"not a module"):
        other.write_bytes(content)
        with pytest.raises(
            SdeflowError, match=r"other\.pt is no TorchScript module \(.*\): give what"
        ) as told:
            Network(other, CPU)
        assert "\n" not in str(told.value)
    torch.save({"weight": torch.zeros(3)}, other)
    with pytest.raises(SdeflowError, match="is no TorchScript module"):
        Network(other, CPU)


class Flat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((1, 2, 3))


class Lost(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3)) / 0


class Pair(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Picky(), "cannot take images 3 × 6 × 6: .*shape"),
        (Flat(), r"gives \(2,\) of 2 images, \[2, f\] was expected"),
        (Pair(), r"gives tuple of 2 images"),
        (Lost(), "not finite"),
    ],
)
def test_images_that_a_network_does_not_take(tmp_path: Path, module: nn.Module, says: str) -> None:
    network = Network(saved(module, tmp_path / "n.pt", bytes_of(8)), CPU)
    with pytest.raises(SdeflowError, match=says) as told:
        network(torch.ones(2, 1, 6, 6, dtype=torch.uint8))
    assert "\n" not in str(told.value)


def test_features_are_kept_by_network_and_images(tmp_path: Path) -> None:
    """A file is found again for the same module, images and way alone, and one that is not whole is left."""
    a, b = (saved(m, tmp_path / f"{i}.pt") for i, m in enumerate((Means(), Shown())))
    images = torch.arange(96, dtype=torch.uint8).view(2, 3, 4, 4)
    folder = tmp_path / "features"
    other = images.clone()
    other[1, 2, 3, 3] += 1
    files = {
        Network(a, CPU).file(images, folder),
        Network(a, CPU).file(other, folder),
        Network(a, CPU).file(images[:1], folder),
        Network(a, CPU).file(images.view(2, 3, 8, 2), folder),
        Network(a, CPU, inception=True).file(images, folder),
        Network(b, CPU).file(images, folder),
    }
    assert len(files) == 6
    path = Network(a, CPU).file(images.clone(), folder)
    assert path in files
    assert kept(path, 2) is None
    found = Network(a, CPU).of(images)
    keep(path, found)
    again = kept(path, 2)
    assert again is not None
    assert torch.equal(again, found)
    assert kept(path, 3) is None
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:-1]):
        path.write_bytes(content)
        assert kept(path, 2) is None
    (tmp_path / "taken").touch()
    with pytest.raises(RunError, match="could not be written"):
        keep(tmp_path / "taken" / "x.npy", found)

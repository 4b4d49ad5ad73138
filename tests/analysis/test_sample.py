"""Samples of learned priors: their law, their files and pictures, and what is said where there are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from commands import command
from matplotlib.image import imread
from support import affine_map

from sdeflow import ebipla, kinetic_ebipla
from sdeflow.analysis.pictures import grid
from sdeflow.analysis.samples import continued, sample
from sdeflow.config.catalogue import integrator_named
from sdeflow.errors import SdeflowError
from sdeflow.problems.linear_energy import LinearEnergy
from sdeflow.system.system import BlockSystem


def build(name: str) -> BlockSystem:
    motion = {"h": 0.2, "eta": 0.9, "gamma": 1.2}
    system = {"ebipla": ebipla, "kinetic_ebipla": kinetic_ebipla}[name]
    return system(LinearEnergy(3), particles=2, prior_particles=4, alpha=motion, x=motion)


@pytest.mark.parametrize(
    ("name", "scheme"), [("ebipla", "expint"), ("kinetic_ebipla", "expint"), ("kinetic_ebipla", "baoab")]
)
def test_continued_prior_particles_have_the_law_of_the_scheme(name: str, scheme: str) -> None:
    """8000 samples from 4 particles: mean alpha, variance as probed of the block alone; 4.5 errors."""
    system, n, integrator = build(name), 8000, integrator_named(scheme)
    z = system.start(0) | {"alpha": torch.tensor([0.7], dtype=torch.float64)}
    drawn = continued(system, integrator, z, n, steps=400, seed=1).numpy()[:, 0]
    (block,) = (b for b in system.blocks if b.name == "z")
    alone = BlockSystem(
        [replace(block, shape=(1, 1))],
        lambda t, z, names: {"z": 0.7 - z["Z"]} if names else {},
        h=system.h,
    )
    variance = affine_map(alone, integrator).stationary[0, 0]
    assert abs(drawn.mean() - 0.7) < 4.5 * (variance / n) ** 0.5
    assert abs(drawn.var() - variance) < 4.5 * variance * (2 / n) ** 0.5
    again = continued(system, integrator, z, n, steps=400, seed=1).numpy()[:, 0]
    np.testing.assert_array_equal(drawn, again)
    assert not np.array_equal(drawn, continued(system, integrator, z, n, steps=400, seed=2).numpy()[:, 0])


def test_samples_of_points_in_the_plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NetCDF of latents and of observations about them, and a picture; none without a trajectory of Z."""
    monkeypatch.chdir(tmp_path)
    size = ["--set", "model.points=30", "--set", "model.held_out=0", "--set", "system.prior_particles=9"]
    options = [*size, "--steps", 20, "--set", "save.every=5", "--quiet", "--out"]
    assert command("run", "latent_ebm_2d", *options, "run", "--replicas", 2) == 0
    assert command("sample", "run", "--n", 500, "--steps", 5, "--replica", 1) == 0
    with xr.open_dataset("run/samples.nc") as found:
        assert dict(found.sizes) == {"sample": 500, "latent": 2, "coordinate": 2}
        spread = (found.y - found.x.rename(latent="coordinate")).values
    assert abs(spread.std() - 0.1) < 4.5 * 0.1 / 2000**0.5
    assert imread("run/samples.png").shape[:2] == (825, 1560)
    assert command("run", "latent_ebm_2d", "--variant", "gaussian", *options, "base") == 0
    assert command("sample", "base", "--n", 10) == 0
    assert imread("base/samples.png").shape[:2] == (412, 780)


def test_samples_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    size = ["--set", "model.points=40", "--set", "model.held_out=0", "--set", "system.prior_particles=9"]
    assert command("run", "latent_ebm_digits", *size, "--steps", 4, "--out", "run", "--quiet") == 0
    assert command("sample", "run", "--n", 9, "--steps", 3) == 0
    zoom = 800 // 26
    assert imread("run/samples.png").shape[:2] == (26 * zoom, 26 * zoom)
    assert Path("run/reconstructions.png").is_file()
    with xr.open_dataset("run/samples.nc") as found:
        assert found.y.shape == (9, 64)


def test_samples_of_a_grid_are_of_one_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    size = ["--set", "model.data=4", "--set", "system.particles=2", "--set", "system.prior_particles=3"]
    options = ["--variant", "fixed", *size, "--steps", 10, "--quiet", "--out"]
    assert command("run", "linear_energy", *options, "grid", "--set", "grid.gamma=[0.5, 1.0]") == 0
    assert command("run", "linear_energy", *options, "one", "--set", "system.alpha.gamma=1.0",
                   "--set", "system.x.gamma=1.0") == 0  # fmt: skip
    assert command("sample", "grid", "--n", 5, "--replica", 1) == 0
    assert command("sample", "one", "--n", 5) == 0
    with xr.open_dataset("grid/samples.nc") as a, xr.open_dataset("one/samples.nc") as b:
        np.testing.assert_allclose(a.x, b.x, rtol=1e-5)


def test_what_cannot_be_sampled_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prior particles that run away, in the run (the variable is named) and after it; nothing is written."""
    monkeypatch.chdir(tmp_path)
    size = ["--set", "model.data=4", "--set", "system.particles=2", "--set", "system.prior_particles=3"]
    wild = ["--variant", "fixed", "--set", "system.z={h=50.0, eta=10.0, gamma=0.5}", "--quiet", "--out"]
    assert command("run", "linear_energy", *size, "--steps", 0, *wild, "still") == 0
    assert command("sample", "still", "--n", 5, "--steps", 3000) == 2
    assert "diverged within 3000 steps" in capsys.readouterr().err
    assert not Path("still/samples.nc").exists()
    assert (
        command("run", "linear_energy", *size, "--steps", 300, "--set", "save.every=300", *wild, "lost") == 3
    )
    assert "Z" in capsys.readouterr().err.partition("not finite")[2]
    assert command("sample", "lost", "--n", 5) == 2
    told = capsys.readouterr().err
    assert "replica 0 of lost diverged" in told
    assert "Z" in told.partition("not finite: ")[2]


def test_a_grid_is_refused_where_one_point_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = ["--set", "grid.gamma=[0.05, 0.5]"]
    assert command("stability", "hierarchical", *grid) == 2
    assert command("compare", "hierarchical", "--integrators", "expint", "--out", "c", *grid) == 2
    assert command("run", "hierarchical", "--steps", 2, "--quiet", "--out", "g", *grid) == 0
    assert command("report", "g") == 2
    assert capsys.readouterr().err.count("one point") == 3


def test_sample_writes_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine prior samples in three rows, and 16 digits above their reconstructions, pixel for pixel."""
    monkeypatch.chdir(tmp_path)
    run = ["run", "digits", "--steps", 3, "--set", "model.images=40", "--out", "run", "--quiet"]
    assert command(*run, "--replicas", 2) == 0
    assert command("sample", "run", "--n", 9, "--replica", 1) == 0
    samples, pairs = imread("run/samples.png"), imread("run/reconstructions.png")
    zoom = 800 // 26
    assert samples.shape[:2] == (26 * zoom, 26 * zoom)
    zoom = 800 // 143
    assert pairs.shape[:2] == (17 * zoom, 143 * zoom)
    from sklearn.datasets import load_digits

    first = pairs[: 8 * zoom : zoom, : 8 * zoom : zoom, 0] * 255
    np.testing.assert_allclose(first, np.round(load_digits().images[0] / 16 * 255), atol=1)


def test_sample_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    begin = "from sdeflow.problems.hierarchical import Hierarchical\n\n\n"
    Path("toy.py").write_text(f"{begin}class Toy(Hierarchical):\n    sample_prior = None\n")
    model = ["--set", "model.use=toy.py:Toy"]
    assert command("run", "hierarchical", *model, "--steps", 2, "--out", "toy", "--quiet") == 0
    for arguments, sentence in (
        (["nothing"], "has no config.toml"),
        (["toy"], "makes no pictures"),
        (["toy", "--n", 0], "n must be at least 1"),
    ):
        assert command("sample", *arguments) == 2
        assert sentence in capsys.readouterr().err
    with pytest.raises(SdeflowError, match="makes no pictures"):
        sample(tmp_path / "toy")
    Path("toy/trajectory.nc").unlink()  # as of a run that was taken up again: its last state is an older one
    assert command("sample", "toy") == 2
    assert "toy has not ended: sdeflow resume toy takes it to its end" in capsys.readouterr().err


def test_grid_is_laid_out_row_by_row() -> None:
    images = torch.linspace(-1, 1, 3).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    picture = grid(images, columns=2)
    assert picture.shape == (5, 5, 3)
    assert picture[0, 0, 0] == 0
    assert picture[0, 3, 0] == 128
    assert picture[3, 0, 0] == 255
    assert picture[2].min() == 255

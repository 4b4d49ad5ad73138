"""Image metrics of a run: its scores, by features that a test makes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import xarray as xr
from commands import Cli, command
from safetensors.torch import load_file
from torch import Tensor, nn
from torchscript import bytes_of, saved

from sdeflow.analysis.evaluation import evaluate
from sdeflow.analysis.features import as_bytes
from sdeflow.analysis.image_metrics import coverage, kid
from sdeflow.analysis.image_scores import ImageOptions
from sdeflow.analysis.scores import Options
from sdeflow.engine.minibatch import evenly
from sdeflow.problems.decoder import Decoder
from sdeflow.seeds import generator

MODELS = '''
"""Models of digits: one within [-1, 1], one that draws images from the data, and some that lack a part."""

import torch

from sdeflow.problems.decoder import Decoder


class Bounded(Decoder):
    def decode(self, theta, x):
        return super().decode(theta, x).clamp(-1, 1)


class Memory(Bounded):
    """Which image it is, the normal distribution function of the first coordinate says."""

    def decode(self, theta, x):
        at = (torch.special.ndtr(x[..., 0].double()) * 1797).long().clamp(0, 1796)
        return self.data[at].to(x) + 0 * super().decode(theta, x)


class Few(Bounded):
    def __init__(self, images=30, held_out=15):
        super().__init__(images=images, held_out=held_out)


class Split(Few):
    def __init__(self):
        super().__init__(100, 25)


class Shapeless(Bounded):
    def __init__(self):
        super().__init__()
        self.image_shape = None


class Blank(Bounded):
    decode = None

    def log_joint(self, theta, x, y):
        return Bounded().log_joint(theta, x, y)

    def observables(self, theta, x, y):
        return {}


class Wide(Bounded):
    def __init__(self):
        super().__init__()
        self.image_shape = (1, 8, 9)
'''


class Profile(nn.Module):
    """Means of the rows and of the columns of the first channel, 16 of 8 x 8 bytes."""

    def forward(self, images: Tensor) -> Tensor:
        levels = images[:, 0].double() / 255
        return torch.cat([levels.mean(1), levels.mean(2)], 1)


BRIEF = ["--temperatures", 4, "--chains", 2, "--langevin-steps", 3, "--data", 10]
QUICK = Options(temperatures=4, chains=2, langevin_steps=3, data=10)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the models, features f.pt, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDEFLOW_DATA", str(tmp_path / "cache"))
    (tmp_path / "models.py").write_text(MODELS)
    saved(Profile(), tmp_path / "f.pt", bytes_of(8))
    return tmp_path


def run_of(model: str) -> str:
    """A run of no step; theta is as it starts."""
    Path(f"{model}.toml").write_text(
        f'model.use = "models.py:{model}"\n'
        'system = { use = "pgd", particles = 2, theta.h = 1e-5, x.h = 1e-3 }\n'
        'run = { integrator = "expint", steps = 0, dtype = "float32" }\n'
    )
    assert command("run", f"{model}.toml", "--out", model, "-q") == 0
    return model


def scored(run: str) -> dict[str, tuple[float, float]]:
    """Value and error over data of the image metrics in a run folder."""
    with xr.open_dataset(Path(run) / "evaluation.nc") as file:
        found = file.sel(parameters="last")
        rows = zip(found.value.values.tolist(), found.error_over_data.values.tolist(), strict=True)
        every = dict(zip(found.score.values.tolist(), rows, strict=True))
    return {name: row for name, row in every.items() if name.split("_")[0] in METRICS}


METRICS = ("kid", "fid", "precision", "recall")


def profile(data: Tensor, pixels: str = "exact") -> Tensor:
    """Features of images of digits in numpy."""
    levels = as_bytes(data.reshape(-1, 8, 8), pixels).numpy() / 255
    return torch.from_numpy(np.concatenate([levels.mean(1), levels.mean(2)], 1))


def test_a_model_that_draws_from_the_data_is_perfect(folder: Path, cli: Cli) -> None:
    """KID is 0 within its error, most is covered, FID is small; in the table, the file and the page."""
    pytest.importorskip("torchmetrics")
    run = run_of("Memory")
    code, out, err = cli("evaluate", run, *BRIEF, "--features", "f.pt", "--kid", 400, "--fid", 1000)
    assert code == 0, err
    assert "features of 2,000 images" in err
    assert "about" in err
    found = scored(run)
    checksum = next(iter(found)).split("_")[-1]
    assert list(found) == [f"{kind}_train_400_{checksum}" for kind in ("kid", "precision", "recall")] + [
        f"fid_train_1000_{checksum}"
    ]
    (value, error), precision, recall, distance = found.values()
    assert abs(value) < 4 * error
    for share, of_share in (precision, recall):
        assert 0.85 < share <= 1
        assert of_share == pytest.approx((share * (1 - share) / 399) ** 0.5)
    assert 0 < distance[0] < 0.02
    assert np.isnan(distance[1])
    told = " ".join(out.split())
    for title in ("KID, 400 of train, f.pt", "FID, 1,000 of train, f.pt"):
        assert title in told
    assert "(k = 5) against 400 real images; FID against 1,000 real images, on no common scale below" in told
    assert command("report", run, "--out", "page", "-q") == 0
    page = Path("page/report.html").read_text()
    assert "KID, 400 of train, f.pt" in page
    with xr.open_dataset("page/compare.nc") as compared:
        one = compared.sel(score=f"kid_train_400_{checksum}", integrator="expint", parameters="last")
        assert float(one.score_value) == value


def test_images_of_the_average_and_of_a_mixture_are_scored_too(folder: Path) -> None:
    """Of an average that is the last both are the same, of a mixture as the prior others."""
    options = ["--set", "model.images=60", "--set", "average.decay=0", "--steps", 3, "-q", "--out", "run"]
    assert command("run", "digits", "--variant", "fixed", *options) == 0
    brief = [*BRIEF, "--features", "f.pt", "--kid", 50, "--pixels", "clip", "--no-pictures", "-q"]
    found = []
    for prior in ([], ["--prior", "gmm:3"]):
        assert command("evaluate", "run", *brief, *prior) == 0
        with xr.open_dataset("run/evaluation.nc") as file:
            (kid,) = [name for name in file.score.values.tolist() if name.startswith("kid")]
            values = file.value.sel(score=kid)
            assert float(values.sel(parameters="last")) == float(values.sel(parameters="average"))
            found.append(float(values[0]))
    assert found[0] != found[1]


def test_scores_are_those_of_the_images(folder: Path) -> None:
    """By features in numpy of the data and of images decoded here; pixels as published stand beside."""
    run = run_of("Bounded")
    images = ImageOptions(features=folder / "f.pt", inception=False, kid=300, pixels="as_published")
    dataset = evaluate(Path(run), QUICK, images=images)
    model = Decoder()
    theta = {k.removeprefix("theta."): v for k, v in load_file(f"{run}/final.safetensors").items()}
    latents = model.sample_prior(theta, 300, generator(0, "evaluate", "images")).float()
    data, made = model.data, model.decode(theta, latents).clamp(-1, 1)
    values = dict(zip(dataset.score.values.tolist(), dataset.value.values[0].tolist(), strict=True))
    named = {name: value for name, value in values.items() if name.split("_")[0] in METRICS}
    assert len(named) == 6
    for pixels, end in (("exact", ""), ("as_published", "_as_published")):
        x, y = profile(data[evenly(1797, 300)], pixels), profile(made, pixels)
        mine = {
            name.split("_")[0]: v for name, v in named.items() if name.endswith("as_published") == bool(end)
        }
        assert mine["kid"] == pytest.approx(kid(x, y).value, rel=1e-4)
        shares = [float(part.double().mean()) for part in coverage(x, y)]
        assert [mine["precision"], mine["recall"]] == pytest.approx(shares, abs=1e-9)
    assert dataset.attrs["image_pixels"] == "as_published"
    assert dataset.attrs["image_features"].startswith("f.pt ")


def test_features_of_real_images_are_computed_once(folder: Path) -> None:
    """What is told of progress goes up to its total; the second time there are the model's images alone."""
    run, looks = run_of("Bounded"), []
    options = {"features": folder / "f.pt", "inception": False, "kid": 50, "kept": folder / "kept"}
    results = []
    for pixels in ("exact", "exact", "as_published", "as_published"):
        bar, said = Mock(), []
        results.append(
            evaluate(Path(run), QUICK, None, ImageOptions(**options, pixels=pixels), bar, said.append)
        )
        seen = [told.args for told in bar.call_args_list]
        assert [at for at, _, _ in seen] == sorted({at for at, _, _ in seen})
        assert {total for _, total, _ in seen} == {seen[-1][0]}
        looks.append(seen[-1][0])
        assert said[0].startswith(f"features of {seen[-1][0]:,} images: ")
    assert looks == [100, 50, 150, 100]
    assert len(list((folder / "kept").iterdir())) == 2
    np.testing.assert_array_equal(results[0].value, results[1].value)
    np.testing.assert_array_equal(results[2].value, results[3].value)


def test_where_features_cannot_be_kept_a_note_says_so(folder: Path) -> None:
    (folder / "taken").touch()
    images = ImageOptions(features=folder / "f.pt", inception=False, kid=50, kept=folder / "taken")
    found = evaluate(Path(run_of("Bounded")), QUICK, images=images)
    assert "features of real images are not kept" in found.attrs["notes"]
    assert "kid" in found.score.values[-3]


def test_against_images_that_were_held_out(folder: Path, cli: Cli) -> None:
    """All of them where there are fewer than asked for, which is said; not those that were learned from."""
    run, found = run_of("Split"), {}
    for against, real in (("test", 25), ("train", 60)):
        code, out, err = cli("evaluate", run, *BRIEF, "--features", "f.pt", "--kid", 60, "--against", against)
        assert code == 0, err
        assert f"against {real} real images" in " ".join(out.split())
        (found[against],) = (
            row[0] for name, row in scored(run).items() if name.startswith(f"kid_{against}_60_")
        )
    theta = {k.removeprefix("theta."): v for k, v in load_file(f"{run}/final.safetensors").items()}
    model = Decoder(images=100, held_out=25)
    latents = model.sample_prior(theta, 60, generator(0, "evaluate", "images")).float()
    made = profile(model.decode(theta, latents).clamp(-1, 1))
    for against, real in (("test", model.held_out), ("train", model.data[evenly(100, 60)])):
        assert found[against] == pytest.approx(kid(profile(real), made).value, rel=1e-4)


def test_what_cannot_be_compared_is_said(folder: Path, cli: Cli) -> None:
    """One sentence each, exit code 2, and nothing is written."""

    def refused(*arguments: Any) -> str:
        code, out, err = cli("evaluate", *arguments)
        assert (code, out, err.count("\n"), "Traceback" in err) == (2, "", 1, False), err
        assert not list(folder.rglob("evaluation.nc"))
        assert not (folder / "cache").exists()
        return err

    mine = ["--features", "f.pt"]
    for model, sentence in (
        ("Shapeless", "Shapeless has no image_shape: FID and KID are of models of images"),
        ("Blank", "Blank has no decode: FID and KID"),
        ("Wide", "the data of Wide are no images 1 × 8 × 9, as its image_shape says"),
    ):
        assert sentence in refused(run_of(model), *mine)
    run = run_of("Bounded")
    assert "15 real images of test are too few" in refused(run_of("Few"), *mine, "--against", "test")
    assert "Bounded has no held-out data: give --against train" in refused(run, *mine, "--against", "test")
    for options, sentence in (
        (["--kid", 19], "kid must be at least 20, given 19"),
        (["--kid", 0], "kid must be at least 1, given 0"),
        (["--fid", 1], "fid must be at least 2, given 1"),
        (["--against", "val"], "against cannot be 'val': known: test, train"),
        (["--pixels", "raw"], "pixels cannot be 'raw': known: as_published, clip, exact"),
        (["--features", "none.pt"], "none.pt cannot be read"),
        (["--features", "models.py"], "models.py is no TorchScript module"),
    ):
        assert sentence in refused(run, *mine, *options)

    class Larger(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.float().reshape(-1, 3, 16, 16).mean((2, 3)) * (images.shape[0] / images.shape[0])

    saved(Larger(), folder / "large.pt", bytes_of(16))
    assert "large.pt" in refused(run, "--features", "large.pt")
    assert command("run", "ornstein_uhlenbeck", "--steps", 3, "-q", "--out", "sde") == 0
    assert "nothing to sample or to evaluate" in refused("sde", *mine)
    assert command("run", "digits", "--steps", 0, "-q", "--out", "wild", "--set", "model.images=40") == 0
    told = refused("wild", *mine, "--kid", 20)
    assert "an image of Decoder has pixels from" in told
    assert "cut them off with --pixels clip" in told
    assert "inception is not in" in refused(run, "--kid", 30)


def test_weights_that_were_altered_are_refused(folder: Path, cli: Cli) -> None:
    run, at = run_of("Bounded"), folder / "cache" / "inception"
    at.mkdir(parents=True)
    (at / "inception.pt").write_bytes(b"another network")
    code, out, err = cli("evaluate", run, "--kid", 30)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "inception.pt in" in err
    assert "missing or not as published: 'sdeflow fetch inception' puts that right" in err
    assert not (folder / run / "evaluation.nc").exists()

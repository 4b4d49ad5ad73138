"""`sdeflow evaluate`: its numbers against closed forms, its files, and what it says where it cannot score."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from commands import Cli, command
from safetensors.torch import load_file

import sdeflow.analysis.score_pictures as score_pictures
from sdeflow.analysis.evaluation import evaluate, read
from sdeflow.analysis.moments import moments
from sdeflow.analysis.pictures import grid
from sdeflow.analysis.reconstruction import langevin, misfit
from sdeflow.analysis.scores import Options
from sdeflow.errors import SdeflowError
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.hierarchical import Hierarchical

COLLAPSED = '''
import torch

import sdeflow
from sdeflow.problems.ppca import PPCA
from sdeflow.system import overdamped


class Split(PPCA):
    """PPCA whose last 20 waves are held out."""

    def __init__(self, data=40):
        super().__init__(data)
        self.held_out = PPCA(data + 20).data[data:]


honest = sdeflow.SystemDeclaration("honest", theta=overdamped("0"), x=overdamped("1"), source="")
collapsed = sdeflow.SystemDeclaration("collapsed", theta=overdamped("0"), x=overdamped("0"), source="")
'''

SPLIT_TOML = """
model.use = "split.py:Split"
system = { use = "split.py:honest", particles = 5, theta.h = 0.002, x.h = 0.01 }
run = { integrator = "euler_maruyama", steps = 600, dtype = "float64" }
save.every = 100
evaluate = { every = 600, steps = 200 }
"""


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "split.py").write_text(COLLAPSED)
    (tmp_path / "split.toml").write_text(SPLIT_TOML)
    return tmp_path


def scores(run: str | Path, parameters: str = "last") -> dict[str, tuple[float, float, float]]:
    """Value and errors over data and over chains of each score in a run folder."""
    with xr.open_dataset(Path(run) / "evaluation.nc") as file:
        found = file.sel(parameters=parameters)
        rows = zip(
            found.value.values, found.error_over_data.values, found.error_over_chains.values, strict=True
        )
        return dict(zip(found.score.values.tolist(), rows, strict=True))


def split_evidence(run: Path, prefix: str) -> np.ndarray:
    """log p(y) of the data that `Split` holds out, at the parameters of a run with that prefix."""
    theta = {k: v.numpy() for k, v in load_file(run / "final.safetensors").items()}
    return evidence_of(*(theta[f"{prefix}{name}"] for name in ("weight", "mean", "log_noise")))


def evidence_of(w: Any, mean: Any, noise: Any) -> np.ndarray:
    from sdeflow.problems.ppca import PPCA

    law = scipy.stats.multivariate_normal(mean, w @ w.T + np.exp(noise) * np.eye(4))
    return np.asarray(law.logpdf(PPCA(60).data[40:].numpy()))


def test_a_collapsed_cloud_has_the_better_loss_and_the_worse_evidence(split: Path) -> None:
    """Particles without noise find a noise that is too small: the loss praises it, the evidence does not.

    The evidence is the closed form's, within 4 of its errors over chains.
    """
    losses, evidences = {}, {}
    for system in ("honest", "collapsed"):
        assert command("run", "split.toml", "--system", f"split.py:{system}", "--out", system, "-q") == 0
        with xr.open_dataset(split / system / "trajectory.nc") as run:
            losses[system] = float(run.held_out_loss[-1])
        assert command("evaluate", system, "-q", "--temperatures", 100) == 0
        value, over_data, error = scores(system)["evidence"]
        evidences[system] = value
        truth = split_evidence(split / system, "theta.")
        assert abs(value - truth.mean()) < 4 * error
        assert abs(over_data - truth.std(ddof=1) / 20**0.5) < 0.2 * over_data
    assert losses["collapsed"] < losses["honest"] - 1
    assert evidences["collapsed"] < evidences["honest"] - 1


@pytest.mark.parametrize("steps", [0, 300])
def test_evidence_under_a_learned_energy(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """log N(y; alpha, 1 + s^2) and log Z = log(2 pi)/2, whatever alpha is: within 4 of their errors."""
    monkeypatch.chdir(tmp_path)
    size = [
        "--set",
        "model.alpha_true=3.0",
        "--set",
        "model.noise=0.5",
        "--set",
        "system.prior_particles=100",
    ]
    assert command("run", "linear_energy", *size, "--steps", steps, "--out", "run", "-q") == 0
    assert command("evaluate", "run", "-q", "--temperatures", 100, "--dtype", "float64") == 0
    found = scores("run")
    alpha = float(load_file("run/final.safetensors")["alpha.mean"])
    with xr.open_dataset("run/evaluation.nc") as both:
        file = both.sel(parameters="last")
        from sdeflow.problems.linear_energy import LinearEnergy

        truth = scipy.stats.norm(alpha, 1.25**0.5).logpdf(
            LinearEnergy(20, noise=0.5, alpha_true=3.0).data[:, 0, 0]
        )
        assert file.attrs["scored"] == "training data"
        assert "no gap" in file.attrs["notes"]
        assert (
            abs(file.log_evidence - truth) < 5 * np.hypot(file.log_evidence_error, found["log_z"][2])
        ).all()
    value, _, error = found["log_z"]
    assert abs(value - np.log(2 * np.pi) / 2) < 4 * error
    value, _, error = found["evidence"]
    assert abs(value - truth.mean()) < 4 * error
    assert error < 0.1


@pytest.mark.parametrize("analytic", [True, False])
def test_langevin_steps_have_the_law_of_their_recursion(analytic: bool) -> None:
    """x' = (1 - 2 h) x + 2 h m + sqrt(2 h) xi on the toy model: mean and variance, within 4.5 errors."""
    model = Hierarchical(2)
    if not analytic:
        model.score_x = None
    theta, h, n = {"theta": torch.tensor(99.0, dtype=torch.float64)}, 0.02, 20_000
    x = torch.full((2, n, 1), 3.0, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    moved = langevin(model, theta, x, model.data, steps=40, h=h, g=g)[..., 0].numpy()
    kept = (1 - 2 * h) ** 40
    mean = (99 + model.data[:, 0].numpy()) / 2
    variance = 2 * h * (1 - kept**2) / (1 - (1 - 2 * h) ** 2)
    assert (abs(moved.mean(1) - mean - kept * (3 - mean)) < 4.5 * (variance / n) ** 0.5).all()
    assert (abs(moved.var(1) / variance - 1) < 4.5 * (2 / n) ** 0.5).all()


def test_misfit_is_the_mean_square_of_pixels() -> None:
    """By a loop in numpy, of a decoder without hidden layers."""
    model = Decoder(latent=2, hidden=(), images=3)
    g = torch.Generator().manual_seed(0)
    theta = {"0.weight": torch.randn(64, 2, generator=g), "0.bias": torch.randn(64, generator=g)}
    x = torch.randn(3, 4, 2, generator=g)
    found = misfit(model, theta, x, model.data)
    w, b, y = theta["0.weight"].numpy(), theta["0.bias"].numpy(), model.data.numpy()
    for i in range(3):
        images = [w @ x[i, j].numpy() + b for j in range(4)]
        assert found.of_mean[i] == pytest.approx(np.mean((y[i] - sum(images) / 4) ** 2), rel=1e-5)
        assert found.of_each[i] == pytest.approx(np.mean([(y[i] - image) ** 2 for image in images]), rel=1e-5)


SMALL = ["--set", "model.images=40", "--steps", 30, "--quiet", "--out"]
BRIEF = ["--temperatures", 20, "--chains", 4, "--langevin-steps", 30, "--langevin-h", 2e-3]


def test_scores_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """All scores, as a table and in a file; the same again; of a replica of its own, and in another dtype."""
    monkeypatch.chdir(tmp_path)
    assert command("run", "digits", *SMALL, "run", "--set", "model.held_out=15", "--replicas", 2) == 0
    code, out, err = cli("evaluate", "run", *BRIEF, "--replica", 1, "--at-once", 4)
    assert code == 0, err
    for told in (
        "log-evidence, held-out data",
        "gap of bounds",
        "reconstruction, own particles",
        "evaluation.nc",
    ):
        assert told in out
    whole = xr.load_dataset("run/evaluation.nc")
    assert whole.parameters.values.tolist() == ["last"]
    first = whole.isel(parameters=0)
    assert dict(first.sizes) == {"score": 6, "datum": 15, "simulated": 64, "trained": 40}
    each = {"evidence": "log_evidence"} | {s: s for s in first.score.values.tolist() if "reconstruction" in s}
    for score, values in each.items():
        one = first.sel(score=score)
        assert float(one.value) == pytest.approx(float(first[values].mean()))
        expected = float(first[values].std(ddof=1)) / first[values].size ** 0.5
        assert float(one.error_over_data) == pytest.approx(expected)
    gap = (first.simulated_above - first.simulated_below).mean()
    assert float(first.value.sel(score="gap")) == pytest.approx(float(gap))
    own, recorded = float(first.value.sel(score="own_reconstruction")), xr.load_dataset("run/trajectory.nc")
    assert own == pytest.approx(float(recorded.reconstruction_error[-1, 1]), rel=1e-5)
    assert first.attrs["steps_taken"] == 30 and first.attrs["chains"] == 4  # noqa: PT018

    assert command("evaluate", "run", *BRIEF, "--replica", 1, "--at-once", 4, "--quiet") == 0
    np.testing.assert_array_equal(whole.value, xr.load_dataset("run/evaluation.nc").value)
    options = {"temperatures": 20, "chains": 4, "langevin_steps": 30}
    double = evaluate(Path("run"), Options(**options, data=5, dtype="float64"))
    assert (double.attrs["dtype"], double.sizes["datum"], double.sizes["trained"]) == ("float64", 5, 5)
    assert float(double.value[0, 0]) != float(first.value[0])


def test_an_average_is_scored_beside_the_last(split: Path, cli: Cli) -> None:
    """Each with its closed form, within 4 of its errors; in the table, the file, a report and compare.nc."""
    quick = ["--steps", 150, "-q", "--set", "evaluate.every=100"]
    assert command("run", "split.toml", "--set", "average.decay=1", *quick, "--out", "run") == 0
    assert command("run", "split.toml", "--integrator", "expint", *quick, "--out", "other") == 0
    code, out, _ = cli("evaluate", "run", "--temperatures", 100)
    assert code == 0
    truth = {
        "last": split_evidence(Path("run"), "theta."),
        "average": split_evidence(Path("run"), "average.theta."),
    }
    assert abs(truth["last"].mean() - truth["average"].mean()) > 0.4  # twice what is allowed for
    for parameters, values in truth.items():
        value, _, error = scores("run", parameters)["evidence"]
        assert abs(value - values.mean()) < 4 * error < 0.2
        shown = re.search(rf"{parameters} +(\S+) +\S+ +\S+ *\n", out)
        assert shown is not None
        assert float(shown.group(1)) == pytest.approx(value, abs=0.01)
    assert command("evaluate", "other", "--temperatures", 20, "-q") == 0
    assert command("report", "run", "other", "--out", "both", "-q") == 0
    with xr.open_dataset("both/compare.nc") as both:
        value = both.score_value.sel(score="evidence")
        mean = float(value.sel(integrator="euler_maruyama", parameters="average"))
        assert mean == scores("run", "average")["evidence"][0]
        assert np.isnan(float(value.sel(integrator="expint", parameters="average")))
    page = Path("both/report.html").read_text()
    assert page.count("euler_maruyama, average of the parameters") == 1
    assert "expint, average" not in page


@pytest.mark.parametrize("kept", [False, True])
def test_evidence_along_a_run(kept: bool, split: Path, cli: Cli) -> None:
    """Of each moment the closed form's at its parameters, within 4 errors: of snapshots, of kept files."""
    how = ["--set", "save.keep=3", "--set", "save.theta_max=0"] if kept else []
    options = ["--steps", 300, "--set", "evaluate.every=100", "--set", "average.decay=1", "-q", "--out"]
    assert command("run", "split.toml", *options, "run", *how) == 0
    assert command("run", "split.toml", *options, "whole") == 0
    code, out, _ = cli("evaluate", "run", "--temperatures", 50, "--along")
    assert code == 0
    assert "Evidence along the run" in out
    found = xr.load_dataset("run/evaluation.nc")
    steps = [100, 200, 300] if kept else [0, 100, 200, 300]
    assert found.step.values.tolist() == found.gradient_evaluations.values.tolist() == steps
    whole = xr.load_dataset("whole/trajectory.nc").swap_dims(time="step")
    for name, theta in (("last", whole.theta), ("average", whole.average_theta)):
        one = found.sel(parameters=name)
        assert float(one.evidence_along[-1]) == float(one.value.sel(score="evidence"))
        assert float(one.evidence_along[-1]) - float(one.evidence_along[0]) > 0.4
        for step in steps:
            at = theta.sel(step=step)
            values = {key: at[at.param.str.startswith(key)].values for key in ("weight", "mean", "log_noise")}
            truth = evidence_of(values["weight"].reshape(4, 2), values["mean"], values["log_noise"])
            then = one.sel(step=step)
            error = float(then.evidence_along_error_over_chains)
            assert abs(float(then.evidence_along) - truth.mean()) < 4 * error < 0.4


def test_moments_count_the_evaluations_that_chose_numbers(split: Path) -> None:
    """Those of the tuning by then, and two a step of expint; one replica's parameters."""
    auto = ["--set", "system.x.h='auto'", "--set", "system.theta.h='auto'", "--integrator", "expint"]
    options = ["--steps", 40, "--set", "evaluate.every=20", "--set", "save.every=20", "--replicas", 2, "-q"]
    assert command("run", "split.toml", *options, *auto, "--out", "run") == 0
    run = xr.load_dataset("run/trajectory.nc")
    when = moments(Path("run"), read(Path("run"), 1), 1)
    assert [m.step for m in when] == [0, 20, 40]
    assert [m.evaluations for m in when] == (2 * run.step + run.tuning_evaluations[:, 1]).values.tolist()
    for i, moment in enumerate(when):
        theta = moment.found.theta
        flat = torch.cat([theta[name].flatten() for name in ("weight", "mean", "log_noise")])
        np.testing.assert_array_equal(flat, run.theta[i, 1])


@pytest.mark.parametrize("kept", [False, True])
def test_moments_of_an_encoder_s_run_are_those_of_shorter_runs(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder's parameters and the latents that the encoder makes, the average's too."""
    monkeypatch.chdir(tmp_path)
    size = ["--set", "model.images=20", "--set", "model.hidden=[3]", "--set", "system.theta.h=1e-4"]
    size += ["--set", "system.encoder_hidden=[3]", "--set", "average.decay=0.5", "-q", "--system", "vi"]
    size += ["--set", "save.every=2"] + (
        ["--set", "save.keep=3", "--set", "save.theta_max=0"] if kept else []
    )
    for steps in (2, 4, 6):
        assert command("run", "digits", *size, "--steps", steps, "--out", steps) == 0
    whole = {moment.step: moment.found for moment in moments(Path("6"), read(Path("6")))}
    for step in (2, 4, 6):
        now, then = whole[step], read(Path(str(step)))
        assert now.average is not None
        assert then.average is not None
        for one, other in ((now, then), (now.average, then.average)):
            assert (
                one.theta.keys()
                == other.theta.keys()
                == {f"{i}.{n}" for i in (0, 2) for n in ("weight", "bias")}
            )
            for name, value in one.theta.items():
                torch.testing.assert_close(value, other.theta[name], rtol=0, atol=0)


def test_fold_halves_the_held_out_data(split: Path) -> None:
    """Every other datum from the first and from the second; a datum's evidence is that among all."""
    assert (
        command("run", "split.toml", "--steps", 100, "--set", "evaluate.every=100", "-q", "--out", "run") == 0
    )
    brief: dict[str, Any] = {"temperatures": 20, "pictures": False}
    whole, first, second = (
        evaluate(Path("run"), Options(fold=fold, **brief)) for fold in ("", "validation", "test")
    )
    assert first.datum.values.tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert second.datum.values.tolist() == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]
    for half in (first, second):
        np.testing.assert_allclose(half.log_evidence, whole.log_evidence.sel(datum=half.datum), rtol=1e-8)
    assert first.attrs["scored"] == "held-out data, validation"
    few = evaluate(Path("run"), Options(fold="test", data=2, **brief))
    assert few.datum.values.tolist() == [1, 19]


def test_a_fold_needs_held_out_data_and_a_name(split: Path, cli: Cli) -> None:
    assert command("run", "hierarchical", "--steps", 1, "-q", "--out", "run") == 0
    code, _, error = cli("evaluate", "run", "--fold", "test")
    assert code == 2
    assert "fold = 'test' is half of the held-out data" in error
    code, _, error = cli("evaluate", "run", "--fold", "tset")
    assert code == 2
    assert "did you mean 'test'" in error


def test_of_two_thetas_that_are_the_same_all_scores_are(split: Path) -> None:
    """Noise, data and steps are common to both, so that they differ by their parameters alone."""
    run = ["run", "split.toml", "--steps", 5, "--set", "average.decay=0", "-q", "--set", "evaluate.every=5"]
    assert command(*run, "--set", "save.every=5", "--out", "run") == 0
    found = evaluate(Path("run"), Options(temperatures=10))
    np.testing.assert_array_equal(found.value.sel(parameters="last"), found.value.sel(parameters="average"))


@pytest.mark.parametrize("problem", ["digits", "linear_energy"])
def test_data_have_noise_of_their_own(problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many move at once: what each is scored differs by rounding alone, to 1e-8.

    Of fewer data each has the evidence that it has among all.
    """
    monkeypatch.chdir(tmp_path)
    size = ["--set", "model.images=40"] if problem == "digits" else ["--set", "system.prior_particles=30"]
    assert command("run", problem, *size, "--steps", 30, "-q", "--out", "run") == 0
    brief: dict[str, Any] = {"temperatures": 20, "langevin_steps": 10, "dtype": "float64", "pictures": False}
    first, *others = (evaluate(Path("run"), Options(at_once=n, **brief)) for n in (3, 7, 100))
    for other in others:
        xr.testing.assert_allclose(first, other, rtol=1e-8)
    few = evaluate(Path("run"), Options(data=5, **brief))
    np.testing.assert_allclose(few.log_evidence, first.log_evidence.sel(datum=few.datum), rtol=1e-8)


def test_pictures_show_what_was_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """Of images the originals, their particles decoded and the means, whose errors are the scores."""
    monkeypatch.chdir(tmp_path)
    drawn: list[torch.Tensor] = []

    def seen(images: torch.Tensor, columns: int) -> Any:
        drawn.append(images)
        return grid(images, columns)

    monkeypatch.setattr(score_pictures, "grid", seen)
    assert command("run", "digits", *SMALL, "run", "--set", "model.held_out=15") == 0
    code, out, _ = cli("evaluate", "run", *BRIEF, "--along")
    assert code == 0
    names = ("samples", "reconstructions", "particles", "along")
    pictures = [f"evaluation-{name}.png" for name in names]
    told = [line for line in out.splitlines() if line.endswith(".png")]
    assert told == [f"run/{name}" for name in pictures]
    scores = xr.load_dataset("run/evaluation.nc").isel(parameters=0)
    assert scores.attrs["pictures"] == ", ".join(pictures)
    data, samples, both = drawn
    held_out = Decoder(images=40, held_out=15).held_out.float()
    assert data.shape == (15, 1, 8, 8)
    assert samples.shape == (36, 1, 8, 8)
    original, *each, mean = both.view(7, 8, 64)
    torch.testing.assert_close(original, held_out[:8])
    torch.testing.assert_close(mean, torch.stack(each).mean(0))
    np.testing.assert_allclose((original - mean).square().mean(1), scores.reconstruction[:8], rtol=1e-5)
    assert command("evaluate", "run", *BRIEF, "-q") == 0
    assert {path.name for path in Path("run").glob("*.png")} == {*pictures[:3]}
    assert command("evaluate", "run", *BRIEF, "--no-pictures", "-q") == 0
    assert {path.name for path in Path("run").glob("*.png")} == {*pictures[:3]}


@pytest.mark.parametrize(
    ("problem", "names"),
    [
        ("ppca", "samples particles"),
        ("hierarchical", "samples particles"),
        ("latent_ebm_2d", "samples reconstructions particles"),
        ("breast_cancer", "particles"),
    ],
)
def test_pictures_of_what_is_no_image(
    problem: str, names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Histograms, points, means against originals; one datum of labels has no samples beside it."""
    monkeypatch.chdir(tmp_path)
    size = ["--set", "system.prior_particles=50"] if problem == "latent_ebm_2d" else []
    assert command("run", problem, *size, "--steps", 2, "-q", "--out", "run") == 0
    assert command("evaluate", "run", *BRIEF, "--data", 9, "-q") == 0
    assert {path.name for path in Path("run").glob("*.png")} == {f"evaluation-{n}.png" for n in names.split()}


def test_every_move_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is reported of progress goes up by one, to what was said from the first report on."""
    monkeypatch.chdir(tmp_path)
    assert command("run", "digits", *SMALL, "run") == 0
    size = ["--set", "system.prior_particles=30", "--steps", 5, "-q", "--out"]
    assert command("run", "linear_energy", *size, "energy") == 0
    for run in ("run", "energy"):
        bar = Mock()
        evaluate(Path(run), Options(temperatures=6, langevin_steps=7, at_once=15), bar)
        seen = [told.args for told in bar.call_args_list]
        assert seen == [(done, len(seen), None) for done in range(1, len(seen) + 1)]


@pytest.mark.parametrize(("images", "strata"), [(40, 1), (41, 1), (42, 7)])
def test_a_run_by_minibatches_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, images: int, strata: int
) -> None:
    """Its last loss is of some data alone, and is compared with that of the same ones."""
    monkeypatch.chdir(tmp_path)
    size = ["--set", f"model.images={images}", "--set", "batch.size=7", "--replicas", 2]
    size += ["--set", f"parallel.strata={strata}"]
    assert command("run", "digits", "--variant", "fixed", *size, "--steps", 30, "-q", "--out", "run") == 0
    code, _, err = cli("evaluate", "run", *BRIEF, "--replica", 1)
    assert code == 0, err
    config = Path("run/config.toml")
    config.write_text(config.read_text().replace("sigma = 0.3", "sigma = 0.31"))
    assert "the model of run has changed: its loss was" in cli("evaluate", "run", *BRIEF).err


def test_a_model_that_says_less_is_scored_by_less(split: Path, cli: Cli) -> None:
    """Without sample_data no gap, without decode no reconstruction; both are told, and chains too few."""
    (split / "split.py").write_text(f"{COLLAPSED}\n\nSplit.sample_data = None\n")
    assert command("run", "split.toml", "--steps", 0, "--out", "run", "-q") == 0
    code, out, _ = cli("evaluate", "run", "--temperatures", 2)
    assert code == 0
    assert list(scores("run")) == ["evidence"]
    told = " ".join(out.split())
    assert "no gap of bounds: Split has no sample_data; no reconstructions: Split has no decode" in told
    assert "give more" not in told
    assert command("run", "hierarchical", "--steps", 0, "--out", "far", "-q") == 0
    code, out, _ = cli("evaluate", "far", "--temperatures", 3)
    assert "likely too low, give more --temperatures" in " ".join(out.split())


def test_scores_stand_in_a_report(split: Path) -> None:
    """In the page and in compare.nc, beside a run without any; not those of a run that has gone on since."""
    quick = ["run", "split.toml", "--steps", 4, "--set", "evaluate.every=2", "--set", "save.every=2", "-q"]
    for scheme in ("expint", "euler_maruyama"):
        assert command(*quick, "--integrator", scheme, "--out", scheme) == 0
    assert command("evaluate", "expint", "-q", "--temperatures", 20, "--data", 12) == 0
    found = scores("expint")
    assert command("report", "expint", "euler_maruyama", "--out", "both", "-q") == 0
    with xr.open_dataset("both/compare.nc") as both:
        mine, other = (both.sel(integrator=name) for name in ("expint", "euler_maruyama"))
        for name, numbers in found.items():
            columns = ("score_value", "score_error_over_data", "score_error_over_chains")
            mine = mine.sel(parameters="last", drop=True) if "parameters" in mine.dims else mine
            assert [float(mine[c].sel(score=name)) for c in columns] == pytest.approx(numbers, nan_ok=True)
        assert int(mine.score_data) == 12
        assert other.score_value.isnull().all()
    page = Path("both/report.html").read_text()
    value, over_data, over_chains = found["evidence"]
    assert "log-evidence, held-out data" in page
    digits = 1 - int(np.floor(np.log10(min(over_data, over_chains))))
    assert f"{value:.{digits}f} ± {over_data:.{digits}f} (± {over_chains:.{digits}f})" in page
    assert command("resume", "expint", "--steps", 2, "-q") == 0
    assert command("report", "expint", "--out", "later", "-q") == 0
    assert "log-evidence" not in Path("later/report.html").read_text()


Stop = Callable[[int | None], None]


def test_what_cannot_be_scored_is_said(split: Path, cli: Cli, stop_before: Stop) -> None:
    """One sentence each, exit code 2, and nothing is written."""

    def refused(*arguments: Any) -> str:
        code, out, err = cli("evaluate", *arguments)
        assert (code, out, err.count("\n"), "Traceback" in err) == (2, "", 1, False), err
        assert not list(split.rglob("evaluation.nc"))
        return err

    quick = [
        "run",
        "split.toml",
        "--steps",
        4,
        "--set",
        "save.every=2",
        "--set",
        "evaluate.every=2",
        "-q",
        "--out",
    ]
    assert "nothing is no run folder" in refused("nothing")
    stop_before(3)
    assert cli(*quick, "part").code == 130
    stop_before(None)
    told = refused("part")
    assert "part has not ended, it took 3 of 4 steps" in told
    assert "'sdeflow resume part'" in told
    assert cli(*quick, "lost", "--set", "system.x.h=1e9").code == 3
    assert "lost diverged" in refused("lost")
    assert command("run", "ornstein_uhlenbeck", "--steps", 3, "-q", "--out", "sde") == 0
    assert "nothing to sample or to evaluate" in refused("sde")

    assert command(*quick, "run") == 0
    for options, sentence in (
        (["--chains", 1], "chains must be at least 2, given 1"),
        (["--langevin-h", -1], "langevin_h must be positive"),
        (["--dtype", "float16"], "dtype must be float32 or float64"),
        (["--replica", 1], "replica must lie in 0..0"),
        (["--device", "tpu"], "device must be"),
        (["--prior", "gmm:2", "--along"], "leave --along or --prior out"),
    ):
        assert sentence in refused("run", *options)

    for code, sentence in (
        (
            COLLAPSED.replace("super().__init__(data)", "super().__init__(data, 3)"),
            "(4, 2) for 'theta.weight'",
        ),
        (COLLAPSED.replace("__init__(data)\n", "__init__(data + 1)\n"), "holds (40, 5, 2) for 'X'"),
        (
            f"{COLLAPSED}\n\nold = Split.log_joint\nSplit.log_joint = lambda *a: 1.01 * old(*a)",
            "its loss was",
        ),
    ):
        (split / "split.py").write_text(code)
        told = refused("run")
        assert "the model of run has changed" in told
        assert sentence in told
    assert command(*quick, "norm", "--set", "save.theta_max=0") == 0
    assert "norm has kept its parameters at no moment but the end" in refused("norm", "--along")
    constant = "old = Split.log_prior\nSplit.log_prior = lambda *a: old(*a) + 1"
    (split / "split.py").write_text(f"{COLLAPSED}\n\n{constant}\n")
    assert "Split.log_prior is not the normalised log-density" in refused("run")
    (split / "split.py").write_text(f"{COLLAPSED}\n\nSplit.log_prior = Split.sample_prior = None\n")
    assert "Split has no log_prior and no sample_prior" in refused("run")


def test_particles_that_run_away_are_refused() -> None:
    model, g = Hierarchical(2), torch.Generator().manual_seed(0)
    x = torch.zeros(2, 3, 1, dtype=torch.float64)
    with pytest.raises(SdeflowError, match=r"run away in 2000 Langevin steps of 5.*smaller --langevin-h"):
        langevin(model, {"theta": torch.zeros(())}, x, model.data, steps=2000, h=5.0, g=g)

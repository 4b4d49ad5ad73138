"""Annealed importance sampling from the prior: closed forms, honest errors, and bounds from both sides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from small import CPU, FLOAT64

import sdeflow.analysis.prior_check as prior_check
from sdeflow import Model
from sdeflow.analysis.annealing import Base, Ladder, Path, adapted, backwards, forwards, prior, sigmoid
from sdeflow.analysis.evidence import Evidence
from sdeflow.analysis.prior_check import check_prior
from sdeflow.errors import SdeflowError
from sdeflow.problems.decoder import Decoder
from sdeflow.problems.factor_analysis import FactorAnalysis
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.ill_conditioned import IllConditioned
from sdeflow.problems.latent_ebm import LatentEBM
from sdeflow.problems.logistic import Logistic
from sdeflow.problems.matrix_sensing import MatrixSensing
from sdeflow.problems.ppca import PPCA
from sdeflow.problems.state_space import StateSpace, StochasticVolatility
from sdeflow.problems.two_modes import TwoModes

Theta = dict[str, torch.Tensor]


def number(value: Any) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def path_of(model: Model, theta: Theta) -> Path:
    return Path(prior(model, theta, number(0.0)), model, theta)


def diagonal(mean: Any, variance: Any) -> Callable[[np.ndarray], np.ndarray]:
    """log N(y; mean, diag(variance)) of each row."""
    return lambda y: scipy.stats.norm(mean, np.sqrt(variance)).logpdf(y).sum(1)


def linear(model: PPCA, seed: int | None) -> tuple[Model, Theta, Any]:
    """At the MLE, or for a seed at a W, mean and noise drawn at random."""
    g = generator(seed or 0)
    drawn = {key: torch.randn(v.shape, generator=g, dtype=torch.float64) for key, v in model.mle.items()}
    theta = {**model.mle} if seed is None else drawn
    w, mean, noise = (theta[key].numpy() for key in ("weight", "mean", "log_noise"))
    law = scipy.stats.multivariate_normal(mean, w @ w.T + np.exp(noise) * np.eye(len(mean)))
    return model, theta, law.logpdf


def toy(theta: float, **options: Any) -> tuple[Model, Theta, Any]:
    model = Hierarchical(**options)
    return model, {"theta": number(theta)}, diagonal(theta, 1 + model.variance)


def ill(shift: float) -> tuple[Model, Theta, Any]:
    """So many standard deviations off the MLE in every coordinate."""
    model = IllConditioned(8)
    theta = model.data.mean(0) + shift * model.scale
    return model, {"theta": theta}, diagonal(theta.numpy(), 2 * model.scale.numpy() ** 2)


def two(theta: float) -> tuple[Model, Theta, Any]:
    model = TwoModes(8, latent=2, prior=1.5, noise=0.5)
    return model, {"theta": number([theta, theta])}, diagonal(theta, 1.5**2 + 0.5**2)


CASES = {
    "hierarchical": toy(100.0, data=20),
    "hierarchical, far": toy(80.0, data=20),
    "hierarchical, wide": toy(97.0, data=20, latent=3, scale=3.0),
    "ill_conditioned": ill(0.0),
    "ill_conditioned, far": ill(-5.0),
    "ppca": linear(PPCA(), None),
    "ppca, elsewhere": linear(PPCA(), 1),
    "two_modes": two(0.3),
}


@pytest.mark.parametrize("case", CASES)
def test_evidence_is_the_closed_form(case: str) -> None:
    """The mean over data: within 4 of its own errors, which are small."""
    model, theta, truth = CASES[case]
    path, g = path_of(model, theta), generator()
    ladder = adapted(path, model.data, temperatures=500, chains=16, g=g)
    found = forwards(path, model.data, ladder, chains=16, g=g)
    assert abs(found.mean.value - truth(model.data.numpy()).mean()) < 4 * found.mean.error
    assert found.mean.error < (0.3 if "far" in case else 0.06)


def test_errors_cover() -> None:
    """200 means over 5 data, each of 16 chains: 2 errors cover in 95% of them, within 4 binomial errors."""
    model, theta, truth = toy(97.0, data=5)
    path, g, n = path_of(model, theta), generator(3), 200
    ladder = adapted(path, model.data, temperatures=50, chains=64, g=g)
    found = forwards(path, model.data.repeat(n, 1), ladder, chains=16, g=g)
    means = [Evidence(*(values[5 * i : 5 * i + 5] for values in found)).mean for i in range(n)]
    z = np.array([mean.value - truth(model.data.numpy()).mean() for mean in means])
    z /= [mean.error for mean in means]
    assert abs((abs(z) < 2).mean() - 0.95) < 4 * (0.95 * 0.05 / n) ** 0.5
    assert abs((abs(z) < 1).mean() - 0.68) < 4 * (0.68 * 0.32 / n) ** 0.5


def test_the_error_of_many_data_holds_the_bias() -> None:
    """Four chains at 20 temperatures, 2000 data: 4 errors of chance alone miss it, 4 of the mean do not."""
    model, theta, truth = toy(97.0, data=5)
    path, g = path_of(model, theta), generator(4)
    ladder = adapted(path, model.data, temperatures=20, chains=64, g=g)
    found = forwards(path, model.data.repeat(400, 1), ladder, chains=4, g=g)
    off = found.mean.value - truth(model.data.numpy()).mean()
    assert off < -4 * (found.error**2).sum() ** 0.5 / 2000
    assert -4 * found.mean.error < off
    assert found.bias.mean() == pytest.approx(off, rel=0.5)


def bounds(temperatures: int, data: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p(y) of data drawn from the toy model: from below and from above by 2 chains, and the truth."""
    model, theta, truth = toy(0.0, data=5, scale=3.0)
    path, g = path_of(model, theta), generator(1)
    x = path.base.sample(data, g)
    y = model.sample_data(theta, x, g)
    ladder = adapted(path, y[:50], temperatures=temperatures, chains=16, g=g)
    below = forwards(path, y, ladder, chains=2, g=g).value
    return below, -backwards(path, x, y, ladder, chains=2, g=g).value, truth(y.numpy())


def test_bounds_enclose_the_truth_and_their_gap_shrinks_as_the_temperatures_grow() -> None:
    """Four times the temperatures, a quarter of the gap: within 4 standard errors of the ratio."""
    gaps = []
    for temperatures in (20, 80):
        below, above, truth = bounds(temperatures)
        error = (above - below).std() / len(truth) ** 0.5
        assert (below - truth).mean() < -4 * (below - truth).std() / len(truth) ** 0.5
        assert (above - truth).mean() > 4 * (above - truth).std() / len(truth) ** 0.5
        gaps.append(((above - below).mean(), error))
    (coarse, e), (fine, f) = gaps
    ratio = coarse / fine
    assert abs(ratio - 4) < 4 * ratio * np.hypot(e / coarse, f / fine)


def test_weights_have_the_mean_p_forwards_and_one_over_p_backwards() -> None:
    """At 5 temperatures already, with steps that fit badly: unbiased, within 4 standard errors."""
    model, theta, truth = toy(0.0, data=1)
    path, g, n = path_of(model, theta), generator(2), 4000
    ladder = Ladder(sigmoid(5), [0.9, 1.6, 0.4, 1.0], torch.ones(1, dtype=torch.float64))
    y = number([[0.7]])
    found = forwards(path, y, ladder, chains=n, g=g)
    assert abs(found.value[0] - truth(y.numpy())[0]) < 4 * found.error[0]
    draws = 0.35 + 0.5**0.5 * torch.randn(n, 1, generator=g, dtype=torch.float64)  # the posterior
    back = backwards(path, draws, y.expand(n, 1), ladder, chains=2, g=g).value
    weights = np.exp(back)
    assert abs(weights.mean() - np.exp(-truth(y.numpy())[0])) < 4 * weights.std() / n**0.5


def test_the_ladder() -> None:
    """Temperatures are a logistic curve from 0 to 1, even about the middle; steps follow the width."""
    t = np.array(sigmoid(10))
    assert t[0] == 0 and t[-1] == 1  # noqa: PT018
    np.testing.assert_allclose(t + t[::-1], 1)
    curve = 1 / (1 + np.exp(-np.linspace(-4, 4, 11)))
    np.testing.assert_allclose(t, (curve - curve[0]) / (curve[-1] - curve[0]))
    model, theta, _ = toy(0.0, data=50, scale=10.0)
    ladder = adapted(path_of(model, theta), model.data, temperatures=300, chains=16, g=generator())
    assert len(ladder.h) == 299
    assert abs(float(ladder.scale) - 10) < 4 * 10 / 2000**0.5
    width = (1 / (1 + 10**2)) ** 0.5  # of the posterior, in units of the prior's
    assert abs(ladder.h[-1] / ladder.h[0] / width - 1) < 0.15


def test_single_precision_and_any_latent_shape_and_scores_do_not_matter() -> None:
    """The same value within 4 errors in float32, with latents of two axes, and with torch's gradients."""

    class Shaped(FactorAnalysis):
        """The same model, its latent a matrix, its data a tuple, and no scores of its own."""

        score_x = score_theta = None

        def log_joint(self, theta: Any, x: torch.Tensor, y: Any) -> torch.Tensor:
            return super().log_joint(theta, x.flatten(-2), y[0])

        def log_prior(self, theta: Any, x: torch.Tensor) -> torch.Tensor:
            return super().log_prior(theta, x.flatten(-2))

    model, shaped = FactorAnalysis(100), Shaped(100)
    shaped.latent_shape = (2, 1)
    whole = path_of(model, dict(model.mle))
    theta = {key: value.float() for key, value in shaped.mle.items()}
    single = shaped.to(torch.float32, CPU)
    other = Path(prior(single, theta, torch.zeros(())), single, theta)
    found = []
    for path, y in ((whole, model.data), (other, (single.data,))):
        ladder = adapted(path, y, temperatures=100, chains=16, g=generator())
        found.append(forwards(path, y, ladder, chains=16, g=generator(1)).mean)
    truth = -model.minimum / 100
    for mean in found:
        assert abs(mean.value - truth) < 4 * mean.error
        assert mean.error < 0.1


def decoder() -> tuple[Model, Theta]:
    model = Decoder(latent=3, hidden=(5,), images=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta = {key: v.detach().double() for key, v in model.init_theta(generator()).named_parameters()}
    return model.to(**FLOAT64), theta


def gaussian_ebm() -> tuple[Model, Theta]:
    model = LatentEBM(points=4, held_out=0, energy_hidden=[], sigma=0.3)
    return model, {}


LAWS: dict[str, Any] = {name: case[:2] for name, case in CASES.items()}
LAWS |= {
    "factor_analysis": (m := FactorAnalysis(100), dict(m.mle)),
    "decoder": decoder(),
    "ebm": gaussian_ebm(),
    "matrix_sensing": (MatrixSensing(), {"factor": torch.linspace(-1, 1, 8, dtype=torch.float64).view(4, 2)}),
    "state_space": ((s := StateSpace(6)), s.start),
    "stochastic_volatility": ((v := StochasticVolatility(6)), v.start),
}


@pytest.mark.parametrize("case", LAWS)
def test_what_models_state_of_their_data_is_one_law(case: str) -> None:
    """Draws of x and y against log_prior and log_joint, by Stein's identities: within 4.5 standard errors.

    For a density p and its draws z, E[grad log p] = 0 and E[z_c grad_c log p] = -1: of x, and of y given x.
    """
    model, theta = LAWS[case]
    n, g = 20_000, generator(5)
    x = model.sample_prior(theta, n, g).double()
    y = model.sample_data(theta, x, g).double()
    of_x = torch.func.grad(lambda x: model.log_prior(theta, x).sum())(x)
    of_y = torch.func.grad(lambda y: model.log_joint(theta, x[:, None], y).sum())(y)
    for z, score in ((x, of_x), (y, of_y)):
        centred, score = (z - z.mean(0)).flatten(1), score.flatten(1)
        for values in (score, centred * score + 1):
            worst = (values.mean(0) / (values.std(0) / n**0.5)).abs().max()
            assert worst < 4.5


# log_prior against sample_prior ----------------------------------------------------------------------


@pytest.mark.parametrize("case", LAWS)
def test_priors_of_models_are_what_they_draw(case: str) -> None:
    """None is refused, in single precision neither."""
    model, theta = LAWS[case]
    check_prior(case, prior(model, theta, number(0.0)), generator())
    single = {key: value.float() for key, value in theta.items()}
    check_prior(case, prior(model.to(torch.float32, CPU), single, torch.zeros(())), generator(1))


def heavy(d: int, rate: float = 1.0, factor: float = 1.0, constant: float = 0.0) -> Base:
    """Draws of Laplace's law of this rate, times a factor; a density with a constant too much."""

    def log_density(x: torch.Tensor) -> torch.Tensor:
        return d * np.log(rate / 2) - rate * x.abs().sum(-1) + constant

    def sample(n: int, g: torch.Generator) -> torch.Tensor:
        u = torch.rand(2, n, d, generator=g, dtype=torch.float64).log()
        return factor * (u[0] - u[1]) / rate

    return Base(log_density, sample)


@pytest.mark.parametrize("d", [1, 8])
def test_a_right_prior_is_seldom_refused(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A law of heavier tails, 400 times at a rate of one in twenty: no more, within 4 binomial errors."""
    monkeypatch.setattr(prior_check, "FALSE_ALARMS", 0.05)
    monkeypatch.setattr(prior_check, "DRAWS", 400)
    refused = 0
    for seed in range(400):
        try:
            check_prior("Heavy", heavy(d, 0.3), generator(seed))
        except SdeflowError:
            refused += 1
    assert refused / 400 < 0.05 + 4 * (0.05 * 0.95 / 400) ** 0.5


@pytest.mark.parametrize(
    ("d", "wrong", "sentence"),
    [
        (1, {"factor": 1.3}, "sample_prior does not draw from the law of log_prior"),
        (8, {"factor": 0.8}, "sample_prior does not draw from the law of log_prior"),
        (1, {"constant": 0.92}, "log_prior is not the normalised log-density"),
        (8, {"constant": 8 * 0.92}, "log_prior is not the normalised log-density"),
        (8, {"constant": -1.0}, "log_prior is not the normalised log-density"),
        (2, {"constant": float("nan")}, "log_prior is not finite at 10,000 of 10,000 draws"),
    ],
)
def test_a_wrong_prior_is_refused(d: int, wrong: dict[str, float], sentence: str) -> None:
    """A standard deviation by a quarter off; a constant left out, as that of a Gaussian."""
    with pytest.raises(SdeflowError, match=f"Heavy.{sentence}"):
        check_prior("Heavy", heavy(d, 0.3, **wrong), generator())


def test_the_law_of_labels() -> None:
    """Logistic regression: a label is kept as often as the sigmoid says, within 4.5 standard errors."""
    model = Logistic()
    theta, g = {"theta": number(0.1)}, generator()
    x = model.sample_prior(theta, 20_000, g)
    assert abs(x.mean() - 0.1) < 4.5 * (5 / x.numel()) ** 0.5
    log_p = torch.distributions.Normal(number(0.1), 5**0.5).log_prob(x.double()).sum(1)
    torch.testing.assert_close(model.log_prior(theta, x.double()), log_p)
    one = (x[:1] / 10).double()
    drawn = model.sample_data(theta, one.expand(4000, -1), g)
    kept = (drawn == model.data).all(2).double().mean(0)
    p = torch.sigmoid(model.data[0] @ one[0])
    assert ((kept - p).abs() < 4.5 * (p * (1 - p) / 4000).sqrt() + 1e-9).all()
    assert ((drawn == model.data) | (drawn == -model.data)).all()


def test_a_prior_that_is_not_stated_or_is_wrong_is_refused() -> None:
    class Silent(Hierarchical):
        log_prior = sample_prior = None

    class Wide(Hierarchical):
        def sample_prior(self, theta: Any, n: int, generator: Any) -> torch.Tensor:
            return torch.zeros(n)

    class Summed(Hierarchical):
        def log_prior(self, theta: Any, x: torch.Tensor) -> torch.Tensor:
            return super().log_prior(theta, x).sum()

    theta, like = {"theta": number(0.0)}, number(0.0)
    with pytest.raises(SdeflowError, match=r"Silent has no log_prior and no sample_prior.*give it log_prior"):
        prior(Silent(3), theta, like)
    with pytest.raises(SdeflowError, match=r"Wide.sample_prior gives shape \(4,\), expected shape \(4, 1\)"):
        prior(Wide(3), theta, like).sample(4, generator())
    with pytest.raises(SdeflowError, match=r"Summed.log_prior gives shape \(\)"):
        prior(Summed(3), theta, like).log_density(torch.zeros(4, 1))

"""Methods on a state space model: predicted from a scheme's own step, and measured.

Oracles: the MLE by Kalman's score; orders in the step; the law of paths; runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import exit_code
from numpy.typing import NDArray
from support import exponent

from sdeflow.analysis.kalman import Maximum, maximum, smoothed
from sdeflow.analysis.studies import state_space
from sdeflow.analysis.studies.bias import variances
from sdeflow.analysis.studies.state_space import Moved, Smoother, by_particles, kalman, late, moved
from sdeflow.analysis.studies.state_space_law import Answer, law, predicted, start_of
from sdeflow.errors import SdeflowError
from sdeflow.problems.state_space import StateSpace
from sdeflow.system.block import Block

ALL = ("a", "log_q", "log_r")
R = 0.131864
PATH = Block(
    "x", "X", (1, 2, 50), ("datum", "particle", "latent"), momentum="U", eta=1.0, gamma=3.0, role="particles"
)


def best(model: StateSpace) -> Maximum:
    return maximum(model.data, start_of(model), tuple(model.start))


def answer(integrator: str, h: float, learn: tuple[str, ...] = ALL) -> Answer:
    model = StateSpace(learn=learn)
    return predicted(model, best(model), variances(PATH, h, integrator))


def test_the_law_of_variance_one_over_precision_is_that_of_the_smoother() -> None:
    model = StateSpace()
    theta = start_of(model) | {"c": np.array([0.3])}
    found, exact = law(model, theta, lambda kappa: 1 / kappa), smoothed(model.data, theta)
    for mine, its in zip(found, exact, strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-12)


def test_the_right_variance_and_baoab_at_any_step_learn_the_mle() -> None:
    model = StateSpace()
    for found in (predicted(model, best(model), lambda kappa: 1 / kappa), answer("baoab", 0.3)):
        assert found.value == pytest.approx(R, abs=1e-6)
        assert found.nats == pytest.approx(0, abs=1e-9)


def test_a_scheme_that_is_not_stable_has_no_answer() -> None:
    with pytest.raises(SdeflowError, match="not stable near the MLE"):
        answer("expint", 0.6)


def test_the_forces_of_the_problem_vanish_at_what_is_predicted() -> None:
    """Over paths that are the mean and, along each direction, both ways from it; of any variance V(kappa).

    The problem's scores are quadratic in the path, so that their mean over these is exact.
    """

    def variance(kappa: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1.3 / kappa

    model = StateSpace(learn=["log_r"])
    found = predicted(model, best(model), variance)
    theta = start_of(model) | {"log_r": np.log([found.value])}
    own = {name: torch.as_tensor(value) for name, value in theta.items()}
    kappa, directions = torch.linalg.eigh(model.precision(own))
    mean = torch.linalg.solve(model.precision(own), model.data[0] / found.value)
    away = (50 * 1.3 / kappa).sqrt() * directions
    paths = torch.cat([mean + away, mean - away], 1).mT[None, ..., None]
    assert model.score_x(own, mean[None, None], model.data).abs().max() < 1e-12
    force = model.score_theta({"log_r": own["log_r"]}, paths, model.data)["log_r"] / 100
    assert abs(force.item()) < 1e-8
    assert found.value > 1.1 * np.exp(best(model).theta["log_r"].item())


def test_the_bias_has_the_weak_order_and_there_is_none_in_c() -> None:
    """Of r; nats below the maximum are of twice that order. A path's mean is right at any step."""
    found = [answer("expint", h) for h in (0.002, 0.001, 0.0005)]
    exact = answer("baoab", 0.1).value
    assert exponent([f.value - exact for f in found]) == pytest.approx(1, abs=0.03)
    assert exponent([f.nats for f in found]) == pytest.approx(2, abs=0.1)
    in_c = answer("expint", 0.1, ("c",))
    assert in_c.value == pytest.approx(0.0858166121, abs=1e-8)
    assert in_c.nats == pytest.approx(0, abs=1e-9)


def test_em_by_kalman_ends_at_the_mle() -> None:
    assert kalman(("c",), 0.1).value.to_numpy()[-1] == pytest.approx(0.0858166121, abs=1e-9)
    found = kalman(ALL, 0.75)
    assert found.value.to_numpy()[-1] == pytest.approx(R, abs=1e-4)
    assert np.diff(found.nats.to_numpy()[:, 0]).max() < 1e-11
    assert list(found.nats["step"].to_numpy()) == list(range(151))


@pytest.mark.slow
def test_runs_learn_what_is_predicted() -> None:
    """r within four standard errors of 6 replicas and what N = 100 costs, a hundredth; c within four."""
    for by in (Moved("mpgd", "expint", 0.1), Moved("pgd", "euler_maruyama", 0.05)):
        found = moved(by, ALL, 6, 0.6)
        assert found.predicted is not None
        r = late(found.value)
        assert abs(r.mean() - found.predicted.value) < 4 * r.std(ddof=1) / 6**0.5 + 0.0013
        assert found.predicted.value > 1.8 * R
    found = moved(Moved("mpgd", "expint", 0.1), ("c",), 6, 0.3)
    c = late(found.value)
    assert abs(c.mean() - 0.0858166121) < 4 * c.std(ddof=1) / 6**0.5


@pytest.mark.slow
def test_a_particle_smoother_s_bias_is_learned_and_gibbs_has_none() -> None:
    """r, of 8 replicas and 20 particles: by PaRIS twice too large, by particle Gibbs within 4 errors."""
    free, held = (late(by_particles(Smoother(gibbs, 20), ALL, 8).value) for gibbs in (False, True))
    assert free.mean() - 4 * free.std(ddof=1) / 8**0.5 > 1.8 * R
    assert abs(held.mean() - R) < 4 * held.std(ddof=1) / 8**0.5


def test_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A table with a row a method, and a figure."""
    monkeypatch.setattr(
        state_space, "MOVED", (Moved("mpgd", "expint", 0.1, 4), Moved("mpgd", "baoab", None, 4))
    )
    monkeypatch.setattr(state_space, "SMOOTHERS", (Smoother(False, 5), Smoother(True, 5)))
    measure = state_space.measure
    monkeypatch.setattr(state_space, "measure", lambda replicas: measure(replicas, part=0.02))
    out = tmp_path / "new" / "figure.svg"
    assert exit_code(state_space.main, "--replicas", 2, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    labels = ["mpgd, expint", "mpgd, baoab", "EM, Kalman", "EM, PaRIS", "EM, PPG"]
    assert [line.split(" | ")[1] for line in lines[2:12]] == 2 * labels
    assert " | 0.2436 | " in lines[7]
    assert lines[13].startswith("Milliseconds of a pass here: mpgd, expint, N = 4 ")
    assert out.read_text(encoding="utf-8").count("<path") > 10
    assert exit_code(state_space.main, "--replicas", 1, "--out", out) == 2
    assert "two replicas" in capsys.readouterr().err

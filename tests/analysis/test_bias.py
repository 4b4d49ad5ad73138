"""What schemes learn on probabilistic PCA: predicted from their own step, and measured.

Oracles: the closed-form MLE; theta's force over clouds that have the scheme's law; orders in the step; runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import exit_code
from support import exponent

from sdeflow.analysis.studies import bias
from sdeflow.analysis.studies.bias import eigenvalues, learned, predicted, prepared, spread
from sdeflow.problems.ppca import PPCA

MODEL = PPCA()
EXACT = float(MODEL.mle["log_noise"].exp())


def answer(integrator: str, h: float, system: str = "mpgd") -> bias.Answer:
    run = prepared(system, integrator, h, particles=2, replicas=2)
    (x,) = run.system.particles
    return predicted(MODEL, spread(x, run.system.h, integrator))


def test_the_right_variance_learns_the_mle() -> None:
    found = predicted(MODEL, lambda kappa: 1 / kappa)
    assert found.noise == pytest.approx(EXACT, rel=1e-10)
    assert found.excess == pytest.approx(0, abs=1e-10)


def test_forces_on_theta_vanish_at_what_is_predicted() -> None:
    """Over clouds of means x_i where the particles' force vanishes, and of any variance V(kappa).

    The scores are quadratic in x, so that over x_i +- sqrt(k V_c) v_c their mean is exact.
    """

    def variance(kappa: float) -> float:
        return 1.3 / kappa**0.8

    noise, excess = predicted(MODEL, variance)
    y = MODEL.data
    values, vectors = torch.linalg.eigh((y - y.mean(0)).mT @ (y - y.mean(0)) / len(y))
    # kappa_c from s2 kappa^2 V(kappa) = l, with this V by hand
    kappa = (values[-2:] / (1.3 * noise)) ** (1 / 1.2)
    theta = {
        "weight": vectors[:, -2:] * (noise * (kappa - 1)).sqrt(),
        "mean": y.mean(0),
        "log_noise": torch.tensor(noise, dtype=torch.float64).log(),
    }
    means = (y - y.mean(0)) @ theta["weight"] / (noise * kappa)
    assert MODEL.score_x(theta, means[:, None], y).abs().max() < 1e-12
    away = (2 * 1.3 / kappa**0.8).sqrt().diag().expand(len(y), 2, 2)
    forces = MODEL.score_theta(theta, means[:, None] + torch.cat([away, -away], 1), y)
    assert max(float(f.abs().max()) for f in forces.values()) < 1e-7
    assert excess == pytest.approx(-MODEL.minimum - float(MODEL.log_likelihood(theta)), abs=1e-8)
    assert eigenvalues(MODEL)[:2] == pytest.approx(values.flip(0)[:2].numpy(), rel=1e-12)


@pytest.mark.parametrize(
    ("integrator", "system", "order"),
    [("expint", "mpgd", 1), ("obabo", "mpgd", 2), ("ubu", "mpgd", 2), ("euler_maruyama", "pgd", 1)],
)
def test_the_bias_of_what_is_learned_has_the_weak_order(integrator: str, system: str, order: int) -> None:
    """Of the noise; nats below the maximum are of twice that order, for it is one."""
    found = [answer(integrator, h, system) for h in (0.02, 0.01, 0.005)]
    assert exponent([abs(f.noise - EXACT) for f in found]) == pytest.approx(order, abs=0.02)
    assert exponent([f.excess for f in found]) == pytest.approx(2 * order, abs=0.1)


def test_baoab_learns_the_mle_at_any_step() -> None:
    assert answer("baoab", 0.3).noise == pytest.approx(EXACT, rel=1e-9)
    assert answer("baoab", 0.3).excess == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_runs_learn_what_is_predicted() -> None:
    """Within four standard errors of 6 replicas; what 100 particles do besides is taken off by baoab.

    The noise is too large in proportion to h for expint, and right for baoab at half the evaluations.
    """
    right = learned("mpgd", "baoab", 0.2, replicas=6)
    fine, coarse = (learned("mpgd", "expint", h, replicas=6) for h in (0.1, 0.2))
    mid = learned("mpgd", "ubu", 0.3, replicas=6)
    assert abs(right.noise.mean - EXACT) < 4 * right.noise.error
    for found in (fine, coarse, mid):
        error = (found.noise.error**2 + right.noise.error**2) ** 0.5
        assert abs(found.noise.mean - found.predicted.noise) < 4 * error
        error = (found.excess.error**2 + right.excess.error**2) ** 0.5
        assert abs(found.excess.mean - found.predicted.excess - right.excess.mean) < 4 * error
    ratio = (coarse.noise.mean - EXACT) / (fine.noise.mean - EXACT)
    assert ratio == pytest.approx(2, abs=0.1)
    assert fine.noise.mean - EXACT > 20 * (right.noise.error + abs(right.noise.mean - EXACT))


@pytest.mark.slow
def test_few_particles_cost_nats_in_proportion_to_their_number() -> None:
    """Where steps cost none: N (nats below the maximum) is the same for 5 and 20, four standard errors."""
    few, more = (learned("mpgd", "baoab", 0.2, particles=n, replicas=6) for n in (5, 20))
    gap = 5 * few.excess.mean - 20 * more.excess.mean
    assert abs(gap) < 4 * np.hypot(5 * few.excess.error, 20 * more.excess.error)


def test_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A table with a row a run, and a figure."""
    monkeypatch.setattr(bias, "SCHEMES", {("mpgd", "expint"): (0.2, 0.3), ("mpgd", "baoab"): (0.3,)})
    monkeypatch.setattr(bias, "FEW", (5,))
    monkeypatch.setattr(bias, "PARTICLES", 10)
    measure = bias.measure
    monkeypatch.setattr(bias, "measure", lambda replicas: measure(replicas, part=0.02))
    out = tmp_path / "new" / "figure.svg"
    assert exit_code(bias.main, "--replicas", 2, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:7]] == ["0.2", "0.3", "0.3", "0.2", "0.2"]
    assert " | 0.2483 | " in lines[2]
    assert out.read_text(encoding="utf-8").count("<path") > 10
    assert exit_code(bias.main, "--replicas", 1, "--out", out) == 2
    assert "two replicas" in capsys.readouterr().err

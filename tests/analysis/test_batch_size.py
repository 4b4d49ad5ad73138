"""The study of steps against batches, in small: what is counted and chosen, by hand; table and figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import exit_code

from sdeflow import Batch, Save, pgd, simulate
from sdeflow.analysis.free_energy import gaussian_energy, toy_minimum
from sdeflow.analysis.studies import batch_size
from sdeflow.analysis.studies.batch_size import RULES, Spread, best, excess_energy, found, interval, largest
from sdeflow.problems.hierarchical import Hierarchical

STEPS = 2.0 ** np.arange(5)


@pytest.mark.parametrize("rule", RULES)
def test_each_replica_moves_by_its_own_step(rule: str) -> None:
    """As in a run of its own with the rule and that step from that seed, by minibatches."""
    optimizer, _ = RULES[rule]
    model = Hierarchical(data=4, mle=5.0)
    options = {"steps": 12, "batch": Batch(2), "save": Save(every=4), "dtype": "float64"}

    def theta(h: float, rule: object, seed: int, replicas: int) -> np.ndarray:
        system = pgd(model, particles=3, theta={"h": h, "optimizer": rule}, x={"h": 0.1})
        run = simulate(system, "euler_maruyama", seed=seed, replicas=replicas, **options)
        return run["theta"].to_numpy().reshape(4, -1)

    together = theta(0.01, Spread(optimizer, (1.0, 4.0)), 7, 2)
    for replica, h in enumerate((0.01, 0.04)):
        alone = theta(h, optimizer, 7 + replica, 1)
        np.testing.assert_allclose(together[:, replica], alone[:, 0], rtol=1e-10)


def test_energy_is_that_of_clouds_one_by_one() -> None:
    model, rng = Hierarchical(data=6, scale=0.7), np.random.default_rng(0)
    x, theta = 100 + rng.standard_normal((3, 6, 9)), np.array([99.0, 100.0, 101.5])
    y = model.data.numpy()
    expected = [
        gaussian_energy(x[r][..., None], theta[r], y, 0.7).value - toy_minimum(y, 0.7) for r in range(3)
    ]
    np.testing.assert_allclose(excess_energy(x, theta, model), expected, rtol=1e-10)


def test_steps_are_chosen_by_hand() -> None:
    parabola = 9 - (np.log2(STEPS) - 1.7) ** 2
    assert best(STEPS, parabola) == pytest.approx(2**1.7, rel=1e-12)
    assert best(STEPS, parabola[::-1]) == pytest.approx(2**2.3, rel=1e-12)
    assert best(STEPS, np.arange(5.0)) == 16
    assert largest(STEPS, np.array([0, 10, 9, 6, 0.0])) == pytest.approx(2 ** (2 + 1 / 3), rel=1e-12)
    assert largest(STEPS, np.array([0, 10, 0, 9, 0.0])) == pytest.approx(2 ** (3 + 1 / 9), rel=1e-12)
    assert largest(STEPS, np.arange(5.0)) == 16


def test_counts_choose_steps_and_the_bootstrap_draws_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds whose parabola is at b h = 2 for each of two seeds alike: there is nothing to draw."""
    monkeypatch.setattr(batch_size, "DRAWS", 20)
    monkeypatch.setitem(batch_size.RULES, "plain", (RULES["plain"][0], 2.0 ** np.arange(-6, 3)))
    logs = np.arange(-6, 3)
    speeds = np.array([[50 - (logs + k - 1) ** 2] * 2 for k in range(4)], np.float64).transpose(0, 2, 1)
    with np.errstate(divide="ignore"):
        result = found("plain", "held", 1 / np.maximum(speeds, 0), [1, 2, 4, 8], 8)
    h, again = result.chosen["best"]
    np.testing.assert_allclose(h, [2, 1, 0.5, 0.25], rtol=1e-12)
    assert (again == h).all()
    fits = {f.fit.law: f.fit for f in result.fits("best")}
    # h = 2/b of b < 8: of these laws the sign's alone falls, as 1/sqrt(b)
    assert fits["sign"].aic == min(f.aic for f in fits.values())
    assert interval(result.fits("best")[0], result).startswith("- (")


def test_counts_are_of_gradients_of_a_datum() -> None:
    """b of them in a step, here D = 4, and at most those of the whole run."""
    counts = batch_size.counted_to_level("plain", "held", 4, data=4, seeds=2)
    assert counts.shape == (len(RULES["plain"][1]), 2)
    there = counts[np.isfinite(counts)]
    assert len(there)
    assert (there % 4 == 0).all()
    assert there.max() <= 4 * round(batch_size.DURATION / batch_size.STEP)


def test_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two rows for each arm of a rule, and a figure."""
    monkeypatch.setattr(batch_size, "RULES", {"lion": RULES["lion"]})
    monkeypatch.setattr(batch_size, "SNAPSHOTS", 10)
    monkeypatch.setattr(batch_size, "PARTICLES", 8)
    monkeypatch.setattr(batch_size, "DRAWS", 5)
    measure = batch_size.measure
    monkeypatch.setattr(batch_size, "measure", lambda seeds: measure(seeds, data=5))
    out = tmp_path / "new" / "figure.svg"
    assert exit_code(batch_size.main, "--seeds", 2, "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ")[:3] for line in lines if line.startswith("| lion")]
    assert rows == [["| lion", arm, which] for arm in ("held", "scaled") for which in ("best", "largest")]
    assert out.read_text(encoding="utf-8").count("<path") > 10
    assert exit_code(batch_size.main, "--seeds", 1, "--out", out) == 2
    assert "two seeds" in capsys.readouterr().err
    with pytest.raises(Exception, match="take 5 data or more, given 4"):
        measure(2, data=4)


def test_a_rule_of_a_state_keeps_its_memory() -> None:
    """Adam's, under its own names: so runs with a spread of steps resume as others do."""
    block = pgd(Hierarchical(data=3), particles=2, theta={"h": 0.1}, x={"h": 0.1}).blocks[0]
    spread = Spread(RULES["adam"][0], (1.0, 2.0))
    assert spread.slots(block) == RULES["adam"][0].slots(block)
    assert spread.start(block).keys() == RULES["adam"][0].start(block).keys()
    memory = {k: torch.zeros(2, 1) for k in spread.start(block)}
    moved, _ = spread(torch.zeros(2, 1), torch.ones(2, 1), memory, 0.5)
    assert moved[:, 0].tolist() == pytest.approx([0.5, 1.0], rel=1e-6)

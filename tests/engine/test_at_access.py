"""Data that a model makes anew at each visit, out of uniform numbers that depend on seed and visit alone.

Oracle: pgd's theta, which at T = 0 moves by the sum of the data that the step saw.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import FLOAT64, LIGHT, assert_same
from torch import Tensor

import sdeflow
from sdeflow import Batch, Model, Save, simulate
from sdeflow.config.catalogue import find
from sdeflow.errors import SdeflowError
from sdeflow.model.amortised import Amortised
from sdeflow.model.energy_prior import EnergyPrior
from sdeflow.problems.decoder import Decoder
from sdeflow.seeds import generator

DATA, SIZE, EPOCH = 7, 2, 3
STEPS = 3 * EPOCH + 2


def shifted(y: Tensor, u: Tensor) -> Tensor:
    return y + 10 * u.square()


class Seen(Model):
    """l_i = theta . y_i, up to a Gaussian of x: theta's force is the sum of a step's data times D/b."""

    latent_shape = (1,)

    def __init__(self, at_access: Callable[[Tensor, Tensor], Tensor] | None = shifted) -> None:
        self.data = torch.arange(2.0 * DATA, dtype=torch.float64).view(DATA, 2)
        self.at_access = at_access

    def init_theta(self, generator: torch.Generator) -> Any:
        return {"weight": torch.zeros(2, dtype=torch.float64)}

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return (y @ theta["weight"])[:, None] - x.square().sum(-1) / 2


def run(model: Model | None = None, **options: Any) -> Any:
    system = sdeflow.pgd(model or Seen(), particles=2, theta={"h": 1.0}, x={"h": 0.1})
    chosen = {"steps": STEPS, "batch": Batch(SIZE), "dtype": "float64", "replicas": 2, "save": Save(1)}
    return simulate(system, "euler_maruyama", **(chosen | options))


@pytest.mark.parametrize("catch_up", ["off", "one_step", "substeps"])
def test_a_step_sees_what_is_made_of_its_data(catch_up: Any) -> None:
    """By the order of the epoch and uniform numbers of (seed, epoch, place), written out; to 1e-12."""
    theta = run(batch=Batch(SIZE, catch_up)).theta.values
    for replica, seed in enumerate((0, 1)):
        for n in range(STEPS):
            epoch, place = divmod(n, EPOCH)
            order = torch.randperm(DATA, generator=generator(seed, "epoch", epoch))
            index = order[place * SIZE : (place + 1) * SIZE].sort().values
            u = torch.rand(SIZE, 2, generator=generator(seed, "data", epoch, place), dtype=torch.float64)
            expected = (Seen().data[index] + 10 * u**2).sum(0) * DATA / SIZE
            moved = theta[n + 1, replica] - theta[n, replica]
            np.testing.assert_allclose(moved, expected, rtol=1e-12, atol=1e-12)


def test_numbers_are_new_at_each_visit_and_uniform() -> None:
    """6,000 of them: their mean and variance within 5 standard errors, no two visits alike."""
    from sdeflow.config.run import Run
    from sdeflow.engine.minibatch import MiniBatches

    model = Seen()
    model.data = torch.zeros(10, 30)
    system = sdeflow.pgd(model, particles=1, theta={"h": 1.0}, x={"h": 0.1})
    declared = Run.declare(system, "euler_maruyama", sdeflow.config.schema.RunSection(), batch=Batch(5))
    batches = MiniBatches(system, declared.integrator, Batch(5), declared.all_replicas, declared.engine)
    drawn = torch.stack([batches.uniform(n) for n in range(40)]).flatten(1).double()  # type: ignore[misc]
    assert len(drawn.unique(dim=0)) == 40
    assert torch.equal(batches.uniform(3), batches.uniform(3))
    n = drawn.numel()
    assert abs(float(drawn.mean()) - 0.5) < 5 / (12 * n) ** 0.5
    assert abs(float(drawn.var()) - 1 / 12) < 5 / (180 * n) ** 0.5
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1


def test_a_run_in_pieces_is_the_run(stop_before: Any, tmp_path: Path) -> None:
    whole = run()
    for n in (2, 4, 8):
        stop_before(n)
        with pytest.raises(KeyboardInterrupt):
            run(out=tmp_path / "run", resume=True)
    stop_before(None)
    assert_same(run(out=tmp_path / "run", resume=True), whole)


def test_engines_agree() -> None:
    """fused to the bit in theta, which has no noise; compiled to rounding."""
    by = {e: run(engine=e, noise="philox").theta.values for e in ("eager", "fused")}
    np.testing.assert_array_equal(by["eager"], by["fused"])


@pytest.mark.slow
def test_the_compiled_engine_agrees() -> None:
    by = [run(engine=e, noise="torch").theta.values for e in ("eager", "compiled")]
    np.testing.assert_allclose(*by, rtol=1e-12)


def test_what_is_recorded_is_of_the_data_as_they_are() -> None:
    """The loss at the start, theta = 0, does not tell; after a step it is that of the plain model there."""
    mine = run(steps=1, save=Save(1, "all", "all"), batch=Batch(DATA), replicas=1)
    theta, x = torch.from_numpy(mine.theta.values[-1]), torch.from_numpy(mine.X.values[-1])
    expected = -Seen(None).log_joint({"weight": theta}, x, Seen().data).mean()
    assert float(mine.loss[-1]) == pytest.approx(float(expected), rel=1e-12)
    plain = run(Seen(None), steps=1, save=Save(1, "all", "all"), batch=Batch(DATA), replicas=1)
    assert abs(float(plain.theta[-1, 0]) - float(mine.theta[-1, 0])) > 0.1


@pytest.mark.parametrize("wrap", [EnergyPrior, Amortised])
def test_models_around_a_model_pass_it_on(wrap: Any) -> None:
    plain = Decoder(latent=2, hidden=(4,), images=6)
    plain.at_access = shifted
    model = wrap(plain)
    assert model.at_access is shifted
    assert model.to(**FLOAT64).at_access is shifted
    plain.at_access = None
    assert wrap(plain).at_access is None


def test_a_system_with_an_energy_sees_it_too() -> None:
    plain = Decoder(latent=2, hidden=(4,), images=6)
    found = []
    for at_access in (shifted, None):
        plain.at_access = at_access
        blocks: dict[str, Any] = {"alpha": LIGHT, "beta": LIGHT, "x": LIGHT}
        system = find("systems", "kinetic_ebipla")(
            EnergyPrior(plain, [4]), particles=2, prior_particles=3, **blocks
        )
        found.append(simulate(system, steps=2, batch=Batch(3)).beta.values)
    assert not np.array_equal(*found)


def test_what_does_not_fit_is_refused() -> None:
    class Pair(Seen):
        def __init__(self) -> None:
            super().__init__()
            self.data: Any = (self.data, self.data)

        def log_joint(self, theta: Any, x: Tensor, y: Any) -> Tensor:
            return super().log_joint(theta, x, y[0])

    with pytest.raises(SdeflowError, match=r"Seen makes its data anew .* needs minibatches: give batch"):
        run(batch=None)
    with pytest.raises(SdeflowError, match="needs data that are one tensor, given tuple"):
        run(Pair())
    with pytest.raises(SdeflowError, match=r"Seen.at_access fails with ValueError: no \(test_at_access.py"):
        run(Seen(refusing))
    with pytest.raises(SdeflowError, match=r"Seen.at_access fails with RuntimeError: shape"):
        run(Seen(lambda y, u: y[:1]))


def refusing(y: Tensor, u: Tensor) -> Tensor:
    raise ValueError("no")

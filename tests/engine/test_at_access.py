"""Data that a model makes anew at each visit, by uniform numbers of seed, epoch and datum alone.

Oracles: pgd's theta, which at T = 0 moves by the sum of the data that the step saw; uniform numbers of the
words of `philox.py`, which are compared with published ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from philox import philox
from small import FLOAT64, LIGHT, assert_same
from support import declared
from torch import Tensor

import sdeflow
from sdeflow import Batch, Model, Save, simulate
from sdeflow.config.catalogue import find
from sdeflow.data import dequantise, flip
from sdeflow.engine.minibatch import MiniBatches
from sdeflow.errors import SdeflowError
from sdeflow.model.amortised import Amortised
from sdeflow.model.energy_prior import EnergyPrior
from sdeflow.noise.uniform import uniform_of
from sdeflow.problems.decoder import Decoder
from sdeflow.seeds import derive_key, generator

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


def words(seed: int, epoch: int, datum: int, stage: int = 0, groups: int = 1) -> Tensor:
    """Those of a datum's uniform numbers, [groups, 4]."""
    counter = torch.tensor([[g, datum & 2**32 - 1, datum >> 32, stage] for g in range(groups)]).mT
    return philox(counter, derive_key(seed, "data", epoch) & 2**64 - 1).mT


def double(high: Tensor, low: Tensor) -> Tensor:
    return ((high >> 5) * 2**26 + (low >> 6)).double() / 2**53


@pytest.mark.parametrize("catch_up", ["off", "one_step", "substeps"])
def test_a_step_sees_what_is_made_of_its_data(catch_up: Any) -> None:
    """By the order of the epoch and uniform numbers of (seed, epoch, datum), written out; to 1e-12."""
    theta = run(batch=Batch(SIZE, catch_up)).theta.values
    for replica, seed in enumerate((0, 1)):
        for n in range(STEPS):
            epoch, place = divmod(n, EPOCH)
            order = torch.randperm(DATA, generator=generator(seed, "epoch", epoch))
            index = order[place * SIZE : (place + 1) * SIZE].sort().values
            w = torch.stack([words(seed, epoch, i)[0] for i in index.tolist()])
            u = torch.stack([double(w[:, 0], w[:, 1]), double(w[:, 2], w[:, 3])], 1)
            expected = (Seen().data[index] + 10 * u**2).sum(0) * DATA / SIZE
            moved = theta[n + 1, replica] - theta[n, replica]
            np.testing.assert_allclose(moved, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_those_of_their_address(dtype: torch.dtype) -> None:
    """To the bit, also of data past 2^32, of several transforms, and where they do not fill a group."""
    data = torch.tensor([[0, 7, 2**33 + 5], [1, 2, 3]])
    drawn = uniform_of([3, 4], 6, data, (2, 5), dtype, stages=2)
    assert (drawn.shape, drawn.dtype) == ((2, 3, 2, 2, 5), dtype)
    for r, i, stage in np.ndindex(2, 3, 2):
        w = words(3 + r, 6, int(data[r, i]), stage, groups=5)
        if dtype == torch.float32:
            expected = (w >> 8).double() / 2**24
        else:
            expected = torch.stack([double(w[:, 0], w[:, 1]), double(w[:, 2], w[:, 3])], 1)
        assert torch.equal(drawn[r, i, stage].flatten().double(), expected.flatten()[:10])


def batches(size: int, model: Model | None = None, replicas: int = 2) -> MiniBatches:
    system = sdeflow.pgd(model or Seen(), particles=1, theta={"h": 1.0}, x={"h": 0.1})
    run = declared(system, "euler_maruyama", batch=Batch(size), replicas=replicas)
    return MiniBatches(system, run.integrator, Batch(size), run.all_replicas, run.engine)


def by_datum(size: int, epoch: int) -> dict[tuple[int, int], Tensor]:
    """The numbers of an epoch by replica and datum."""
    of, found = batches(size), {}
    for n in range(epoch * of.per_epoch, (epoch + 1) * of.per_epoch):
        drawn = of.uniform(n)
        assert drawn is not None
        for r, row in enumerate(of.index(n).tolist()):
            found |= {(r, datum): drawn[r, i] for i, datum in enumerate(row)}
    return found


def test_a_datum_has_the_same_numbers_in_an_epoch_whatever_the_batch() -> None:
    whole = by_datum(DATA, 4)
    assert len(whole) == 2 * DATA
    for size in (1, 2, 3):
        assert all(torch.equal(u, whole[key]) for key, u in by_datum(size, 4).items())
    assert not any(torch.equal(u, whole[key]) for key, u in by_datum(DATA, 5).items())


def test_numbers_are_uniform_and_no_two_alike() -> None:
    """12,000 of data, epochs, replicas and transforms: mean and variance within 5 standard errors."""
    many = torch.arange(10).expand(2, -1)
    drawn = torch.stack(
        [uniform_of([0, 1], epoch, many, (30,), torch.float32, 2) for epoch in range(10)]
    ).double()
    assert len(drawn.flatten(0, 3).unique(dim=0)) == 400
    n = drawn.numel()
    assert abs(float(drawn.mean()) - 0.5) < 5 / (12 * n) ** 0.5
    assert abs(float(drawn.var()) - 1 / 12) < 5 / (180 * n) ** 0.5
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1


def test_transforms_follow_one_another_with_numbers_of_their_own() -> None:
    """Both are additions here, so a step sees the data and both; the first is the one alone."""
    moved = {}
    for name, chosen in {"a": shifted, "b": halved, "none": None, "both": (shifted, halved)}.items():
        moved[name] = run(Seen(chosen), steps=1, batch=Batch(DATA), replicas=1).theta.values[1]
    w = torch.stack([words(0, 0, i, 1)[0] for i in range(DATA)])
    u = torch.stack([double(w[:, 0], w[:, 1]), double(w[:, 2], w[:, 3])], 1)
    expected = moved["a"] + (u / 2).sum(0).numpy()
    np.testing.assert_allclose(moved["both"], expected, rtol=1e-12)
    assert abs(moved["b"] - moved["none"] - (u / 2).sum(0).numpy()).min() > 1e-3


def halved(y: Tensor, u: Tensor) -> Tensor:
    return y + u / 2


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


def test_flips_and_dequantisation() -> None:
    """By hand, for images and for vectors; half of 400 images are turned, within 5 standard errors."""
    g = torch.Generator().manual_seed(0)
    y = torch.rand(400, 2, 3, 4, generator=g)
    u = torch.rand(y.shape, generator=g)
    turned = flip((2, 3, 4))(y, u)
    chosen = u[:, 0, 0, 0] < 0.5
    assert torch.equal(turned[chosen], y[chosen][..., [3, 2, 1, 0]])
    assert torch.equal(turned[~chosen], y[~chosen])
    assert torch.equal(flip([2, 3, 4])(y.flatten(1), u.flatten(1)), turned.flatten(1))
    assert abs(int(chosen.sum()) - 200) < 5 * 10
    assert torch.equal(dequantise(0.5)(y, u), y + u / 2)
    assert torch.equal(dequantise(0.5, 0.25, 1)(y, u), (y + u / 2).clamp(0.25, 1))


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

"""FID, KID, precision and recall against closed forms and direct formulas; their errors over repetitions."""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from support import SE
from torch import Tensor

from sdeflow.analysis.features import Network
from sdeflow.analysis.image_metrics import BLOCKS, coverage, fid, kid
from sdeflow.errors import SdeflowError


def normal(n: int, f: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, f, generator=g, dtype=torch.float64)


def cubic(x: np.ndarray, y: np.ndarray) -> float:
    return float((np.dot(x, y) / len(x) + 1) ** 3)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (33, 21)])
def test_kid_is_its_sums_over_pairs(n: int, m: int) -> None:
    """And its error that of a jackknife whose every estimate is made anew, by loops."""
    x, y = normal(n, 3, 0).numpy(), normal(m, 3, 1, 0.3, 1.2).numpy()

    def direct(x: np.ndarray, y: np.ndarray) -> float:
        within = [
            np.mean([cubic(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)
        ]
        return float(sum(within) - 2 * np.mean([cubic(a, b) for a in x for b in y]))

    found = kid(torch.from_numpy(x), torch.from_numpy(y), 4)
    assert found.value == pytest.approx(direct(x, y), rel=1e-12)
    blocks = [np.array_split(np.arange(size), 4) for size in (n, m)]
    less = [
        [direct(np.delete(x, b, 0), y) for b in blocks[0]],
        [direct(x, np.delete(y, b, 0)) for b in blocks[1]],
    ]
    assert found.error == pytest.approx((3 * np.var(less, axis=1).sum()) ** 0.5, rel=1e-9)


REPETITIONS = 200


def uniform(n: int, seed: int, mean: float = 0.0, reach: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return mean + reach * (2 * torch.rand(n, 1, generator=g, dtype=torch.float64) - 1)


@pytest.mark.parametrize(("n", "m"), [(300, 300), (500, 200)])
def test_the_jackknife_covers(n: int, m: int) -> None:
    """Of uniform laws of one feature, whose KID is sum_k C(3, k) (E x^k - E y^k)^2, as (xy + 1)^3 has it.

    2 errors hold it as often as Student's t says, between the degrees of freedom of one set's blocks and of
    both sets', within 4.5 standard errors of the binomial; and it is unbiased.
    """
    mean, reach = 0.5, 1.2
    moments = (1, mean, mean**2 + reach**2 / 3, mean**3 + mean * reach**2)
    pairs = zip(moments, (1, 0, 1 / 3, 0), strict=True)
    truth = sum(comb(3, k) * (a - b) ** 2 for k, (a, b) in enumerate(pairs))
    found = [kid(uniform(n, 2 * i), uniform(m, 2 * i + 1, mean, reach)) for i in range(REPETITIONS)]
    values, errors = np.array(found).T
    assert abs(values.mean() - truth) < SE * values.std() / REPETITIONS**0.5
    shares = [1 - 2 * scipy.stats.t.sf(2, df) for df in (BLOCKS - 1, 2 * (BLOCKS - 1))]
    slack = SE * (REPETITIONS * shares[0] * (1 - shares[0])) ** 0.5
    inside = int((np.abs(values - truth) < 2 * errors).sum())
    assert REPETITIONS * shares[0] - slack < inside < REPETITIONS * shares[1] + slack


def test_kid_of_one_law_is_zero_and_its_error_is_not_too_small() -> None:
    """Unbiased: the mean of 200 is 0 within 4.5 of its errors; and as many as of a t are within 2 errors."""
    x = [kid(normal(200, 8, 2 * i), normal(200, 8, 2 * i + 1)) for i in range(REPETITIONS)]
    values, errors = np.array([e.value for e in x]), np.array([e.error for e in x])
    assert abs(values.mean()) < SE * values.std() / REPETITIONS**0.5
    share = 1 - 2 * scipy.stats.t.sf(2, BLOCKS - 1)
    slack = SE * (REPETITIONS * share * (1 - share)) ** 0.5
    assert (np.abs(values) < 2 * errors).sum() > REPETITIONS * share - slack
    assert 1 < (errors**2).mean() / values.var() < 3  # sqrt(2) too large, as it says


def test_kid_needs_an_image_a_block() -> None:
    with pytest.raises(SdeflowError, match="at least 20 images of each kind, given 19 real and 30 made"):
        kid(normal(19, 2, 0), normal(30, 2, 1))


def test_fid_is_the_distance_of_gaussians() -> None:
    """By scipy's matrix root, of samples; of laws whose covariances commute, by the closed form."""
    pytest.importorskip("torchmetrics")
    mix = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.2], [0.3, 0.0, 2.0]], dtype=torch.float64)
    x, y = normal(300, 3, 0), normal(200, 3, 1) @ mix + 0.4
    s, t = np.cov(x.T.numpy()), np.cov(y.T.numpy())
    root = scipy.linalg.sqrtm(s @ t).real
    gap = (x.mean(0) - y.mean(0)).square().sum()
    assert fid(x, y) == pytest.approx(float(gap) + np.trace(s + t - 2 * root), rel=1e-9)
    assert fid(x, x) == pytest.approx(0, abs=1e-9)
    scales = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    truth = 3 * 0.4**2 + float((scales - 1).square().sum())
    found = [fid(normal(2000, 3, 2 * i), 0.4 + scales * normal(2000, 3, 2 * i + 1)) for i in range(40)]
    assert abs(np.mean(found) - truth) < SE * np.std(found) / 40**0.5 + 0.01  # its bias is of order f/n


def test_fid_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.fid", None)
    with pytest.raises(SdeflowError, match=r"pip install 'sdeflow\[images\]', or leave --fid out"):
        fid(normal(30, 2, 0), normal(30, 2, 1))


def test_precision_and_recall_where_they_are_known() -> None:
    """Points on a line, two apart, k = 2: a real one covers up to 4 at the ends and 2 within, so [-4, 14]."""
    real = torch.arange(0, 11, 2, dtype=torch.float64)[:, None]
    made = torch.tensor([-4.1, -3.9, 5.0, 13.9, 14.1, 30.0, 31.0, 32.0], dtype=torch.float64)[:, None]
    found = coverage(real, made, 2)
    assert found.precise.tolist() == [False, True, True, True, False, False, False, False]
    # made ones cover 9.1, 8.9, 8.9, 8.9, 9.1, 2, 1 and 2 about themselves: [-13.2, 23.2] and [28, 34]
    assert found.recalled.all()
    far = coverage(real, made[-3:].repeat(2, 1), 2)  # each twice: its second neighbour is 1 away
    assert not far.precise.any()
    assert not far.recalled.any()
    with pytest.raises(SdeflowError, match="more than k = 5 images, given 6 real and 5 made"):
        coverage(real, made[:5])


def test_half_of_the_modes_have_precision_one_and_half_the_recall() -> None:
    """Two modes that are far apart, of which one alone is made; then the other way round. By pieces too."""
    near, far = normal(800, 2, 0), normal(800, 2, 1, 100.0)
    real, made = torch.cat([near, far]), normal(1600, 2, 2)
    found = coverage(real, made)
    precision, recall = (float(part.double().mean()) for part in found)
    assert 0.93 < precision < 1
    assert 0.47 < recall <= 0.5
    assert not found.recalled[800:].any()
    back = coverage(made, real)
    assert float(back.precise.double().mean()) == recall
    assert float(back.recalled.double().mean()) == precision


@pytest.mark.slow
def test_inception_gives_the_documented_values() -> None:
    """Those in torchmetrics' documentation, under seed 42, of bytes at 299 x 299.

    FID by 64 features, the means of the first pooled layer, is 12.6388; KID by 100 subsets of 50 is 0.0312,
    with a standard deviation of 0.0025. The images there were drawn after random weights of the network, so
    those are drawn here too: as many numbers as its convolutions and last layer have.
    """
    metrics = pytest.importorskip("torchmetrics.image.kid")
    from sdeflow.data.cache import stored

    try:
        path = stored("inception") / "inception.pt"
    except SdeflowError as error:
        pytest.skip(str(error))
    network = Network(Path(path), torch.device("cpu"), inception=True)
    torch.manual_seed(42)
    for weight in network.module.parameters():
        if weight.ndim == 4:
            torch.empty(weight.shape).uniform_()
    torch.empty(1008 * 2048 + 1008).uniform_()
    images = [torch.randint(a, b, (100, 3, 299, 299), dtype=torch.uint8) for a, b in ((0, 200), (100, 255))]
    layers = network.module.net.layers

    def early(images: Tensor) -> Tensor:
        x = (images.float() - 128) / 128
        for name in ("conv", "conv_1", "conv_2", "pool0"):
            x = getattr(layers, name)(x)
        return x.mean((2, 3))

    with torch.inference_mode():
        assert fid(*(torch.cat([early(part) for part in of.split(20)]) for of in images)) == pytest.approx(
            12.6388, abs=1e-4
        )
    real, made = (network.of(of) for of in images)

    class Given(torch.nn.Identity):
        num_features = 2048

    with pytest.warns(UserWarning, match="will save all extracted features"):
        metric = metrics.KernelInceptionDistance(feature=Given(), subset_size=50)
    metric.update(real, real=True)
    metric.update(made, real=False)
    mean, spread = metric.compute()
    assert (float(mean), float(spread)) == pytest.approx((0.0312, 0.0025), abs=1e-4)
    ours = kid(real, made)
    assert abs(ours.value - float(mean)) < 2 * ours.error

"""The noise sources: each a pure function of (seed, block, step), and standard normal.

Reproducibility is exact, bit for bit. Distributions are held to 4.5 standard errors of the statistic,
which a right source leaves once in 150 000 times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from small import MOTION, D, R, X, system_of
from support import SE, doubles, needs_kernel, normals_a_step, toy

from sdeflow.config.catalogue import find, integrator_named
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.noise.philox_source import PhiloxNoise
from sdeflow.noise.source import NormalSource, TorchNoise
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.seeds import derive_key, step_key
from sdeflow.system.block import Block
from sdeflow.system.increments import Channel, NoiseSpec


def overdamped(key: str = "x", size: int = 4) -> Channel:
    return Channel(key, key.upper(), (size,), Block(key, key.upper(), (size,), ("x",)))


def kinetic(key: str = "x", size: int = 4) -> Channel:
    block = Block(key, key.upper(), (size,), ("x",), f"p_{key}", eta=2.0, gamma=0.5)
    return Channel(key, f"p_{key}", (size,), block)


Source = Callable[..., NormalSource]


def made(
    which: Source, channels: Sequence[Channel], seeds: Sequence[int] = (0,), *, kind: str = "WPQ", substeps=1
) -> NormalSource:
    return which(channels, NoiseSpec(kind, substeps, 1.0), doubles(seeds))


@pytest.fixture(params=[TorchNoise, pytest.param(PhiloxNoise, marks=needs_kernel)])
def source(request: pytest.FixtureRequest) -> Source:
    """Makes a noise source of one of the two kinds."""
    return partial(made, request.param)


def flat(noise: tuple) -> dict[str, torch.Tensor]:
    """Everything that one step got, under 'substep/variable/increment'."""
    return {
        f"{i}/{variable}/{name}": value
        for i, part in enumerate(noise)
        for variable, increment in part.items()
        for name, value in increment.items()
    }


def same(one: tuple, other: tuple) -> bool:
    a, b = flat(one), flat(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Reproducibility -----------------------------------------------------------------------------------


def test_step_n_does_not_depend_on_the_order_of_calls(source: Source) -> None:
    channels = [kinetic("x"), overdamped("y")]
    forward = source(channels, [3, 4], substeps=2)
    inorder = [forward(n) for n in range(6)]
    backward = source(channels, [3, 4], substeps=2)
    for n in (5, 0, 3, 3, 1, 4, 2):
        assert same(backward(n), inorder[n])


def test_earlier_noise_is_not_overwritten_by_a_later_call(source: Source) -> None:
    draw = source([kinetic("x"), overdamped("y")])
    first = draw(0)
    copy = {name: value.clone() for name, value in flat(first).items()}
    draw(1)
    assert all(torch.equal(value, copy[name]) for name, value in flat(first).items())


def test_torch_global_generator_is_left_alone(source: Source) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    source([kinetic()])(0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("integrator", ["expint", "obabo", "ubu", "euler_maruyama"])
def test_a_run_does_not_depend_on_its_chunks(source: Source, integrator: str) -> None:
    system = toy("kiplmc", data=3, particles=2, theta=MOTION, x=MOTION)
    scheme = integrator_named(integrator)
    z = {name: torch.ones(1, *axes.shape, dtype=torch.float64) for name, axes in system.axes.items()}
    z |= scheme.init(system, z)
    noise = source(system.channels, kind=scheme.increments, substeps=scheme.substeps)
    whole = advance(EagerSteps(system, scheme, noise), z, 0, 10)
    parts = z
    for first, steps in ((0, 1), (1, 6), (7, 0), (7, 3)):
        parts = advance(EagerSteps(system, scheme, noise), parts, first, steps)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("kind", ["W", "P", "PQ", "WPQ", "WHK"])
@pytest.mark.parametrize("substeps", [1, 2, 3])
def test_replica_i_of_seed_s_is_seed_s_plus_i(source: Source, kind: str, substeps: int) -> None:
    channels = [kinetic("x"), overdamped("y", 5)]
    together = flat(source(channels, range(7, 10), kind=kind, substeps=substeps)(12))
    for i in range(3):
        alone = flat(source(channels, [7 + i], kind=kind, substeps=substeps)(12))
        assert alone.keys() == together.keys()
        assert all(torch.equal(together[name][i], alone[name][0]) for name in alone)


def test_a_block_draws_the_same_whatever_blocks_are_beside_it(source: Source) -> None:
    alone, beside = source([kinetic("x")])(5), source([overdamped("y"), kinetic("x")])(5)
    assert torch.equal(alone[0]["p_x"]["P"], beside[0]["p_x"]["P"])


@pytest.mark.parametrize(
    "substeps",
    [1, 2],
)
def test_schemes_of_one_seed_share_the_brownian_path(source: Source, substeps: int) -> None:
    """W is the same whatever else is drawn, and P alone is made of the normals that W is made of."""
    drawn = {
        kind: [part["p_x"] for part in source([kinetic("x")], kind=kind, substeps=substeps)(3)]
        for kind in ("W", "P", "PQ", "WPQ")
    }
    for i in range(substeps):
        w = drawn["W"][i]["W"]
        assert torch.equal(drawn["WPQ"][i]["W"], w)
        assert torch.equal(drawn["PQ"][i]["P"], drawn["WPQ"][i]["P"])
        assert torch.equal(drawn["PQ"][i]["Q"], drawn["WPQ"][i]["Q"])
        p_std = np.sqrt((1 - np.exp(-2 / substeps)) / 2)
        assert torch.allclose(drawn["P"][i]["P"] / p_std, w * np.sqrt(substeps), rtol=1e-14, atol=0)


def test_the_areas_of_a_path_come_with_its_increment(source: Source) -> None:
    """Kinetic or not, and however many of W, H and K are asked for."""
    for channel in (kinetic("x"), overdamped("x")):
        drawn = [source([channel], kind=kind)(3)[0][channel.variable] for kind in ("W", "WH", "WHK")]
        assert [set(one) for one in drawn] == [{"W"}, {"W", "H"}, {"W", "H", "K"}]
        assert all(torch.equal(one["W"], drawn[0]["W"]) for one in drawn)
        assert torch.equal(drawn[1]["H"], drawn[2]["H"])


def test_no_normal_of_three_is_used_twice(source: Source) -> None:
    """W, H and K over 2 substeps, 50 steps and 2 blocks, over their deviations, are distinct numbers."""
    draw = source([overdamped("x"), overdamped("y")], kind="WHK", substeps=2)
    values = torch.cat(
        [
            (value * {"W": 1, "H": 12, "K": 720}[name[-1]] ** 0.5).flatten()
            for n in range(50)
            for name, value in flat(draw(n)).items()
        ]
    )
    ordered = values.sort().values
    assert values.numel() == 3 * 2 * 50 * 2 * 4
    assert ordered.diff().min() > 1e-12


def test_blocks_steps_seeds_and_substeps_differ(source: Source) -> None:
    """No normal is used twice: all W are distinct numbers over 2 blocks, 2 substeps, 50 steps, 20 seeds."""
    draw = source([overdamped("x"), overdamped("y")], range(20), kind="W", substeps=2)
    values = torch.cat([value.flatten() for n in range(50) for value in flat(draw(n)).values()])
    assert values.numel() == 2 * 2 * 50 * 20 * 4
    assert values.unique().numel() == values.numel()


def test_draws_are_those_of_torch_seeded_for_seed_block_and_step() -> None:
    """The whole 63-bit key reaches the generator, and substeps follow one another in one stream."""
    draw = made(TorchNoise, [overdamped("y"), overdamped("x")], [8, 9], kind="W", substeps=2)(70_001)
    g = torch.Generator().manual_seed(step_key(derive_key(9, "noise", "x"))(70_001))
    xi = torch.empty(2, 4, dtype=torch.float64).normal_(generator=g)
    for part, normals in zip(draw, xi, strict=True):
        assert torch.equal(part["X"]["W"][1], np.sqrt(0.5) * normals)


# Keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [0, derive_key(0, "noise", "x"), derive_key(1, "noise", "theta"), 2**128 - 1])
def test_steps_never_share_the_low_32_bits(key: int) -> None:
    """torch's CPU generator looks at these alone; a hash would repeat about 5 times in 200 000 steps."""
    of_step = step_key(key)
    seeds = [of_step(n) for n in range(200_000)]
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds[:100])


def test_streams_have_different_step_keys() -> None:
    """Of 40 streams with 2500 steps each, low bits coincide as rarely as for random 32-bit numbers.

    Two streams may share some: 10^5 random numbers in 2^32 give 1.2 coincidences on average.
    """
    seeds = [
        step_key(derive_key(seed, "noise", block))(n) & 0xFFFFFFFF
        for seed in range(20)
        for block in ("theta", "x")
        for n in range(2500)
    ]
    assert len(seeds) - len(set(seeds)) <= 8


def test_keys_depend_on_seed_and_every_name() -> None:
    uses = ((0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "b", "a"))
    keys = {derive_key(*use) for use in uses}
    assert len(keys) == 6
    assert all(0 <= key < 2**128 for key in keys)


# Distribution --------------------------------------------------------------------------------------


def normals(
    source: Source, steps: int, size: int, *, seeds: Sequence[int] = (0,), substeps: int = 1
) -> np.ndarray:
    """W / sqrt(length of a substep) as [step, substep, seed, coordinate]."""
    draw = source([overdamped("x", size)], seeds, kind="W", substeps=substeps)
    drawn = [torch.stack([part["X"]["W"] for part in draw(n)]) for n in range(steps)]
    return torch.stack(drawn).numpy() * np.sqrt(substeps)


@pytest.mark.parametrize("substeps", [1, 2])
def test_moments_are_those_of_a_standard_normal(source: Source, substeps: int) -> None:
    """The k-th sample moment has variance (E x^2k - (E x^k)^2) / n; and no test of shape objects."""
    x = normals(source, 2000, 50, substeps=substeps).ravel()
    even = {2: 1, 4: 3, 6: 15, 8: 105}
    for k in (1, 2, 3, 4):
        mean = even.get(k, 0)
        error = np.sqrt((even[2 * k] - mean**2) / x.size)
        assert abs((x**k).mean() - mean) < SE * error, k
    assert kstest(x, "norm").pvalue > 1e-5


def test_first_normals_of_the_steps_are_normal_too(source: Source) -> None:
    """One number a step: nearby generator seeds must not give nearby draws."""
    x = normals(source, 20_000, 1).ravel()
    assert abs(x.mean()) < SE / np.sqrt(x.size)
    assert abs(x.var() - 1) < SE * np.sqrt(2 / x.size)
    assert kstest(x, "norm").pvalue > 1e-5
    for lag in (1, 2, 3, 10):
        assert abs((x[lag:] * x[:-lag]).mean()) < SE / np.sqrt(x.size - lag), lag


def test_no_correlation_between_steps_substeps_seeds_and_coordinates(source: Source) -> None:
    x = normals(source, 300, 40, seeds=range(8), substeps=2)
    halves = {
        "step": (x[1:], x[:-1]),
        "substep": (x[:, 1], x[:, 0]),
        "seed": (x[:, :, 1:], x[:, :, :-1]),
        "coordinate": (x[..., 1:], x[..., :-1]),
        "seed and step": (x[1:, :, :-1], x[:-1, :, 1:]),
    }
    for name, (a, b) in halves.items():
        assert abs((a * b).mean()) < SE / np.sqrt(a.size), name


def test_no_correlation_between_blocks(source: Source) -> None:
    draw = source([overdamped("x", 500), overdamped("y", 500)], kind="W")
    product = torch.stack([(step := draw(n)[0])["X"]["W"] * step["Y"]["W"] for n in range(100)])
    assert abs(product.mean()) < SE / np.sqrt(product.numel())


@pytest.mark.parametrize("substeps", [1, 2, 4])
def test_each_substep_has_its_share_of_the_step(source: Source, substeps: int) -> None:
    """Var W = h / substeps and Var P = (1 - w^2)/eta over that length."""
    n = 40_000
    step = source([kinetic("x", n)], substeps=substeps)(0)
    assert len(step) == substeps
    for part in step:
        h = 1 / substeps
        for name, variance in (("W", h), ("P", (1 - np.exp(-2 * h)) / 2)):
            assert part["p_x"][name].square().mean() == pytest.approx(variance, rel=SE * np.sqrt(2 / n))


def test_p_alone_has_the_variance_of_p_with_q(source: Source) -> None:
    n = 40_000
    (part,) = source([kinetic("x", n)], kind="P")(0)
    assert set(part["p_x"]) == {"P"}
    assert part["p_x"]["P"].square().mean() == pytest.approx((1 - np.exp(-2)) / 2, rel=SE * np.sqrt(2 / n))


# What a system asks for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "variables"),
    [
        ("pgd", ["X"]),
        ("ipla", ["theta", "X"]),
        ("mpgd", ["U"]),
        ("mpgd-theta", ["X"]),
        ("mpgd-x", ["U"]),
        ("kiplmc", ["m", "U"]),
    ],
)
def test_blocks_at_zero_temperature_have_no_entry(source: Source, system: str, variables: list[str]) -> None:
    built = toy(system, data=3, particles=2, theta=MOTION, x=MOTION)
    (noise,) = source(built.channels, kind="PQ")(0)
    assert list(noise) == variables
    for name, increment in noise.items():
        assert all(value.shape == (1, *built.axes[name].shape) for value in increment.values())


@pytest.mark.parametrize(
    ("integrator", "kinetic_names", "normals_each"),
    [
        ("euler_maruyama", {"W"}, 1),
        ("baoab", {"P"}, 1),
        ("obabo", {"P"}, 2),
        ("ubu", {"P", "Q"}, 4),
        ("quicsort", {"W", "H", "K"}, 3),
    ],
)
def test_a_scheme_gets_what_it_asks_for(
    source: Source, integrator: str, kinetic_names: set[str], normals_each: int
) -> None:
    built = toy("kiplmc", data=3, particles=2, theta=MOTION, x=MOTION)
    scheme = integrator_named(integrator)
    noise = source(built.channels, kind=scheme.increments, substeps=scheme.substeps)(0)
    assert len(noise) == scheme.substeps
    assert all(set(part[name]) == kinetic_names for part in noise for name in ("m", "U"))
    assert normals_a_step(built.channels, scheme) == normals_each * (1 + 3 * 2)


@pytest.mark.parametrize("kind", ["W", "P", "PQ", "WPQ", "WHK"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_replicas_draw_what_runs_draw(kind: Any, dtype: torch.dtype) -> None:
    channels = system_of(Hierarchical(data=D), "kiplmc").channels

    def noise(seeds: range) -> TorchNoise:
        return TorchNoise(channels, NoiseSpec(kind, 2, 0.01), doubles(seeds, dtype))

    together = noise(range(3, 3 + R))
    singles = [noise(range(3 + i, 4 + i)) for i in range(R)]
    for step in (7, 0, 123_456_789):
        drawn = together(step)
        for i, single in enumerate(singles):
            for all_parts, parts in zip(drawn, single(step), strict=True):
                for variable, increments in parts.items():
                    for what, value in increments.items():
                        assert torch.equal(all_parts[variable][what][i], value[0])


def test_steps_replicas_blocks_and_substeps_draw_different_numbers() -> None:
    """Both blocks have one coordinate and move alike, so that equal normals would be equal increments."""
    kiplmc = find("systems", "kiplmc")
    channels = kiplmc(Hierarchical(data=1), particles=1, theta=X, x=X).channels
    noise = TorchNoise(channels, NoiseSpec("P", 2, 0.01), doubles(range(3)))
    drawn = [
        float(value)
        for step in range(50)
        for part in noise(step)
        for increments in part.values()
        for value in increments["P"].flatten()
    ]
    assert len(drawn) == 50 * 2 * 3 * 2
    assert len(set(drawn)) == len(drawn)

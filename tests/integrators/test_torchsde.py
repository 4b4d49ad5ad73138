"""torchsde's solvers on our systems: the same numbers where the scheme is the same, the same law where not.

Oracles: our Euler-Maruyama on the same path; the strong order of each solver on the kinetic double well,
against a fine reference on the same Brownian path; the exact stationary variance of an affine step.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sdeflow
from sdeflow import Block, BlockSystem, Save, SDESystem, simulate
from sdeflow.config.catalogue import find, integrator_named
from sdeflow.errors import DivergenceWarning, SdeflowError
from sdeflow.problems.generic import DoubleWell
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.increments import Channel, Increment, compose

METHODS = ("euler", "milstein", "srk", "heun", "midpoint", "euler_heun", "log_ode", "reversible_heun")
QUICK = ("euler", "srk", "midpoint")


def toy(system: sdeflow.SystemDeclaration, h: float = 1.0) -> BlockSystem:
    """The toy model with three data and two particles, eta = 2, gamma = 1.5."""
    motion = {"eta": 2.0, "gamma": 1.5}
    model = Hierarchical(data=3, theta_true=1.0)
    return system(model, particles=2, theta={"h": 0.01 * h, **motion}, x={"h": 0.02 * h, **motion})


@pytest.mark.parametrize("method", ["euler", "milstein", "euler_heun"])
@pytest.mark.parametrize("system", [sdeflow.mpgd, sdeflow.kiplmc, sdeflow.pgd], ids=lambda s: s.name)
def test_equals_euler_maruyama_on_the_same_path(method: str, system: sdeflow.SystemDeclaration) -> None:
    """For additive noise these three are Euler-Maruyama: equal to rounding over 50 steps."""
    options = {
        "steps": 50,
        "replicas": 2,
        "dtype": "float64",
        "save": Save(every=50, data="all", particles="all"),
    }
    ours = simulate(toy(system), "euler_maruyama", **options)
    theirs = simulate(toy(system), f"torchsde:{method}", **options)
    for name in ("theta", "X"):
        np.testing.assert_allclose(theirs[name], ours[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_and_chunks_give_the_same_numbers(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver's own state lives in the run's state: pieces of any length give the same bits."""
    options = {"steps": 12, "dtype": "float64"}
    whole = simulate(toy(sdeflow.mpgd), f"torchsde:{method}", **options, save=Save(every=12))
    monkeypatch.setattr("sdeflow.simulation.time_loop._CHUNK_SECONDS", 0.0)
    pieces = simulate(toy(sdeflow.mpgd), f"torchsde:{method}", **options, save=Save(every=1))
    np.testing.assert_array_equal(whole.X[-1], pieces.X[-1])


ETA, GAMMA, PATHS, TIME = 1.5, 0.8, 200, 1.0


def well(t: float, z: dict[str, Tensor], names: object) -> dict[str, Tensor]:
    """Minus the gradient of (q^2 - 1)^2 / 4."""
    q = z["X"]
    return {"x": q - q**3}


def increments(fine: int) -> tuple[Channel, BlockSystem, dict[int, list[Increment]]]:
    """W and H over 2^fine steps of [0, 1] and over each coarser halving, of one path."""
    block = Block("x", "X", (PATHS, 1), ("particle", "latent"), "U", eta=ETA, gamma=GAMMA)
    system = BlockSystem(
        [block], well, h=1.0, start={"X": torch.linspace(-1.5, 1.5, PATHS)[:, None].double()}
    )
    (channel,) = system.channels
    g = torch.Generator().manual_seed(7)
    h = TIME / 2**fine
    levels = {
        fine: [
            channel.increment(torch.randn(2, 1, PATHS, 1, generator=g, dtype=torch.float64), h, "WH")
            for _ in range(2**fine)
        ]
    }
    for level in range(fine, 3, -1):
        pairs = zip(levels[level][::2], levels[level][1::2], strict=True)
        levels[level - 1] = [compose(channel, a, b, TIME / 2**level) for a, b in pairs]
    return channel, system, levels


def end(scheme: str, level: int, system: BlockSystem, levels: dict[int, list[Increment]]) -> Tensor:
    integrator, h = integrator_named(scheme), TIME / 2**level
    z = {name: value[None] for name, value in system.start(0).items()}
    with torch.no_grad():
        z |= integrator.init(system, z)
        for n, increment in enumerate(levels[level]):
            z = integrator.step(system, n * h, z, h, ({"U": increment},))
    return torch.cat([z["X"], z["U"]], dim=-1)


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in METHODS]
)
def test_strong_order(method: str) -> None:
    """The error against srk with 2^9 steps falls with the stated order, to 0.2.

    Slope of log2 of the root mean square error over 200 paths, between 2^4 and 2^6 steps; its fluctuation,
    seen over ten seeds, is below 0.05. Solvers of stated order 1 may do better: additive noise in the
    momentum alone makes schemes of weak order 2 converge with order 1 to 2. srk is a scheme of order 1.5.
    """
    _, system, levels = increments(9)
    reference = end("torchsde:srk", 9, system, levels)
    errors = [
        float((end(f"torchsde:{method}", level, system, levels) - reference).square().mean().sqrt())
        for level in (4, 5, 6)
    ]
    slope = math.log2(errors[0] / errors[2]) / 2
    assert slope > integrator_named(f"torchsde:{method}").strong_order - 0.2
    if method in ("euler", "milstein", "euler_heun"):
        assert slope < 1.2


@pytest.mark.parametrize("method", [m for m in METHODS if m != "reversible_heun"])
def test_stationary_law_of_an_ornstein_uhlenbeck_process(method: str) -> None:
    """The stationary variance is that of the scheme's own affine step, x' = a x + b W + c H, in closed form.

    a, b and c are read off the real step; Var x = (b^2 h + c^2 h/12) / (1 - a^2), and it tends to 1/2 with
    the weak order of the scheme. reversible_heun is left out: its step is not a map of x alone.
    """
    integrator = integrator_named(f"torchsde:{method}")
    system = SDESystem(find("systems", "ornstein_uhlenbeck")(), h=1.0)
    biases = []
    for h in (0.2, 0.1):

        def step(x: float, w: float, eta: float, h: float = h) -> float:
            z = {"X": torch.full((1, 1, 1), x, dtype=torch.float64)}
            noise = {"W": torch.full_like(z["X"], w), "H": torch.full_like(z["X"], eta)}
            z |= integrator.init(system, z)
            return integrator.step(system, 0.0, z, h, ({"X": noise},))["X"].item()

        a, b, c = step(1, 0, 0), step(0, 1, 0), step(0, 0, 1)
        biases.append((b**2 * h + c**2 * h / 12) / (1 - a**2) - 0.5)
    order = math.log2(abs(biases[0] / biases[1]))
    assert order > integrator.weak_order - 0.2
    assert abs(biases[1]) < 0.06


def test_stratonovich_solvers_refuse_a_diffusion_that_depends_on_the_state() -> None:
    class Geometric:
        def drift(self, t: float, x: Tensor) -> Tensor:
            return 0.1 * x

        def diffusion(self, t: float, x: Tensor) -> Tensor:
            return 0.3 * x

    system = SDESystem(Geometric(), h=0.01, paths=50, start=(1.0,))
    with pytest.raises(SdeflowError, match=r"Stratonovich.*These can: euler_maruyama, torchsde:euler"):
        simulate(system, "torchsde:heun", steps=3)
    # Milstein is the exact solution to order h; on the same path it is closer to it than Euler-Maruyama.
    end = {
        name: simulate(system, name, steps=100, dtype="float64", save=Save(100, particles="all")).X[-1]
        for name in ("torchsde:milstein", "euler_maruyama", "torchsde:srk")
    }
    gap = {name: float(abs(value - end["torchsde:srk"]).mean()) for name, value in end.items()}
    assert gap["torchsde:milstein"] < gap["euler_maruyama"] / 3


@pytest.mark.parametrize("method", [m for m in METHODS if m != "reversible_heun"])
def test_double_well_keeps_its_second_moment(method: str) -> None:
    """Against quadrature of exp(-V/T): within 4 standard errors of 4000 paths.

    The bias of the step of 0.02 is of order h or h^2, below one of them.
    """
    system = SDESystem(DoubleWell(), h=0.02, paths=4000, start=(0.3,))
    q = np.linspace(-4, 4, 4001)
    density = np.exp(-((q**2 - 1) ** 2) / 0.5)
    moment = (q**2 * density).sum() / density.sum()
    x = simulate(system, f"torchsde:{method}", steps=200, dtype="float64", save=Save(200, particles="all")).X[
        -1
    ]
    error = float((x**2).std()) / math.sqrt(4000)
    assert abs(float((x**2).mean()) - moment) < 4 * error


def test_reversible_heun_is_not_stable_on_a_dissipative_drift() -> None:
    """Its linear stability region is a piece of the imaginary axis (Kidger et al. 2021): it diverges."""
    system = SDESystem(DoubleWell(), h=0.02, paths=100, start=(0.3,))
    with pytest.warns(DivergenceWarning, match="X is not finite"):
        run = simulate(system, "torchsde:reversible_heun", steps=200, dtype="float64")
    assert run.attrs["retcode"] == "diverged"


class Own:
    """Each coordinate's noise is its own, with a drift that reads the others."""

    def drift(self, t: float, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1, keepdim=True) - x

    def diffusion(self, t: float, x: torch.Tensor) -> torch.Tensor:
        return 0.1 * (1 + x.square())


class OfTheMean(Own):
    def diffusion(self, t: float, x: torch.Tensor) -> torch.Tensor:
        return 0.1 * (1 + x.mean(1, keepdim=True).square()).expand_as(x)


class OfTheNext(Own):
    def diffusion(self, t: float, x: torch.Tensor) -> torch.Tensor:
        return 0.1 * (1 + x.roll(1, -1).square())


@pytest.mark.parametrize("method", ["milstein", "srk"])
def test_noise_that_does_not_commute_is_refused(method: str) -> None:
    """Across paths and across coordinates; euler takes it, and an SDE may know better."""
    integrator, euler = integrator_named(f"torchsde:{method}"), integrator_named("torchsde:euler")

    def system(sde: Any) -> SDESystem:
        return SDESystem(sde, h=0.01, paths=3, start=(0.5, -1.0))

    assert integrator.refuses(system(Own())) is None
    for sde in (OfTheMean(), OfTheNext()):
        assert "depend on that alone" in (integrator.refuses(system(sde)) or "")
        assert euler.refuses(system(sde)) is None
        sde.interacting_noise = False
        assert integrator.refuses(system(sde)) is None
    declared = Own()
    declared.interacting_noise = True
    assert integrator.refuses(system(declared)) is not None

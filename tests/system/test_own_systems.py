"""Systems of the user's: plain SDEs, and blocks with forces made by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from small import Ramp, run
from support import doubles
from torch import Tensor

import sdeflow
from sdeflow import Block, Save, SDESystem, simulate
from sdeflow.config.build import build
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.noise.source import TorchNoise
from sdeflow.simulation.solve import solve
from sdeflow.state import Axes, State
from sdeflow.system.increments import Channel, NoiseSpec
from sdeflow.system.system import BlockSystem, System


def test_plain_sde_from_python() -> None:
    """Euler-Maruyama by hand, with the increments that the noise source gives."""
    system = SDESystem(Ramp(), h=0.1, paths=3, start=(0.5, -1.0))
    ds = run(system, "euler_maruyama", seed=4).dataset
    assert ds.X.dims == ("time", "particle", "latent")
    assert dict(ds.sizes) == {"time": 7, "particle": 3, "latent": 2}
    assert set(ds.data_vars) == {"X"}
    np.testing.assert_array_equal(ds.X[0], np.tile([0.5, -1.0], (3, 1)))
    noise = TorchNoise(system.channels, NoiseSpec("W", 1, 0.1), doubles([4]))
    x = ds.X[0].values
    for n in range(6):
        (part,) = noise(n)
        x = x + 0.1 * (0.1 * n - x) + 0.3 * part["X"]["W"][0].numpy()
        np.testing.assert_allclose(ds.X[n + 1], x, rtol=1e-13, atol=1e-14)


def test_plain_sde_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "ramp.py").write_text(
        "class Ramp:\n"
        "    def drift(self, t, x):\n        return t - x\n"
        "    def diffusion(self, t, x):\n        return 0.3\n"
    )
    (tmp_path / "ramp.toml").write_text(
        "[system]\nuse = 'ramp.py:Ramp'\nh = 0.1\npaths = 3\nstart = [0.5, -1.0]\n"
        "[run]\nintegrator = 'euler_maruyama'\nsteps = 6\nseed = 4\ndtype = 'float64'\nreplicas = 2\n"
        "noise = 'torch'\n"
        "[save]\nevery = 1\n"
    )
    ds = solve(build(load_config(tmp_path / "ramp.toml"))).dataset
    assert ds.X.dims == ("time", "replica", "particle", "latent")
    system = SDESystem(Ramp(), h=0.1, paths=3, start=(0.5, -1.0))
    for i in range(2):
        alone = run(system, "euler_maruyama", seed=4 + i).dataset
        np.testing.assert_array_equal(ds.X.sel(replica=i), alone.X)


def test_a_system_made_by_hand_of_blocks_and_forces() -> None:
    """Blocks of their own shapes and clocks; the forces need not share a potential."""
    blocks = [
        Block("slow", "a", (2,), ("param",), "p", eta=2.0, gamma=0.5, temperature=0.0, role="parameters"),
        Block("fast", "b", (3, 4), ("datum", "latent"), rate=3.0),
    ]

    def forces(t: float, z: dict[str, Tensor], names: Any) -> dict[str, Tensor]:
        all_forces = {"slow": 1 - z["a"], "fast": -z["b"] * z["a"][:, :1, None]}
        return {name: all_forces[name] for name in names}

    start = {"a": torch.zeros(2), "b": torch.ones(3, 4)}
    ds = run(BlockSystem(blocks, forces, h=0.01, start=start), replicas=2, steps=3).dataset
    assert dict(ds.sizes) == {"time": 4, "replica": 2, "param": 2, "datum": 3, "latent": 4}
    assert ds.a.dims == ds.p.dims == ("time", "replica", "param")
    assert ds.b.dims == ("time", "replica", "datum", "latent")
    assert ds.param.values.tolist() == ["0", "1"]
    np.testing.assert_allclose(ds.time_fast, 3 * ds.time_slow, rtol=1e-14)
    np.testing.assert_allclose(ds.force_slow, np.sqrt(((1 - ds.a) ** 2).sum("param")), rtol=1e-14)


def test_tensors_of_an_sde_follow_the_run() -> None:
    class Held:
        rate = torch.ones(1, dtype=torch.float64)

        def __init__(self) -> None:
            self.pull = torch.full((1,), 0.5, dtype=torch.float64)

        def drift(self, t: float, x: Tensor) -> Tensor:
            assert self.pull.dtype == x.dtype
            return -self.pull * x

        def diffusion(self, t: float, x: Tensor) -> float:
            return 1.0

    run = simulate(sdeflow.SDESystem(Held(), h=0.1), "euler_maruyama", steps=3, dtype="float32")
    assert run.attrs["retcode"] == "success"


class Whole(System):
    """A system by hand, without blocks or a model."""

    h = 0.1
    axes: ClassVar = {"X": Axes(("path",), (3,))}
    channels: ClassVar = [Channel("x", "X", (3,))]
    clocks: ClassVar = {}

    def drift(self, t: float, z: State) -> State:
        return {"X": -z["X"]}

    def diffusion(self, t: float, z: State) -> dict[str, Any]:
        return {"X": 0.3}

    def to(self, dtype: torch.dtype, device: torch.device) -> System:
        return self

    def start(self, seed: int, replica: int = 0) -> State:
        return {"X": torch.ones(3, dtype=torch.float64)}

    def check(self, z: State) -> None:
        pass

    def observe(self, t: float, z: State) -> dict[str, Tensor]:
        return {}


def test_a_system_by_hand_moves_as_the_same_sde_does() -> None:
    """Where it is derived from System it says of itself that it has no blocks and no model."""
    assert (Whole().blocks, Whole().model_forces) == ((), None)
    ds = simulate(Whole(), "euler_maruyama", steps=5, dtype="float64", noise="torch", save=Save(every=1))
    noise = TorchNoise(Whole.channels, NoiseSpec("W", 1, 0.1), doubles())
    x = torch.ones(3, dtype=torch.float64)
    for n in range(5):
        (dW,) = noise(n)
        x = 0.9 * x + 0.3 * dW["X"]["W"][0]
        np.testing.assert_allclose(ds.X[n + 1], x, rtol=1e-13)


def test_a_system_that_lacks_a_part_is_told_from_a_plain_sde() -> None:
    lacking = SimpleNamespace(h=0.1, axes={}, drift=lambda t, z: z, diffusion=lambda t, z: z)
    with pytest.raises(SdeflowError, match=r"derive it from sdeflow\.system\.System"):
        simulate(lacking, "euler_maruyama", steps=1)

"""What changes no number of a run: how often it is saved, its pieces, and the replicas beside it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small import Autograd, D, Net, R, Ramp, run, system_of
from torch import Tensor

import sdeflow
from sdeflow import Save, SDESystem
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation import time_loop

CUTS: dict[str, dict[str, Any]] = {
    "every 1": {"every": 1},
    "every 3": {"every": 3},
    "every 7": {"every": 7},
    "fewer particles": {"data": 1, "particles": [3]},
    "norms only": {"theta_max": 0},
}


@pytest.mark.parametrize("chunk_seconds", [1e-9, 1e9], ids=["step by step", "long chunks"])
@pytest.mark.parametrize("save", CUTS.values(), ids=CUTS)
def test_saving_and_chunks_change_no_number(
    monkeypatch: pytest.MonkeyPatch, save: dict[str, Any], chunk_seconds: float
) -> None:
    system = system_of(Autograd(data=D))
    reference = run(system, steps=20, dtype="float32")
    monkeypatch.setattr(time_loop, "_CHUNK_SECONDS", chunk_seconds)
    end = run(system, steps=20, dtype="float32", save=Save(**save))
    for name, value in reference.state.items():
        assert torch.equal(end.state[name], value), name
    at = reference.dataset.sel(time=end.dataset.time)
    np.testing.assert_array_equal(end.dataset.loss, at.loss)
    if "theta" in end.dataset:
        np.testing.assert_array_equal(end.dataset.theta, at.theta)


FORCES = {
    "analytic, vmap": (lambda: Hierarchical(data=D), 10**9),
    "analytic, loop": (lambda: Hierarchical(data=D), 0),
    "autograd, vmap": (lambda: Autograd(data=D), 10**9),
    "autograd, loop": (lambda: Autograd(data=D), 0),
    "module, vmap": (Net, 10**9),
    "module, loop": (Net, 0),
}


@pytest.mark.parametrize(("model", "vmap_below"), FORCES.values(), ids=FORCES)
def test_replicas_are_runs(
    monkeypatch: pytest.MonkeyPatch, model: Callable[[], sdeflow.Model], vmap_below: int
) -> None:
    """Replica i of a run with seed s is the run with seed s + i: the same start to the bit, then roundoff."""
    monkeypatch.setattr("sdeflow.model.forces.VMAP_BELOW", vmap_below)
    system = system_of(model(), "kiplmc")
    together = run(system, replicas=R, seed=3).dataset
    for i in range(R):
        alone, replica = run(system, seed=3 + i).dataset, together.isel(replica=i)
        assert replica.seed == alone.attrs["seed"] == 3 + i
        for name in ("theta", "m", "X", "U"):
            np.testing.assert_array_equal(replica[name][0], alone[name][0])
        for name in alone.data_vars:
            np.testing.assert_allclose(replica[name], alone[name], rtol=1e-12, atol=1e-12, err_msg=str(name))
    assert len(np.unique(together.theta[-1, :, 0])) == R


def test_precision_is_the_one_asked_for() -> None:
    """Whatever precision the user's own constants have."""

    class Wide(Ramp):
        def drift(self, t: float, x: Tensor) -> Tensor:
            return -torch.ones(2, dtype=torch.float64) * x

    for dtype in ("float32", "float64"):
        system = SDESystem(Wide(), h=0.1, start=(0.5, -1.0))
        end = run(system, "euler_maruyama", dtype=dtype)
        assert end.dataset.X.dtype == np.dtype(dtype)
        assert end.state["X"].dtype == getattr(torch, dtype)
        end = run(system_of(Net()), dtype=dtype)
        assert {v.dtype for v in end.dataset.data_vars.values()} == {np.dtype(dtype)}
        assert {v.dtype for v in end.state.values()} == {getattr(torch, dtype)}


def test_large_but_finite_is_not_diverged() -> None:
    class Still:
        def drift(self, t: float, x: Tensor) -> Tensor:
            return 0 * x

        def diffusion(self, t: float, x: Tensor) -> float:
            return 0.0

    system = SDESystem(Still(), h=0.1, paths=100, start=(1e37,))
    assert run(system, "euler_maruyama", dtype="float32").retcode == "success"

"""Every integrator of the catalogue evaluates forces as often as it says: comparisons count cost by that."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from support import INTEGRATORS

from sdeflow import Save, mpgd, simulate
from sdeflow.config.catalogue import entries, integrator_named
from sdeflow.model.forces import ModelForces
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.state import State

MOTION = {"h": 1e-3, "eta": 3.0, "gamma": 0.5}
BUILT_IN = [*INTEGRATORS, *(name for name in entries("integrators") if name.startswith("torchsde:"))]


@pytest.mark.parametrize("integrator", BUILT_IN)
def test_a_step_evaluates_as_often_as_declared(integrator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of the model's forces in a run of 9 steps less those in one of 4, which start and save alike."""
    evaluate, count = ModelForces.__call__, 0

    def counted(forces: ModelForces, t: float, z: State, names: Sequence[str]) -> State:
        nonlocal count
        count += 1
        return evaluate(forces, t, z, names)

    monkeypatch.setattr(ModelForces, "__call__", counted)
    calls = {}
    for steps in (4, 9):
        count = 0
        system = mpgd(Hierarchical(data=3), particles=2, theta=MOTION, x=MOTION)
        simulate(system, integrator, steps=steps, save=Save(every=100), engine="eager", noise="torch")
        calls[steps] = count
    assert calls[9] - calls[4] == 5 * integrator_named(integrator).evaluations

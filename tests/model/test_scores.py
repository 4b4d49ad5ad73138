"""Scores: analytic ones and those by automatic differentiation."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from small import Autograd, D, run, system_of, tiny
from torch import Tensor

from sdeflow import simulate
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical


@pytest.mark.parametrize(("integrator", "name"), [("expint", "mpgd"), ("ubu", "kiplmc"), ("expint", "ipla")])
def test_analytic_scores_are_the_gradients(integrator: str, name: str) -> None:
    with_scores = run(system_of(Hierarchical(data=D, scale=0.5), name), integrator, steps=20).dataset
    without = run(system_of(Autograd(data=D, scale=0.5), name), integrator, steps=20).dataset
    for variable in with_scores.data_vars:
        np.testing.assert_allclose(
            with_scores[variable], without[variable], rtol=1e-11, err_msg=str(variable)
        )


def test_an_analytic_score_that_is_wrong_is_refused() -> None:
    class Flipped(Hierarchical):
        def score_x(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
            return -super().score_x(theta, x, y)

    with pytest.raises(
        SdeflowError, match=r"Flipped\.score_x differs from the gradient of log_joint by 200%"
    ):
        simulate(tiny(Flipped(data=3)), "expint", steps=3)


def test_replicas_of_a_score_that_looks_at_values_take_turns() -> None:
    class Looks(Hierarchical):
        def score_x(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
            assert bool(x.isfinite().all())
            return super().score_x(theta, x, y)

    options = {"steps": 5, "replicas": 2, "dtype": "float64"}
    xr.testing.assert_allclose(
        simulate(tiny(Looks(data=3)), "expint", **options).X, simulate(tiny(), "expint", **options).X
    )

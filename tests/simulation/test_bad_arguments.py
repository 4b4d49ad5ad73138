"""Mistakes in Python: bad arguments get one clear sentence."""

from typing import Any

import pytest
import torch
from small import tiny

import sdeflow
from sdeflow import simulate
from sdeflow.errors import SdeflowError
from sdeflow.problems.generic import OrnsteinUhlenbeck
from sdeflow.problems.hierarchical import Hierarchical


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"integrator": "expit"}, "did you mean 'expint'"),
        ({"integrator": 3}, "sdeflow.Integrator"),
        ({"integrator": "ubu"}, "These can"),
        ({"steps": -1}, "steps must be at least 0, given -1"),
        ({"replicas": 0}, "replicas must be at least 1, given 0"),
        ({"seed": -1}, "seed must be at least 0, given -1"),
        ({"dtype": "float16"}, "float32 or float64, given float16"),
        ({"dtype": torch.int64}, "float32 or float64"),
        ({"device": "warp"}, "warp"),
    ],
)
def test_python(arguments: dict[str, Any], fragment: str) -> None:
    from sdeflow.problems.hierarchical import Hierarchical

    system = sdeflow.pgd(Hierarchical(data=3), particles=2, theta={"h": 0.1}, x={"h": 0.1})
    with pytest.raises(SdeflowError, match=fragment):
        sdeflow.simulate(system, **({"integrator": "expint", "steps": 1} | arguments))


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"theta": {"h": 0.0}}, "'theta'.*positive"),
        ({"theta": {"h": float("nan")}}, "'theta'.*positive"),
        ({"theta": {"step": 0.1}}, "'theta'.*given step"),
        ({"theta": {"h": "fast"}}, "'theta'.*positive"),
        ({"theta": {"h": 0.1, "eta": "heavy"}}, "eta must be a number"),
        ({"h": 0.0}, "positive"),
        ({"particles": 0}, "at least 1"),
    ],
)
def test_python_system(arguments: dict[str, Any], fragment: str) -> None:
    from sdeflow.problems.hierarchical import Hierarchical

    numbers = {"particles": 2, "theta": {"h": 0.1}, "x": {"h": 0.1}} | arguments
    with pytest.raises(SdeflowError, match=fragment):
        sdeflow.mpgd(Hierarchical(data=3), **numbers)
    with pytest.raises(SdeflowError, match=r"sdeflow\.Model was expected, given int"):
        sdeflow.pgd(3, particles=2, theta={"h": 0.1}, x={"h": 0.1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("system", "options", "sentence"),
    [
        (OrnsteinUhlenbeck(), {}, r"SDESystem\(sde, h="),
        (sdeflow.mpgd, {}, "declaration with a model"),
        (Hierarchical(data=3), {}, "declaration with a model"),
        (3, {}, "a system was expected, given int"),
        (tiny(), {"steps": 3.5}, "steps must be at least 0, given 3.5"),
        (tiny(), {"seed": "0"}, "seed must be at least 0, given '0'"),
        (tiny(), {"save": {"every": 1}}, r"sdeflow\.Save, given dict"),
        (tiny(), {"device": "meta"}, "'auto', 'cpu' or 'cuda'"),
    ],
)
def test_mistakes_in_python_are_sentences(system: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SdeflowError, match=sentence):
        simulate(system, **{"integrator": "euler_maruyama", "steps": 1} | options)

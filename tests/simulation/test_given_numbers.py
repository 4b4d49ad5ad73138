"""Numbers as NumPy, torch and others have them, wherever Python takes a number or several of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy import array, geomspace, int8, int64
from pieces import WHOLE, toy
from small import assert_same, tiny
from torch import tensor

from sdeflow import Batch, Evaluate, Grid, Save, SdeflowError, SDESystem, mpgd, simulate
from sdeflow.problems.generic import OrnsteinUhlenbeck
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.block import Block

CHOICE = {"every": 3, "checkpoint": 0.0}


def double(number: float) -> torch.Tensor:
    """A tensor without axes."""
    return tensor(number, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "own", "others"),
    [
        ("seed", 3, [int8(3), tensor(3)]),
        ("replicas", 2, [int64(2), tensor(2)]),
        ("bound", 1e9, [np.float64(1e9), double(1e9)]),
        ("batch", Batch(2, "one_step", 3), [Batch(int64(2), "one_step", tensor(3))]),
        ("evaluate", Evaluate(6, 2), [Evaluate(int64(6), tensor(2))]),
        ("grid", Grid((0.5, 1.0), (2.0,)), [Grid(geomspace(0.5, 1, 2), tensor([2.0]))]),
        ("grid", Grid((0.5, 1.0), (2.0,)), [Grid([double(0.5), np.float32(1)], [2.0])]),
        ("save", Save(3, 2, 2, checkpoint=0.0), [Save(int64(3), tensor(2), int8(2), checkpoint=double(0.0))]),
        ("save", Save(particles=(0, 2), **CHOICE), [Save(particles=array([0, 2]), **CHOICE)]),
        ("save", Save(data=(0, 2), **CHOICE), [Save(data=tensor([0, 2]), **CHOICE)]),
        ("save", Save(data=(0, 2), **CHOICE), [Save(data=range(0, 3, 2), **CHOICE)]),
        ("save", Save(particles=[0, 2], **CHOICE), [Save(particles=[int64(0), tensor(2)], **CHOICE)]),
    ],
)
def test_a_run_is_told_by_what_they_hold(name: str, own: Any, others: list[Any], tmp_path: Path) -> None:
    """It takes up one that was told in Python's own numbers, whose folder keeps them as text."""
    simulate(toy(), "expint", out=tmp_path / "run", **(WHOLE | {name: own}))
    for steps, other in enumerate(others, start=WHOLE["steps"] + 1):
        whole = simulate(toy(), "expint", **(WHOLE | {name: own, "steps": steps}))
        longer = WHOLE | {name: other, "steps": tensor(steps)}
        assert_same(simulate(toy(), "expint", out=tmp_path / "run", resume=True, **longer), whole)


def test_a_range_is_a_grid() -> None:
    assert Grid(range(1, 3), range(3, 5)) == Grid((1, 2), (3, 4))


def test_a_system_has_what_they_hold() -> None:
    def system(particles: Any, number: Any) -> Any:
        motion = {"eta": number(20.0), "gamma": number(0.5)}
        numbers = {"theta": {"h": number(0.25), **motion}, "x": {"h": number(0.5), **motion}}
        return mpgd(Hierarchical(data=3), particles=particles, h=number(0.5), **numbers)

    for particles, number in ((tensor(3), double), (int64(3), np.float64), (array(3), array)):
        assert system(particles, number).blocks == system(3, float).blocks
        assert str(system(particles, number)) == str(system(3, float))

    numbers = {"eta": double(2.0), "gamma": np.float32(0.5), "temperature": array(1.0), "rate": double(1.5)}
    block = Block("q", "q", (2,), ("x",), "p", **numbers)
    assert block == Block("q", "q", (2,), ("x",), "p", eta=2.0, gamma=0.5, temperature=1.0, rate=1.5)


@pytest.mark.parametrize("convert", [tensor, array])
def test_a_plain_sde_starts_where_they_say(convert: Any) -> None:
    given = SDESystem(OrnsteinUhlenbeck(), h=double(0.1), paths=convert(2), start=convert([0.0, 0.5]))
    own = SDESystem(OrnsteinUhlenbeck(), h=0.1, paths=2, start=(0.0, 0.5))
    assert_same(*(simulate(s, "euler_maruyama", steps=3) for s in (given, own)))


@pytest.mark.parametrize("shape", [[1], array([1]), (int64(1),), tensor([1])])
def test_a_latent_shape_may_be_no_tuple(shape: Any) -> None:
    model = Hierarchical(data=3)
    model.latent_shape = shape
    assert_same(*(simulate(tiny(m), "expint", steps=4) for m in (model, Hierarchical(data=3))))


# Refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [2.5, None, "some", [0.5, 1], [True], np.zeros((2, 2), int), {0: 1}])
@pytest.mark.parametrize("name", ["data", "particles"])
def test_what_chooses_nothing_is_told(name: str, chosen: Any) -> None:
    with pytest.raises(SdeflowError, match=rf"save\.{name}: 'all', a whole number or a list of them was exp"):
        Save(**{name: chosen})


@pytest.mark.parametrize("values", [0.5, "0.5", np.ones((1, 2)), [True], [None], {0.5: 1.0}])
def test_what_is_no_axis_of_a_grid_is_told(values: Any) -> None:
    with pytest.raises(SdeflowError, match=r"grid\.gamma takes a list of numbers, given "):
        Grid(gamma=values)


@pytest.mark.parametrize(
    ("steps", "given"),
    [(np.float64(3.0), "3.0"), (tensor([3, 4]), "tensor"), (np.True_, "True"), (double(3.5), "3.5")],
)
def test_steps_that_are_no_whole_number_are_told(steps: Any, given: str) -> None:
    with pytest.raises(SdeflowError, match=rf"steps must be at least 0, given {given}.*whole number"):
        simulate(tiny(), "expint", steps=steps)


MOVES = {"h": 0.1, "eta": 2.0, "gamma": 1.0}


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"particles": 2.5}, "particles must be at least 1, given 2.5: a whole number"),
        ({"particles": "3"}, "particles must be at least 1, given '3': a whole number"),
        ({"particles": tensor([3])}, r"particles must be at least 1, given tensor\(\[3\]\): a whole number"),
        ({"h": [0.1]}, r"the reference step h must be positive and finite, given \[0.1\]"),
        ({"theta": MOVES | {"h": "a"}}, "block 'theta': the step h must be positive and finite, given 'a'"),
        ({"theta": MOVES | {"eta": "2"}}, "block 'theta': eta must be a number, given '2'"),
        ({"x": MOVES | {"gamma": [1.0]}}, r"block 'x': gamma must be a number, given \[1.0\]"),
    ],
)
def test_what_is_no_number_of_a_system_is_told(numbers: Any, sentence: str) -> None:
    with pytest.raises(SdeflowError, match=sentence):
        mpgd(Hierarchical(data=3), **({"particles": 2, "theta": MOVES, "x": MOVES} | numbers))


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"paths": 2.5}, "paths must be at least 1, given 2.5: a whole number"),
        ({"start": 0.5}, "start takes a list of at least 1 number, or such lists by name, given 0.5"),
        ({"start": []}, "start takes a list of at least 1 number"),
        ({"start": ["a"]}, "start takes a list of at least 1 number"),
        ({"h": "a"}, "the step h must be positive and finite, given 'a'"),
    ],
)
def test_what_is_no_number_of_a_plain_sde_is_told(numbers: Any, sentence: str) -> None:
    with pytest.raises(SdeflowError, match=sentence):
        SDESystem(OrnsteinUhlenbeck(), **({"h": 0.1} | numbers))

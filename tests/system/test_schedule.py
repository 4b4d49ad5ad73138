"""Values of schedules, and mistakes in them.

Oracles: torch's learning-rate schedulers; numbers by hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD, lr_scheduler

from sdeflow import Motion, Schedule, SdeflowError, mpgd, pgd
from sdeflow.problems.hierarchical import Hierarchical

FIRST, LAST, STEPS = 1e-2, 1e-4, 7


def values(schedule: Schedule, steps: int) -> list[float]:
    return [schedule(n) for n in range(steps)]


@pytest.mark.parametrize(
    ("kind", "of_torch"),
    [
        ("linear", lambda o: lr_scheduler.LinearLR(o, 1.0, LAST / FIRST, STEPS)),
        ("exponential", lambda o: lr_scheduler.ExponentialLR(o, (LAST / FIRST) ** (1 / STEPS))),
        ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, LAST)),
    ],
)
def test_values_are_those_of_torchs_schedulers(kind: str, of_torch: Any) -> None:
    """Up to `steps`; after that ours stay at the last value."""
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=FIRST)
    scheduler, expected = of_torch(optimizer), []
    for _ in range(STEPS + 1):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    own = Schedule(kind, FIRST, LAST)
    found = values(own.over(STEPS), STEPS + 4)
    np.testing.assert_allclose(found[: STEPS + 1], expected, rtol=1e-13)
    assert found[0] == FIRST
    assert found[STEPS:] == [LAST] * 4
    assert values(Schedule.of({"kind": kind, "from": FIRST, "to": LAST, "steps": STEPS}), 9) == found[:9]
    assert own(3) == FIRST  # as long as nobody has said how many steps there are


def test_a_warm_up_rises_to_what_comes_then() -> None:
    alone = Schedule("warm-up", to=0.4, steps=4)
    np.testing.assert_allclose(values(alone, 6), [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-15)
    then = Schedule("linear", 0.4, 0.0)
    both = Schedule.of({"kind": "warm-up", "steps": 4, "then": then}).over(6)
    np.testing.assert_allclose(values(both, 7), [0.1, 0.2, 0.3, 0.4, 0.4, 0.2, 0.0], rtol=1e-15)


def test_pieces_begin_at_their_step() -> None:
    schedule = Schedule("piecewise", at=[2, 5], values=np.array([3.0, 2.0, 1.0]))
    assert values(schedule, 7) == [3.0, 3.0, 2.0, 2.0, 2.0, 1.0, 1.0]
    assert str(schedule) == "3, from step 2 on 2, from step 5 on 1"


def test_a_function_is_told_by_its_values() -> None:
    def halved(n: int) -> float:
        return 1 / (1 + n)

    own = Schedule.of(halved).over(100)
    assert str(own) == str(Schedule.of(lambda n: 1 / (1 + n)).over(100)).replace("<lambda>", "halved")
    others = (Schedule.of(halved).over(99), Schedule.of(lambda n: 1 / (1 + n) + (n == 50)).over(100))
    assert all(str(own) != str(other).replace("<lambda>", "halved") for other in others)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "cosine", "from": 0.01, "to": 1e-4}, "cosine from 0.01 to 0.0001 over the run"),
        ({"kind": "linear", "from": 1, "to": 2, "steps": 5000}, "linear from 1 to 2 over 5,000 steps"),
        (
            {"kind": "warm-up", "steps": 10, "then": {"kind": "exponential", "from": 1, "to": 0.1}},
            "warm-up to 1 over 10 steps, then exponential from 1 to 0.1 over the run",
        ),
    ],
)
def test_words(given: dict[str, Any], words: str) -> None:
    assert str(Schedule.of(given)) == words


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kind": "cosin", "from": 1, "to": 2}, "unknown kind of schedule 'cosin': did you mean 'cosine'"),
        ({"kind": ["cosine"]}, "unknown kind of schedule"),
        ({"from": 1, "to": 2}, "a schedule is a table as {kind = 'cosine'"),
        ({"kind": "cosine", "from": 1}, "'cosine' needs 'to', one of from, to, steps"),
        ({"kind": "cosine", "from": 1, "to": 2, "step": 3}, "takes no 'step': did you mean 'steps'"),
        ({"kind": "cosine", "from": 1, "to": 2, "at": [3]}, "takes no 'at'"),
        ({"kind": "cosine", "from": "x", "to": 2}, "from must be a number, given 'x'"),
        ({"kind": "cosine", "from": 1, "to": 2, "steps": 0}, "steps must be at least 1, given 0"),
        ({"kind": "exponential", "from": 1, "to": 0}, "goes between positive numbers, given 1.0 and 0.0"),
        ({"kind": "warm-up", "to": 1}, "'warm-up' needs 'steps'"),
        ({"kind": "warm-up", "steps": 3}, "'warm-up' needs 'to'"),
        ({"kind": "warm-up", "steps": 3, "then": 2}, "a schedule is a table"),
        ({"kind": "piecewise", "at": [3], "values": [1]}, "rising steps and one value more"),
        ({"kind": "piecewise", "at": [3, 3], "values": [1, 2, 3]}, "rising steps and one value more"),
        ({"kind": "piecewise", "at": [0], "values": [1, 2]}, "rising steps and one value more"),
        ({"kind": "piecewise", "at": [1.5], "values": [1, 2]}, "rising steps and one value more"),
    ],
    ids=str,
)
def test_mistakes_get_a_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(SdeflowError) as told:
        pgd(Hierarchical(data=2), particles=1, theta={"h": given}, x={"h": 0.1})
    assert sentence in str(told.value)
    assert str(told.value).startswith("block 'theta': h: ")


def test_a_constant_is_the_number() -> None:
    def built(h: Any, factor: Any) -> Any:
        x = Motion(h=h, eta=1.0, gamma=1.0, temperature=factor)
        return mpgd(Hierarchical(data=2), particles=1, theta={"h": 0.1, "eta": 1.0, "gamma": 1.0}, x=x)

    table = {"kind": "constant", "value": 0.2}
    assert built(table, table).blocks == built(0.2, 0.2).blocks
    assert built(0.2, 0.25).blocks[1].temperature == 0.25

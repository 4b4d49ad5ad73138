"""Lion-K's function: it falls along the flow, in random states and by the optimizer's own steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdeflow.analysis.lyapunov import ABSOLUTE, SQUARE, Kernel, lion, lion_k
from sdeflow.errors import SdeflowError
from sdeflow.system.optimizers import Lion

SMOOTH = Kernel(
    lambda m: ((1 + m.square()).sqrt() - 1).sum(-1), lambda y: (1 - (1 - y.square()).sqrt()).sum(-1)
)
"""K = sum (1 + m^2)^(1/2) - 1, whose gradient is in (-1, 1)."""

STATES, COORDINATES = 20_000, 3


def bumpy(x: Tensor) -> Tensor:
    """An objective with many minima."""
    return (x.square() / 2 + (3 * x).sin()).sum(-1) + x.prod(-1)


def slopes(of: Any, kernel: Kernel, numbers: dict[str, float], reach: float) -> Tensor:
    """d/dt of a function of f, x and m along the flow, at random states, by torch's gradients."""
    g = torch.Generator().manual_seed(0)
    x = (2 * torch.rand(STATES, COORDINATES, generator=g, dtype=torch.float64) - 1) * reach
    m = 3 * torch.randn(STATES, COORDINATES, generator=g, dtype=torch.float64)
    x.requires_grad_()
    m.requires_grad_()
    (gradient,) = torch.autograd.grad(bumpy(x).sum(), x)
    down = -numbers["a"] * gradient - numbers["gamma"] * m
    inner = (m + numbers["e"] * down).detach().requires_grad_()
    (pull,) = torch.autograd.grad(kernel.value(inner).sum(), inner)
    by_x, by_m = torch.autograd.grad(of(bumpy(x), x, m).sum(), (x, m))
    return (by_x * (pull - numbers["lam"] * x) + by_m * down).sum(-1).detach()


@pytest.mark.parametrize(
    "numbers",
    [
        {"a": 1.0, "gamma": 0.7, "e": 0.9, "lam": 0.5},
        {"a": 2.0, "gamma": 1.0, "e": 1.0, "lam": 1.5},
        {"a": 0.5, "gamma": 2.0, "e": 0.0, "lam": 0.1},
    ],
)
def test_it_falls_in_every_state(numbers: dict[str, float]) -> None:
    """20000 states each: it rises in none, up to rounding; a f + K(m) does in some."""
    reach = 0.99 / numbers["lam"]
    found = slopes(lambda *z: lion_k(*z, **numbers, kernel=SMOOTH), SMOOTH, numbers, reach)
    assert float(found.max()) < 1e-9
    naive = slopes(lambda f, x, m: numbers["a"] * f + SMOOTH.value(m), SMOOTH, numbers, reach)
    assert int((naive > 1e-9).sum()) > (100 if numbers["lam"] == 0.1 else 0)


def test_its_value_by_hand() -> None:
    """3 + (1/2)/(1/2) 1/8 + (1 - 1/2)/(1 + 1/2) (1/8 + 2 - 1) = 3.5 for K = m^2/2."""
    f, x, m = (torch.tensor(v, dtype=torch.float64) for v in (3.0, [1.0], [2.0]))
    assert float(lion_k(f, x, m, a=1.0, gamma=0.5, e=1.0, lam=0.5, kernel=SQUARE)) == pytest.approx(3.5)


def test_it_is_the_energy_of_a_momentum_without_decay() -> None:
    """lam = e = 0: a f + |m|^2/2, which friction takes gamma |m|^2 from."""
    numbers = {"a": 1.3, "gamma": 0.6, "e": 0.0, "lam": 0.0}
    m = torch.tensor([1.0, -2.0], dtype=torch.float64)
    f = torch.tensor(3.0, dtype=torch.float64)
    assert float(lion_k(f, m, m, **numbers, kernel=SQUARE)) == pytest.approx(1.3 * 3 + 2.5)
    found = slopes(lambda *z: lion_k(*z, **numbers, kernel=SQUARE), SQUARE, numbers, 2.0)
    g = torch.Generator().manual_seed(0)
    torch.rand(STATES, COORDINATES, generator=g, dtype=torch.float64)
    drawn = 3 * torch.randn(STATES, COORDINATES, generator=g, dtype=torch.float64)
    torch.testing.assert_close(found, -0.6 * drawn.square().sum(-1))


CURVATURE = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
CENTRE = torch.tensor([2.0, -0.7], dtype=torch.float64)
"""Of a quadratic whose minimum over the box |x| <= 1 is (1, -0.2)."""


def steps(h: float, count: int, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, the memory and f over steps of the package's rule with weight decay 1."""
    rule = Lion(weight_decay=1.0)
    x, memory, xs, memories = start, {"exp_avg": torch.zeros_like(start)}, [start], [torch.zeros_like(start)]
    for _ in range(count):
        x, memory = rule(x, -(x - CENTRE) @ CURVATURE, memory, h)
        xs.append(x)
        memories.append(memory["exp_avg"])
    way = torch.stack(xs)
    f = ((way - CENTRE) @ CURVATURE * (way - CENTRE)).sum(-1) / 2
    return way, torch.stack(memories), f


def test_lion_ends_in_a_cycle_about_the_constrained_minimum_as_wide_as_its_steps() -> None:
    """Widths, of which the scale of the quadratic is no part, are known from elsewhere to two digits."""
    widths = []
    for h in (0.02, 0.01, 0.005):
        way, *_ = steps(h, 6000, torch.zeros(2, dtype=torch.float64))
        tail = way[3000:]
        assert tail.mean(0).tolist() == pytest.approx([1.0, -0.2], abs=h / 4)
        widths.append(float(tail[:, 1].std()))
    assert widths == pytest.approx([0.0114, 0.0057, 0.0028], rel=0.04)


def test_lion_s_steps_bring_it_down_to_that_cycle() -> None:
    """H falls in every step until a fiftieth of its way is left."""
    h, rule = 1e-3, Lion(weight_decay=1.0)
    way, memory, f = steps(h, 8000, torch.tensor([-0.9, 0.9], dtype=torch.float64))
    found = lion(rule, h, f, way, memory)
    end = float(found[-1000:].mean())
    far = found[:-1] > end + 0.02 * float(found[0] - end)
    assert int(far.sum()) > 200
    assert float(found.diff()[far].max()) < 0
    assert torch.isinf(lion(rule, h, f[0], 1.5 * way[0], memory[0]))


def test_from_outside_the_box_it_is_left_as_the_decay_says() -> None:
    h = 0.01
    way, *_ = steps(h, 300, torch.tensor([5.0, -4.0], dtype=torch.float64))
    out = way.abs().amax(-1) - 1
    bound = out[0] * (1 - h) ** torch.arange(301)
    assert (out <= bound + 1e-12).all()


def test_numbers_of_which_it_is_not_known_to_fall_are_refused() -> None:
    z = torch.zeros(2)
    with pytest.raises(SdeflowError, match="e gamma be at most 1"):
        lion_k(z[0], z, z, a=1.0, gamma=2.0, e=0.6, lam=0.0, kernel=ABSOLUTE)

"""Products that are put otherwise for a CPU.

Oracle: the same function as torch computes it, in float64 to 1e-12 of its size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from sdeflow.engine.compiled import CompiledSteps
from sdeflow.engine.products import NARROW, QuickProducts


def traced(function: Callable[..., Tensor], *inputs: Tensor) -> Any:
    return make_fx(function, tracing_mode="fake")(*inputs)


def products(module: Any) -> list[tuple[int, ...]]:
    found = module.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)
    return [tuple(node.meta["val"].shape) for node in found]


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("columns", "shape"), [(8, (8, 40)), (1, (40, 1)), (NARROW - 1, (NARROW - 1, 40)), (NARROW, (40, NARROW))]
)
def test_few_columns_become_rows(columns: int, shape: tuple[int, ...]) -> None:
    inputs = drawn((40, 7), (columns, 7))
    module = traced(lambda a, b: torch.mm(a, b.t()).sin(), *inputs)
    expected = module(*inputs)
    QuickProducts()(module.graph)
    module.graph.lint()
    module.recompile()
    assert products(module) == [shape]
    torch.testing.assert_close(module(*inputs), expected, rtol=0, atol=1e-12)


def test_what_is_flat_or_of_few_digits_stays() -> None:
    """A result with no more rows than columns, and half precision, whose sums depend on their order."""
    for shapes, dtype in ((((3, 7), (7, 8)), torch.float64), (((40, 7), (7, 8)), torch.bfloat16)):
        a, b = drawn(*shapes, dtype=dtype)
        module = traced(torch.mm, a, b)
        QuickProducts()(module.graph)
        assert products(module) == [(len(a), 8)]


def test_a_layer_and_its_gradients() -> None:
    """Leaky ReLU of x W^T + b: no bias within a product, and narrow products transposed."""

    def gradients(W: Tensor, b: Tensor, x: Tensor) -> Tensor:
        def total(W: Tensor, b: Tensor, x: Tensor) -> Tensor:
            return torch.nn.functional.leaky_relu(torch.nn.functional.linear(x, W, b)).square().sum()

        return torch.cat([g.flatten() for g in torch.func.grad(total, (0, 1, 2))(W, b, x)])

    inputs = drawn((30, 3), (30,), (50, 3))
    module = traced(gradients, *inputs)
    expected = module(*inputs)
    assert module.graph.find_nodes(op="call_function", target=torch.ops.aten.addmm.default)
    QuickProducts()(module.graph)
    module.recompile()
    assert not module.graph.find_nodes(op="call_function", target=torch.ops.aten.addmm.default)
    assert Counter(products(module)) == {(50, 30): 1, (3, 30): 1, (3, 50): 1}
    torch.testing.assert_close(module(*inputs), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_compiled_steps_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch, "compile", lambda function, **how: asked.update(how) or function)
    steps = CompiledSteps(lambda z, draws: z, lambda n, count: [torch.zeros(count)], 1)
    steps({"x": torch.zeros(1)}, 0, 2)
    assert isinstance(asked["options"]["post_grad_custom_post_pass"], QuickProducts)
    assert QuickProducts().uuid() == QuickProducts().uuid()

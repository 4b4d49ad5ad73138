"""Products of matrices in what torch compiles for a CPU, put so that they are quick.

A product with few columns takes up to six times as long in the library that torch calls as the same product
transposed. Gradients of a network's first layer are such products, as latents are short: 1280 x 64 times
64 x 8 in float32 takes 121 us, and transposed 24 (one core with AVX-512, torch 2.13). And a bias that is to
be added is copied to all rows of a product's result first; added where the result is used it costs little.
Numbers stay equal to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

NARROW = 16
"""Columns of a result below which its product is made transposed; from as many on neither way is quicker."""

_aten = torch.ops.aten


class QuickProducts(CustomGraphPass):
    """What torch's compiler does to a graph before it makes code of it."""

    def __call__(self, graph: Graph) -> None:
        for node in _products(graph, _aten.addmm.default):
            _without_bias(graph, node)
        for node in _products(graph, _aten.mm.default):
            rows, columns = node.meta["val"].shape
            if 1 < columns < min(rows, NARROW):
                _transposed(graph, node)

    def uuid(self) -> Any:
        """For the key of what torch has compiled and keeps."""
        return get_hash_for_files((__file__,))


def _products(graph: Graph, operation: Any) -> list[Node]:
    """Those on a CPU of numbers that another order of sums hardly changes."""
    return [
        node
        for node in graph.find_nodes(op="call_function", target=operation)
        if (value := node.meta["val"]).device.type == "cpu"
        and value.dtype in (torch.float32, torch.float64)
        and not node.kwargs
    ]


def _without_bias(graph: Graph, node: Node) -> None:
    """bias + a b in two operations."""
    bias, a, b = node.args
    with graph.inserting_before(node):
        product = _call(graph, _aten.mm.default, a, b)
        _replace(graph, node, _call(graph, _aten.add.Tensor, product, bias))


def _transposed(graph: Graph, node: Node) -> None:
    """(b^T a^T)^T for a b; laid out as before, which what comes next may count upon."""
    a, b = node.args
    with graph.inserting_before(node):
        turned = [_call(graph, _aten.permute.default, factor, [1, 0]) for factor in (b, a)]
        product = _call(graph, _aten.mm.default, *turned)
        back = _call(graph, _aten.permute.default, product, [1, 0])
        _replace(graph, node, _call(graph, _aten.clone.default, back, memory_format=torch.contiguous_format))


def _call(graph: Graph, operation: Any, *arguments: Any, **options: Any) -> Node:
    node = graph.call_function(operation, arguments, options)
    node.meta["val"] = operation(*(x.meta["val"] if isinstance(x, Node) else x for x in arguments), **options)
    return node


def _replace(graph: Graph, node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    graph.erase_node(node)

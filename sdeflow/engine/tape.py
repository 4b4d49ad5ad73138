"""A step as a list of torch's operations: what it computes, whatever code it was written in.

Numbers that scale or shift a tensor are written as tensors without axes, so that steps of another h, eta or
gamma have the same list: of 13 such numbers in a step of the toy model, the compiled step has the same bits
and takes as long.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from sdeflow.errors import SdeflowError
from sdeflow.state import State

PLAIN = (torch.dtype, torch.device, torch.layout, torch.memory_format)
"""What an operation may be told besides numbers, texts and tensors: written as torch writes it."""

SAME = ("aten::detach", "aten::lift_fresh", "aten::alias")
"""Operations that give what they are given."""

FACTORS = ("aten.mul.Tensor", "aten.div.Tensor", "aten.add.Tensor", "aten.sub.Tensor", "aten.mul_.Tensor")
"""Operations whose second argument is a number of the system or the model, rather than part of the code."""

SUMS = ("aten.add.Tensor", "aten.sub.Tensor", "aten.add_.Tensor", "aten.sub_.Tensor")
"""Operations that have such a number by the name of alpha: a + alpha b."""

LOOKS = ("numpy", "tolist", "data_ptr", "__array__", "__dlpack__")
"""Methods of a tensor by which values leave torch."""

WRITTEN = ("inputs", "operations", "outputs", "states", "draws")
"""What a tape's text has of it."""

TAGS = {
    torch.Tag.data_dependent_output: "looks at values",
    torch.Tag.dynamic_output_shape: "makes tensors whose shape depends on values",
    torch.Tag.nondeterministic_seeded: "draws random numbers itself",
}
"""What an operation must not do."""


class Unkeepable(SdeflowError):
    """A step that cannot be kept, and why."""


@dataclass(frozen=True)
class Tape:
    """What a step does, as text that JSON has: the same text is the same function of its inputs.

    inputs       [number, dtype, shape, strides] of the state, of what was drawn, and of `constants`
    operations   [name, arguments, named arguments, numbers of the tensors that it gives]; a tensor is
                 {"tensor": number} among the arguments, and one number stands for one result, a list for many
    outputs      numbers of the tensors of the next state
    states       how many of the inputs are the state, the first ones
    draws        how many were drawn, the next ones
    constants    tensors from elsewhere, the model's data among them, and numbers: the last inputs
    """

    inputs: list[list[Any]]
    operations: list[list[Any]]
    outputs: list[int]
    states: int
    draws: int
    constants: list[Tensor]

    def text(self, **more: Any) -> str:
        """All but the values of constants, and what else is told."""
        own = {name: getattr(self, name) for name in WRITTEN}
        return json.dumps(own | more, sort_keys=True)


def record(transition: Callable[[State, Sequence[Tensor]], State], z: State, draws: Sequence[Tensor]) -> Tape:
    """The tape of a step, which is taken twice from a state: the first time it makes what it keeps for all.

    Raises Unkeepable where it is no list of operations: it looks at values, changes a tensor that it was
    given, draws, or calls what is not torch's own; and where it gives other variables than it was given.
    """
    z, draws = {name: value.detach() for name, value in z.items()}, [x.detach() for x in draws]
    recorder = _Recorder([*z.values(), *draws])  # each an object of its own, also where two are one tensor
    after: State = {}
    with torch.no_grad():
        transition(dict(z), list(draws))
    try:
        with torch.no_grad(), _Values(recorder), recorder:
            after = {name: value.contiguous() for name, value in transition(dict(z), list(draws)).items()}
    except Exception:
        if not recorder.why:
            raise
    if recorder.why:  # which the step may have caught
        raise Unkeepable(f"the step {recorder.why}")
    if others := sorted(after.keys() ^ z.keys()):
        raise Unkeepable(f"the step changes which variables the state has ({', '.join(others)})")
    outputs = [recorder.number(after[name]) for name in z]
    constants = recorder.external[len(z) + len(draws) :]
    return Tape(recorder.inputs, recorder.operations, outputs, len(z), len(draws), constants)


class _Result(NamedTuple):
    """A tensor that no operation of the step gave, by its number."""

    number: int


class _Recorder(TorchDispatchMode):
    """Writes down torch's operations, below its gradients and its vmap.

    why   what the step does that cannot be written down, '' for nothing
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.inputs: list[list[Any]] = []
        self.operations: list[list[Any]] = []
        self.external: list[Tensor] = []
        self.why = ""
        self._factors: dict[tuple[str, torch.dtype], Tensor] = {}
        self._numbers, self._count = WeakIdKeyDictionary(), 0
        for value in given:
            self.number(value)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to tell torch.compile that it is to leave this alone, torch would import it, for a second."""
        return False

    def refuse(self, why: str) -> None:
        self.why = self.why or why
        raise Unkeepable(why)

    def number(self, value: Tensor) -> int:
        """Of a tensor; one that was not seen before comes from elsewhere."""
        if value not in self._numbers:
            if value.device.type != "cpu" or value.layout != torch.strided:
                self.refuse(f"has tensors on {value.device}, {value.layout}")
            self._numbers[value] = self._count
            kind = str(value.dtype).removeprefix("torch."), list(value.shape), list(value.stride())
            self.inputs.append([self._count, *kind])
            self.external.append(value.detach())
            self._count += 1
        found: int = self._numbers[value]
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func.namespace != "aten":
            self.refuse(f"calls {func}, which is not torch's own")
        for tag, why in TAGS.items():
            if tag in func.tags and not _by_numbers(func, args):
                self.refuse(f"{why} ({func})")
        line = self._line(str(func), list(args), dict(named))
        self._refuse_changes(func, args, named)
        result = func(*args, **named)
        if func.name().partition(".")[0] in SAME:
            self._numbers[result] = self._numbers[args[0]]
        else:
            self.operations.append([*line, self._named(func, result)])
        return result

    def _line(self, name: str, args: list[Any], named: dict[str, Any]) -> list[Any]:
        """An operation and its arguments, of which numbers that scale or shift are tensors."""
        if name in FACTORS and _is_factor(args[1], args[0]):
            args[1] = self._factor(args[1], args[0])
        elif name in SUMS and _is_factor(named.get("alpha"), args[1]) and args[0].dtype == args[1].dtype:
            factor = {"tensor": self.number(self._factor(named.pop("alpha"), args[1]))}
            self.operations.append(["aten.mul.Tensor", [self._written(args[1]), factor], {}, self._count])
            args[1], self._count = _Result(self._count), self._count + 1
        return [name, self._written(args), self._written(named)]

    def _factor(self, value: float, like: Tensor) -> Tensor:
        """A number as a tensor without axes; the same number is the same tensor."""
        at = value.hex(), like.dtype
        if at not in self._factors:
            self._factors[at] = torch.tensor(value, dtype=like.dtype)
        return self._factors[at]

    def _named(self, func: Any, result: Any) -> Any:
        """New numbers for what an operation gives."""
        if isinstance(result, Tensor):
            self._numbers[result] = self._count
            self._count += 1
            return self._count - 1
        if isinstance(result, tuple | list):
            return [self._named(func, one) for one in result]
        if result is not None:
            self.refuse(f"looks at values ({func})")
        return None

    def _refuse_changes(self, func: Any, args: Sequence[Any], named: dict[str, Any]) -> None:
        """Of a tensor that the step was given, by an operation that writes into it."""
        if not func._schema.is_mutable:
            return
        own = {value.untyped_storage()._cdata for value in self.external}
        for i, argument in enumerate(func._schema.arguments):
            value = args[i] if i < len(args) else named.get(argument.name)
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for one in value if isinstance(value, tuple | list) else [value]:
                if isinstance(one, Tensor) and one.untyped_storage()._cdata in own:
                    self.refuse(f"changes a tensor in place that it was given ({func})")

    def _written(self, value: Any) -> Any:
        """An argument as JSON has it."""
        if isinstance(value, Tensor):
            return {"tensor": self.number(value)}
        if isinstance(value, _Result):
            return {"tensor": value.number}
        if isinstance(value, tuple | list):
            return [self._written(one) for one in value]
        if isinstance(value, dict):
            return {name: self._written(one) for name, one in value.items()}
        if isinstance(value, float):
            return {"float": value.hex()}
        if isinstance(value, PLAIN):
            return {type(value).__name__: str(value).removeprefix("torch.")}
        if value is not None and not isinstance(value, bool | int | str):
            self.refuse(f"has an argument of type {type(value).__name__}")
        return value


def _is_factor(value: Any, of: Any) -> bool:
    """Whether a tensor is scaled or shifted by a number: one such as 1.0 may be part of the code."""
    if not isinstance(value, float) or value.is_integer() or not math.isfinite(value):
        return False
    return isinstance(of, Tensor) and of.dtype in (torch.float32, torch.float64)


def _by_numbers(func: Any, args: Sequence[Any]) -> bool:
    """Whether an operation takes parts of a tensor by their numbers, and not by a mask."""
    if func.name() != "aten::index.Tensor":
        return False
    return all(index is None or index.dtype in (torch.int64, torch.int32) for index in args[1])


class _Values(TorchFunctionMode):
    """Refuses what hands values of tensors to other code, where no operation shows it."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in LOOKS:
            self._recorder.refuse(f"looks at values (Tensor.{func.__name__})")
        return func(*args, **kwargs or {})


def graph_of(recorded: dict[str, Any], count: int) -> torch.fx.GraphModule:
    """A function of so many steps, made of what `Tape.text` has.

    Its arguments are the state, what was drawn for all steps, [count, ...] each, and the constants; its
    results the next state.
    """
    graph, states = torch.fx.Graph(), recorded["states"]
    arguments = [graph.placeholder(f"input_{i}") for i in range(len(recorded["inputs"]))]
    state, drawn = arguments[:states], arguments[states : states + recorded["draws"]]
    rest = arguments[states + len(drawn) :]
    numbers = [number for number, *_ in recorded["inputs"]]
    for i in range(count):
        own = [graph.call_function(torch.ops.aten.select.int, (x, 0, i)) for x in drawn]
        nodes = dict(zip(numbers, [*state, *own, *rest], strict=True))
        for name, args, named, results in recorded["operations"]:
            made = graph.call_function(
                _operation(name), tuple(_read(args, nodes)), {k: _read(v, nodes) for k, v in named.items()}
            )
            _place(graph, nodes, made, results)
        state = [nodes[number] for number in recorded["outputs"]]
    graph.output(tuple(state))
    return torch.fx.GraphModule(torch.nn.Module(), graph)


def _operation(name: str) -> Any:
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def _place(graph: torch.fx.Graph, nodes: dict[int, torch.fx.Node], made: torch.fx.Node, at: Any) -> None:
    if isinstance(at, int):
        nodes[at] = made
    for i, one in enumerate(at if isinstance(at, list) else []):
        if one is not None:
            _place(graph, nodes, graph.call_function(getitem, (made, i)), one)


def _read(value: Any, nodes: dict[int, torch.fx.Node]) -> Any:
    if isinstance(value, list):
        return [_read(one, nodes) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, of),) = value.items()
    if kind == "tensor":
        return nodes[of]
    if kind == "float":
        return float.fromhex(of)
    return torch.device(of) if kind == "device" else getattr(torch, of)

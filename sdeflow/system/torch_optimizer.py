"""Any optimizer of torch's kind, with its state in ours: it is made anew for each step, of what we keep.

It is tried on small tensors first. Refused is what could not go on from a state: a closure, random numbers of
its own, and whatever is kept beside its state and the numbers of its parameter groups.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten_with_path, tree_unflatten

from sdeflow.errors import SdeflowError, attempt, did_you_mean
from sdeflow.system.rule import Memory, Optimizer

if TYPE_CHECKING:
    from sdeflow.system.block import Block

BEGUN = "begun"
"""The slot [1] that says whether a step was taken: before it an optimizer has no state."""

NOT_OPTIONS = ("params", "lr", "maximize", "foreach", "capturable", "differentiable", "fused")
"""Arguments that are the system's to give, or that change no number but in its last bits."""

CPU = torch.device("cpu")

KINDS = (bool, int, float)
"""The numbers of Python that are kept."""

TRIED = 4
"""Steps of a trial."""

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TorchOptimizer(Optimizer):
    """An optimizer by its class, which takes parameters and lr; each replica has one of its own.

    label     the name as it was asked for
    options   names and values
    shapes    of the tensors that it moves, which lie in the block one after the other; none: the block itself

    Raises SdeflowError for an unknown option, and when it is given a block for what cannot be stored.
    """

    label: str
    kind: Callable[..., torch.optim.Optimizer] = field(repr=False)
    options: tuple[tuple[str, Any], ...] = ()
    shapes: Shapes = ()

    traced = False

    def __post_init__(self) -> None:
        arguments = inspect.signature(self.kind).parameters.values()
        known = [a.name for a in arguments if a.kind is not a.VAR_KEYWORD and a.name not in NOT_OPTIONS]
        for name, _ in self.options:
            if name not in known:
                raise SdeflowError(
                    f"optimizer '{self.label}': unknown option '{name}': {did_you_mean(name, known)}"
                )

    @property
    def name(self) -> str:  # type: ignore[override]  # of the class where there is one for each name
        return self.label

    @property
    def source(self) -> str:  # type: ignore[override]
        return f"{self.kind.__module__}.{self.kind.__name__}"

    def __str__(self) -> str:
        return f"{self.label}({', '.join(f'{name}={value!r}' for name, value in self.options)})"

    def fitted(self, shapes: Sequence[tuple[int, ...]]) -> Optimizer:
        return replace(self, shapes=tuple(shapes))

    def slots(self, block: Block) -> Sequence[str]:
        return (BEGUN, *_form(self, self.shapes or (block.shape,)).like)

    def start(self, block: Block) -> Memory:
        memory = {BEGUN: torch.zeros(1, dtype=torch.int64)}
        for slot, like in _form(self, self.shapes or (block.shape,)).like.items():
            stored = torch.float64 if like.is_floating_point() else torch.int64
            memory[slot] = torch.zeros(_row(like).shape, dtype=stored)
        return memory

    def __call__(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        own = [{slot: value[r] for slot, value in memory.items()} for r in range(len(q))]
        moved = [self._move(*one, h) for one in zip(q, f, own, strict=True)]
        new = {slot: torch.stack([kept[slot].to(q.device) for _, kept in moved]) for slot in memory}
        return torch.stack([position for position, _ in moved]), new

    def _move(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        """The step of one replica, of a position and a force [*shape]."""
        shapes = self.shapes or (tuple(q.shape),)
        form = _form(self, shapes, q.dtype, q.device)
        parameters, optimizer = _made(self, q, shapes, h)
        if bool(memory[BEGUN]):
            form.put(optimizer, memory)
        _step(self, optimizer, parameters, f)
        kept = form.take(optimizer)
        kept = {s: _row(v.to(q.dtype) if v.is_floating_point() else v.long()) for s, v in kept.items()}
        position = torch.cat([p.detach().reshape(-1) for p in parameters]).view(q.shape)
        return position, kept | {BEGUN: torch.ones_like(memory[BEGUN])}


class _Form(NamedTuple):
    """How an optimizer's state is taken apart into tensors, and put together again.

    like      a tensor like each, by slot
    numbers   the slots that are a number of Python
    fixed     what is neither, by its place among the leaves: None and words
    tree      the tree of the parameters' states and of the groups' numbers
    """

    label: str
    like: Mapping[str, Tensor]
    numbers: Set[str]
    fixed: Mapping[int, Any]
    tree: TreeSpec

    def put(self, optimizer: torch.optim.Optimizer, memory: Memory) -> None:
        """Gives an optimizer that was just made the state in a memory."""
        slots, leaves = iter(self.like.items()), []
        for place in range(self.tree.num_leaves):
            if place in self.fixed:
                leaves.append(self.fixed[place])
                continue
            slot, like = next(slots)
            value = memory[slot]
            leaves.append(
                _number(value)
                if slot in self.numbers
                else value.to(like.device, like.dtype, copy=True).view(like.shape)
            )
        states, groups = tree_unflatten(leaves, self.tree).values()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.state.update(zip(parameters, states, strict=True))
        for group, numbers in zip(optimizer.param_groups, groups, strict=True):
            group.update(numbers)

    def take(self, optimizer: torch.optim.Optimizer) -> Memory:
        """The state of an optimizer as a memory; raises SdeflowError where it has another form."""
        memory, form = _taken(self.label, optimizer)
        shapes = [[v.shape for v in f.like.values()] for f in (form, self)]
        if (*form.like, *form[2:], shapes[0]) != (*self.like, *self[2:], shapes[1]):
            raise SdeflowError(
                f"optimizer '{self.label}' keeps other things later than after its first step, "
                "which a run cannot store: take another"
            )
        return memory


def _taken(label: str, optimizer: torch.optim.Optimizer) -> tuple[Memory, _Form]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = [dict(sorted(optimizer.state.get(p, {}).items())) for p in parameters]
    groups = [
        {
            key: v
            for key, v in sorted(group.items())
            if key not in NOT_OPTIONS and isinstance(v, (*KINDS, Tensor))
        }
        for group in optimizer.param_groups
    ]
    leaves, tree = tree_flatten_with_path({"": states, "group": groups})
    memory: Memory = {}
    numbers: set[str] = set()
    fixed: dict[int, Any] = {}
    for place, (path, leaf) in enumerate(leaves):
        slot = ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path).lstrip(".")
        if isinstance(leaf, Tensor):
            memory[slot] = leaf.detach()
        elif type(leaf) in KINDS:
            memory[slot] = _packed(leaf)
            numbers.add(slot)
        elif leaf is None or isinstance(leaf, str):
            fixed[place] = leaf
        else:
            raise SdeflowError(
                f"optimizer '{label}' keeps a {type(leaf).__name__}, which a run cannot store: take another"
            )
    return memory, _Form(label, memory, numbers, fixed, tree)


def _row(value: Tensor) -> Tensor:
    """As a variable of a state is for one replica, with an axis at least."""
    return value.reshape(value.shape or (1,))


def _packed(number: float) -> Tensor:
    """A number of Python as its type and its 64 bits, which no run's precision rounds."""
    bits = torch.tensor([number], dtype=torch.float64 if isinstance(number, float) else torch.int64)
    return torch.cat([torch.tensor([KINDS.index(type(number))]), bits.view(torch.int64)])


def _number(packed: Tensor) -> Any:
    kind = KINDS[int(packed[0])]
    return packed[1:].view(torch.float64).item() if kind is float else kind(packed[1].item())


def _made(
    rule: TorchOptimizer, q: Tensor, shapes: Shapes, h: float
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """Parameters at a position, and an optimizer of them that has taken no step.

    What moves matrices alone, and the rest by AdamW at its option adamw_lr, is told which are which.
    """
    parts = q.detach().reshape(-1).split([prod(shape) for shape in shapes])
    parameters = [p.view(s).clone().requires_grad_() for p, s in zip(parts, shapes, strict=True)]
    groups: list[Any] = parameters
    if _splits(rule.kind):
        flat = [p for p in parameters if p.ndim < 2]
        groups = [
            {"params": ps, "use_muon": ps is not flat}
            for ps in ([p for p in parameters if p.ndim >= 2], flat)
            if ps
        ]
    made = attempt(f"optimizer '{rule.label}'", rule.kind, groups, lr=h, **dict(rule.options))
    return parameters, made


@lru_cache(maxsize=64)
def _splits(kind: Callable[..., Any]) -> bool:
    """Whether it is one of Muon's kin in pytorch-optimizer."""
    return "adamw_lr" in inspect.signature(kind).parameters


def _step(
    rule: TorchOptimizer, optimizer: torch.optim.Optimizer, parameters: list[Tensor], f: Tensor
) -> None:
    for p, force in zip(parameters, f.reshape(-1).split([p.numel() for p in parameters]), strict=True):
        p.grad = -force.view(p.shape)
    before = _drawn()
    attempt(f"optimizer '{rule.label}'", optimizer.step)
    if _drawn() != before:
        raise SdeflowError(
            f"optimizer '{rule.label}' draws random numbers of its own, which a run could not repeat: "
            "take another"
        )


def _drawn() -> tuple[Any, ...]:
    """Where the generators are that an optimizer might draw from."""
    _, words, *rest = np.random.get_state()  # noqa: NPY002 (of others, not ours)
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.asarray(words).tobytes(), *rest


@lru_cache(maxsize=64)
def _form(
    rule: TorchOptimizer,
    shapes: Shapes,
    dtype: torch.dtype = torch.float64,
    device: torch.device = CPU,
) -> _Form:
    """The form of its state on such parameters, by a step; raises SdeflowError for what cannot be stored."""
    with torch.no_grad(), CPU:  # wherever tensors are made by default just now
        _try(rule, tuple(tuple(min(n, 3) for n in shape) for shape in shapes))
        q = torch.ones(sum(map(prod, shapes)), dtype=dtype, device=device)
        parameters, optimizer = _made(rule, q, shapes, 1e-3)
        _step(rule, optimizer, parameters, q)
        form = _taken(rule.label, optimizer)[1]
    wide = [slot for slot, v in form.like.items() if v.dtype is torch.float64 is not dtype]
    if wide:
        raise SdeflowError(f"optimizer '{rule.label}' keeps {wide[0]} in float64: give dtype float64")
    return form


@lru_cache(maxsize=64)
def _try(rule: TorchOptimizer, shapes: Shapes) -> None:
    """Takes a few steps by one optimizer, and by one that is made anew for each: they must be the same."""
    step = inspect.signature(rule.kind.step).parameters.values()  # type: ignore[attr-defined]
    if any(a.default is a.empty and a.name not in ("self", "args", "kwargs") for a in step):
        raise SdeflowError(f"optimizer '{rule.label}' needs a closure, which no system has: take another")
    size, memory, form = sum(map(prod, shapes)), Memory(), None
    q = torch.linspace(1, 2, size, dtype=torch.float64)
    whole, lasting = _made(rule, q, shapes, 1e-3)
    for k in range(TRIED):
        f = 2 + torch.linspace(k, 2 * k + 1, size, dtype=torch.float64).sin()  # a zero may be another case
        _step(rule, lasting, whole, f)
        parameters, optimizer = _made(rule, q, shapes, 1e-3)
        if form is not None:
            form.put(optimizer, memory)
        _step(rule, optimizer, parameters, f)
        memory, now = _taken(rule.label, optimizer)
        form = form or now
        form.take(optimizer)
        q = torch.cat([p.reshape(-1) for p in parameters])
    same = torch.cat([p.reshape(-1) for p in whole]).equal(q)
    own = any(isinstance(v, random.Random | torch.Generator) for v in vars(lasting).values())
    if own or not same:
        raise SdeflowError(
            f"optimizer '{rule.label}' keeps something beside its state, so a run could not be resumed: "
            "take another"
        )

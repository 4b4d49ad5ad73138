"""Optimizers by name: ours, which are entry points, those of torch.optim, and those of pytorch-optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from sdeflow.entries import entries, find
from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.system.block import AUTO
from sdeflow.system.rule import Optimizer, RMSProp, Rule

if TYPE_CHECKING:
    from sdeflow.model.model import ParameterLayout
    from sdeflow.system.motion import Motion

TORCH, MORE = "torch:", "pytorch_optimizer:"
"""Prefixes of a name that say which package is meant."""

MATRICES = "muon"
"""Torch's moves matrices alone; that of pytorch-optimizer moves all else by AdamW."""


def rule_of(block: str, m: Motion, layout: ParameterLayout | None) -> Rule | None:
    """The rule that a block's numbers ask for; raises SdeflowError where they do not go together.

    layout   of the tensors that make up its position, None where these have no names
    """
    if m.optimizer is None:
        return RMSProp() if m.precondition else None
    found = optimizer_named(m.optimizer)
    if m.precondition:
        raise SdeflowError(
            f"block '{block}': precondition is for a block that moves by its force, and the optimizer "
            f"'{found.name}' moves this one: leave either out"
        )
    if m.h == AUTO:
        raise SdeflowError(
            f"block '{block}': h is the learning rate of the optimizer '{found.name}', which a run does not "
            f"choose: give h, for example {found.usual:g}"
        )
    return found if layout is None else found.fitted(list(layout.shapes.values()))


def optimizer_named(given: str | Mapping[str, Any] | Optimizer) -> Optimizer:
    """The optimizer of a name, or of a table with `name` and options; one that is made already as it is.

    Of a name that several have, ours goes before torch's, and torch's before that of pytorch-optimizer;
    'torch:adam' and 'pytorch_optimizer:adam' are these. Raises SdeflowError for an unknown name or option.
    """
    if isinstance(given, Optimizer):
        return given
    table = {"name": given} if isinstance(given, str) else given
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise SdeflowError(
            f"an optimizer is a name, or a table as {{name = 'adam', betas = [0.9, 0.99]}}; given {given!r}"
        )
    name, options = table["name"], {key: value for key, value in table.items() if key != "name"}
    if "lr" in options:
        raise SdeflowError(
            f"optimizer '{name}' takes no lr: the learning rate is the block's h, "
            f"so give h = {options['lr']!r}"
        )
    if name in entries("optimizers"):
        return _own(name, options)
    from sdeflow.system.torch_optimizer import TorchOptimizer

    frozen = ((key, tuple(v) if isinstance(v, list) else v) for key, v in options.items())
    return TorchOptimizer(name, _class(name), tuple(sorted(frozen)))


def _own(name: str, options: Mapping[str, Any]) -> Optimizer:
    found = find("optimizers", name)
    if not (isinstance(found, type) and issubclass(found, Optimizer) and is_dataclass(found)):
        raise SdeflowError(
            f"optimizer '{name}' must be a dataclass derived from sdeflow.Optimizer, is {found!r}"
        )
    known = [f.name for f in fields(found)]
    for key in options:
        if key not in known:
            raise SdeflowError(f"optimizer '{name}': unknown option '{key}': {did_you_mean(key, known)}")
    made = found(**options)
    assert isinstance(made, Optimizer)
    return made


def _class(name: str) -> Any:
    """An optimizer class of one of the packages."""
    torch_ones, more = _of_torch(), None
    if (plain := name.removeprefix(TORCH).lower()) in torch_ones and name.lower() != MATRICES:
        return torch_ones[plain]
    if not name.startswith(TORCH):
        more = _of_package()
        if (plain := name.removeprefix(MORE).lower()) in (more or {}):
            assert more is not None
            return more[plain]
    known = {*entries("optimizers"), *torch_ones, *(more or {})}
    hint = (
        ""
        if more is not None or name.startswith(TORCH)
        else "; pip install 'sdeflow[optimizers]' brings more"
    )
    prefix = next((p for p in (TORCH, MORE) if name.startswith(p)), "")
    raise SdeflowError(f"unknown optimizer '{name}': {did_you_mean(name.removeprefix(prefix), known)}{hint}")


def _of_torch() -> dict[str, Any]:
    import torch

    base = torch.optim.Optimizer
    classes = (c for c in vars(torch.optim).values() if isinstance(c, type) and issubclass(c, base))
    return {c.__name__.lower(): c for c in classes if c is not base}


def _of_package() -> dict[str, Any] | None:
    """Those of pytorch-optimizer, None where it is not installed."""
    try:
        import pytorch_optimizer
    except ImportError:
        return None
    names = pytorch_optimizer.get_supported_optimizers()
    return {name: pytorch_optimizer.load_optimizer(name) for name in names}

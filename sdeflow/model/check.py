"""Checking a user's model once before a run, so that a mistake is a sentence and not a traceback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdeflow.errors import SdeflowError, attempt, expect_shape
from sdeflow.model.model import Data, Model, ParameterLayout, Parameters
from sdeflow.state import reserved

SCORE_TOLERANCE = 0.01
"""Largest relative difference of an analytic score from automatic differentiation."""


def check_model(model: Model, layout: ParameterLayout, theta: Tensor, x: Tensor, y: Data) -> None:
    """Calls each method of a model at one state, theta [p], x [B, N, *latent_shape] and y of B data.

    Raises SdeflowError for a method that fails, a value of the wrong kind or shape, and a log-joint that
    cannot be differentiated where no analytic score stands in for it, draws, or couples particles.
    """
    name = type(model).__name__
    theta, x = theta.detach().requires_grad_(), x.detach().requires_grad_()
    arguments = (layout.views(theta), x, y)

    with torch.enable_grad():
        value = attempt(f"{name}.log_joint", model.log_joint, *arguments)
    meaning = "one value a datum and particle, summed over the latent's axes"
    expect_shape(f"{name}.log_joint", value, tuple(x.shape[:2]), meaning)
    for variable, score, leaf in (("x", model.score_x, x), ("theta", model.score_theta, theta)):
        if score is None and not _depends(value, leaf):
            raise SdeflowError(
                f"{name}.log_joint gives a value without gradient in {variable}: use torch operations all "
                f"the way from {variable}, or define score_{variable}"
            )
    _refuse_randomness(model, value, arguments)
    _refuse_coupling(model, value, arguments)

    if model.score_x is not None:
        score = attempt(f"{name}.score_x", model.score_x, *arguments)
        expect_shape(f"{name}.score_x", score, tuple(x.shape), "like x")
        _compare(f"{name}.score_x", score, value, x)
    if model.score_theta is not None:
        what = f"{name}.score_theta"
        scores = _mapping(what, attempt(what, model.score_theta, *arguments))
        for key, shape in layout.shapes.items():
            expect_shape(f"{what}['{key}']", scores.get(key), shape, f"like theta['{key}']")
        _compare(what, torch.cat([scores[key].reshape(-1) for key in layout.shapes]), value, theta)

    what = f"{name}.observables"
    for key, scalar in _mapping(what, attempt(what, model.observed, *arguments)).items():
        expect_shape(f"{what}['{key}']", torch.as_tensor(scalar), (), "a scalar")
        if reserved(key):
            raise SdeflowError(f"{what}['{key}'] has a name that the trajectory uses: choose another")
        if not key.isidentifier():
            raise SdeflowError(f"{what}['{key}']: a name of letters, digits and underscores was expected")


Arguments = tuple[Parameters, Tensor, Data]


def _refuse_randomness(model: Model, value: Tensor, arguments: Arguments) -> None:
    """Raises SdeflowError where a log-joint has another value when it is asked again."""
    with torch.no_grad():
        again = model.log_joint(*arguments)
    if _equal(again, value):
        return
    name, fix = type(model).__name__, "its randomness belongs to the system's noise: take it out"
    for attribute, module in vars(model).items():
        inner = module.named_modules(prefix=attribute) if isinstance(module, nn.Module) else ()
        for path, layer in inner:
            if "Dropout" in type(layer).__name__ and layer.training:
                fix = f"{path} is a {type(layer).__name__} in training mode: call self.{attribute}.eval()"
    raise SdeflowError(f"{name}.log_joint gives other values for the same theta, x and y; {fix}")


def _refuse_coupling(model: Model, value: Tensor, arguments: Arguments) -> None:
    """Raises SdeflowError where the value of a particle depends on another, by moving the first one."""
    theta, x, y = arguments
    with torch.no_grad():
        moved = x.detach().clone()
        moved[0, 0] += 1.7 * (1 + moved[0, 0].abs())
        after = model.log_joint(theta, moved, y)
    others = torch.ones_like(value, dtype=torch.bool)
    others[0, 0] = False
    if not _equal(after[others], value[others]):
        raise SdeflowError(
            f"{type(model).__name__}.log_joint couples particles or data: x[0, 0] changes other values too. "
            "Entry [i, j] may depend on theta, x[i, j] and y[i] alone (batch normalisation and means over a "
            "batch are not for it)"
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether values are the same: to the bit on a CPU, to rounding on a device, where sums have no order."""
    if b.device.type == "cpu" or not b.is_floating_point():
        return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    scale = 10 * torch.finfo(b.dtype).eps
    size = float(b.detach().abs().nan_to_num(0, 0, 0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=scale, atol=scale * size, equal_nan=True)


def _mapping(what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SdeflowError(f"{what} gives {type(value).__name__}, expected a mapping by name")
    return value


def _compare(what: str, score: Tensor, value: Tensor, leaf: Tensor) -> None:
    """Raises SdeflowError where an analytic score is not the gradient of the log-joint."""
    if not _depends(value, leaf):
        return
    (gradient,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
    difference = float((score.detach() - gradient).norm() / gradient.norm().clamp_min(1e-12))
    if difference > SCORE_TOLERANCE:
        raise SdeflowError(
            f"{what} differs from the gradient of log_joint by {difference:.0%} at the start: mend either"
        )


def _depends(value: Tensor, leaf: Tensor) -> bool:
    if not value.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True, allow_unused=True)
    return gradient is not None

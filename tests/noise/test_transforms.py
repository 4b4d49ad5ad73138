"""The private names of torch that tell a kernel when to keep out, and a torch without them."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from small import MOTION
from support import doubles, needs_kernel, toy
from torch.autograd import forward_ad

from sdeflow.config.catalogue import integrator_named
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.noise import transforms
from sdeflow.noise.philox_source import PhiloxNoise
from sdeflow.system.system import initial_state


def test_this_torch_has_them_and_they_tell() -> None:
    assert transforms.KNOWN
    seen: list[bool] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(transforms.transformed())
        return x

    with torch.no_grad():
        look(torch.zeros(2))
        torch.func.vmap(look)(torch.zeros(2))
        with forward_ad.dual_level():
            look(torch.zeros(2))
        with torch.enable_grad():
            look(torch.zeros(2))
    assert seen == [False, True, True, True]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as a torch would have it whose private names have gone."""
    monkeypatch.setitem(sys.modules, "torch._functorch.pyfunctorch", None)
    spec = importlib.util.spec_from_file_location("without", transforms.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_kernel
def test_without_them_blocks_move_by_torch_and_to_the_same_normals(
    without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of `fused` is then that of `eager` to the bit; with them it is so to rounding alone."""
    system, scheme = toy("kiplmc", data=3, particles=2, theta=MOTION, x=MOTION), integrator_named("ubu")
    z = initial_state(system, doubles([3, 4]))

    def after(*, fused: bool) -> dict[str, torch.Tensor]:
        noise = PhiloxNoise(system.channels, scheme.noise_spec(system.h), doubles([3, 4]), fused=fused)
        return advance(EagerSteps(system, scheme, noise), z, 0, 5)

    eager, fused = after(fused=False), after(fused=True)
    assert not without.KNOWN
    assert without.transformed()
    for name in ("transformed", "outside_transforms"):
        monkeypatch.setattr(f"sdeflow.noise.philox_source.{name}", getattr(without, name))
    fallen_back = after(fused=True)
    assert all(torch.equal(fallen_back[name], eager[name]) for name in z)
    assert any(not torch.equal(fused[name], eager[name]) for name in z)

"""Where a run computes, and how precisely, by name."""

from __future__ import annotations

from typing import get_args

import torch

from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.options import PrecisionName
from sdeflow.system.system import System

AMPERE = (8, 0)
"""The compute capability from which NVIDIA's devices have TF32 and bfloat16."""


def resolve_device(device: str | torch.device) -> torch.device:
    """'auto' is CUDA where there is one; raises SdeflowError for CUDA where there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise SdeflowError(f"device must be 'auto', 'cpu' or 'cuda', given '{device}'") from error
    if chosen.type not in ("cpu", "cuda"):
        raise SdeflowError(f"device must be 'auto', 'cpu' or 'cuda', given '{device}'")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SdeflowError(
            "device 'cuda' was asked for, but there is no CUDA device here: give 'cpu' or 'auto'"
        )
    return chosen


def resolve_dtype(dtype: str) -> torch.dtype:
    """A precision; raises SdeflowError for any but the two."""
    chosen = getattr(torch, dtype, None)
    if chosen not in (torch.float32, torch.float64):
        raise SdeflowError(f"dtype must be float32 or float64, given {dtype}")
    assert isinstance(chosen, torch.dtype)
    return chosen


def refuse_precision(name: str, dtype: torch.dtype, device: torch.device, system: System) -> None:
    """Raises SdeflowError where forces cannot be computed in the precision of that name."""
    if name not in get_args(PrecisionName):
        raise SdeflowError(f"unknown precision '{name}': {did_you_mean(str(name), get_args(PrecisionName))}")
    if name == "full":
        return
    if dtype != torch.float32:
        raise SdeflowError(
            f"precision '{name}' is of runs in float32, given {str(dtype).removeprefix('torch.')}: give "
            "precision 'full', or dtype float32"
        )
    if system.model_forces is None:
        raise SdeflowError(
            f"precision '{name}' is of a model's forces, and this system has none: give precision 'full'"
        )
    if name == "tf32" and device.type != "cuda":
        raise SdeflowError(
            f"precision 'tf32' is of CUDA devices, and this run is on {device.type}: give precision 'full' "
            "or 'bf16', or device 'cuda'"
        )
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE:
        raise SdeflowError(
            f"precision '{name}' needs a device of compute capability 8.0, and "
            f"{torch.cuda.get_device_name(device)} has less: give precision 'full'"
        )

"""Where a run computes, and how precisely, by name."""

from __future__ import annotations

import torch

from sdeflow.errors import SdeflowError


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

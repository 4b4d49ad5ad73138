"""How precisely matrix products and convolutions are taken; all else keeps the dtype of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def bfloat16_products(like: Tensor) -> torch.autocast:
    """Within it, on the device of `like`, products and convolutions of float32 tensors are in bfloat16.

    What they give is bfloat16, and goes on as such until it meets a float32 tensor; float64 stays as it is.
    Gradients come back in the dtype of what they are taken in. No cast is kept from one product to the next,
    which a CUDA graph could not.
    """
    return torch.autocast(like.device.type, dtype=torch.bfloat16, cache_enabled=False)


def dtype_products(like: Tensor) -> torch.autocast:
    """Within it, inside `bfloat16_products`, products are in the dtype of their tensors again."""
    return torch.autocast(like.device.type, enabled=False)


@contextmanager
def float32_products(*, tf32: bool = False) -> Iterator[None]:
    """Within it products and convolutions of float32 tensors on CUDA are by TF32, or in full; then as before.

    For the whole process. Without it torch takes convolutions, and not products, by TF32, of 10 bits.
    """
    newer = [(of, str(of.fp32_precision)) for of in _kinds()]
    try:
        older = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # which torch raises once somebody has set the newer ones
        older = None
    if older is None:
        _set((of, "tf32" if tf32 else "ieee") for of, _ in newer)
    else:
        _set_older("high" if tf32 else "highest", tf32)
    try:
        yield
    finally:
        if older is not None:
            _set_older(*older)
        _set(newer)


def _kinds() -> tuple[Any, ...]:
    """What torch sets a precision of by itself, from torch 2.9 on."""
    on: Any = torch.backends
    if not hasattr(on.cudnn, "conv"):
        return ()
    return on.cuda.matmul, on.mkldnn.matmul, on.cudnn.conv, on.cudnn.rnn


def _set(precisions: Iterable[tuple[Any, str]]) -> None:
    for of, precision in precisions:
        of.fp32_precision = precision


def _set_older(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions

"""Whether torch transforms what is computed, by private names of torch.

Seen on torch 2.13. Where a name is missing, everything counts as transformed: blocks then move by torch's
own operations, to the same normals. torch.func.grad and jvp through a step of philox noise need the names;
without them torch refuses, and noise 'torch' is to be taken.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

try:
    from torch._C._functorch import peek_interpreter_stack
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.autograd import forward_ad

    forward_ad._current_level  # noqa: B018 (to see that it is there)
    KNOWN = True
except (ImportError, AttributeError):
    KNOWN = False


def transformed() -> bool:
    """Whether torch differentiates, batches or compiles what is computed; a kernel is opaque to that."""
    if not KNOWN or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return True
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def outside_transforms() -> AbstractContextManager[object]:
    """A context in which tensors are made that are constants to any transform under way."""
    return temporarily_clear_interpreter_stack() if KNOWN else nullcontext()

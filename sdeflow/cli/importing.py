"""Imports of a command that take long: torch, and what stands on it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def for_good() -> Iterator[None]:
    """A context for the imports of a command: what they make, the garbage collector leaves alone.

    It would look through it hundreds of times while torch is imported, and again at the end of the process,
    which takes a quarter of a second each. In a process that has torch already nothing is done.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

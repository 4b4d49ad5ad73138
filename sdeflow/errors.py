"""Errors that a user can mend, and numbers as a user may give them, made plain or refused.

The command line prints an error's text and exits with its code.
"""

import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from math import inf
from numbers import Integral, Real
from pathlib import Path
from typing import Any


class SdeflowError(Exception):
    """What was given, what was expected, and the fix, in a sentence. Exit code 2: usage or configuration."""

    exit_code = 2


class Incompatible(SdeflowError):
    """An integrator that cannot take a system, with the reason."""


class Uncompilable(SdeflowError):
    """A step that torch cannot compile or capture (one with a branch on a value, say)."""


class RunError(SdeflowError):
    """A run that could not be carried through (a full disk, an unreadable file). Exit code 1."""

    exit_code = 1


class Elsewhere(RunError):
    """An error that another process of the run tells of, with its exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of the run tells why it ended")
        self.exit_code = exit_code


class Interrupted(KeyboardInterrupt):
    """A run that Ctrl-C, SIGTERM or SIGHUP ended; `dataset` is the trajectory as far as it got."""

    def __init__(self, message: str, dataset: Any) -> None:
        super().__init__(message)
        self.dataset = dataset


class DivergenceWarning(UserWarning):
    """A trajectory left the finite numbers; its dataset says so in `attrs['retcode']`."""


class StabilityWarning(UserWarning):
    """A step may be too large for the curvature seen at the start, or particles may collapse."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(names)}" if names else "none is known here"


def attempt(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)` of the user's, whose failure becomes an SdeflowError that says where."""
    try:
        return function(*args, **kwargs)
    except SdeflowError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = [frame for frame in frames if "torch" not in Path(frame.filename).parts]
        where = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in own[-1:])
        reason = (str(error).splitlines() or [""])[0]
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, on CUDA
            reason = f"{reason.split('. GPU')[0]}: take fewer particles, data a step (batch.size) or replicas"
        raise SdeflowError(f"{what} fails with {type(error).__name__}: {reason}{where}") from error


def plain(value: Any) -> Any:
    """A NumPy number, or an array or a tensor without axes, as Python's number; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_number(value: Any, kind: Any = Real) -> bool:
    """Whether a value is a number, or with Integral a whole one; a truth value is neither."""
    return isinstance(value, kind) and not isinstance(value, bool)


def numbers(values: Any, kind: Any = Real) -> tuple[Any, ...] | None:
    """Those of a list, tuple or range, or an array or tensor of one axis, as Python's; None for others."""
    values = values.tolist() if hasattr(values, "tolist") else values
    found = tuple(map(plain, values)) if isinstance(values, list | tuple | range) else (None,)
    return found if all(is_number(value, kind) for value in found) else None


def expect_number(what: str, value: Any) -> Any:
    """A number as Python's; raises SdeflowError for anything else."""
    if not is_number(found := plain(value)):
        raise SdeflowError(f"{what} must be a number, given {value!r}")
    return found


def expect_count(what: str, value: Any) -> int:
    """A whole number of at least 1 as Python's; raises SdeflowError for anything else."""
    right = is_number(found := plain(value), Integral)
    if not right or found < 1:
        more = "" if right else ": a whole number was expected"
        raise SdeflowError(f"{what} must be at least 1, given {value!r}{more}")
    return int(found)


def expect_positive(what: str, value: Any) -> Any:
    """A positive, finite number as Python's; raises SdeflowError for anything else."""
    if not is_number(found := plain(value)) or not 0 < found < inf:
        raise SdeflowError(f"{what} must be positive and finite, given {value!r}")
    return found


def expect_shape(what: str, value: Any, expected: tuple[int, ...], meaning: str) -> None:
    """Raises SdeflowError where a value is not a tensor of the expected shape."""
    if not hasattr(value, "requires_grad"):  # a tensor has it, a NumPy array does not
        kind = type(value).__name__
        raise SdeflowError(f"{what} gives {kind}, expected a torch tensor of shape {expected}: {meaning}")
    if (shape := tuple(value.shape)) != expected:
        raise SdeflowError(f"{what} gives shape {shape}, expected shape {expected}: {meaning}")

"""Errors that a user can mend. The command line prints their text and exits with their code."""

import traceback
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any


class SdeflowError(Exception):
    """What was given, what was expected, and the fix, in a sentence. Exit code 2: usage or configuration."""

    exit_code = 2


class Incompatible(SdeflowError):
    """An integrator that cannot take a system, with the reason."""


class RunError(SdeflowError):
    """A run that could not be carried through (a full disk, an unreadable file). Exit code 1."""

    exit_code = 1


class Interrupted(KeyboardInterrupt):
    """A run that Ctrl-C, SIGTERM or SIGHUP ended; `dataset` is the trajectory as far as it got."""

    def __init__(self, message: str, dataset: Any) -> None:
        super().__init__(message)
        self.dataset = dataset


class DivergenceWarning(UserWarning):
    """A trajectory left the finite numbers; its dataset says so in `attrs['retcode']`."""


class StabilityWarning(UserWarning):
    """A step may be too large for the curvature seen at the start."""


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
        raise SdeflowError(f"{what} fails with {type(error).__name__}: {reason}{where}") from error


def expect_positive(what: str, value: Any) -> None:
    """Raises SdeflowError where a value is not a positive, finite number."""
    try:
        good = bool(0 < value < inf)
    except TypeError:
        good = False
    if not good:
        raise SdeflowError(f"{what} must be positive and finite, given {value!r}")


def expect_shape(what: str, value: Any, expected: tuple[int, ...], meaning: str) -> None:
    """Raises SdeflowError where a value is not a tensor of the expected shape."""
    if not hasattr(value, "requires_grad"):  # a tensor has it, a NumPy array does not
        kind = type(value).__name__
        raise SdeflowError(f"{what} gives {kind}, expected a torch tensor of shape {expected}: {meaning}")
    if (shape := tuple(value.shape)) != expected:
        raise SdeflowError(f"{what} gives shape {shape}, expected shape {expected}: {meaning}")

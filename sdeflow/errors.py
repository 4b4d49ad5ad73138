"""Errors that a user can mend. The command line prints their text and exits with their code."""

from collections.abc import Iterable
from difflib import get_close_matches


class SdeflowError(Exception):
    """What was given, what was expected, and the fix, in a sentence. Exit code 2: usage or configuration."""

    exit_code = 2


class RunError(SdeflowError):
    """A run that could not be carried through (a full disk, an unreadable file). Exit code 1."""

    exit_code = 1


class DivergenceWarning(UserWarning):
    """A trajectory left the finite numbers; its dataset says so in `attrs['retcode']`."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(names)}" if names else "none is known here"

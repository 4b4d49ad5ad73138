"""The catalogue: integrators by name, those that can take a system, and the packaged problems."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from sdeflow.config.arguments import call
from sdeflow.entries import GROUPS as GROUPS
from sdeflow.entries import Group as Group
from sdeflow.entries import entries as entries
from sdeflow.entries import find as find
from sdeflow.errors import Incompatible, SdeflowError, did_you_mean
from sdeflow.system.integrator import Integrator, why_not
from sdeflow.system.system import System

Scheme = str | Mapping[str, Any] | Integrator | type[Integrator]


def integrator_named(integrator: Scheme) -> Integrator:
    """An integrator from its name, a table of its name and options, its class or itself.

    Raises SdeflowError for anything else, and for options that it does not take.
    """
    options: dict[str, Any] = {}
    if isinstance(integrator, Mapping):
        options = dict(integrator)
        integrator = options.pop("name", None)
        if not isinstance(integrator, str):
            raise SdeflowError(
                "an integrator is a name, or a table as {name = 'ghvb', order = 3}; "
                f"given a table of {', '.join(options) or 'nothing'}"
            )
    found = find("integrators", integrator) if isinstance(integrator, str) else integrator
    if isinstance(found, type) and issubclass(found, Integrator):
        found = call(found, options, "run.integrator", also=["name"])
    elif options:
        raise SdeflowError(f"integrator '{integrator}' is made already, and takes no {', '.join(options)}")
    if not isinstance(found, Integrator):
        raise SdeflowError(
            f"an integrator derived from sdeflow.Integrator was expected, given {integrator!r}"
        )
    return found


def integrators_for(system: System, *, reference: bool = True) -> list[str]:
    """Names of the catalogue's integrators that can take the system; torchsde's too, or not."""
    able = []
    for name in entries("integrators"):
        if name.startswith("torchsde:") and not reference:
            continue
        with suppress(SdeflowError):  # a plug-in that does not load is no help here
            if why_not(integrator_named(name), system) is None:
                able.append(name)
    return able


def compatible(integrator: Scheme, system: System) -> Integrator:
    """The integrator; raises Incompatible, naming those that would do, where it refuses the system.

    'auto' is baoab where every block has a momentum and a force as it is: of all schemes it takes the largest
    steps for a gradient. Else it is Euler-Maruyama where none has a momentum, and expint_shared where some
    have; and alternating where particles take inner steps.
    """
    scheme = integrator_named(_fitting(system) if integrator == "auto" else integrator)
    if refusal := why_not(scheme, system):
        would_do = ", ".join(integrators_for(system)) or "none of the catalogue"
        raise Incompatible(
            f"integrator '{scheme.name}' cannot take this system: {refusal}. These can: {would_do}"
        )
    return scheme.fitted(system)


def _fitting(system: System) -> str:
    if any(b.inner is not None for b in system.blocks):
        return "alternating"
    if not any(b.kinetic for b in system.blocks):
        return "euler_maruyama"
    return "baoab" if why_not(integrator_named("baoab"), system) is None else "expint_shared"


def problem_files() -> dict[str, Path]:
    """The packaged problems, by name."""
    folder = Path(str(files("sdeflow.problems")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def problem_file(problem: str) -> Path:
    """The TOML file of a problem, given as a path or as the name of a packaged one."""
    path = Path(problem).expanduser()
    try:
        is_file = path.is_file()
    except OSError:  # a name that no file can have
        is_file = False
    if path.suffix == ".toml" or is_file:
        if not is_file:
            raise SdeflowError(f"there is no file {path}; packaged problems: {', '.join(problem_files())}")
        return path
    known = problem_files()
    if problem not in known:
        raise SdeflowError(f"unknown problem '{problem}': {did_you_mean(problem, known)}")
    return known[problem]

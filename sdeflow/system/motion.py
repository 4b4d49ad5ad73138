"""The numbers of one block, as a user gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from sdeflow.errors import SdeflowError, expect_number, expect_positive
from sdeflow.system.block import AUTO
from sdeflow.system.optimizer_names import optimizer_named
from sdeflow.system.schedule import Schedule

Scheduled = dict[str, Any] | Callable[[int], float]
"""A schedule: a table as {kind = "cosine", from = 1e-2, to = 1e-4}, or a function of the step."""


@dataclass(frozen=True)
class Motion:
    """The numbers of one block: its step h and, with a momentum, eta (inverse mass) and gamma (friction).

    'auto', and what is not given, is chosen in the run's warm-up by the curvature that the block sees. h,
    gamma and temperature may be schedules (`sdeflow.Schedule`): a table with `kind`, or in Python a function
    of the step n = 0, 1, ...; then none of the block's numbers is 'auto'. eta, the momentum's law, stays.

    h              step on the block's own clock, in units of its [time]
    eta            inverse mass of a block with a momentum
    gamma          friction of one: momenta decay at gamma eta a unit of time
    temperature    a factor on the system's own T, which is not 0; 10 falling to 1 anneals
    precondition   divides the force by the root of its running mean square; for parameters at T = 0
    optimizer      what moves parameters at T = 0 without a momentum, in place of gradient descent: a name, a
                   table with `name` and options, or an `sdeflow.Optimizer`; h is its learning rate, and must
                   be given, but for coin, which has none (sdeflow.system.optimizer_names)
    restart        whether a momentum that points against the force is set to zero; for parameters at T = 0
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    h: float | Literal["auto"] | Scheduled = "auto"
    eta: float | Literal["auto"] = "auto"
    gamma: float | Literal["auto"] | Scheduled = "auto"
    temperature: float | Scheduled = 1.0
    precondition: Literal["rmsprop"] | None = None
    optimizer: Any = None
    restart: bool = False

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Those of its numbers that are schedules, once `motion_of` has made them."""
        given = {"h": self.h, "gamma": self.gamma, "temperature": self.temperature}
        return {name: value for name, value in given.items() if isinstance(value, Schedule)}


CHOSEN = Motion()
"""All that a run may choose is left to it."""


def motion_of(block: str, numbers: Motion | Mapping[str, Any]) -> Motion:
    """A block's numbers, checked, with tables and functions made schedules, and constant ones numbers."""
    if isinstance(numbers, Motion):
        motion = numbers
    else:
        given = (", ".join(numbers) or "nothing") if isinstance(numbers, Mapping) else repr(numbers)
        try:
            motion = Motion(**numbers)
        except TypeError:
            raise SdeflowError(
                f"block '{block}' takes h and, with a momentum, eta and gamma, as {{'h': 0.1}}; given {given}"
            ) from None
    new: dict[str, Any] = {
        "h": _number(block, "h", motion.h),
        "gamma": _number(block, "gamma", motion.gamma),
        "temperature": _number(block, "temperature", motion.temperature),
    }
    if motion.optimizer is not None:
        new["optimizer"] = optimizer_named(motion.optimizer)
        if new["optimizer"].stepless:
            new["h"] = 1.0
    if not (is_auto(new["h"]) or isinstance(new["h"], Schedule)):
        new["h"] = expect_positive(f"block '{block}': the step h", new["h"])
    if not isinstance(new["temperature"], Schedule):
        new["temperature"] = expect_number(f"block '{block}': temperature", new["temperature"])
    return replace(motion, **new)


def _number(block: str, name: str, given: Any) -> Any:
    """A number as it is given, or a schedule of it."""
    if not (callable(given) or isinstance(given, Mapping)):
        return given
    try:
        found = Schedule.of(given)
    except SdeflowError as error:
        raise SdeflowError(f"block '{block}': {name}: {error}") from None
    return found.value if found.kind == "constant" else found


def is_auto(number: Any) -> bool:
    """Whether a number is left to the warm-up."""
    return isinstance(number, str) and number == AUTO


def first(number: Any) -> Any:
    """The number, of a schedule that of step 0; or what stands in its place until it is chosen."""
    if isinstance(number, Schedule):
        return number(0)
    return 1.0 if is_auto(number) else number


def heated(block: str, temperature: float, m: Motion) -> float:
    """A system's temperature times a block's factor on it, where that is a number; raises SdeflowError for
    a factor, or a schedule of it, on 0.
    """
    if temperature == 0 and m.temperature != 1:
        raise SdeflowError(
            f"block '{block}' has the temperature 0, on which a factor changes nothing: leave its "
            "temperature out"
        )
    factor: Any = 1.0 if isinstance(m.temperature, Schedule) else m.temperature
    return temperature * factor

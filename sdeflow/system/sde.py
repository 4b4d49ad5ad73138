"""A user's own SDE, a class with drift and diffusion, as a system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from math import floor, isnan, nan
from typing import Any

import torch
from torch import Tensor

from sdeflow.errors import SdeflowError, attempt, expect_count, expect_positive, numbers
from sdeflow.model.model import moved
from sdeflow.seeds import generator
from sdeflow.state import Axes, State, reserved
from sdeflow.system.increments import Channel

VARIABLES = ("X", "U", "Z", "V")
"""Names that a trajectory has a meaning for, particles and momenta, and that a plain SDE may use too."""


class SDESystem:
    """A user's own SDE, dX = drift(t, X) dt + diffusion(t, X) dW, as a system of one variable or several.

    The SDE is an object with drift(t, x) and diffusion(t, x), x of shape [R, paths, d]. Each gives a number
    or a tensor that broadcasts against x; noise is diagonal. Where the start is by name, the SDE has these
    variables: x is a dict of them, and drift and diffusion give dicts; what diffusion leaves out has no
    noise. `diffusion = None` says that nothing has: an ODE. Besides, the object may have

        start(generator, paths)   a law of the start: float64 tensors [paths, d], one or by name, drawn by a
                                  generator that depends on the seed alone
        final_time                up to which the SDE is defined: no run goes further
        observables(t, x)         scalars [R] to record, by name
        interacting_noise         whether a coordinate's diffusion depends on others, such as a mean over
                                  paths. Such noise does not commute, and schemes refuse it that take it to.
                                  Where it is not said, it is tried

    sde     the SDE
    h       the step, in units of [time]; without it the SDE's final time over the steps of the run
    paths   paths a replica, independent where the SDE moves each by itself
    start   where every path starts, d numbers, or such a list by name; without it as the SDE's own law says,
            else at 0

    Raises SdeflowError where the SDE lacks a part, or its start is no such numbers or tensors.
    """

    h: float

    def __init__(
        self,
        sde: Any,
        *,
        h: float | None = None,
        paths: int = 1,
        start: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        own = type(sde).__name__
        self._ode = getattr(sde, "diffusion", own) is None
        for method in ("drift", "diffusion"):
            if not callable(getattr(sde, method, None)) and (method == "drift" or not self._ode):
                raise SdeflowError(
                    f"{own} has no {method}(t, x): an SDE needs drift and diffusion, an ODE diffusion = None"
                )
        self.sde, self.paths = sde, expect_count("paths", paths)
        self.final_time = getattr(sde, "final_time", None)
        if self.final_time is not None:
            self.final_time = expect_positive(f"{own}.final_time", self.final_time)
        if h is None and self.final_time is None:
            raise SdeflowError(
                f"the step h is missing: give it, or {own} a final_time, of which it is a part"
            )
        self._divided = h is None
        self.h = nan if h is None else expect_positive("the step h", h)  # NaN until a run says its steps
        self.blocks, self.model_forces = (), None
        self._law = _law(sde, self.paths, start)
        first = self._law(generator(0, "start"))
        self._one = not isinstance(first, Mapping)
        z = self.start(0)
        self._axes = {name: Axes(("particle", _dim(name, z)), tuple(x.shape)) for name, x in z.items()}
        self._noisy = [] if self._ode else ["X"] if self._one else self._with_noise(z)

    @property
    def definition(self) -> Any:
        return self.sde

    def __str__(self) -> str:
        step = "the final time over the steps" if isnan(self.h) else f"{self.h:g}"
        return f"{type(self.sde).__name__}, h={step}, {self.paths} paths from {self._law}"

    def in_run(self, steps: int, begun: int) -> SDESystem:
        """The system in a run of so many steps that was begun with `begun`, by which the final time is
        divided where no step was given; raises SdeflowError where the run goes beyond it.
        """
        end = self.final_time
        if end is None:
            return self
        own = copy(self)
        own.h = end / begun if self._divided else self.h
        if steps * own.h > end * (1 + 1e-9):
            most, fix = floor(end / own.h * (1 + 1e-9)), "" if self._divided else ", or leave h out"
            raise SdeflowError(
                f"{steps:,} steps of h = {own.h:g} go to time {steps * own.h:g}, and "
                f"{type(self.sde).__name__} ends at its final time {end:g}: take {most:,} steps at most{fix}"
            )
        return own

    def drift(self, t: float, z: State) -> State:
        given = self._named(self.sde.drift(t, self._seen(z)))
        return {name: _like(z[name], given[name]).expand_as(z[name]) for name in self._axes}

    def diffusion(self, t: float, z: State) -> dict[str, Any]:
        given = {} if self._ode else self._named(self.sde.diffusion(t, self._seen(z)))
        if not self._one and {*given} != {*self._noisy}:
            raise SdeflowError(
                f"{type(self.sde).__name__}.diffusion gives {', '.join(given)} at time {t:g} and "
                f"{', '.join(self._noisy)} at the start: give the same variables, 0 for one without noise"
            )
        return {name: _like(z[name], given[name]) for name in self._noisy}

    @property
    def axes(self) -> Mapping[str, Axes]:
        return self._axes

    @property
    def channels(self) -> Sequence[Channel]:
        return [Channel("x" if self._one else name, name, self._axes[name].shape) for name in self._noisy]

    @property
    def clocks(self) -> Mapping[str, float]:
        return {}

    def to(self, dtype: torch.dtype, device: torch.device) -> SDESystem:
        own = copy(self)  # with the law as it was: what is drawn is float64 on the host
        own.sde = moved(self.sde, dtype, device)
        return own

    def start(self, seed: int, replica: int = 0) -> State:
        """What the law of the start gives, by variable in float64; raises SdeflowError for another form."""
        drawn = self._named(self._law(generator(seed, "start")))
        what = f"{type(self.sde).__name__}.start"
        for name, x in drawn.items():
            if not isinstance(x, Tensor) or x.dtype != torch.float64:
                kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
                raise SdeflowError(f"{what} gives {name} as {kind}, expected a tensor of dtype torch.float64")
            if x.ndim != 2 or len(x) != self.paths or x.shape[1] < 1:
                raise SdeflowError(
                    f"{what} gives {name} the shape {tuple(x.shape)}, expected {self.paths} paths of at "
                    "least 1 coordinate"
                )
        return dict(drawn)

    def check(self, z: State) -> None:
        parts = {"drift": [*self._axes]} | ({} if self._ode else {"diffusion": self._noisy})
        for method, expected in parts.items():
            what = f"{type(self.sde).__name__}.{method}"
            given = attempt(what, getattr(self.sde, method), 0.0, self._seen(z))
            if not self._one and not isinstance(given, Mapping):
                kind, names = type(given).__name__, ", ".join(expected)
                raise SdeflowError(f"{what} gives {kind}, expected a dict of {names}")
            given = self._named(given)
            if {*given} != {*expected}:
                raise SdeflowError(f"{what} gives {', '.join(given)}, expected {', '.join(expected)}")
            for name, value in given.items():
                _refuse_shape(what if self._one else f"{what}['{name}']", value, tuple(z[name].shape))
        self._refuse_observables(z)

    def observe(self, t: float, z: State) -> dict[str, Tensor]:
        observables = getattr(self.sde, "observables", None)
        return dict(observables(t, self._seen(z))) if callable(observables) else {}

    def _seen(self, z: State) -> Any:
        """What the user's methods see of a state."""
        return z["X"] if self._one else {name: z[name] for name in self._axes}

    def _named(self, given: Any) -> Mapping[str, Any]:
        """What they give, by variable."""
        return {"X": given} if self._one else given

    def _with_noise(self, z: State) -> list[str]:
        """The variables that noise enters, as the diffusion says at the start."""
        own = moved(self.sde, torch.float64, torch.device("cpu"))
        what = f"{type(self.sde).__name__}.diffusion"
        batch = {name: x[None] for name, x in z.items()}
        given = attempt(what, own.diffusion, 0.0, batch)
        if not isinstance(given, Mapping) or not {*given} <= {*z}:
            found = ", ".join(map(str, given)) if isinstance(given, Mapping) else type(given).__name__
            raise SdeflowError(f"{what} gives {found}, expected a dict of some of {', '.join(z)}")
        return [name for name in z if name in given]

    def _refuse_observables(self, z: State) -> None:
        """Raises SdeflowError for observables that are no scalars by a name of their own."""
        what, replicas = f"{type(self.sde).__name__}.observables", len(next(iter(z.values())))
        found = attempt(what, self.observe, 0.0, z)
        for name, value in found.items():
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if shape != (replicas,):
                raise SdeflowError(
                    f"{what}['{name}'] gives {shape}, expected a scalar a replica, {(replicas,)}"
                )
            if reserved(str(name)) or not str(name).isidentifier() or name in self._axes:
                raise SdeflowError(f"{what}['{name}'] has a name that the trajectory uses: choose another")


class _Point:
    """The law of a start at one point: d numbers by variable, or of the only one."""

    def __init__(self, paths: int, at: Mapping[str, tuple[float, ...]], *, named: bool) -> None:
        self._paths, self._at, self._named = paths, at, named

    def __str__(self) -> str:
        found = {name: [*x] for name, x in self._at.items()}
        return str(found if self._named else found["X"])

    def __call__(self, generator: torch.Generator) -> Any:
        found = {
            name: torch.tensor(x, dtype=torch.float64).expand(self._paths, len(x))
            for name, x in self._at.items()
        }
        return found if self._named else found["X"]


class _Own:
    """The law of a start that an SDE states."""

    def __init__(self, paths: int, sde: Any) -> None:
        self._paths, self._sde = paths, sde

    def __str__(self) -> str:
        return "a law"

    def __call__(self, generator: torch.Generator) -> Any:
        given = attempt(what := f"{type(self._sde).__name__}.start", self._sde.start, generator, self._paths)
        if isinstance(given, Mapping):
            _refuse_names(what, given)
        return given


def _law(sde: Any, paths: int, start: Any) -> _Point | _Own:
    """The law of the start: what is given, else the SDE's own, else 0; SdeflowError for another form."""
    if start is None and callable(getattr(sde, "start", None)):
        return _Own(paths, sde)
    start = (0.0,) if start is None else start
    named = isinstance(start, Mapping)
    given = dict(start) if named else {"X": start}
    found = {name: x for name, value in given.items() if (x := numbers(value))}
    if not given or len(found) < len(given):
        raise SdeflowError(f"start takes a list of at least 1 number, or such lists by name, given {start!r}")
    if named:
        _refuse_names("start", found)
    return _Point(paths, found, named=named)


def _refuse_names(what: str, given: Mapping[Any, Any]) -> None:
    """Raises SdeflowError for names that variables cannot have."""
    if not given:
        raise SdeflowError(f"{what} gives no variable, expected tensors by name")
    for name in given:
        if not str(name).isidentifier() or (reserved(str(name)) and name not in VARIABLES):
            raise SdeflowError(
                f"{what} has a variable {name!r}, a name that the trajectory uses: choose another"
            )


def _refuse_shape(what: str, value: Any, expected: tuple[int, ...]) -> None:
    """Raises SdeflowError for what does not broadcast to a variable."""
    if not isinstance(value, Tensor | float | int):
        raise SdeflowError(f"{what} gives {type(value).__name__}, expected a tensor or a number")
    shape = tuple(torch.as_tensor(value).shape)
    aligned = zip(reversed(shape), reversed(expected), strict=False)
    if len(shape) > len(expected) or any(n not in (1, m) for n, m in aligned):
        raise SdeflowError(
            f"{what} gives shape {shape}, expected {expected} (replicas, paths, coordinates) or what "
            "broadcasts to it; noise is diagonal"
        )


def _like(x: Tensor, value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def _dim(name: str, z: State) -> str:
    """The axis of a variable's coordinates: one for those of one length, as the trajectory has it."""
    first = next(iter(z))
    return "latent" if z[name].shape[1] == z[first].shape[1] else f"{name}_latent"

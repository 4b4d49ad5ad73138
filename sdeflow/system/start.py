"""What a run begins from besides its seed: the last state of another run, or parts of a state by name.

A name is that of a variable, 'X', or of one of its parameters, 'theta.weight', as in final.safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.options import Index, Options
from sdeflow.system.block import Block

if TYPE_CHECKING:
    from torch import Tensor

    from sdeflow.state import State
    from sdeflow.system.system import System

NAMED = 6
"""Names of what does not fit that an error tells."""


@dataclass(frozen=True)
class Start(Options):
    """Another run, from whose last state this one begins.

    run      its folder, relative to the file that says so
    without  what is not taken from it and begins as in a run of its own: a name or a list of names, or what
             stands before a dot in them: 'theta.prior' is 'theta.prior.weight' and all its like
    replica  which of its replicas all of this run's begin from. Without it each begins from its own, and all
             from the only one where there is one
    """

    table: ClassVar = "start"

    run: str
    without: str | Sequence[str] = ()
    replica: Index | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.run, str | Path) or not str(self.run):
            raise SdeflowError(f"start.run must be the folder of a run, given {self.run!r}")
        names = [self.without] if isinstance(self.without, str) else self.without
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise SdeflowError(f"start.without: a name or a list of them was expected, given {names!r}")
        object.__setattr__(self, "run", str(Path(self.run).expanduser().absolute()))
        object.__setattr__(self, "without", tuple(names))

    def __str__(self) -> str:
        one = "" if self.replica is None else f", replica {self.replica}"
        return self.run + one + (f", without {', '.join(self.without)}" if self.without else "")


class Law(NamedTuple):
    """The stationary law N(0, T/eta I) of a momentum."""

    temperature: float
    eta: float


@dataclass(frozen=True, eq=False)
class Origin:
    """Tensors by name, [R, ...] or of all replicas [...], that a run begins from.

    run, step  where they are from, for the record, with their SHA-256
    laws       of the momenta of a run, one a replica, by name. None where this is no run: then the rest
               begins as usual, and momenta are taken as they are
    without    see `Start`
    fix        what to do where a run does not fit
    """

    tensors: Mapping[str, Tensor]
    run: str
    step: int
    checksum: str
    laws: Mapping[str, Sequence[Law]] | None = None
    without: Sequence[str] = ()
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.run}, step {self.step:,}, sha256 {self.checksum}"

    @property
    def of_run(self) -> bool:
        return self.laws is not None

    def laws_of(self, momentum: str) -> Sequence[Law | None]:
        """Of a momentum, or a part of one, those that are known, one a replica or one for all."""
        return (self.laws or {}).get(momentum.partition(".")[0], ()) or (None,)

    @property
    def record(self) -> dict[str, str | int]:
        """Where it is from, for the attributes of a trajectory."""
        return {"run": self.run, "step": self.step, "checksum": self.checksum}


def parts(system: System, variable: str, value: Tensor) -> dict[str, Tensor]:
    """A variable [R, ...] by what its names have behind its own: '.weight' where it is of named parameters,
    as views [R, *shape], else ''."""
    axes, forces = system.axes.get(variable), system.model_forces
    dim = None if axes is None or not axes.dims else axes.dims[0]
    layout = None if forces is None or dim is None else forces.layouts.get(dim)
    if layout is None:
        return {"": value}
    return {f".{name}": view for name, view in layout.views(value).items()}


def begun(system: System, z: State, origin: Origin) -> list[str]:
    """Puts what an origin has in the place of what a start `z` has, in place; gives what begins anew.

    Of a run, positions are taken by name and shape, all of them but those `without`. A momentum is taken
    where its position was, in replicas in which its law N(0, T/eta I) is the same; else it stays as drawn.

    Raises SdeflowError for what has another shape, is not there, is there besides, or is not finite.
    """
    momenta = {b.momentum: b for b in system.blocks if b.momentum is not None}
    own = {name + part: view for name in system.axes for part, view in parts(system, name, z[name]).items()}
    _refuse_names(origin, own)
    placed = _Placed(origin)
    for name, view in own.items():
        if name.partition(".")[0] not in momenta:
            placed.position(name, view)
    for name, view in own.items():
        variable, dot, part = name.partition(".")
        if (b := momenta.get(variable)) is not None:
            placed.momentum(name, f"{b.position}{dot}{part}", view, b)
    if origin.of_run:
        named = {name.partition(".")[0] for name in own if "." in name} - momenta.keys()
        for name in origin.tensors.keys() - own.keys():
            variable, dot, _ = name.partition(".")
            if dot and variable in named and not _listed(name, origin.without):
                placed.wrong[name] = "is there, expected nothing of the name"
    if placed.wrong:
        raise SdeflowError(placed.misfit(len(next(iter(z.values())))))
    if lost := [name for name, view in own.items() if not view.isfinite().all()]:
        raise SdeflowError(
            f"{origin.run} has values that are not finite, or not in {own[lost[0]].dtype}, of "
            f"{', '.join(lost[:NAMED])}: begin from what has not diverged"
        )
    return [*shortest(placed.anew, placed.taken), *(name for name in z if name not in system.axes)]


@dataclass
class _Placed:
    """What of an origin was put into a start, what begins anew, and in words what does not fit, by name."""

    origin: Origin
    taken: list[str] = field(default_factory=list)
    anew: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)

    def position(self, name: str, view: Tensor) -> None:
        """A position, or a part of one."""
        given = self.origin.tensors.get(name)
        if _listed(name, self.origin.without) or (given is None and not self.origin.of_run):
            self.anew.append(name)
        elif given is None:
            self.wrong[name] = f"is not there, expected {list(view.shape[1:])}"
        elif (fitting := self._fitting(name, given, view)) is not None:
            view.copy_(fitting)
            self.taken.append(name)

    def momentum(self, name: str, position: str, view: Tensor, b: Block) -> None:
        """The momentum of a block, or a part of it, that goes with a position."""
        origin, given, auto = self.origin, self.origin.tensors.get(name), "eta" in b.auto
        without = _listed(name, origin.without) or (origin.of_run and position not in self.taken)
        if given is None or without:
            self.anew.append(name)
        elif auto and not origin.of_run:
            self.wrong[name] = f"has no unit while system.{b.name}.eta is 'auto': give eta, or leave it out"
        elif (fitting := self._fitting(name, given, view)) is not None:
            before, now = origin.laws_of(name), [Law(one.temperature, one.eta) for one in b.replicas]
            same = [
                not origin.of_run or (not auto and before[r % len(before)] == now[r % len(now)])
                for r in range(len(view))
            ]
            for r in range(len(view)):
                if same[r]:
                    view[r].copy_(fitting[r])
            (self.taken if all(same) else self.anew).append(name)

    def _fitting(self, name: str, given: Tensor, view: Tensor) -> Tensor | None:
        """A tensor as [R, *shape] like the view, of which it may have one for all; None where it is wrong.

        Replicas are told where they alone differ, or where it is not known which axis they are.
        """
        of_run = self.origin.of_run
        given = given[None] if given.ndim == view.ndim - 1 and not of_run else given
        alike = given.ndim == view.ndim and given.shape[1:] == view.shape[1:]
        if alike and len(given) in (1, len(view)):
            return given.expand(view.shape)
        first = 1 if of_run and not alike else 0
        found, expected = (list(x.shape[first:]) for x in (given, view))
        self.wrong[name] = f"is {found}, expected {expected}" + ("" if first else ", replicas first")
        return None

    def misfit(self, replicas: int) -> str:
        """What does not fit a run of so many replicas, and what to do, in a sentence."""
        origin = self.origin
        told = [f"'{name}' {what}" for name, what in self.wrong.items()]
        more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
        names = shortest(self.wrong, [*self.taken, *self.anew])
        count = max(map(len, origin.tensors.values())) if origin.of_run else 1
        if count not in (1, replicas):
            fix = f"give --replicas {count}, or --set start.replica=0 to begin them all from one"
        else:
            listed = names[0] if len(names) == 1 else f"'{json.dumps(names)}'"
            fix = origin.fix.format(names=listed)
        where = f"{origin.run} does not fit this run, {', '.join(told[:NAMED])}{more}"
        return f"{where}: {fix}" if fix else where


def _refuse_names(origin: Origin, own: Iterable[str]) -> None:
    """Raises SdeflowError for names that neither the origin nor the run knows."""
    asked, known = (origin.without, {*own, *origin.tensors}) if origin.of_run else (origin.tensors, {*own})
    for name in asked:
        if name not in known and not (origin.of_run and any(_listed(one, [name]) for one in known)):
            raise SdeflowError(f"start: there is no '{name}' in the state: {did_you_mean(name, known)}")


def _listed(name: str, names: Iterable[str]) -> bool:
    """Whether a name, or what stands before a dot in it, is in a list."""
    return any(name == one or name.startswith(f"{one.removesuffix('.')}.") for one in names)


def shortest(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Names in as few words: what stands before a dot, where no other name begins so."""
    found: dict[str, None] = {}
    for name in names:
        words = name.split(".")
        stems = (".".join(words[:n]) for n in range(1, len(words)))
        found[next((stem for stem in stems if not any(_listed(o, [stem]) for o in others)), name)] = None
    return list(found)

"""What a run begins from besides its seed: the last state of another run, or parts of a state by name.

A name is that of a variable, 'X', or of one of its parameters, 'theta.weight', as in final.safetensors.
"""

from __future__ import annotations

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

    run      its folder
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
    def record(self) -> dict[str, str | int]:
        """Where it is from, for the attributes of a trajectory."""
        return {"run": self.run, "step": self.step, "checksum": self.checksum}


@dataclass
class _Begun:
    """What of a state was taken, what begins anew, and what does not fit, in words by name."""

    taken: list[str] = field(default_factory=list)
    anew: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)


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
    replicas = len(next(iter(z.values())))
    momenta = {b.momentum: b for b in system.blocks if b.momentum is not None}
    own = {name + part: view for name in system.axes for part, view in parts(system, name, z[name]).items()}
    _refuse_names(origin, own)
    found = _Begun()
    for name, view in own.items():
        if name.partition(".")[0] not in momenta:
            _take(name, view, origin, found)
    for name, view in own.items():
        variable, dot, part = name.partition(".")
        if (b := momenta.get(variable)) is not None:
            _take_momentum(name, f"{b.position}{dot}{part}", view, b, origin, found)
    if origin.laws is not None:
        with_parts = {name.partition(".")[0] for name in own if "." in name} - momenta.keys()
        for name in origin.tensors.keys() - own.keys():
            if name.partition(".")[0] in with_parts and "." in name and not _listed(name, origin.without):
                found.wrong[name] = "is there, expected nothing of the name"
    if found.wrong:
        raise SdeflowError(_misfit(origin, found, replicas))
    lost = [name for name in (*found.taken, *found.anew) if not own[name].isfinite().all()]
    if lost:
        raise SdeflowError(
            f"{origin.run} has values that are not finite, or not in {own[lost[0]].dtype}, of "
            f"{', '.join(lost[:NAMED])}: begin from a run that has not diverged"
        )
    memory = [name for name in z if name not in system.axes]
    return [*shortest(found.anew, found.taken), *memory]


def _take(name: str, view: Tensor, origin: Origin, found: _Begun) -> None:
    """A position, or a part of one."""
    given = origin.tensors.get(name)
    if _listed(name, origin.without) or (given is None and origin.laws is None):
        found.anew.append(name)
    elif given is None:
        found.wrong[name] = f"is not there, expected {list(view.shape[1:])}"
    elif (fitting := _of_replicas(given, view)) is None:
        found.wrong[name] = _shapes(given, view, origin)
    else:
        view.copy_(fitting)
        found.taken.append(name)


def _take_momentum(name: str, position: str, view: Tensor, b: Block, origin: Origin, found: _Begun) -> None:
    given = origin.tensors.get(name)
    of_run = origin.laws is not None
    if given is None or _listed(name, origin.without) or (of_run and position not in found.taken):
        found.anew.append(name)
        return
    if (fitting := _of_replicas(given, view)) is None:
        found.wrong[name] = _shapes(given, view, origin)
        return
    if origin.laws is None:
        if any("eta" in b.of(r).auto for r in range(len(view))):
            found.wrong[name] = f"has no unit while system.{b.name}.eta is 'auto': give eta, or leave it out"
        view.copy_(fitting)
        found.taken.append(name)
        return
    laws, whole = origin.laws.get(name.partition(".")[0], ()), True
    for r in range(len(view)):
        one = b.of(r)
        law = laws[r % len(laws)] if laws else None
        if "eta" not in one.auto and law == Law(one.temperature, one.eta):
            view[r].copy_(fitting[r])
        else:
            whole = False
    (found.taken if whole else found.anew).append(name)


def _of_replicas(given: Tensor, view: Tensor) -> Tensor | None:
    """A tensor as [R, *shape] like the view, which may have one for all; None where it does not fit."""
    given = given[None] if given.ndim == view.ndim - 1 else given
    fits = given.ndim == view.ndim and given.shape[1:] == view.shape[1:] and len(given) in (1, len(view))
    return given.expand(view.shape) if fits else None


def _shapes(given: Tensor, view: Tensor, origin: Origin) -> str:
    """What was found and expected, replicas aside where a run's are told apart from them."""
    replicas = origin.laws is None or given.shape[1:] == view.shape[1:]
    shapes = [list(x.shape if replicas else x.shape[1:]) for x in (given, view)]
    return f"is {shapes[0]}, expected {shapes[1]}" + (", replicas first" if replicas else "")


def _misfit(origin: Origin, found: _Begun, replicas: int) -> str:
    told = [f"'{name}' {what}" for name, what in found.wrong.items()]
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    names = shortest(found.wrong, [*found.taken, *found.anew])
    counts = {len(value) for value in origin.tensors.values()} if origin.laws is not None else {1}
    if counts - {1, replicas}:
        fix = f"give --replicas {max(counts)}, or --set start.replica=0 to begin them all from one"
    else:
        listed = names[0] if len(names) == 1 else "'[" + ", ".join(f'"{name}"' for name in names) + "]'"
        fix = origin.fix.format(names=listed)
    where = f"{origin.run} does not fit this run, {', '.join(told[:NAMED])}{more}"
    return f"{where}: {fix}" if fix else where


def _refuse_names(origin: Origin, own: Iterable[str]) -> None:
    """Raises SdeflowError for names that neither the origin nor the run knows."""
    known = {*own, *origin.tensors} if origin.laws is not None else {*own}
    stems = {".".join(name.split(".")[:n]) for name in known for n in range(1, name.count(".") + 2)}
    asked = [*origin.without] if origin.laws is not None else [*origin.tensors]
    for name in asked:
        if name.removesuffix(".") not in (stems if origin.laws is not None else known):
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

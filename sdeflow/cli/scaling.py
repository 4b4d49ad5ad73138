"""`sdeflow show --ranks`: what a step takes on so many processes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdeflow.errors import SdeflowError
from sdeflow.simulation.scaling import Link, Share, counted, measured, reduced_bytes, shares
from sdeflow.terminal import human, out, shown, table

if TYPE_CHECKING:
    from sdeflow.config.run import Run

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


def tell_scaling(run: Run, ranks: str, link: str, flops: str) -> None:
    """Prints a row for each number of processes."""
    numbers, wire = _counts(ranks), Link(_amount("--link", link, "B/s", "40GB/s"))
    size = human(reduced_bytes(run))
    if flops:
        speed, work = _amount("--flops", flops, "", "4e14 or 400T"), counted(run)
        if work.datum <= 0:
            raise SdeflowError(
                "this model has no matrix products whose operations could be counted: leave out --flops, and "
                "steps are timed on this machine"
            )
        how = f"{work.of(1):.3g} operations a step on one datum at {speed:.3g} a second"
        found = work.over(speed)
    else:
        timed = measured(run)
        if timed is None:
            raise SdeflowError("no step of this run can be timed here: give --flops, operations a second")
        how, found = "steps as timed on this machine", timed
    rows = [_row(share) for share in shares(run, numbers, wire, found)]
    columns = ("processes", "data", "compute", "reduction", "step", "data/s", "of use", "state")
    table("A step on several processes", columns, rows)
    told = f"calculated: {how}, then {size} added up over {link}; data and state are those of one process"
    out.print(shown(told), markup=False)


def _row(share: Share) -> list[str]:
    return [
        f"{share.ranks:,}",
        f"{share.data:,.4g}",
        _time(share.compute),
        _time(share.reduction),
        _time(share.seconds),
        f"{share.ranks * share.data / share.seconds:,.3g}",
        f"{share.efficiency:.0%}",
        human(share.state),
    ]


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _counts(text: str) -> Sequence[int]:
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[1-9]\d{0,8}\s*", part) for part in parts):
        raise SdeflowError(f"--ranks takes numbers of processes as 8,64,1024, given '{text}'")
    return [int(part) for part in parts]


def _amount(option: str, text: str, unit: str, example: str) -> float:
    """A positive number with a prefix and a unit, as 40GB/s."""
    found = re.fullmatch(rf"\s*([\d.]+(?:[eE][+-]?\d+)?)\s*([kMGTP]?)(?:{re.escape(unit)})?\s*", text)
    try:
        value = float(found[1]) * UNITS[found[2]] if found else 0.0
    except ValueError:
        value = 0.0
    if not value > 0:
        raise SdeflowError(f"{option} takes a positive number as {example}, given '{text}'")
    return value

"""A system with the numbers that a run of it chose."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sdeflow.errors import SdeflowError
from sdeflow.system.system import BlockSystem

if TYPE_CHECKING:
    import xarray as xr


def chosen(system: BlockSystem, run: xr.Dataset, replica: int = 0) -> BlockSystem:
    """The system with h, eta and gamma as at the run's last snapshot; as it is where none is 'auto'.

    Raises SdeflowError where the run has not recorded them.
    """
    if not any(b.auto for b in system.blocks):
        return system
    last = run.isel(time=-1)
    if "replica" in last.dims:
        last = last.isel(replica=replica)

    def number(name: str) -> float:
        if name not in last:
            raise SdeflowError(f"the run has no {name}: give that of a run in which it was 'auto'")
        return float(last[name])

    h = number(f"h_{next(iter(system.blocks)).name}")
    blocks = []
    for b in system.blocks:
        own: dict[str, Any] = {key: number(f"{key}_{b.name}") for key in ("eta", "gamma") if b.kinetic}
        restart = bool(last.get(f"restart_{b.name}", b.restart))
        blocks.append(replace(b, rate=number(f"h_{b.name}") / h, auto=(), restart=restart, **own))
    return BlockSystem(blocks, system.force_field, h=h, start=system.given_start)


def refuse_auto(system: BlockSystem) -> None:
    """Raises SdeflowError where a block has numbers that a run is yet to choose, or that change by a
    schedule: theory is of given ones.
    """
    for b in system.blocks:
        for name in b.schedules:
            raise SdeflowError(
                f"theory is of numbers that stay as they are, and {name} of {b.name} is a schedule: "
                "give a number"
            )
    if names := [b.name for b in system.blocks if b.auto]:
        raise SdeflowError(
            f"the numbers of {' and '.join(names)} are 'auto', and a run chooses them: give h, eta and "
            "gamma, take a variant that does, or what 'sdeflow tune PROBLEM --out tuned.toml' writes"
        )

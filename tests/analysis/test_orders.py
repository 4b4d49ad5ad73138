"""The measuring of orders, and its script: a table of schemes, and what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import xarray as xr

from sdeflow.analysis.convergence_orders import WEAK_MARGIN, weak_errors, weak_slope
from sdeflow.analysis.studies import orders
from sdeflow.analysis.studies.wells import WELLS
from sdeflow.config.catalogue import integrator_named
from sdeflow.integrators.ubu import UBU
from sdeflow.system.increments import Noise
from sdeflow.system.system import BlockSystem


class Exploding(UBU):
    def step(self, system: BlockSystem, t: float, z: dict, h: float, noise: tuple[Noise, ...]) -> dict:
        return {name: value * 1e300 for name, value in z.items()}


class Thirds(UBU):
    substeps = 3


class Failing(UBU):
    def step(self, system: BlockSystem, t: float, z: dict, h: float, noise: tuple[Noise, ...]) -> dict:
        raise ZeroDivisionError("no luck")


def test_too_few_paths_widen_the_interval_and_do_not_narrow_it() -> None:
    """BAOAB's weak order from 1/64 of the paths: the interval is wider, and still holds the order."""
    scheme = [integrator_named("baoab")]
    few, many = (weak_slope(weak_errors(WELLS["well"], scheme, paths=n)[0]) for n in (32, 2048))
    assert few.high - few.low > 3 * (many.high - many.low)
    assert few.against(2.0, WEAK_MARGIN) == many.against(2.0, WEAK_MARGIN) == "yes"


def test_schemes_that_cannot_be_measured_are_rows_that_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins = {"exploding": Exploding, "thirds": Thirds, "failing": Failing}
    known = orders.integrator_named
    monkeypatch.setattr(orders, "integrator_named", lambda name: plugins.get(name, lambda: known(name))())
    file = tmp_path / "orders.json"
    orders.main(["--integrators", "exploding,thirds, failing,ubu", "--paths", "640", "--out", str(file)])
    found = {row["integrator"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
    assert found["exploding"]["verdict"] == "strong diverges; weak diverges"
    assert found["exploding"]["strong_value"] is None
    assert "power of two" in found["thirds"]["verdict"]
    assert "ZeroDivisionError: no luck" in found["failing"]["verdict"]
    assert found["ubu"]["verdict"] == "yes"
    printed = capsys.readouterr().out
    assert all(name in printed for name in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--integrators", "ubuu"], "unknown integrator 'ubuu': did you mean 'ubu'?"),
        (["--paths", "7"], "at least 32 paths, given 7"),
        (["--out", "table.txt"], "ends in .json or .nc"),
        (["--out", "nowhere/table.nc"], "there is no folder nowhere"),
    ],
)
def test_a_mistake_in_the_arguments_is_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        orders.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_table_as_netcdf(tmp_path: Path) -> None:
    orders.main(["--integrators", "nag", "--paths", "640", "--out", str(tmp_path / "orders.nc")])
    with xr.open_dataset(tmp_path / "orders.nc") as table:
        assert table["integrator"].values.tolist() == ["nag"]
        assert table["system"].item() == "coupled, parameters without noise"
        assert table["strong_low"].item() < 1.05 < table["weak_high"].item() + 0.1

"""The package as it is imported."""

import pytest
from commands import program

import sdeflow


def test_importing_sdeflow_does_not_import_torch() -> None:
    code = "import sys, sdeflow\nassert 'torch' not in sys.modules and 'xarray' not in sys.modules"
    done = program(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_name_is_there() -> None:
    for name in sdeflow.__all__:
        assert getattr(sdeflow, name) is not None
    assert set(sdeflow.__all__) <= set(dir(sdeflow))
    with pytest.raises(AttributeError, match="nosuch"):
        sdeflow.nosuch  # noqa: B018


def test_the_published_systems_are_where_they_were() -> None:
    """For one release: sdeflow.systems is sdeflow.system.published."""
    from sdeflow import system, systems

    assert systems.kinetic is system.kinetic
    assert systems.mpgd is sdeflow.mpgd

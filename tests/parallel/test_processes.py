"""A run on several processes against the same run on one, for every kind of run."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import CASES, COMPILED, STATE, Arrays
from support import needs_kernel

pytestmark = needs_kernel

ROUNDING = 1e-13
"""What another order of sums may change in 12 steps, of the largest number of a variable, in float64."""

Taken = dict[tuple[str, int], dict[str, Arrays]]
"""What was started already: the arrays of each case, by kind and number of processes."""


@pytest.fixture(scope="module")
def taken() -> Taken:
    return {}


def by(size: int, kind: str, taken: Taken, folder: Path) -> dict[str, Arrays]:
    """What the cases give on so many processes, which are started once for all of them."""
    if (kind, size) not in taken:
        out, script = folder / f"{kind}-{size}", Path(__file__).parent.with_name("processes.py")
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", size, script, out, kind]
        done = subprocess.run(
            [*map(str, start)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        taken[kind, size] = pickle.loads(out.read_bytes())
    return taken[kind, size]


def compare(name: str, one: Arrays, several: Arrays) -> None:
    """Bits of the state under a fixed reduction; else up to ROUNDING."""
    assert one.keys() == several.keys()
    for variable, values in one.items():
        other = several[variable]
        if name.startswith("fixed") and variable in STATE:
            np.testing.assert_array_equal(other, values, err_msg=variable)
        else:
            rounding = ROUNDING if values.dtype == np.float64 else 1e-6
            most = np.nanmax(np.abs(values), initial=0.0)
            np.testing.assert_allclose(other, values, rtol=0, atol=rounding * most, err_msg=variable)
            assert most > 0, variable


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_processes_take_the_run_of_one(name: str, size: int, taken: Taken, tmp_path: Path) -> None:
    compare(name, by(1, "quick", taken, tmp_path)[name], by(size, "quick", taken, tmp_path)[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_steps_reduce_too(name: str, taken: Taken, tmp_path: Path) -> None:
    compare(name, by(1, "compiled", taken, tmp_path)[name], by(2, "compiled", taken, tmp_path)[name])

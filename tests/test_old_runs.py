"""Runs made by sdeflow 0.1.0 before its core was taken apart, one stopped by SIGTERM and one by SIGKILL.

Oracle: the last state of the same runs in one piece, by the code of that time.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import needs_kernel

import sdeflow

OLD = Path(__file__).parent / "old_runs"


@pytest.mark.parametrize("noise", ["torch", pytest.param("philox", marks=needs_kernel)])
@pytest.mark.filterwarnings("ignore:torch was|machine was")
def test_a_run_of_old_goes_on_to_the_numbers_it_would_have_had(noise: str, tmp_path: Path) -> None:
    shutil.copytree(OLD / noise, tmp_path / "run")
    before = sdeflow.open_run(tmp_path / "run").load()
    assert before.attrs["retcode"] != "success"

    solution = sdeflow.resume(tmp_path / "run")

    assert solution.retcode == "success"
    for name, value in before.data_vars.items():
        np.testing.assert_array_equal(solution.dataset[name][: before.sizes["time"]], value)
    expected, found = load_file(OLD / f"{noise}.safetensors"), load_file(tmp_path / "run/final.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)

"""What the README tells people to type works as printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_python_example_prints_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """theta reaches the MLE of the toy model, the mean of the data, to about 3 of its fluctuations.

    theta averages 10^4 particles whose posterior variance is 1/2; its fluctuation is near 0.01.
    """
    from sdeflow.problems.hierarchical import Hierarchical

    example = blocks("python")[0]
    assert len(example.splitlines()) <= 8
    exec(compile(example, "README.md", "exec"), {})
    theta, _loss = map(float, capsys.readouterr().out.split())
    assert theta == pytest.approx(Hierarchical(data=100).data.mean().item(), abs=0.05)


def test_own_model_system_and_integrator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the README, as printed, run under the command that the README prints."""
    import xarray as xr

    from sdeflow.cli import main

    example = blocks("python")[1]
    assert len(example.splitlines()) <= 55
    (tmp_path / "counts.py").write_text(example, encoding="utf-8")
    (tmp_path / "counts.toml").write_text(blocks("toml")[0], encoding="utf-8")
    command = next(block for block in blocks("sh") if block.startswith("sdeflow run counts.toml"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    with xr.open_dataset(tmp_path / "runs" / "counts-heun-s0" / "trajectory.nc") as run:
        assert run.attrs["retcode"] == "success"
        assert run.sizes["time"] == 51
        # the data were drawn with mean 1; its standard error with 200 Poisson counts is below 0.1
        assert run.theta.isel(time=slice(25, None)).mean() == pytest.approx(1.0, abs=0.4)


def test_two_commands_are_one_line_each() -> None:
    run, test = (block for block in blocks("sh") if block.startswith("python3 -m venv"))
    for command in (run, test):
        assert command.count("\n") == 1
        assert "pip install -e" in command
    assert run.endswith("sdeflow run problems/hierarchical.toml --integrator expint\n")
    assert test.endswith("-m pytest\n")


@pytest.mark.parametrize("module", ["sdeflow.analysis.studies.convergence", "sdeflow.analysis.convergence"])
def test_convergence_script_draws(module: str, tmp_path: Path) -> None:
    from sdeflow import Save, pgd, simulate
    from sdeflow.problems.hierarchical import Hierarchical

    for seed in (0, 1):
        system = pgd(Hierarchical(data=3), particles=2, theta={"h": 0.01}, x={"h": 0.1})
        out = tmp_path / f"run{seed}"
        simulate(system, "euler_maruyama", steps=20, seed=seed, replicas=2, save=Save(every=5), out=out)
    command = [sys.executable, "-m", module, "run0", "run1", "--out", "figure.svg"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    svg = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert svg.count("<path") > 10
    assert svg.rstrip().endswith("</svg>")

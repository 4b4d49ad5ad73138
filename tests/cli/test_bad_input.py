"""Bad input gets one clear sentence on stderr and exit code 2; nothing is written, and never a traceback."""

from pathlib import Path

import pytest
import tomli_w
import torch
from valid import MINE, MODEL, MODEL_TOML, SDE, SDE_TOML, VALID, Refused

from sdeflow.config.build import build
from sdeflow.config.schema import load_config
from sdeflow.simulation.solve import solve


def test_the_valid_ones_are_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each refusal below is due to the one thing that it changes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "problem.toml").write_text(tomli_w.dumps(VALID))
    (tmp_path / "sde.toml").write_text(SDE + "h = 0.1")
    (tmp_path / "mine.py").write_text(MODEL)
    (tmp_path / "model.toml").write_text(MODEL_TOML)
    for name in ("problem.toml", "sde.toml", "model.toml"):
        assert solve(build(load_config(Path(name)))).retcode == "success"
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "sde.toml").write_text(SDE_TOML)
    assert solve(build(load_config(Path("sde.toml")))).retcode == "success"


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (("--integrator", "euler_maru"), ["unknown integrator 'euler_maru'", "'euler_maruyama'"]),
        (("--system", "kiplcm"), ["unknown system 'kiplcm'", "'kiplmc'"]),
        (("--variant", "fats"), ["no variant 'fats'", "'fast'"]),
        (("--steps", -3), ["'run.steps'", "-3"]),
        (("--seed", -3), ["'run.seed'", "-3"]),
        (("--replicas", 0), ["'run.replicas'", "0"]),
        (("--dtype", "int8"), ["'run.dtype'", "float32"]),
        (("--device", "gpu"), ["'run.device'", "'cuda'"]),
        (("--out", "problem.toml"), ["problem.toml exists", "--overwrite", "--out"]),
        (("--out", "problem.toml", "--overwrite"), ["problem.toml is not a run folder", "--out"]),
        (("--out", "problem.toml/run"), ["problem.toml/run", "not a folder"]),
        (("--out", "."), ["exists", "--out"]),
        (("--out", ".", "--overwrite"), ["not a run folder"]),
        (("--out", "x" * 300), ["name"]),
        (("--system", "double_well"), ["'double_well'", "no model"]),
        # schemes that cannot take the system, with those that can
        (
            ("--system", "pgd", "--integrator", "nag"),
            ["'nag'", "momentum in theta", "These can: ", "expint_nc"],
        ),
        (("--system", "mpgd-x", "--integrator", "nag"), ["'nag'", "momentum in theta", "These can: "]),
        (("--system", "kiplmc", "--integrator", "nag"), ["'nag'", "no noise in theta", "These can: ", "ubu"]),
        (("--system", "ipla", "--integrator", "nag"), ["'nag'", "These can: "]),
        (("--system", "pgd", "--integrator", "obabo"), ["'obabo'", "momentum in every block", "theta, x"]),
        (("--system", "mpgd-theta", "--integrator", "baoab"), ["'baoab'", "momentum", "without one: x"]),
        (("--system", "mpgd-x", "--integrator", "ubu"), ["'ubu'", "momentum", "without one: theta"]),
        (
            ("--system", "mpgd-x", "--integrator", "quicsort"),
            ["'quicsort'", "momentum", "without one: theta"],
        ),
    ],
)
def test_option(refused: Refused, options: tuple[object, ...], fragments: list[str]) -> None:
    sentence = refused(*options)
    for fragment in fragments:
        assert fragment in sentence


def test_refusals_name_exactly_the_schemes_that_do(refused: Refused) -> None:
    sentence = refused("--system", "pgd", "--integrator", "ubu")
    named = sentence.rpartition("These can: ")[2].strip().rstrip(".").split(", ")
    assert [n for n in named if not n.startswith("torchsde:")] == [
        "alternating",
        "euler_maruyama",
        "expint",
        "expint_nc",
        "expint_nc2",
        "expint_shared",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(refused: Refused) -> None:
    sentence = refused("--device", "cuda")
    assert "'cuda'" in sentence
    assert "give 'cpu' or 'auto'" in sentence


def test_existing_output(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "runs" / "problem-expint-s0").mkdir(parents=True)
    assert "--overwrite" in refused()


@pytest.mark.parametrize(
    ("problem", "fragments"),
    [
        ("nosuch.toml", ["no file nosuch.toml"]),
        ("folder.toml", ["folder.toml"]),
        ("folder", ["unknown problem 'folder'"]),
        ("binary.toml", ["binary.toml cannot be read"]),
        ("hierarchicl", ["unknown problem 'hierarchicl'", "'hierarchical'"]),
        ("hierachical.toml", ["no file hierachical.toml", "hierarchical"]),
        ("", ["unknown problem ''"]),
        ("x" * 300, ["unknown problem"]),
        ("y" * 300 + ".toml", ["y.toml"]),
    ],
)
def test_problem_that_is_not_one(
    refused: Refused, tmp_path: Path, problem: str, fragments: list[str]
) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00\x01")
    sentence = refused(problem=problem)
    for fragment in fragments:
        assert fragment in sentence

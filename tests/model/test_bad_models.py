"""Models with a mistake get one clear sentence that names the method."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import tiny
from torch import Tensor, nn
from valid import MODEL, MODEL_TOML, Refused

from sdeflow import Evaluate, Save, pgd, simulate
from sdeflow.config.build import build
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.simulation.solve import solve


@pytest.mark.parametrize(
    ("use", "code", "fragments"),
    [
        ("other.py:Mine", MODEL, ["no file", "other.py"]),
        ("mine.py:Mein", MODEL, ["mine.py", "no 'Mein'", "'Mine'"]),
        ("mine.py:", MODEL, ["mine.py"]),
        ("mine.py:Mine", "def Mine(:", ["mine.py", "SyntaxError", "line 1"]),
        ("mine.py:Mine", "1 / 0", ["mine.py", "ZeroDivisionError"]),
        ("mine.py:Mine", "import nosuchpackage", ["mine.py", "ModuleNotFoundError", "nosuchpackage"]),
        ("mine.py:Mine", "import sys\nsys.exit(3)", ["mine.py", "SystemExit"]),
        ("mine.py:Mine", "Mine = 3", ["mine.py:Mine", "int"]),
        ("mine.py:Mine", "Mine = None", ["mine.py:Mine", "None"]),
        ("mine.py:Mine", "class Mine: pass", ["mine.py:Mine", "Mine", "sdeflow.Model"]),
        ("mine.py:Mine", "def Mine(): return 3", ["mine.py:Mine", "int", "sdeflow.Model"]),
        ("mine.py:Mine", "import sdeflow\nclass Mine(sdeflow.Model): pass", ["Mine", "log_joint"]),
    ],
)
def test_model_that_is_not_one(refused: Refused, use: str, code: str, fragments: list[str]) -> None:
    problem = MODEL_TOML.replace("mine.py:Mine", use)
    sentence = refused(files={"problem.toml": problem, "mine.py": code})
    for fragment in fragments:
        assert fragment in sentence


METHODS = {
    "__init__": "self",
    "init_theta": "self, generator",
    "init_x": "self, generator, data, particles",
    "log_joint": "self, theta, x, y",
    "score_x": "self, theta, x, y",
    "score_theta": "self, theta, x, y",
    "observables": "self, theta, x, y",
}


@pytest.mark.parametrize(
    ("method", "body", "fragments"),
    [
        ("__init__", "raise KeyError('path')", ["Mine", "KeyError", "path"]),
        ("__init__", "pass", ["Mine", "data"]),
        ("__init__", "self.data = None", ["Mine", "data", "NoneType"]),
        ("__init__", "self.data = []", ["Mine", "data"]),
        ("__init__", "self.data = 'iris'", ["Mine", "data", "str"]),
        ("__init__", "self.data = torch.zeros(())", ["Mine", "data"]),
        ("__init__", "self.data = torch.zeros(0, 2)", ["Mine", "data"]),
        ("__init__", "self.data = torch.zeros(3, 2); self.latent_shape = 2", ["Mine", "latent_shape", "2"]),
        ("__init__", "self.data = torch.zeros(3, 2); self.latent_shape = (-2,)", ["latent_shape", "-2"]),
        ("__init__", "self.data = torch.zeros(3, 2); self.latent_shape = (2.0,)", ["latent_shape", "2.0"]),
        ("init_theta", "return None", ["Mine.init_theta", "NoneType"]),
        ("init_theta", "return torch.zeros(2)", ["Mine.init_theta", "Tensor"]),
        ("init_theta", "return {}", ["Mine.init_theta", "parameters"]),
        ("init_theta", "return {'w': 'zero'}", ["Mine.init_theta", "'w'"]),
        ("init_theta", "return {'w': torch.full((2,), float('nan'))}", ["theta", "finite"]),
        ("init_theta", "raise RuntimeError('boom')", ["Mine.init_theta", "RuntimeError", "boom"]),
        ("init_x", "return torch.zeros(data, particles)", ["init_x", "(3, 4)", "(3, 4, 2)"]),
        ("init_x", "return torch.zeros(particles, data, 2)", ["init_x", "(4, 3, 2)", "(3, 4, 2)"]),
        ("init_x", "return None", ["init_x", "NoneType", "(3, 4, 2)"]),
        ("init_x", "return torch.zeros(data, particles, 2) / 0", ["X", "finite"]),
        ("init_x", "raise RuntimeError('boom')", ["init_x", "RuntimeError", "boom"]),
        ("log_joint", "return x", ["Mine.log_joint", "(3, 4, 2)", "(3, 4)"]),
        ("log_joint", "return -(x**2).sum()", ["Mine.log_joint", "()", "(3, 4)"]),
        ("log_joint", "return 0.0", ["Mine.log_joint", "(3, 4)"]),
        ("log_joint", "return None", ["Mine.log_joint", "NoneType", "(3, 4)"]),
        ("log_joint", "raise ValueError('boom')", ["Mine.log_joint", "ValueError", "boom"]),
        ("log_joint", "return theta['b']", ["Mine.log_joint", "KeyError", "'b'"]),
        ("log_joint", "return x @ y", ["Mine.log_joint", "RuntimeError", "shapes"]),
        ("log_joint", "return x.detach().sum(-1)", ["Mine.log_joint", "x"]),
        ("log_joint", "return (x.detach() * theta['w']).sum(-1)", ["Mine.log_joint", "x"]),
        ("log_joint", "return (x > 0).sum(-1)", ["Mine.log_joint", "x"]),
        ("log_joint", "return -(x**2).sum(-1)", ["Mine.log_joint", "theta"]),
        ("log_joint", "return -(x**2).sum(-1) * theta['w'].sum().item()", ["Mine.log_joint", "theta"]),
        ("score_x", "return x.sum(-1)", ["Mine.score_x", "(3, 4)", "(3, 4, 2)"]),
        ("score_x", "return x[:1]", ["Mine.score_x", "(1, 4, 2)", "(3, 4, 2)"]),
        ("score_x", "return None", ["Mine.score_x", "NoneType"]),
        ("score_theta", "return {'v': theta['w']}", ["Mine.score_theta", "'w'"]),
        ("score_theta", "return {'w': theta['w'][:1]}", ["Mine.score_theta", "(1,)", "(2,)"]),
        ("score_theta", "return theta['w']", ["Mine.score_theta", "Tensor"]),
        ("observables", "return None", ["Mine.observables", "NoneType"]),
        ("observables", "return {'spread': x}", ["Mine.observables", "'spread'", "(3, 4, 2)"]),
        ("observables", "return {'X': x.sum()}", ["Mine.observables", "'X'"]),
        ("observables", "raise RuntimeError('boom')", ["Mine.observables", "RuntimeError", "boom"]),
    ],
)
def test_model_with_a_mistake(refused: Refused, method: str, body: str, fragments: list[str]) -> None:
    code = f"{MODEL}    def {method}({METHODS[method]}):\n        {body}\n"
    sentence = refused(files={"problem.toml": MODEL_TOML, "mine.py": code})
    for fragment in fragments:
        assert fragment in sentence


def test_model_that_cannot_be_batched_over_replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at a value, which vmap does not allow: replicas take turns."""
    monkeypatch.chdir(tmp_path)
    code = f"{MODEL}        if x.sum() > 0:\n            pass\n".replace(
        "        return -", "        value = -"
    )
    code += "        return value\n"
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "problem.toml").write_text(MODEL_TOML)
    solution = solve(build(load_config(Path("problem.toml"), overrides=[{"run": {"replicas": 2}}])))
    assert solution.retcode == "success"


def test_observables_that_change_are_refused() -> None:
    class Moody(Hierarchical):
        calls = 0

        def observables(self, theta: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            Moody.calls += 1
            return {"a": x.mean()} if Moody.calls < 4 else {}

    with pytest.raises(SdeflowError, match="the same in every snapshot; a is not"):
        simulate(tiny(Moody(data=3)), "expint", steps=30, save=Save(every=5))


@pytest.mark.parametrize("name", ["time", "time_x", "seed", "kinetic_x", "force_theta", "X_norm", "a/b", ""])
def test_observables_with_a_name_of_the_trajectory_are_refused(name: str) -> None:
    class Named(Hierarchical):
        def observables(self, theta: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {name: x.mean()}

    with pytest.raises(SdeflowError, match=r"Named\.observables"):
        simulate(tiny(Named(data=3)), "expint", steps=3)


class Draws(Hierarchical):
    score_x = score_theta = None

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return super().log_joint(theta, x + 1e-3 * torch.randn_like(x), y)


class Drops(Hierarchical):
    score_x = score_theta = None

    def __init__(self) -> None:
        super().__init__(data=4)
        self.net = nn.Sequential(nn.Identity(), nn.Dropout(0.5))

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return super().log_joint(theta, self.net(x), y)


class Couples(Hierarchical):
    """Each particle is seen from the cloud's mean."""

    score_x = score_theta = None

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return super().log_joint(theta, x - x.mean(1, keepdim=True), y)


class OverData(Hierarchical):
    score_x = score_theta = None

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Tensor:
        return super().log_joint(theta, x, y) - 1e-3 * x.square().sum()


def system(model: Any, particles: int = 3) -> Any:
    return pgd(model, particles=particles, theta={"h": 1e-3}, x={"h": 1e-2})


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Draws(data=4), "Draws.log_joint gives other values for the same theta, x and y; its randomness"),
        (Drops(), r"net\.1 is a Dropout in training mode: call self\.net\.eval\(\)"),
        (Couples(data=4), "Couples.log_joint couples particles or data"),
        (OverData(data=4), "OverData.log_joint couples particles or data"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_log_joint_that_draws_or_couples_is_refused(model: Any, sentence: str, dtype: str) -> None:
    with pytest.raises(SdeflowError, match=sentence):
        simulate(system(model), "euler_maruyama", steps=2, dtype=dtype)


def test_a_dropout_that_is_off_and_a_lone_particle_are_right() -> None:
    model = Drops()
    model.net.eval()
    assert simulate(system(model), "euler_maruyama", steps=2).attrs["retcode"] == "success"
    assert simulate(system(Couples(data=1), 1), "euler_maruyama", steps=2).attrs["retcode"] == "success"


@pytest.mark.parametrize(
    "held_out",
    [torch.zeros(5), torch.zeros(5, 2), torch.zeros(5, 1, dtype=torch.long), (torch.zeros(5, 1),), [[0.0]]],
    ids=["no axis", "wider", "whole numbers", "a tuple", "a list"],
)
def test_held_out_data_of_another_kind_are_refused(held_out: Any) -> None:
    model = Hierarchical(data=4)
    model.held_out = held_out
    with pytest.raises(SdeflowError, match="held_out must be like the data"):
        simulate(system(model), "euler_maruyama", steps=2, evaluate=Evaluate(10))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_data_that_are_no_numbers_are_refused_and_nothing_is_written(number: float, tmp_path: Path) -> None:
    model = Hierarchical(data=4)
    model.data = model.data.clone()
    model.data[2] = number
    with pytest.raises(SdeflowError, match="the data hold 1 values that are NaN or infinite") as error:
        simulate(system(model), "euler_maruyama", steps=2, out=tmp_path / "run")
    assert error.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_start_without_a_loss_is_refused() -> None:
    class Far(Hierarchical):
        def init_x(self, generator: torch.Generator, data: int, particles: int) -> Tensor:
            return torch.full((data, particles, 1), float("nan"))

    with pytest.raises(SdeflowError, match="not finite"):
        simulate(system(Far(data=4)), "euler_maruyama", steps=2)


@pytest.mark.parametrize("theta", [1e-4, "1e-4", [1e-4]])
def test_a_block_that_is_a_number_is_told_what_it_takes(theta: Any) -> None:
    with pytest.raises(SdeflowError, match=r"block 'theta' takes h and.*as {'h': 0.1}; given"):
        pgd(Hierarchical(data=4), particles=2, theta=theta, x={"h": 1e-2})


class OfNumPy(Hierarchical):
    score_x = score_theta = None

    def log_joint(self, theta: Any, x: Tensor, y: Tensor) -> Any:
        return super().log_joint(theta, x, y).detach().numpy()


class Frame:
    """What pandas and others have of a table: an array of it."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.to_numpy()

    def to_numpy(self) -> Any:
        return np.zeros((4, 1))


def test_values_that_are_no_tensors_are_told() -> None:
    with pytest.raises(
        SdeflowError, match=r"log_joint gives ndarray, expected a torch tensor of shape \(4, 3\)"
    ):
        simulate(system(OfNumPy(data=4)), "euler_maruyama", steps=2)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            np.zeros((4, 1)),
            r"data holds ndarray, and a tensor was expected: give it sdeflow.data.read\(data\)$",
        ),
        ([[0.0], [1.0]], r"data holds list, and a tensor was expected: give it sdeflow.data.read\(data\)$"),
        ([0.0, 1.0], r"data holds float, and a tensor was expected: give it sdeflow.data.read\(data\)$"),
        (Frame(), r"data holds Frame, and a tensor was expected: give it sdeflow.data.read\(data\)$"),
        ((Frame(), Frame()), r"data holds Frame, .*give it sdeflow.data.read\(data\)$"),
        (torch.zeros(4, 1, device="meta"), "data holds no numbers: a tensor of it is on device 'meta'"),
    ],
)
def test_data_that_are_no_tensors_of_numbers_are_told(data: Any, sentence: str) -> None:
    model = Hierarchical(data=4)
    model.data = data
    with pytest.raises(SdeflowError, match=sentence):
        system(model)

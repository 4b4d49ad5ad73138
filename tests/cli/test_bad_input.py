"""Bad input gets one clear sentence on stderr and exit code 2; nothing is written, and never a traceback."""

import copy
import io
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sdeflow
from sdeflow.cli import main
from sdeflow.config.build import build
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.simulation.solve import solve

VALID: dict[str, Any] = {
    "title": "A valid problem",
    "model": {"use": "hierarchical", "data": 3, "scale": 0.5},
    "system": {
        "use": "mpgd",
        "particles": 2,
        "theta": {"h": 1e-3, "eta": 2.0, "gamma": 0.5},
        "x": {"h": 1e-2, "eta": 2.0, "gamma": 0.5},
    },
    "run": {"integrator": "expint", "steps": 2, "seed": 0, "replicas": 1, "dtype": "float32"},
    "save": {"every": 1, "data": "all", "particles": [0, 1], "theta_max": 10},
    "variants": {"fast": {"run": {"steps": 1}}},
}

SDE = "[run]\nintegrator = 'euler_maruyama'\nsteps = 1\n[system]\nuse = 'double_well'\n"

MODEL = """
import torch
import sdeflow

class Mine(sdeflow.Model):
    latent_shape = (2,)

    def __init__(self):
        self.data = torch.zeros(3, 2)

    def init_theta(self, generator):
        return {"w": torch.zeros(2)}

    def log_joint(self, theta, x, y):
        return -((x - theta["w"]) ** 2).sum(-1) - ((y[:, None] - x) ** 2).sum(-1)

"""
MODEL_TOML = """
[model]
use = "mine.py:Mine"
[system]
use = "mpgd"
particles = 4
theta = {h = 1e-3, eta = 1.0, gamma = 1.0}
x = {h = 1e-3, eta = 1.0, gamma = 1.0}
[run]
steps = 1
"""

MINE = """
class Mine:
    def drift(self, t, x):
        return -x

    def diffusion(self, t, x):
        return 1.0

"""
SDE_TOML = (
    "[system]\nuse = 'mine.py:Mine'\nh = 0.1\npaths = 3\nstart = [0.0, 1.0]\n" + SDE.partition("[system]")[0]
)

INTEGRATOR_TOML = SDE.replace("euler_maruyama", "mine.py:Mine") + "h = 0.1\n"


Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Calls `sdeflow run` in this process; gives the sentence on stderr after all that must hold of it."""
    monkeypatch.chdir(tmp_path)

    def call(*options: object, problem: str = "problem.toml", files: dict[str, str] | None = None) -> str:
        for name, text in ({"problem.toml": tomli_w.dumps(VALID)} | (files or {})).items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        monkeypatch.setattr(sys, "argv", ["sdeflow", "run", problem, *map(str, options)])
        with pytest.raises(SystemExit) as ending:
            main()
        out, err = capsys.readouterr()
        assert ending.value.code == 2, err
        assert out == ""
        assert err.startswith("sdeflow: ")
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".pyc"}
        assert after == before
        return err

    return call


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


# Settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "fragments"),
    [
        # unknown keys, with the nearest
        ("titel=x", ["unknown key 'titel'", "'title'"]),
        ("run.step=3", ["unknown key 'run.step'", "'steps'"]),
        ("save.evry=3", ["unknown key 'save.evry'", "'every'"]),
        ("model.dat=3", ["unknown key 'model.dat'", "'data'"]),
        ("system.particle=3", ["unknown key 'system.particle'", "'particles'"]),
        ("system.theta.etta=3.0", ["unknown key 'system.theta.etta'", "'eta'"]),
        ("system.y.h=0.1", ["unknown key 'system.y'", "theta"]),
        ("system.model.h=0.1", ["unknown key 'system.model'"]),
        ("system.where.h=0.1", ["unknown key 'system.where'"]),
        ("system.model=3", ["unknown key 'system.model'"]),
        ("model.where=3", ["unknown key 'model.where'"]),
        # wrong types
        ("title=3", ["'title'", "string", "3"]),
        ("run.steps=2.0", ["'run.steps'", "integer", "2.0"]),
        ("run.steps=true", ["'run.steps'", "integer", "True"]),
        ("run.steps='many'", ["'run.steps'", "integer", "many"]),
        ("run.steps=[1]", ["'run.steps'", "integer"]),
        ("run.steps.sub=1", ["'run.steps'", "integer"]),
        ("run.dtype=32", ["'run.dtype'", "float32", "float64"]),
        ("run.dtype=float16", ["'run.dtype'", "float32", "float64", "float16"]),
        ("run.device=tpu", ["'run.device'", "'cpu'", "tpu"]),
        ("model.use=3", ["'model.use'", "string"]),
        ("model.data=2.5", ["'model.data'", "integer", "2.5"]),
        ("model.scale='wide'", ["'model.scale'", "number", "wide"]),
        ("model.scale=2020-01-01", ["'model.scale'", "number"]),
        ("system.particles=1.5", ["'system.particles'", "integer"]),
        ("system.theta.eta='x'", ["'system.theta.eta'", "number", "x"]),
        ("system.theta.eta=true", ["'system.theta.eta'", "number"]),
        ("system.theta=3", ["'system.theta'", "3"]),
        ("save.data='some'", ["'save.data'", "'all'", "some"]),
        ("save.data=[1.5]", ["save.data"]),
        # a value for a table
        ("model=3", ["'model'", "table"]),
        ("system=3", ["'system'", "table"]),
        ("run=3", ["'run'", "table"]),
        ("save=3", ["'save'", "table"]),
        ("variants=3", ["variants"]),
        # values out of range
        ("run.steps=-1", ["'run.steps'", "-1"]),
        ("run.replicas=0", ["'run.replicas'", "1"]),
        ("run.seed=-1", ["'run.seed'", "-1"]),
        ("run.seed=1000000000000000000000", ["'run.seed'"]),
        ("save.every=0", ["'save.every'", "1"]),
        ("save.theta_max=-1", ["'save.theta_max'"]),
        ("save.data=0", ["save.data"]),
        ("save.data=[-1]", ["save.data"]),
        ("save.data=[3]", ["datum", "0..2", "[3]"]),
        ("save.data=[]", ["datum", "[]"]),
        ("save.particles=[0, 2]", ["particle", "0..1", "[0, 2]"]),
        ("model.data=0", ["data", "at least 1", "0"]),
        ("model.scale=-1.0", ["scale", "positive", "-1.0"]),
        ("system.particles=0", ["particles", "at least 1", "0"]),
        ("system.h=0.0", ["h", "positive", "0.0"]),
        ("system.h=-0.1", ["h", "positive", "-0.1"]),
        ("system.theta.h=0.0", ["h", "'theta'", "positive", "0.0"]),
        ("system.x.h=-0.1", ["h", "'x'", "positive", "-0.1"]),
        ("system.x.eta=0.0", ["'x'", "eta > 0", "0.0"]),
        ("system.x.eta=-1.0", ["'x'", "eta > 0", "-1.0"]),
        ("system.x.gamma=-1.0", ["'x'", "gamma >= 0", "-1.0"]),
        # numbers that are none
        ("system.theta.h=nan", ["system.theta.h", "finite", "nan"]),
        ("system.theta.h=inf", ["system.theta.h", "finite", "inf"]),
        ("system.theta.eta=nan", ["system.theta.eta", "finite", "nan"]),
        ("system.x.gamma=inf", ["system.x.gamma", "finite", "inf"]),
        ("system.h=1e400", ["system.h", "finite", "inf"]),
        ("model.scale=nan", ["model.scale", "finite", "nan"]),
        ("model.theta_true=-inf", ["model.theta_true", "finite", "-inf"]),
        # names, with the nearest
        ("model.use=hierarchicl", ["unknown model 'hierarchicl'", "'hierarchical'"]),
        ("system.use=mpdg", ["unknown system 'mpdg'", "'mpgd'"]),
        ("run.integrator=expit", ["unknown integrator 'expit'", "'expint'"]),
        ("run.integrator=", ["unknown integrator ''", "expint"]),
        ("run.noise=brown", ["'run.noise'", "'torch'", "'philox'", "brown"]),
        ("run.engine=fast", ["'run.engine'", "'fused'", "fast"]),
        # not an assignment
        ("system.theta.gamma", ["--set", "key.sub=value", "system.theta.gamma"]),
        ("=3", ["--set", "key.sub=value"]),
        ("run..steps=3", ["--set", "key.sub=value"]),
    ],
)
def test_setting(refused: Refused, setting: str, fragments: list[str]) -> None:
    sentence = refused("--set", setting)
    for fragment in fragments:
        assert fragment in sentence
    assert len(sentence) < 300, "one sentence"


def without(*path: str) -> str:
    tables = copy.deepcopy(VALID)
    at = tables
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return tomli_w.dumps(tables)


@pytest.mark.parametrize(
    ("problem", "fragments"),
    [
        (without("system"), ["'system", "missing"]),
        (without("system", "use"), ["'system.use' is missing"]),
        (without("system", "particles"), ["'system.particles' is missing"]),
        (without("system", "theta"), ["'system.theta' is missing"]),
        (without("system", "theta", "h"), ["'system.theta.h' is missing"]),
        (without("system", "theta", "eta"), ["'theta'", "eta and gamma"]),
        (without("system", "x", "gamma"), ["'x'", "eta and gamma"]),
        (without("model", "use"), ["'model.use' is missing"]),
        (without("model"), ["'mpgd' needs a model", "[model]"]),
        ("", ["'system", "missing"]),
        (SDE, ["'system.h' is missing"]),
        (SDE + "h = 0.0", ["h", "positive", "0.0"]),
        (SDE + "h = -1.0", ["h", "positive", "-1.0"]),
        (SDE + "h = 0.1\npaths = 0", ["paths", "at least 1", "0"]),
        (SDE + "h = 0.1\nstart = []", ["start", "at least 1"]),
        (SDE + "h = 0.1\nstart = 0.5", ["'system.start'", "0.5"]),
        (SDE + "h = 0.1\nstart = [nan]", ["system.start", "finite", "nan"]),
        (SDE + "h = 0.1\nbarrier = -1.0", ["barrier", "positive", "-1.0"]),
        (SDE + "h = 0.1\nbarier = 1.0", ["unknown key 'system.barier'", "'barrier'"]),
        (SDE + "h = 0.1\nsde = 1.0", ["unknown key 'system.sde'"]),
        (SDE + "h = 0.1\n[system.theta]\nh = 0.1", ["unknown key 'system.theta'"]),
        (SDE + "h = 0.1\n[model]\nuse = 'hierarchical'", ["'double_well'", "no model", "[model]"]),
        ("[run\nsteps = 3", ["problem.toml is not valid TOML"]),
        ("steps = = 3", ["problem.toml is not valid TOML"]),
        ("run = 1\n[system]\nuse = 'double_well'\nh = 0.1", ["'run'", "table"]),
        ("variants = 3\n" + tomli_w.dumps(VALID).partition("[variants")[0], ["variants", "[variants.NAME]"]),
    ],
)
def test_file(refused: Refused, problem: str, fragments: list[str]) -> None:
    sentence = refused(files={"problem.toml": problem})
    for fragment in fragments:
        assert fragment in sentence


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
        "euler_maruyama",
        "expint",
        "expint_nc",
        "expint_nc2",
        "expint_shared",
    ]


@pytest.mark.parametrize("scheme", ["expint", "expint_shared", "nag", "obabo", "baoab", "ubu"])
def test_schemes_of_blocks_refuse_a_plain_sde(refused: Refused, scheme: str) -> None:
    sentence = refused("--integrator", scheme, files={"problem.toml": SDE + "h = 0.1"})
    for fragment in (f"'{scheme}'", "blocks", "These can: euler_maruyama"):
        assert fragment in sentence


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


# Code of the user's -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("code", "fragments"),
    [
        ("Mine = 3", ["mine.py:Mine", "drift"]),
        (MINE.partition("    def diffusion")[0], ["mine.py:Mine", "no diffusion"]),
        (MINE.replace("def drift", "def drifting"), ["mine.py:Mine", "no drift"]),
        (MINE.replace("return -x", "return x.new_zeros(5)"), ["Mine.drift", "(5,)", "(1, 3, 2)"]),
        (MINE.replace("return -x", "return x[None, None]"), ["Mine.drift", "(1, 1, 1, 3, 2)", "(1, 3, 2)"]),
        (MINE.replace("return -x", "return None"), ["Mine.drift", "NoneType"]),
        (MINE.replace("return -x", "raise ValueError('boom')"), ["Mine.drift", "ValueError", "boom"]),
        (MINE.replace("self, t, x", "x"), ["Mine.drift", "TypeError"]),
        (MINE.replace("return 1.0", "return x.new_zeros(7)"), ["Mine.diffusion", "(7,)", "(1, 3, 2)"]),
        (MINE.replace("return 1.0", "return 'loud'"), ["Mine.diffusion", "str"]),
        (MINE + "    def __init__(self, rate):\n        pass\n", ["'system.rate' is missing"]),
        (MINE + "    def __init__(self):\n        1 / 0\n", ["Mine", "ZeroDivisionError"]),
    ],
)
def test_sde_with_a_mistake(refused: Refused, code: str, fragments: list[str]) -> None:
    sentence = refused(files={"problem.toml": SDE_TOML, "mine.py": code})
    for fragment in fragments:
        assert fragment in sentence


@pytest.mark.parametrize(
    ("code", "fragments"),
    [
        ("Mine = 3", ["mine.py:Mine", "sdeflow.Integrator"]),
        ("class Mine: pass", ["mine.py:Mine", "sdeflow.Integrator"]),
        ("import sdeflow\nclass Mine(sdeflow.Integrator): pass", ["Mine", "step"]),
        (
            "import sdeflow\nclass Mine(sdeflow.Integrator):\n"
            "    def __init__(self, order): pass\n    def step(self, *_): pass",
            ["Mine", "order"],
        ),
    ],
)
def test_integrator_that_is_not_one(refused: Refused, code: str, fragments: list[str]) -> None:
    sentence = refused(files={"problem.toml": INTEGRATOR_TOML, "mine.py": code})
    for fragment in fragments:
        assert fragment in sentence


# The same in Python ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"integrator": "expit"}, "did you mean 'expint'"),
        ({"integrator": 3}, "sdeflow.Integrator"),
        ({"integrator": "ubu"}, "These can"),
        ({"steps": -1}, "steps must be at least 0, given -1"),
        ({"replicas": 0}, "replicas must be at least 1, given 0"),
        ({"seed": -1}, "seed must be at least 0, given -1"),
        ({"dtype": "float16"}, "float32 or float64, given float16"),
        ({"dtype": torch.int64}, "float32 or float64"),
        ({"device": "warp"}, "warp"),
    ],
)
def test_python(arguments: dict[str, Any], fragment: str) -> None:
    from sdeflow.problems.hierarchical import Hierarchical

    system = sdeflow.pgd(Hierarchical(data=3), particles=2, theta={"h": 0.1}, x={"h": 0.1})
    with pytest.raises(SdeflowError, match=fragment):
        sdeflow.simulate(system, **({"integrator": "expint", "steps": 1} | arguments))


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ({"theta": {"h": 0.0}}, "'theta'.*positive"),
        ({"theta": {"h": float("nan")}}, "'theta'.*positive"),
        ({"theta": {"step": 0.1}}, "'theta'.*given step"),
        ({"theta": {}}, "'theta'"),
        ({"h": 0.0}, "positive"),
        ({"particles": 0}, "at least 1"),
    ],
)
def test_python_system(arguments: dict[str, Any], fragment: str) -> None:
    from sdeflow.problems.hierarchical import Hierarchical

    numbers = {"particles": 2, "theta": {"h": 0.1}, "x": {"h": 0.1}} | arguments
    with pytest.raises(SdeflowError, match=fragment):
        sdeflow.pgd(Hierarchical(data=3), **numbers)
    with pytest.raises(SdeflowError, match=r"sdeflow\.Model was expected, given int"):
        sdeflow.pgd(3, particles=2, theta={"h": 0.1}, x={"h": 0.1})  # type: ignore[arg-type]


# Any mistake -------------------------------------------------------------------------------------------

values = st.one_of(
    st.integers(-3, 7),
    st.sampled_from([2**40, 2**63, 10**30]).map(lambda n: -n),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -1.0, 1e-320, 1e300]),
    st.booleans(),
    st.sampled_from(
        ["", "all", "pgd", "mpgd-x", "ubu", "nag", "double_well", "cpu", "x.py:Y", "1e-3", "é\n"]
    ),
    st.dates(),
    st.lists(st.integers(-1, 3) | st.text(max_size=2), max_size=3),
    st.dictionaries(
        st.sampled_from(["h", "use", "eta", "model", "self", ""]), st.integers(-1, 3), max_size=2
    ),
)


def places(tables: dict[str, Any], at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all keys, those of tables included."""
    found = []
    for key, value in tables.items():
        found.append((*at, key))
        if isinstance(value, dict):
            found += places(value, (*at, key))
    return found


@st.composite
def mutants(draw: st.DrawFn) -> dict[str, Any]:
    """A valid problem after one to three deletions, changed values, added or renamed keys."""
    tables = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        if not (known := places(tables)):
            break
        *path, key = draw(st.sampled_from(known))
        at = tables
        for part in path:
            at = at[part]
        match draw(st.sampled_from(["delete", "change", "change", "add", "rename"])):
            case "delete":
                del at[key]
            case "change":
                at[key] = draw(values)
            case "add":
                at[draw(st.sampled_from(["h", "use", "mle", "noise", "where", "model"]))] = draw(values)
            case "rename":
                at[key[1:]] = at.pop(key)
    return tables


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(tables=mutants(), variant=st.sampled_from([None, "fast"]))
def test_a_mutated_problem_runs_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Any], variant: str | None
) -> None:
    options = ["--steps", "2", *(["--variant", variant] if variant else [])]
    assert_run_or_refused(tmp_path_factory, tomli_w.dumps(tables), options)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    text=st.text(max_size=60)
    | st.sampled_from(["[run]", "model = 1", "[save]\nevery = 0", "[[model]]", "run.steps = -1"])
    | st.builds(
        lambda at, bad: tomli_w.dumps(VALID)[:at] + bad + tomli_w.dumps(VALID)[at:],
        st.integers(0, 500),
        st.sampled_from(["\x00", "[", '"', "=", "\n", "inf", "9" * 400, chr(92), "\ud7ff", "#"]),
    )
)
def test_any_text_runs_or_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    assert_run_or_refused(tmp_path_factory, text, ["--steps", "2"])


def assert_run_or_refused(factory: pytest.TempPathFactory, text: str, options: list[str]) -> None:
    """`sdeflow run` of the text makes a whole run folder, or says one sentence and makes none."""
    folder = factory.mktemp("mutant")
    (folder / "mutant.toml").write_text(text, encoding="utf-8")
    out, told = folder / "run", io.StringIO()
    argv = ["sdeflow", "run", str(folder / "mutant.toml"), "-q", "--out", str(out), *options]
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(told):
        patch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_:
            main()
    left = {path.name for path in folder.iterdir()} - {"mutant.toml"}
    if exit_.value.code == 2:
        assert told.getvalue().startswith("sdeflow: ")
        assert left == set()
    else:
        assert exit_.value.code in (0, 3)
        assert left == {"run"}
        with xr.open_dataset(out / "trajectory.nc") as run:
            assert run.sizes["time"] >= 1
            assert run.attrs["retcode"] in ("success", "diverged")
    shutil.rmtree(folder)

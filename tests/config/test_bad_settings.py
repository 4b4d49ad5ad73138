"""Bad settings and files get one clear sentence; whatever the mistake, a problem runs or is refused."""

import copy
import io
import shutil
import sys
from contextlib import redirect_stderr
from typing import Any

import pytest
import tomli_w
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from valid import SDE, VALID, Refused

from sdeflow.cli import main


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
    assert len(sentence) < 350, "one sentence, which may have all names of a kind"


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


@pytest.mark.slow
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

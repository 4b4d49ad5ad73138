"""`run.sdeflow`: parameters by name against torch's own cutting, what is measured against its functions."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from commands import Cli, command, program
from pieces import toy
from small import Net, system_of
from torch import nn

import sdeflow
from sdeflow import Save, simulate
from sdeflow.analysis.curves import parameter_curve
from sdeflow.analysis.free_energy import energy_along
from sdeflow.analysis.rates import decay
from sdeflow.errors import SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.problems.linear_energy import LinearEnergy

SAVE = Save(every=2, data="all", particles="all")


class Deep(Net):
    """The same with a module within a module, and a parameter of one number with an axis."""

    def init_theta(self, generator: torch.Generator) -> nn.Module:
        module = nn.Module()
        module.net = nn.Sequential(nn.Linear(6, 2))
        module.scale = nn.Parameter(torch.ones(1))
        return module

    def log_joint(self, theta: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        named = {name.removeprefix("net.0."): value for name, value in theta.items()}
        return super().log_joint(named, x, y) * theta["scale"]


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("stored", [False, True])
def test_flat_vectors_have_the_axes_of_their_parameters(replicas: int, stored: bool, tmp_path: Path) -> None:
    """As torch cuts a flat vector into a module's parameters, at every snapshot."""
    out = tmp_path / "run" if stored else None
    run = simulate(system_of(Deep()), steps=4, save=SAVE, replicas=replicas, out=out)
    theta = run.sdeflow.theta
    module = Deep().init_theta(torch.Generator())
    assert list(theta) == [name for name, _ in module.named_parameters()]
    flat = torch.from_numpy(run.theta.to_numpy())
    for at in np.ndindex(flat.shape[:-1]):
        nn.utils.vector_to_parameters(flat[at], module.parameters())
        for name, value in module.named_parameters():
            np.testing.assert_array_equal(theta[name].values[at], value.detach())
    weight = theta["net.0.weight"]
    lead = ("time",) if replicas == 1 else ("time", "replica")
    assert weight.dims == (*lead, "net.0.weight_dim_0", "net.0.weight_dim_1")
    assert theta["scale"].dims == (*lead, "scale_dim_0")
    np.testing.assert_array_equal(weight.step, run.step)
    with pytest.raises(KeyError, match=r"no parameter 'net\.weight': did you mean 'net\.0\.weight'"):
        theta["net.weight"]


def test_parameters_of_an_energy_have_its_names() -> None:
    motion = {"h": 0.1}
    system = sdeflow.ebipla(LinearEnergy(), particles=2, prior_particles=3, alpha=motion, x=motion)
    run = simulate(system, steps=4, save=SAVE)
    ((name, value),) = run.sdeflow.theta.items()
    assert name.startswith("alpha.")
    np.testing.assert_array_equal(value, run.alpha.values.reshape(value.shape))
    np.testing.assert_array_equal(parameter_curve(run), run.alpha[:, 0])


def test_parameters_that_are_not_whole_are_told(cli: Cli) -> None:
    """Which key to set: at a snapshot, in `show`, and in the log of the run."""
    run = simulate(system_of(Net()), steps=2, save=Save(theta_max=13))
    with pytest.raises(SdeflowError, match=r"save\.theta_max = 14, or take the last one from sdeflow\.load"):
        run.sdeflow.theta  # noqa: B018
    whole = simulate(system_of(Net()), steps=2, save=Save(theta_max=14))
    assert whole.sdeflow.theta["weight"].shape == (2, 2, 6)
    with pytest.raises(SdeflowError, match="a part of theta alone"):
        whole.isel(param=slice(3)).sdeflow.theta  # noqa: B018
    with pytest.raises(SdeflowError, match="no parameters in this dataset"):
        xr.Dataset({"x": 1.0}).sdeflow.theta  # noqa: B018
    told = " ".join(cli("show", "digits", "--set", "save.theta_max=9").out.split())
    assert "save.theta_max = 9" in told
    assert "not saved" not in cli("show", "hierarchical").out


def test_the_log_tells_it_once(tmp_path: Path) -> None:
    simulate(system_of(Net()), steps=2, save=Save(theta_max=13), out=tmp_path / "run")
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count("theta has 14 numbers, more than save.theta_max = 13") == 1
    assert log.count("theta_max=14") == 1


def test_rates_are_those_of_the_function() -> None:
    motion = {"eta": 2000.0, "gamma": 2.0}
    system = sdeflow.mpgd(
        Hierarchical(data=20), particles=50, theta={"h": 5e-4, **motion}, x={"h": 1e-2, **motion}
    )
    run = simulate(system, "expint", steps=1000, replicas=3)
    assert run.sdeflow.rates() == decay(run)


def test_free_energy_finds_the_model_of_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--set", "model.data=5", "--set", "save.data=all", "--steps", 20, "--quiet", "--out", "run"]
    assert command("run", "hierarchical", *few) == 0
    with xr.open_dataset("run/trajectory.nc") as run:
        expected = energy_along(run, Hierarchical(data=5))
        xr.testing.assert_identical(run.sdeflow.free_energy(), expected)
    own = simulate(toy(), steps=4, save=SAVE)
    with pytest.raises(SdeflowError, match=r"does not keep its model: give it, free_energy\(model\)"):
        own.sdeflow.free_energy()
    assert own.sdeflow.free_energy(Hierarchical(data=6, theta_true=2.0)).shape == (3,)


def test_plot_draws_theta_and_the_loss() -> None:
    run = simulate(toy(), steps=8, save=SAVE, replicas=2)
    drawn = {axis.get_title(): axis.lines for axis in run.sdeflow.plot(data=[1]).axes}
    np.testing.assert_allclose(drawn["theta"][0].get_ydata(), run.theta.mean("replica")[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(drawn["theta"][0].get_xdata(), run.step)
    np.testing.assert_allclose(drawn["loss"][0].get_ydata(), run.loss.mean("replica"), rtol=1e-6)
    assert [title for title in drawn if "datum" in title] == ["particles of datum 1"]
    with pytest.raises(SdeflowError, match="nothing to draw"):
        xr.Dataset({"x": 1.0}).sdeflow.plot()


def arviz_is(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", module)


@pytest.mark.parametrize("replicas", [1, 3])
def test_chains_are_replicas_and_draws_are_snapshots(replicas: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arviz_is(SimpleNamespace(InferenceData=lambda **groups: SimpleNamespace(**groups)), monkeypatch)
    run = simulate(system_of(Net()), steps=4, save=SAVE, replicas=replicas)
    found = run.sdeflow.to_arviz()
    weight = found.posterior["weight"]
    assert weight.dims == ("chain", "draw", "weight_dim_0", "weight_dim_1")
    assert found.posterior.sizes["chain"] == replicas
    assert found.posterior["X"].dims == ("chain", "draw", "datum", "particle", "latent")
    flat = run.theta.values.reshape(3, replicas, 14)[..., :12].transpose(1, 0, 2)
    np.testing.assert_array_equal(weight.values.reshape(replicas, 3, 12), flat)
    assert found.sample_stats["loss"].dims == ("chain", "draw")
    assert {"loss", "kinetic_theta", "force_x"} <= {*found.sample_stats.data_vars}


def test_arviz_itself_takes_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, of what its next version will be
        arviz = pytest.importorskip("arviz", exc_type=ImportError)
    run = simulate(toy(sdeflow.kiplmc), steps=20, save=SAVE, replicas=2)
    data = run.sdeflow.to_arviz()
    assert isinstance(data, arviz.InferenceData)
    assert float(arviz.ess(data, var_names=["theta"])["theta"]) > 0


def test_arviz_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    arviz_is(None, monkeypatch)
    with pytest.raises(SdeflowError, match="pip install 'arviz<1'"):
        simulate(toy(), steps=2).sdeflow.to_arviz()


# Where it comes from -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "imports", ["import xarray as xr, sdeflow", "import sdeflow, xarray as xr", "import xarray as xr"]
)
def test_a_file_that_is_opened_has_it(imports: str, tmp_path: Path) -> None:
    """Whatever is imported first; a folder opens too. It needs an install with the entry points of now."""
    if not any(point.name == "sdeflow" for point in entry_points(group="xarray.backends")):
        pytest.fail("install anew: the entry point in xarray.backends is not there")
    simulate(toy(), steps=2, out=tmp_path / "run")
    done = program(
        f"import sys\n{imports}\n"
        "with xr.open_dataset(sys.argv[1] + '/trajectory.nc') as run: print(list(run.sdeflow.theta))\n"
        "with xr.open_dataset(sys.argv[1]) as run: print(list(run.sdeflow.theta), run.attrs['retcode'])",
        tmp_path / "run",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:2] == ["['theta']", "['theta'] success"]


def test_a_run_that_is_simulated_has_it() -> None:
    """In a process that has opened no file."""
    done = program(
        "from sdeflow import mpgd, simulate\nfrom sdeflow.problems.hierarchical import Hierarchical\n"
        "print(list(simulate(mpgd(Hierarchical(data=3), particles=2), steps=2).sdeflow.theta))"
    )
    assert (done.returncode, done.stdout) == (0, "['theta']\n"), done.stderr


def test_it_imports_little() -> None:
    code = (
        "import sys, sdeflow.analysis.accessor\nassert not {'torch', 'scipy', 'matplotlib'} & {*sys.modules}"
    )
    done = program(code)
    assert (done.returncode, done.stderr) == (0, "")


LATE = """
import sys
import sdeflow
from sdeflow.problems.hierarchical import Hierarchical
assert "xarray" not in sys.modules
system = sdeflow.pgd(Hierarchical(data=3), particles=2, theta={"h": 0.01}, x={"h": 0.1})
where = {"out": sys.argv[1]} if len(sys.argv) > 1 else {}
sdeflow.simulate(system, steps=2, device="cpu", **where).sdeflow
"""


@pytest.mark.parametrize("stored", [False, True])
def test_it_is_there_where_a_run_is_the_first_to_need_xarray(stored: bool, tmp_path: Path) -> None:
    done = program(LATE, *([tmp_path / "run"] if stored else []))
    assert done.returncode == 0, done.stderr

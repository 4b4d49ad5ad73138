"""What `sdeflow.load` gives of a run, against the trajectory and the files that the run has left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import command
from pieces import toy
from small import MOTION, Net, system_of

import sdeflow
from sdeflow import Average, Save, SDESystem, simulate
from sdeflow.errors import SdeflowError
from sdeflow.problems.generic import DoubleWell
from sdeflow.problems.linear_energy import LinearEnergy

SAVE = Save(every=2, data="all", particles="all")


def test_a_module_takes_the_parameters_as_they_are(tmp_path: Path) -> None:
    """The flat theta of the trajectory is the module's parameters one after the other; of each replica."""
    out = tmp_path / "run"
    run = simulate(system_of(Net()), steps=6, save=SAVE, replicas=2, average=Average(0.5), out=out)
    for replica in range(2):
        loaded = sdeflow.load(out, replica)
        module = torch.nn.Linear(6, 2)
        assert str(module.load_state_dict(loaded.theta)) == "<All keys matched successfully>"
        flat = torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
        np.testing.assert_array_equal(flat, run.theta[-1, replica])
        assert loaded.average is not None
        average = torch.cat([loaded.average[name].flatten() for name in ("weight", "bias")])
        np.testing.assert_array_equal(average, run.average_theta[-1, replica])
        assert average.dtype == torch.float64
        assert loaded.particles is not None
        np.testing.assert_array_equal(loaded.particles[3], run.X[-1, replica].sel(datum=3))
        assert loaded.step == 6
        assert {"X", "U", "m.weight", "theta.bias"} <= loaded.state.keys()
    with pytest.raises(SdeflowError, match=r"replica must lie in 0\.\.1, given 2"):
        sdeflow.load(out, 2)


def test_it_has_the_model_of_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images that its decoder makes of a latent are those of the network with these weights."""
    monkeypatch.chdir(tmp_path)
    assert command("run", "digits", "--set", "model.images=20", "--steps", 3, "--out", "run", "--quiet") == 0
    loaded = sdeflow.load("run")
    assert loaded.average is None
    assert loaded.particles is not None
    assert loaded.particles.shape[0] == len(loaded.model.data) == 20
    images = loaded.model.decode(loaded.theta, loaded.particles[0])
    module = loaded.model.init_theta(torch.Generator())
    assert isinstance(module, torch.nn.Module)
    module.load_state_dict(loaded.theta)
    assert torch.equal(images, loaded.model.decode(dict(module.named_parameters()), loaded.particles[0]))
    config = Path("run/config.toml")
    config.write_text(config.read_text().replace("hidden = [", "hidden = [7, "))
    with pytest.raises(SdeflowError, match="the model of run has changed"):
        sdeflow.load("run").model  # noqa: B018


def test_the_parameters_of_an_energy_are_in_two_parts(tmp_path: Path) -> None:
    system = sdeflow.ebipla(LinearEnergy(), particles=2, prior_particles=3, alpha=MOTION, x=MOTION)
    run = simulate(system, steps=2, out=tmp_path / "run")
    (name,) = sdeflow.load(tmp_path / "run").theta
    assert name == "alpha." + str(run.alpha_param[0].item())
    assert sdeflow.load(tmp_path / "run").theta[name].item() == run.alpha[-1].item()


def test_what_cannot_be_loaded_is_told(
    tmp_path: Path, stop_before: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SdeflowError, match=r"has no final\.safetensors"):
        sdeflow.load(tmp_path)
    simulate(toy(), steps=2, out=tmp_path / "python")
    with pytest.raises(SdeflowError, match=r"has no config\.toml, which says what its model is"):
        sdeflow.load(tmp_path / "python").model  # noqa: B018
    plain = SDESystem(DoubleWell(), h=0.1, paths=3)
    simulate(plain, "euler_maruyama", steps=2, out=tmp_path / "sde")
    loaded = sdeflow.load(tmp_path / "sde")
    assert (loaded.theta, loaded.average) == ({}, None)
    (tmp_path / "python" / "trajectory.nc").unlink()
    with pytest.raises(SdeflowError, match="has not ended: sdeflow resume"):
        sdeflow.load(tmp_path / "python")

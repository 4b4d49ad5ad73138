"""`sdeflow init`: a folder with a model of one's own, a problem that uses it and a test, to begin from."""

from __future__ import annotations

import re
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from sdeflow.cli.app import app
from sdeflow.errors import SdeflowError

MODEL = '''"""A model of your own, to be changed: what was measured, what is behind it, what is learned."""

import sdeflow
import torch


class MyModel(sdeflow.Model):
    """x_i ~ N(mean, 1) is the true value of datum i, y_ij ~ N(x_i, noise^2) are three measurements of it.

    The one parameter is the mean. It is most likely where it is the mean of all measurements.

    data    D, how many true values there are
    noise   standard deviation of a measurement
    """

    latent_shape = (1,)

    def __init__(self, data: int = 100, noise: float = 0.5) -> None:
        g = torch.Generator().manual_seed(0)
        x = 3 + torch.randn(data, 1, generator=g)
        self.noise = noise
        self.data = x + noise * torch.randn(data, 3, generator=g)  # put your own data here, [D, ...]

    def init_theta(self, generator):
        """The parameters at the start, by name; a torch.nn.Module will do too."""
        return {"mean": torch.zeros(())}

    def log_joint(self, theta, x, y):
        """log p(x, y) but for a constant, [B, N], of particles x [B, N, 1] and data y [B, 3]."""
        prior = -((x[..., 0] - theta["mean"]) ** 2) / 2
        likelihood = -((y[:, None] - x) ** 2).sum(-1) / (2 * self.noise**2)
        return prior + likelihood
'''

PROBLEM = """# sdeflow run $name/$name.toml; every key there is: sdeflow show --full
title = "$name"

[model]
use = "model.py:MyModel"
data = 100            # an argument of MyModel

[system]
use = "mpgd"          # or another of 'sdeflow list'
particles = 100       # a datum; steps, masses and frictions are chosen by the run

[run]
steps = 300
seed = 0
"""

TEST = '''"""MyModel against answers that are known without it."""

import sdeflow
import torch
from torch.distributions import Normal

from .model import MyModel


def test_log_joint_is_that_of_the_distributions():
    """But for a constant, which differences do not have."""
    model, mean = MyModel(data=4), torch.tensor(0.7)
    x = torch.randn(4, 5, 1, generator=torch.Generator().manual_seed(1))
    y = model.data[:, None]
    expected = Normal(mean, 1).log_prob(x).sum(-1) + Normal(x, model.noise).log_prob(y).sum(-1)
    found = model.log_joint({"mean": mean}, x, model.data)
    torch.testing.assert_close(found - found[0, 0], expected - expected[0, 0], rtol=1e-4, atol=1e-4)


def test_training_finds_the_mean_of_all_measurements():
    """Within 5 standard errors over replicas, of the mean over the second half of the run."""
    model = MyModel()
    run = sdeflow.simulate(sdeflow.mpgd(model, particles=20), steps=200, replicas=16, dtype="float64")
    found = run.theta[:, :, 0].where(run.step >= 100).mean("time")
    error = found.std(ddof=1) / 16**0.5
    assert abs(found.mean() - model.data.mean().item()) < 5 * error
'''

PACKAGE = '"""A package, so that the test finds the model."""\n'

FILES = {"__init__.py": PACKAGE, "model.py": MODEL, "$name.toml": PROBLEM, "test_$name.py": TEST}


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the folder, a Python package.")],
) -> None:
    """Make a folder with a model of your own, a TOML file that uses it and a test, which run at once."""
    for path in write(name, Path(name)):
        typer.echo(path)
    typer.echo(f"\nnext:\n  sdeflow run {name}/{name}.toml\n  pytest {name}")


def write(name: str, folder: Path) -> list[Path]:
    """Writes the files, and gives them.

    Raises SdeflowError for a name that no module can have or one has already, and for a folder that is there.
    """
    if not name.isidentifier() or iskeyword(name):
        near = re.sub(r"\W|^(?=\d)", "_", name)
        fix = f"try {near}" if near.isidentifier() and not iskeyword(near) else "such as my_model"
        raise SdeflowError(f"'{name}' cannot name a Python module, a word of letters, digits and _: {fix}")
    if folder.exists():
        raise SdeflowError(f"{folder} is there already: give another name, or remove it")
    if find_spec(name) is not None:  # the test would import that
        raise SdeflowError(f"Python has a module '{name}' already, which would be in the way: try my_{name}")
    files = {folder / Template(file).substitute(name=name): text for file, text in FILES.items()}
    try:
        folder.mkdir()
        for path, text in files.items():
            path.write_text(Template(text).substitute(name=name), encoding="utf-8")
    except OSError as error:
        raise SdeflowError(f"{folder} cannot be written: {error}") from error
    return [*files]

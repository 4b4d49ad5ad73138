"""Samples of what a run has learned: of its model's prior, an energy, or a mixture fitted to particles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sdeflow.analysis.chosen import chosen
from sdeflow.analysis.mixture_prior import components_of, mixture_of
from sdeflow.analysis.pictures import Latents, write_grid, write_planar
from sdeflow.engine.minibatch import evenly
from sdeflow.engine.step import EagerSteps, advance
from sdeflow.errors import SdeflowError
from sdeflow.model.amortised import Amortised
from sdeflow.model.energy_forces import EnergyForces
from sdeflow.model.force_field import ModelField
from sdeflow.model.forces import ModelForces
from sdeflow.model.model import Model, Parameters
from sdeflow.model.rows import Rows
from sdeflow.noise.source import TorchNoise
from sdeflow.seeds import generator
from sdeflow.simulation.load import built_of, parameters_of, refuse_changed
from sdeflow.state import Replicas, State
from sdeflow.system.average import AVERAGE
from sdeflow.system.integrator import Integrator
from sdeflow.system.system import BlockSystem
from sdeflow.trajectory import durable
from sdeflow.trajectory.opening import open_run
from sdeflow.trajectory.provenance import stamp
from sdeflow.trajectory.segments import encode_dataset
from sdeflow.trajectory.stored import stored


def continued(
    system: BlockSystem, scheme: Integrator, state: State, n: int, steps: int, seed: int = 0
) -> Tensor:
    """n latents [n, d] of exp(-U_alpha)/Z, from prior particles that take `steps` more steps of the scheme.

    Each sample starts from a particle of `state` (alpha [a], Z [P, d], and V like it with momenta); where
    there are more samples than particles some start alike and part by their noise.
    """
    forces = system.force_field
    assert isinstance(forces, EnergyForces)
    (block,) = (b for b in system.blocks if b.name == "z")
    block = replace(block, shape=(n, *block.shape[1:]))
    alpha = state["alpha"][None]

    def of_z(t: float, z: State, names: Sequence[str]) -> State:
        return forces(t, {"alpha": alpha, "Z": z["Z"]}, names)

    alone = BlockSystem([block], of_z, h=system.h)
    count = len(state["Z"])
    take = torch.arange(n) % count if n > count else evenly(count, n)
    z = {name: state[name][None, take] for name in block.variables}
    noise = TorchNoise(
        [replace(channel, key="z/samples") for channel in alone.channels],
        scheme.noise_spec(system.h),
        Replicas([seed], z["Z"].dtype, z["Z"].device),
    )
    with torch.no_grad():
        z |= scheme.init(alone, z)
    return advance(EagerSteps(alone, scheme, noise), z, 0, steps)["Z"][0]


SAMPLES, RECONSTRUCTIONS, VALUES = "samples.png", "reconstructions.png", "samples.nc"
ENCODED = 1000
"""Data that are encoded at once where they are not in memory."""

CLOUDS = 4
"""Pictures of the prior particles over time."""


@dataclass(frozen=True)
class Learned:
    """What a run has learned: system (on the CPU), scheme, and of one replica theta and the last state.

    average   the same with the average of the parameters; None where none was kept
    encoded   the same with the encoder of amortised inference, whose X are normals; None where there is none
    """

    system: BlockSystem
    scheme: Integrator
    forces: ModelField
    theta: dict[str, Tensor]
    state: dict[str, Tensor]
    average: Learned | None = None
    encoded: Learned | None = None

    @property
    def model(self) -> Model:
        return self.forces.model

    @property
    def learns_energy(self) -> bool:
        """Whether the prior is an energy that was learned, with particles of its own."""
        return isinstance(self.forces, EnergyForces) and self.forces.prior is not None


def learned(run: Path, replica: int = 0, *, average: bool = False) -> Learned:
    """Reads a run folder.

    average   the average of the parameters in place of the last; all else is of the end of the run

    Raises SdeflowError for a folder that is no run with its configuration, a system without a model, fewer
    replicas than asked for, one that diverged, or an average that was not kept; RunError for a state that
    cannot be read.
    """
    built = built_of(run)
    end, system = stored(run), built.system
    if not isinstance(system, BlockSystem) or system.model_forces is None:
        raise SdeflowError(f"{run} is of a system without a model: there is nothing to sample or to evaluate")
    state = end.of(replica)
    system = BlockSystem([b.of(replica) for b in system.blocks], system.force_field, h=system.h)
    if any(b.auto or b.schedules for b in system.blocks):
        trajectory = open_run(run)
        step = max(0, int(trajectory.attrs["steps_taken"]) - 1)
        system = chosen(system.at(step), trajectory, replica)  # of schedules the last numbers
    system = system.to(state["X"].dtype, torch.device("cpu"))
    last = _of(run, system, built.integrator, state)
    kept = {name.removeprefix(AVERAGE): v for name, v in state.items() if name.startswith(AVERAGE)}
    if kept:
        same = {name: v.to(state[name].dtype) for name, v in kept.items() if name in state}
        last = replace(last, average=_of(run, system, built.integrator, state | same))
    if not average:
        return last
    if last.average is None:
        raise SdeflowError(
            f"{run} has kept no average of its parameters: run it with --set average.decay=0.999, or "
            "leave --average out"
        )
    return last.average


def _of(run: Path, system: BlockSystem, scheme: Integrator, named: Mapping[str, Tensor]) -> Learned:
    """What a run has learned, by what it stored, each parameter and variable by name."""
    assert system.model_forces is not None
    state, layouts = {}, system.model_forces.layouts
    for name, axes in system.axes.items():
        layout = layouts.get(axes.dims[0])
        names = {name: name} if layout is None else {part: f"{name}.{part}" for part in layout.shapes}
        shapes = {name: axes.shape} if layout is None else layout.shapes
        refuse_changed(run, {names[part]: shape for part, shape in shapes.items()}, named)
        own = {part: named[each] for part, each in names.items()}
        state[name] = own[name] if layout is None else layout.flatten(own)
    found = Learned(system, scheme, system.model_forces, parameters_of(named), state)
    return decoder_of(found) if isinstance(found.model, Amortised) else found


def decoder_of(found: Learned) -> Learned:
    """The model without its encoder, and the latents that this makes of the last normals."""
    model, xi = found.model, found.state["X"]
    assert isinstance(model, Amortised)
    with torch.no_grad():
        latents = _encoded(model, found.theta, xi.view(*xi.shape[:2], *model.latent_shape))
    theta, forces = model.own(found.theta), ModelForces(model.plain, found.forces.n_particles)
    state = {"theta": forces.parameters.flatten(theta), "X": latents.reshape(xi.shape)}
    return Learned(found.system, found.scheme, forces, theta, state, encoded=found)


def _encoded(model: Amortised, theta: Parameters, xi: Tensor) -> Tensor:
    """The latents of all data; of data that are not in memory some at a time."""
    at_once = ENCODED if isinstance(model.data, Rows) else len(xi)
    parts = [slice(i, i + at_once) for i in range(0, len(xi), at_once)]
    return torch.cat([model.latents(theta, xi[part], model.data[part]) for part in parts])


def no_mixture(run: Path) -> SdeflowError:
    """What to raise where a run's prior can be no mixture."""
    return SdeflowError(
        f"the prior of {run} is an energy that it learned, with particles of its own: leave --prior out"
    )


def sample(
    run: Path,
    *,
    n: int = 64,
    steps: int = 100,
    seed: int = 0,
    replica: int = 0,
    average: bool = False,
    prior: str = "",
) -> list[Path]:
    """Writes samples of the prior into a run folder, and pictures; gives their paths.

    samples.nc            n latents of p_theta, and where the model can, observations drawn for them
    samples.png           of images: the latents decoded; of points in the plane: data and observations, and
                          the prior's latents over the run
    reconstructions.png   of images: 16 data spread evenly, each above the mean of its particles decoded

    steps     of the particles of a learned energy-based prior, from where the run left them
    average   the average of the parameters in place of the last
    prior     'gmm:K' for a Gaussian mixture fitted to the final particles (`mixture_prior`), whose file is
              then the first that is given, in place of the model's own prior

    Raises as `learned` and `mixture_of`, and SdeflowError for a model that cannot be sampled.
    """
    if n < 1 or steps < 0:
        raise SdeflowError(f"n must be at least 1 and steps at least 0, given {n} and {steps}")
    components = components_of(prior) if prior else 0
    found = learned(run, replica, average=average)
    model, theta = found.model, found.theta
    with_energy = found.learns_energy
    if with_energy and components:
        raise no_mixture(run)
    if not (with_energy or components or model.sample_prior):
        raise SdeflowError(
            f"the model of {run} cannot be sampled, and makes no pictures: it has no sample_prior"
        )
    written = []
    with torch.no_grad():
        if with_energy:
            latents = continued(found.system, found.scheme, found.state, n, steps, seed)
            if not latents.isfinite().all():
                raise SdeflowError(
                    f"the prior particles of {run} diverged within {steps} steps at the parameters that it "
                    "learned: give fewer --steps, or run it with a smaller system.z.h"
                )
        elif components:
            mixture, path = mixture_of(run, found.state["X"], components, replica)
            written.append(path)
            latents = mixture.sample(n, generator(seed, "samples"))
        else:
            latents = model.sample_prior(theta, n, generator(seed, "samples"))
        latents = latents.reshape(n, *model.latent_shape).to(found.state["X"].dtype)
        observed = (
            model.sample_data(theta, latents, generator(seed, "samples", "y")) if model.sample_data else None
        )
    arrays = {"x": latents.flatten(1)} | ({} if observed is None else {"y": observed.flatten(1)})
    axes = {"x": "latent", "y": "coordinate"}
    dataset = xr.Dataset(
        {name: (("sample", axes[name]), value.numpy()) for name, value in arrays.items()},
        attrs={
            "run": run.name,
            "steps": steps if with_energy else 0,
            "seed": seed,
            "parameters": "average" if average else "last",
            "prior": prior or "of the model",
            "history": stamp("sampled"),
        },
    )
    durable.write(run / VALUES, encode_dataset(dataset))
    written.append(run / VALUES)
    if model.image_shape is not None and model.decode:
        return [*written, *_images(run, found, latents)]
    if observed is not None and observed.flatten(1).shape[1] == 2:
        written.append(_planar(run, found, observed, replica))
    return written


def _images(run: Path, found: Learned, latents: Tensor) -> list[Path]:
    model, shape, x = found.model, found.model.image_shape, found.state["X"]
    assert shape is not None
    data, particles = x.shape[:2]
    index = evenly(data, 16)
    with torch.no_grad():
        samples = model.decode(found.theta, latents).reshape(-1, *shape)
        chosen = x[index].reshape(len(index) * particles, *model.latent_shape)
        means = model.decode(found.theta, chosen).reshape(len(index), particles, *shape).mean(1)
    write_grid(run / SAMPLES, samples, columns=max(1, round(len(samples) ** 0.5)))
    pairs = torch.cat([model.data[index].reshape(-1, *shape), means])
    write_grid(run / RECONSTRUCTIONS, pairs, columns=len(index))
    return [run / SAMPLES, run / RECONSTRUCTIONS]


def _planar(run: Path, found: Learned, observed: Tensor, replica: int) -> Path:
    data = found.model.data[:].flatten(1).numpy()
    write_planar(run / SAMPLES, data, observed.flatten(1).numpy(), _latents(run, found, replica))
    return run / SAMPLES


def _latents(run: Path, found: Learned, replica: int) -> Latents | None:
    """What there is to see of latents in the plane whose prior was learned."""
    forces, x = found.forces, found.state["X"]
    trajectory = open_run(run)
    if not isinstance(forces, EnergyForces) or x.shape[-1] != 2 or "Z" not in trajectory:
        return None
    alpha = forces.parameters["alpha"].views(found.state["alpha"])

    def energy(points: NDArray[np.floating]) -> NDArray[np.floating]:
        at = torch.from_numpy(points).to(x.dtype).view(-1, *found.model.latent_shape)
        with torch.no_grad():
            return forces.model.energy(alpha, at).numpy()

    z = trajectory["Z"]
    z = z.isel(replica=replica) if "replica" in z.dims else z
    at = np.unique(np.linspace(0, z.sizes["time"] - 1, CLOUDS).round().astype(int))
    prior = {f"prior particles, step {int(z.step[i]):,}": z.isel(time=i).to_numpy() for i in at}
    return Latents(x.flatten(0, 1).numpy(), prior, energy)

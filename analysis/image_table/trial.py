"""One method trained and scored in a folder, once: what is there already is not done again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import xarray as xr

from sdeflow.analysis.image_table.cost import evaluations
from sdeflow.analysis.image_table.methods import Table
from sdeflow.config.build import build
from sdeflow.config.run import Run
from sdeflow.config.schema import Config
from sdeflow.data.cache import at_hand, cache_folder
from sdeflow.data.datasets import INCEPTION
from sdeflow.system.system import BlockSystem
from sdeflow.trajectory import durable
from sdeflow.trajectory.opening import newest
from sdeflow.trajectory.segments import encode_dataset

SCORES, IMAGE_SEEDS = "scores.nc", 3


@dataclass(frozen=True)
class Looks:
    """How the replicas of a run are scored.

    options      of `sdeflow evaluate`
    images       by which images of the first `IMAGE_SEEDS` replicas are compared with features of Inception;
                 empty for no images
    mixture      'gmm:K' for scores with a mixture as prior too, where the model's own is not an energy
    observable   that the run records, whose last value is a score
    """

    options: Table
    images: Table = field(default_factory=dict)
    mixture: str = ""
    observable: str = ""


def trained(config: Config, folder: Path) -> tuple[Run, xr.Dataset]:
    """A run, and its trajectory in its folder, which is begun, gone on with, or read.

    Raises SdeflowError where the folder holds another run, KeyboardInterrupt where this one is interrupted.
    """
    from sdeflow.simulation.resume import resume_from
    from sdeflow.simulation.solve import solve

    run = build(config)
    solution = resume_from(lambda _: run, folder) if folder.exists() else solve(run, out=folder)
    if solution.retcode == "interrupted":
        raise KeyboardInterrupt(solution.message)
    return run, solution.dataset


def trial(config: Config, folder: Path, looks: Looks) -> xr.Dataset:
    """A run trained and scored, kept in SCORES of its folder. Scores of replicas that diverged are NaN.

    value [seed, parameters, score]    `parameters` are those of `evaluate`, and with the mixture as prior
    evidence_along [seed, parameters, moment]   where it was asked for, after so many steps
    course [seed, moment]              of the measure that its attribute names, the evidence by the last
                                       parameters or the observable, after `evaluations` [moment]
    attrs: evaluations_a_step, seconds a replica, particle_time a step (of X; NaN where it does not add up)
    """
    run, dataset = trained(config, folder)
    asked = json.dumps(asdict(looks), sort_keys=True)
    path = folder / SCORES
    if path.exists():
        with xr.open_dataset(path) as found:
            if found.attrs["asked"] == asked:
                return with_course(found.load(), dataset, looks.observable)
    bad = newest(folder).diverged
    rows = {seed: _scores(folder, r, looks, dataset) for r, seed in enumerate(seeds(config)) if r not in bad}
    a_step = evaluations(run)
    attrs = {
        "asked": asked,
        "evaluations_a_step": a_step,
        "particle_time": particle_time(run),
        "seconds": float(dataset.attrs["seconds"]) / config.run.replicas,
        "steps": config.run.steps,
        "diverged": len(bad),
    }
    along = xr.Variable("seed", list(rows))
    found = xr.concat(rows.values(), along, join="outer") if rows else xr.Dataset()
    found = found.reindex(seed=seeds(config)) if rows else found.assign_coords(seed=seeds(config))
    found = found.assign_attrs(attrs)
    durable.write(path, encode_dataset(found))
    return with_course(found, dataset, looks.observable)


def with_course(found: xr.Dataset, dataset: xr.Dataset, observable: str) -> xr.Dataset:
    """The scores with the course of what is looked at, where it is known on the way."""
    if observable:
        later = dataset[observable].isel(time=slice(1, None))
        values = later.to_numpy().reshape(later.sizes["time"], -1).T
        course = xr.DataArray(
            values, {"seed": found.seed, "moment": later.step.to_numpy()}, ("seed", "moment")
        )
    elif "evidence_along" in found:
        course = found.evidence_along.sel(parameters="last", drop=True)
    else:
        return found
    course.attrs["measure"] = observable or "evidence"
    spent = course.moment.to_numpy() * found.attrs["evaluations_a_step"]
    return found.assign(course=course).assign_coords(evaluations=("moment", spent))


def seeds(config: Config) -> list[int]:
    """Of the replicas of a run."""
    return [config.run.seed + r for r in range(config.run.replicas)]


def particle_time(run: Run) -> float:
    """How far a visit takes the particles of a datum in expectation: h/gamma, or h without a momentum.

    Inner steps add up, and so do the steps that catching up makes good. NaN where particles are drawn anew,
    and their time does not add up.
    """
    assert isinstance(run.system, BlockSystem)
    (block,) = (b for b in run.system.blocks if b.name == "x")
    if block.inner is not None and block.inner.fresh:
        return float("nan")
    steps = 1.0 if block.inner is None else block.inner.steps
    if run.batch is not None and run.batch.extra_evaluations:
        assert run.system.model_forces is not None
        steps += missed(run.system.model_forces.n_data // run.batch.size, run.batch.cap)
    return steps * run.system.h * block.rate / (block.gamma if block.kinetic else 1.0)


def missed(per_epoch: int, cap: int) -> float:
    """The mean of how many steps a datum misses between two visits, at most cap.

    Its places in one epoch and in the next are independent and uniform: n - 1 - a + b of a, b in 0 .. n - 1.
    """
    place = np.arange(per_epoch)
    return float(np.minimum(place[:, None] + place, cap).mean())


def _scores(folder: Path, replica: int, looks: Looks, dataset: xr.Dataset) -> xr.Dataset:
    """Of one replica."""
    from sdeflow.analysis.evaluation import evaluate, read
    from sdeflow.analysis.image_scores import ImageOptions, ImageScores
    from sdeflow.analysis.scores import Options, Subject

    options = Options(**looks.options | {"replica": replica})
    options = replace(options, pictures=options.pictures and replica == 0)
    found = _named(evaluate(folder, options))
    if looks.mixture and "log_z" not in found.score:
        other = replace(options, prior=looks.mixture, along=False, pictures=False)
        mixed = _named(evaluate(folder, other))
        mixed = mixed.assign_coords(parameters=[f"{p}, {looks.mixture}" for p in mixed.parameters.to_numpy()])
        found = xr.concat([found, mixed], "parameters")
    more: dict[str, float] = {}
    if looks.images and replica < IMAGE_SEEDS:
        network = at_hand(INCEPTION) / f"{INCEPTION}.pt"
        asked = ImageOptions(features=network, kept=cache_folder() / "features", **looks.images)
        of_images = ImageScores(Subject(read(folder, replica), options), asked).scores()
        more = {_short(score.name): score.value for score in of_images}
    if looks.observable:
        more[looks.observable] = float(
            dataset[looks.observable].isel(time=-1).to_numpy().reshape(-1)[replica]
        )
    found = found.reindex(score=[*found.score.to_numpy(), *more])
    for name, value in more.items():
        found.value.loc[{"parameters": "last", "score": name}] = value
    return found


def _named(scores: xr.Dataset) -> xr.Dataset:
    """The values of scores, and those along the run."""
    found = scores[["value"]].drop_vars("title")
    if "evidence_along" in scores:
        found = found.merge(
            scores[["evidence_along"]].rename(step="moment").drop_vars("gradient_evaluations")
        )
    return found


def _short(name: str) -> str:
    """What is compared by a score of images: 'kid' of 'kid_train_300'."""
    return name.partition("_")[0]


def evidence(found: xr.Dataset) -> float:
    """Of a run of one seed, by the last parameters; -inf for one that diverged."""
    if "value" not in found:
        return -np.inf
    value = float(found.value.sel(parameters="last", score="evidence").item())
    return value if np.isfinite(value) else -np.inf

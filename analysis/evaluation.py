"""A run's scores, written into its folder: `sdeflow evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
import xarray as xr
from torch import Tensor

from sdeflow.analysis import scores
from sdeflow.analysis.image_scores import ImageOptions, ImageScores, Say
from sdeflow.analysis.samples import Learned, learned
from sdeflow.analysis.scores import Options, Score, Subject, part_of, spread
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.model.model import data_size
from sdeflow.terminal import Progress
from sdeflow.trajectory import durable
from sdeflow.trajectory.layout import CONFIG, EVALUATION, resuming
from sdeflow.trajectory.opening import newest, open_run
from sdeflow.trajectory.provenance import provenance, stamp
from sdeflow.trajectory.segments import encode

LOSS_TOLERANCE = 1e-4
"""Relative difference from the loss that a run recorded, up to which its model is taken to be the same."""


def evaluate(
    run: Path,
    options: Options | None = None,
    progress: Progress | None = None,
    images: ImageOptions | None = None,
    image_progress: Progress | None = None,
    say: Say = lambda _: None,
) -> xr.Dataset:
    """Scores a run, writes evaluation.nc into its folder, and gives what is in it.

    value [score]       evidence: mean log p_theta(y_i), from below in expectation
                        log_z: of a learned energy
                        gap: of data drawn from the model, the bound from above less that from below
                        reconstruction: mean squared error of a pixel of the mean image of particles that
                        start from the prior; own_reconstruction: of the run's own; _each: of their own images
                        kid_..., precision_..., recall_..., fid_...: of images against real ones, where
                        `images` asks for them; the name says which, how many, and how pixels became bytes
    error_over_data     its standard error as data of one law differ; or of KID and its like, as images do
    error_over_chains   that of the estimate for these data, with its bias
    log_evidence, ...   what a score is the mean of, a value a datum

    A score is there where the model states what it takes; the attribute `notes` says what is not.
    Raises SdeflowError for a run that has not ended, has diverged, or whose model has changed, for a plain
    SDE, and for a prior that cannot be sampled; and as `ImageScores`.
    """
    options = options or Options()
    subject = Subject(read(run, options.replica), options, progress)
    image_scores = ImageScores(subject, images) if images else None  # mistakes are said before the rest
    found, notes = _scores(subject)
    if image_scores:
        found, notes = found + image_scores.scores(image_progress, say), notes + image_scores.notes
    arrays = {name: (score.axis, values) for score in found for name, values in score.each.items()}
    dataset = xr.Dataset(
        {
            "value": ("score", [score.value for score in found]),
            "error_over_data": ("score", [score.over_data for score in found]),
            "error_over_chains": ("score", [score.over_chains for score in found]),
            **arrays,
        },
        coords={
            "score": [score.name for score in found],
            "title": ("score", [score.title for score in found]),
            "datum": subject.index.numpy(),
        },
        attrs={
            "run": run.name,
            "scored": subject.of,
            "steps_taken": int(open_run(run).attrs["steps_taken"]),
            "notes": "; ".join(notes),
            **{name: value for name, value in asdict(options).items() if value is not None},
            **(image_scores.attrs if image_scores else {}),
            **provenance(subject.like.device),
            "dtype": str(subject.like.dtype).removeprefix("torch."),
            "history": stamp("evaluated"),
        },
    )
    durable.write(run / EVALUATION, encode(dataset))
    return dataset


def _scores(subject: Subject) -> tuple[list[Score], list[str]]:
    """All scores that there can be, and why there are not more."""
    found, ladder = scores.evidence(subject)
    notes = subject.notes
    if subject.learns_energy:
        notes.append("no gap of bounds: a learned energy gives no exact draws")
    elif not subject.simulates:
        notes.append(f"no gap of bounds: {type(subject.model).__name__} has no sample_data")
    else:
        found.append(scores.gap(subject, ladder))
    if subject.decodes:
        found += scores.reconstructions(subject)
    else:
        notes.append(f"no reconstructions: {type(subject.model).__name__} has no decode")
    return found, notes


def read(run: Path, replica: int = 0) -> Learned:
    """What a run has learned, where it ended well and its model is what it was; raises as `evaluate`."""
    attrs = (trajectory := open_run(run)).attrs
    if attrs["retcode"] not in ("success", "diverged"):
        raise SdeflowError(
            f"{run} has not ended, it took {attrs['steps_taken']:,} of {attrs['steps']:,} steps: go on "
            f"with it by '{resuming(run)}'"
        )
    if attrs["retcode"] == "diverged" and (why := newest(run).diverged.get(replica)):
        raise SdeflowError(f"replica {replica} of {run} diverged, {why}: there is nothing to evaluate")
    found = learned(run, replica)
    batch, data = load_config(run / CONFIG).batch, data_size(found.model)
    seen = spread(data, data if batch is None else batch.size)  # as MiniBatches.observe has it
    recorded = float(trajectory["loss"].isel(time=-1).to_numpy().reshape(-1)[replica])
    now = _loss(found, seen)
    if not abs(now - recorded) <= LOSS_TOLERANCE * (1 + abs(recorded)):
        raise SdeflowError(
            f"the model of {run} has changed: its loss was {recorded:.7g} at the end and is {now:.7g} now; "
            "give back the code and the data that it was run with"
        )
    return found


def _loss(found: Learned, data: Tensor, at_once: int = 1000) -> float:
    """Mean over some data, by their indices, and over particles of -l_i at the end of the run."""
    x, model, total = found.state["X"], found.model, 0.0
    with torch.no_grad():
        for piece in data.split(at_once):
            at = x[piece].view(-1, x.shape[1], *model.latent_shape)
            total -= float(model.log_joint(found.theta, at, part_of(model.data, piece)).double().sum())
    return total / (len(data) * x.shape[1])

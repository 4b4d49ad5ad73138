"""A run's scores, written into its folder: `sdeflow evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import count
from pathlib import Path

import torch
import xarray as xr
from torch import Tensor

from sdeflow.analysis import scores
from sdeflow.analysis.annealing import Tick
from sdeflow.analysis.image_scores import ImageOptions, ImageScores, Say
from sdeflow.analysis.mixture_prior import Mixture, components_of, mixture_of
from sdeflow.analysis.moments import Moment, moments
from sdeflow.analysis.samples import Learned, learned, no_mixture
from sdeflow.analysis.score_pictures import draw
from sdeflow.analysis.scores import OWN, Options, Score, Subject, part_of
from sdeflow.config.schema import load_config
from sdeflow.engine.minibatch import evenly_of
from sdeflow.errors import SdeflowError
from sdeflow.model.model import data_size
from sdeflow.model.precision import bfloat16_products, float32_products
from sdeflow.parallel.shard import Shard
from sdeflow.terminal import Progress
from sdeflow.trajectory import durable
from sdeflow.trajectory.layout import CONFIG, EVALUATION, resuming
from sdeflow.trajectory.opening import newest, open_run
from sdeflow.trajectory.provenance import provenance, stamp
from sdeflow.trajectory.segments import encode_dataset

LOSS_TOLERANCE = {"full": 1e-4, "tf32": 1e-3, "bf16": 1e-3}
"""Relative difference from the loss that a run recorded, up to which its model is taken to be the same, by
the precision of the run."""

APART = ("dtype", "along", "pictures")
"""Options that are no attributes of evaluation.nc, or not as they were given."""


@float32_products()
def evaluate(
    run: Path,
    options: Options | None = None,
    progress: Progress | None = None,
    images: ImageOptions | None = None,
    image_progress: Progress | None = None,
    say: Say = lambda _: None,
) -> xr.Dataset:
    """Scores a run, writes evaluation.nc and pictures into its folder, and gives what is in the first.

    value [parameters, score]
                        evidence: mean log p_theta(y_i), from below in expectation
                        log_z: of a learned energy
                        gap: of data drawn from the model, the bound from above less that from below
                        reconstruction: mean squared error of a pixel of the mean image of particles that
                        start from the prior; own_reconstruction: of the run's own; _each: of their own images
                        kid_..., precision_..., recall_..., fid_...: of images against real ones, where
                        `images` asks for them; the name says which, how many, and how pixels became bytes
    error_over_data     its standard error as data of one law differ; or of KID and its like, as images do
    error_over_chains   that of the estimate for these data, with its bias
    log_evidence, ...   what a score is the mean of, a value a datum
    evidence_along [parameters, step]
                        the evidence at moments of the run (`moments`); evidence_along_error_.. are its errors

    `parameters` are 'last', and 'average' where the run has kept one. Both are scored with the same noise.
    A score is there where the model states what it takes; the attribute `notes` says what is not.
    Raises SdeflowError for a run that has not ended, has diverged, or whose model has changed, for a plain
    SDE, for a prior that cannot be sampled or is not as stated, and what `moments` and `ImageScores` raise.
    """
    options = options or Options()
    end = read(run, options.replica)
    mixture = _mixture(run, end, options)
    when = moments(run, end, options.replica) if options.along else []
    subjects = {name: Subject(of, options, mixture) for name, of in _of_both(end).items()}
    # mistakes are said before the rest
    looks = {name: ImageScores(subject, images) for name, subject in subjects.items() if images}
    total = sum(s.moves + len(when[:-1]) * s.moves_of_evidence for s in subjects.values())
    tick, found, notes = ticking(total, progress), {}, list[str]()
    for name, subject in subjects.items():
        subject.tick = tick
        found[name] = _scores(subject)
        if name in looks:
            found[name] += looks[name].scores(image_progress, say)
            subject.notes += looks[name].notes
        news = [note for note in subject.notes if note not in notes]
        notes += news if name == "last" else [f"of the {name}: {note}" for note in news]
    dataset = xr.concat(map(_as_dataset, found.values()), xr.Variable("parameters", list(found)))
    if when:
        dataset = dataset.merge(_along(when, dataset, options, tick))
    subject = subjects["last"]
    dataset = dataset.assign_coords(datum=subject.index.numpy()).assign_attrs(
        {
            "run": run.name,
            "scored": subject.of,
            "steps_taken": int(open_run(run).attrs["steps_taken"]),
            "notes": "; ".join(notes),
            **{name: value for name, value in asdict(options).items() if name not in APART},
            "prior": options.prior or OWN,
            **(looks["last"].attrs if looks else {}),
            **provenance(subject.like.device),
            "dtype": str(subject.like.dtype).removeprefix("torch."),
            "history": stamp("evaluated"),
        }
    )
    pictures = draw(run, subject, dataset) if options.pictures else []
    dataset.attrs["pictures"] = ", ".join(path.name for path in pictures)
    durable.write(run / EVALUATION, encode_dataset(dataset))
    return dataset


def _as_dataset(scores: Sequence[Score]) -> xr.Dataset:
    """Values and errors along `score`, and what is behind them."""
    each = {name: (score.axis, values) for score in scores for name, values in score.each.items()}
    return xr.Dataset(
        {
            "value": ("score", [score.value for score in scores]),
            "error_over_data": ("score", [score.over_data for score in scores]),
            "error_over_chains": ("score", [score.over_chains for score in scores]),
            **each,
        },
        coords={
            "score": [score.name for score in scores],
            "title": ("score", [score.title for score in scores]),
        },
    )


def _of_both(found: Learned) -> dict[str, Learned]:
    """What was learned, with the last parameters and with their average where it was kept."""
    return {"last": found} | ({} if found.average is None else {"average": found.average})


def _along(when: Sequence[Moment], scores_now: xr.Dataset, options: Options, tick: Tick) -> xr.Dataset:
    """The evidence at moments of a run, the last of which is that of the scores."""
    rows = {name: list[Score]() for name in scores_now.parameters.to_numpy().tolist()}
    for moment in when[:-1]:
        for name, of in _of_both(moment.found).items():
            subject = Subject(of, options)
            subject.tick = tick
            rows[name].append(scores.evidence(subject)[0][0])
    now = scores_now.sel(score="evidence")
    return xr.Dataset(
        {
            f"evidence_along{suffix}": (
                ("parameters", "step"),
                [
                    [*(getattr(score, key) for score in row), float(now[last].sel(parameters=name))]
                    for name, row in rows.items()
                ],
            )
            for key, suffix, last in (
                ("value", "", "value"),
                *((error, f"_error_{error}", f"error_{error}") for error in ("over_data", "over_chains")),
            )
        },
        coords={
            "step": [moment.step for moment in when],
            "gradient_evaluations": ("step", [moment.evaluations for moment in when]),
        },
    )


def ticking(total: int, progress: Progress | None) -> Tick:
    """What is to be called after each of so many moves."""
    done = count(1)
    return lambda: progress(next(done), total, None) if progress else None


def _scores(subject: Subject) -> list[Score]:
    """All scores that there can be; why there are not more is noted."""
    found, ladder = scores.evidence(subject)
    notes, name = subject.notes, type(subject.found.model).__name__
    if subject.learns_energy:
        notes.append("no gap of bounds: a learned energy gives no exact draws")
    elif not subject.simulates:
        notes.append(f"no gap of bounds: {name} has no sample_data")
    else:
        found.append(scores.gap(subject, ladder))
    if subject.decodes:
        found += scores.reconstructions(subject)
    else:
        notes.append(f"no reconstructions: {name} has no decode")
    return found


def _mixture(run: Path, found: Learned, options: Options) -> Mixture | None:
    """What is to be the prior in place of the model's own, by its file in the run folder."""
    if not options.prior:
        return None
    if found.learns_energy:
        raise no_mixture(run)
    return mixture_of(run, found.state["X"], components_of(options.prior), options.replica)[0]


def read(run: Path, replica: int = 0) -> Learned:
    """What a run has learned, where it ended well and its model is what it was; raises as `evaluate`."""
    attrs = (trajectory := open_run(run)).attrs
    if attrs["retcode"] not in ("success", "stopped", "diverged"):
        raise SdeflowError(
            f"{run} has not ended, it took {attrs['steps_taken']:,} of {attrs['steps']:,} steps: go on "
            f"with it by '{resuming(run)}'"
        )
    if attrs["retcode"] == "diverged" and (why := newest(run).diverged.get(replica)):
        raise SdeflowError(f"replica {replica} of {run} diverged, {why}: there is nothing to evaluate")
    found = learned(run, replica)
    config, data = load_config(run / CONFIG), data_size(found.model)
    seen = torch.arange(data)
    if config.batch is not None:  # as MiniBatches.observe has it
        strata = None if config.parallel is None else config.parallel.strata
        seen = evenly_of(Shard.of(data, strata=strata), config.batch.size)
    recorded = float(trajectory["loss"].isel(time=-1).to_numpy().reshape(-1)[replica])
    precision = config.run.precision
    now = _loss(found, seen, bf16=precision == "bf16")
    if not abs(now - recorded) <= LOSS_TOLERANCE[precision] * (1 + abs(recorded)):
        raise SdeflowError(
            f"the model of {run} has changed: its loss was {recorded:.7g} at the end and is {now:.7g} now; "
            "give back the code and the data that it was run with"
        )
    return found


def _loss(found: Learned, data: Tensor, at_once: int = 1000, *, bf16: bool) -> float:
    """Mean over some data, by their indices, and over particles of -l_i at the end of the run.

    bf16   with the model's products in bfloat16, as the run that recorded it
    """
    found = found.encoded or found
    x, model, total = found.state["X"], found.model, 0.0
    with torch.no_grad(), bfloat16_products(x) if bf16 else nullcontext():
        for piece in data.split(at_once):
            at = x[piece].view(-1, x.shape[1], *model.latent_shape)
            total -= float(model.log_joint(found.theta, at, part_of(model.data, piece)).double().sum())
    return total / (len(data) * x.shape[1])

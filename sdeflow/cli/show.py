"""What a problem is and what a comparison found, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from sdeflow.callbacks.callback import identity
from sdeflow.cli.cost import cost
from sdeflow.config.run import Run
from sdeflow.system.block import Block, span
from sdeflow.system.system import BlockSystem
from sdeflow.terminal import first_line, out, shown, table

if TYPE_CHECKING:
    from sdeflow.config.schema import Config


def equations(b: Block) -> list[str]:
    """The block's SDE on its own clock, or its optimizer, with its numbers left as symbols."""
    q, f = b.position, f"f_{b.name}"
    if b.optimizer is not None:
        return [str(b.optimizer), *(line.format(q=q, f=f) for line in b.optimizer.equations)]
    if b.momentum is None:
        return [f"d{q} = {f} dt" + (" + √(2T) dW" if b.temperature > 0 else "")]
    p = b.momentum
    return [
        f"d{q} = η {p} dt",
        f"d{p} = (−γη {p} + {f}) dt" + (" + √(2γT) dW" if b.temperature > 0 else ""),
    ]


def describe(config: Config, run: Run, variants: Sequence[str]) -> None:
    """Prints what a problem is and what a run of it takes."""
    out.print(Text(shown(config.title or config.system.use), style="bold"))
    if config.cpu_note:
        out.print(shown(f"note: {config.cpu_note}"), markup=False)
    if config.model is not None:
        from sdeflow.config.catalogue import find

        model = f"{config.model.use}: {first_line(find('models', config.model.use))}"
        out.print(shown(f"model   {model}"), markup=False)
        if config.model.energy_prior is not None:
            out.print("        with a neural energy in place of its prior")
        if (tau := config.model.instance_noise) is not None:
            out.print(f"        with noise of standard deviation {tau:g} added to its data")
    out.print(shown(f"system  {config.system.use}"), markup=False)
    out.print(f"scheme  {run.integrator}: {first_line(run.integrator)}\n", markup=False)
    if run.system.blocks:
        assert isinstance(run.system, BlockSystem)
        _describe_blocks(run.system)
    shapes = [[name, " × ".join(map(str, a.shape)), ", ".join(a.dims)] for name, a in run.system.axes.items()]
    table("State of one replica", ("variable", "shape", "axes"), shapes)
    table("What a run takes", ("", ""), cost(run))
    for callback in run.callbacks:
        out.print(shown(f"callback {identity(callback)}"), markup=False)
    if variants:
        out.print(shown(f"variants (--variant NAME): {', '.join(variants)}"), markup=False)


def _describe_blocks(system: BlockSystem) -> None:
    rows = [
        [
            b.name,
            "\n".join(equations(b)),
            _number(b, "h", system.step_of(b)),
            b.number("eta") if b.kinetic else "",
            _number(b, "gamma", b.number("gamma")) if b.kinetic else "",
            _number(b, "temperature", b.number("temperature")),
            _product(b, system.h) if b.kinetic and not (b.auto or b.schedules) else "",
        ]
        for b in system.blocks
    ]
    table("Blocks", ("block", "on its own clock", "step h", "η", "γ", "T", "γηh"), rows)
    field = system.force_field
    if field.about:
        out.print(shown(f"{field.about}\n"), markup=False)
    if field.warning:
        out.print(shown(f"warning: {field.warning}\n"), markup=False)
    for b in system.blocks:
        if b.inner is not None:
            out.print(shown(f"{b.name} takes {b.inner}\n"), markup=False)
        for name in b.schedules:
            out.print(shown(f"{name} of {b.name}: {b.number(name)}\n"), markup=False)


def _number(b: Block, name: str, words: str) -> str:
    return "schedule" if name in b.schedules else words


def _product(b: Block, h: float) -> str:
    """gamma eta h, of a grid's blocks from the least to the most."""
    return span([one.gamma * one.eta * one.rate * h for one in b.replicas])


def tell_scores(scores: Any, path: Path) -> None:
    """Prints the scores of a run, which are in a file."""
    from sdeflow.analysis.comparison.report import score_numbers, to_digits
    from sdeflow.analysis.scores import OWN

    titles, of = scores.title.to_numpy().tolist(), scores.parameters.to_numpy().tolist()
    numbers = [list(zip(*score_numbers(scores.sel(parameters=one)), strict=True)) for one in of]
    rows = [
        [title if i == 0 else "", *[of[i]] * (len(of) > 1), *to_digits(*three)]
        for title, beside in zip(titles, zip(*numbers, strict=True), strict=True)
        for i, three in enumerate(beside)
    ]
    columns = ("score", *["parameters"] * (len(of) > 1), "value", "± over data", "± over chains")
    prior = scores.attrs["prior"]
    table(f"Scores of {scores.attrs['run']}{f', prior {prior}' * (prior != OWN)}", columns, rows)
    if "evidence_along" in scores:
        _tell_along(scores)
    about = "evidence in nats, a bound from below; reconstruction: mean squared error a pixel"
    out.print(shown("; ".join(filter(None, [about, scores.attrs["notes"]]))), markup=False)
    for name in filter(None, [path.name, *scores.attrs["pictures"].split(", ")]):
        out.print(shown(str(path.with_name(name))), markup=False, soft_wrap=True)


def _tell_along(scores: Any) -> None:
    from sdeflow.analysis.comparison.report import to_digits

    names = [f"evidence_along{suffix}" for suffix in ("", "_error_over_data", "_error_over_chains")]
    several, rows = scores.sizes["parameters"] > 1, []
    spent_by = scores.gradient_evaluations.to_numpy()
    for step, spent in zip(scores.step.to_numpy(), spent_by, strict=True):
        for i, of in enumerate(scores.parameters.to_numpy().tolist()):
            numbers = [float(scores[name].sel(parameters=of, step=step)) for name in names]
            first = [f"{step:,}", f"{spent:,}"] if i == 0 else ["", ""]
            rows.append([*first, *[of] * several, *to_digits(*numbers)])
    columns = ("steps", "gradient evaluations", *["parameters"] * several)
    table("Evidence along the run", (*columns, "evidence", "± over data", "± over chains"), rows)


def tell_compared(rows: Sequence[Any], folder: Path) -> None:
    """Prints what a comparison of runs in a folder found, a row a run."""
    from sdeflow.analysis.comparison.report import notes, plain_cells

    columns = ("integrator", "ended", "fitted rate", "predicted", "loss")
    table("Comparison, rates in 1e-3 a step", columns, [plain_cells(row) for row in rows])
    said = [f"{', '.join(labels)}: {note}" for note, labels in notes(rows).items()]
    out.print(shown("".join(f"{line}\n\n" for line in said)), markup=False, end="")
    files = f"{folder / 'report.html'}\n{folder / 'compare.nc'}"
    out.print(shown(files), markup=False, soft_wrap=True)

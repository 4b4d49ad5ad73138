"""The best step of theta against the batch, on the toy model, for four ways in which theta moves.

    python -m sdeflow.analysis.studies.batch_size --out batch_size.png

pgd with theta moved by the plain gradient step, RMSProp, Adam or Lion, on batches b = 1, 2, 4, ..., D of D
data. Every step of theta, by factors of two, and every seed is a replica of one run for each b. A step is as
good as it is soon at E - E* < 1 for good, counted in gradients of one datum, b a step. Its speed is the mean
over seeds of 1/count, between the steps that were tried a straight line in log h. Of it are taken

    best        the top of the parabola through the fastest step and its neighbours
    largest     the largest step that has four fifths of the best speed

Particles of data that a step does not see stand still, so that b changes their clock as well as theta's
noise. Two arms part these, without catching up in both:

    held        X's step h_x is the same at every b: its particles go b h_x / D in a step of theta
    scaled      b h_x / D is the same at every b

`sdeflow.analysis.batch_laws` states the laws, which are fitted to b < D in b / (1 - b/D), for a batch has no
datum twice; intervals are of a bootstrap over seeds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from torch import Tensor

from sdeflow import Batch, Save, Snapshot, simulate
from sdeflow.analysis.batch_laws import LAWS, REACH, Fitted, fitted, with_replacement
from sdeflow.analysis.curves import open_frame
from sdeflow.analysis.entropy import log_det_bias
from sdeflow.analysis.studies.race import reached
from sdeflow.analysis.studies.script import markdown, parser, write
from sdeflow.errors import DivergenceWarning, SdeflowError
from sdeflow.problems.hierarchical import Hierarchical
from sdeflow.system.block import Block
from sdeflow.system.optimizers import SGD, Adam, Lion, RMSPropOptimizer
from sdeflow.system.published import pgd
from sdeflow.system.rule import Memory, Optimizer
from sdeflow.terminal import counted

DATA, PARTICLES, SEEDS, MLE = 32, 32, 8, 5.0
LEVEL = 1.0
"""Of E - E*, in nats."""
SHARE, DRAWS = 0.8, 200
STEP = 0.1
"""h_x of the arm that holds it, and at b = 1 of the other; a step heats the clouds by 0.003 nats a datum."""
DURATION = 5.5
"""Of a run in all, in times of which the particles' slow mode, of rate one, takes one to lose a factor e."""
SNAPSHOTS = 110

Array = NDArray[np.float64]


def _powers(low: int, high: int) -> Array:
    return np.exp2(np.arange(low, high, dtype=np.float64))


RULES: dict[str, tuple[Optimizer, Array]] = {
    "plain": (SGD(), _powers(-12, -3)),
    "rmsprop": (RMSPropOptimizer(), _powers(-9, 3)),
    "adam": (Adam(), _powers(-7, 6)),
    "lion": (Lion(), _powers(-10, 1)),
}
"""By name, a rule and the steps that are tried."""

ARMS: dict[str, Callable[[int], float]] = {
    "held": lambda b: STEP,
    "scaled": lambda b: STEP / b,
}
"""h_x of a batch b."""


@dataclass(frozen=True)
class Spread(Optimizer):
    """A rule whose displacement is in proportion to h, with a step of its own for every replica.

    rule      moves a position by h times something that does not depend on h, and has no weight decay
    factors   of each replica, on h
    """

    rule: Optimizer
    factors: tuple[float, ...]

    name = "spread"

    def start(self, block: Block) -> Memory:
        return self.rule.start(block)

    def slots(self, block: Block) -> Sequence[str]:
        return self.rule.slots(block)

    def __call__(self, q: Tensor, f: Tensor, memory: Memory, h: float) -> tuple[Tensor, Memory]:
        moved, memory = self.rule(torch.zeros_like(q), f, memory, h)
        return q + q.new_tensor(self.factors)[:, None] * moved, memory


class Found(NamedTuple):
    """What runs by a rule found.

    batches, steps   b and h that were tried, of `data` data
    counts           gradients of one datum until the level, [b, h, seed]
    chosen           by 'best' and 'largest' the steps [b], and those of the bootstrap [draws, b]
    """

    rule: str
    arm: str
    data: int
    batches: Array
    steps: Array
    counts: Array
    chosen: dict[str, tuple[Array, Array]]

    def fits(self, which: str) -> list[Fitted]:
        """Every law through the chosen steps of b < D, the likeliest first."""
        h, again = self.chosen[which]
        part = self.batches < self.data
        b = with_replacement(self.batches[part], self.data)
        return sorted((fitted(law, b, h[part], again[:, part]) for law in LAWS), key=lambda f: f.fit.aic)


def best(steps: Array, speeds: Array) -> float:
    """The top of the parabola in log h through the fastest step and its neighbours; at an edge that step."""
    i = int(speeds.argmax())
    if not 0 < i < len(steps) - 1:
        return float(steps[i])
    left, top, right = speeds[i - 1 : i + 2]
    return float(steps[i] * (steps[i + 1] / steps[i]) ** ((right - left) / (2 * (2 * top - left - right))))


def largest(steps: Array, speeds: Array) -> float:
    """The largest step that has `SHARE` of the best speed, by straight lines; at an edge the last."""
    enough = SHARE * speeds.max()
    i = int(np.flatnonzero(speeds >= enough)[-1])
    if i == len(steps) - 1:
        return float(steps[i])
    part = (speeds[i] - enough) / (speeds[i] - speeds[i + 1])
    return float(steps[i] * (steps[i + 1] / steps[i]) ** part)


def excess_energy(x: Array, theta: Array, model: Hierarchical) -> Array:
    """E - E* [R] of clouds x [R, D, N], taken to be Gaussian, without the bias that N particles give it.

    sum_i KL(q_i | posterior_i) + D (theta - mean y)^2 / (2 (1 + s^2))
    """
    y, v, n = model.data.numpy()[:, 0], 1 / (1 + 1 / model.variance), x.shape[-1]
    with np.errstate(all="ignore"):  # of clouds that diverge
        mean, var = x.mean(-1), x.var(-1, ddof=1)
        off = (mean - v * (y + theta[:, None] / model.variance)) ** 2
        divergence = ((var * (1 - 1 / n) + off) / v - 1 - np.log(var / v) + log_det_bias(n, 1)) / 2
        marginal = len(y) * (theta - y.mean()) ** 2 / (2 * (1 + model.variance))
        return np.asarray(divergence.sum(1) + marginal)


def counted_to_level(rule: str, arm: str, b: int, *, data: int, seeds: int) -> Array:
    """Gradients of one datum until E - E* stays below LEVEL, [h, seed]; inf where it does not."""
    optimizer, steps = RULES[rule]
    model = Hierarchical(data=data, mle=MLE)
    h_x = ARMS[arm](b)
    total = round(DURATION * data / (b * h_x))
    factors = tuple(float(h / steps[0]) for h in steps for _ in range(seeds))
    system = pgd(
        model,
        particles=PARTICLES,
        theta={"h": float(steps[0]), "optimizer": Spread(optimizer, factors)},
        x={"h": h_x},
    )
    at: list[int] = []
    values: list[Array] = []

    def look(seen: Snapshot) -> None:
        at.append(seen.step)
        x, theta = seen.state["X"][..., 0].double(), seen.theta["theta"].double()
        values.append(excess_energy(x.numpy(), theta.numpy(), model))

    save = Save(every=max(1, total // SNAPSHOTS), data=1, particles=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)  # the largest steps may
        simulate(
            system,
            "euler_maruyama",
            steps=total,
            replicas=len(factors),
            save=save,
            batch=Batch(b),
            callbacks=look,
        )
    series = xr.DataArray(np.array(values), dims=("time", "replica"), coords={"step": ("time", at)})
    return b * reached(series, LEVEL).reshape(len(steps), seeds)


def found(rule: str, arm: str, counts: Array, batches: Sequence[int], data: int) -> Found:
    """The steps that counts [b, h, seed] choose, with as many seeds drawn anew for each b of D data."""
    steps, speeds = RULES[rule][1], 1 / counts
    picked = np.random.default_rng(0).integers(
        counts.shape[2], size=(DRAWS, len(batches), 1, counts.shape[2])
    )
    again = np.take_along_axis(speeds[None], picked, 3).mean(3)
    chosen = {
        by.__name__: (
            np.array([by(steps, s) for s in speeds.mean(2)]),
            np.array([[by(steps, s) for s in each] for each in again]),
        )
        for by in (best, largest)
    }
    return Found(rule, arm, data, np.array(batches, np.float64), steps, counts, chosen)


def measure(seeds: int = SEEDS, data: int = DATA) -> list[Found]:
    """Every rule in both arms; raises SdeflowError for fewer than two seeds, or for too few data."""
    if seeds < 2:
        raise SdeflowError(f"an interval needs two seeds or more, given {seeds}: take --seeds 8, say")
    batches = [2**k for k in range(data.bit_length()) if 2**k <= data]
    if sum(b < data for b in batches) < 3:
        raise SdeflowError(f"laws are fitted to b = 1, 2, 4 at least: take 5 data or more, given {data}")
    results = []
    with counted("run", len(RULES) * len(ARMS) * len(batches)) as tick:
        for rule in RULES:
            for arm in ARMS:
                counts = []
                for b in batches:
                    counts.append(counted_to_level(rule, arm, b, data=data, seeds=seeds))
                    tick()
                results.append(found(rule, arm, np.array(counts), batches, data))
    return results


def row(result: Found, which: str) -> dict[str, str]:
    """A line of the table."""
    h, _ = result.chosen[which]
    fits = {f.fit.law: f for f in result.fits(which)}
    return {
        "rule": result.rule,
        "arm": result.arm,
        "step": which,
        "h at b = 1": f"{h[0]:.2g}",
        f"at {result.batches[-1]:.0f}": f"{h[-1]:.2g}",
        **{f"{law}: B": interval(fits[law], result) for law in LAWS},
        **{f"{law}: AIC": f"{fits[law].fit.aic:.1f}" for law in LAWS},
    }


def interval(found: Fitted, result: Found) -> str:
    """B with its interval, whose ends are '-' where the batches do not bound it."""
    b = with_replacement(result.batches[result.batches < result.data], result.data)
    bounds = (1.5 * b.min() / REACH, b.max() * REACH / 1.5)
    middle, low, high = (
        f"{v:.2g}" if bounds[0] < v < bounds[1] else "-" for v in (found.fit.noise, *found.noise)
    )
    return f"{middle} ({low} to {high})"


def draw(results: Sequence[Found]) -> Figure:
    """A panel for each rule: the steps that are chosen against b, in both arms, and their likeliest laws."""
    figure = Figure(figsize=(11.5, 3.4), layout="constrained")
    panels = figure.subplots(1, len(RULES), squeeze=False)[0]
    for panel, rule in zip(panels, RULES, strict=True):
        for result in (r for r in results if r.rule == rule):
            b = result.batches
            fine = np.geomspace(b[0], b[b < result.data][-1], 100)
            for which, marker in (("best", "o"), ("largest", "^")):
                h, again = result.chosen[which]
                colour = f"C{list(ARMS).index(result.arm)}"
                ends = np.abs(np.quantile(again, (0.025, 0.975), axis=0) - h)
                panel.errorbar(
                    b, h, ends, fmt=marker, ms=4, color=colour, capsize=2, lw=0.8,
                    mfc=colour if which == "largest" else "white", label=f"{which}, h_x {result.arm}",
                )  # fmt: skip
                style = "-" if which == "largest" else ":"
                panel.plot(
                    fine,
                    result.fits(which)[0].fit(with_replacement(fine, result.data)),
                    color=colour,
                    lw=1,
                    ls=style,
                )
        panel.set(xscale="log", yscale="log", xlabel="batch b", title=rule)
        panel.set_xticks(result.batches, [f"{v:.0f}" for v in result.batches])
        panel.xaxis.set_minor_formatter(NullFormatter())
        open_frame(panel)
    panels[0].set_ylabel("step h of theta")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def main() -> None:
    """The script."""
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("batch_size.png"), help="figure to write")
    options.add_argument("--seeds", type=int, default=SEEDS)
    given = options.parse_args()
    try:
        results = measure(given.seeds)
    except SdeflowError as error:
        options.error(str(error))
    print(markdown([row(r, which) for r in results for which in r.chosen]), end="\n\n")
    write(given.out, draw(results))


if __name__ == "__main__":
    main()

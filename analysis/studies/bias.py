"""What schemes and step sizes do to what is learned, on probabilistic PCA, and what few particles do.

    python -m sdeflow.analysis.studies.bias --out bias.svg

Every scheme runs for the same length of time at each step h, from as many seeds; the learned noise variance
and the nats of the exact log-likelihood below its maximum are averaged over the last three quarters.
Predicted for N = infinity: where theta's forces vanish when particles have the scheme's stationary law, from
its own step and at the place in it where forces are taken. With V_h(kappa) the variance there in a direction
of precision kappa, which should be 1/kappa, and l_c the eigenvalues of the data's covariance, the learned
noise s2 and precisions solve

    s2 kappa_c^2 V_h(kappa_c) = l_c  for c <= k,        p s2 = sum_(c <= k) l_c/kappa_c + sum_(c > k) l_c

The learned covariance then has the eigenvalues s2 kappa_c and s2. What N particles do besides is measured
with baoab, whose V_h is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.optimize
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from sdeflow.analysis.curves import open_frame
from sdeflow.analysis.rates import Interval, over_replicas
from sdeflow.analysis.stationary import scheme_covariances
from sdeflow.analysis.studies.script import markdown, model_of, parser, pm, solved, write
from sdeflow.config.build import build
from sdeflow.config.catalogue import integrator_named, problem_file
from sdeflow.config.run import Run
from sdeflow.config.schema import load_config
from sdeflow.errors import SdeflowError
from sdeflow.problems.ppca import PPCA
from sdeflow.system.block import Block
from sdeflow.system.system import BlockSystem

if TYPE_CHECKING:
    from sdeflow.state import State

PARTICLES, REPLICAS = 100, 4
DURATION = {"mpgd": 200.0, "pgd": 200.0 / 3}
"""Of X's time; without the momentum, and its friction of 3, pgd goes 3 times as far in a unit of it."""

SCHEMES: dict[tuple[str, str], tuple[float, ...]] = {
    ("mpgd", "expint"): (0.05, 0.1, 0.2, 0.3),
    ("mpgd", "obabo"): (0.1, 0.2, 0.3),
    ("mpgd", "ubu"): (0.1, 0.2, 0.3),
    ("mpgd", "baoab"): (0.1, 0.2, 0.3),
    ("pgd", "euler_maruyama"): (0.01, 0.02, 0.04),
}
"""The steps h of X, by system and integrator."""

FEW, FEW_AT = (5, 10, 20, 50), 0.2
"""Numbers of particles that are tried beside PARTICLES, with baoab at a step."""


class Answer(NamedTuple):
    """A learned noise variance, and nats below the maximum."""

    noise: float
    excess: float


class Learned(NamedTuple):
    """What a system learned, by a scheme at h of X and with N particles, and what is predicted of it."""

    system: str
    integrator: str
    h: float
    particles: int
    evaluations: int
    noise: Interval
    excess: Interval
    predicted: Answer


def eigenvalues(model: PPCA) -> NDArray[np.float64]:
    """Of the data's covariance, the greatest first."""
    return np.linalg.eigvalsh(np.cov(model.data.numpy().T, bias=True))[::-1]


def predicted(model: PPCA, variance: Callable[[float], float]) -> Answer:
    """The answer for particles whose stationary variance is `variance` of a precision, for N = infinity."""
    values, k = eigenvalues(model), model.latent_shape[0]
    least = values[k:].mean()

    def equations(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        *kappa, noise = np.exp(logs)
        spread = [np.log(noise * c**2 * variance(float(c)) / v) for c, v in zip(kappa, values, strict=False)]
        explained = sum(v / c for c, v in zip(kappa, values, strict=False))
        return np.array([*spread, np.log((explained + values[k:].sum()) / (len(values) * noise))])

    found = scipy.optimize.root(equations, np.log([*(values[:k] / least), least]), tol=1e-12)
    if not np.abs(found.fun).max() < 1e-9:
        raise SdeflowError(f"what is learned was not found: {found.message}")
    *kappa, noise = np.exp(found.x)
    learned = np.append(noise * np.array(kappa), np.full(len(values) - k, noise))
    log_likelihood = len(values) * np.log(2 * np.pi) + (np.log(learned) + values / learned).sum()
    return Answer(float(noise), float(len(model.data) / 2 * log_likelihood - model.minimum))


def spread(block: Block, h: float, integrator: str) -> Callable[[float], float]:
    """V_h of a precision: the scheme's variance in a well, where it takes forces, as the block moves."""
    of = variances(block, h, integrator)
    return lambda kappa: float(of(np.array([kappa]))[0])


def variances(
    block: Block, h: float, integrator: str
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """V_h of each of some precisions [n]."""
    scheme = integrator_named(integrator)

    def of(kappa: NDArray[np.float64]) -> NDArray[np.float64]:
        alone = replace(block, shape=kappa.shape, dims=("latent",))
        precision = torch.as_tensor(kappa)

        def force(t: float, z: State, names: Sequence[str]) -> State:
            return {block.name: -precision * z[block.position]}

        wells = BlockSystem([alone], force, h=h)
        z = {name: torch.zeros(1, *kappa.shape, dtype=torch.float64) for name in wells.axes}
        (law,) = scheme_covariances(wells, scheme, z, at_forces=True)
        return np.diagonal(law[0])

    return of


def prepared(
    system: str, integrator: str, h: float, *, particles: int, replicas: int, part: float = 1.0
) -> Run:
    """A run of the packaged problem for part of DURATION, theta's step in its ratio to that of X."""
    path, variant = problem_file("ppca"), "pgd" if system == "pgd" else "fixed"
    own = load_config(path, variant=variant).system.arguments
    ratio = own["theta"]["h"] / own["x"]["h"]
    steps = max(8, round(part * DURATION[system] / h))
    over = {
        "system": {"particles": particles, "theta": {"h": h * ratio}, "x": {"h": h}},
        "run": {"integrator": integrator, "steps": steps, "replicas": replicas},
        "save": {"every": max(1, steps // 400), "data": 1, "particles": 1},
    }
    return build(load_config(path, variant=variant, overrides=[over]))


def learned(
    system: str,
    integrator: str,
    h: float,
    *,
    particles: int = PARTICLES,
    replicas: int = REPLICAS,
    part: float = 1.0,
) -> Learned:
    """What the packaged problem learns in part of DURATION."""
    run = prepared(system, integrator, h, particles=particles, replicas=replicas, part=part)
    assert isinstance(run.system, BlockSystem)
    (x,) = run.system.particles
    answer = predicted(model_of(run, PPCA), spread(x, run.system.h, integrator))
    dataset = solved(run).dataset
    late = dataset.isel(time=slice(dataset.sizes["time"] // 4, None)).mean("time")
    noise, excess = (over_replicas(late[name].to_numpy()) for name in ("noise", "excess"))
    made = run.steps * run.gradient_evaluations
    return Learned(system, integrator, h, particles, made, noise, excess, answer)


def measure(replicas: int = REPLICAS, part: float = 1.0) -> tuple[list[Learned], list[Learned]]:
    """Over schemes and steps, and over numbers of particles.

    Raises SdeflowError for fewer than two replicas.
    """
    if replicas < 2:
        raise SdeflowError(
            f"an error bar needs two replicas or more, given {replicas}: take --replicas 4, say"
        )
    steps = [learned(*by, h, replicas=replicas, part=part) for by, tried in SCHEMES.items() for h in tried]
    few = [
        learned("mpgd", "baoab", FEW_AT, particles=n, replicas=replicas, part=part) for n in (*FEW, PARTICLES)
    ]
    return steps, few


def row(found: Learned) -> dict[str, str]:
    """A line of the table."""
    return {
        "system, integrator": f"{found.system}, {found.integrator}",
        "h of X": f"{found.h:g}",
        "N": str(found.particles),
        "gradient evaluations": f"{found.evaluations:,}",
        "noise": pm(found.noise, digits=4),
        "predicted": f"{found.predicted.noise:.4f}",
        "nats below the maximum": pm(found.excess, digits=3),
        "predicted at N = ∞": f"{found.predicted.excess:.3f}",
    }


def draw(steps: Sequence[Learned], few: Sequence[Learned]) -> Figure:
    """Noise against h, nats against gradient evaluations, and nats against N; lines are predicted."""
    model = PPCA()
    figure = Figure(figsize=(11.5, 3.7), layout="constrained")
    noise, cost, number = figure.subplots(1, 3)
    exact = float(model.mle["log_noise"].exp())
    for i, by in enumerate(SCHEMES):
        mine = [f for f in steps if (f.system, f.integrator) == by]
        h = np.array([f.h for f in mine])
        bars = {"fmt": "o", "ms": 4, "color": f"C{i}", "capsize": 2}
        noise.errorbar(h, [f.noise.mean for f in mine], [2 * f.noise.error for f in mine], **bars)
        noise.plot([0, *h], [exact, *(f.predicted.noise for f in mine)], color=f"C{i}", lw=1.2)
        made = [f.evaluations for f in mine]
        excess, errors = [f.excess.mean for f in mine], [2 * f.excess.error for f in mine]
        cost.errorbar(made, excess, errors, label=", ".join(by), **bars)
        if max(f.predicted.excess for f in mine) > 1e-6:
            cost.plot(made, [f.predicted.excess for f in mine], color=f"C{i}", lw=1.2)
    noise.axhline(exact, color="0.4", lw=0.8, ls=":")
    noise.annotate("maximum likelihood", (1, exact), xycoords=("axes fraction", "data"), ha="right", va="top",
                   color="0.35", fontsize="small")  # fmt: skip
    noise.set(
        xlabel="step h of X", ylabel="learned noise variance", xlim=(0, None), ylim=(0.96 * exact, None)
    )
    cost.set(xscale="log", yscale="log", xlabel="gradient evaluations", ylabel="nats below the maximum")
    cost.set_ylim(bottom=min(f.excess.mean for f in steps) / 3)
    figure.legend(loc="outside lower center", ncols=len(SCHEMES), frameon=False, fontsize="small")
    n, nats = np.array([f.particles for f in few]), np.array([f.excess.mean for f in few])
    number.errorbar(n, nats, [2 * f.excess.error for f in few], fmt="o", ms=4, color="C3", capsize=2)
    number.plot(n, nats[-1] * n[-1] / n, color="0.5", lw=1, ls="--")
    number.annotate("slope −1", (n[1], nats[1]), (8, 4), textcoords="offset points", color="0.35")
    number.set(
        xscale="log",
        yscale="log",
        xlabel="particles N",
        ylabel="nats below the maximum",
        title=f"baoab, h = {FEW_AT:g}",
    )
    for panel in (noise, cost, number):
        open_frame(panel)
    for panel in (cost, number):
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_minor_formatter(NullFormatter())
    return figure


def main() -> None:
    """The script."""
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("bias.svg"), help="figure to write")
    options.add_argument("--replicas", type=int, default=REPLICAS)
    given = options.parse_args()
    try:
        steps, few = measure(given.replicas)
    except SdeflowError as error:
        options.error(str(error))
    print(markdown([row(f) for f in (*steps, *few)]), end="\n\n")
    write(given.out, draw(steps, few))


if __name__ == "__main__":
    main()

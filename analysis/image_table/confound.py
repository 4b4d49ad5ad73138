"""How much of the published gap between mpgd and pgd on images is momentum, and how much is time.

    python -m sdeflow.analysis.image_table.confound fashion14 --out tables/confound-fashion14

As published only mpgd's particles catch up for the steps between two visits of their image, so that in an
epoch they cover 0.0433 in time, and pgd's 0.001. Here the arms differ in momentum and in time by turns, with
the same model, data, minibatches, starts and steps of the parameters:

    mpgd, catch-up     0.0433 an epoch, by one step over all that was missed, as published
    mpgd               the same step without catching up, so 0.0433 over the steps of an epoch
    pgd                h = 0.001, as published
    pgd, long step     h = 0.0433
    pgd, catch-up      0.0433 an epoch, by one step over all that was missed
    pgd, srock         likewise, by the stages of a stabilised step
    mpgd, srock        likewise, with the momentum kept

All take as many steps; catching up costs more evaluations a step. A study that was stopped goes on where
it was. Writes table.md and confound.png into the folder. Source: Lim et al. 2024, arXiv:2312.07335, whose
public code has h = 1e-4, gamma = 0.9, eta = 500, 390 steps an epoch. The scheme of mpgd is expint_shared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from sdeflow.analysis.curves import open_frame
from sdeflow.analysis.image_table.bases import folder
from sdeflow.analysis.image_table.methods import METHODS, REFERENCE, Table
from sdeflow.analysis.image_table.settings import FRICTION, MOMENTS, SETTINGS, Setting
from sdeflow.analysis.image_table.table import rows
from sdeflow.analysis.image_table.trial import Looks, trial
from sdeflow.analysis.studies.script import markdown, parser, write
from sdeflow.config.build import build
from sdeflow.config.schema import Config
from sdeflow.data.cache import fetching
from sdeflow.errors import SdeflowError
from sdeflow.terminal import counted
from sdeflow.trajectory import durable

EPOCH, SHORT_STEP = 0.0433, 1e-3
"""Time that particles cover in an epoch with catching up, and pgd's step, as published."""

KEPT_EPOCH, KEPT_THETA = 17.55, 0.045
"""gamma eta h of particles over an epoch, and of parameters over a step, as published."""


@dataclass(frozen=True)
class Arm:
    """Particles with momentum or without, the time that they cover in an epoch, and whether they catch up."""

    label: str
    momentum: bool
    time: float
    catch_up: str = "off"

    def over(self, per_epoch: int, theta: float) -> Table:
        """What it changes, on a problem with so many steps an epoch and a step of the parameters."""
        visits = 1 if self.catch_up == "off" else per_epoch
        h = self.time / visits * (FRICTION if self.momentum else 1.0)
        kept = KEPT_EPOCH / per_epoch
        return {
            "system": {
                "x": {"h": h, "eta": kept / (FRICTION * h), "gamma": FRICTION},
                "theta": {"h": theta, "eta": KEPT_THETA / (FRICTION * theta), "gamma": FRICTION},
            },
            "batch": {"catch_up": self.catch_up, "cap": per_epoch},
        }


def arms(per_epoch: int) -> tuple[Arm, ...]:
    """Those of a problem with so many steps an epoch; pgd as published is the reference."""
    return (
        Arm(REFERENCE, False, SHORT_STEP),
        Arm("pgd, long step", False, EPOCH),
        Arm("pgd, catch-up", False, EPOCH, "one_step"),
        Arm("mpgd", True, EPOCH / per_epoch),
        Arm("mpgd, catch-up", True, EPOCH, "one_step"),
        Arm("pgd, srock", False, EPOCH, "srock"),
        Arm("mpgd, srock", True, EPOCH, "srock"),
    )


def config(setting: Setting, arm: Arm, steps: int) -> Config:
    """The run of an arm, all seeds at once."""
    label = "mpgd, expint_shared" if arm.momentum else REFERENCE
    method = next(m for m in METHODS if m.label == label)
    over = arm.over(per_epoch(setting), setting.theta)
    found = setting.config(method, replicas=setting.seeds, over=over)
    save = replace(found.save, every=max(1, steps // (2 * MOMENTS)))
    return found.model_copy(update={"run": replace(found.run, steps=steps), "save": save})


def per_epoch(setting: Setting) -> int:
    """Steps that an epoch takes."""
    run = build(setting.config(METHODS[0], part=0.0))
    assert run.batch is not None
    assert run.system.model_forces is not None
    return run.system.model_forces.n_data // run.batch.size


def measure(setting: Setting, steps: int, out: Path) -> dict[str, xr.Dataset]:
    """The scores of all arms by label."""
    looks = Looks(setting.along, setting.of_images)
    each = arms(per_epoch(setting))
    found = {}
    with counted("run", len(each)) as tick:
        for arm in each:
            found[arm.label] = trial(config(setting, arm, steps), out / folder(arm.label), looks)
            tick()
    return found


def draw(found: Mapping[str, xr.Dataset], epoch: int) -> Figure:
    """Evidence against epochs, and against the time that the particles of an image have covered."""
    figure = Figure(figsize=(8.2, 3.4), layout="constrained")
    by_label = {arm.label: arm for arm in arms(epoch)}
    panels = figure.subplots(1, 2, sharey=True)
    for number, (label, scores) in enumerate(found.items()):
        if "course" not in scores:
            continue
        values = scores.course.transpose("moment", "seed").to_numpy()
        epochs = scores.moment.to_numpy() / epoch
        for panel, x in zip(panels, (epochs, epochs * by_label[label].time), strict=True):
            panel.plot(x, values.mean(1), color=f"C{number}", lw=1.4, marker="o", ms=3, label=label)
            panel.fill_between(x, values.min(1), values.max(1), color=f"C{number}", alpha=0.2, lw=0)
    panels[0].set(xlabel="epochs", ylabel="log-evidence, nats a datum")
    panels[1].set(xlabel="time of a particle", xscale="log")
    for panel in panels:
        open_frame(panel)
    panels[1].legend(frameon=False, fontsize="small")
    return figure


def main() -> None:
    """The script."""
    options = parser(__doc__)
    options.add_argument("problem", choices=[n for n, s in SETTINGS.items() if s.precondition and s.images])
    options.add_argument("--out", type=Path, required=True, help="folder for runs, table and figure")
    options.add_argument("--steps", type=int, help="steps of each run (default: the setting's budget)")
    given = options.parse_args()
    setting = SETTINGS[given.problem]
    try:
        with fetching():
            found = measure(setting, given.steps or setting.budget, given.out)
    except SdeflowError as error:
        options.error(str(error))
    except KeyboardInterrupt:
        options.exit(130, "stopped: the same command goes on from here\n")
    table = markdown(rows(found))
    print(table, end="\n\n")
    durable.write(given.out / "table.md", table.encode())
    write(given.out / "confound.png", draw(found, per_epoch(setting)))


if __name__ == "__main__":
    main()

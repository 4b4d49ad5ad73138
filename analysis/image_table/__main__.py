"""Trains and scores methods on a problem, by numbers that are given and by numbers chosen on a grid.

    python -m sdeflow.analysis.image_table digits --out tables/digits
    python -m sdeflow.analysis.image_table fashion14 --out tables/fashion14 --methods pgd "mpgd, expint"

All see the same data in the same order, from the same starts and with noise of the same addresses, seed by
seed, and make as many gradient evaluations. Numbers are chosen with a seed of their own and on validation
data; reported are test data. A study that was stopped goes on where it was: what is done is not done again.
Writes table.md, table.nc, page.html and samples.png into the folder.
"""

from __future__ import annotations

from pathlib import Path

from sdeflow.analysis.image_scores import ImageOptions
from sdeflow.analysis.image_table.bases import compare, runs
from sdeflow.analysis.image_table.methods import METHODS, methods
from sdeflow.analysis.image_table.settings import SETTINGS, Setting
from sdeflow.analysis.studies.script import parser
from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.terminal import counted


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("problem", choices=list(SETTINGS))
    arguments.add_argument("--out", type=Path, required=True, help="folder for runs, tables and the page")
    arguments.add_argument("--methods", nargs="+", default=None, help="labels (default: the setting's)")
    arguments.add_argument("--no-images", action="store_true", help="leave KID out")
    given = arguments.parse_args()
    setting, labels = SETTINGS[given.problem], given.methods
    known = [m.label for m in METHODS]
    for label in labels or ():
        if label not in known:
            raise SdeflowError(f"no method '{label}': {did_you_mean(label, known)}")
    entrants = [m for m in methods(labels or setting.labels) if setting.energy or not m.energy]
    images = None if given.no_images else image_options(setting)
    with counted("run", runs(setting, entrants)) as tick:
        found = compare(setting, entrants, given.out, images, lambda _: tick())
    print(found)


def image_options(setting: Setting) -> ImageOptions | None:
    """How images are compared, by features of Inception."""
    from sdeflow.data.cache import at_hand, cache_folder
    from sdeflow.data.datasets import INCEPTION

    if not setting.images:
        return None
    network = at_hand(INCEPTION) / f"{INCEPTION}.pt"
    kept = cache_folder() / "features"
    return ImageOptions(network, kid=setting.images, pixels=setting.pixels, kept=kept)


if __name__ == "__main__":
    main()

"""Trains and scores methods on a problem, by numbers that are given and by numbers chosen on a grid.

    python -m sdeflow.analysis.image_table digits --out tables/digits
    python -m sdeflow.analysis.image_table fashion14 --out tables/fashion14 --methods pgd "mpgd, expint"

All see the same data in the same order, from the same starts and with noise of the same addresses, seed by
seed, and make as many gradient evaluations. Numbers are chosen with a seed of their own and on validation
data; reported are test data. A study that was stopped goes on where it was: what is done is not done again.
Writes table.md, table.nc and page.html into the folder.
"""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from sdeflow.analysis.image_table.bases import compare, runs, tuned_folder
from sdeflow.analysis.image_table.methods import METHODS
from sdeflow.analysis.image_table.page import as_dataset, page, samples, text
from sdeflow.analysis.image_table.settings import SETTINGS, TUNED, Setting
from sdeflow.analysis.studies.script import parser
from sdeflow.data.cache import fetching
from sdeflow.errors import SdeflowError, did_you_mean
from sdeflow.terminal import counted
from sdeflow.trajectory import durable
from sdeflow.trajectory.segments import encode_dataset


def main() -> None:
    """The script."""
    options = parser(__doc__)
    options.add_argument("problem", choices=list(SETTINGS))
    options.add_argument("--out", type=Path, required=True, help="folder for runs, tables and the page")
    options.add_argument("--methods", nargs="+", metavar="LABEL", help="which (default: the setting's)")
    given = options.parse_args()
    setting, known = SETTINGS[given.problem], [m.label for m in METHODS]
    try:
        for label in given.methods or ():
            if label not in known:
                raise SdeflowError(f"no method '{label}': {did_you_mean(label, known)}")
        entrants = setting.entrants(given.methods)
        with fetching(), counted("run", runs(setting, entrants)) as tick:
            found = compare(setting, entrants, given.out, tick)
    except SdeflowError as error:
        options.error(str(error))
    except KeyboardInterrupt:
        options.exit(130, "stopped: the same command goes on from here\n")
    write(setting, found, given.out)


def write(setting: Setting, found: dict[str, dict[str, xr.Dataset]], out: Path) -> None:
    """The tables, as text and numbers, and the page; prints what stands in the first."""
    by_label = {
        label: tuned_folder(out, label, scores.factor_theta, scores.factor_x)
        for label, scores in found[TUNED].items()
    }
    tables = text(found)
    durable.write(out / "table.md", tables.encode())
    durable.write(out / "table.nc", encode_dataset(as_dataset(found)))
    durable.write(out / "page.html", page(setting, found, samples(by_label)).encode())
    print(tables)
    print(out / "page.html")


if __name__ == "__main__":
    main()
